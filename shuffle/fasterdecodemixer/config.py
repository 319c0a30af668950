"""The shape of a mixer, under the names that ShuffleLM's users know.

Example::

    config = MixerConfig(hidden_size=576, shortlist_size=8192, num_slots=8, num_positions=4)
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class MixerConfig(PreTrainedConfig):
    """What the heads are, and whose.

    Attributes:
        backbone: folder or hub id of the target whose hidden states the heads read; empty where it is not known.
        vocab_size: V, the target's.
        hidden_size: d, the target's.
        shortlist_size: S, the tokens that the slots can say.
        num_slots: K.
        num_positions: J, how many tokens after the bonus token the slots stand for.
        num_context: C, the last tokens of the text that the slots are told.
        num_mixer_layers: mixer blocks.
        rotary_dim: numbers that a slot's position is regressed in, two a frequency.
        position_sharpness: inverse temperature of the position scores.
        reveal: share of the places at which a slot is told the token before its own in training.
    """

    model_type = "fasterdecodemixer"

    backbone: str = ""
    vocab_size: int = 32000
    hidden_size: int = 576
    shortlist_size: int = 8192
    num_slots: int = 4
    num_positions: int = 4
    num_context: int = 3
    num_mixer_layers: int = 1
    rotary_dim: int = 16
    position_sharpness: float = 16.0
    reveal: float = 0.5

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not 1 <= self.num_positions <= self.num_slots:
            raise ValueError(f"num_positions must be 1 to num_slots={self.num_slots}, not {self.num_positions}")
        if not 1 <= self.shortlist_size <= self.vocab_size:
            raise ValueError(f"shortlist_size must be 1 to vocab_size={self.vocab_size}, not {self.shortlist_size}")
        if self.num_context < 1:
            raise ValueError(f"num_context must be 1 or more, not {self.num_context}")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ValueError(f"rotary_dim must be even and 2 or more, not {self.rotary_dim}")
        if not 0 <= self.reveal <= 1:
            raise ValueError(f"reveal must be 0 to 1, not {self.reveal}")
