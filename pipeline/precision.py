"""What a configuration's ``dtype`` stands for: the type of the arithmetic, and that of the weights where it is another.

Example::

    precision = precision_of("int8")       # arithmetic torch.bfloat16, weights "int8"
    TargetModel.from_pretrained(folder, dtype=precision.arithmetic, weights=precision.weights)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
