"""Where two outputs part, and how sure the target model was there.

In reduced precision the ids of a lossless method may differ from the baseline's where two tokens are all but tied. The
*top-2 margin*, the distance between the target's two largest logits at that place, tells such a tie from a mistake.

Example::

    token = first_difference(ours, theirs)                           # None if they are equal
    margin = top2_margin(target, [*prompt_ids, *theirs[:token]])     # 0.03: a tie in bfloat16
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decoding import TargetModel


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Return the index of the first token that differs, the shorter's length if one goes on, None if they are equal."""
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return index
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def top2_margin(target: TargetModel, context: Sequence[int]) -> float:
    """Return the distance between the target's two largest logits after ``context``."""
    logits = target.prefill(target.new_cache(len(context)), context).logits[0]
    first, second = logits.float().topk(2).values.tolist()
    return float(first - second)
