"""A datastore of token sequences in which what followed a run of tokens is found by binary search.

All texts lie behind each other, and a suffix array, the places of the whole in the order of what stands there (Manber
and Myers 1990), lets all places that begin with the same tokens be found together: their followers are then next to
each other, and counting them is reading a range.

Example::

    store = Datastore.of([[5, 6, 7, 8], [5, 6, 9]])
    store.followers([5, 6])                     # (2, {7: 1, 9: 1})
    store.save(folder)
    store = Datastore.load(folder)
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Int32
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

FILE = "datastore.safetensors"
SORTED_BY = 32  # tokens that places are sorted by: no run that is looked up is longer
MOST_COUNTED = 128  # where a run of tokens is found twice as often or more, every second place is counted, and so on
END = -1  # behind each text: no run goes on from one text to the next
BYTES = 4  # of a token


class Datastore:
    """Texts and their suffix array.

    Args:
        tokens: ``[n]``, all texts, ``END`` behind each.
        order: ``[n]``, places in ``tokens``, sorted by the tokens that stand there.

    Raises:
        ValueError: the two are not of one length, or a place is not one of ``tokens``.
    """

    def __init__(self, tokens: Int32[np.ndarray, " n"], order: Int32[np.ndarray, " n"]) -> None:
        if len(tokens) != len(order) or (len(order) and not 0 <= order.min() <= order.max() < len(tokens)):
            raise ValueError(f"datastore: {len(order)} places are not those of {len(tokens)} tokens")
        self.tokens, self.order = tokens, order
        # Big-endian, END as 0: bytes then compare as the tokens do, which Python does faster than it compares lists.
        self._bytes = (tokens + 1).astype(">u4").tobytes()
        # Numbers one by one are read sooner from these than from NumPy's.
        self._tokens = array("i", tokens.astype(np.int32).tobytes())
        self._places = array("i", order.astype(np.int32).tobytes())

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]]) -> Self:
        """Build the datastore of these texts."""
        tokens = np.array([token for text in texts for token in (*text, END)], dtype=np.int32)
        return cls(tokens, suffix_array(tokens, SORTED_BY))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a datastore.

        Raises:
            ValueError: it is missing or damaged.
        """
        try:
            found = load_file(folder / FILE)
            return cls(found["tokens"], found["order"])
        except (OSError, KeyError, SafetensorError) as error:
            raise ValueError(f"{folder} holds no whole datastore: {error}") from error

    def save(self, folder: Path) -> None:
        """Write the datastore into a folder that is there."""
        save_file({"tokens": self.tokens, "order": self.order}, folder / FILE)

    def followers(self, run: Sequence[int]) -> tuple[int, dict[int, int]]:
        """Return how many tokens followed a run of tokens, and which how often; of very many places a part is counted.

        Args:
            run: 1 to 31 tokens.
        """
        wanted = b"".join((token + 1).to_bytes(BYTES, "big") for token in run)
        size, data = len(wanted), self._bytes

        def what_stands_at(place: int) -> bytes:
            return data[BYTES * place : BYTES * place + size]

        first = bisect_left(self._places, wanted, key=what_stands_at)
        last = bisect_right(self._places, wanted, lo=first, key=what_stands_at)
        if first == last:
            return 0, {}
        step = max(1, (last - first) // MOST_COUNTED)
        counts: dict[int, int] = {}
        for i in range(first, last, step):
            token = self._tokens[self._places[i] + len(run)]
            counts[token] = counts.get(token, 0) + 1
        counts.pop(END, None)
        return sum(counts.values()), counts


def suffix_array(tokens: Int32[np.ndarray, " n"], depth: int) -> Int32[np.ndarray, " n"]:
    """Return the places of ``tokens`` in the order of the ``depth`` tokens that stand there, by doubling."""
    if not len(tokens):
        return np.zeros(0, dtype=np.int32)
    _, rank = np.unique(tokens, return_inverse=True)
    order = np.argsort(rank, kind="stable")
    known = 1
    while known < depth:
        behind = np.full(len(rank), -1)
        behind[:-known] = rank[known:]
        order = np.lexsort((behind, rank))
        new = np.ones(len(rank), dtype=np.int64)
        new[0] = 0
        new[1:] = (rank[order][1:] != rank[order][:-1]) | (behind[order][1:] != behind[order][:-1])
        rank = np.empty_like(new)
        rank[order] = new.cumsum()
        known *= 2
    return order.astype(np.int32)
