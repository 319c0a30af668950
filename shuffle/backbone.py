"""What every parallel generator is built on: a Llama that reads under any mask, and its form for the decoding engine.

A generator differs from its autoregressive twin only in how it generates, so all of them have one backbone: the layers
of a Llama (transformers'), the same width, the same tokenizer, tied embeddings. What a generator needs beside the
vocabulary (slots, a mask token, a query vector) are further rows of the embedding, the ids from ``vocab_size`` on. So
its weights are a Llama's, and the engine that runs the twin runs it too (:mod:`decoding.blocks`).

Example::

    class Mine(ParallelModel): ...
    hidden = model.read(model.embed(input_ids), positions, visible)     # [B, T, d], visible [B, T, T]
    logits = model.head(hidden)                                          # [B, T, vocab_size]
    target = model.engine(torch.bfloat16)                                # a decoding.TargetModel
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaModel, PreTrainedConfig, PreTrainedModel

from decoding import TargetModel
from decoding.cache import additive


class BackboneConfig(PreTrainedConfig):
    """The backbone's shape, under one set of names for every generator; a subclass adds what is its own.

    Attributes:
        vocab_size: V, the tokenizer's ids; special ids follow.
        intermediate_size: width of the MLP; 4 d, where None.
        num_kv_heads: key and value heads; as many as ``num_heads``, where None.
    """

    model_type = "shufflebench-backbone"

    vocab_size: int = 32000
    hidden_size: int = 256
    intermediate_size: int | None = None
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 512
    rope_parameters: dict[str, Any] | None = None
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_heads and self.head_dim is None:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")

    @property
    def num_special_tokens(self) -> int:
        """Rows of the embedding behind the vocabulary."""
        return 0

    @property
    def padding_id(self) -> int:
        """What a text is padded with: its own id, else an end token, which stands behind every text anyway."""
        return next((i for i in (self.pad_token_id, *self.end_token_ids) if i is not None), 0)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        ends = self.eos_token_id
        return () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)

    def llama(self) -> LlamaConfig:
        """Return the backbone's configuration, its vocabulary with the special ids."""
        llama = LlamaConfig(
            vocab_size=self.vocab_size + self.num_special_tokens,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size or 4 * self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_position_embeddings,
            rope_parameters=self.rope_parameters,
            rms_norm_eps=self.rms_norm_eps,
            initializer_range=self.initializer_range,
            tie_word_embeddings=self.tie_word_embeddings,
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
        )
        llama._attn_implementation = self._attn_implementation
        return llama

    @classmethod
    def like(cls, llama: PreTrainedConfig, **own: Any) -> Self:
        """Return the configuration whose backbone is ``llama``'s.

        Raises:
            ValueError: it is not a plain Llama.
        """
        if llama.model_type != "llama" or llama.attention_bias or llama.mlp_bias:
            raise ValueError(f"a backbone must be a Llama without biases, not {llama.model_type!r}")
        return cls(
            vocab_size=llama.vocab_size,
            hidden_size=llama.hidden_size,
            intermediate_size=llama.intermediate_size,
            num_layers=llama.num_hidden_layers,
            num_heads=llama.num_attention_heads,
            num_kv_heads=llama.num_key_value_heads,
            head_dim=llama.head_dim,
            max_position_embeddings=llama.max_position_embeddings,
            rope_parameters=llama.rope_parameters,
            rms_norm_eps=llama.rms_norm_eps,
            tie_word_embeddings=llama.tie_word_embeddings,
            bos_token_id=llama.bos_token_id,
            eos_token_id=llama.eos_token_id,
            pad_token_id=llama.pad_token_id,
            **own,
        )


