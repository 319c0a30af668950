"""How well the tokens of a whole text fit each other, as an autoregressive model has it: for choosing among texts.

A model that says several tokens in one pass draws them independently, so each may be likely and the whole not. A
*scorer* looks at the whole; an autoregressive model's is ``log p(y_i | x, y before i)``, which a pass over the finished
text gives for all of it at once. Reranking by it is noisy parallel decoding (Gu et al. 2018). EDLM's energy (Xu et
al. 2025) is the same less the diffusion model's own log-probability, which is not in it here.

Example::

    score = engine_scorer(twin)                                       # on the decoding engine, all texts in one pass
    best = texts[least_energy(score(prompt_ids, texts))]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from decoding import CandidateTree, TargetModel
from decoding.requests import ReusedCache
from shuffle.examples import padded

# Prompt ids and texts to the log-probability of each text's tokens.
Scorer = Callable[[Sequence[int], Sequence[Sequence[int]]], list[Tensor]]


def check_twin(model: PreTrainedModel, vocab_size: int) -> None:
    """Check that a parallel generator's model writes the tokens that its twin, of ``vocab_size`` tokens, reads.

    Raises:
        ValueError: it has other tokens.
    """
    if model.config.vocab_size != vocab_size:
        theirs = model.config.vocab_size
        raise ValueError(f"the generator has {theirs} tokens, the target {vocab_size}: not its twin")


def energy(scores: Float[Tensor, " t"]) -> float:
    """Return the energy of a text from its tokens' log-probabilities: nats a token, lower is better."""
    return -float(scores.mean())


def least_energy(scores: Sequence[Float[Tensor, " t"]]) -> int:
    """Return which of several texts fits best, by their tokens' log-probabilities; of equals the first."""
    return min(range(len(scores)), key=lambda i: energy(scores[i]))


def causal_scorer(model: PreTrainedModel) -> Scorer:
    """Return the scorer of a causal language model of transformers, the autoregressive twin for one."""

    @torch.inference_mode()
    def score(prompt_ids: Sequence[int], texts: Sequence[Sequence[int]]) -> list[Tensor]:
        rows = padded([[*prompt_ids, *text] for text in texts], 0).to(model.device)
        # Padding is behind every token that counts, where a causal model does not look.
        logits = model(rows[:, :-1]).logits[:, len(prompt_ids) - 1 :].float()
        scores = torch.log_softmax(logits, -1).gather(-1, rows[:, len(prompt_ids) :, None])[..., 0]
        return [row[: len(text)] for row, text in zip(scores, texts, strict=True)]

    return score


def engine_scorer(target: TargetModel) -> Scorer:
    """Return the scorer of a model on the decoding engine: texts that share their beginnings share the rows of them."""
    caches = ReusedCache(target)

    @torch.inference_mode()
    def score(prompt_ids: Sequence[int], texts: Sequence[Sequence[int]]) -> list[Tensor]:
        tree, rows = tree_of(prompt_ids, texts)
        last = len(prompt_ids) - 1
        cache = caches.empty(last, tree.width - last)
        log_probs = target.read_once(cache, tree, first_row=last).logits.log_softmax(-1)
        return [log_probs[[row - last for row in path], list(text)] for path, text in zip(rows, texts, strict=True)]

    return score


def tree_of(prompt_ids: Sequence[int], texts: Sequence[Sequence[int]]) -> tuple[CandidateTree, list[list[int]]]:
    """Return the prompt and texts behind it as one tree; and for each text the nodes before each of its tokens.

    What follows a text's last token nobody asks, so that token has no node.
    """
    tokens, parents = list(prompt_ids), list(range(-1, len(prompt_ids) - 1))
    nodes: dict[tuple[int, int], int] = {}
    paths = []
    for text in texts:
        path = [len(prompt_ids) - 1]
        for token in text[:-1]:
            node = nodes.setdefault((path[-1], token), len(tokens))
            if node == len(tokens):
                tokens.append(token)
                parents.append(path[-1])
            path.append(node)
        paths.append(path)
    return CandidateTree(tuple(tokens), tuple(parents)), paths
