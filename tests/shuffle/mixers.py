"""Random mixers, small, with whatever shape is asked for."""

from __future__ import annotations

import torch

from shuffle.fasterdecodemixer.config import MixerConfig
from shuffle.fasterdecodemixer.model import FasterDecodeMixer
from tests.decoding.tiny import SHAPE

D, V, J, C = int(SHAPE["hidden_size"]), int(SHAPE["vocab_size"]), 3, 2
SHORTLIST = tuple(range(2, V, 2))


def new_mixer(shortlist: tuple[int, ...] = SHORTLIST, width: int = D, **changes: int) -> FasterDecodeMixer:
    shape = {"vocab_size": V, "hidden_size": width, "shortlist_size": len(shortlist), "num_slots": 6}
    mixer = FasterDecodeMixer(MixerConfig(**{**shape, "num_positions": J, "num_context": C, **changes}))
    torch.manual_seed(0)
    mixer.start_from(shortlist, torch.randn(len(shortlist), width) * 0.3)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return mixer.eval()