class ParallelModel(PreTrainedModel):
    """A Llama under any mask, with a head over the vocabulary; the base of every generator."""

    config_class = BackboneConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.backbone = LlamaModel(config.llama())
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # again by a subclass that adds weights

    def special_id(self, index: int) -> int:
        """Return the id of a special token, the ``index``-th row of the embedding behind the vocabulary."""
        if not 0 <= index < self.config.num_special_tokens:
            raise ValueError(f"special token {index} of {self.config.num_special_tokens}")
        return int(self.config.vocab_size + index)

    def embed(self, ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        """Return the embeddings of token and special ids."""
        embeddings: Tensor = self.backbone.embed_tokens(ids)
        return embeddings

    def head(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """Return logits over the vocabulary, without the special ids."""
        tied = self.config.tie_word_embeddings
        rows = self.backbone.embed_tokens.weight[: self.config.vocab_size] if tied else self.lm_head.weight
        return F.linear(hidden, rows)

    def read(
        self,
        embeddings: Float[Tensor, "b t d"],
        positions: Int[Tensor, "b t"],
        visible: Bool[Tensor, "b t t"],
    ) -> Float[Tensor, "b t d"]:
        """Run the layers.

        Args:
            embeddings: of the rows.
            positions: their positions, in any order.
            visible: True where the row may see the column; a row must see something.

        Returns:
            The last hidden states, normalised.
        """
        mask = attention_input(visible, self.backbone.config._attn_implementation, embeddings.dtype)
        x, rotary = embeddings, self.backbone.rotary_emb(embeddings, position_ids=positions)
        for layer in self.backbone.layers:
            # is_causal: what a kernel takes for granted where it is given no mask.
            x = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=rotary, is_causal=False)
        normalised: Tensor = self.backbone.norm(x)
        return normalised

    @torch.no_grad()
    def start_from(self, llama: PreTrainedModel) -> None:
        """Copy a causal language model's weights; the special rows stay as they are."""
        tensors = {name.removeprefix("model."): value for name, value in llama.state_dict().items()}
        rows = self.backbone.embed_tokens.weight
        rows[: self.config.vocab_size] = tensors.pop("embed_tokens.weight")
        if not self.config.tie_word_embeddings:
            self.lm_head.weight.copy_(tensors["lm_head.weight"])
        tensors.pop("lm_head.weight", None)
        found = self.backbone.load_state_dict(tensors, strict=False)
        if found.unexpected_keys or found.missing_keys != ["embed_tokens.weight"]:
            raise ValueError(f"not this backbone's weights: {found}")

    @classmethod
    def from_backbone(cls, name_or_path: str | Path, **own: Any) -> Self:
        """Start from a pretrained Llama: a local folder or a hub id, in safetensors. ``own`` are the config's own keys.

        Raises:
            ValueError: it is not a plain Llama.
        """
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        model = cls(cls.config_class.like(config, **own))
        llama = AutoModelForCausalLM.from_pretrained(
            name_or_path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
        model.start_from(llama)
        return model

    def engine(self, dtype: torch.dtype, device: str | torch.device = "cpu", engine: str = "auto") -> TargetModel:
        """Return the backbone laid out for decoding; its logits have the special ids behind the vocabulary."""
        tensors = {f"model.{name}": value.detach() for name, value in self.backbone.state_dict().items()}
        if not self.config.tie_word_embeddings:
            special = self.config.num_special_tokens
            tensors["lm_head.weight"] = F.pad(self.lm_head.weight.detach(), (0, 0, 0, special))
        return TargetModel.from_tensors(
            self.config.llama(),
            tensors.get,
            dtype=dtype,
            device=device,
            engine=engine,
            end_token_ids=self.config.end_token_ids,
        )


def attention_input(visible: Bool[Tensor, "b t t"], implementation: str, dtype: torch.dtype) -> Any:
    """Return what a Llama layer of transformers takes as its mask, for one of its attention back ends.

    Raises:
        ValueError: the back end cannot express ``visible``, or is unknown.
    """
    if implementation == "sdpa":
        return visible[:, None]
    if implementation == "eager":
        return additive(visible, dtype)[:, None]
    if implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        batch, length, _ = visible.shape
        return create_block_mask(
            lambda b, h, q, k: visible[b, q, k], batch, None, length, length, device=visible.device
        )
    if implementation.startswith("flash_attention"):
        columns = visible.any(1)
        # What flash-attention can say of a mask without order: which columns are padding, the same for every row.
        if not torch.equal(visible, columns[:, None].expand_as(visible)):
            raise ValueError(f"{implementation} shows the same columns to every row; use sdpa or flex_attention")
        return None if bool(columns.all()) else columns
    raise ValueError(f"unknown attention back end {implementation!r}: eager, sdpa, flex_attention or flash_attention_2")
