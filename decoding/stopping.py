"""When a text ends: an end token, a stop string, or the limit.

A stop string may span tokens and may begin inside one, so it is looked for in the decoded tail after every token. All
methods are cut after the token that completes it, which is where one-token-at-a-time decoding stops too: a method that
emits several tokens a step gains nothing from running past the end.

Example::

    stop = StopStrings(tokenizer.decode, ["\\n\\n"])
    stop.first_end([11, 12, 13], start=0)       # index behind the token that completes a stop string, or None
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


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


def cut_at(text: str, strings: Sequence[str]) -> str:
    """Return ``text`` up to the first of the stop ``strings``."""
    ends = [at for string in strings if string and (at := text.find(string)) >= 0]
    return text[: min(ends, default=len(text))]
