r"""Rule: train a FasterDecodeMixer for a target on text that the target itself generated; the target is frozen.

The text and the target's hidden states over it are those that Medusa's heads learn from (:mod:`pipeline.train_heads`),
so that the two can be compared; so is the shortlist. The slots learn from each state all of the J tokens after the next
(:mod:`shuffle.fasterdecodemixer.model`). By hand::

    python -m pipeline.train_mixer --model results/models/smollm2-135m \
        --text results/parts/smollm2-135m/default/text.jsonl --output results/parts/smollm2-135m/default/mixer

A killed run goes on from its last checkpoint when the same command is run again. The folder appears whole or not at
all: ``model.safetensors`` and ``config.json``, as any model's; ``loss.csv`` with the loss curve; and ``mixer.json``
with what was measured on the validation part: how often the likeliest token of each position is right, where the token
before is not known, and the tokens a step of a chain and of a tree of 15 nodes.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import set_seed

from baselines.medusa_heads import rows_of
from pipeline.errors import UserError, command, made_by
from pipeline.files import atomic_write, sha256_of, sha256_of_all
from pipeline.heads_states import IGNORED, Pair, States, choose_shortlist, labels_of, read_text
from pipeline.mixer_data import TREE_NODES, contexts_of, replay
from pipeline.prepare import check_source
from pipeline.states_training import fit, run_rule
from pipeline.train_heads import read_target
from pipeline.training_work import prepared_work, publish, write_loss_curve
from shuffle.fasterdecodemixer.config import MixerConfig
from shuffle.fasterdecodemixer.drafter import MixerDrafter
from shuffle.fasterdecodemixer.guesses import DecodingMixer
from shuffle.fasterdecodemixer.model import FasterDecodeMixer

SAVE_STEPS = 200  # between checkpoints


@dataclass(frozen=True)
class Settings:
    """Everything that the mixer depends on, beside the code and the text."""

    num_slots: int = 4
    num_positions: int = 4
    num_context: int = 3
    num_mixer_layers: int = 1
    shortlist_size: int = 8192
    epochs: float = 3.0
    batch_size: int = 512
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0 and name not in ("seed", "num_mixer_layers"):
                raise UserError(f"--{name.replace('_', '-')} must be above 0, not {value}")
        if self.num_positions > self.num_slots:
            raise UserError(f"--num-positions must be at most --num-slots={self.num_slots}, not {self.num_positions}")

    def config(self, model_dir: Path, vocab_size: int, hidden_size: int, shortlist_size: int) -> MixerConfig:
        """Return the mixer's configuration."""
        return MixerConfig(
            backbone=str(model_dir),
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            shortlist_size=shortlist_size,
            num_slots=self.num_slots,
            num_positions=self.num_positions,
            num_context=self.num_context,
            num_mixer_layers=self.num_mixer_layers,
        )


@torch.inference_mode()
def accuracies(
    mixer: FasterDecodeMixer, hidden: Float[Tensor, "n d"], context: Int[Tensor, "n c"], tokens: Int[Tensor, "n j"]
) -> list[float]:
    """Return how often the likeliest token of each position is the target's; off the shortlist counts as missed."""
    mixer.eval()  # type: ignore[no-untyped-call]
    hits = torch.zeros(mixer.config.num_positions)
    for start in range(0, len(hidden), 512):
        part = slice(start, start + 512)
        likeliest = mixer.shortlist[mixer.distributions(hidden[part], context[part]).argmax(-1)]
        hits += (likeliest == tokens[part]).sum(0)
    return [round(share, 5) for share in (hits / (tokens != IGNORED).sum(0).clamp(min=1)).tolist()]


def measure(
    mixer: FasterDecodeMixer, pairs: list[Pair], hidden: Float[Tensor, "n d"], rows: Int[Tensor, " v"]
) -> dict[str, Any]:
    """Return what ``mixer.json`` says of a mixer."""
    _, tokens = labels_of(pairs, mixer.config.num_positions, rows)
    context = contexts_of(pairs, mixer.config.num_context, rows)
    shares = accuracies(mixer, hidden, context, tokens)
    decoding = DecodingMixer(mixer, mixer.dtype, torch.device("cpu"))
    chain = MixerDrafter(decoding, mixer.config.num_positions, max_children=1)
    return {
        "accuracies": shares,
        "chain_tokens_per_step": round(replay(chain, pairs, hidden), 4),
        "tree_tokens_per_step": round(replay(MixerDrafter(decoding, TREE_NODES), pairs, hidden), 4),
        "validation_tokens": len(hidden),
    }


def train_mixer(model_dir: Path, text: Path, output: Path, settings: Settings) -> None:
    """Write the folder of the mixer.

    Raises:
        UserError: the target or the text is missing or damaged.
    """
    check_source(model_dir)
    if not (model_dir / "config.json").is_file():
        raise UserError(f"--model: {model_dir} is not a model folder; {made_by(model_dir)}")
    pairs = read_text(text)
    shortlist = choose_shortlist(pairs["train"], settings.shortlist_size)
    sources = {"model_sha256": sha256_of_all(model_dir.glob("*.safetensors")), "text_sha256": sha256_of(text)}
    work = prepared_work(output.with_name(f".{output.name}.partial"), {**asdict(settings), **sources})
    target = read_target(model_dir, pairs, shortlist, work, text.parent / "states")
    vocab_size, width = int(target["vocabulary"]), target["head"].shape[1]
    set_seed(settings.seed)
    mixer = FasterDecodeMixer(settings.config(model_dir, vocab_size, width, len(shortlist)))
    mixer.start_from(shortlist, target["head"])
    rows = torch.tensor(rows_of(shortlist, vocab_size))
    labels, _ = labels_of(pairs["train"], settings.num_positions, rows)
    data = States(target["train"], labels, context=contexts_of(pairs["train"], settings.num_context, rows))
    say(f"training {settings.num_slots} slots over {len(shortlist)} tokens on {len(labels)} states")
    curve = fit(mixer, data, settings, work, SAVE_STEPS, say)
    mixer.bfloat16()  # what it is decoded in, and half the file
    folder = work / "mixer"
    shutil.rmtree(folder, ignore_errors=True)
    mixer.save_pretrained(folder)
    measured = measure(mixer, pairs["validation"], target["validation"], rows)
    atomic_write(folder / "mixer.json", json.dumps({**asdict(settings), **measured}, indent=2) + "\n")
    write_loss_curve(folder, curve)
    publish(work, folder, output)
    say(f"{measured['tree_tokens_per_step']} tokens a step as a tree; the mixer is in {output}")


def say(line: str) -> None:
    """Tell the user what is being done."""
    print(f"train_mixer: {line}", file=sys.stderr, flush=True)


@command
def main() -> None:
    """Read the command line and do it."""
    run_rule(__doc__, Settings, train_mixer, "mixer")


if __name__ == "__main__":
    main()
