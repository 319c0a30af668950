"""The steps from slots to text, and the files that show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from shuffle.shufflelm.config import ShuffleConfig
from shuffle.shufflelm.model import ShuffleLM
from shuffle.shufflelm.visualize import visualize_shuffle

WORDS = ["$x", "\n", " ", *(f"w{i}" for i in range(3, 20))]


class Tokenizer:
    """A tokenizer of whole words, some of which are hard to draw."""

    def encode(self, text: str) -> list[int]:
        return [WORDS.index(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(WORDS[i] for i in ids)


def make(**own: Any) -> ShuffleLM:
    torch.manual_seed(1)
    shape = {"vocab_size": 20, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "rotary_dim": 8}
    slots = {"max_parallel_tokens": 8, "max_position_embeddings": 32, "eos_token_id": 2}
    model = ShuffleLM(ShuffleConfig(**shape, **slots, **own)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.5)
    return model


def test_neighbours_that_say_the_same_are_one_token_of_the_text() -> None:
    model = make(matching="ctc", position_head="none")
    said = torch.nn.functional.one_hot(torch.tensor([[3, 3, 4, 4, 4, 3, 5, 5]]), 20).float()
    keep = torch.tensor([[1.0, 1.0, 1.0, -1.0, 1.0, 1.0, -1.0, 1.0]])
    model.say = lambda *_: (said, None, keep)
    shown = visualize_shuffle(model, Tokenizer(), "w3", save_animation=False)
    assert shown.order == (0, 2, 4, 5, 7)
    assert shown.steps[-1] == (2, ("w3", "w4", "w4", "w3", "w5"))


def test_the_end_stands_behind_the_text_wherever_its_slot_does() -> None:
    model = make(matching="ctc", position_head="none")
    said = torch.nn.functional.one_hot(torch.tensor([[3, 2, 4, 2, 5, 3, 3, 3]]), 20).float()
    keep = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0]])
    model.say = lambda *_: (said, None, keep)
    shown = visualize_shuffle(model, Tokenizer(), "w3", save_animation=False)
    generated = model.generate(torch.tensor([[3]]), max_new_tokens=8)[0, 1:].tolist()
    assert shown.steps[-1] == (2, ("w3", "w4", "w5", " "))
    assert [WORDS[token] for token in generated] == list(shown.steps[-1][1])


def test_steps_are_all_slots_the_kept_ones_and_the_text(tmp_path: Path) -> None:
    model, prompt = make(), "w3 w4 w5"
    shown = visualize_shuffle(model, Tokenizer(), prompt, output_path=tmp_path / "new" / "x.gif")
    with torch.no_grad():
        output = model(torch.tensor([[3, 4, 5]]))
    said = [WORDS[i] for i in output.logits[0].argmax(-1)]
    kept = [k for k in range(8) if output.keep_logits[0, k] >= 0]
    mean = [float(output.shuffle_scores[0, k].div(0.05).softmax(-1) @ torch.arange(8.0)) for k in range(8)]
    assert 1 < len(kept) < 8
    assert shown.steps == [
        (0, tuple(said)),
        (1, tuple(said[k] for k in kept)),
        (2, tuple(said[k] for k in sorted(kept, key=lambda k: mean[k]))),
    ]
    with Image.open(tmp_path / "new" / "x.gif") as gif:
        assert gif.n_frames > 10
        first = gif.convert("RGB").tobytes()
        gif.seek(gif.n_frames - 1)
        assert gif.convert("RGB").tobytes() != first
    with Image.open(tmp_path / "new" / "x.png") as png:
        assert png.width > 600


def test_writes_nothing_unless_asked(tmp_path: Path) -> None:
    ids = visualize_shuffle(make(), Tokenizer(), [3, 4, 5], save_animation=False, output_path=tmp_path / "x.gif")
    assert ids.steps == visualize_shuffle(make(), Tokenizer(), "w3 w4 w5", save_animation=False).steps
    assert not list(tmp_path.iterdir())


def test_refuses_an_empty_prompt() -> None:
    with pytest.raises(ValueError, match="empty"):
        visualize_shuffle(make(), Tokenizer(), "", save_animation=False)
