"""ShuffleLM's configuration: the backbone's, the slots', and the objective's with its known aids.

Example::

    ShuffleConfig(vocab_size=8000, hidden_size=256, num_layers=4, num_heads=4, max_parallel_tokens=32, rotary_dim=32)
"""

from __future__ import annotations

import math
from typing import Any

from shuffle.backbone import BackboneConfig

CHOICES = {
    "prompt_attention": ("bidirectional", "causal"),
    "matching": ("assignment", "identity", "ctc"),
    "position_head": ("rotary", "none"),
}


class ShuffleConfig(BackboneConfig):
    """The shape of a :class:`ShuffleLM` and of its training.

    Attributes:
        max_parallel_tokens: K, the slots, which is as many tokens as one pass can generate.
        slots_per_prompt_token: slots of a pass for each token of what it reads, K at most (Saharia et al. 2020, after
            Libovický and Helcl 2018); None: K, whatever the prompt. Nothing is learned from a text with more tokens
            than its prompt has slots.
        rotary_dim: outputs of the rotary regression, two for each of its M frequencies.
        shuffle_temperature: of the softmax over positions whose mean is a slot's expected position.
        num_mixer_layers: mixers behind the backbone; 0 for none.
        prompt_attention: what the prompt's rows see of each other: all, or (as a causal checkpoint is used to) what is
            before them. In the first case they see the slots too.
        position_head: "none" leaves the tokens in the order of the slots.
        matching: which slot is trained on which token: the cheapest one-to-one; slot j on token j; or "ctc", every way
            at once to stand in the order of the slots, neighbours that say the same being one token.
        matching_warmup: share of the training that starts with identity matching, but for "ctc", which matches nothing.
        alpha: weight of the position in the matching's cost.
        beta: weight of the position in the loss.
        glancing: tokens that are shown, as a share of the wrong ones, at the training's start; 0.6 of that at its end.
        source_copy: start the slots from soft copies of the prompt's embeddings, slot k from its k-th token's; or,
            with ``slots_per_prompt_token``, from the whole prompt's, evenly spread over the slots.
        label_smoothing: of the tokens' cross-entropy.
    """

    model_type = "shufflebench-shufflelm"

    max_parallel_tokens: int = 32
    slots_per_prompt_token: float | None = None
    rotary_dim: int = 32
    shuffle_temperature: float = 0.05
    num_mixer_layers: int = 1
    prompt_attention: str = "bidirectional"
    position_head: str = "rotary"
    matching: str = "assignment"
    matching_warmup: float = 0.1
    alpha: float = 1.0
    beta: float = 1.0
    glancing: float = 0.0
    source_copy: bool = False
    label_smoothing: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for key, known in CHOICES.items():
            if (value := getattr(self, key)) not in known:
                raise ValueError(f"{key}={value!r} is unknown; known: {', '.join(known)}")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ValueError(f"rotary_dim={self.rotary_dim} must be even: two outputs for each frequency")
        if not 1 <= self.max_parallel_tokens < self.max_position_embeddings:
            raise ValueError(
                f"max_parallel_tokens={self.max_parallel_tokens} must be from 1 to less than "
                f"max_position_embeddings={self.max_position_embeddings}"
            )
        for key in ("matching_warmup", "glancing", "label_smoothing"):
            if not 0 <= (share := getattr(self, key)) <= 1:
                raise ValueError(f"{key}={share} must be from 0 to 1")
        if self.shuffle_temperature <= 0:
            raise ValueError(f"shuffle_temperature={self.shuffle_temperature} must be above 0")
        if self.matching == "ctc":
            wanted = {"position_head": "none", "label_smoothing": 0.0}  # its slots are in order
            for key, value in wanted.items():
                if (own := getattr(self, key)) != value:
                    raise ValueError(f"{key}={own!r} does not go with matching='ctc', which needs {value!r}")

        if (ratio := self.slots_per_prompt_token) is not None:
            if ratio <= 0:
                raise ValueError(f"slots_per_prompt_token={ratio} must be above 0")
            if self.num_mixer_layers:  # whose weights are for one number of slots
                raise ValueError(
                    f"slots_per_prompt_token={ratio} needs num_mixer_layers=0, not {self.num_mixer_layers}"
                )

    @property
    def num_special_tokens(self) -> int:
        """The slots' rows of the embedding."""
        return self.max_parallel_tokens

    @property
    def merges_repeats(self) -> bool:
        """Whether neighbouring slots that say the same token say it once."""
        return self.matching == "ctc"

    def num_slots(self, prompt_length: int) -> int:
        """Return the slots of a pass that reads ``prompt_length`` tokens."""
        if self.slots_per_prompt_token is None:
            return self.max_parallel_tokens
        return min(self.max_parallel_tokens, math.ceil(self.slots_per_prompt_token * prompt_length))

    @property
    def num_frequencies(self) -> int:
        """M, the frequencies of the rotary regression."""
        return self.rotary_dim // 2
