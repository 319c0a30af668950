"""Rule: train Medusa heads for a target on text that the target itself generated (Medusa-1: the target is frozen).

Since the target does not change, its last hidden states over the text are had once, in bfloat16 (they are those that
``pipeline.selfgen`` kept when it wrote the text; where there are none, the text is read), and the heads are all that is
trained: head k on the token k + 2 places after the state, with cross-entropy weighted 0.8^k (Cai et al.
2024, section 2.2.1). Only tokens that the target generated are learned, and only the most frequent ones have output
rows; those start from the target's own head. What is measured on the validation part, how often choice i of head k is
right, goes into ``heads.json`` together with the tree fitted to it, and the tokens a step that a chain and a tree of 15
nodes would have there, as ``pipeline.train_mixer`` has them of a mixer. By hand::

    python -m pipeline.train_heads --model results/models/smollm2-135m \
        --text results/parts/smollm2-135m/default/text.jsonl --output results/parts/smollm2-135m/default/heads

A killed run goes on from its last checkpoint when the same command is run again. The folder appears whole or not at
all: ``heads.safetensors``, ``heads.json``, and ``loss.csv`` with the loss curve.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, set_seed

from baselines.medusa import MedusaDrafter
from baselines.medusa_heads import DecodingHeads, HeadsRecord, MedusaHeads, rows_of, save_heads
from baselines.medusa_tree import fit_paths, shape_of
from pipeline.errors import UserError, command, made_by
from pipeline.files import atomic_path, sha256_of, sha256_of_all
from pipeline.heads_states import IGNORED, Pair, States, choose_shortlist, kept_or_read, labels_of, read_text
from pipeline.mixer_data import TREE_NODES, replay
from pipeline.prepare import check_source
from pipeline.states_training import fit, run_rule
from pipeline.training_work import prepared_work, publish, write_loss_curve

HEAD_DECAY = 0.8  # loss weight of each head relative to the one before it, as in the paper
TOP_CHOICES = 10  # choices of a head whose accuracy is measured
SAVE_STEPS = 200  # between checkpoints
MOST_NODES = 63  # of the fitted tree; its first n nodes are the tree of n nodes


@dataclass(frozen=True)
class Settings:
    """Everything that the heads depend on, beside the code and the text."""

    num_heads: int = 4
    shortlist_size: int = 8192
    epochs: float = 3.0
    batch_size: int = 512
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0 and name != "seed":
                raise UserError(f"--{name.replace('_', '-')} must be above 0, not {value}")


class HeadsWithLoss(nn.Module):
    """The heads under the loss that they are trained with, in the form that a Trainer calls."""

    def __init__(self, heads: MedusaHeads) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, hidden: Float[Tensor, "n d"], labels: Int[Tensor, "n k"]) -> dict[str, Tensor]:
        """Return ``sum_k 0.8^k CE_k``, each over the positions that have a label."""
        loss = hidden.new_zeros((), dtype=torch.float32)
        for k, state in enumerate(self.heads.states(hidden.to(self.heads.output_weight.dtype))):
            logits = F.linear(state, self.heads.output_weight[k])
            summed = F.cross_entropy(logits.float(), labels[:, k], ignore_index=IGNORED, reduction="sum")
            loss = loss + HEAD_DECAY**k * summed / (labels[:, k] != IGNORED).sum().clamp(min=1)
        return {"loss": loss}


@torch.inference_mode()
def measure(
    heads: MedusaHeads, hidden: Float[Tensor, "n d"], tokens: Int[Tensor, "n k"], shortlist: list[int]
) -> list[list[float]]:
    """Return how often choice i of head k is the target's token, ``[K][10]``; off the shortlist counts as missed."""
    ids = torch.tensor(shortlist)
    hits = torch.zeros(heads.num_heads, min(TOP_CHOICES, len(shortlist)))
    for start in range(0, len(hidden), 512):
        state, token = hidden[start : start + 512], tokens[start : start + 512]
        choices = ids[heads(state.to(heads.output_weight.dtype)).topk(hits.shape[1]).indices]
        hits += (choices == token.T[..., None]).sum(1)
    counts = (tokens != IGNORED).sum(0).clamp(min=1)
    return [[round(share, 5) for share in row] for row in (hits / counts[:, None]).tolist()]


