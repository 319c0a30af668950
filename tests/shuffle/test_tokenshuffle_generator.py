"""Generation against the model read anew for each window, guidance against its formula, and what cannot be asked."""

from __future__ import annotations

import pytest
import torch

from shuffle.tokenshuffle.generator import ImageGenerator
from shuffle.tokenshuffle.guidance import scales
from shuffle.tokenshuffle.layers import from_windows
from tests.shuffle.test_tokenshuffle_model import tiny, window_logits

ASKED = [2, 0, 1]


def by_hand(window: int, schedule: str, scale: float) -> torch.Tensor:
    """The most likely tokens, one image at a time, each window from the whole sequence read anew."""
    model, images = tiny(window, shuffle_blocks=1), []
    for label in ASKED:
        windows = torch.zeros(0, window**2, dtype=torch.long)
        for weight in scales(schedule, scale, model.config.num_windows):
            none = window_logits(model, model.no_class_id, windows)
            logits = none + weight * (window_logits(model, label, windows) - none)
            windows = torch.cat([windows, logits.argmax(-1)[None]])
        images.append(windows)
    return from_windows(torch.stack(images), window)


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize(
    ("schedule", "scale"), [("constant", 1.0), ("constant", 3.0), ("linear", 3.0), ("half_linear", 2.0)]
)
def test_greedy_images_are_those_read_anew_for_each_window(window: int, schedule: str, scale: float) -> None:
    model = tiny(window, shuffle_blocks=1)
    generator = ImageGenerator(model, guidance=schedule, guidance_scale=scale, temperature=0.0)
    assert torch.equal(generator.generate(ASKED), by_hand(window, schedule, scale))


def test_the_schedules() -> None:
    assert scales("constant", 3.0, 5) == [3.0] * 5
    assert scales("linear", 3.0, 5) == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert scales("half_linear", 3.0, 5) == [1.0, 2.0, 3.0, 3.0, 3.0]
    assert scales("linear", 3.0, 1) == scales("half_linear", 3.0, 1) == [3.0]


def test_without_guidance_a_pass_has_a_row_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny(2), []
    read = model.read_rows
    monkeypatch.setattr(model, "read_rows", lambda x, cache: (rows.append(len(x)), read(x, cache))[1])
    ImageGenerator(model).generate(ASKED)
    ImageGenerator(model, guidance_scale=2.0).generate(ASKED)
    assert rows == [3] * 4 + [6] * 4


def test_the_same_seed_draws_the_same_images() -> None:
    generator = ImageGenerator(tiny(2), guidance_scale=1.5)
    draws = [generator.generate(ASKED, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_options_of_sampling_are_those_of_text() -> None:
    greedy = ImageGenerator(tiny(2), temperature=0.0).generate(ASKED)
    assert torch.equal(ImageGenerator(tiny(2), top_k=1).generate(ASKED), greedy)
    assert torch.equal(ImageGenerator(tiny(2), top_p=1e-6).generate(ASKED), greedy)


def test_tokens_are_drawn_from_what_the_model_says() -> None:
    """The first window, drawn often, against its distribution; the tokens of a window are independent."""
    model, count = tiny(2), 4000
    drawn = ImageGenerator(model).generate([1] * count, torch.Generator().manual_seed(0))[:, :2, :2].flatten(1)
    expected = window_logits(model, 1, torch.zeros(0, 4, dtype=torch.long)).softmax(-1)
    found = torch.stack([torch.bincount(drawn[:, place], minlength=11) for place in range(4)]) / count
    assert float((found - expected).abs().max()) < 0.035
    both = ((drawn[:, 0] == drawn[:, 0].mode().values) & (drawn[:, 1] == drawn[:, 1].mode().values)).float().mean()
    apart = found[0].max() * found[1].max()
    assert float((both - apart).abs()) < 0.03


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"guidance": "cubic"}, "unknown guidance 'cubic': constant, linear, half_linear"),
        ({"guidance_scale": 0.0}, r"guidance_scale must be above 0 \(1 is no guidance\), not 0.0"),
        ({"guidance_scale": -1.0}, r"guidance_scale must be above 0 \(1 is no guidance\), not -1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be above 0"),
        ({"temperature": -1.0}, "temperature must be 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImageGenerator(tiny(2), **options)  # type: ignore[arg-type]


def test_an_unknown_class_is_named() -> None:
    with pytest.raises(ValueError, match="unknown class 3; known: 0 to 2"):
        ImageGenerator(tiny(2)).generate([3])
    with pytest.raises(ValueError, match="no class is asked for"):
        ImageGenerator(tiny(2)).generate([])
