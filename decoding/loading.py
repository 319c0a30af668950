"""Where a target's weights come from and how they are laid out: files, the engine that will read them, end tokens.

Example::

    make = layout_for("auto", None, config, torch.bfloat16, torch.device("cpu"))
    with ExitStack() as stack:
        weights = LlamaWeights.load(config, open_tensors(folder, stack), dtype, device, make)
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import GenerationConfig, PretrainedConfig

from decoding.linear import make_linear
from decoding.llama import MakeLinear, ReadTensor
from decoding.native import Int8Linear, NativeLinear, why_not


def layout_for(
    engine: str,
    weights: str | None,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    problem: str | None = None,
) -> MakeLinear:
    """Return the layout of weights that ``engine`` reads; ``problem`` is why the native one cannot, where it is known.

    Raises:
        ValueError: there is no such engine or layout, or native or int8 was asked for and cannot be.
    """
    if engine not in ("auto", "native", "eager"):
        raise ValueError(f"engine must be auto, native or eager, not {engine!r}")
    if weights not in (None, "int8"):
        raise ValueError(f"weights must be int8 or None, not {weights!r}")
    if weights and dtype != torch.bfloat16:
        raise ValueError(f"weights in int8 go with bfloat16, not with {str(dtype).removeprefix('torch.')}")
    problem = problem or ("the eager one was asked for" if engine == "eager" else why_not(config, dtype, device))
    if problem and weights:
        raise ValueError(f"weights in int8 need the native engine, which cannot run here: {problem}")
    if problem and engine == "native":
        raise ValueError(f"the native engine cannot run here: {problem}")
    return make_linear if problem else Int8Linear if weights else NativeLinear


def end_tokens(folder: Path, config: PretrainedConfig) -> tuple[int, ...]:
    """Return the ids that end a text, from the generation config where there is one."""
    source: PretrainedConfig | GenerationConfig = config
    if (folder / "generation_config.json").exists():
        source = GenerationConfig.from_pretrained(folder, local_files_only=True)
    ids = source.eos_token_id
    return () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)


def open_tensors(folder: Path, stack: ExitStack) -> ReadTensor:
    """Return a function that reads one tensor by name from the folder's safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no safetensors weights in {folder}")
    handles = {}
    for file in files:
        handle = stack.enter_context(safe_open(file, framework="pt"))
        handles.update(dict.fromkeys(handle.keys(), handle))
    return lambda name: handles[name].get_tensor(name) if name in handles else None
