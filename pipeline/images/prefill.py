"""One image transformer in a process of its own: how long it takes to read an image, and how much memory that needs.

Untrained weights, which cost what trained ones do. A prefill reads all rows of an image causally into a key-value cache
and says the last window's tokens: embedding, Token-Shuffle, the layers, Token-Unshuffle, head; no image tokenizer.

``pipeline.images.cost`` runs :func:`prepare` and then :func:`prefill` in a worker process for each window. Example::

    prepare(shape, ids, num_threads=2)      # {"rows": 4096, "attention_flops": ..., "weight_bytes": ...}
    prefill()                               # {"seconds": 1.9, "peak_memory_bytes": 2.1e8}
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    import torch

    from pipeline.clock import MemoryMeter
    from shuffle.tokenshuffle.model import TokenShuffleTransformer

_state: dict[str, Any] = {}  # of this worker process


def prepare(shape: dict[str, Any], ids: Int[np.ndarray, "h w"], num_threads: int) -> dict[str, Any]:
    """Make the model in this process and read the image once, uncounted; return what was counted in that pass.

    The memory's floor is that of the process with all libraries at work and no model.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pipeline.clock import MemoryMeter, settle
    from shuffle.tokenshuffle.config import TokenShuffleConfig
    from shuffle.tokenshuffle.model import TokenShuffleTransformer

    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    window = shape["window"]  # a model too small to leave memory behind that the real one would take
    tiny = {"window": window, "hidden_size": 4 * window**2, "num_layers": 1, "num_heads": 1, "grid_size": 2 * window}
    read(TokenShuffleTransformer(TokenShuffleConfig(**tiny)), torch.zeros(1, *[2 * window] * 2).long())
    meter = MemoryMeter(torch.device("cpu"))
    floor = meter.resident()
    model = TokenShuffleTransformer(TokenShuffleConfig(**shape, grid_size=len(ids)))
    model.train(False).requires_grad_(False)
    image = torch.from_numpy(ids)[None]
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={attention: attention_flops}) as counter:
        read(model, image)
    counts = counter.get_flop_counts()["Global"]
    settle()
    _state.update(model=model, image=image, meter=meter, floor=floor)
    return {
        "rows": model.config.num_windows,
        "attention_flops": int(sum(count for name, count in counts.items() if "attention" in str(name))),
        "flops": int(counter.get_total_flops()),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weight_bytes": sum(parameter.nbytes for parameter in model.parameters()),
    }


def attention_flops(query: Any, key: Any, value: Any, *others: Any, out_shape: Any = None, **more: Any) -> int:
    """Return what torch counts for attention on other devices: all n x n, half of which causality hides."""
    from torch.utils.flop_counter import sdpa_flop_count

    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def read(model: TokenShuffleTransformer, image: torch.Tensor) -> torch.Tensor:
    """Read an image into a cache; return the logits of its last window."""
    import torch
    from transformers import DynamicCache

    from shuffle.tokenshuffle.layers import to_windows

    with torch.inference_mode():
        told = model.conditions(torch.zeros(1, dtype=torch.long))
        windows = to_windows(image, model.config.window)
        told[:, 1:] += model.embed_windows(windows[:, :-1], model.compressed_codes())
        return model.window_logits(model.read_rows(told, DynamicCache())[:, -1:])


def prefill() -> dict[str, float]:
    """Read the image once; return the seconds it took, and the peak of memory above the process's floor."""
    from pipeline.clock import quiet

    meter: MemoryMeter = _state["meter"]
    meter.reset_peak()
    with quiet(meter.device):
        started = time.perf_counter()
        read(_state["model"], _state["image"])
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_memory_bytes": meter.peak() - _state["floor"]}
