"""ROUGE (Lin 2004) of one summary; needs nothing else of this project, so that plain lm-eval can load it.

Example (in a YAML)::

    process_results: !function rouge.process_results
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


@functools.cache
def _scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE_TYPES), use_stemmer=True)


def process_results(document: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L, F-measure x 100, of one generated summary (rouge-score, stemmed).

    Args:
        document: a CNN/DailyMail (``highlights``) or docstrings (``summary``) document.
        results: the summary.
    """
    reference = document["highlights"] if "highlights" in document else document["summary"]
    scores = _scorer().score(reference, results[0])
    return {name: 100.0 * scores[name].fmeasure for name in ROUGE_TYPES}
