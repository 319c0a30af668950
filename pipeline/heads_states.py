"""What Medusa heads learn from: generated text, and the target's last hidden states over it.

Example::

    pairs = read_text(Path("results/parts/smollm2-135m/default/text.jsonl"))
    hidden = hidden_states(model, pairs["train"])                     # [N, d]
    labels, tokens = labels_of(pairs["train"], num_heads=4, rows=rows)     # [N, 4] each
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from pipeline.errors import UserError
from pipeline.selfgen import load_states, most_frequent

TOKENS_A_BATCH = 4096  # of the target's forward passes
IGNORED = -100  # what cross-entropy leaves out
Pair = tuple[list[int], list[int]]


def read_text(file: Path) -> dict[str, list[Pair]]:
    """Return the prompts and outputs of each split.

    Raises:
        UserError: the file is missing or damaged, or a split is empty.
    """
    pairs: dict[str, list[Pair]] = {"train": [], "validation": []}
    try:
        # Not splitlines(): a text may hold other line separators, which JSON leaves as they are.
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"--text: {file} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            entry = json.loads(line)
            if "error" in entry:
                raise UserError(entry["error"])
            pairs[entry["split"]].append((list(entry["prompt_ids"]), list(entry["output_ids"])))
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{file}:{number}: not a line of generated text: {reason}") from error
    for split in pairs:
        # An output of one token gives no head anything to guess.
        pairs[split] = [(prompt, output) for prompt, output in pairs[split] if prompt and len(output) > 1]
        if not pairs[split]:
            raise UserError(f"{file} has no text of split {split!r}")
    return pairs


def choose_shortlist(pairs: list[Pair], size: int) -> list[int]:
    """Return the ``size`` most frequent output tokens (all, if there are fewer), in order of id."""
    return most_frequent((token for _, output in pairs for token in output), size)


def labels_of(pairs: list[Pair], num_heads: int, rows: Int[Tensor, " v"]) -> tuple[Tensor, Tensor]:
    """Return the tokens that each head is to guess at each position, ``[N, K]``: as shortlist rows, and as ids.

    Position i of an output is the state that chose its token i, so head k guesses token i + 1 + k. Past the end both
    are -100; the row of a token that is not on the shortlist is -100 too.
    """
    tokens = []
    for _, output in pairs:
        padded = torch.tensor(output[1:] + [IGNORED] * (num_heads - 1))
        tokens.append(padded.unfold(0, num_heads, 1))
    ids = torch.cat(tokens)
    return torch.where(ids >= 0, rows[ids.clamp(min=0)], IGNORED), ids


@torch.inference_mode()
def hidden_states(model: PreTrainedModel, pairs: list[Pair]) -> Float[Tensor, "n d"]:
    """Return the input of the target's head at each position that :func:`labels_of` labels, in its order."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    found: dict[int, Tensor] = {}
    while order:
        longest = max(1, sum(map(len, pairs[order[-1]])))
        batch = [order.pop() for _ in range(min(len(order), max(1, TOKENS_A_BATCH // longest)))]
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            text = torch.tensor(pairs[i][0] + pairs[i][1])
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        states = model.base_model(ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
        states = states.last_hidden_state
        for row, i in enumerate(batch):
            start = len(pairs[i][0]) - 1
            found[i] = states[row, start : start + len(pairs[i][1]) - 1].cpu().clone()
    return torch.cat([found[i] for i in range(len(pairs))])


def kept_or_read(model: PreTrainedModel, pairs: list[Pair], kept: Path) -> Float[Tensor, "n d"]:
    """Return what :func:`hidden_states` returns, reading only the texts whose states are not in the folder ``kept``.

    Those that ``pipeline.selfgen`` kept are the engine's own, of when it wrote the text.
    """
    found = [load_states(kept, prompt) for prompt, _ in pairs]
    lengths = [0 if states is None else len(states) for states in found]
    missing = [i for i, (_, output) in enumerate(pairs) if lengths[i] < len(output)]
    if missing:
        read = hidden_states(model, [pairs[i] for i in missing])
        for i, states in zip(missing, torch.split(read, [len(pairs[i][1]) - 1 for i in missing]), strict=True):
            found[i] = states
    whole = [states for states in found if states is not None]
    return torch.cat([states[: len(output) - 1] for states, (_, output) in zip(whole, pairs, strict=True)])


class States(Dataset[dict[str, Tensor]]):
    """Hidden states ``[N, d]``, labels ``[N, K]`` and what else goes with each, handed out a batch at a time."""

    def __init__(self, hidden: Float[Tensor, "n d"], labels: Int[Tensor, "n k"], **more: Tensor) -> None:
        self.tensors = {"hidden": hidden, "labels": labels, **more}

    def __len__(self) -> int:
        return len(self.tensors["hidden"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Return a whole batch: a thousand single items would take longer to collate than to learn from."""
        chosen = torch.tensor(indices)
        return {name: tensor[chosen] for name, tensor in self.tensors.items()}
