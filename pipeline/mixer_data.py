"""What a mixer learns from beside a text's hidden states, and how well a drafter does on text that is known already.

Example::

    contexts = contexts_of(pairs["train"], num_context=3, rows=rows)          # [N, 3]
    replay(drafter, pairs["validation"], hidden)                              # tokens a step
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from decoding import CandidateTree, Drafter, Verdict
from decoding.verify import greedy_path
from pipeline.heads_states import IGNORED, Pair

TREE_NODES = 15  # of the trees that heads and mixers are measured with


def contexts_of(pairs: Sequence[Pair], num_context: int, rows: Int[Tensor, " v"]) -> Int[Tensor, "n c"]:
    """Return the last tokens before each of :func:`pipeline.heads_states.labels_of`'s labels, as shortlist rows.

    Position i of an output is the state that chose its token i, which is the last of its context. -100 stands for a
    token that is not on the shortlist, or that there is none.
    """
    contexts = []
    for prompt, output in pairs:
        before = ([IGNORED] * num_context + prompt)[1 - num_context :] if num_context > 1 else []
        contexts.append(torch.tensor(before + output[:-1]).unfold(0, num_context, 1))
    ids = torch.cat(contexts)
    return torch.where(ids >= 0, rows[ids.clamp(min=0)], IGNORED)


def replay(drafter: Drafter, pairs: Sequence[Pair], hidden: Float[Tensor, "n d"], most_tokens: int = 10_000) -> float:
    """Return the tokens a step that greedy decoding would emit with a drafter that reads hidden states.

    The texts are the target's own greedy ones, so what it would say is known, and it need not run.

    Args:
        drafter: told of each step as a decoder would tell it, but for the logits.
        pairs: the texts.
        hidden: the states of :func:`pipeline.heads_states.hidden_states`.
        most_tokens: stop after the text in which there are so many.
    """
    emitted, steps, start = 0, 0, 0
    for prompt, output in pairs:
        states, start = hidden[start : start + len(output) - 1], start + len(output) - 1
        drafter.begin(prompt)
        i = 0  # output[i] is the bonus token
        while i < len(output) - 1:
            root = CandidateTree((([*prompt, *output[:i]])[-1],), (-1,))
            drafter.observe(Verdict(root, (0,), output[i], (output[i],), torch.empty(1, 0), states[i : i + 1]))
            tree = drafter.propose([*prompt, *output[: i + 1]])
            # What the target says after a node is only known on the path of its own text; others are not walked.
            says = [output[i + 1 + depth] if i + 1 + depth < len(output) else IGNORED for depth in tree.depths]
            path, _ = greedy_path(tree, says)
            gained = min(len(path), len(output) - 1 - i)
            emitted, steps, i = emitted + gained, steps + 1, i + gained
        if emitted >= most_tokens:
            break
    return emitted / max(1, steps)
