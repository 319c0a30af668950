"""The configuration of the two-stream model: the backbone's shape, and how tokens are put into groups.

Example::

    config = TwoStreamConfig(vocab_size=8000, eos_token_id=2, group_sizes=[1, 2, 4], group_size=2)
"""

from __future__ import annotations

from typing import Any

from shuffle.backbone import BackboneConfig

ORDERS = ("left_to_right", "random")
PROMPT_GROUPS = ("single", "causal")


class TwoStreamConfig(BackboneConfig):
    """A backbone with one special token, the learned query vector.

    Attributes:
        group_sizes: sizes in tokens that training draws from, one for each example.
        permute: share of the training examples whose order is random; the others go from left to right.
        block_groups: groups in a block. Blocks go from left to right; a random order is one within each block, of
            ``block_groups * group_size`` tokens.
        prompt_groups: "single", the prompt is one group and sees itself in both directions, or "causal", a group for
            each of its tokens, as a pretrained Llama reads it.
        group_size: tokens settled at once in evaluation and generation.
        order: their order there, "left_to_right" or "random".

    Raises:
        ValueError: a value is out of range.
    """

    model_type = "shufflebench-twostream"

    group_sizes: list[int] | tuple[int, ...] = (1, 2, 3, 4)
    permute: float = 0.1
    block_groups: int = 4
    prompt_groups: str = "single"
    group_size: int = 2
    order: str = "left_to_right"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not self.group_sizes or min(self.group_sizes) < 1:
            raise ValueError(f"group_sizes must be one or more sizes of 1 or more, not {list(self.group_sizes)}")
        if not 0 <= self.permute <= 1:
            raise ValueError(f"permute must be a share from 0 to 1, not {self.permute}")
        if self.block_groups < 1:
            raise ValueError(f"block_groups must be 1 or more, not {self.block_groups}")
        if self.prompt_groups not in PROMPT_GROUPS:
            raise ValueError(f"prompt_groups must be one of {', '.join(PROMPT_GROUPS)}, not {self.prompt_groups!r}")
        check_grouping(self.group_size, self.order)

    @property
    def num_special_tokens(self) -> int:
        """One: the query vector."""
        return 1


def check_grouping(group_size: int, order: str) -> None:
    """Check a grouping.

    Raises:
        ValueError: the size is no size, or the order is unknown.
    """
    if group_size < 1:
        raise ValueError(f"group_size must be 1 or more, not {group_size}")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
