"""Weights in int8: the numbers are those of the rounded weights, the bytes are counted, what cannot run is refused.

That a row does not depend on the rows beside it is tested with the other types, in test_native.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILY, logits_of, save_model
from torch import Tensor

from decoding import CandidateTree, TargetModel
from decoding.native import Int8Linear, NativeLinear, build

PROMPT = [5, 9, 3, 17, 40, 9, 3, 30, 22]
TREE = CandidateTree(tokens=(20, 21, 23, 22, 24, 25, 26), parents=(-1, 0, 0, 1, 2, 2, 5))

try:
    build.load_library()
except build.BuildError as error:
    pytest.skip(f"no native engine here: {error}", allow_module_level=True)


def load(folder: Path, **options: Any) -> TargetModel:
    chosen: dict[str, Any] = {"dtype": torch.bfloat16, "weights": "int8"} | options
    return TargetModel.from_pretrained(folder, **chosen)


def rounded(weight: Tensor) -> Tensor:
    """The weight that int8 stands for, row by row, the slow way."""
    rows = []
    for row in weight.bfloat16().float():
        step = float(row.abs().max()) / 127
        rows.append(torch.tensor([round(float(x) / step) * step for x in row]) if step else row)
    return torch.stack(rows)


def test_panels_and_scales_hold_every_weight_to_half_a_step() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(37, 10, generator=generator)
    weight[5] = 0
    weight[6] *= 1e4
    layer = Int8Linear(weight)
    assert layer.weight.dtype == torch.int8
    assert layer.weight.shape == (3, 5, 16, 2)
    assert layer.scale is not None
    assert layer.scale.shape == (48,)
    whole = layer.weight.transpose(1, 2).reshape(48, 10)
    assert whole.abs().max() == 127
    assert not whole[37:].any()
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((whole * layer.scale[:, None])[:37] - weight).abs().le(step / 2 * 1.001).all()
    assert layer.num_bytes == 37 * 10 + 4 * 37


@pytest.mark.parametrize("member", FAMILY)
def test_the_numbers_are_those_of_the_rounded_weights(tmp_path: Path, member: str) -> None:
    model = save_model(tmp_path / "model", member)
    target = load(tmp_path / "model")
    if model.config.tie_word_embeddings:  # the head is rounded, the embedding is not
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_layer = parameter.dim() > 1 and "embed" not in name
            parameter.copy_(rounded(parameter) if is_layer else parameter.bfloat16())
    model.save_pretrained(tmp_path / "rounded")
    exact = TargetModel.from_pretrained(tmp_path / "rounded")
    plain = TargetModel.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    results = {}
    for name, one in {"int8": target, "exact": exact, "plain": plain}.items():
        cache = one.new_cache(64)
        one.prefill(cache, PROMPT)
        results[name] = one.read(cache, TREE).logits
    torch.testing.assert_close(results["exact"][0], logits_of(model, [*PROMPT, 20]), atol=2e-4, rtol=1e-3)
    error = {name: float((results[name] - results["exact"]).norm()) for name in ("int8", "plain")}
    assert error["int8"] < 0.5 * error["plain"]  # what is left is the rounding of activations


def test_an_outlier_in_one_row_costs_the_others_nothing(tmp_path: Path) -> None:
    save_model(tmp_path)
    weight = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    spoilt = weight.clone()
    spoilt[3, 4] = 1e6
    one, other = Int8Linear(weight), Int8Linear(spoilt)
    rows = [row for row in range(32) if row != 3]
    assert one.scale is not None
    assert other.scale is not None
    assert torch.equal(one.scale[rows], other.scale[rows])


@pytest.mark.parametrize("member", ["llama", "llama-untied-scaled", "qwen2"])
def test_weight_bytes_count_whole_numbers_and_scales(tmp_path: Path, member: str) -> None:
    model = save_model(tmp_path, member)
    tied = model.config.tie_word_embeddings
    expected = 0
    for name, parameter in model.named_parameters():
        if "embed" in name and not tied:
            continue
        if parameter.dim() > 1:
            expected += parameter.numel() + 4 * parameter.shape[0]
        else:
            expected += 2 * parameter.numel()
    target = load(tmp_path)
    assert target.weights.weight_bytes == expected
    assert (target.weight_type, target.parameter_bytes, target.engine) == ("int8", 1, "native")
    assert target.weights.embedding.dtype == target.new_cache(8).buffer.dtype == torch.bfloat16


def test_other_weights_are_as_they_were(tmp_path: Path) -> None:
    save_model(tmp_path)
    target = load(tmp_path, weights=None)
    assert (target.weight_type, target.parameter_bytes) == (None, 2)
    assert isinstance(target.weights.head, NativeLinear)
    assert target.weights.head.scale is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "eager"}, "weights in int8 need the native engine, which cannot run here: the eager one was asked"),
        ({"device": "meta"}, "weights in int8 need the native engine, which cannot run here: device meta"),
        ({"dtype": torch.float32}, "weights in int8 are computed in bfloat16, not in float32"),
        ({"weights": "int4"}, "weights must be int8 or None, not 'int4'"),
    ],
)
def test_what_int8_cannot_run_on_is_refused_in_one_line(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    save_model(tmp_path)
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        load(tmp_path, **options)
