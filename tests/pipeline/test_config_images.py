"""The configuration's section of images: what it refuses, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load
from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BASE: dict[str, Any] = {
    "profile": "test",
    "models": {"tiny": {"hub": "org/tiny", "dtypes": ["float32"]}},
    "methods": {"autoregressive": {}},
    "tasks": {"docstrings": {"num_prompts": 1, "max_new_tokens": 2, "chat_template": False}},
}


def test_a_profile_need_not_have_it() -> None:
    assert load(BASE).images is None
    assert load(BASE | {"images": {}}).images.windows == [1, 2]


def test_the_default_profile_has_it_and_no_other() -> None:
    having = [file.stem for file in sorted((ROOT / "config").glob("*.yaml")) if "\nimages:" in file.read_text()]
    assert having == ["laptop"]
    images = load(ROOT / "config" / "laptop.yaml").images
    assert images is not None
    assert images.cost.sides[-1] == 2048


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"window": [1]}, "images.window = [1]: not a known key; did you mean 'windows'?"),
        ({"windows": [1, 0]}, "images.windows.1 = 0: input should be greater than 0"),
        ({"windows": [2]}, "images: windows [2]: 1, which the others are held against, is missing"),
        ({"windows": [1, 1]}, "images.windows = [1, 1]: one is listed twice"),
        (
            {"windows": [1, 3]},
            "images: side 8 cannot be cut into windows of 3 x 3 patches of 2 pixels; did you mean 6?",
        ),
        ({"patch_size": 3}, "images: side 8 cannot be cut into patches of 3 pixels; did you mean 6?"),
        ({"guidance_scale": 0}, "images.guidance_scale = 0: input should be greater than 0"),
        ({"guidance_scale": -1}, "images.guidance_scale = -1: input should be greater than 0"),
        ({"guidances": ["halflinear"]}, "images.guidances.0 = 'halflinear': did you mean 'half_linear'?"),
        ({"sampling": {"top_p": 0}}, "images.sampling.top_p = 0: input should be greater than 0"),
        ({"codebook_size": 1}, "images.codebook_size = 1: input should be greater than or equal to 2"),
        (
            {"backbone": {"hidden_size": 90, "num_heads": 3}},
            "images: windows: 2 x 2 tokens cannot share hidden_size 90 evenly",
        ),
        (
            {"cost": {"sides": [256, 1000]}},
            "images.cost: side 1000 cannot be cut into patches of 16 pixels; did you mean 992?",
        ),
        (
            {"cost": {"sides": [272]}},
            "images.cost: side 272 cannot be cut into windows of 2 x 2 patches of 16 pixels; did you mean 256?",
        ),
        ({"cost": {"repeat": 3}}, "images.cost.repeat = 3: not a known key; did you mean 'repeats'?"),
    ],
)
def test_a_mistake_is_one_line(section: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        load(BASE | {"images": section})
    assert str(error.value) == f"config: {said}"
