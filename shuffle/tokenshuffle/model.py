r"""A class-conditional image transformer that predicts a whole window of tokens a step.

The backbone has a row for each window of the image in reading order (``layers.py``). Row k is window k-1, nothing for
the first, told the class and the place of window k (a special token of the class, of the line and of the column, added
to it); it says the s^2 tokens of window k, each by itself given what came before:

    row_k = shuffle(window_{k-1}) + class + line_k + column_k
    loss  = -1/n  sum_k  sum_{j in window k}  log p(y_j | class, windows before k)

With a window of 1 the two added layers are absent: that is plain next-token prediction, the baseline. In training the
class is hidden now and then, so that the same weights also know images of no class, which guidance needs. Example::

    model = TokenShuffleTransformer(TokenShuffleConfig(vocab_size=16, grid_size=8, window=2))
    loss = model(class_ids=classes, image_ids=ids, labels=ids).loss       # classes [B], ids [B, 8, 8]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache
from transformers.utils.generic import ModelOutput

from shuffle.backbone import ParallelModel, attention_input
from shuffle.examples import Example
from shuffle.tokenshuffle.config import TokenShuffleConfig
from shuffle.tokenshuffle.layers import TokenShuffle, TokenUnshuffle, from_windows, keep_size, to_windows


@dataclass
class TokenShuffleOutput(ModelOutput):
    """The loss where there are labels, and logits over the codes, ``[B, H, W, V]``."""

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "b h w v"] | None = None


def collate_images(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return a batch of square images: an example's prompt is its class, its target the codes in reading order."""
    ids = torch.tensor([example.target_ids for example in examples])
    side = math.isqrt(ids.shape[1])
    images = ids.view(len(examples), side, side)
    classes = torch.tensor([example.prompt_ids[0] for example in examples])
    return {"class_ids": classes, "image_ids": images, "labels": images}


