r"""When a text ends: an end token, a stop string, or the limit.

A stop string may span tokens and may begin inside one, so it is looked for in the decoded tail after every token. All
methods are cut after the token that completes it, which is where one-token-at-a-time decoding stops too: a method that
emits several tokens a step gains nothing from running past the end.

Example::

    ending = Ending(max_new_tokens=64, end_token_ids={2}, strings=StopStrings(tokenizer.decode, ["\n\n"]))
    ending.check([11, 12, 2, 40], start=1)      # Cut(kept=3, ended=True): the end token is kept, what follows is not
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class StopStrings:
    """Finds where the first stop string ends in a list of generated token ids.

    Args:
        decode: token ids to text, special tokens kept.
        strings: the stop strings; none means that nothing stops.
    """

    def __init__(self, decode: Callable[[list[int]], str], strings: Sequence[str]) -> None:
        self.decode = decode
        self.strings = tuple(string for string in strings if string)
        # A token that adds to the text adds at least one byte, so a string of n bytes spans at most n tokens; the
        # extra ones let a character whose bytes lie in several tokens be whole at the window's left edge.
        self.window = max((len(string.encode()) for string in self.strings), default=0) + 3

    def first_end(self, ids: Sequence[int], start: int) -> int | None:
        """Return the length of the shortest prefix of ``ids``, longer than ``start``, that contains a stop string."""
        if not self.strings:
            return None
        for end in range(start + 1, len(ids) + 1):
            tail = self.decode(list(ids[max(0, end - self.window) : end]))
            if any(string in tail for string in self.strings):
                return end
        return None


NO_STRINGS = StopStrings(lambda ids: "", ())


class Cut(NamedTuple):
    """How much of a text stays: ``kept`` tokens; ``ended`` if it ended by itself, not by the limit."""

    kept: int
    ended: bool


@dataclass(frozen=True)
class Ending:
    """When a generation ends; the same for every method, so that all are cut at the same token.

    Attributes:
        max_new_tokens: the limit.
        end_token_ids: tokens that end a text, and are kept as its last.
        strings: stop strings; the token that completes one is kept.
    """

    max_new_tokens: int
    end_token_ids: Collection[int] = ()
    strings: StopStrings = NO_STRINGS

    def check(self, generated: Sequence[int], start: int) -> Cut:
        """Look at the tokens of ``generated`` from ``start`` on; what comes first, end or limit, counts."""
        within = list(generated[: self.max_new_tokens])
        end_token = next((i + 1 for i in range(start, len(within)) if within[i] in self.end_token_ids), None)
        string_end = self.strings.first_end(within[:end_token], start)
        if string_end is not None or end_token is not None:
            return Cut(string_end or end_token or 0, ended=True)
        return Cut(len(within), ended=False)


def cut_at(text: str, strings: Sequence[str]) -> str:
    """Return ``text`` up to the first of the stop ``strings``."""
    ends = [at for string in strings if string and (at := text.find(string)) >= 0]
    return text[: min(ends, default=len(text))]
