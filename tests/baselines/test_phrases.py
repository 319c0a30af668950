"""The pool against a list that is searched; the trie against the set of its paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.phrases import PhrasePool, Trie

TOKENS = st.integers(0, 2)
PHRASES = st.lists(TOKENS, min_size=1, max_size=3).map(tuple)


@given(
    operations=st.lists(st.tuples(st.sampled_from(["add", "add", "add", "discard"]), TOKENS, PHRASES), max_size=40),
    capacity=st.integers(1, 4),
)
def test_keeps_the_newest_distinct_continuations_of_each_token(
    operations: list[tuple[str, int, tuple[int, ...]]], capacity: int
) -> None:
    pool, naive = PhrasePool(capacity), {token: [] for token in range(3)}
    for operation, first, phrase in operations:
        getattr(pool, operation)(first, phrase)
        naive[first] = [other for other in naive[first] if other != phrase]
        if operation == "add":
            naive[first] = [phrase, *naive[first]][:capacity]
        assert {token: pool.look_up(token) for token in range(3)} == naive
        assert len(pool) == sum(map(len, naive.values()))
    pool.clear()
    assert len(pool) == 0
    assert pool.look_up(0) == []


@given(text=st.lists(TOKENS, max_size=20), length=st.integers(1, 4), splits=st.lists(st.integers(0, 20), max_size=4))
def test_a_text_read_in_pieces_gives_all_its_ngrams_once(text: list[int], length: int, splits: list[int]) -> None:
    pool, start = PhrasePool(100), 0
    for end in [*sorted(min(split, len(text)) for split in splits), len(text)]:
        pool.add_text(text[:end], length, start)
        start = end
    ngrams = {tuple(text[i : i + length + 1]) for i in range(len(text) - length)}
    assert {(first, *phrase) for first in range(3) for phrase in pool.look_up(first)} == ngrams


def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity must be 1 or more"):
        PhrasePool(0)


@given(phrases=st.lists(PHRASES, max_size=8), limit=st.integers(1, 12) | st.none())
def test_a_trie_has_each_path_once_and_keeps_to_its_limit(phrases: list[tuple[int, ...]], limit: int | None) -> None:
    trie = Trie(7, limit)
    added = [trie.add(0, phrase) for phrase in phrases]
    tree = trie.tree()

    def path(node: int) -> tuple[int, ...]:
        return () if node == 0 else (*path(tree.parents[node]), tree.tokens[node])

    paths = [path(node) for node in range(tree.width)]
    assert tree.tokens[0] == 7
    assert len(set(paths)) == tree.width <= (limit or 100)
    for phrase, nodes in zip(phrases, added, strict=True):
        assert [path(node) for node in nodes] == [phrase[: i + 1] for i in range(len(nodes))]
        assert len(nodes) == len(phrase) or tree.width == limit
    if limit is None:
        assert set(paths) == {()} | {phrase[: i + 1] for phrase in phrases for i in range(len(phrase))}
