"""Decode forwards on CUDA as captured graphs: one launch a step in place of some hundreds.

At batch size 1 the kernels of a small model are shorter than the time that Python and the driver take to start them. A
CUDA graph records the kernels of one forward pass and starts them all at once. What it records is frozen: shapes,
addresses, and every number that came from Python. So all that differs from step to step enters through one static
tensor of integers, ``[3 + w, w]``: the rows' tokens, their positions, the cache rows that they write, and which node
sees which. The attention mask over the buffer is made of it inside the graph; the first written row is the length of
the committed prefix. One graph therefore serves every step of one width on one cache; see :func:`graph_width`.

A capture that fails (a driver that cannot, memory that runs out) ends the use of graphs for the model; its steps are
then run plainly, and :attr:`decoding.target.TargetModel.engine` says "eager" in place of "cuda-graph".

The logic is tested on a CPU against stand-ins of ``torch.cuda``, on a card by ``tests/test_on_device.py``. On an H200
a step of SmolLM2-135M took 2.5 ms as a graph and 21 ms kernel by kernel (docs/gpu.md).

Example::

    graphs = DecodeGraphs(weights, decode_width=16)
    found = graphs.read(cache, tree, last_position=2047)              # None: could not be captured, run it plainly
    logits, hidden = found                                            # of the tree's nodes, copied out of the graph
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from decoding.cache import KVCache, additive
from decoding.llama import LlamaWeights, forward
from decoding.tree import CandidateTree

DEVICE_TYPES = ("cuda",)
WIDEST = 256  # rows of a graph; what is wider (a prompt) is read once, and starting kernels is the least of its cost
MOST_GRAPHS = 10  # each holds the activations of its forward pass; those of every width up to the widest are nine
WARM_UPS = 3  # before a capture libraries choose their kernels and allocate their workspaces


def default_decode_width(dtype: torch.dtype, device: torch.device) -> int | None:
    """Return the rows that a decode forward is padded to, or None for as many as the tree has.

    Padded is where 16 rows cost what one costs: on GPUs, where one captured graph then serves every width, and in
    bfloat16 on CPUs with AMX. (Of models of 8 billion parameters they do not: ``decode_width: 1`` in their profiles.)
    Elsewhere padding would slow the autoregressive baseline down; float32 does not need it, since its rounding is too
    small to matter unless two tokens are all but tied.
    """
    if device.type == "cpu":
        return 16 if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported() else None
    return 16 if device.type in DEVICE_TYPES or dtype != torch.float32 else None


def graph_width(width: int, decode_width: int | None) -> int:
    """Return the rows that a tree of ``width`` nodes is padded to: few different ones, since each is a capture.

    The decode width where the tree is no wider, else the next power of two; a tree wider than any graph is not padded.
    """
    if decode_width is not None and width <= decode_width:
        return decode_width
    if width > WIDEST:
        return width
    return 1 << (width - 1).bit_length()


class Captured(NamedTuple):
    """A recorded forward pass; a replay reads ``numbers`` and overwrites ``logits`` and ``hidden``."""

    cache: weakref.ref[KVCache]  # the graph writes to its addresses, but does not keep it
    graph: torch.cuda.CUDAGraph
    numbers: Int[Tensor, "w3 w"]
    logits: Float[Tensor, "w v"]
    hidden: Float[Tensor, "w d"]


class DecodeGraphs:
    """The captured forward passes of one model, the last used ones.

    Args:
        weights: the model.
        decode_width: see :func:`graph_width`.
        most: graphs kept; beyond it the one that was not used for longest goes.

    Attributes:
        problem: why nothing is captured any more, in one line; None while capturing works.
        num_captures: captures so far.
    """

    def __init__(self, weights: LlamaWeights, decode_width: int | None, most: int = MOST_GRAPHS) -> None:
        self.weights, self.decode_width, self.most = weights, decode_width, most
        self.problem: str | None = None
        self.num_captures = 0
        self._captured: dict[tuple[int, int], Captured] = {}  # by cache and width, the last used one last

    @property
    def in_use(self) -> bool:
        """Whether forward passes have been captured, and none failed to be."""
        return self.num_captures > 0 and self.problem is None

    def width_of(self, tree_width: int) -> int:
        """Return the rows that a tree of ``tree_width`` nodes is padded to."""
        return graph_width(tree_width, self.decode_width)

    def widths(self, tree_width: int) -> list[int]:
        """Return the rows of all the graphs that trees of up to ``tree_width`` nodes are read by, ascending."""
        return sorted({self.width_of(width) for width in range(1, min(tree_width, WIDEST) + 1)})

    def read(
        self, cache: KVCache, tree: CandidateTree, last_position: int
    ) -> tuple[Float[Tensor, "w v"], Float[Tensor, "w d"]] | None:
        """Run ``tree``, padded, behind the committed prefix of ``cache``.

        Returns:
            Logits and hidden states of the nodes, as copies: they stay as they are when the graph is replayed. None
            where graphs cannot be captured, the tree is wider than any, or the cache has no room for the padding.
        """
        width = self.width_of(tree.width)
        if self.problem is not None or tree.width > WIDEST or cache.length + width > cache.capacity:
            return None
        numbers = numbers_of(tree, cache.length, width, last_position)
        captured = self._find(cache, numbers)
        if captured is None:
            return None
        captured.numbers.copy_(numbers)
        captured.graph.replay()
        return captured.logits[: tree.width].clone(), captured.hidden[: tree.width].clone()

    def _find(self, cache: KVCache, numbers: Int[Tensor, "w3 w"]) -> Captured | None:
        """Return the graph of this cache and width, captured now if it has not been."""
        key = (id(cache), numbers.shape[1])
        captured = self._captured.pop(key, None)
        if captured is None or captured.cache() is not cache:  # an id is given again once its cache is gone
            alive = {key: old for key, old in self._captured.items() if old.cache() is not None}
            self._captured = dict(list(alive.items())[1 - self.most :] if self.most > 1 else ())
            try:
                captured = capture(self.weights, cache, numbers)
            except RuntimeError as error:
                self.problem = told_reason(error)
                self._captured.clear()
                return None
            self.num_captures += 1
        self._captured[key] = captured
        return captured


def numbers_of(tree: CandidateTree, length: int, width: int, last_position: int) -> Int[Tensor, "w3 w"]:
    """Return all that one decode forward is told: tokens, positions, cache rows, and a row of sight for each node.

    Padding rows repeat the root and see it, so that they see something: a fully masked row would be NaN. A candidate
    behind the end of the context is read at its last position: the limit cuts it off in any case.
    """
    padding = width - tree.width
    numbers = torch.zeros(3 + width, width, dtype=torch.int64)
    numbers[:3] = torch.tensor(
        [
            tree.tokens + tree.tokens[:1] * padding,
            [min(length + depth, last_position) for depth in tree.depths + (0,) * padding],
            range(length, length + width),
        ]
    )
    numbers[3 : 3 + tree.width, : tree.width] = tree.attention_mask()
    numbers[3 + tree.width :, 0] = 1
    return numbers


def decode(
    weights: LlamaWeights, cache: KVCache, numbers: Int[Tensor, "w3 w"]
) -> tuple[Float[Tensor, "w v"], Float[Tensor, "w d"]]:
    """Return logits and hidden states; of what changes from step to step it reads ``numbers`` and the buffer alone."""
    tokens, positions, rows = numbers[:3]
    mask = mask_over_buffer(numbers[3:].bool(), rows[0], cache.capacity, weights.embedding.dtype)
    mask = mask.repeat(weights.num_heads // weights.num_kv_heads, 1)
    hidden = forward(weights, tokens, positions, cache, mask, rows)
    return weights.head.in_float32(hidden), hidden


def mask_over_buffer(
    sees: Bool[Tensor, "w w"], length: Int[Tensor, ""], capacity: int, dtype: torch.dtype
) -> Float[Tensor, "w capacity"]:
    """Return 0 where a row may see a cache row, -inf where not: the prefix, then what the tree lets it see."""
    width = sees.shape[0]
    nodes = torch.arange(capacity, device=sees.device) - length  # below 0: the prefix; from the width on: free rows
    visible = (nodes < 0) | (sees[:, nodes.clamp(0, width - 1)] & (nodes < width))
    return additive(visible, dtype)


def told_reason(error: RuntimeError) -> str:
    """Warn that something could not be recorded and is slower therefore; return why, in one line."""
    reason = first_line(error)
    warnings.warn(f"not recorded as a graph, and so run kernel by kernel: {reason}", RuntimeWarning, stacklevel=2)
    return reason


def first_line(error: RuntimeError) -> str:
    """Return why a capture failed, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]


def capture(weights: LlamaWeights, cache: KVCache, numbers: Int[Tensor, "w3 w"]) -> Captured:
    """Record the forward pass of ``numbers``; see :func:`record`."""
    graph, (static,), (logits, hidden) = record(
        lambda static: decode(weights, cache, static), [numbers], weights.embedding.device
    )
    return Captured(weakref.ref(cache), graph, static, logits, hidden)


def record(
    run: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], device: torch.device
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Record what ``run`` does with ``inputs``; return the graph, its static copies of the inputs, and its outputs.

    Recording runs nothing: the outputs are filled by the first replay. The warm-up runs on a stream of its own, as a
    capture must not see what it starts; what it writes to a cache the replay writes again.

    Raises:
        RuntimeError: it cannot be captured.
    """
    with torch.cuda.device(device):
        statics = tuple(given.to(device, copy=True) for given in inputs)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run(*statics)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = run(*statics)
    return graph, statics, outputs
