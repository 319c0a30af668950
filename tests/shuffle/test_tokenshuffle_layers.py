"""The two layers: an image taken apart and put together, a window's tokens side by side, and what cannot be cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shuffle.tokenshuffle.layers import TokenShuffle, TokenUnshuffle, from_windows, to_windows


def windows_by_hand(image: torch.Tensor, window: int) -> torch.Tensor:
    """One window at a time, one token at a time."""
    batch, height, width = image.shape[:3]
    found = []
    for top in range(0, height, window):
        for left in range(0, width, window):
            places = [(top + i, left + j) for i in range(window) for j in range(window)]
            found.append(torch.stack([image[:, row, column] for row, column in places], dim=1))
    return torch.stack(found, dim=1) if found else image.new_zeros(batch, 0)


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("channels", [(), (5,)])
def test_an_image_is_taken_apart_and_put_together(window: int, channels: tuple[int, ...]) -> None:
    image = torch.arange(2 * 6 * 12 * max(1, *channels, 1)).view(2, 6, 12, *channels)
    windows = to_windows(image, window)
    assert torch.equal(windows, windows_by_hand(image, window))
    assert torch.equal(from_windows(windows, window, width=12), image)
    square = image[:, :, :6]
    assert torch.equal(from_windows(to_windows(square, window), window), square)


def test_the_tokens_of_a_window_stand_side_by_side_in_its_row() -> None:
    shuffle, tokens = TokenShuffle(8, 2), torch.randn(3, 5, 4, 8)
    shuffle.compress = nn.Linear(8, 2, bias=False)  # type: ignore[assignment]
    nn.init.eye_(shuffle.compress.weight)  # keeps the first two numbers of a token
    rows = shuffle(tokens)
    for place in range(4):
        assert torch.equal(rows[..., 2 * place : 2 * place + 2], tokens[..., place, :2])


def test_a_token_comes_out_of_its_own_part_of_the_row() -> None:
    unshuffle, rows = TokenUnshuffle(8, 2), torch.randn(1, 1, 8)
    changed = rows.clone()
    changed[..., 2:4] += 1.0
    differs = (unshuffle(rows) != unshuffle(changed)).any(-1)[0, 0]
    assert differs.tolist() == [False, True, False, False]


def test_blocks_let_the_tokens_of_a_window_mix() -> None:
    unshuffle, rows = TokenUnshuffle(8, 2, num_blocks=1), torch.randn(1, 1, 8)
    changed = rows.clone()
    changed[..., 2:4] += 1.0
    assert (unshuffle(rows) != unshuffle(changed)).any(-1).all()


@pytest.mark.parametrize("layer", [TokenShuffle, TokenUnshuffle])
def test_what_cannot_be_is_said(layer: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"^window must be 1 or more, not 0$"):
        layer(8, 0)
    with pytest.raises(ValueError, match=r"^width 10 is no multiple of window x window 4$"):
        layer(10, 2)


def test_images_that_cannot_be_cut_are_named() -> None:
    with pytest.raises(ValueError, match="an image of 6 x 9 tokens cannot be cut into windows of 2 x 2"):
        to_windows(torch.zeros(1, 6, 9), 2)
    with pytest.raises(ValueError, match="window must be 1 or more, not 0"):
        to_windows(torch.zeros(1, 6, 6), 0)
    with pytest.raises(ValueError, match="6 windows do not fill a square image"):
        from_windows(torch.zeros(1, 6, 4), 2)
    with pytest.raises(ValueError, match="6 windows do not fill an image 8 tokens wide"):
        from_windows(torch.zeros(1, 6, 4), 2, width=8)
