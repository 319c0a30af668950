"""The distribution that is sampled from, against transformers' own filters and by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from decoding import Sampling


@pytest.mark.parametrize(
    "sampling", [Sampling(0.7), Sampling(1.0, top_k=5), Sampling(1.3, top_p=0.8), Sampling(0.9, 7, 0.6)]
)
def test_filters_equal_those_of_transformers(sampling: Sampling) -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    torch.testing.assert_close(sampling.probabilities(logits).float(), scores.softmax(-1))


def test_greedy_is_a_point_at_the_largest_logit() -> None:
    assert Sampling().probabilities(torch.tensor([0.1, 3.0, 2.9])).tolist() == [0.0, 1.0, 0.0]


def test_top_p_keeps_the_first_token_however_small_p_is() -> None:
    assert Sampling(1.0, top_p=1e-6).probabilities(torch.tensor([0.0, 2.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(arguments: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Sampling(**arguments)
