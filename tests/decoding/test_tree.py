"""Candidate trees: depths, children and masks against a walk up each branch."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decoding import CandidateTree


@st.composite
def trees(draw: st.DrawFn) -> CandidateTree:
    width = draw(st.integers(1, 12))
    parents = [-1] + [draw(st.integers(0, node - 1)) for node in range(1, width)]
    return CandidateTree(tuple(range(width)), tuple(parents))


@given(trees())
def test_a_node_sees_itself_and_its_ancestors_and_no_one_else(tree: CandidateTree) -> None:
    mask = tree.attention_mask()
    for node in range(tree.width):
        ancestors, at = set(), node
        while at >= 0:
            ancestors.add(at)
            at = tree.parents[at]
        assert {column for column in range(tree.width) if mask[node, column]} == ancestors
        assert tree.depths[node] == len(ancestors) - 1
        assert all(tree.parents[child] == node for child in tree.children[node])
    assert sum(map(len, tree.children)) == tree.width - 1


def mask_node_by_node(tree: CandidateTree) -> torch.Tensor:
    mask = torch.eye(tree.width, dtype=torch.bool)
    for node, parent in enumerate(tree.parents[1:], start=1):
        mask[node] |= mask[parent]
    return mask


@pytest.mark.parametrize("width", [1, 2, 3, 16, 64, 241])
def test_a_mask_is_the_one_that_is_made_node_by_node_and_its_own(width: int) -> None:
    chance = random.Random(width)
    parents = (-1, *(chance.randrange(max(0, node - 5), node) for node in range(1, width)))
    tree = CandidateTree(tuple(range(width)), parents)
    mask = tree.attention_mask()
    assert (mask.dtype, mask.shape) == (torch.bool, (width, width))
    assert torch.equal(mask, mask_node_by_node(tree))
    mask.fill_(True)
    assert torch.equal(tree.attention_mask(), mask_node_by_node(tree))


def test_a_mask_takes_no_operation_of_torch_for_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = CandidateTree(tuple(range(9)), (-1, 0, 0, 1, 1, 2, 2, 3, 0))
    expected = mask_node_by_node(tree)
    for name in ("__ior__", "__getitem__", "__setitem__"):
        monkeypatch.setattr(torch.Tensor, name, None)
    mask = tree.attention_mask()
    monkeypatch.undo()
    assert torch.equal(mask, expected)


def test_a_chain_is_a_tree_of_only_children() -> None:
    tree = CandidateTree.chain(7, [11, 12])
    assert (tree.tokens, tree.parents, tree.depths) == ((7, 11, 12), (-1, 0, 1), (0, 1, 2))
    assert tree.is_chain
    assert not CandidateTree((7, 11, 12), (-1, 0, 0)).is_chain


@pytest.mark.parametrize(
    ("tokens", "parents"), [((), ()), ((1, 2), (-1,)), ((1, 2), (-1, 1)), ((1, 2, 3), (-1, 2, 0)), ((1,), (0,))]
)
def test_a_tree_without_order_is_refused(tokens: tuple[int, ...], parents: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"tree|parents"):
        CandidateTree(tokens, parents)
