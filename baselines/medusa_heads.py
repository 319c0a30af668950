"""Medusa's heads: each guesses a token further ahead from the target's last hidden state.

With h the (normalised) hidden state from which the target's own head reads the next token, head k = 0, 1, ... reads the
token k + 2 places after h's own as

    logits_k = W_k (h + silu(R_k h + b_k))                              (Cai et al. 2024, section 2.1.1)

R and b start at zero and W_k as the target's own head, so that training starts from the target's guess of the next
token. W_k has rows for a *shortlist* of tokens alone, those that the target often says: a head of the whole vocabulary
would cost a fifth of a small target each. What is not on the shortlist is never guessed, which costs speed and nothing
else.

A folder of heads holds ``heads.safetensors`` (``heads.{k}.residual.weight [d, d]``, ``heads.{k}.residual.bias [d]``,
``heads.{k}.output.weight [S, d]``) and ``heads.json``. Example::

    heads, record = load_heads(folder)
    logits = heads(hidden)                         # [n, d] -> [K, n, S]
    guess = DecodingHeads(heads, torch.bfloat16, device)
    logits = guess(hidden[-1])                     # [d] -> [K, S], for one state, as fast as memory is read
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from decoding.part_layers import part_layer, rows_dtype


@dataclass(frozen=True)
class HeadsRecord:
    """What ``heads.json`` says.

    Attributes:
        num_heads: heads, the nearest first.
        hidden_size: width of the target that they were trained for.
        shortlist: token id of each output row.
        top_accuracies: ``[k][i]``, share of held-out tokens that choice i of head k names; empty if never measured.
        tree: the tree fitted to them, nodes as paths of choice ranks in order of falling chance; empty if none.
        chain_tokens_per_step: of greedy decoding on held-out text, each head's likeliest token as a chain; None if
            never measured.
        tree_tokens_per_step: the same with a dynamic tree of 15 nodes.
    """

    num_heads: int
    hidden_size: int
    shortlist: tuple[int, ...]
    top_accuracies: tuple[tuple[float, ...], ...] = ()
    tree: tuple[tuple[int, ...], ...] = ()
    chain_tokens_per_step: float | None = None
    tree_tokens_per_step: float | None = None

    def __post_init__(self) -> None:
        if self.num_heads < 1 or not self.shortlist or len(set(self.shortlist)) != len(self.shortlist):
            raise ValueError(f"{self.num_heads} heads over {len(self.shortlist)} tokens, or a token twice")

    @classmethod
    def read(cls, file: Path) -> HeadsRecord:
        """Read ``heads.json``.

        Raises:
            ValueError: it is missing, damaged, or has an unknown key.
        """
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))
            if "error" in entries:
                raise ValueError(entries["error"])
            if unknown := set(entries) - {field.name for field in fields(cls)}:
                raise ValueError(f"unknown key {min(unknown)!r}")
            lists = {name: tuple(map(tuple, entries.get(name) or ())) for name in ("top_accuracies", "tree")}
            return cls(**{**entries, "shortlist": tuple(entries["shortlist"]), **lists})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} does not describe Medusa heads: {type(error).__name__}: {error}") from error


class MedusaHeads(nn.Module):
    """The heads as they are trained: every parameter stacked over the heads.

    Args:
        num_heads: K.
        hidden_size: d.
        shortlist_size: S.
    """

    def __init__(self, num_heads: int, hidden_size: int, shortlist_size: int) -> None:
        super().__init__()
        self.residual_weight = nn.Parameter(torch.zeros(num_heads, hidden_size, hidden_size))
        self.residual_bias = nn.Parameter(torch.zeros(num_heads, hidden_size))
        self.output_weight = nn.Parameter(torch.zeros(num_heads, shortlist_size, hidden_size))

    @property
    def num_heads(self) -> int:
        """K."""
        return self.residual_bias.shape[0]

    def states(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "k n d"]:
        """Return each head's own state, ``h + silu(R h + b)``; all heads in one product."""
        moved = F.linear(hidden, self.residual_weight.flatten(0, 1), self.residual_bias.flatten())
        return hidden + F.silu(moved).view(hidden.shape[0], self.num_heads, -1).transpose(0, 1)

    def forward(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "k n s"]:
        """Return the logits of every head over the shortlist."""
        states = self.states(hidden)
        return torch.stack([F.linear(state, weight) for state, weight in zip(states, self.output_weight, strict=True)])


