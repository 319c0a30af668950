"""The forward pass of a Llama-family model, written for narrow batches over a preallocated cache.

The weights are those of a Hugging Face checkpoint, read tensor by tensor from safetensors; query, key and value (and
gate and up) are one product each. Differences between the family's members are data: biases (Qwen2), normalised
queries and keys (Qwen3). Per layer, on ``x [w, d]``:

    x <- x + O(attention(rotate(QKV(rms(x)))));   x <- x + Down(silu(Gate(rms(x))) * Up(rms(x)))

Keys and values go to a cache, or a pool of them, which is also what attention asks (:mod:`decoding.cache`).

Example::

    weights = LlamaWeights.load(config, read_tensor, dtype, device)
    hidden = forward(weights, tokens, positions, cache, mask)        # [w, d]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from decoding.linear import Linear, make_linear

if TYPE_CHECKING:
    from decoding.cache import KVCache
    from decoding.pool import CachePool, Prompts

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")

ReadTensor = Callable[[str], Tensor | None]
MakeLinear = Callable[[Tensor, Tensor | None], Any]


@dataclass(frozen=True)
class Layer:
    """One block's weights; ``query_norm`` and ``key_norm`` are None unless the model has them."""

    input_norm: Float[Tensor, " d"]
    query_key_value: Linear
    query_norm: Float[Tensor, " hd"] | None
    key_norm: Float[Tensor, " hd"] | None
    output: Linear
    mlp_norm: Float[Tensor, " d"]
    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class LlamaWeights:
    """All weights, laid out for decoding.

    Attributes:
        weight_bytes: bytes that one forward pass reads: every layer, the last norm and the head, not the embeddings.
        cosine, sine: ``[positions, 1, head_dim]`` of the rotary embedding; the sine carries the sign of the rotation.
    """

    config: PretrainedConfig
    embedding: Float[Tensor, "v d"]
    layers: tuple[Layer, ...]
    norm: Float[Tensor, " d"]
    head: Linear
    cosine: Float[Tensor, "p 1 hd"]
    sine: Float[Tensor, "p 1 hd"]
    weight_bytes: int

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return int(self.config.num_attention_heads)

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads."""
        return int(self.config.num_key_value_heads)

    @property
    def places(self) -> list[torch.device]:
        """The device of each layer."""
        return [layer.input_norm.device for layer in self.layers]

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return head_dim_of(self.config)

    @classmethod
    def load(
        cls,
        config: PretrainedConfig,
        read: ReadTensor,
        dtype: torch.dtype,
        device: torch.device,
        make_linear: MakeLinear = make_linear,
        places: Sequence[torch.device] = (),
    ) -> LlamaWeights:
        """Read the checkpoint's tensors with ``read(name)``, which returns None for a tensor that it does not have.

        ``make_linear`` lays a weight and its bias out for the engine that will read them. ``places`` are the devices of
        the layers, where not all are on ``device``: see :mod:`decoding.placement`.

        Raises:
            ValueError: the model is not of the Llama family, needs what this forward pass lacks, or misses a tensor.
        """
        check_supported(config)
        reader = _Reader(read, dtype, device, make_linear)
        embedding = reader.tensor("model.embed_tokens.weight")
        layers = tuple(
            _load_layer(reader.on(place), f"model.layers.{i}.")
            for i, place in enumerate(places or [device] * config.num_hidden_layers)
        )
        reader.on(device)
        norm = reader.tensor("model.norm.weight")
        tied = config.tie_word_embeddings
        head = reader.lay_out(embedding, None) if tied else reader.linear("lm_head")
        if not tied:
            reader.bytes_read -= embedding.nbytes  # only the looked-up rows of it are read
        cosine, sine = rotary_tables(config, dtype, device)
        return cls(config, embedding, layers, norm, head, cosine, sine, reader.bytes_read)


def check_supported(config: PretrainedConfig) -> None:
    """Refuse what :func:`forward` would compute wrongly."""
    if config.model_type not in SUPPORTED:
        raise ValueError(f"model type {config.model_type!r} is not of the Llama family; known: {', '.join(SUPPORTED)}")
    if getattr(config, "quantization_config", None):
        raise ValueError("quantised checkpoints (quantization_config) are not supported; use one in bfloat16")
    if config.hidden_act != "silu":
        raise ValueError(f"activation {config.hidden_act!r} is not supported; known: silu")
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if "sliding_attention" in layer_types or (window and config.model_type == "mistral"):
        raise ValueError(f"sliding-window attention (sliding_window={window}) is not supported")
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope_type in ("dynamic", "longrope"):
        raise ValueError(f"rope_type {rope_type!r} changes with the length and is not supported")


def head_dim_of(config: PretrainedConfig) -> int:
    """Return the width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rotary_tables(
    config: PretrainedConfig, dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "p 1 hd"], Float[Tensor, "p 1 hd"]]:
    """Return cosine and signed sine of every position up to the model's context, as transformers computes them.

    The rotation of halves, ``(-x2, x1)``, is a roll by half a head with the sign moved into the sine.
    """
    rope, width, scale = config.rope_parameters, head_dim_of(config), 1.0
    frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, width, 2) / width)
    if rope["rope_type"] != "default":
        frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, None)
    angles = torch.arange(config.max_position_embeddings)[:, None, None] * torch.cat((-frequencies, frequencies))
    return (angles.cos() * scale).to(device, dtype), (angles.sin() * scale).to(device, dtype)


