"""A parallel generator as a drafter: the twin's own text, whatever it drafts, and its passes counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from decoding import Generation, Sampling, SpeculativeDecoder, TargetModel
from shuffle.backbone import BackboneConfig
from shuffle.drafting import OutputDrafter, resumed
from shuffle.shufflelm.config import ShuffleConfig
from shuffle.shufflelm.model import ShuffleLM
from tests.decoding.tiny import greedy_of

SHAPE: dict[str, Any] = {"vocab_size": 24, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "eos_token_id": 2}
SHAPE |= {"max_position_embeddings": 64, "initializer_range": 0.4}
PROMPT = [5, 9, 4, 17, 1]


class Scripted:
    """Writes a given text in a given number of passes."""

    def __init__(self, text: Sequence[int], passes: int = 1) -> None:
        self.text, self.passes, self.calls = tuple(text), passes, 0

    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int, **others: Any) -> Generation:
        self.calls += 1
        text = self.text[:max_new_tokens]
        return Generation(text, len(prompt_ids), False, 0.0, (), prefill_forwards=self.passes)

    def generate_batch(self, prompts: Sequence[Sequence[int]], **others: Any) -> list[tuple[int, ...]]:
        raise NotImplementedError


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("twin")
    model = LlamaForCausalLM(BackboneConfig(**SHAPE).llama()).eval()
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    return folder, model


def real_drafter(target: TargetModel, folder: Path) -> OutputDrafter:
    return OutputDrafter.from_target(
        target,
        parts={"shufflelm": folder},
        sampling=Sampling(),
        generator="shuffle.shufflelm.generator:ShuffleGenerator",
    )


def test_a_perfect_draft_is_read_in_one_pass(twin: tuple[Path, LlamaForCausalLM]) -> None:
    target, text = TargetModel.from_pretrained(twin[0]), greedy_of(twin[1], PROMPT, 20)
    scripted = Scripted(text, passes=3)
    decoder = SpeculativeDecoder(target, OutputDrafter(scripted, 64))
    generation = decoder.generate(PROMPT, max_new_tokens=20)
    assert list(generation.output_ids) == text
    assert len(generation.steps) == 1
    assert generation.draft_forwards == 3
    decoder.generate(PROMPT, max_new_tokens=20)
    assert scripted.calls == 2  # once a text


@pytest.mark.parametrize("change", [{4: 7}, {0: 7}, {3: 7, 9: 7}, dict.fromkeys(range(20), 7)])
def test_a_wrong_draft_changes_nothing_but_the_passes(
    twin: tuple[Path, LlamaForCausalLM], change: dict[int, int]
) -> None:
    target, text = TargetModel.from_pretrained(twin[0]), greedy_of(twin[1], PROMPT, 20)
    wrong = [change.get(i, token) for i, token in enumerate(text)]
    generation = SpeculativeDecoder(target, OutputDrafter(Scripted(wrong), 64)).generate(PROMPT, max_new_tokens=20)
    assert list(generation.output_ids) == text
    # Each wrong place costs a pass; what is right behind it is taken.
    assert len(generation.steps) <= 1 + sum(wrong[i] != text[i] for i in range(len(text)))


@pytest.mark.parametrize(
    ("draft", "text", "place"),
    [
        ([4, 5, 6, 7], [4, 5], 2),  # agrees
        ([4, 5, 6, 7], [9], 1),  # one token is another
        ([4, 5, 6, 7], [4, 9, 5], 2),  # the text has one more
        ([4, 9, 5, 6], [4, 5], 3),  # the draft has one more
        ([4, 5], [4, 5, 6], 3),  # behind its end
        ([], [4], 1),
        ([4, 5], [], 0),
    ],
)
def test_a_draft_goes_on_where_it_is_nearest(draft: list[int], text: list[int], place: int) -> None:
    assert resumed(draft, text) == place


def test_a_real_generator_drafts_for_its_twin(twin: tuple[Path, LlamaForCausalLM], tmp_path: Path) -> None:
    torch.manual_seed(1)
    ShuffleLM(ShuffleConfig(**SHAPE, max_parallel_tokens=12)).save_pretrained(tmp_path)
    target = TargetModel.from_pretrained(twin[0])
    drafter = real_drafter(target, tmp_path)
    generation = SpeculativeDecoder(target, drafter).generate(PROMPT, max_new_tokens=20)
    assert list(generation.output_ids) == greedy_of(twin[1], PROMPT, 20)
    assert generation.draft_forwards > 0
    heads = sum(weight.nbytes for name, weight in drafter.generator.model.named_parameters() if "backbone" not in name)
    assert drafter.part_bytes == drafter.generator.target.weights.weight_bytes + heads


def test_a_prompt_that_leaves_no_room_for_slots_is_decoded_without_a_draft(
    twin: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    ShuffleLM(ShuffleConfig(**SHAPE, max_parallel_tokens=32)).save_pretrained(tmp_path)
    target, prompt = TargetModel.from_pretrained(twin[0]), PROMPT * 8
    drafter = real_drafter(target, tmp_path)
    generation = SpeculativeDecoder(target, drafter).generate(prompt, max_new_tokens=20)
    assert list(generation.output_ids) == greedy_of(twin[1], prompt, 20)
    assert generation.draft_forwards == 0


def test_a_generator_that_breaks_is_no_generator_without_a_draft(twin: tuple[Path, LlamaForCausalLM]) -> None:
    class Broken(Scripted):
        def generate(self, *arguments: Any, **others: Any) -> Any:
            raise ValueError("matrix contains invalid numeric entries")

    target = TargetModel.from_pretrained(twin[0])
    decoder = SpeculativeDecoder(target, OutputDrafter(Broken([]), 64))
    with pytest.raises(ValueError, match="invalid numeric entries"):
        decoder.generate(PROMPT, max_new_tokens=4)


def test_mistakes_are_told(twin: tuple[Path, LlamaForCausalLM], tmp_path: Path) -> None:
    ShuffleLM(ShuffleConfig(**SHAPE | {"vocab_size": 25}, max_parallel_tokens=4)).save_pretrained(tmp_path)
    target = TargetModel.from_pretrained(twin[0])
    given: dict[str, Any] = {"sampling": Sampling(), "generator": "shuffle.shufflelm.generator:ShuffleGenerator"}
    with pytest.raises(ValueError, match="has 25 tokens, the target 24"):
        OutputDrafter.from_target(target, parts={"shufflelm": tmp_path}, **given)
    with pytest.raises(ValueError, match="one generator, not from none"):
        OutputDrafter.from_target(target, parts={}, **given)
    with pytest.raises(ValueError, match="num_draft_tokens must be 1 or more"):
        OutputDrafter(Scripted([]), 64, num_draft_tokens=0)
