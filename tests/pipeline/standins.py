"""A tiny target with a tokenizer, and stand-ins for what is trained for it: a draft model and Medusa heads."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from baselines.datastore import Datastore
from baselines.medusa_heads import HeadsRecord, MedusaHeads, save_heads
from shuffle.fasterdecodemixer.config import MixerConfig
from shuffle.fasterdecodemixer.model import FasterDecodeMixer
from tests.decoding.tiny import SHAPE, save_model


def save_target(folder: Path, seed: int = 0, prefix: str = "w") -> Path:
    """Save a random model that reads and writes words w0, w1, ...; another ``prefix`` makes it another vocabulary."""
    save_model(folder, seed=seed)
    vocabulary = {f"{prefix}{i}": i for i in range(SHAPE["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=f"{prefix}0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"{prefix}2").save_pretrained(folder)
    return folder


def save_parts(folder: Path) -> dict[str, Path]:
    """Save a draft model unlike the target of seed 0, random heads and mixer, a datastore; return their folders."""
    draft, heads = save_target(folder / "draft", seed=1), folder / "heads"
    (draft / "draft.json").write_text(json.dumps({"layers": [0]}))
    torch.manual_seed(2)
    medusa = MedusaHeads(2, SHAPE["hidden_size"], SHAPE["vocab_size"])
    for parameter in medusa.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    heads.mkdir()
    words, accuracies = tuple(range(SHAPE["vocab_size"])), ((0.5, 0.2), (0.3, 0.1))
    save_heads(heads, medusa, HeadsRecord(2, SHAPE["hidden_size"], words, accuracies))
    shape = {"vocab_size": len(words), "shortlist_size": len(words), "hidden_size": SHAPE["hidden_size"]}
    mixer = FasterDecodeMixer(MixerConfig(**shape))
    mixer.start_from(words, torch.randn(len(words), SHAPE["hidden_size"]))
    mixer.save_pretrained(folder / "mixer")
    (folder / "mixer" / "mixer.json").write_text("{}")
    datastore, rng = folder / "datastore", random.Random(3)
    datastore.mkdir()
    Datastore.of(rng.choices(range(3, 12), k=30) for _ in range(20)).save(datastore)  # words that requests() has
    (datastore / "datastore.json").write_text("{}")
    return {"draft": draft, "heads": heads, "mixer": folder / "mixer", "datastore": datastore}


def requests(count: int = 6, seed: int = 0, limit: int = 30) -> list[dict[str, Any]]:
    """Return prompts of twenty words of a few, so that what has been may come again."""
    generator = random.Random(seed)
    found = []
    for prompt_id in range(count):
        ids = [generator.randint(3, 12) for _ in range(20)]
        asked = {"prompt_id": prompt_id, "doc_id": prompt_id, "prompt": "", "prompt_ids": ids}
        found.append(asked | {"until": ["w2"], "max_new_tokens": limit})
    return found
