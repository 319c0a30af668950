"""WMT14 (Bojar et al. 2014): German to English news translation.

From Spec-Bench's ``question.jsonl``, a JSONL with ``source`` and ``target``, or a hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError
from pipeline.tasks.source import Document, Hub, Source, keep, nearest_key, read_jsonl, spec_bench

_to_document = keep("source", "target")


def _from_row(row: Mapping[str, Any]) -> Document | None:
    if "category" in row:
        return spec_bench(row, "translation", "Translate German to English: ", "source", "target")
    return _to_document(row)


def _from_hub(row: Mapping[str, Any]) -> Document:
    if "translation" not in row:
        raise UserError(f"key 'translation' is missing; {nearest_key('translation', row)}")
    pair = keep("de", "en")(row["translation"])
    return {"source": pair["de"], "target": pair["en"]}


SOURCE = Source(
    from_path=lambda path: read_jsonl(path, _from_row),
    hub=Hub(config="de-en", split="test", to_document=_from_hub),
)
