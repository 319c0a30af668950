"""What a configuration's ``dtype`` stands for: the type of the arithmetic, and of products with weights if another.

And whether a device has that arithmetic or emulates it.

Example::

    precision = precision_of("int8")       # arithmetic torch.bfloat16, weights "int8"
    TargetModel.from_pretrained(folder, dtype=precision.arithmetic, weights=precision.weights)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from decoding.linear import can_pack
from pipeline.machine import fast_dtype


@dataclass(frozen=True)
class Precision:
    """Types of the arithmetic and of the weights; ``weights`` is None where they are the arithmetic's."""

    arithmetic: torch.dtype
    weights: str | None = None


PRECISIONS = {
    "bfloat16": Precision(torch.bfloat16),
    "float16": Precision(torch.float16),
    "float32": Precision(torch.float32),
    "int8": Precision(torch.bfloat16, "int8"),
}


def precision_of(dtype: str) -> Precision:
    """Return what ``dtype``, a name of ``pipeline.generate.DTYPES``, stands for."""
    return PRECISIONS[dtype]


def multiplies_in(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device multiplies in ``dtype``, and neither lacks it nor emulates it.

    oneDNN says that it supports bfloat16 wherever there is AVX-512. Without AVX512-BF16 it emulates it: a step of
    training a small model then takes twice as long as in float32.
    """
    if device.type != "cpu":
        return True
    return can_pack(device, dtype) and (dtype != torch.bfloat16 or fast_dtype("cpu") == "bfloat16")
