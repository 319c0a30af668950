"""MLP-Mixer over slots (Tolstikhin et al. 2021): attention-free layers in which K slots agree on who says what.

Two MLPs in turn, each with a residual: one across the slots, the same for every channel; one across the channels, the
same for every slot. Since the first has a weight for each pair of slots, K is fixed.

    U = X + W_2 gelu(W_1 norm(X))          X^T: [d, K], token mixing
    Y = U + W_4 gelu(W_3 norm(U))          U:   [K, d], channel mixing

Example::

    mixer = MixerBlock(num_slots=32, hidden_size=256)
    mixer(torch.randn(8, 32, 256))                            # [8, 32, 256]
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class MixerBlock(nn.Module):
    """Token mixing across the slots, then channel mixing.

    Args:
        num_slots: K.
        hidden_size: d.
        eps: of the norms.
    """

    def __init__(self, num_slots: int, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.slot_norm = nn.RMSNorm(hidden_size, eps=eps)
        self.slots_up = nn.Linear(num_slots, 2 * num_slots)
        self.slots_down = nn.Linear(2 * num_slots, num_slots)
        self.channel_norm = nn.RMSNorm(hidden_size, eps=eps)
        self.channels_up = nn.Linear(hidden_size, 2 * hidden_size)
        self.channels_down = nn.Linear(2 * hidden_size, hidden_size)

    def forward(self, x: Float[Tensor, "*b k d"]) -> Float[Tensor, "*b k d"]:
        """Mix the slots' states."""
        across = self.slot_norm(x).transpose(-1, -2)
        x = x + self.slots_down(F.gelu(self.slots_up(across))).transpose(-1, -2)
        mixed: Tensor = x + self.channels_down(F.gelu(self.channels_up(self.channel_norm(x))))
        return mixed
