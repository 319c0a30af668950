"""The columns of ``results/benchmark.csv``: their units, their meaning, and what must be true of them.

One row is one cell (model, dtype, method, task, seed). ``status`` says how it ended: a row that is ``ok`` has all its
figures, a ``skipped`` one has timings but no quality, a ``failed`` one has a reason and no figures at all, so that a
stale number can never stand beside a failure.

The column-by-column document is printed from here, so it cannot disagree with what is checked::

    python -m pipeline.schemas.benchmark > docs/columns.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from pipeline.errors import UserError, nearest
from pipeline.files import atomic_path

METRICS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "pass_at_1", "exact_match", "exact_match_flexible")
PERCENT_METRICS = METRICS[:5]
KEY = ["profile", "hardware", "device", "dtype", "model", "method", "task", "seed"]
QUALITY = ["quality", "quality_stderr", *METRICS]

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
    "hardware": text("CPU, or GPU, that the cell ran on; empty if it failed before it knew"),
    "device": text("where the model ran; empty if the cell failed", isin=["cpu", "cuda", ""]),
    "dtype": text("type of the weights and of the arithmetic", isin=["bfloat16", "float32", "float16"]),
    "model": text("name of the target model in the configuration", str_matches=NOT_EMPTY),
    "model_source": text("where the model came from: package, hub commit or folder"),
    "weights_sha256": text("SHA-256 of the safetensors weights that ran", str_matches=SHA256),
    "method": text("name of the decoding method", str_matches=NOT_EMPTY),
    "options": text("the method's options, JSON"),
    "sampling": text("how tokens were drawn (temperature 0 is greedy), JSON"),
    "lossless": pa.Column(
        "boolean",
        nullable=True,
        metadata={"unit": "true/false"},
        description="whether the method claims to keep the target model's own output; empty if unknown",
    ),
    "task": text("name of the task", str_matches=NOT_EMPTY),
    "data_source": text("where the task's documents came from: package, file or hub commit"),
    "data_sha256": text("SHA-256 of the task's documents", str_matches=SHA256),
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
    "draft_s": real("s", "seconds in the drafter, summed over prompts; empty for peers", ge=0.0),
    "speedup": real(
        "ratio", "median `tokens_per_second` by the median of the baseline, on the same prompts, timed in turn", gt=0.0
    ),
    "speedup_low": real(
        "ratio", "lower end of the 95 % interval of `speedup` (bootstrap over pairs); empty for one prompt", gt=0.0
    ),
    "speedup_high": real("ratio", "upper end of that interval", gt=0.0),
    # what it took: counts, which no noise touches
    "tokens_per_step": real(
        "tokens",
        "tokens emitted by one decode step, the bonus token included; the prefill's token is not counted",
        ge=0.0,
    ),
    "accepted_draft_tokens": whole("tokens", "drafted tokens that the target model accepted", ge=0),
    "candidate_tokens": whole("tokens", "drafted tokens that the target model verified", ge=0),
    "target_forwards": whole("forwards", "forward passes of the target model", ge=0),
    "draft_forwards": whole("forwards", "forward passes of a draft model", ge=0),
    "decode_width": whole(
        "rows", "rows that every decode forward of the target model is padded to; empty where it is not", ge=1
    ),
    "bytes_read": whole("bytes", "bytes that the decode steps had to read: weights, live keys and values", ge=0),
    "flops": whole("operations", "multiplications and additions of the decode steps, attention left out", ge=0),
    # what it cost
    "peak_memory_bytes": whole("bytes", "peak memory: allocator's on CUDA, resident set above the floor on CPU", ge=0),
    "weight_bytes": whole(
        "bytes",
        "bytes that one forward pass of the target model reads; an embedding table of its own is left out",
        ge=0,
    ),
    "cache_bytes": whole(
        "bytes", "our engine's key-value cache, preallocated for the cell's longest prompt; empty for peers", ge=0
    ),
    "bandwidth_bytes_per_s": real("bytes/s", "measured memory bandwidth, the limit that `mbu` refers to", gt=0.0),
    "flops_per_s": real("operations/s", "measured speed of matrix products, the limit that `mfu` refers to", gt=0.0),
    "mbu": real("ratio", "model bandwidth utilisation: `bytes_read` by (decode time x bandwidth)", ge=0.0),
    "mfu": real("ratio", "model FLOPs utilisation: `flops` by (decode time x measured speed)", ge=0.0),
    # whether it is what it claims
    "lossless_match": real(
        "share", "prompts whose token ids equal those of `autoregressive`; empty when sampled", **SHARE
    ),
    "output_sha256": text("SHA-256 of all output token ids", str_matches=SHA256),
    # how it was measured
    "repeats": whole("trials", "timed trials a prompt; times are their median", ge=1),
    "num_threads": whole("threads", "CPU threads that computed", ge=1),
    "resumed_prompts": whole("prompts", "prompts taken over from a run that was killed", ge=0),
    # how it ended
    "status": text("how the cell ended", isin=["ok", "failed", "skipped"]),
    "reason": text("why it did not end well, one line"),
}

TEXT = [name for name, column in COLUMNS.items() if (column.metadata or {})["unit"] == "text"]
FIGURES = [name for name in COLUMNS if name not in (*TEXT, "lossless", "seed")]


def _not_above(low: str, high: str) -> pa.Check:
    return pa.Check(
        lambda rows: ~(rows[low] > rows[high]).fillna(False).astype(bool),
        error=f"{low} is above {high}",
        ignore_na=False,
    )


ROW_CHECKS = [
    _not_above("speedup_low", "speedup"),
    _not_above("speedup", "speedup_high"),
    _not_above("truncated", "num_prompts"),
    _not_above("accepted_draft_tokens", "candidate_tokens"),
    pa.Check(lambda rows: (rows["status"] == "ok") | (rows["reason"] != ""), error="not ok, and no reason is given"),
    pa.Check(lambda rows: (rows["status"] != "ok") | (rows["reason"] == ""), error="ok, and yet a reason is given"),
    pa.Check(
        lambda rows: (rows["status"] != "ok") | rows[["quality", "tokens_per_second", "speedup"]].notna().all(axis=1),
        error="ok, and yet without quality, tokens_per_second or speedup",
    ),
    pa.Check(
        lambda rows: (rows["status"] != "failed") | rows[FIGURES].isna().all(axis=1), error="failed, with figures"
    ),
    pa.Check(lambda rows: (rows["status"] == "ok") | rows[QUALITY].isna().all(axis=1), error="not ok, with a quality"),
]

SCHEMA = pa.DataFrameSchema(COLUMNS, checks=ROW_CHECKS, unique=KEY, strict=True, ordered=True, coerce=True)


def validate(table: pd.DataFrame, name: str = "benchmark.csv") -> pd.DataFrame:
    """Return ``table`` in the schema's types; raise ``UserError`` naming the first wrong row, column and value."""
    unknown = [column for column in table.columns if column not in COLUMNS]
    if unknown:
        raise UserError(f"{name}: unknown column {unknown[0]!r}; {nearest(unknown[0], COLUMNS)}")
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise UserError(f"{name}: column {missing[0]!r} is missing")
    try:
        return SCHEMA.validate(table, lazy=True)
    except SchemaErrors as error:
        wrong = error.failure_cases.iloc[0]
        raise UserError(f"{name}: {_place(table, wrong)}{_complaint(wrong)}") from error


