"""What the task YAMLs call by ``!function``; needs nothing else of this project, so that plain lm-eval can load it.

Example (in a YAML)::

    custom_dataset: !function yaml_functions.read_documents
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


def read_documents(data_file: str, **_: Any) -> datasets.DatasetDict:
    """Return the prepared documents as lm-eval wants them: one split, ``test``.

    Args:
        data_file: JSONL, one document a line. The other keywords are lm-eval's own metadata.
    """
    lines = Path(data_file).read_text(encoding="utf-8").split("\n")
    return datasets.DatasetDict(test=datasets.Dataset.from_list([json.loads(line) for line in lines if line]))


@functools.cache
def _scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE_TYPES), use_stemmer=True)


def rouge(document: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L, F-measure x 100, of one generated summary (Lin 2004; rouge-score, stemmed).

    Args:
        document: a CNN/DailyMail (``highlights``) or docstrings (``summary``) document.
        results: the summary.
    """
    reference = document["highlights"] if "highlights" in document else document["summary"]
    scores = _scorer().score(reference, results[0])
    return {name: 100.0 * scores[name].fmeasure for name in ROUGE_TYPES}
