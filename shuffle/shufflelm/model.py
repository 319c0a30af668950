"""ShuffleLM: generates a set of tokens and their positions in one pass, then puts it in order.

The backbone reads ``[prompt ; slot_1 ... slot_K]``. A slot has an embedding of its own, sees the prompt and the other
slots, and becomes, through MLP-Mixers, three things: logits over the vocabulary (the tied head), a position by rotary
regression (:mod:`shuffle.shufflelm.rotary`), and a logit of being kept at all, which sets the text's length. Trained
order-agnostically (:mod:`shuffle.shufflelm.matching`): a slot is not bound to a place in the text, so it need not guess
how long the words before it are.

    hidden = Backbone([x ; slots])[-K:];   states = norm(Mixer(hidden));   token, place, keep = heads(states)

Example::

    model = ShuffleLM(ShuffleConfig(vocab_size=8000, eos_token_id=2, max_parallel_tokens=32))
    model(input_ids, attention_mask, labels).loss.backward()        # prompts padded on the left: collate_pairs
    model.generate(input_ids, attention_mask, max_parallel_tokens=30, shuffle_strategy="rotary", temperature=0.7)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from shuffle.backbone import ParallelModel
from shuffle.examples import collate_pairs, padded
from shuffle.shufflelm.blocks import generate_texts
from shuffle.shufflelm.config import ShuffleConfig
from shuffle.shufflelm.ctc import best_paths, ctc_loss
from shuffle.shufflelm.matching import (
    check_lengths,
    identity_matching,
    least_cost_matching,
    match_cost,
    places_of_slots,
)
from shuffle.shufflelm.mixer import MixerBlock
from shuffle.shufflelm.objective import choose_shown, show, slot_loss
from shuffle.shufflelm.ordering import Ordering
from shuffle.shufflelm.rotary import frequencies, position_scores

GLANCING_FALLS = 0.4  # from 0.5 to 0.3, as Qian et al. (2021) have it, is by this share


@dataclass
class ShuffleOutput(ModelOutput):
    """What the slots say.

    With ``slots_per_prompt_token`` K is the most that a prompt of the batch has, and another's slots behind its own are
    never kept.

    Attributes:
        loss: where labels were given.
        logits: over the vocabulary, ``[B, K, V]``.
        shuffle_scores: of each of the configuration's positions, ``[B, K, J]``; None without a position head.
        keep_logits: ``[B, K]``.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    shuffle_scores: Tensor | None = None
    keep_logits: Tensor | None = None


