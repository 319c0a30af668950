r"""Rule: hold ``results/benchmark.csv`` against the reference of its profile, and fail if something got worse.

Each kind of figure by what it can bear:

- **What was asked** (weights, documents, prompts, options) must be the same: else nothing can be compared. Parts and
  twins that are trained on the spot may differ in their weights; under another Python, documents of its own library.
- **Counters and texts** exactly, where the platform is the same (hardware, engine, threads) and so are the weights;
  elsewhere only ``tokens_per_step`` is held to, within a tenth: cell by cell where the texts are the same, and where
  rounding made others of them, over all cells of a method and only if it is sure; else it is a note.
- **Quality** by its standard error: worse if the difference is more than 1.96 standard errors of a difference.
- **Speed** by its paired intervals. A cell's interval knows of the prompts and not of what the machine did that day, so
  a method is judged over all its cells together (``pooled_change``): it is slower if even the upper end of the 99 %
  interval of its change is below -5 %. The plain baseline, which has no other to be held against, is judged by ``mbu``,
  its share of what the memory was measured to give.
- **What a drafter costs** by the share of decode time that is not the target's. Both parts of it are of the same steps,
  so it hardly knows what the machine did: over the tasks of one method it differs by three points at most. It may grow
  by five, and on another platform by ten.
- **Speed in a batch** likewise, below -15 %, on the same hardware: it is of one cell.
- **Lossless** methods give the baseline's ids on every prompt, whatever the reference says.

A profile whose ``dtype`` is ``auto`` is in float32 on one machine and in bfloat16 on another: it has a reference for
each, and a run is held against the one in its own (:mod:`pipeline.gate_reference`).

What got better is told and fails nothing. A wanted change is made the new reference with ``--update``. By hand::

    python -m pipeline.gate --benchmark results/benchmark.csv --reference results/reference/laptop.csv
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import UserError, command
from pipeline.gate_findings import (
    Finding,
    Verdict,
    asked_of,
    difference,
    differs,
    is_same_platform,
    is_trained_anew,
)
from pipeline.gate_methods import TOLERATED_STEP, of_methods
from pipeline.gate_reference import check_dtypes, path_to_update, reference_of
from pipeline.schemas import benchmark

CELL = ["task", "model", "dtype", "method", "seed"]
INTERPRETER = "python "  # data_source of what comes with it
FROM_DOCUMENTS = ["data_sha256", "requests_sha256"]
# Whether more of it is better (1) or worse (-1); a text that changed (0) is no better for it.
COUNTERS = {
    "output_sha256": 0,
    "truncated": -1,
    "tokens_per_step": 1,
    "target_forwards": -1,
    "draft_forwards": -1,
    "candidate_tokens": -1,
    "accepted_draft_tokens": 1,
    "bytes_read": -1,
    "flops": -1,
    "weight_bytes": -1,
    "part_bytes": -1,
    "cache_bytes": -1,
}
SURE_OF_QUALITY = 1.96


def compare(now: pd.DataFrame, reference: pd.DataFrame) -> list[Finding]:
    """Return what differs, regressions first.

    Raises:
        UserError: the tables are of different profiles, or a model has no dtype in common.
    """
    profiles = [sorted(table["profile"].unique()) for table in (now, reference)]
    if profiles[0] != profiles[1]:
        raise UserError(f"profile = {profiles[0]} cannot be held against a reference of {profiles[1]}")
    check_dtypes(now, reference)
    pairs = now.merge(reference, on=CELL, how="outer", suffixes=("", "_before"), indicator="found")
    found = [finding for _, pair in pairs.iterrows() for finding in of_cell(pair)]
    found += of_methods(pairs[pairs["found"] == "both"])
    order = ("regression", "improvement", "note")
    return sorted(found, key=lambda finding: order.index(finding.verdict))


def of_cell(pair: pd.Series) -> Iterator[Finding]:
    """Yield what differs in one cell, its speed left out; ``pair`` has the reference's columns as ``…_before``."""
    where = " · ".join(str(pair[name]) for name in ("task", "model", "dtype", "method"))
    where += f" · seed {pair['seed']}" if pair["seed"] else ""
    if pair["found"] != "both":
        gone = pair["found"] == "right_only"
        yield (
            Finding(where, "cell", "there", "gone", "regression")
            if gone
            else Finding(where, "cell", "none", "new", "note")
        )
        if gone:
            return
    yield from of_losslessness(where, pair)
    if pair["found"] != "both":
        return
    if pair["status"] != pair["status_before"]:
        verdict: Verdict = "improvement" if pair["status"] == "ok" else "regression"
        yield Finding(where, "status", pair["status_before"], f"{pair['status']}: {pair['reason']}"[:100], verdict)
    if pair["status"] != "ok" or pair["status_before"] != "ok":
        return
    if changed := [name for name in asked_of(pair) if differs(pair, name)]:
        # Documents that are the interpreter's own are others under another Python, which is nobody's mistake.
        source = str(pair["data_source"])
        is_other_python = source.startswith(INTERPRETER) and source != pair["data_source_before"]
        for name in changed:
            yield difference(where, name, pair, "note" if is_other_python and name in FROM_DOCUMENTS else "regression")
        return
    yield from of_counters(where, pair)
    yield from of_quality(where, pair)


