"""CNN/DailyMail (See et al. 2017): news articles and their highlights.

From Spec-Bench's ``question.jsonl``, a JSONL with ``article`` and ``highlights``, or a hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.tasks.source import Document, Hub, Source, keep, read_jsonl, spec_bench

_to_document = keep("article", "highlights")


def _from_row(row: Mapping[str, Any]) -> Document | None:
    if "category" in row:
        return spec_bench(row, "summarization", "Summarize: ", "article", "highlights")
    return _to_document(row)


SOURCE = Source(
    from_path=lambda path: read_jsonl(path, _from_row),
    hub=Hub(config="3.0.0", split="test", to_document=_to_document),
)
