"""Rule: score one cell's texts through lm-eval's Task API: its filters, metrics, aggregation and standard errors.

Loads no model: generation and scoring are apart, so that a changed metric never costs a generation. By hand::

    python -m pipeline.score --task docstrings --data results/tasks/docstrings \
        --cell results/cells/laptop/smollm2-135m/bfloat16/docstrings/prompt_lookup/0

HumanEval runs what the model wrote (in the sandbox), so it is scored only with ``--allow-code-execution``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, command, tell
from pipeline.files import atomic_write, json_lines
from pipeline.registry import TASKS, import_target
from pipeline.tasks.loading import load_task, yaml_of
from pipeline.tasks.source import to_jsonl

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

# As many resamples as lm-eval itself takes for BLEU and chrF, seeded by it, so that the standard errors are equal too.
BOOTSTRAP_RESAMPLES = 100
Sample = dict[str, Any]
CODE_IS_OFF = "code execution is off: set allow_code_execution: true"


@dataclass(frozen=True)
class Scores:
    """The scores of one cell: ``metrics`` in the YAML's order, and one dict a sample."""

    metrics: dict[str, float]
    stderrs: dict[str, float | None]
    signatures: dict[str, str]
    samples: list[Sample]


def _column(metric: str, filter_name: str, filters: Sequence[str]) -> str:
    """Name a column: the metric alone under the first filter, else with its first word: ``exact_match_flexible``."""
    return metric if filter_name == filters[0] else f"{metric}_{filter_name.partition('-')[0]}"


def _standard_error(aggregate: Callable[[Sequence[Any]], float], values: Sequence[Any]) -> float | None:
    """Return lm-eval's standard error of ``aggregate(values)``; None for a single value or where there is none."""
    from lm_eval.api.metrics import stderr_for_metric

    standard_error = stderr_for_metric(aggregate, BOOTSTRAP_RESAMPLES)
    if standard_error is None or len(values) < 2:
        return None
    # lm-eval would start a pool of processes and draw a progress bar for these hundred resamples.
    os.environ["DISABLE_MULTIPROC"] = "1"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return float(standard_error(values))


def _signature(metric: str, pairs: Sequence[tuple[str, str]]) -> str | None:
    """Return sacrebleu's signature of the metric over (reference, text) ``pairs``; None if not one of its own."""
    import sacrebleu

    if metric not in ("bleu", "chrf"):
        return None
    scorer = sacrebleu.BLEU() if metric == "bleu" else sacrebleu.CHRF()
    scorer.corpus_score([text for _, text in pairs], [[reference for reference, _ in pairs]])
    return str(scorer.get_signature())


def score_texts(task: ConfigurableTask, doc_ids: Sequence[int], texts: Sequence[str]) -> Scores:
    """Score ``texts[i]`` against document ``doc_ids[i]``, as lm-eval's evaluator does after generation.

    Raises:
        UserError: a document is not in the task's data.
    """
    from lm_eval.api.metrics import bypass_agg

    if missing := [doc_id for doc_id in doc_ids if doc_id not in range(len(task.eval_docs))]:
        raise UserError(f"document {missing[0]} is not in the data of task {task.task_name!r}; generate again")
    instances = []
    for doc_id, text in zip(doc_ids, texts, strict=True):
        # The context plays no part in scoring.
        instance = task.construct_requests(task.eval_docs[doc_id], "", metadata=(task.task_name, doc_id, 1))
        instance.resps = [text]
        instances.append(instance)
    task._instances = instances
    task.apply_filters()

    filters = list(instances[0].filtered_resps)
    samples: list[Sample] = [{"doc_id": doc_id, "text": text} for doc_id, text in zip(doc_ids, texts, strict=True)]
    values: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for name in filters:
        for instance, sample in zip(instances, samples, strict=True):
            for metric, value in task.process_results(instance.doc, [instance.filtered_resps[name]]).items():
                if task.aggregation()[metric] is bypass_agg:  # told for the sample, never aggregated
                    sample[metric] = value
                else:
                    values[metric, name].append(value)
    scores = Scores({}, {}, {}, samples)
    for (metric, name), items in values.items():
        column, aggregate = _column(metric, name, filters), task.aggregation()[metric]
        scores.metrics[column] = float(aggregate(items))
        scores.stderrs[column] = _standard_error(aggregate, items)
        if signature := _signature(metric, items):
            scores.signatures[column] = signature
        for item, sample in zip(items, samples, strict=True):
            # BLEU and chrF belong to a corpus; a sample's own is that of the corpus of this one text.
            sample[column] = float(aggregate([item]))
    return scores


