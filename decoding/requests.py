"""What every generation begins with, whatever generates: a request that can be met, and an empty cache for it.

Example::

    check_request(prompt_ids, max_new_tokens, target.max_context)
    cache = caches.empty(len(prompt_ids) + max_new_tokens, tree_width=16)       # caches = ReusedCache(target)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from decoding.cache import KVCache
from decoding.options import at_least
from decoding.target import TargetModel


class NoRoomError(ValueError):
    """A prompt and what is to be written behind it exceed the context."""


def check_request(prompt_ids: Sequence[int], max_new_tokens: int, max_context: int) -> None:
    """Check that there is a prompt, and room for the limit behind it.

    Raises:
        ValueError: the prompt is empty, or the limit below 1.
        NoRoomError: they exceed the context.
    """
    if not prompt_ids:
        raise ValueError("the prompt is empty")
    at_least(1, max_new_tokens=max_new_tokens)
    if len(prompt_ids) + max_new_tokens > max_context:
        raise NoRoomError(
            f"a prompt of {len(prompt_ids)} tokens and max_new_tokens={max_new_tokens} exceed the context of "
            f"{max_context} tokens"
        )


class ReusedCache:
    """The cache of one generation after the other: the last text's, emptied, where it has the right capacity.

    Args:
        target: whose keys and values it holds.
        on_new: done to each new cache.
    """

    def __init__(self, target: TargetModel, on_new: Callable[[KVCache], None] | None = None) -> None:
        self._target, self._on_new = target, on_new
        self._cache: KVCache | None = None

    def empty(self, num_tokens: int, tree_width: int) -> KVCache:
        """Return an empty cache for a text of ``num_tokens``, prompt included, and ``tree_width`` rows behind it."""
        capacity = self._target.capacity_for(num_tokens, tree_width)
        if self._cache is None or self._cache.capacity != capacity:
            self._cache = None  # the old one goes before the new one comes
            self._cache = self._target.new_cache(capacity)
            if self._on_new:
                self._on_new(self._cache)
        self._cache.clear()
        return self._cache
