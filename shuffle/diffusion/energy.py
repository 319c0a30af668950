"""The energy of a whole text: how badly its tokens fit each other, for choosing among texts and for repairing one.

A model that settles several tokens in one pass draws them independently, so each may be likely and the whole not. The
energy looks at the whole,

    E(y) = -1/T * sum_i log p(y_i | x, y without i)

the pseudo-log-likelihood a token (Salazar et al. 2020): each token masked in turn, given the others of its block and
the blocks before. An autoregressive model's ``log p(y_i | x, y before i)`` does as well (:mod:`shuffle.scoring`). Their
mean ranks texts, the lowest are masked and denoised again.

Example::

    best = texts[least_energy(pseudo_log_likelihoods(model, prompt_ids, texts))]      # of shuffle.scoring
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shuffle.diffusion.model import DiffusionTransformer
from shuffle.examples import padded


def hide_worst(text: Sequence[int], scores: Float[Tensor, " t"], share: float, mask_id: int) -> list[int]:
    """Return the text with its least likely tokens, a ``share`` of them and at least one, behind masks."""
    worst = set(scores.argsort(stable=True)[: max(1, int(share * len(text)))].tolist())
    return [mask_id if i in worst else token for i, token in enumerate(text)]


@torch.inference_mode()
def pseudo_log_likelihoods(
    model: DiffusionTransformer,
    prompt_ids: Sequence[int],
    texts: Sequence[Sequence[int]],
    block_length: int | None = None,
) -> list[Float[Tensor, " t"]]:
    """Return ``log p(y_i | x, y without i)`` of every token of every text.

    One forward pass: blocks do not see each other's masks, so copy k of a text masks the k-th token of every block, and
    as many copies as a block has tokens cover the text.
    """
    length, device = block_length or model.config.block_length, model.device
    end = model.config.end_token_ids[0]
    # Behind an end token there are more of it, as in training; behind a text that the limit cut, nothing is known.
    behind = [end if text and text[-1] in model.config.end_token_ids else model.mask_id for text in texts]
    filled = [[*text, *[last] * (-len(text) % length)] for text, last in zip(texts, behind, strict=True)]
    shown = padded(filled, end).to(device)
    target = shown.where(shown != model.mask_id, end)
    clean = padded([[*prompt_ids, *text] for text in texts], 0).to(device)
    sizes = torch.tensor([len(prompt_ids) + len(text) for text in texts], device=device)
    valid = torch.arange(clean.shape[1], device=device) < sizes[:, None]
    place = torch.arange(target.shape[1], device=device)
    copy = place % length
    hidden_here = torch.arange(length, device=device)[:, None] == copy
    noisy = torch.where(hidden_here, model.mask_id, shown[:, None]).flatten(0, 1)
    prompts = torch.full((len(noisy),), len(prompt_ids), device=device)
    clean, valid = clean.repeat_interleave(length, 0), valid.repeat_interleave(length, 0)
    hidden = model.read_blocks(clean, valid, prompts, noisy, block_length=length)[:, clean.shape[1] :]
    logits = model.head(hidden.unflatten(0, (len(texts), length))[:, copy, place])
    scores = torch.log_softmax(logits.float(), -1).gather(-1, target[..., None])[..., 0]
    return [row[: len(text)] for row, text in zip(scores, texts, strict=True)]
