"""Rows of ``results/image.csv`` as a run would write them, for the tests of what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from pipeline.images.data import NUM_CLASSES
from pipeline.schemas import image

Run = Callable[..., int]  # runs a module of pipeline.images with arguments; the exit status
SAME: dict[str, Any] = {
    "profile": "test",
    "hardware": "a processor",
    "device": "cpu",
    "dtype": "float32",
    "data_source": "scikit-learn==1.0",
    "codebook_sha256": "a" * 64,
    "codebook_size": 64,
    "round_trip_rmse": 0.07,
}
DIGITS = SAME | {"subject": "digits", "side": 8, "patch_size": 2, "tokens": 16, "images": 100, "accuracy_stderr": 0.01}
BY_CLASS = {f"accuracy_{one}": 0.9 for one in range(NUM_CLASSES)}


def real(**own: Any) -> dict[str, Any]:
    return DIGITS | BY_CLASS | {"method": "real", "accuracy": 0.97, "frechet": 0.14} | own


def digits(window: int = 2, guidance: str = "none", **own: Any) -> dict[str, Any]:
    speed = {"image_s": 0.02 / window**2, "speedup": window**2 * 0.9, "speedup_low": 3.0, "speedup_high": 4.0}
    named = {"method": f"window_{window}", "window": window, "guidance": guidance, "guidance_scale": 2.0}
    return DIGITS | BY_CLASS | speed | named | {"accuracy": 0.93, "frechet": 0.5, "batch_speedup": 3.0} | own


def photograph(window: int = 2, side: int = 2048, **own: Any) -> dict[str, Any]:
    tokens = (side // 16) ** 2
    cost = {"rows": tokens // window**2, "predicted_rows": tokens // window**2, "prefill_s": tokens * 1e-4 / window**3}
    flops = dict.fromkeys(("attention_flops", "predicted_attention_flops"), tokens**2 * 1024 // window**4)
    ratios = {"prefill_ratio": 1 / window**3, "memory_ratio": 0.3, "peak_memory_bytes": 10**8}
    named = {"method": f"window_{window}", "window": window, "weights": "untrained"}
    where = {"subject": "photograph", "side": side, "patch_size": 16, "tokens": tokens}
    return SAME | where | named | cost | flops | ratios | own


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return image.frame(list(rows))


def whole_table() -> pd.DataFrame:
    return table(
        real(),
        *(digits(window, guidance) for window in (1, 2) for guidance in ("none", "constant", "linear", "half_linear")),
        *(photograph(window, side) for side in (256, 2048) for window in (1, 2, 4)),
    )