class ShuffleLM(ParallelModel):
    """See the module's docstring.

    Attributes:
        progress: share of the training that is done, which warm-up and glancing follow; 1 unless told.
    """

    config_class = ShuffleConfig
    collate = staticmethod(collate_pairs)

    def __init__(self, config: ShuffleConfig) -> None:
        super().__init__(config)
        slots, width = config.max_parallel_tokens, config.hidden_size
        self.mixers = nn.ModuleList(
            MixerBlock(slots, width, config.rms_norm_eps) for _ in range(config.num_mixer_layers)
        )
        # The backbone's output is normalised already, the mixers' is not.
        self.mixer_norm = nn.RMSNorm(width, config.rms_norm_eps) if config.num_mixer_layers else nn.Identity()
        self.keep_head = nn.Linear(width, 1)
        if config.position_head == "rotary":
            self.rotary_head = nn.Linear(width, config.rotary_dim)
        self.progress = 1.0
        self.post_init()

    def set_progress(self, fraction: float) -> None:
        """Tell the share of the training that is done, 0 to 1; before each step."""
        self.progress = fraction

    def forward(
        self,
        input_ids: Int[Tensor, "b n"],
        attention_mask: Int[Tensor, "b n"] | None = None,
        labels: Int[Tensor, "b t"] | None = None,
    ) -> ShuffleOutput:
        """Read prompts, and compute what the slots say and, given ``labels``, the loss.

        Args:
            input_ids: prompts, padded on the left.
            attention_mask: 1 for a token, 0 for padding; None where there is none.
            labels: the texts to be generated, each with its end token, padded with -100 behind.

        Raises:
            ValueError: a text has more tokens than there are slots, or a prompt leaves them no positions.
        """
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        real = real.bool()
        slots = self.slot_embeddings(input_ids, real)
        if labels is None:
            return ShuffleOutput(None, *self.say(input_ids, real, slots))
        check_lengths((labels >= 0).sum(1), self.config.max_parallel_tokens)
        in_order = self.config.matching == "ctc"
        matching, shown = None, None
        ratio = self.config.glancing * (1 - GLANCING_FALLS * self.progress) if self.training else 0.0
        if ratio:
            with torch.no_grad():
                said = self.say(input_ids, real, slots)
                if in_order:
                    places = best_paths(said[0], said[2], labels, self.num_slots(real))
                else:
                    matching = self._match(labels, real, *said)
                    places = places_of_slots(matching, slots.shape[1])
                shown = choose_shown(said[0], labels, places, ratio)
            slots = show(slots, self.embed(labels.clamp(min=0)), shown, places)
        logits, scores, keep = self.say(input_ids, real, slots)
        if in_order:
            return ShuffleOutput(ctc_loss(logits, keep, labels, self.num_slots(real)), logits, scores, keep)
        if matching is None:
            matching = self._match(labels, real, logits, scores, keep)
        beta, smoothing = self.config.beta, self.config.label_smoothing
        loss = slot_loss(logits, scores, keep, labels, matching, beta=beta, label_smoothing=smoothing, shown=shown)
        return ShuffleOutput(loss, logits, scores, keep)

    def num_slots(self, real: Bool[Tensor, "b n"]) -> Int[Tensor, " b"]:
        """Return how many slots each prompt has, the configuration's ``num_slots``; no wait for a GPU."""
        ratio, most = self.config.slots_per_prompt_token, self.config.max_parallel_tokens
        if ratio is None:
            return torch.full_like(real[:, 0], most, dtype=torch.long)
        counts: Tensor = (ratio * real.sum(1).double()).ceil()  # in double, as Python computes
        return counts.clamp(max=most).long()

    def slot_embeddings(self, input_ids: Int[Tensor, "b n"], real: Bool[Tensor, "b n"]) -> Float[Tensor, "b k d"]:
        """Return what the slots start from: their own embeddings and, with ``source_copy``, the prompt's."""
        own, most = self.backbone.embed_tokens.weight[self.special_id(0) :], self.config.max_parallel_tokens
        if self.config.slots_per_prompt_token is not None:
            most = int(self.num_slots(real).max())
        if not self.config.source_copy:
            return own[:most].expand(len(real), -1, -1)
        return own[:most] + self.copied_shares(real, most).to(own.dtype) @ self.embed(input_ids)

    def copied_shares(self, real: Bool[Tensor, "b n"], num_slots: int) -> Float[Tensor, "b k n"]:
        """Return how much of each prompt token's embedding the first ``num_slots`` slots start with (``source_copy``).

        Slot ``k`` copies softly what is near a place ``p_k`` in the prompt (Wei et al. 2019, after Gu et al. 2018):
        ``softmax_i(-|i - p_k|)``. That is the prompt's k-th token; with ``slots_per_prompt_token``, the n tokens are
        spread over the prompt's own m slots: ``p_k = (k + 1/2) n / m - 1/2``.
        """
        places = torch.arange(num_slots, device=real.device).expand(len(real), -1)
        if self.config.slots_per_prompt_token is not None:
            places = (places + 0.5) * (real.sum(1) / self.num_slots(real))[:, None] - 0.5
        distance = (positions_of(real)[:, None] - places[:, :, None]).abs().float()
        return distance.neg().masked_fill(~real[:, None], -torch.inf).softmax(-1)

    def heads(
        self, hidden: Float[Tensor, "*b k d"]
    ) -> tuple[Float[Tensor, "*b k d"], Float[Tensor, "*b k j"] | None, Float[Tensor, "*b k"]]:
        """Mix the slots' hidden states; return the states that the head reads, position scores and keep logits."""
        for mixer in self.mixers:
            hidden = mixer(hidden)
        states = self.mixer_norm(hidden)
        keep = self.keep_head(states)[..., 0].float()
        if self.config.position_head == "none":
            return states, None, keep
        config, slots = self.config, self.config.max_parallel_tokens
        omega = frequencies(config.num_frequencies, slots).to(states.device)
        rotary = self.rotary_head(states).unflatten(-1, (config.num_frequencies, 2))
        return states, position_scores(rotary, omega, slots), keep

    def say(
        self, input_ids: Int[Tensor, "b n"], real: Bool[Tensor, "b n"], slots: Float[Tensor, "b k d"]
    ) -> tuple[Float[Tensor, "b k v"], Float[Tensor, "b k j"] | None, Float[Tensor, "b k"]]:
        """Run prompts and slots through everything; return logits, position scores and keep logits.

        No row sees a slot that is not its prompt's, whose keep logit is negative infinity.

        Raises:
            ValueError: a prompt and the slots exceed the context.
        """
        num_slots = slots.shape[1]
        there = torch.arange(num_slots, device=real.device) < self.num_slots(real)[:, None]
        columns = torch.cat([real, there], dim=1)
        positions = positions_of(columns)
        if int(positions.max()) >= self.config.max_position_embeddings:
            raise ValueError(
                f"a prompt of {int(real.sum(1).max())} tokens and {num_slots} slots exceed the context of "
                f"{self.config.max_position_embeddings} tokens"
            )
        visible = columns[:, None].expand(-1, columns.shape[1], -1)
        if self.config.prompt_attention == "causal":
            length = input_ids.shape[1]
            rows = torch.arange(columns.shape[1], device=columns.device)
            # Padding sees itself alone: a row must see something.
            before = rows <= rows[:, None]
            visible = visible & (before | (rows[:, None] >= length)) | torch.eye(len(rows), device=rows.device).bool()
        hidden = self.read(torch.cat([self.embed(input_ids), slots], dim=1), positions, visible)[:, -num_slots:]
        states, scores, keep = self.heads(hidden)
        return self.head(states), scores, keep.masked_fill(~there, -torch.inf)

    def _match(
        self,
        labels: Int[Tensor, "b t"],
        real: Bool[Tensor, "b n"],
        logits: Float[Tensor, "b k v"],
        scores: Float[Tensor, "b k j"] | None,
        keep: Float[Tensor, "b k"],
    ) -> Int[Tensor, "b t"]:
        """Return the slot of each target token, as the configuration and the training's progress have it.

        A target with more tokens than its prompt has slots is matched with none of them.
        """
        lengths = (labels >= 0).sum(1)
        lengths = lengths.where(lengths <= self.num_slots(real), 0)
        warming_up = self.training and self.progress < self.config.matching_warmup
        if self.config.matching == "identity" or warming_up:
            return identity_matching(lengths, labels.shape[1])
        with torch.no_grad():
            return least_cost_matching(match_cost(logits, labels, scores, keep, self.config.alpha), lengths)

    def ordering(self, strategy: str | None = None, keep_threshold: float = 0.5, most: int | None = None) -> Ordering:
        """Return how this model's slots are put in order; by rotary regression, where the model has it.

        Raises:
            ValueError: an option is out of range, or the model cannot do it.
        """
        has_positions = self.config.position_head == "rotary"
        strategy = strategy or ("rotary" if has_positions else "none")
        if strategy != "none" and not has_positions:
            raise ValueError(f"shuffle_strategy={strategy!r} needs position_head='rotary'; without it: none")
        if most is not None and most > self.config.max_parallel_tokens:
            raise ValueError(f"max_parallel_tokens={most} is more than the model's {self.config.max_parallel_tokens}")
        merges = self.config.merges_repeats
        return Ordering(strategy, keep_threshold, self.config.shuffle_temperature, most, merges)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Int[Tensor, "b n"],
        attention_mask: Int[Tensor, "b n"] | None = None,
        *,
        max_new_tokens: int | None = None,
        max_parallel_tokens: int | None = None,
        shuffle_strategy: str | None = None,
        keep_threshold: float = 0.5,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "b n_and_new"]:
        """Return the prompts with what is generated from them behind, padded on the right with the pad id.

        Args:
            input_ids: prompts, padded on the left.
            attention_mask: 1 for a token, 0 for padding; None where there is none.
            max_new_tokens: the limit; as many as one pass can give, where None.
            max_parallel_tokens: most tokens of a pass, the first of its text; as many as there are slots, where None.
            shuffle_strategy: rotary, assignment or none, see :mod:`shuffle.shufflelm.ordering`.
            keep_threshold: least probability at which a slot is kept.
            temperature: of the tokens; 0 takes the likeliest.
            generator: what tokens are drawn with.

        Raises:
            ValueError: an option is out of range, a prompt is empty, or it and the limit exceed the context.
        """
        ordering = self.ordering(shuffle_strategy, keep_threshold, max_parallel_tokens)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, real, strict=True)]
        limit = max_new_tokens
        if limit is None:
            limit = ordering.most or self.config.max_parallel_tokens
        texts = generate_texts(self, prompts, ordering, limit, temperature, generator)
        new = padded(texts, self.config.padding_id).to(input_ids.device)
        return torch.cat([input_ids, new], dim=1)


def positions_of(real: Bool[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """Return the position of each token, 0 for the first that is not padding, and 0 for padding."""
    return (real.long().cumsum(1) - 1).clamp(min=0)