class TokenShuffleTransformer(ParallelModel):
    """Predicts the tokens of a window, all at once, from the class and the windows before it."""

    config_class = TokenShuffleConfig
    collate = staticmethod(collate_images)

    def __init__(self, config: TokenShuffleConfig) -> None:
        super().__init__(config)
        shape = (config.hidden_size, config.window, config.shuffle_blocks)
        self.shuffle = TokenShuffle(*shape) if config.window > 1 else None
        self.unshuffle = TokenUnshuffle(*shape) if config.window > 1 else None
        self.post_init()
        for layer in (self.shuffle, self.unshuffle):
            if layer is not None:  # a Llama's small weights would all but drown what goes through
                keep_size(layer)

    @property
    def no_class_id(self) -> int:
        """What is asked for in place of a class where none is."""
        return int(self.config.num_classes)

    def forward(
        self,
        class_ids: Int[Tensor, " b"],
        image_ids: Int[Tensor, "b h w"],
        labels: Int[Tensor, "b h w"] | None = None,
    ) -> TokenShuffleOutput:
        """Return logits of every token given the windows before its own, and the loss if there are ``labels``.

        In training mode a share of the classes is hidden, drawn from torch's global RNG.

        Raises:
            ValueError: a class is unknown, or the image is not of the configured size.
        """
        self._check(class_ids, image_ids)
        if self.training and self.config.class_dropout:
            hidden = torch.rand(class_ids.shape, device=class_ids.device) < self.config.class_dropout
            class_ids = class_ids.masked_fill(hidden, self.no_class_id)
        windows = to_windows(image_ids, self.config.window)
        told = self.conditions(class_ids)
        rows = torch.cat([told[:, :1], told[:, 1:] + self.embed_windows(windows[:, :-1])], dim=1)
        logits = self.window_logits(self.read_rows(rows))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 2).float(), to_windows(labels, self.config.window).flatten())
        return TokenShuffleOutput(loss, from_windows(logits, self.config.window))

    def conditions(self, class_ids: Int[Tensor, " b"]) -> Float[Tensor, "b n_s d"]:
        """Return what each row is told: the class, and the line and the column of the window that it is to say."""
        return self.embed_classes(class_ids)[:, None] + self.embed_places()

    def embed_classes(self, class_ids: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Return what a row is told of its class."""
        return self.embed(class_ids + self.config.vocab_size)

    def embed_places(self) -> Float[Tensor, "n_s d"]:
        """Return what each row is told of its place."""
        side, first = self.config.windows_a_side, self.config.vocab_size + self.config.num_classes + 1
        places = self.embed(torch.arange(first, first + 2 * side, device=self.device))
        return (places[:side, None] + places[None, side:]).flatten(0, 1)

    def embed_windows(
        self, windows: Int[Tensor, "b k s_s"], codes: Float[Tensor, "v c"] | None = None
    ) -> Float[Tensor, "b k d"]:
        """Return a row for each window of tokens; ``codes`` are :meth:`compressed_codes`, where they are at hand."""
        if self.shuffle is None:
            return self.embed(windows[..., 0])
        narrow = self.shuffle.compress(self.embed(windows)) if codes is None else F.embedding(windows, codes)
        return self.shuffle.merge(narrow)

    def compressed_codes(self) -> Float[Tensor, "v c"] | None:
        """Return what Token-Shuffle makes of each code, the same in every window; None where it is absent."""
        if self.shuffle is None:
            return None
        compressed: Tensor = self.shuffle.compress(self.backbone.embed_tokens.weight[: self.config.vocab_size])
        return compressed

    def window_logits(self, hidden: Float[Tensor, "b k d"]) -> Float[Tensor, "b k s_s v"]:
        """Return logits of the tokens of the window behind each row."""
        tokens = hidden[..., None, :] if self.unshuffle is None else self.unshuffle(hidden)
        return self.head(tokens)

    def read_rows(self, rows: Float[Tensor, "b k d"], cache: Cache | None = None) -> Float[Tensor, "b k d"]:
        """Run the layers causally over rows that follow those in the cache; a cache takes these too.

        Many rows are read at once only behind an empty cache: SDPA and flash-attention then need no mask, and no n x n
        memory for one. The other back ends know of no order without it.

        Raises:
            ValueError: several rows follow others.
        """
        start = cache.get_seq_length() if cache is not None else 0
        if start and rows.shape[1] > 1:
            raise ValueError(f"{rows.shape[1]} rows behind {start} that are cached: one at a time")
        count = rows.shape[1]
        positions = torch.arange(start, start + count, device=rows.device)[None]
        x, rotary = rows, self.backbone.rotary_emb(rows, position_ids=positions)
        implementation = self.config._attn_implementation or "sdpa"
        mask = None
        if count > 1 and not implementation.startswith(("sdpa", "flash_attention")):
            causal = torch.ones(count, count, dtype=torch.bool, device=rows.device).tril()
            mask = attention_input(causal.expand(len(rows), -1, -1), implementation, rows.dtype)
        for layer in self.backbone.layers:
            x = layer(
                x,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                position_embeddings=rotary,
                is_causal=True,
            )
        normalised: Tensor = self.backbone.norm(x)
        return normalised

    def _check(self, class_ids: Tensor, image_ids: Tensor) -> None:
        check_classes(class_ids.tolist(), self.config.num_classes + 1)
        size = self.config.grid_size
        if image_ids.shape[1:] != (size, size):
            given = " x ".join(map(str, image_ids.shape[1:]))
            raise ValueError(f"an image of {given} tokens, for a model of {size} x {size}")


def check_classes(classes: list[int], num_classes: int) -> None:
    """Check that classes are known.

    Raises:
        ValueError: one is not.
    """
    for one in classes:
        if not 0 <= one < num_classes:
            raise ValueError(f"unknown class {one}; known: 0 to {num_classes - 1}")
