"""How the task YAMLs read their documents; needs nothing else of this project, so that plain lm-eval can load it.

Example (in a YAML)::

    custom_dataset: !function reading.read_documents
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]


def read_documents(data_file: str, **_: Any) -> datasets.DatasetDict:
    """Return the prepared documents as lm-eval wants them: one split, ``test``.

    Args:
        data_file: JSONL, one document a line. The other keywords are lm-eval's own metadata.
    """
    lines = Path(data_file).read_text(encoding="utf-8").split("\n")
    return datasets.DatasetDict(test=datasets.Dataset.from_list([json.loads(line) for line in lines if line]))
