r"""A Llama with XLNet's two streams: it predicts any token from any others, and so a group of tokens in one pass.

The text's tokens are put into groups, each a set of places; the model is autoregressive over the groups and takes the
tokens of one as independent (Yang et al. 2019, equation 3, there with one token a group):

    p(x) = \prod_g \prod_{i in g} p(x_i | x_{groups before g}),      p(x_i | ...) = softmax(E q_i)

where q_i is the last hidden state of the query stream at place i. It starts from one learned vector, the same for every
place, so it knows the place (by RoPE) and not the token; keys and values are the content stream's. Larger groups take
fewer passes and lose what the tokens of a group say of each other.

Both streams share all weights, which are a Llama's. What equals what:

- With ``group_ids`` 0, 1, 2, ... the *content* stream is a causal Llama: ``content_logits`` equals the logits of a
  ``LlamaForCausalLM`` of the same weights, to within rounding; row i there says what follows token i.
- ``forward`` gives the *query* stream's logits: row i says what token i is. They are another function of the same
  weights, also with one token a group: the Llama predicts from the state of the token before, XLNet from a query
  vector. Training, evaluation and generation use the query stream alone, at every group size.

The attention back ends are eager, sdpa and flex_attention. Flash-attention's kernels take no mask, and two streams are
not to be said without one: it is refused.

Example::

    model = LlamaTwoStreamForCausalLM(TwoStreamConfig(vocab_size=8000, eos_token_id=2))
    model(**collate_joined(examples)).loss.backward()                  # random groups and orders
    model.set_grouping(2, "left_to_right")                             # what model.eval() and generation use
    model(input_ids, group_ids=group_ids).logits                       # [B, T, V] in any order
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.utils.generic import ModelOutput

from shuffle.backbone import ParallelModel
from shuffle.examples import IGNORED, collate_joined
from shuffle.twostream.config import TwoStreamConfig, check_grouping
from shuffle.twostream.masks import PADDING, below_limit, group_tokens, query_places, two_stream_mask


@dataclass
class TwoStreamOutput(ModelOutput):
    """What one forward pass says.

    Attributes:
        loss: mean cross-entropy of the labelled places, a scalar; None without labels.
        logits: ``[B, T, V]``; row i is the prediction of token i, and zero where none was asked for.
    """

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "b t v"] | None = None


class Grouped(NamedTuple):
    """A batch whose tokens are in groups; filled up behind the targets, it may be wider than what was given."""

    ids: Int[Tensor, "b t"]
    groups: Int[Tensor, "b t"]
    labels: Int[Tensor, "b t"] | None


class LlamaTwoStreamForCausalLM(ParallelModel):
    """The two-stream model; see the module."""

    config_class = TwoStreamConfig
    collate = staticmethod(collate_joined)

    def set_grouping(self, group_size: int, order: str = "left_to_right") -> None:
        """Fix how evaluation and generation group the target; kept in the configuration.

        Raises:
            ValueError: the size is below 1, or the order is unknown.
        """
        check_grouping(group_size, order)
        self.config.group_size, self.config.order = group_size, order

    def forward(
        self,
        input_ids: Int[Tensor, "b t"],
        attention_mask: Int[Tensor, "b t"] | None = None,
        labels: Int[Tensor, "b t"] | None = None,
        group_ids: Int[Tensor, "b t"] | None = None,
        position_ids: Int[Tensor, "b t"] | None = None,
    ) -> TwoStreamOutput:
        """Predict the labelled tokens, or all of them without labels, each from the groups before its own.

        A token that nothing comes before is predicted from its place alone.

        Args:
            input_ids: prompt and target.
            attention_mask: 0 for padding, on either side.
            labels: ``input_ids`` on the target, not shifted, and -100 elsewhere.
            group_ids: a group for each token, lower ones come first; -1 for padding. Where None, the labelled tokens
                are grouped: in training with a random size and order for each text, otherwise by
                :meth:`set_grouping`; and each target is filled up with end tokens, labelled too, until its last group
                is full (in a random order: its last block), as generation will find it.
            position_ids: of the tokens; without them, they count from 0 and leave padding out. Given positions, nothing
                is filled up.
        """
        length = input_ids.shape[1]
        mask = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
        if group_ids is None:
            batch = self._group(input_ids, mask, labels, fill=position_ids is None)
        else:
            batch = Grouped(input_ids, group_ids.masked_fill(~mask, PADDING), labels)
        wanted = batch.groups != PADDING
        if batch.labels is not None:
            wanted &= batch.labels != IGNORED
        positions = positions_of(batch.groups) if position_ids is None else position_ids
        hidden = self._query_stream(batch.ids, batch.groups, positions, wanted)
        rows = self.head(hidden)  # [labelled places of the batch, V]
        loss = None if batch.labels is None else F.cross_entropy(rows.float(), batch.labels[wanted])
        logits = rows.new_zeros(*wanted.shape, rows.shape[-1])
        logits[wanted] = rows
        return TwoStreamOutput(loss, logits[:, :length])

    def content_logits(
        self,
        input_ids: Int[Tensor, "b t"],
        attention_mask: Int[Tensor, "b t"] | None = None,
        group_ids: Int[Tensor, "b t"] | None = None,
        position_ids: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t v"]:
        """Return the content stream's logits; ``group_ids`` None is 0, 1, 2, ..., a causal Llama.

        Row i knows the tokens of its own group, itself among them. The default training never looks at these logits:
        they mean something in a model that started from a pretrained Llama.
        """
        mask = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
        order = mask.long().cumsum(1) - 1
        groups = (order if group_ids is None else group_ids).masked_fill(~mask, PADDING)
        positions = positions_of(groups) if position_ids is None else position_ids
        return self.head(self.read(self.embed(input_ids), positions, below_limit(groups, groups + 1)))

    def _query_stream(
        self,
        ids: Int[Tensor, "b t"],
        groups: Int[Tensor, "b t"],
        positions: Int[Tensor, "b t"],
        wanted: Bool[Tensor, "b t"],
    ) -> Float[Tensor, "n d"]:
        """Read both streams as one batch of rows, content first; return the ``n`` wanted places' query states."""
        places, queried = query_places(wanted)
        rows = torch.cat([ids, torch.full_like(places, self.special_id(0))], 1)
        positions = torch.cat([positions, positions.gather(1, places)], 1)
        hidden = self.read(self.embed(rows), positions, two_stream_mask(groups, places, queried))
        return hidden[:, ids.shape[1] :][queried]

    def _group(
        self,
        ids: Int[Tensor, "b t"],
        mask: Bool[Tensor, "b t"],
        labels: Int[Tensor, "b t"] | None,
        fill: bool,
    ) -> Grouped:
        """Group a batch: at random in training, as set otherwise."""
        config, batch = self.config, ids.shape[0]
        if self.training:
            drawn = torch.randint(len(config.group_sizes), (batch,))
            sizes = torch.tensor(config.group_sizes)[drawn].to(ids.device)
            permuted = (torch.rand(batch) < config.permute).to(ids.device)
        else:
            sizes = torch.full((batch,), config.group_size, device=ids.device)
            permuted = torch.full((batch,), config.order == "random", device=ids.device)
        end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
        if labels is not None and fill and end is not None:
            multiple = torch.where(permuted, sizes * config.block_groups, sizes)
            ids, mask, labels = fill_up(ids, mask, labels, multiple, end)
        groups = group_tokens(
            mask,
            mask if labels is None else labels != IGNORED,
            sizes,
            permuted,
            block_groups=config.block_groups,
            causal_prompt=config.prompt_groups == "causal",
        )
        return Grouped(ids, groups, labels)


def positions_of(groups: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """Return positions that count a text's tokens from 0, padding left out."""
    return ((groups != PADDING).long().cumsum(1) - 1).clamp_(min=0)


def fill_up(
    ids: Int[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    labels: Int[Tensor, "b t"],
    multiple: Int[Tensor, " b"],
    end_id: int,
) -> tuple[Int[Tensor, "b t2"], Bool[Tensor, "b t2"], Int[Tensor, "b t2"]]:
    """Lengthen each text with labelled end tokens until its labels are a multiple of ``multiple[i]``."""
    missing = (-(labels != IGNORED).sum(1)) % multiple
    columns = torch.arange(mask.shape[1], device=mask.device)
    length = torch.where(mask, columns + 1, 0).amax(1)  # up to the last token, padding before it included
    more = max(int((length + missing).max()) - mask.shape[1], 0)
    columns = torch.arange(mask.shape[1] + more, device=mask.device)
    new = (columns >= length[:, None]) & (columns < (length + missing)[:, None])
    ids = F.pad(ids, (0, more)).masked_fill(new, end_id)
    labels = F.pad(labels, (0, more), value=IGNORED).masked_fill(new, end_id)
    return ids, F.pad(mask, (0, more)) | new, labels
