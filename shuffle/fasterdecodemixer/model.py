r"""FasterDecodeMixer: K slots beside a frozen language model say its next J tokens at once, from its last hidden state.

A language model's last hidden state h, the one from which its head chose the token b, knows more than b. K slots are
fanned out from it, mixed, and read, all in one go and without a pass of the model:

    x   = h + silu(M [h ; e_a ; e_b])                    the last C tokens; b is known when one drafts
    z_k = x + silu(W_k x + slot_k),    Z = mixer(Z)      slots (MLP-Mixer: Tolstikhin et al. 2021)
    S_kj                                                 fit of slot k to position j = 1 .. J (rotary regression)
    keep_k                                               chance that the slot's guess is right, if it can be
    w_kj = softmax_k(sharpness S_kj + log sigmoid(keep_k))

A slot reads its token off z_k, given what it has been told of the token before its own: a token's embedding e, or 0
where it is not known. That makes two dependent tokens agree at the price of one matrix product, since all of A e_y can
be had beforehand (conditioning draft heads on the draft: Hydra, Ankner et al. 2024; transitions between parallel
outputs: Sun et al. 2019):

    p_k(. | y)  = softmax(O (z_k + silu(R z_k + A e_y)))
    p_j(. | y)  = sum_k w_kj p_k(. | y)                  slots at one position are siblings: they share its probability

Trained by

    -sum_j 0.8^j log p_j(t_j | t_{j-1} or not known) + sum_k (1 - S_k,tier(k)) + 0.1 BCE(keep_k, right)

where slot k's tier is position 1 + k mod J, and what a slot was told counts for no position that it would give away.
Siblings share out a position's tokens among themselves (the posterior of k given t_j is a soft matching), but no slot
leaves its position for another's. Without that term the slots crowd at the first positions, whose tokens are the
easiest, and the last ones have no slot that is told the token before.

O has rows for a *shortlist* of tokens, those that the model often says, and starts from its head. What is off the
shortlist is never guessed, which costs speed and nothing else.

Example::

    mixer = FasterDecodeMixer.from_backbone("results/models/smollm2-135m", shortlist=ids, num_slots=8)
    output = mixer(hidden, context=rows_before, labels=rows_after)    # .loss, .logits, .shuffle_scores, .keep_logits
    mixer.save_pretrained(folder); FasterDecodeMixer.from_pretrained(folder)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.generic import ModelOutput

from shuffle.examples import IGNORED
from shuffle.fasterdecodemixer.config import MixerConfig
from shuffle.shufflelm.mixer import MixerBlock
from shuffle.shufflelm.rotary import frequencies, position_scores, targets

POSITION_DECAY = 0.8  # loss weight of each position relative to the one before it, as Medusa's
PLACE_WEIGHT = 1.0  # of the slots' positions in the loss
KEEP_WEIGHT = 0.1  # of the keep logits' loss
NEVER = -30.0  # a log probability as good as none, and finite: a position may have no other slot
SMALL = 0.01  # spread of weights that start all but switched off


@dataclass
class MixerOutput(ModelOutput):
    """What :class:`FasterDecodeMixer` returns: ``logits [n, K, S]``, ``shuffle_scores [n, K, J]``, ``keep_logits``."""

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "n k s"] | None = None
    shuffle_scores: Float[Tensor, "n k j"] | None = None
    keep_logits: Float[Tensor, "n k"] | None = None


class Slots(NamedTuple):
    """The mixed slots: states ``[n, K, d]``, position scores ``[n, K, J]`` and keep logits ``[n, K]``."""

    states: Float[Tensor, "n k d"]
    scores: Float[Tensor, "n k j"]
    keep_logits: Float[Tensor, "n k"]

    @property
    def homes(self) -> Int[Tensor, "n k"]:
        """The position that each slot fits best."""
        return self.scores.argmax(-1)


def log_shares(
    scores: Float[Tensor, "n k j"], keep_logits: Float[Tensor, "n k"], sharpness: float
) -> Float[Tensor, "n k j"]:
    """Return ``log w``: the slots' shares in each position."""
    return (sharpness * scores + F.logsigmoid(keep_logits.float())[..., None]).log_softmax(1)


