"""Candidate trees: depths, children and masks against a walk up each branch."""

from __future__ import annotations

import pytest
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
