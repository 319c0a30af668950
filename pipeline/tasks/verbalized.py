"""Verbalised numbers, prices and dates: English words in, German words out (num2words, Babel).

German says units before tens ("einundzwanzig" for "twenty-one") and compounds what English leaves apart, so the pairs
reorder as real translation does, while there are a million of them and their truth is certain. A pair belongs to the
split that the hash of its English side says, so the splits cannot overlap, whatever the seed::

    train = documents("train", 10_000, seed=1)
"""

from __future__ import annotations

import datetime
import hashlib
import random
import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from pipeline.tasks.source import Document, Embedded, Source, keep, read_jsonl

SEED = 2024
NUM_DOCUMENTS = 400
NUM_TRAINING = 20_000
# Per mille of all pairs; train gets the rest.
VALIDATION_SHARE, TEST_SHARE = 50, 50
# Twenty-one to ninety-nine; thirteen to nineteen are said in the same order in both languages.
UNITS_FIRST = re.compile(
    "(ein|zwei|drei|vier|fünf|sechs|sieben|acht|neun)und(zwanzig|dreißig|vierzig|fünfzig|sechzig|siebzig|achtzig|neunzig)"
)


def split_of(source: str) -> str:
    """Return the split that a pair belongs to, from the hash of its English side alone."""
    bucket = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big") % 1000
    if bucket < TEST_SHARE:
        return "test"
    return "validation" if bucket < TEST_SHARE + VALIDATION_SHARE else "train"


def _number(rng: random.Random) -> Document:
    from num2words import num2words

    number = rng.randrange(10 ** rng.randint(2, 6))
    return {"source": num2words(number, lang="en").replace(",", ""), "target": num2words(number, lang="de")}


def _price(rng: random.Random) -> Document:
    from num2words import num2words

    euros, cents = rng.randint(2, 999), rng.randint(2, 99)
    return {
        "source": f"{num2words(euros, lang='en')} euros and {num2words(cents, lang='en')} cents",
        "target": f"{num2words(euros, lang='de')} Euro und {num2words(cents, lang='de')} Cent",
    }


def _date(rng: random.Random) -> Document:
    from babel.dates import format_date
    from num2words import num2words

    day = datetime.date(1900, 1, 1) + datetime.timedelta(days=rng.randrange(36525 * 2))

    def words(locale: str, pattern: str) -> str:
        ordinal, year = num2words(day.day, lang=locale, to="ordinal"), num2words(day.year, lang=locale, to="year")
        return pattern.format(format_date(day, "EEEE", locale), ordinal, format_date(day, "MMMM", locale), year)

    return {"source": words("en", "{}, the {} of {} {}"), "target": words("de", "{}, der {} {} {}")}


_KINDS: tuple[Callable[[random.Random], Document], ...] = (_number, _price, _date)


def documents(split: str, num_documents: int, seed: int) -> list[Document]:
    """Return ``num_documents`` different pairs of a split (train, validation or test), the same for the same seed.

    Raises:
        ValueError: unknown split, or more pairs asked for than the split has (there are about 1.1 million in all).
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"unknown split {split!r}: train, validation or test")
    rng = random.Random(seed)
    found: dict[str, Document] = {}
    # A split of 5 % needs 20 draws a pair; far more than that means that the split is exhausted.
    for _ in range(100 * num_documents + 1000):
        if len(found) == num_documents:
            return list(found.values())
        document = rng.choice(_KINDS)(rng)
        if split_of(document["source"]) == split:
            found.setdefault(document["source"], document)
    raise ValueError(f"split {split!r} has fewer than {num_documents} pairs within reach")


def order_of(document: Mapping[str, str]) -> str:
    """Return the kind of a pair: whether German says some number's units before its tens, where English does not."""
    return "units before tens" if UNITS_FIRST.search(document["target"]) else "in order"


def training_pairs(path: Path | None, num_pairs: int | None, seed: int) -> dict[str, list[Document]]:
    """Return pairs to learn from; no file is read, for there are enough."""
    return {
        "train": documents("train", num_pairs or NUM_TRAINING, seed),
        "validation": documents("validation", NUM_DOCUMENTS, seed),
    }


def _about() -> tuple[str, str]:
    return f"package:num2words=={version('num2words')}, Babel=={version('Babel')}", f"seed {SEED}"


SOURCE = Source(
    embedded=Embedded(_about, lambda: documents("test", NUM_DOCUMENTS, SEED)),
    from_path=lambda path: read_jsonl(path, keep("source", "target")),
)
