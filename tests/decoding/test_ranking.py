"""The compiled scan, and torch's selection, against a full sort."""

from __future__ import annotations

import pytest
import torch

from decoding.native.build import BuildError, load_library
from decoding.ranking import _scan, _select, choices, most_likely


def reference(logits: torch.Tensor, k: int) -> tuple[list[list[int]], torch.Tensor]:
    ids = [sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))[:k] for row in logits.tolist()]
    return ids, logits.log_softmax(-1).gather(1, torch.tensor(ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width", "k"), [(1, 5, 8), (3, 16, 1), (2, 17, 3), (5, 1003, 8), (1, 48, 48)])
def test_the_most_likely_come_first_and_the_first_of_equal_ones(
    rows: int, width: int, k: int, dtype: torch.dtype
) -> None:
    logits = torch.randn(rows, width, generator=torch.Generator().manual_seed(width)).mul(3).round().to(dtype)
    ids, log_probabilities = reference(logits.float(), k)
    top = most_likely(logits, k)
    assert top.ids.tolist() == ids
    torch.testing.assert_close(top.log_probabilities, log_probabilities, atol=1e-5, rtol=1e-5)
    assert choices(logits) == tuple(row[0] for row in ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("levels", "k"), [(1, 5), (2, 8), (5, 40), (50, 300), (50, 1)])
def test_what_is_selected_among_many_equal_ones_is_what_a_stable_sort_puts_first(
    levels: int, k: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(levels)
    values = torch.randn(levels, generator=generator).mul(9).to(dtype)
    values[: levels // 2 : 3] = -torch.inf
    logits = values[torch.randint(levels, (6, 300), generator=generator)]
    logits[1] = torch.where(torch.rand(300, generator=generator) < 0.5, 0.0, -0.0)
    logits[2, 7] = torch.inf
    expected = logits.float().sort(dim=-1, descending=True, stable=True)
    monkeypatch.setattr(torch.Tensor, "sort", None)  # it would cost more than drafting
    found, ids, totals = _select(logits, k)
    assert torch.equal(ids, expected.indices[:, :k])
    assert torch.equal(found, expected.values[:, :k])
    assert torch.equal(totals, logits.float().logsumexp(-1))


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_rows_in_order(order: str) -> None:
    row = torch.arange(100.0) if order == "ascending" else -torch.arange(100.0)
    assert most_likely(row[None], 4).ids[0].tolist() == ([99, 98, 97, 96] if order == "ascending" else [0, 1, 2, 3])


def test_tokens_that_cannot_come_are_never_chosen() -> None:
    logits = torch.full((1, 40), -torch.inf)
    logits[0, 33] = -1e30
    assert choices(logits) == (33,)


def test_the_compiled_scan_is_what_ran() -> None:
    try:
        load_library()
    except BuildError as error:
        pytest.skip(str(error))
    assert _scan(torch.zeros(2, 20), 3, with_totals=True) is not None
    assert _scan(torch.zeros(20, 2).T, 3, with_totals=True) is None  # rows whose numbers do not lie side by side


@pytest.mark.parametrize("rows", [slice(1, 4), slice(0, 5, 2), slice(2, 3)])
def test_the_rest_of_longer_rows_is_not_looked_at(rows: slice) -> None:
    whole = torch.randn(5, 60, generator=torch.Generator().manual_seed(1))
    whole[:, 40:] = 100.0
    part = whole[rows, :40]
    ids, log_probabilities = reference(part, 3)
    top = most_likely(part, 3)
    assert top.ids.tolist() == ids
    torch.testing.assert_close(top.log_probabilities, log_probabilities, atol=1e-5, rtol=1e-5)
    assert choices(part) == tuple(row[0] for row in ids)
