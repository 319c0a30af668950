"""A pool of phrases, and the trie in which candidates that begin alike share their nodes.

Lookahead decoding (Fu et al. 2024) and Ouroboros (Zhao et al. 2024) both collect n-grams while they decode and look
them up by their first token: the pool maps a token to the last few distinct continuations that were seen after it. A
continuation that is seen again becomes the newest; when a token has more than ``capacity``, the oldest is forgotten.
Nothing is searched, every operation is one or two look-ups by hash.

Example::

    pool = PhrasePool(capacity=2)
    pool.add(5, (6, 7))
    pool.add(5, (6, 8))
    pool.add(5, (9, 9))
    pool.look_up(5)                # [(9, 9), (6, 8)]: newest first, (6, 7) is forgotten

    trie = Trie(root=5)
    trie.add(0, (6, 7))            # nodes 1, 2
    trie.add(0, (6, 8))            # nodes 1, 3: the 6 is shared
    trie.tree()                    # CandidateTree(tokens=(5, 6, 7, 8), parents=(-1, 0, 1, 1))
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from decoding import CandidateTree

Phrase = tuple[int, ...]


class PhrasePool:
    """The most recent distinct continuations of each token.

    Args:
        capacity: most continuations that are kept of one token.

    Raises:
        ValueError: the capacity is below 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a pool's capacity must be 1 or more, not {capacity}")
        self.capacity = capacity
        self._phrases: dict[int, OrderedDict[Phrase, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._phrases.values()))

    def clear(self) -> None:
        """Forget everything."""
        self._phrases.clear()

    def add(self, first: int, phrase: Phrase) -> None:
        """Make ``phrase`` the newest continuation of ``first``; the oldest goes if there are too many."""
        phrases = self._phrases.setdefault(first, OrderedDict())
        phrases[phrase] = None
        phrases.move_to_end(phrase)
        if len(phrases) > self.capacity:
            phrases.popitem(last=False)

    def discard(self, first: int, phrase: Phrase) -> None:
        """Forget one continuation, if it is there."""
        if first in self._phrases:
            self._phrases[first].pop(phrase, None)

    def look_up(self, first: int) -> list[Phrase]:
        """Return the continuations of ``first``, newest first."""
        return list(reversed(self._phrases.get(first, ())))

    def add_text(self, text: Sequence[int], length: int, start: int = 0) -> None:
        """Add every run of ``length`` tokens of ``text`` that ends at index ``start`` or later."""
        for end in range(max(start, length), len(text)):
            self.add(text[end - length], tuple(text[end - length + 1 : end + 1]))


class Trie:
    """A candidate tree under construction in which a node never has two children of the same token.

    Args:
        root: the last committed token.
        max_nodes: most nodes, the root included; None for no limit.
    """

    def __init__(self, root: int, max_nodes: int | None = None) -> None:
        self.max_nodes = max_nodes
        self.tokens, self.parents = [root], [-1]
        self._children: dict[tuple[int, int], int] = {}

    def add(self, parent: int, phrase: Sequence[int]) -> list[int]:
        """Hang a chain under node ``parent``; return its nodes, fewer than its tokens where the limit cuts it."""
        nodes = []
        for token in phrase:
            node = self._children.get((parent, token))
            if node is None:
                if len(self.tokens) == self.max_nodes:
                    break
                node = len(self.tokens)
                self._children[parent, token] = node
                self.tokens.append(token)
                self.parents.append(parent)
            nodes.append(node)
            parent = node
        return nodes

    def tree(self) -> CandidateTree:
        """Return the tree as it stands."""
        return CandidateTree(tuple(self.tokens), tuple(self.parents))
