"""The target model: prefill a prompt, then read candidate trees against the cache.

Two engines run the forward pass. ``native`` is compiled for the processor (:mod:`decoding.native`): a row's arithmetic
does not depend on the rows beside it, so every method is exact in every precision. ``eager`` is torch, for every other
device and wherever there is no compiler. There, in reduced precision, the logits of a row depend a little on how many
rows are computed with it and on how long the attended buffer is, so that a method verifying 8 tokens at once could
differ from one token at a time at a near-tie. ``decode_width`` removes most of the cause: every decode forward, the
autoregressive one too, is padded to the same number of rows and attends over the whole preallocated buffer under a
mask. Where reading the weights dominates (a CPU with matrix units, any GPU) the padding is free; see
:func:`decoding.graphs.default_decode_width`. On CUDA the eager engine's decode forwards are captured as graphs
(:mod:`decoding.graphs`), and ``engine`` then says ``cuda-graph``.

Weights may be kept, and multiplied, in int8 (``weights="int8"``): another model than the one in bfloat16, faster to
read and nearly the same. A method is compared with a baseline of the same weights.

Example::

    target = TargetModel.from_pretrained("results/models/smollm2-135m", dtype=torch.bfloat16)
    cache = target.new_cache(capacity=512)
    output = target.prefill(cache, prompt_ids)                        # logits [1, V], of the last token
    output = target.read(cache, CandidateTree.chain(root, draft))     # logits [W, V], hidden [W, d]
    cache.keep([0, 1])
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from decoding import graphs
from decoding.cache import KVCache, additive
from decoding.llama import LlamaWeights, ReadTensor, forward
from decoding.loading import end_tokens, layout_for, open_tensors
from decoding.native import BLOCK, SCALE_BYTES, Int8Linear, NativeEngine, NativeLinear
from decoding.placement import spread
from decoding.pool import CachePool, read_together
from decoding.tree import CandidateTree


class TreeOutput(NamedTuple):
    """What the target says at each node of a tree."""

    logits: Float[Tensor, "w v"]
    hidden: Float[Tensor, "w d"]


class TargetModel:
    """A Llama-family causal language model with its forward pass laid out for decoding.

    Args:
        weights: see :class:`LlamaWeights`; loaded with ``NativeLinear``, they are run by the native engine.
        decode_width: rows of every decode forward of the eager engine; wider trees are read unpadded. None: no padding.
        end_token_ids: tokens that end a text.
        folder: where it was loaded from, so that what is trained for it can be checked against it.

    Attributes:
        max_context: longest sequence, prompt and output together, in tokens.
        native: the compiled engine, where it runs.
        weight_type: what the weights are kept in where that is not ``dtype``: int8 or None.
        places: the device of each layer, where they are on several; else empty.
        reads_together: a token of each of several texts is one forward pass, see :meth:`read_each`.
    """

    def __init__(
        self,
        weights: LlamaWeights,
        *,
        decode_width: int | None,
        end_token_ids: Sequence[int] = (),
        folder: Path | None = None,
    ) -> None:
        self.weights = weights
        self.native = NativeEngine(weights) if isinstance(weights.head, NativeLinear) else None
        self.folder = folder
        self.decode_width = decode_width
        self.end_token_ids = frozenset(end_token_ids)
        self.max_context = int(weights.config.max_position_embeddings)
        self.device = weights.embedding.device
        self.dtype = weights.embedding.dtype
        self.weight_type = "int8" if isinstance(weights.head, Int8Linear) else None
        self.places = weights.places if len(set(weights.places)) > 1 else []
        self.reads_together = not self.places
        can_capture = self.native is None and self.device.type in graphs.DEVICE_TYPES and not self.places
        self._graphs = graphs.DecodeGraphs(weights, decode_width) if can_capture else None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        decode_width: int | str | None = "default",
        engine: str = "auto",
        weights: str | None = None,
        devices: Sequence[torch.device] = (),
    ) -> TargetModel:
        """Load a local folder in the Hugging Face layout with safetensors weights.

        ``engine`` is native, eager, or auto: native where it can be. ``weights`` is int8, for the native engine alone
        and beside ``dtype`` bfloat16, or None for those of ``dtype``; the embeddings stay in ``dtype``. ``devices`` are
        those that the layers are spread over (:mod:`decoding.placement`), ``device`` the first of them.

        Raises:
            FileNotFoundError: there are no safetensors in the folder.
            ValueError: the model is not of the Llama family, or native or int8 was asked for and cannot be.
        """
        folder, device = Path(folder), torch.device(device)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with ExitStack() as stack:
            target = cls.from_tensors(
                config,
                open_tensors(folder, stack),
                dtype=dtype,
                device=device,
                decode_width=decode_width,
                engine=engine,
                weights=weights,
                end_token_ids=end_tokens(folder, config),
                devices=devices,
            )
        target.folder = folder
        return target

    @classmethod
    def from_tensors(
        cls,
        config: PretrainedConfig,
        read: ReadTensor,
        *,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
        decode_width: int | str | None = "default",
        engine: str = "auto",
        weights: str | None = None,
        end_token_ids: Sequence[int] = (),
        devices: Sequence[torch.device] = (),
    ) -> TargetModel:
        """Lay out the tensors that ``read(name)`` returns, as :meth:`from_pretrained` does those of a folder."""
        device = torch.device(device)
        # The compiled engine reads one memory.
        spread_over = f"the layers are on {len(devices)} devices" if len(devices) > 1 else None
        make = layout_for(engine, weights, config, dtype, device, problem=spread_over)
        places = spread(config, devices) if len(devices) > 1 else ()
        loaded = LlamaWeights.load(config, read, dtype, devices[0] if places else device, make, places)
        width = graphs.default_decode_width(dtype, device) if decode_width == "default" else decode_width
        if isinstance(loaded.head, NativeLinear):
            width = None  # no row depends on another: padding would change nothing
        return cls(loaded, decode_width=width, end_token_ids=end_token_ids)  # type: ignore[arg-type]

    @property
    def engine(self) -> str:
        """What has run the forward passes so far: native, cuda-graph, or eager, as soon as one capture has failed."""
        if self.native is not None:
            return "native"
        return "cuda-graph" if self._graphs is not None and self._graphs.in_use else "eager"

    @property
    def captures(self) -> bool:
        """Whether forward passes are captured as graphs here, if they can be."""
        return self._graphs is not None

    @property
    def parameter_bytes(self) -> float:
        """Bytes of one weight, its part of a scale included."""
        return 1 + SCALE_BYTES / BLOCK if self.weight_type == "int8" else self.dtype.itemsize

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self.weights.embedding.shape[0])

    def capacity_for(self, num_tokens: int, tree_width: int) -> int:
        """Return the cache capacity for ``num_tokens`` whose last step may add a tree behind them.

        Rounded up to 256 rows: the same for every method whose trees are no wider than 64, since in the eager
        engine the length of the buffer is part of how attention rounds.
        """
        widest = tree_width if self._graphs is None else self._graphs.width_of(tree_width)
        rows = num_tokens + max(widest, self.decode_width or 0, 64)
        return -(-rows // 256) * 256

    def new_cache(self, capacity: int) -> KVCache:
        """Allocate a cache of ``capacity`` rows."""
        weights = self.weights
        return KVCache(
            num_layers=len(weights.layers),
            num_kv_heads=weights.num_kv_heads,
            head_dim=weights.head_dim,
            capacity=capacity,
            dtype=self.dtype,
            device=self.device,
            places=self.places,
        )

    def new_caches(self, count: int, capacity: int) -> list[KVCache]:
        """Allocate caches for ``count`` texts whose tokens are read together (:meth:`read_each`), where that can be."""
        if self.native is None and self.reads_together:
            return CachePool(count, self.weights, capacity).caches()
        return [self.new_cache(capacity) for _ in range(count)]

    @torch.inference_mode()
    def prefill(self, cache: KVCache, prompt_ids: Sequence[int]) -> TreeOutput:
        """Read the prompt into an empty cache and commit it; return the output of its last token, ``[1, ...]``.

        Raises:
            ValueError: the prompt is empty or does not fit, or the cache is not empty.
        """
        if not prompt_ids or cache.length:
            raise ValueError(f"prefill of {len(prompt_ids)} tokens into a cache of length {cache.length}")
        cache.check_room(len(prompt_ids))
        if self.native is not None:
            length = len(prompt_ids)
            hidden, logits = self.native.forward(cache, prompt_ids, range(length), range(-1, length - 1), length - 1)
            cache.keep(range(length))
            return TreeOutput(logits, hidden)
        tokens = torch.tensor(prompt_ids, device=self.device)
        positions = torch.arange(len(prompt_ids), device=self.device)
        hidden = forward(self.weights, tokens, positions, cache, mask=None)[-1:]
        cache.keep(range(len(prompt_ids)))
        return TreeOutput(self.weights.head.in_float32(hidden), hidden)

    @torch.inference_mode()
    def read(self, cache: KVCache, tree: CandidateTree) -> TreeOutput:
        """Run one forward pass over a candidate tree; its rows stay uncommitted until ``cache.keep``."""
        found = None if self._graphs is None else self._graphs.read(cache, tree, self.max_context - 1)
        return self.read_once(cache, tree) if found is None else TreeOutput(*found)

    @torch.inference_mode()
    def read_once(self, cache: KVCache, tree: CandidateTree, first_row: int = 0) -> TreeOutput:
        """As :meth:`read`, of what is no step and so would not pay for the capture of a graph.

        Nothing is wanted of the nodes before ``first_row`` but their keys and values: the output has rows from it on.
        """
        if self.native is None:
            return self._read_plainly(cache, tree, first_row)
        cache.check_room(tree.width)
        last = self.max_context - 1  # see _read_plainly
        positions = [min(cache.length + depth, last) for depth in tree.depths]
        hidden, logits = self.native.forward(cache, tree.tokens, positions, tree.parents, first_row)
        return TreeOutput(logits, hidden)

    @torch.inference_mode()
    def extend(self, cache: KVCache, tokens: Sequence[int]) -> TreeOutput:
        """Read and commit tokens of a text behind the committed ones; return the output of the last, ``[1, ...]``."""
        output = self.read_once(cache, CandidateTree.chain(tokens[0], tokens[1:]), first_row=len(tokens) - 1)
        cache.keep(range(len(tokens)))
        return output

    @torch.inference_mode()
    def prepare(self, cache: KVCache, tree_width: int) -> None:
        """Do now, on an empty cache, what the first reads of trees up to ``tree_width`` would do: capture their graphs.

        Raises:
            ValueError: the cache is not empty.
        """
        if cache.length:
            raise ValueError(f"a cache of length {cache.length} is in use")
        for width in () if self._graphs is None else self._graphs.widths(tree_width):
            self.read(cache, CandidateTree.chain(0, [0] * (width - 1)))

    def _read_plainly(self, cache: KVCache, tree: CandidateTree, first_row: int = 0) -> TreeOutput:
        """Run the eager forward pass, kernel by kernel."""
        padding = max(0, (self.decode_width or 0) - tree.width)
        cache.check_room(tree.width + padding)
        # Padding rows repeat the root, and see it.
        tokens = torch.tensor(tree.tokens + tree.tokens[:1] * padding, device=self.device)
        depths = torch.tensor(tree.depths + (0,) * padding, device=self.device)
        # A candidate behind the end of the context is read at its last position: the limit cuts it off in any case.
        positions = (depths + cache.length).clamp_(max=self.max_context - 1)
        mask = additive(tree.visible(cache.length, cache.capacity, padding), self.dtype).to(self.device)
        mask = mask.repeat(self.weights.num_heads // self.weights.num_kv_heads, 1)
        hidden = forward(self.weights, tokens, positions, cache, mask)[first_row:]
        logits, wanted = self.weights.head.in_float32(hidden), tree.width - first_row
        return TreeOutput(logits[:wanted], hidden[:wanted])

    @torch.inference_mode()
    def read_each(self, caches: Sequence[KVCache], tokens: Sequence[int]) -> TreeOutput:
        """Read and commit a token of each text; row i says what follows in text i. One pass for :meth:`new_caches`."""
        for cache in caches:
            cache.check_room(1)
        if self.native is not None:
            hidden, logits = self.native.forward_each(caches, tokens)
        elif (found := read_together(caches, tokens)) is not None:
            logits, hidden = found
        else:
            # Not as graphs: there would be one for each cache.
            trees = [CandidateTree((token,), (-1,)) for token in tokens]
            outputs = [self._read_plainly(cache, tree) for cache, tree in zip(caches, trees, strict=True)]
            logits, hidden = (torch.cat(rows) for rows in zip(*outputs, strict=True))
        for cache in caches:
            cache.keep([0])
        return TreeOutput(logits, hidden)