def _place(table: pd.DataFrame, wrong: pd.Series) -> str:
    """Say in which row one of pandera's failure cases lies, where it knows."""
    if pd.isna(wrong["index"]):
        return ""
    cell = ", ".join(str(table.loc[wrong["index"], part]) for part in ("model", "task", "method"))
    return f"row {wrong['index']} ({cell}): "


def _complaint(wrong: pd.Series) -> str:
    """Say in words what one of pandera's failure cases found."""
    if wrong["check"] == "multiple_fields_uniqueness":
        return "there is another row of the same cell"
    if wrong["schema_context"] != "Column":
        return str(wrong["check"])
    found = f"{wrong['column']} is {str(wrong['failure_case'])!r}"
    if pd.isna(wrong["check_number"]):
        return f"{found}, not of type {COLUMNS[wrong['column']].dtype}"
    return f"{found}, must be {_rule(COLUMNS[wrong['column']].checks[int(wrong['check_number'])])}"


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the table of ``rows``, checked; text that a row leaves out is ``""``, a figure is missing."""
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    return validate(table.assign(**{name: table[name].fillna("") for name in TEXT}))


def read(path: Path) -> pd.DataFrame:
    """Read and check a benchmark table. Empty text is ``""``, an empty figure is missing."""
    if not path.is_file():
        raise UserError(f"there is no {path}; python -m pipeline.collect makes it")
    try:
        # A reason may read "None" and a method "NA": only an empty figure is a missing one.
        empty = {name: [""] for name in FIGURES}
        table = pd.read_csv(path, dtype=dict.fromkeys([*TEXT, "lossless"], str), keep_default_na=False, na_values=empty)
    except (ValueError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path} is not a table: {error}") from error
    if "lossless" in table:
        table["lossless"] = table["lossless"].map(lambda word: {"true": True, "false": False, "": None}.get(word, word))
    return validate(table, path.name)


def write(table: pd.DataFrame, path: Path) -> None:
    """Check ``table`` and write it to ``path``, whole or not at all; floats with six significant digits."""
    table = validate(table, path.name)
    table["lossless"] = table["lossless"].map({True: "true", False: "false"})
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", encoding="utf-8", lineterminator="\n")


def as_markdown() -> str:
    """Return the column-by-column document."""
    title = "# The columns of results/benchmark.csv\n\nMade by `python -m pipeline.schemas.benchmark`; do not edit."
    note = (
        "One row is one cell: a model in a dtype, a method, a task and a seed. A figure that does not apply is empty. "
        "A row that is not `ok` has a `reason`; a `failed` row has no figures, a `skipped` row has no quality."
    )
    lines = [title, "", note, "", "| column | unit | meaning | holds |", "|---|---|---|---|"]
    for name, column in COLUMNS.items():
        unit = (column.metadata or {})["unit"]
        holds = ", ".join(_rule(check) for check in column.checks)
        lines.append(f"| `{name}` | {unit} | {column.description} | {holds} |")
    rules = [f"- never {check.error}" for check in ROW_CHECKS]
    return "\n".join([*lines, "", "In every row:", "", *rules, f"- {', '.join(KEY)} together name one row only", ""])


def _rule(check: pa.Check) -> str:
    """Say a check in words: ``greater_than_or_equal_to(0.0)`` -> ``at least 0``."""
    values = check.statistics or {}
    match check.name:
        case "greater_than_or_equal_to":
            return f"at least {values['min_value']:g}"
        case "greater_than":
            return f"above {values['min_value']:g}"
        case "less_than_or_equal_to":
            return f"at most {values['max_value']:g}"
        case "isin":
            return " or ".join(f"`{value}`" if value else "empty" for value in values["allowed_values"])
    return "not empty" if values["pattern"] == NOT_EMPTY else "64 hex digits or empty"


if __name__ == "__main__":
    print(as_markdown(), end="")
