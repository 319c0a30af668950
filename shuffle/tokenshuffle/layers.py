r"""The two layers of Token-Shuffle (Ma et al. 2025): many tokens into one row, and one row back into many tokens.

A token of an image needs far fewer numbers than a transformer's row has. So each is compressed from d to d / s^2 by an
MLP, the tokens of an s x s window are put side by side, d numbers again, and the transformer reads n / s^2 rows::

    shuffle     [B, n/s^2, s^2, d]  -- MLP -->  [B, n/s^2, s^2, d/s^2]  -- side by side -->  [B, n/s^2, d]
    unshuffle   [B, n/s^2, d]  -- cut -->  [B, n/s^2, s^2, d/s^2]  -- MLP -->  [B, n/s^2, s^2, d]

Residual MLP blocks, on the side where the window is one row, let the tokens of a window mix. Attention over n / s^2
rows costs 1 / s^4 of attention over n. Example::

    windows = to_windows(ids, 2)          # [B, 8, 8] -> [B, 16, 4]
    rows = TokenShuffle(128, 2)(embed(windows))      # [B, 16, 128]
    tokens = TokenUnshuffle(128, 2)(rows)            # [B, 16, 4, 128]
    from_windows(windows, 2)              # the image again
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn


def to_windows(image: Shaped[Tensor, "b h w *c"], window: int) -> Shaped[Tensor, "b n_s s_s *c"]:
    """Return the image's windows in reading order, ``[B, HW / s^2, s^2, ...]``, the tokens of each in reading order.

    Raises:
        ValueError: a side is no multiple of the window, or the window is below 1.
    """
    batch, height, width, *channels = image.shape
    _check(height, width, window)
    cut = image.reshape(batch, height // window, window, width // window, window, *channels)
    return cut.transpose(2, 3).reshape(batch, -1, window * window, *channels)


def from_windows(
    windows: Shaped[Tensor, "b n_s s_s *c"], window: int, width: int | None = None
) -> Shaped[Tensor, "b h w *c"]:
    """Return the image that :func:`to_windows` took apart; it is square where ``width`` in tokens is None.

    Raises:
        ValueError: the windows do not fill such an image.
    """
    batch, count, _, *channels = windows.shape
    across = round(count**0.5) if width is None else width // max(window, 1)
    if not across or count % across or (width is None and across**2 != count):
        form = "a square image" if width is None else f"an image {width} tokens wide"
        raise ValueError(f"{count} windows do not fill {form}")
    down = count // across
    _check(down * window, width or across * window, window)
    grid = windows.reshape(batch, down, across, window, window, *channels)
    return grid.transpose(2, 3).reshape(batch, down * window, across * window, *channels)


def _check(height: int, width: int, window: int) -> None:
    if window < 1:
        raise ValueError(f"window must be 1 or more, not {window}")
    if height % window or width % window:
        raise ValueError(f"an image of {height} x {width} tokens cannot be cut into windows of {window} x {window}")


class ResidualMLP(nn.Module):
    """``x + W2 gelu(W1 norm(x))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Return the row with what its parts say to each other."""
        # In one kernel, which wants one dtype: in training under autocast the weights' is another.
        normed = F.rms_norm(x, x.shape[-1:], self.scale.to(x.dtype), 1e-5)
        mixed: Tensor = self.mlp(normed)
        return x + mixed


def _compressed_width(width: int, window: int) -> int:
    if window < 1:
        raise ValueError(f"window must be 1 or more, not {window}")
    if width % window**2:
        raise ValueError(f"width {width} is no multiple of window x window {window**2}")
    return width // window**2


class TokenShuffle(nn.Module):
    """The tokens of a window become one row.

    Args:
        width: d, of a token's embedding and of the row.
        window: s, tokens along a side of a window.
        num_blocks: residual MLP blocks behind.

    Raises:
        ValueError: the window is below 1, or its s^2 does not divide the width.
    """

    def __init__(self, width: int, window: int, num_blocks: int = 0) -> None:
        super().__init__()
        narrow = _compressed_width(width, window)
        self.compress = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, narrow))
        self.blocks = nn.Sequential(*(ResidualMLP(width) for _ in range(num_blocks)))

    def forward(self, tokens: Float[Tensor, "b n s_s d"]) -> Float[Tensor, "b n d"]:
        """Return a row for each window."""
        return self.merge(self.compress(tokens))

    def merge(self, narrow: Float[Tensor, "b n s_s c"]) -> Float[Tensor, "b n d"]:
        """Return the rows of tokens that are compressed already."""
        rows: Tensor = self.blocks(narrow.flatten(-2))
        return rows


class TokenUnshuffle(nn.Module):
    """A row becomes the tokens of its window again; arguments and errors as of :class:`TokenShuffle`."""

    def __init__(self, width: int, window: int, num_blocks: int = 0) -> None:
        super().__init__()
        narrow = _compressed_width(width, window)
        self.num_tokens = window**2
        self.blocks = nn.Sequential(*(ResidualMLP(width) for _ in range(num_blocks)))
        self.expand = nn.Sequential(nn.Linear(narrow, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, rows: Float[Tensor, "b n d"]) -> Float[Tensor, "b n s_s d"]:
        """Return the tokens of each row."""
        tokens: Tensor = self.expand(self.blocks(rows).unflatten(-1, (self.num_tokens, -1)))
        return tokens


@torch.no_grad()
def keep_size(layer: nn.Module) -> None:
    """Give random weights to a layer's matrices with which a signal neither fades nor grows (LeCun et al. 1998)."""
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=module.in_features**-0.5)
