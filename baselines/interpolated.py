r"""What follows a run of tokens, from how often what followed it: counts of all lengths, interpolated.

With c(h, t) the number of times that token t followed the run h, and n(h) that of all that followed it,

    P(t | h) = (c(h, t) + lambda P(t | h without its first token)) / (n(h) + lambda),

from the longest end of a text that was seen down to one token (Witten and Bell 1991; here with one lambda): a rare long
match and a frequent short one are weighed against each other. Example::

    chances_after((5, 6), counts.__getitem__)       # {7: 0.8, 9: 0.1}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

# How many sightings what is known of the shorter run is worth: of 1, 2, 4 and 8 the best on held-out text, whether a
# datastore is counted or the text itself.
SHORTER_RUN = 4.0
LEAST = 0.02  # the chance below which a guess is not worth a place among those to choose from


def chances_after(end: Sequence[int], followers: Callable[[Sequence[int]], Mapping[int, int]]) -> dict[int, float]:
    """Return the probability of each token that was seen to follow an end of these tokens.

    Args:
        end: the last tokens of a text.
        followers: gives how often each token followed a run; nothing where the run was not seen.
    """
    found: dict[int, float] = {}
    for length in range(1, len(end) + 1):
        counts = followers(end[-length:])
        if not counts:
            break  # nor are there longer ones
        total = sum(counts.values())
        shorter = SHORTER_RUN / (total + SHORTER_RUN)
        found = {token: shorter * chance for token, chance in found.items()}
        for token, count in counts.items():
            found[token] = found.get(token, 0.0) + count / (total + SHORTER_RUN)
    return found


def guesses_after(end: Sequence[int], followers: Callable[[Sequence[int]], Mapping[int, int]]) -> dict[int, float]:
    """Return those of :func:`chances_after` that are worth a place among the candidates."""
    return {token: each for token, each in chances_after(end, followers).items() if each >= LEAST}
