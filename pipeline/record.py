"""What is kept of each prompt: one run of the method, one of the baseline, and a journal that outlives a kill.

The journal's first line names the cell by a fingerprint of everything that its figures depend on; each further line is
one finished prompt, on disk before the next prompt starts. A journal of another fingerprint is begun anew; a line torn
by a kill is dropped.

Example::

    with Journal(folder / "journal.jsonl", fingerprint) as journal:
        for request in journal.missing(requests):
            journal.add({"prompt_id": request["prompt_id"], ...})
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from decoding.trace import Generation
from pipeline.files import atomic_write, whole_lines

Record = dict[str, Any]


def run_record(trials: Sequence[Generation]) -> Record:
    """Return what is kept of one prompt's timed trials: the first one's counters, the median one's times."""
    first = trials[0]
    median_s = statistics.median_low([trial.total_s for trial in trials])
    middle = next(trial for trial in trials if trial.total_s == median_s)
    return {
        "output_ids": list(first.output_ids),
        "num_new_tokens": first.num_new_tokens,
        "prompt_length": first.prompt_length,
        "truncated": first.truncated,
        "ttft_s": middle.ttft_s,
        "decode_s": middle.decode_s,
        "total_s": middle.total_s,
        "total_s_repeats": [trial.total_s for trial in trials],
        "draft_s": sum(step.draft_s for step in middle.steps),
        "verify_s": sum(step.verify_s for step in middle.steps),
        "target_forwards": first.target_forwards,
        "draft_forwards": first.draft_forwards,
        "decode_draft_forwards": first.draft_forwards - first.prefill_draft_forwards,
        "accepted_draft_tokens": first.accepted_draft_tokens,
        "candidate_tokens": first.candidate_tokens,
        "tokens_by_step": [step.emitted for step in first.steps],
        "candidates_by_step": [step.candidates for step in first.steps],
    }


class Journal:
    """Finished prompts of one cell, each on disk as soon as it is finished.

    Args:
        path: the journal's file.
        fingerprint: names the cell and everything that its figures depend on.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.records: dict[int, Record] = {}
        self.num_resumed = 0

    def __enter__(self) -> Self:
        """Read what a killed run left, and go on behind it."""
        header, *lines = whole_lines(self.path) or [{}]
        if header == {"fingerprint": self.fingerprint}:
            self.records = {record["prompt_id"]: record for record in lines}
        self.num_resumed = len(self.records)
        # Written anew, whole or not at all, so that a torn line does not stay in the middle.
        atomic_write(self.path, _to_lines({"fingerprint": self.fingerprint}, *self.records.values()))
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def missing(self, requests: Iterable[Record]) -> list[Record]:
        """Return the requests that no record answers yet."""
        return [request for request in requests if request["prompt_id"] not in self.records]

    def add(self, record: Record) -> None:
        """Add a finished prompt; when this returns it is on disk."""
        self.records[record["prompt_id"]] = record
        self._file.write(_to_lines(record))
        self._file.flush()
        os.fsync(self._file.fileno())


def _to_lines(*records: Record) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)