class _Reader:
    """Reads tensors by name, converts them and counts their bytes."""

    def __init__(self, read: ReadTensor, dtype: torch.dtype, device: torch.device, make_linear: MakeLinear) -> None:
        self.read, self.dtype, self.device, self.make_linear = read, dtype, device, make_linear
        self.bytes_read = 0

    def on(self, device: torch.device) -> _Reader:
        """Put what is read from now on on ``device``."""
        self.device = device
        return self

    def optional(self, name: str) -> Tensor | None:
        tensor = self.read(name)
        if tensor is None:
            return None
        # A copy: the tensor may be a view of the file, which would stay mapped as a whole as long as one view lives.
        tensor = tensor.to(device=self.device, dtype=self.dtype, copy=True)
        self.bytes_read += tensor.nbytes
        return tensor

    def tensor(self, name: str) -> Tensor:
        tensor = self.optional(name)
        if tensor is None:
            raise ValueError(f"the checkpoint has no tensor {name!r}")
        return tensor

    def linear(self, *names: str) -> Any:
        """Build one layer from several that read the same input."""
        weight = torch.cat([self.tensor(f"{name}.weight") for name in names])
        biases = [bias for name in names if (bias := self.optional(f"{name}.bias")) is not None]
        return self.lay_out(weight, torch.cat(biases) if biases else None)

    def lay_out(self, weight: Tensor, bias: Tensor | None) -> Any:
        """Build a layer from what was read; its weight counts with the bytes that it is kept in."""
        layer = self.make_linear(weight, bias)
        self.bytes_read += layer.num_bytes - weight.nbytes
        return layer


def _load_layer(reader: _Reader, prefix: str) -> Layer:
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    return Layer(
        input_norm=reader.tensor(prefix + "input_layernorm.weight"),
        query_key_value=reader.linear(attention + "q_proj", attention + "k_proj", attention + "v_proj"),
        query_norm=reader.optional(attention + "q_norm.weight"),
        key_norm=reader.optional(attention + "k_norm.weight"),
        output=reader.linear(attention + "o_proj"),
        mlp_norm=reader.tensor(prefix + "post_attention_layernorm.weight"),
        gate_up=reader.linear(mlp + "gate_proj", mlp + "up_proj"),
        down=reader.linear(mlp + "down_proj"),
    )


def forward(
    weights: LlamaWeights,
    tokens: Int[Tensor, " w"],
    positions: Int[Tensor, " w"],
    cache: KVCache | CachePool | Prompts,
    mask: Float[Tensor, ...] | None,
    rows: Int[Tensor, " w"] | None = None,
) -> Float[Tensor, "w d"]:
    """Run ``w`` tokens through the model, writing their keys and values behind the cached prefix.

    Args:
        weights: the model.
        tokens: ids of the rows.
        positions: their positions.
        cache: receives their keys and values.
        mask: 0 where a row may see a cache row, -inf where not, in the shape that the cache attends with. None for a
            causal pass over an empty cache (prefill).
        rows: the cache rows that they write, where the device must be told; see :meth:`KVCache.write`.

    Returns:
        Last hidden states ``[w, d]``, normalised: the input of the head.
    """
    eps = weights.config.rms_norm_eps
    x = F.embedding(tokens, weights.embedding)
    cosine, sine = weights.cosine[positions], weights.sine[positions]
    for index, layer in enumerate(weights.layers):
        if x.device != layer.input_norm.device:  # a model that is spread over several: on to the next one
            x, cosine, sine = (tensor.to(layer.input_norm.device) for tensor in (x, cosine, sine))
            mask = None if mask is None else mask.to(x.device)
        h = F.rms_norm(x, (x.shape[-1],), layer.input_norm, eps)
        attended = _attention(weights, layer, index, h, cosine, sine, cache, mask, rows)
        x = layer.output.add(attended, x)
        h = F.rms_norm(x, (x.shape[-1],), layer.mlp_norm, eps)
        gate, up = layer.gate_up(h).chunk(2, dim=-1)
        x = layer.down.add(F.silu(gate).mul_(up), x)
    return F.rms_norm(x.to(weights.norm.device), (x.shape[-1],), weights.norm, eps)


def _attention(
    weights: LlamaWeights,
    layer: Layer,
    index: int,
    h: Float[Tensor, "w d"],
    cosine: Float[Tensor, "w 1 hd"],
    sine: Float[Tensor, "w 1 hd"],
    cache: KVCache | CachePool | Prompts,
    mask: Float[Tensor, ...] | None,
    rows: Int[Tensor, " w"] | None,
) -> Float[Tensor, "w hhd"]:
    width, heads, kv_heads = h.shape[0], weights.num_heads, weights.num_kv_heads
    qkv = layer.query_key_value(h).view(width, heads + 2 * kv_heads, weights.head_dim)
    values = qkv[:, heads + kv_heads :]
    if layer.query_norm is None or layer.key_norm is None:
        rotated = rotate(qkv[:, : heads + kv_heads], cosine, sine)
    else:
        eps = weights.config.rms_norm_eps
        queries = F.rms_norm(qkv[:, :heads], layer.query_norm.shape, layer.query_norm, eps)
        keys = F.rms_norm(qkv[:, heads : heads + kv_heads], layer.key_norm.shape, layer.key_norm, eps)
        rotated = rotate(torch.cat([queries, keys], dim=1), cosine, sine)
    queries, keys = rotated[:, :heads], rotated[:, heads:]
    cache.write(index, keys, values, rows)
    if mask is None:
        attended = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            is_causal=True,
            enable_gqa=True,
        )[0].transpose(0, 1)
    else:
        attended = cache.attend(index, queries, mask)
    return attended.reshape(width, heads * weights.head_dim)


def rotate(
    x: Float[Tensor, "w h hd"], cosine: Float[Tensor, "w 1 hd"], sine: Float[Tensor, "w 1 hd"]
) -> Float[Tensor, "w h hd"]:
    """Apply the rotary position embedding (Su et al. 2021) in the half-split layout."""
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, dims=-1), sine)