class FasterDecodeMixer(PreTrainedModel):
    """The slots, beside a reference to the model that they read; random until :meth:`start_from`.

    Token ids are rows of the shortlist here; row S stands for any other token and for one not yet known.
    """

    config_class = MixerConfig
    shortlist: Tensor
    base_model_prefix = "mixer"
    main_input_name = "hidden"
    supports_gradient_checkpointing = True

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        d, slots = config.hidden_size, config.num_slots
        self.rows = nn.Parameter(torch.zeros(config.shortlist_size + 1, d))
        self.register_buffer("shortlist", torch.arange(config.shortlist_size))
        self.merge = nn.Linear((1 + config.num_context) * d, d)
        self.fan = nn.Linear(d, slots * d)
        self.blocks = nn.ModuleList(MixerBlock(slots, d) for _ in range(config.num_mixer_layers))
        self.place = nn.Linear(d, config.rotary_dim)
        self.place_of_slot = nn.Parameter(torch.zeros(slots, config.rotary_dim))
        self.keep = nn.Linear(d, 1)
        self.keep_of_slot = nn.Parameter(torch.zeros(slots))
        self.blend = nn.Linear(d, d)
        self.follow = nn.Linear(d, d, bias=False)
        self.gradient_checkpointing = False
        self.post_init()
        self._start()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave each module as :meth:`_start` has left it."""

    @torch.no_grad()
    def _start(self) -> None:
        """Let every slot say what the model's own head says, at positions in tiers: 1 .. J, and again from 1."""
        for linear in (self.fan, self.blend, self.follow):
            linear.weight.normal_(0, SMALL)  # not zero: slots of one position must part
        for linear in (self.fan, self.blend):
            linear.bias.zero_()
        last = [down for block in self.mixer_blocks() for down in (block.slots_down, block.channels_down)]
        for linear in (self.place, self.keep, *last):
            linear.weight.zero_()
            linear.bias.zero_()
        self.place_of_slot.copy_(targets(self.tiers, self.omega).flatten(1))
        self.keep_of_slot.copy_(1.0 - torch.arange(self.config.num_slots) // self.config.num_positions)

    def mixer_blocks(self) -> list[MixerBlock]:
        """Return the blocks, the first first."""
        return [block for block in self.blocks if isinstance(block, MixerBlock)]

    @property
    def tiers(self) -> Int[Tensor, " k"]:
        """The position that each slot is for."""
        tiers: Tensor = torch.arange(self.config.num_slots) % self.config.num_positions
        return tiers

    @property
    def omega(self) -> Float[Tensor, " m"]:
        """Frequencies of the rotary regression."""
        return frequencies(self.config.rotary_dim // 2, self.config.num_positions)

    @torch.no_grad()
    def start_from(self, shortlist: Sequence[int], head: Float[Tensor, "s d"]) -> None:
        """Take over the shortlist's token ids and their rows of the model's head.

        Raises:
            ValueError: they are not ``shortlist_size`` distinct tokens of the vocabulary.
        """
        ids = set(shortlist)
        inside = bool(ids) and min(ids) >= 0 and max(ids) < self.config.vocab_size
        if not inside or not len(ids) == len(shortlist) == self.config.shortlist_size:
            size = self.config.shortlist_size
            raise ValueError(f"shortlist: {len(ids)} distinct tokens, not {size} of the vocabulary")
        self.shortlist.copy_(torch.tensor(list(shortlist)))
        self.rows[:-1] = head.to(self.rows)

    @classmethod
    def from_backbone(cls, name_or_path: str | Path, *, shortlist: Sequence[int] | None = None, **own: Any) -> Self:
        """Start beside a pretrained language model: a local folder or a hub id, in safetensors.

        Args:
            name_or_path: of the model.
            shortlist: the tokens that the slots can say; None: all.
            own: further keys of :class:`MixerConfig`.
        """
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            name_or_path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
        chosen = list(range(config.vocab_size)) if shortlist is None else list(shortlist)
        shape = {"vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "shortlist_size": len(chosen)}
        mixer = cls(MixerConfig(backbone=str(name_or_path), **shape, **own))
        mixer.start_from(chosen, model.get_output_embeddings().weight.detach()[chosen])
        return mixer

    def rows_of(self, ids: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
        """Return each token's row, S for one off the shortlist."""
        size = self.config.shortlist_size
        table = torch.full((self.config.vocab_size,), size, device=ids.device)
        table[self.shortlist.to(ids.device)] = torch.arange(size, device=ids.device)
        return table[ids]

    def embed(self, rows: Int[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        """Return the tokens' embeddings, of unit size: rows of O; 0 for what is not known."""
        known = (rows < self.config.shortlist_size)[..., None]
        embeddings: Tensor = F.rms_norm(F.embedding(rows, self.rows), (self.config.hidden_size,)) * known
        return embeddings

    def slots(self, hidden: Float[Tensor, "n d"], context: Int[Tensor, "n c"]) -> Slots:
        """Fan out, mix, and place the slots of each hidden state; ``context`` ends with the token chosen from it."""
        n, slots = len(hidden), self.config.num_slots
        x = hidden + F.silu(self.merge(torch.cat([hidden, self.embed(context).flatten(1).to(hidden.dtype)], -1)))
        x = x[:, None] + F.silu(self.fan(x)).view(n, slots, -1)
        for block in self.blocks:
            x = block(x)
        rotary = (self.place(x) + self.place_of_slot).view(n, slots, -1, 2)
        scores = position_scores(rotary, self.omega.to(x.device), self.config.num_positions)
        return Slots(x, scores, self.keep(x)[..., 0] + self.keep_of_slot)

    def told(self, states: Float[Tensor, "n k d"], before: Int[Tensor, "n k"]) -> Float[Tensor, "n k d"]:
        """Return the states that tokens are read from, once each slot is told the token before its own."""
        return states + F.silu(self.blend(states) + self.follow(self.embed(before).to(states.dtype)))

    def forward(
        self,
        hidden: Float[Tensor, "n d"],
        context: Int[Tensor, "n c"],
        labels: Int[Tensor, "n j"] | None = None,
    ) -> MixerOutput:
        """Read the slots; with labels, also their loss.

        Args:
            hidden: the model's last hidden states.
            context: rows of the last C tokens, the one chosen from the hidden state last; below 0 or S where there is
                none, or it is off the shortlist.
            labels: rows of the J tokens after it; -100 where there is none, or it is off the shortlist.
        """
        size = self.config.shortlist_size
        context, hidden = torch.where(context < 0, size, context), hidden.to(self.rows.dtype)
        if self.gradient_checkpointing and self.training:
            slots = Slots(*self._gradient_checkpointing_func(self.slots, hidden, context))
        else:
            slots = self.slots(hidden, context)
        before = context.new_full((len(context), self.config.num_positions), size)
        if labels is not None and self.training:
            seen = torch.rand(labels[:, 1:].shape, device=labels.device) < self.config.reveal
            before[:, 1:] = torch.where(seen & (labels[:, :-1] >= 0), labels[:, :-1], size)
        before[:, 0] = context[:, -1]
        before = before.gather(1, slots.homes)
        logits = F.linear(self.told(slots.states, before), self.rows[:-1])
        loss = None
        if labels is not None:
            # What a slot is told of its text, and not of the context.
            loss = self._loss(slots, logits, labels, told=(before < size) & (slots.homes > 0))
        return MixerOutput(loss, logits, slots.scores, slots.keep_logits)

    def distributions(self, hidden: Float[Tensor, "n d"], context: Int[Tensor, "n c"]) -> Float[Tensor, "n j s"]:
        """Return ``p_j`` over the shortlist, where no token after the context is known."""
        output = self(hidden, context)
        weights = log_shares(output.shuffle_scores, output.keep_logits, self.config.position_sharpness).exp()
        mixed: Tensor = weights.transpose(1, 2) @ output.logits.float().softmax(-1)
        return mixed

    def _loss(
        self,
        slots: Slots,
        logits: Float[Tensor, "n k s"],
        labels: Int[Tensor, "n j"],
        told: Bool[Tensor, "n k"],
    ) -> Float[Tensor, ""]:
        """Return ``-sum_j 0.8^j log p_j`` of the labels, each position's mean, with the places' and keep logits' share.

        A slot that was ``told`` the token before its home knows what is to be guessed there: it has no part in the
        positions up to that one. And a keep logit is to say how often a slot is right that was told nothing, so that in
        its own term only those teach it.
        """
        labelled, logits = labels >= 0, logits.float()
        wanted = labels.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1)
        log_probs = logits.gather(2, wanted) - logits.logsumexp(-1, keepdim=True)  # of each slot and position
        position = torch.arange(labels.shape[1], device=labels.device)
        log_probs = log_probs.masked_fill(told[..., None] & (position < slots.homes[..., None]), NEVER)
        shared = (log_probs + log_shares(slots.scores, slots.keep_logits, self.config.position_sharpness)).logsumexp(1)
        weights = labelled * POSITION_DECAY**position / labelled.sum(0).clamp(min=1)
        placed = slots.scores[:, torch.arange(len(self.tiers)), self.tiers].mean(0)
        at_home = labels.gather(1, slots.homes)
        right = (logits.argmax(-1) == at_home).float()
        known = ((at_home != IGNORED) & ~told).float()
        keep = F.binary_cross_entropy_with_logits(slots.keep_logits.float(), right, known, reduction="sum")
        places = PLACE_WEIGHT * (1 - placed).sum()
        return -(shared * weights).sum() + places + KEEP_WEIGHT * keep / known.sum().clamp(min=1)
