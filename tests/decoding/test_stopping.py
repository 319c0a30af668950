"""Where a text ends, against looking at every prefix of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from decoding.stopping import Cut, Ending, StopStrings, cut_at

PIECES = ["a", "b", "\n", "\n\n", "de", "f", " ", "é", "en"]


def decode(ids: list[int]) -> str:
    return "".join(PIECES[i] for i in ids)


def slow_cut(ids: list[int], limit: int, ends: set[int], strings: list[str]) -> Cut:
    """Append one token at a time and look at the whole text."""
    for count in range(1, min(len(ids), limit) + 1):
        if ids[count - 1] in ends or any(string in decode(ids[:count]) for string in strings):
            return Cut(count, True)
    return Cut(min(len(ids), limit), False)


@given(
    ids=st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=20),
    limit=st.integers(1, 20),
    ends=st.sets(st.integers(0, len(PIECES) - 1), max_size=2),
    strings=st.lists(st.sampled_from(["\n\n", "def", "\n\n\n", "é", "b en", ""]), max_size=3),
    sizes=st.lists(st.integers(1, 5), min_size=20, max_size=20),
)
def test_ends_where_one_token_at_a_time_would_whatever_the_steps(
    ids: list[int], limit: int, ends: set[int], strings: list[str], sizes: list[int]
) -> None:
    strings = [string for string in strings if string]
    ending = Ending(limit, ends, StopStrings(decode, strings))
    cut, start = Cut(0, False), 0
    for size in sizes:
        cut = ending.check(ids[: start + size], start)
        start += size
        if cut.ended or cut.kept >= limit or start >= len(ids):
            break
    assert cut == slow_cut(ids, limit, ends, strings)


def test_text_is_cut_at_the_first_stop_string() -> None:
    assert cut_at("one\ntwo\n\nthree", ["\n\n", "two", ""]) == "one\n"
    assert cut_at("one", []) == "one"