def read_cell(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a cell's summary and its records (none if the cell failed).

    Raises:
        UserError: a file is missing or is not what ``pipeline.generate`` writes.
    """
    try:
        cell = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
        if cell["status"] != "ok":
            return cell, []
        records = json_lines(folder / "records.jsonl")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; run python -m pipeline.generate first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: cell.json or records.jsonl is damaged ({error}); delete the folder") from None
    if not records:
        raise UserError(f"{folder / 'records.jsonl'}: no records")
    return cell, records


def without_score(status: str, reason: str) -> dict[str, Any]:
    """Return what goes to ``score.json`` where nothing was scored."""
    nothing: dict[str, Any] = {"quality": None, "quality_stderr": None, "metrics": {}, "signatures": {}}
    return {"status": status, "reason": reason, "metric": "", **nothing, "num_prompts": 0}


def score_cell(
    task_name: str, data: Path, cell: Path, allow_code_execution: bool
) -> tuple[dict[str, Any], list[Sample]]:
    """Return what goes to ``score.json`` and, a sample a line, to ``samples.jsonl``.

    Raises:
        UserError: a file is missing or damaged, or what scoring needs (the sandbox) cannot be had.
    """
    summary, records = read_cell(cell)
    if summary["status"] != "ok":  # there may be no documents either, if it was those that failed
        return without_score(summary["status"], summary.get("reason", "")), []
    task = load_task(task_name, data / "data.jsonl")
    metric = next(iter(task.aggregation()))
    score = without_score("ok", "") | {"metric": metric, "num_prompts": len(records)}
    if getattr(task, "UNSAFE_CODE", False) and not allow_code_execution:
        return {**score, "status": "skipped", "reason": CODE_IS_OFF}, []
    if getattr(task, "UNSAFE_CODE", False):
        from pipeline.sandbox import isolation

        score["isolation"] = list(isolation())
    doc_ids, texts = [record["doc_id"] for record in records], [record["text"] for record in records]
    scores = score_texts(task, doc_ids, texts)
    quality: Mapping[str, Any] = {"quality": scores.metrics[metric], "quality_stderr": scores.stderrs[metric]}
    more = {"metrics": scores.metrics, "signatures": scores.signatures}
    more["strata"] = score_strata(task, TASKS[task_name].stratum, metric, doc_ids, texts)
    return {**score, **quality, **more}, scores.samples


def score_strata(
    task: ConfigurableTask, stratum: str | None, metric: str, doc_ids: Sequence[int], texts: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the score of the texts of each kind of document by itself, where ``stratum`` tells kinds apart."""
    if stratum is None:
        return {}
    kind_of, kinds = import_target(stratum), defaultdict(list)
    for doc_id, text in zip(doc_ids, texts, strict=True):
        kinds[kind_of(task.eval_docs[doc_id])].append((doc_id, text))
    found = {}
    for kind, members in sorted(kinds.items()):
        scores = score_texts(task, *zip(*members, strict=True))
        quality = {"quality": scores.metrics[metric], "quality_stderr": scores.stderrs[metric]}
        found[kind] = {"num_prompts": len(members), **quality}
    return found


@command
def main() -> None:
    """Write ``samples.jsonl``, then ``score.json``, into the cell's folder; what cannot be scored is a failed score."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.score", description="Score one cell.")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with data.jsonl")
    parser.add_argument("--cell", type=Path, required=True, help="folder with cell.json and records.jsonl")
    parser.add_argument("--allow-code-execution", action="store_true", help="run generated code, in the sandbox")
    arguments = parser.parse_args()
    yaml_of(arguments.task)
    try:
        score, samples = score_cell(arguments.task, arguments.data, arguments.cell, arguments.allow_code_execution)
    except UserError as error:
        inputs = (arguments.cell / "cell.json", arguments.cell / "records.jsonl", arguments.data / "data.jsonl")
        if not all(file.is_file() for file in inputs):
            raise  # a mistake in the command
        tell(error)
        score, samples = without_score("failed", str(error)), []
    atomic_write(arguments.cell / "samples.jsonl", to_jsonl(samples))
    atomic_write(arguments.cell / "score.json", json.dumps(score, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