def of_losslessness(where: str, pair: pd.Series) -> Iterator[Finding]:
    """Yield a lossless method of ours that did not give the baseline's ids on every prompt.

    transformers' own round elsewhere than our baseline. So does the eager engine, except in float32.
    """
    exact = pair["engine"] == "native" or (pair["engine"] != "transformers" and pair["dtype"] == "float32")
    share = pair["lossless_match"]
    if exact and pd.notna(share) and share < 1 and pair["lossless"]:  # a cell that left nothing behind has neither
        yield Finding(where, "lossless_match", "must be 100 %", f"{share:.1%}", "regression")


def of_counters(where: str, pair: pd.Series) -> Iterator[Finding]:
    """Yield the counters that changed, exactly where the platform allows it.

    Those of other texts, or of parts that were trained anew, are looked at over all cells of the method.
    """
    if is_same_platform(pair):
        for name, better in COUNTERS.items():
            if differs(pair, name) and pd.isna(pair[name]):
                yield difference(where, name, pair, "regression")  # what was counted is not any more
            elif differs(pair, name):
                rose = better and pair[name] > pair[f"{name}_before"]
                good = better != 0 and rose == (better > 0)
                yield difference(where, name, pair, "improvement" if good else "regression")
        return
    if differs(pair, "output_sha256") or is_trained_anew(pair):
        return
    now, before = pair["tokens_per_step"], pair["tokens_per_step_before"]
    if pd.notna(now) and pd.notna(before) and abs(now / before - 1) > TOLERATED_STEP:
        yield difference(where, "tokens_per_step", pair, "improvement" if now > before else "regression")


def of_quality(where: str, pair: pd.Series) -> Iterator[Finding]:
    """Yield a change of quality that is more than chance; without a standard error (one prompt) it is a note."""
    errors = np.array([pair["quality_stderr"], pair["quality_stderr_before"]], dtype=float)
    change = pair["quality"] - pair["quality_before"]
    if not differs(pair, "quality"):
        return
    if np.isnan(errors).any():
        yield difference(where, "quality, of unknown error", pair, "note", "quality")
    elif abs(change) > SURE_OF_QUALITY * np.hypot(*errors):
        yield difference(where, "quality", pair, "improvement" if change > 0 else "regression")


def report(found: list[Finding], now: pd.DataFrame, reference: pd.DataFrame) -> str:
    """Return what is printed: a table of what changed, and the verdict in one line."""
    counts = {verdict: sum(f.verdict == verdict for f in found) for verdict in ("regression", "improvement", "note")}
    told = f"{counts['regression']} regressions, {counts['improvement']} improvements, {counts['note']} notes"
    line = f"gate: {len(now)} cells against {len(reference)} of the reference: {told}"
    same = {name: set(now[name]) - {""} == set(reference[name]) - {""} for name in ("hardware", "engine")}
    if other := [name for name, equal in same.items() if not equal]:
        line += f" (another {' and '.join(other)} than the reference's: counters are not compared exactly)"
    if not found:
        return line
    rows = pd.DataFrame([[f.verdict, f.where, f.what, f.before, f.now] for f in found])
    rows.columns = pd.Index(["verdict", "where", "what", "reference", "now"])
    return f"{rows.to_markdown(index=False, disable_numparse=True)}\n\n{line}"


def update(now: pd.DataFrame, reference: Path) -> None:
    """Make a table the reference.

    Raises:
        UserError: a cell of it failed, or a lossless method is not: such a table is none to be held to.
    """
    bad = now[now["status"] != "ok"]
    if len(bad):
        first = bad.iloc[0]
        raise UserError(f"{first['task']}/{first['method']} is {first['status']}: that can be no reference")
    everywhere = [finding for _, pair in now.iterrows() for finding in of_losslessness(pair["method"], pair)]
    if everywhere:
        raise UserError(f"{everywhere[0].where}: lossless_match is {everywhere[0].now}: that can be no reference")
    benchmark.write(now, reference)
    print(f"gate: {reference} is now the table of this run, {len(now)} cells")


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", type=Path, required=True, help="results/benchmark.csv")
    parser.add_argument(
        "--reference",
        type=Path,
        required=True,
        help="results/reference/<profile>.csv, or beside it <profile>_<dtype>.csv in the run's dtype",
    )
    parser.add_argument("--update", action="store_true", help="make this benchmark the reference")
    given = parser.parse_args()
    now = benchmark.read(given.benchmark)
    if given.update:
        update(now, path_to_update(now, given.reference))
        return
    reference, told = reference_of(now, given.reference)
    print(*told, sep="\n", end="\n" * bool(told))
    found = compare(now, reference)
    print(report(found, now, reference))
    sys.exit(any(finding.verdict == "regression" for finding in found))


if __name__ == "__main__":
    main()
