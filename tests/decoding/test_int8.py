"""Products in int8: the numbers are those of rounded weights and inputs, bytes are counted, what cannot run is refused.

That a row does not depend on the rows beside it is tested with the other types, in test_native.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILY, logits_of, save_model
from torch import Tensor
from transformers import PreTrainedModel

from decoding import CandidateTree, TargetModel
from decoding.native import Int8Linear, NativeLinear, build
from decoding.native.layers import BLOCK, PANEL

PROMPT = [5, 9, 3, 17, 40, 9, 3, 30, 22]
TREE = CandidateTree(tokens=(20, 21, 23, 22, 24, 25, 26), parents=(-1, 0, 0, 1, 2, 2, 5))

try:
    build.load_library()
except build.BuildError as error:
    pytest.skip(f"no native engine here: {error}", allow_module_level=True)


def load(folder: Path, **options: Any) -> TargetModel:
    chosen: dict[str, Any] = {"dtype": torch.bfloat16, "weights": "int8"} | options
    return TargetModel.from_pretrained(folder, **chosen)


def rounded(numbers: Tensor, steps: torch.dtype = torch.float32) -> Tensor:
    """What int8 makes of the last axis, block by block, the slow way; a weight's steps are numbers of bfloat16."""
    rows = []
    for row in numbers.reshape(-1, numbers.shape[-1]):
        blocks = []
        for block in row.split(BLOCK):
            step = float((block.abs().max() / 127).to(steps))
            blocks.append(torch.tensor([round(float(x) / step) * step for x in block]) if step else block)
        rows.append(torch.cat(blocks))
    return torch.stack(rows).view_as(numbers)


def unpacked(layer: Int8Linear) -> tuple[Tensor, Tensor]:
    """Read whole numbers ``[out, in]`` and steps ``[out, in / 32]`` back from a layer's panels."""
    panels, blocks, _ = layer.weight.shape
    steps = layer.weight[..., : 2 * PANEL].contiguous().view(torch.bfloat16).transpose(1, 2).flatten(0, 1)
    place = build.load_library().int8_place()
    numbers = layer.weight[..., 2 * PANEL :].reshape(panels, blocks, BLOCK // place, PANEL, place)
    whole = numbers.permute(0, 3, 1, 2, 4).reshape(panels * PANEL, blocks * BLOCK)
    return whole.int() - 128, steps.float()


def test_panels_hold_every_weight_to_half_a_step() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(37, 70, generator=generator)
    weight[5, :BLOCK] = 0
    weight[6] *= 1e4
    layer = Int8Linear(weight)
    assert (layer.num_outputs, layer.num_inputs) == (37, 96)
    assert layer.weight.shape == (3, 3, 2 * PANEL + PANEL * BLOCK)
    whole, steps = unpacked(layer)
    assert whole.abs().max() == 127
    assert not whole[37:].any()
    assert not whole[:, 70:].any()
    held = (whole * steps.repeat_interleave(BLOCK, 1))[:37, :70]
    assert (held - weight).abs().le(steps.repeat_interleave(BLOCK, 1)[:37, :70] / 2 * 1.001).all()
    assert not held[5, :BLOCK].any()
    assert layer.num_bytes == 37 * 70 + 2 * 37 * 3


def in_steps(model: PreTrainedModel) -> PreTrainedModel:
    """Make a model's layers round weights and inputs as int8 does, all else being numbers of bfloat16."""
    if model.config.tie_word_embeddings:  # the head is rounded, the embedding is not
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = rounded(module.weight.data, torch.bfloat16)
            module.register_forward_pre_hook(lambda layer, inputs: (rounded(inputs[0]),))
    return model


@pytest.mark.parametrize("member", FAMILY)
def test_the_numbers_are_those_of_rounded_weights_times_rounded_inputs(tmp_path: Path, member: str) -> None:
    """With no attention nothing rounds to bfloat16 on the way, and the slow model's numbers are met to its own sums."""
    model = save_model(tmp_path, member)
    for layer in model.model.layers:
        for parameter in layer.self_attn.o_proj.parameters():
            parameter.data.zero_()
    model.save_pretrained(tmp_path)
    exact, target = logits_of(model, [*PROMPT, 20]), load(tmp_path)
    slow = logits_of(in_steps(model), [*PROMPT, 20])
    cache = target.new_cache(64)
    target.prefill(cache, PROMPT)
    found = target.read(cache, TREE).logits[0]
    assert float((found - slow).norm()) < 0.05 * float((slow - exact).norm())


@pytest.mark.parametrize("member", FAMILY)
def test_attention_is_part_of_it(tmp_path: Path, member: str) -> None:
    """It rounds to bfloat16, which moves inputs across a step here and there: no further off than steps are."""
    errors = {"int8": 0.0, "slow": 0.0}
    for seed in range(4):
        model = save_model(tmp_path / str(seed), member, seed=seed)
        exact, target = logits_of(model, [*PROMPT, 20]), load(tmp_path / str(seed))
        cache = target.new_cache(64)
        target.prefill(cache, PROMPT)
        errors["int8"] += float((target.read(cache, TREE).logits[0] - exact).square().mean())
        errors["slow"] += float((logits_of(in_steps(model), [*PROMPT, 20]) - exact).square().mean())
    assert errors["int8"] < 4 * errors["slow"]


def test_an_outlier_in_one_block_costs_the_others_nothing(tmp_path: Path) -> None:
    save_model(tmp_path)
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    spoilt = weight.clone()
    spoilt[3, 4] = 1e6
    (one, steps), (other, spoilt_steps) = unpacked(Int8Linear(weight)), unpacked(Int8Linear(spoilt))
    differs = one != other
    assert differs[3, :BLOCK].any()
    differs[3, :BLOCK] = False
    assert not differs.any()
    assert (steps != spoilt_steps).sum() == 1


@pytest.mark.parametrize("member", ["llama", "llama-untied-scaled", "qwen2"])
def test_weight_bytes_count_whole_numbers_and_scales(tmp_path: Path, member: str) -> None:
    model = save_model(tmp_path, member)
    tied = model.config.tie_word_embeddings
    expected = 0
    for name, parameter in model.named_parameters():
        if "embed" in name and not tied:
            continue
        if parameter.dim() > 1:
            expected += parameter.numel() + 2 * parameter.shape[0] * -(-parameter.shape[1] // BLOCK)
        else:
            expected += 2 * parameter.numel()
    target = load(tmp_path)
    assert target.weights.weight_bytes == expected
    assert (target.weight_type, target.parameter_bytes, target.engine) == ("int8", 34 / 32, "native")
    assert target.weights.embedding.dtype == target.new_cache(8).buffer.dtype == torch.bfloat16


def test_other_weights_are_as_they_were(tmp_path: Path) -> None:
    save_model(tmp_path)
    target = load(tmp_path, weights=None)
    assert (target.weight_type, target.parameter_bytes) == (None, 2)
    assert type(target.weights.head) is NativeLinear


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "eager"}, "weights in int8 need the native engine, which cannot run here: the eager one was asked"),
        ({"device": "meta"}, "weights in int8 need the native engine, which cannot run here: device meta"),
        ({"dtype": torch.float32}, "weights in int8 go with bfloat16, not with float32"),
        ({"weights": "int4"}, "weights must be int8 or None, not 'int4'"),
    ],
)
def test_what_int8_cannot_run_on_is_refused_in_one_line(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    save_model(tmp_path)
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        load(tmp_path, **options)