class DecodingHeads:
    """The heads as they are decoded with: weights laid out for reading once, one hidden state at a time."""

    def __init__(
        self, heads: MedusaHeads, dtype: torch.dtype, device: torch.device, num_heads: int | None = None
    ) -> None:
        count = heads.num_heads if num_heads is None else num_heads
        if not 1 <= count <= heads.num_heads:
            raise ValueError(f"num_heads must be between 1 and {heads.num_heads}, the heads trained, not {num_heads}")
        self.num_heads, self.dtype, self.device = count, rows_dtype(dtype, device), device
        weight, bias = heads.residual_weight.detach()[:count], heads.residual_bias.detach()[:count]
        self.residual = part_layer(weight.flatten(0, 1), bias.flatten(), dtype, device)
        self.outputs = [part_layer(rows, None, dtype, device) for rows in heads.output_weight.detach()[:count]]
        self.weight_bytes = sum(layer.num_bytes for layer in (self.residual, *self.outputs))

    def __call__(self, hidden: Float[Tensor, " d"]) -> Float[Tensor, "k s"]:
        """Return the logits of every head for one hidden state."""
        hidden = hidden.to(self.dtype)
        states = hidden + F.silu(self.residual(hidden[None])).view(self.num_heads, -1)
        return torch.cat([output(states[k : k + 1]) for k, output in enumerate(self.outputs)])


def save_heads(folder: Path, heads: MedusaHeads, record: HeadsRecord) -> None:
    """Write ``heads.safetensors`` and ``heads.json`` into an existing folder."""
    tensors = {}
    for k in range(heads.num_heads):
        tensors[f"heads.{k}.residual.weight"] = heads.residual_weight[k].detach().cpu().clone()
        tensors[f"heads.{k}.residual.bias"] = heads.residual_bias[k].detach().cpu().clone()
        tensors[f"heads.{k}.output.weight"] = heads.output_weight[k].detach().cpu().clone()
    save_file(tensors, folder / "heads.safetensors")
    (folder / "heads.json").write_text(json.dumps(asdict(record)) + "\n", encoding="utf-8")


def load_heads(folder: Path) -> tuple[MedusaHeads, HeadsRecord]:
    """Read a folder of heads.

    Raises:
        ValueError: a file is missing or damaged, or the two do not go together.
    """
    record = HeadsRecord.read(folder / "heads.json")
    heads = MedusaHeads(record.num_heads, record.hidden_size, len(record.shortlist))
    parameters = (
        ("residual.weight", heads.residual_weight),
        ("residual.bias", heads.residual_bias),
        ("output.weight", heads.output_weight),
    )
    try:
        with safe_open(folder / "heads.safetensors", framework="pt") as file, torch.no_grad():
            for name, parameter in parameters:
                for k in range(record.num_heads):
                    tensor = file.get_tensor(f"heads.{k}.{name}")
                    if tensor.shape != parameter[k].shape:
                        raise ValueError(f"heads.{k}.{name} is {list(tensor.shape)}, not {list(parameter[k].shape)}")
                    parameter[k] = tensor
    except Exception as error:  # safetensors raises an error of its own, and bare ones for a missing name
        raise ValueError(f"{folder / 'heads.safetensors'} cannot be read: {error}") from error
    return heads, record


def check_fits(record: HeadsRecord, hidden_size: int, vocab_size: int) -> None:
    """Refuse heads that were trained for another target.

    Raises:
        ValueError: the width or the vocabulary differs.
    """
    if record.hidden_size != hidden_size:
        raise ValueError(f"the heads were trained for hidden size {record.hidden_size}, the target has {hidden_size}")
    if not 0 <= min(record.shortlist) <= max(record.shortlist) < vocab_size:
        raise ValueError(f"the heads guess token {max(record.shortlist)}, the target's vocabulary has {vocab_size}")


def rows_of(shortlist: Sequence[int], vocab_size: int) -> list[int]:
    """Return each token id's row in the shortlist, -100 (what cross-entropy ignores) for a token not on it."""
    rows = [-100] * vocab_size
    for row, token in enumerate(shortlist):
        rows[token] = row
    return rows
