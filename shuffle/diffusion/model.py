"""A masked diffusion model that generates in blocks: the backbone, who sees whom, and the loss.

The target is cut into blocks of L tokens. Each is denoised given the prompt and the finished blocks before it: a share
``t ~ U(eps, 1)`` of its tokens is hidden behind the mask, and the model predicts them all at once,

    loss = E_t [ w(t) / T * sum over masked i of  -log p(y_i | prompt, blocks before, visible tokens of i's block) ]

with ``w(t) = 1/t``, a bound on the likelihood (MDLM: Sahoo et al. 2024; LLaDA: Nie et al. 2025), or by default
``w(t) = 1``, the objective of a conditional masked language model (Mask-Predict: Ghazvininejad et al. 2019). One block
as long as the text is their model; shorter blocks are block diffusion (BD3-LM: Arriola et al. 2025), whose finished
blocks can be cached, since attention is block-causal: the prompt is block 0, and a row sees its own block and those
before it.

In training every block learns in one forward pass from just what it sees in generation. Two copies of the target stand
behind the prompt, a clean and a noisy one; a noisy row sees clean rows of earlier blocks and noisy ones of its own::

                 prompt   clean 1   noisy 1   noisy 2         (clean 2, the last, nobody would see: it is left out)
    clean 1        x         x
    noisy 1        x                   x
    noisy 2        x         x                   x

How long the text is, the model says by an end token. Training fills the last block behind it with end tokens, so that a
block can be started without knowing where in it the text ends; what is generated behind the first one is cut off. This
filling is not hidden token by token: what of it were left between the masks would give the length away. It is shown
where the end token is, and otherwise from a place on that may be anywhere behind it, as generation settles it: from the
block's last place forwards, while the end itself is open. In a text's last block the weight ``1/t`` is therefore no
strict bound: what is shown of the filling may tell of the end.

Example::

    model = DiffusionTransformer(DiffusionConfig(vocab_size=4000, eos_token_id=2))
    loss = model(**model.collate(examples)).loss
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.utils.generic import ModelOutput

from shuffle.backbone import ParallelModel
from shuffle.diffusion.config import DiffusionConfig
from shuffle.examples import IGNORED, collate_joined


@dataclass
class DiffusionOutput(ModelOutput):
    """The loss where there are labels, else logits over the vocabulary, ``[B, T, V]``."""

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "b t v"] | None = None


class DiffusionTransformer(ParallelModel):
    """Predicts the tokens behind the masks of a block, all at once."""

    config_class = DiffusionConfig
    collate = staticmethod(collate_joined)

    @property
    def mask_id(self) -> int:
        """The id that stands for a hidden token."""
        return self.special_id(0)

    def placed(self, ids: Int[Tensor, "*b"], places: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
        """Return ids whose masks are those of their ``places`` in the block."""
        return torch.where(ids == self.mask_id, ids + places, ids) if self.config.placed_masks else ids

    def forward(
        self,
        input_ids: Int[Tensor, "b t"],
        attention_mask: Int[Tensor, "b t"] | None = None,
        labels: Int[Tensor, "b t"] | None = None,
        prompt_lengths: Int[Tensor, " b"] | None = None,
    ) -> DiffusionOutput:
        """Hide a random share of the target and return the loss; or, without labels, return logits.

        Args:
            input_ids: prompt and target (or text so far and masks), padded on the right.
            attention_mask: 1 for tokens, 0 for padding.
            labels: the target's ids in the target's places, -100 elsewhere. Training draws from torch's global RNG.
            prompt_lengths: without labels, where the blocks begin; where the first mask is, if None.

        Raises:
            ValueError: there are labels and the configuration names no end token.
        """
        valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if labels is not None:
            return DiffusionOutput(loss=self._loss(input_ids, valid, labels))
        if prompt_lengths is None:
            prompt_lengths = ((input_ids != self.mask_id) & valid).cumprod(1).sum(1)
        nothing = input_ids[:, :0]
        return DiffusionOutput(logits=self.head(self.read_blocks(input_ids, valid, prompt_lengths, nothing)))

    def read_blocks(
        self,
        clean: Int[Tensor, "b t"],
        valid: Bool[Tensor, "b t"],
        prompt_lengths: Int[Tensor, " b"],
        noisy: Int[Tensor, "b r"],
        *,
        offset: int = 0,
        block_length: int | None = None,
    ) -> Float[Tensor, "b t_r d"]:
        """Run the layers over clean rows and, behind them, noisy ones.

        Args:
            clean: prompt and finished blocks.
            valid: False where ``clean`` is padding.
            prompt_lengths: tokens of the prompts.
            noisy: blocks being denoised; they see earlier blocks in ``clean``, not in ``noisy``.
            offset: tokens of the text before the first of ``noisy``, whole blocks.
            block_length: the configuration's, where None.

        Returns:
            Hidden states ``[B, T + R, d]``, the noisy rows' last.
        """
        lengths, device = prompt_lengths[:, None], clean.device
        places = torch.arange(clean.shape[1], device=device).expand_as(clean)
        behind = lengths + offset + torch.arange(noisy.shape[1], device=device)
        positions = torch.cat([places, behind], dim=1)
        size = block_length or self.config.block_length
        blocks = (positions - lengths).div(size, rounding_mode="floor") + 1
        blocks.clamp_(min=0)  # the prompt is one block
        is_noisy = torch.cat([torch.zeros_like(valid), torch.ones_like(noisy, dtype=torch.bool)], dim=1)
        seen = torch.cat([valid, torch.ones_like(noisy, dtype=torch.bool)], dim=1)
        visible = block_causal(blocks, is_noisy) & seen[:, None]
        ids = self.placed(torch.cat([clean, noisy], dim=1), (positions - lengths) % size)
        return self.read(self.embed(ids), positions, visible)

    def _loss(
        self, input_ids: Int[Tensor, "b t"], valid: Bool[Tensor, "b t"], labels: Int[Tensor, "b t"]
    ) -> Float[Tensor, ""]:
        if not self.config.end_token_ids:
            raise ValueError("a diffusion model learns where to stop by an end token: eos_token_id is None")
        length = self.config.block_length
        is_target = labels != IGNORED
        prompt_lengths, target_lengths = (valid & ~is_target).sum(1), is_target.sum(1)
        num_blocks = -(-target_lengths // length)
        place = torch.arange(int(num_blocks.max()) * length, device=input_ids.device)
        columns = (prompt_lengths[:, None] + place).clamp(max=input_ids.shape[1] - 1)
        target = input_ids.gather(1, columns)
        target = target.masked_fill(place >= target_lengths[:, None], self.config.end_token_ids[0])
        ratio = mask_ratios(len(target), len(place) // length, self.config.min_mask_ratio, target.device)
        ratio = ratio.repeat_interleave(length, dim=1)
        counted = place < num_blocks[:, None] * length
        masked = hide(ratio, place, target_lengths[:, None], num_blocks[:, None] * length)
        # Nobody sees the clean rows of a last block.
        width = int((prompt_lengths + (num_blocks - 1).clamp(min=0) * length).max())
        noisy = target.masked_fill(masked, self.mask_id)
        hidden = self.read_blocks(input_ids[:, :width], valid[:, :width], prompt_lengths, noisy)[:, width:]
        losses = F.cross_entropy(self.head(hidden[masked]).float(), target[masked], reduction="none")
        weights = 1 / ratio[masked] if self.config.loss_weighting == "1/t" else torch.ones_like(losses)
        loss: Tensor = (losses * weights).sum() / counted.sum().clamp(min=1)
        return loss


def block_causal(blocks: Int[Tensor, "b w"], is_noisy: Bool[Tensor, "b w"]) -> Bool[Tensor, "b w w"]:
    """Return who sees whom: ``visible[b, row, column]``.

    A row sees the clean rows of earlier blocks and, of its own block, the rows of its own kind. The unmasked tokens of
    a noisy block are thus seen as they stand among masks, as in generation.
    """
    earlier = (blocks[:, None] < blocks[:, :, None]) & ~is_noisy[:, None]
    own = (blocks[:, None] == blocks[:, :, None]) & (is_noisy[:, None] == is_noisy[:, :, None])
    return earlier | own


def hide(
    ratio: Float[Tensor, "b t"],
    place: Int[Tensor, " t"],
    target_lengths: Int[Tensor, "b 1"],
    filled_lengths: Int[Tensor, "b 1"],
) -> Bool[Tensor, "b t"]:
    """Draw what is masked: a share of the text's tokens, and of the filling behind it what is before a random place.

    Args:
        ratio: the probability that a token is masked.
        place: of the columns, 0 for the first token of a text.
        target_lengths: tokens of the text, its end token included.
        filled_lengths: with the filling.
    """
    masked = (torch.rand_like(ratio) < ratio) & (place < target_lengths)
    end_is_masked = masked.gather(1, (target_lengths - 1).clamp(min=0))
    choices = filled_lengths - target_lengths + 1  # all of the filling is shown, ..., none is
    shown_from = target_lengths + (torch.rand(choices.shape, device=place.device) * choices).long()
    return masked | ((place >= target_lengths) & (place < shown_from) & end_is_masked)


def mask_ratios(batch: int, num_blocks: int, least: float, device: torch.device) -> Float[Tensor, "b k"]:
    """Return the share t of masked tokens of each block, ``U(least, 1)``.

    One random shift of an even grid, so that a batch always holds easy and hard blocks: less variance than independent
    draws (Kingma et al. 2021, appendix I.1). Dealt out at random: a batch may be sorted by length.
    """
    count = batch * num_blocks
    even = (torch.arange(count, device=device) + torch.rand(1, device=device)) / max(count, 1)
    dealt = even[torch.randperm(count, device=device)]
    return (least + (1 - least) * dealt).view(batch, num_blocks)
