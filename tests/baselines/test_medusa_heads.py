"""The heads: their formula by a naive loop, and a folder of them written and read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from baselines.medusa_heads import (
    DecodingHeads,
    HeadsRecord,
    MedusaHeads,
    check_fits,
    load_heads,
    rows_of,
    save_heads,
)
from decoding import part_layers

K, D, SHORTLIST = 3, 8, (2, 5, 6, 9, 11)


def random_heads() -> MedusaHeads:
    torch.manual_seed(0)
    heads = MedusaHeads(K, D, len(SHORTLIST))
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_(0, 0.5)
    return heads


def naive(tensors: dict[str, torch.Tensor], hidden: list[float]) -> list[list[float]]:
    """One number at a time, from the names of the contract."""
    logits = []
    for k in range(K):
        weight, bias = tensors[f"heads.{k}.residual.weight"].tolist(), tensors[f"heads.{k}.residual.bias"].tolist()
        moved = [sum(w * h for w, h in zip(weight[i], hidden, strict=True)) + bias[i] for i in range(D)]
        state = [h + m / (1 + math.exp(-m)) for h, m in zip(hidden, moved, strict=True)]
        rows = tensors[f"heads.{k}.output.weight"].tolist()
        logits.append([sum(w * s for w, s in zip(row, state, strict=True)) for row in rows])
    return logits


def test_both_forwards_compute_the_formula_of_the_saved_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_layers, "can_multiply", lambda device: False)  # which rounds: see the next test
    heads = random_heads()
    save_heads(tmp_path, heads, HeadsRecord(K, D, SHORTLIST))
    hidden = torch.randn(4, D)
    expected = torch.tensor([naive(load_file(tmp_path / "heads.safetensors"), row) for row in hidden.tolist()])
    torch.testing.assert_close(heads(hidden), expected.transpose(0, 1), atol=1e-5, rtol=1e-4)
    packed = DecodingHeads(heads, torch.float32, torch.device("cpu"))
    for row in range(4):
        torch.testing.assert_close(packed(hidden[row]), expected[row], atol=1e-5, rtol=1e-4)
    fewer = DecodingHeads(heads, torch.float32, torch.device("cpu"), num_heads=2)
    torch.testing.assert_close(fewer(hidden[0]), expected[0, :2], atol=1e-5, rtol=1e-4)


def test_the_compiled_code_reads_them_as_bfloat16_rounds_them() -> None:
    heads, hidden = random_heads().requires_grad_(False), torch.randn(D)
    expected = heads(hidden[None])[:, 0]
    found = DecodingHeads(heads, torch.float32, torch.device("cpu"))(hidden)
    assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())
    bfloat16 = DecodingHeads(heads, torch.bfloat16, torch.device("cpu"))(hidden)
    assert float((bfloat16 - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_untrained_heads_say_what_the_output_rows_say() -> None:
    heads = MedusaHeads(K, D, len(SHORTLIST))
    rows, hidden = torch.randn(len(SHORTLIST), D), torch.randn(2, D)
    with torch.no_grad():
        heads.output_weight.copy_(rows)
    torch.testing.assert_close(heads(hidden), (hidden @ rows.T).expand(K, -1, -1))


def test_a_folder_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    accuracies = ((0.5, 0.1), (0.25, 0.125), (0.0, 0.0))
    heads, record = random_heads(), HeadsRecord(K, D, SHORTLIST, accuracies, ((0,), (0, 1)))
    save_heads(tmp_path, heads, record)
    loaded, read = load_heads(tmp_path)
    assert read == record
    for (name, wrote), (_, got) in zip(heads.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(wrote, got), name
    assert {file.name for file in tmp_path.iterdir()} == {"heads.json", "heads.safetensors"}


def break_shape(folder: Path) -> None:
    tensors = load_file(folder / "heads.safetensors")
    tensors["heads.1.output.weight"] = tensors["heads.1.output.weight"][:-1].clone()
    save_file(tensors, folder / "heads.safetensors")


def break_json(folder: Path, **entries: object) -> None:
    record = json.loads((folder / "heads.json").read_text())
    (folder / "heads.json").write_text(json.dumps(record | entries))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_shape, r"heads.1.output.weight is \[4, 8\], not \[5, 8\]"),
        (lambda folder: (folder / "heads.safetensors").unlink(), "cannot be read"),
        (lambda folder: (folder / "heads.safetensors").write_bytes(b"\x80\x04pickle"), "cannot be read"),
        (lambda folder: (folder / "heads.json").unlink(), "does not describe"),
        (lambda folder: (folder / "heads.json").write_text("[1"), "does not describe"),
        (lambda folder: break_json(folder, heads=3), "unknown key 'heads'"),
        (lambda folder: break_json(folder, num_heads=4), "cannot be read"),
        (lambda folder: break_json(folder, shortlist=[2, 2, 6, 9, 11]), "a token twice"),
        (lambda folder: break_json(folder, error="no text to train on"), "no text to train on"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path: Path, damage, message: str) -> None:
    save_heads(tmp_path, random_heads(), HeadsRecord(K, D, SHORTLIST))
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_heads(tmp_path)
    assert "\n" not in str(caught.value)


def test_heads_of_another_target_are_refused() -> None:
    record = HeadsRecord(K, D, SHORTLIST)
    check_fits(record, D, 12)
    with pytest.raises(ValueError, match="hidden size 8, the target has 9"):
        check_fits(record, 9, 12)
    with pytest.raises(ValueError, match="token 11, the target's vocabulary has 11"):
        check_fits(record, D, 11)


def test_rows_of_tokens() -> None:
    assert rows_of([1, 4], 6) == [-100, 0, -100, -100, 1, -100]
