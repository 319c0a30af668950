"""GSM8K (Cobbe et al. 2021): grade-school word problems; an answer ends in ``#### <number>``. From files or a hub."""

from __future__ import annotations

from pipeline.tasks.source import Hub, Source, keep, read_jsonl

_to_document = keep("question", "answer")

SOURCE = Source(
    from_path=lambda path: read_jsonl(path, _to_document),
    hub=Hub(config="main", split="test", to_document=_to_document),
)