def steps_of(
    heads: MedusaHeads, pairs: list[Pair], hidden: Float[Tensor, "n d"], shortlist: list[int]
) -> dict[str, float]:
    """Return the tokens a step of a chain and of a tree on held-out text, under the record's names."""
    decoding = DecodingHeads(heads, torch.bfloat16, torch.device("cpu"))
    chain = MedusaDrafter(decoding, shortlist, shape=shape_of([(0,) * n for n in range(1, heads.num_heads + 1)]))
    tree = MedusaDrafter(decoding, shortlist, TREE_NODES)
    return {
        "chain_tokens_per_step": round(replay(chain, pairs, hidden), 4),
        "tree_tokens_per_step": round(replay(tree, pairs, hidden), 4),
    }


def description(settings: Settings, model_dir: Path, text: Path) -> dict[str, Any]:
    """Return all that the heads depend on: a run that was killed is gone on with only if it was the same."""
    weights = sha256_of_all(model_dir.glob("*.safetensors"))
    return {**asdict(settings), "model_sha256": weights, "text_sha256": sha256_of(text)}


def read_target(
    model_dir: Path, pairs: dict[str, list[Pair]], shortlist: list[int], work: Path, kept: Path
) -> dict[str, Tensor]:
    """Return the hidden states of both splits and the shortlist's rows of the target's head, read once and kept."""
    file = work / "states.safetensors"
    if not file.is_file():
        model = AutoModelForCausalLM.from_pretrained(
            model_dir,
            dtype=torch.bfloat16,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            device_map="auto" if torch.cuda.is_available() else None,  # over the cards that there are
        )
        states = {}
        for split, texts in pairs.items():
            say(f"the target's states over {sum(len(output) for _, output in texts)} tokens of {split} text")
            states[split] = kept_or_read(model, texts, kept)
        head = model.get_output_embeddings().weight.detach().cpu()  # type: ignore[no-untyped-call]
        with atomic_path(file) as temporary:
            save_file({**states, "head": head[shortlist].clone(), "vocabulary": torch.tensor(len(head))}, temporary)
    return load_file(file)


def train_heads(model_dir: Path, text: Path, output: Path, settings: Settings) -> None:
    """Write the folder of heads.

    Raises:
        UserError: the target or the text is missing or damaged.
    """
    check_source(model_dir)
    if not (model_dir / "config.json").is_file():
        raise UserError(f"--model: {model_dir} is not a model folder; {made_by(model_dir)}")
    pairs = read_text(text)
    shortlist = choose_shortlist(pairs["train"], settings.shortlist_size)
    work = prepared_work(output.with_name(f".{output.name}.partial"), description(settings, model_dir, text))
    target = read_target(model_dir, pairs, shortlist, work, text.parent / "states")
    rows = torch.tensor(rows_of(shortlist, int(target["vocabulary"])))
    set_seed(settings.seed)
    heads = MedusaHeads(settings.num_heads, target["head"].shape[1], len(shortlist))
    with torch.no_grad():
        heads.output_weight.copy_(target["head"].float())
    labels, _ = labels_of(pairs["train"], settings.num_heads, rows)
    say(f"training {settings.num_heads} heads over {len(shortlist)} tokens on {len(labels)} states")
    data = States(target["train"], labels)
    curve = fit(HeadsWithLoss(heads), data, settings, work, SAVE_STEPS, say)
    _, tokens = labels_of(pairs["validation"], settings.num_heads, rows)
    heads.bfloat16()  # what they are decoded in, and half the file
    accuracies = measure(heads, target["validation"], tokens, shortlist)
    tree = fit_paths(accuracies, MOST_NODES)
    steps = steps_of(heads, pairs["validation"], target["validation"], shortlist)
    width, shares = target["head"].shape[1], tuple(map(tuple, accuracies))
    record = HeadsRecord(settings.num_heads, width, tuple(shortlist), shares, tuple(tree), **steps)
    finish(work, output, heads, record, curve)
    say(f"{record.tree_tokens_per_step} tokens a step as a tree; the heads are in {output}")


def finish(work: Path, output: Path, heads: MedusaHeads, record: HeadsRecord, curve: list[dict[str, Any]]) -> None:
    """Write everything into ``work`` and let it become ``output`` at once."""
    folder = work / "heads"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save_heads(folder, heads, record)
    write_loss_curve(folder, curve)
    publish(work, folder, output)


def say(line: str) -> None:
    """Tell the user what is being done."""
    print(f"train_heads: {line}", file=sys.stderr, flush=True)


@command
def main() -> None:
    """Read the command line and do it."""
    run_rule(__doc__, Settings, train_heads, "heads")


if __name__ == "__main__":
    main()
