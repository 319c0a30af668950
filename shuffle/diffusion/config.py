"""The shape of a masked diffusion model, and how it is trained.

Example::

    config = DiffusionConfig(vocab_size=4000, eos_token_id=2, block_length=8)
"""

from __future__ import annotations

from typing import Any

from shuffle.backbone import BackboneConfig

LOSS_WEIGHTINGS = ("uniform", "1/t")


class DiffusionConfig(BackboneConfig):
    """A backbone with one special token, the mask.

    Attributes:
        block_length: tokens that are denoised together, L; a text is generated block by block. One block as long as the
            longest text is plain masked diffusion (MDLM, LLaDA); one token is autoregression.
        loss_weighting: ``"1/t"``, the likelihood bound, or ``"uniform"``, every masked token alike.
        min_mask_ratio: the least share t of masked tokens in training, above 0.
        placed_masks: a mask has an embedding for each place of its block. Masks that are all alike have only the rotary
            embedding to tell which of them is meant, and a small model that starts from nothing learns that slowly.
    """

    model_type = "shufflebench-diffusion"

    block_length: int = 8
    loss_weighting: str = "uniform"
    min_mask_ratio: float = 1e-3
    placed_masks: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.block_length < 1:
            raise ValueError(f"block_length must be 1 or more, not {self.block_length}")
        if self.loss_weighting not in LOSS_WEIGHTINGS:
            raise ValueError(f"unknown loss_weighting {self.loss_weighting!r}: {' or '.join(LOSS_WEIGHTINGS)}")
        if not 0 < self.min_mask_ratio < 1:
            raise ValueError(f"min_mask_ratio must be between 0 and 1, not {self.min_mask_ratio}")

    @property
    def num_special_tokens(self) -> int:
        """The mask, once for each place of a block, or once."""
        return self.block_length if self.placed_masks else 1
