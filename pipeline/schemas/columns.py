"""The columns of ``results/benchmark.csv`` one by one: unit, meaning, and what a value must be.

What must be true of whole rows, and reading and writing the table, is in ``pipeline.schemas.benchmark``. Example::

    COLUMNS["ttft_s"].description  # 'time to first token, median over prompts'
"""

from __future__ import annotations

import pandera.pandas as pa

METRICS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "pass_at_1", "exact_match", "exact_match_flexible")
PERCENT_METRICS = METRICS[:5]

SHA256 = r"^([0-9a-f]{64})?$"
NOT_EMPTY = r"."
SHARE = {"ge": 0.0, "le": 1.0}


def text(meaning: str, **checks: object) -> pa.Column:
    """Return a column of text, never missing; ``checks`` are pandera's by name."""
    return pa.Column(str, description=meaning, metadata={"unit": "text"}, checks=_checks(checks))


def whole(unit: str, meaning: str, **checks: object) -> pa.Column:
    """Return a column of counts, empty where they do not apply."""
    return pa.Column("Int64", nullable=True, description=meaning, metadata={"unit": unit}, checks=_checks(checks))


def real(unit: str, meaning: str, **checks: object) -> pa.Column:
    """Return a column of measurements, empty where they do not apply."""
    return pa.Column(float, nullable=True, description=meaning, metadata={"unit": unit}, checks=_checks(checks))


def _checks(named: dict[str, object]) -> list[pa.Check]:
    """``{"ge": 0}`` -> ``[Check.ge(0)]``."""
    return [getattr(pa.Check, name)(value) for name, value in named.items()]


def _score(name: str, meaning: str) -> pa.Column:
    top = 100.0 if name in PERCENT_METRICS else 1.0
    return real(f"0..{top:.0f}", meaning, ge=0.0, le=top)


