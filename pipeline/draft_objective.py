r"""The draft model that is trained: the target's layers with a loss over a shortlist, and how far it agrees with it.

Example::

    draft = cut_draft(target, [0, 1, 29])
    objective = DraftObjective(draft, shortlist)
    measured(objective, held_out, shortlist)["agreement"]      # 0.55
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel

Row = dict[str, Any]
IGNORED = -100
# Chain lengths for which draft.json tells the tokens a step.
CHAINS = (1, 2, 3, 4, 5, 6, 8)


def chosen_layers(asked: Sequence[int] | None, total: int) -> list[int]:
    """Return which of a target's ``total`` layers make a draft: those ``asked`` for, or the first two and the last.

    Raises:
        UserError: the target has no such layer.
    """
    if asked is None:
        return sorted({0, min(1, total - 1), total - 1})
    if bad := [layer for layer in asked if not 0 <= layer < total]:
        raise UserError(f"layers: {bad[0]}, but the target has layers 0 to {total - 1}")
    return list(asked)


def cut_draft(target: PreTrainedModel, layers: Sequence[int]) -> LlamaForCausalLM:
    """Return a model of these layers of ``target``, in this order, between its embedding, norm and head.

    Raises:
        UserError: the target has no such layer.
    """
    from transformers import AutoModelForCausalLM

    layers = chosen_layers(layers, target.config.num_hidden_layers)
    shape: dict[str, Any] = {"num_hidden_layers": len(layers)}
    if types := getattr(target.config, "layer_types", None):  # Qwen's configs name each layer's kind of attention
        shape["layer_types"] = [types[layer] for layer in layers]
    config = type(target.config).from_dict(target.config.to_dict() | shape)
    config.architectures = target.config.architectures
    draft = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    draft.model.embed_tokens.load_state_dict(target.model.embed_tokens.state_dict())
    draft.model.norm.load_state_dict(target.model.norm.state_dict())
    draft.lm_head.load_state_dict(target.lm_head.state_dict())
    for place, layer in enumerate(layers):
        draft.model.layers[place].load_state_dict(target.model.layers[layer].state_dict())
    return cast("LlamaForCausalLM", draft)


class DraftObjective(nn.Module):
    """The draft with its loss over the shortlist; embedding and head stay the target's."""

    head: Tensor

    def __init__(self, draft: LlamaForCausalLM, shortlist: Sequence[int]) -> None:
        super().__init__()
        self.backbone = draft.model
        self.backbone.embed_tokens.requires_grad_(False)
        self.register_buffer("head", draft.lm_head.weight.detach()[torch.tensor(shortlist)].clone(), persistent=False)

    def logits(
        self, input_ids: Int[Tensor, "batch length"], chosen: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "tokens shortlist"]:
        """Return the logits after the tokens where ``chosen`` is true. Padding is on the right, unseen by the rest."""
        hidden = self.backbone(input_ids=input_ids, use_cache=False).last_hidden_state[chosen]
        return F.linear(hidden, self.head)

    def forward(self, input_ids: Int[Tensor, "batch length"], labels: Int[Tensor, "batch length"]) -> dict[str, Tensor]:
        """Return the loss of the labels, which are places in the shortlist (``IGNORED``: none)."""
        chosen = labels != IGNORED
        return {"loss": F.cross_entropy(self.logits(input_ids, chosen).float(), labels[chosen])}


@torch.no_grad()
def agreements(objective: DraftObjective, rows: Sequence[Row], shortlist: Sequence[int]) -> list[list[bool]]:
    """Return, for each answer, at which of its output tokens the draft's first choice is the target's."""
    objective.eval()
    found = []
    for row in rows:
        prompt, output = row["prompt_ids"], row["output_ids"]
        chosen = torch.zeros(1, len(prompt) + len(output) - 1, dtype=torch.bool)
        chosen[:, len(prompt) - 1 :] = True
        choices = objective.logits(torch.tensor([(prompt + output)[:-1]]), chosen).argmax(-1).tolist()
        found.append([shortlist[choice] == token for choice, token in zip(choices, output, strict=True)])
    return found


def tokens_per_step(found: Iterable[Sequence[bool]], chain: int) -> float:
    """Return how many tokens a step a greedy chain of ``chain`` drafted tokens gives, the first token left out.

    A step accepts drafted tokens up to the first disagreement, then adds the target's own.
    """
    tokens = steps = 0
    for agreed in found:
        at = 1  # prefill gives the first token
        while at < len(agreed):
            accepted = 0
            while accepted < chain and at + accepted < len(agreed) and agreed[at + accepted]:
                accepted += 1
            at += accepted + 1
            steps += 1
        tokens += max(0, len(agreed) - 1)
    return tokens / max(1, steps)


def measured(objective: DraftObjective, rows: Sequence[Row], shortlist: Sequence[int]) -> Row:
    """Return the agreement on ``rows``, overall and by source, and the tokens a step of chains."""
    found = agreements(objective, rows, shortlist)
    by_source: dict[str, list[list[bool]]] = {}
    for row, agreed in zip(rows, found, strict=True):
        by_source.setdefault(row["source"], []).append(agreed)

    def share(some: list[list[bool]]) -> float:
        return round(sum(map(sum, some)) / max(1, sum(map(len, some))), 4)

    return {
        "agreement": share(found),
        "agreement_by_source": {source: share(by_source[source]) for source in sorted(by_source)},
        "validation_tokens": sum(map(len, found)),
        "tokens_per_step": {str(chain): round(tokens_per_step(found, chain), 3) for chain in CHAINS},
    }
