"""GSM-Symbolic (Mirzadeh et al. 2024): GSM8K's problems as templates, filled with fresh names and numbers by reasoning-gym.

The seed is fixed, so everybody gets the same problems from the same version of reasoning-gym.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from pipeline.tasks.source import Document, Embedded, Hub, Source, keep, read_jsonl

SEED = 2024
NUM_DOCUMENTS = 400
_HINT = " Give the result as your final answer. Do not include units."

_to_document = keep("question", "answer")


def documents() -> Iterator[Document]:
    """Yield ``NUM_DOCUMENTS`` problems in GSM8K's form: the worked answer ends in ``#### <number>``."""
    from reasoning_gym import create_dataset

    for item in create_dataset("gsm_symbolic", size=NUM_DOCUMENTS, seed=SEED):
        # The prompt says how to answer, the same way as for GSM8K; the generator's own hint would say it a second time.
        yield {"question": item["question"].removesuffix(_HINT), "answer": item["metadata"]["answer_cot"]}


SOURCE = Source(
    embedded=Embedded(lambda: (f"package:reasoning-gym=={version('reasoning-gym')}", f"seed {SEED}"), documents),
    from_path=lambda path: read_jsonl(path, _to_document),
    hub=Hub(config="main", split="test", to_document=_to_document),
)