COLUMNS: dict[str, pa.Column] = {
    # which cell this is
    "profile": text("configuration profile of the run", str_matches=NOT_EMPTY),
    "hardware": text("CPU and its widest vectors, or GPU, that the cell ran on; empty if it failed before it knew"),
    "device": text("where the model ran; empty if the cell failed", isin=["cpu", "cuda", ""]),
    "dtype": text(
        "type of the weights and of the arithmetic; `int8`: of the weights and of what they are multiplied with, in "
        "blocks of 32 with a scale each; all else in bfloat16",
        isin=["bfloat16", "float32", "float16", "int8"],
    ),
    "model": text("name of the target model in the configuration", str_matches=NOT_EMPTY),
    "model_source": text("where the model came from: package, hub commit or folder"),
    "weights_sha256": text("SHA-256 of the safetensors weights that ran", str_matches=SHA256),
    "method": text("name of the decoding method", str_matches=NOT_EMPTY),
    "options": text("the method's options, JSON"),
    "parts": text(
        "SHA-256 of the weights of the trained parts (draft model, heads, parallel generator) that the method ran "
        "with, JSON"
    ),
    "train_examples": whole(
        "examples",
        "examples, repeats counted, that the twin or the parallel generator was trained on here; what one started from "
        "had its own on top; empty for all else",
        ge=1,
    ),
    "engine": text(
        "forward path that ran: `native`, `cuda-graph` or `eager` of our engine, or `transformers`; empty if it failed"
    ),
    "sampling": text("how tokens were drawn (temperature 0 is greedy), JSON"),
    "lossless": pa.Column(
        "boolean",
        nullable=True,
        metadata={"unit": "true/false"},
        description="whether the method claims to keep the target model's own output; empty if unknown",
    ),
    "task": text("name of the task", str_matches=NOT_EMPTY),
    "data_source": text("where the task's documents came from: package, file or hub, with version, commit or seed"),
    "data_sha256": text("SHA-256 of the task's documents", str_matches=SHA256),
    "requests_sha256": text(
        "SHA-256 of what was asked: the prompts' token ids, their limits and stop strings", str_matches=SHA256
    ),
    "seed": whole("number", "seed of sampling", ge=0),
    # how good
    "metric": text("the metric that `quality` repeats", isin=[*METRICS, ""]),
    "quality": real("as `metric`", "the task's main metric over all prompts; higher is better", ge=0.0, le=100.0),
    "quality_stderr": real("as `metric`", "standard error of `quality` over prompts", ge=0.0),
    "bleu": _score("bleu", "corpus BLEU (sacrebleu)"),
    "chrf": _score("chrf", "corpus chrF (sacrebleu)"),
    "rouge1": _score("rouge1", "ROUGE-1 F-measure: shared words"),
    "rouge2": _score("rouge2", "ROUGE-2 F-measure: shared pairs of words"),
    "rougeL": _score("rougeL", "ROUGE-L F-measure: longest common subsequence"),
    "pass_at_1": _score("pass_at_1", "share of programs that pass all their tests, one try each"),
    "exact_match": _score("exact_match", "share of answers that equal the reference, answer format required"),
    "exact_match_flexible": _score("exact_match_flexible", "the same with the last number taken as the answer"),
    "signature": text("version and settings of the metrics, such as sacrebleu's signature"),
    # how much was generated
    "num_prompts": whole("prompts", "prompts generated; scored too, if the cell is `ok`", ge=1),
    "num_new_tokens": whole("tokens", "tokens generated, prompt and padding excluded", ge=0),
    "truncated": whole("prompts", "outputs cut off by the token limit", ge=0),
    "truncated_tokens": whole(
        "tokens",
        "tokens of those outputs, which often repeat themselves, so that whatever copies is fast there; empty in older "
        "tables",
        ge=0,
    ),
    # how fast
    "tokens_per_second": real(
        "tokens/s", "new tokens by seconds from prompt to last token, prefill included; median over prompts", ge=0.0
    ),
    "decode_tokens_per_second": real(
        "tokens/s", "tokens that the decode steps emitted by the seconds they took; median over prompts", ge=0.0
    ),
    "baseline_tokens_per_second": real(
        "tokens/s", "`tokens_per_second` of `autoregressive` on the same prompts, timed in turn with the method", ge=0.0
    ),
    "ttft_s": real("s", "time to first token, median over prompts", ge=0.0),
    "tpot_s": real("s", "time per output token of the decode steps, median over prompts", ge=0.0),
    "decode_s": real("s", "seconds of the decode steps, summed over prompts", ge=0.0),
    "draft_s": real(
        "s", "seconds of drafting among them, summed over prompts; empty for peers that do not tell", ge=0.0
    ),
    "verify_s": real(
        "s",
        "seconds among them of the target's forward passes and of the verdicts on them; empty for peers and for models "
        "that generate in parallel",
        ge=0.0,
    ),
    "speedup": real(
        "ratio",
        "tokens by seconds over all prompts together, by that of the baseline on the same prompts, timed in turn",
        gt=0.0,
    ),
    "speedup_low": real(
        "ratio",
        "lower end of the 95 % interval of `speedup`: Student's over prompts, and what runs differ by; empty for one "
        "prompt",
        gt=0.0,
    ),
    "speedup_high": real("ratio", "upper end of that interval", gt=0.0),
    "speedup_ended": real(
        "ratio",
        "`speedup` over the prompts whose outputs, the method's and the baseline's, ended before the token limit; "
        "empty where none did, and in older tables",
        gt=0.0,
    ),
    "speedup_ended_low": real("ratio", "lower end of its 95 % interval, as that of `speedup`", gt=0.0),
    "speedup_ended_high": real("ratio", "upper end of that interval", gt=0.0),
    # many prompts at once: only for models that generate in parallel
    "batch_size": whole(
        "prompts",
        "prompts given at once for the five figures that follow; a parallel generator goes through them text by text "
        "or all in one pass, whichever is the faster; all empty where the twin is spread over several devices, and "
        "would read text by text",
        ge=1,
    ),
    "batch_tokens_per_second": real(
        "tokens/s", "new tokens of all prompts by the seconds for them together, over seven trials", ge=0.0
    ),
    "batch_baseline_tokens_per_second": real(
        "tokens/s", "the same of the autoregressive twin, timed in turn, each first in every other trial", ge=0.0
    ),
    "batch_speedup": real("ratio", "the one by the other", gt=0.0),
    "batch_speedup_low": real(
        "ratio", "lower end of its 95 % interval: Student's over trials, and what runs differ by", gt=0.0
    ),
    "batch_speedup_high": real("ratio", "upper end of that interval", gt=0.0),
    # what it took: counts, which no noise touches
    "tokens_per_step": real(
        "tokens",
        "tokens emitted by one decode step, the bonus token included; the prefill's token is not counted. Of a model "
        "that generates in parallel: tokens by forward passes, all of them counted",
        ge=0.0,
    ),
    "accepted_draft_tokens": whole("tokens", "drafted tokens that the target model accepted", ge=0),
    "candidate_tokens": whole("tokens", "drafted tokens that the target model verified", ge=0),
    "target_forwards": whole(
        "forwards",
        "forward passes of the target model, or of the model that generates in parallel and of a twin that chooses "
        "among its texts",
        ge=0,
    ),
    "decode_steps": whole(
        "steps",
        "decode steps, each one forward pass; those before the first token, of which a model that generates in "
        "parallel may need several, are not among them",
        ge=0,
    ),
    "draft_forwards": whole(
        "forwards", "forward passes of a draft model; heads, which run once a step, are not counted", ge=0
    ),
    "decode_width": whole(
        "rows", "rows that every decode forward of the target model is padded to; empty where it is not", ge=1
    ),
    "bytes_read": whole(
        "bytes",
        "bytes that the decode steps had to read: the target's weights, its live keys and values, and `part_bytes` for "
        "each forward pass of the draft model or of the heads (a draft model's own keys and values are left out)",
        ge=0,
    ),
    "flops": whole(
        "operations",
        "multiplications and additions of the target model in the decode steps, attention left out; those of a draft "
        "model or heads are not counted",
        ge=0,
    ),
    # what it cost
    "peak_memory_bytes": whole("bytes", "peak memory: allocator's on CUDA, resident set above the floor on CPU", ge=0),
    "weight_bytes": whole(
        "bytes",
        "bytes that one forward pass of the target model reads; an embedding table of its own is left out",
        ge=0,
    ),
    "part_bytes": whole(
        "bytes",
        "bytes of weights that one forward pass of the draft model, of the heads, or of a twin that chooses among "
        "texts, reads; 0 without",
        ge=0,
    ),
    "cache_bytes": whole(
        "bytes", "our engine's key-value cache, preallocated for the cell's longest prompt; empty for peers", ge=0
    ),
    "bandwidth_bytes_per_s": real(
        "bytes/s",
        "measured memory bandwidth, the limit that `mbu` refers to: in large pages where the system gives them, as the "
        "engine's weights lie (older tables: in small ones)",
        gt=0.0,
    ),
    "flops_per_s": real(
        "operations/s",
        "measured speed of matrix products in the dtype, or float32 if the CPU lacks it: what `mfu` refers to",
        gt=0.0,
    ),
    "mbu": real(
        "ratio",
        "model bandwidth utilisation: `bytes_read`, the draft's too, by (decode time x bandwidth): how near to the "
        "memory's limit the method runs, not how well it drafts, which `tokens_per_step` and `speedup` say; empty "
        "where the weights fit into the processor's last-level cache, so that memory is not read for them",
        ge=0.0,
    ),
    "mfu": real("ratio", "model FLOPs utilisation: `flops` by (decode time x measured speed)", ge=0.0),
    # whether it is what it claims
    "lossless_match": real(
        "share", "prompts whose token ids equal those of `autoregressive`; empty when sampled", **SHARE
    ),
    "output_sha256": text("SHA-256 of all output token ids", str_matches=SHA256),
    # how it was measured
    "repeats": whole("trials", "timed trials a prompt; times are their median", ge=1),
    "num_threads": whole("threads", "CPU threads that computed", ge=1),
    "thread_scaling": real(
        "ratio",
        "speed of a matrix product with all of these threads by its speed with one, the lower of before and after the "
        "cell: near `num_threads` where each has a core of its own, near 1 where two share one; empty on a GPU, with "
        "one thread, and in older tables",
        gt=0.0,
    ),
    "resumed_prompts": whole(
        "prompts",
        "prompts taken over from a run that was killed; a method that learns from prompt to prompt then ran them once "
        "more, untimed, so as to know what it had known",
        ge=0,
    ),
    # how it ended
    "status": text("how the cell ended", isin=["ok", "failed", "skipped"]),
    "reason": text("why it did not end well, one line"),
}
