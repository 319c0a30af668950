"""The mixer as it is decoded with: one hidden state in, each position's candidate tokens and their links out.

At batch size 1 its time is that of reading its weights, so these are laid out for reading once, and what can be had
beforehand is a table: A e_y of every token y. The links between the candidates of neighbouring positions take no
further pass over the slots or the shortlist. What is here in torch's words is one call of the compiled code where
there is one (:mod:`shuffle.fasterdecodemixer.compiled`), and one recorded graph on a GPU.

Example::

    mixer = DecodingMixer(load_mixer(folder), torch.bfloat16, device)
    guesses = mixer(hidden, context_ids)        # .tokens [J][C], .chances [J][C], .links [J - 1][C][C], .keep [J]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from decoding.native.product import NativeProduct
from decoding.part_layers import PartLayer, part_layer, rows_dtype
from decoding.ranking import most_likely
from decoding.replay import Replayed
from shuffle.fasterdecodemixer.compiled import CompiledMixer
from shuffle.fasterdecodemixer.model import FasterDecodeMixer, Slots, log_shares
from shuffle.shufflelm.mixer import MixerBlock
from shuffle.shufflelm.rotary import targets

CANDIDATES = 10  # of a position


class Guesses(NamedTuple):
    """What the slots say.

    Attributes:
        tokens: ``[J][C]``, token ids of each position's candidates, the most likely first.
        chances: ``[J][C]``, of each candidate, where what comes before it is not known (but for the bonus token).
        links: ``[J - 1][C][C]``, chance of each candidate of a position after each of the position before.
        keep: ``[J]``, the best chance of being right that a slot of the position gives itself; 0 where there is none.
    """

    tokens: list[list[int]]
    chances: list[list[float]]
    links: list[list[list[float]]]
    keep: list[float]


class DecodingMixer:
    """The mixer laid out for reading its weights once, for one hidden state at a time.

    Attributes:
        weight_bytes: what each draft reads.
    """

    def __init__(self, mixer: FasterDecodeMixer, dtype: torch.dtype, device: torch.device) -> None:
        config = mixer.config
        self.dtype, self.config = rows_dtype(dtype, device), config
        mixer.eval().requires_grad_(False).to(device=device, dtype=self.dtype)
        self.mixer = mixer
        self._linears: list[PartLayer] = []
        self.merge, self.fan, self.blend = (self._laid_out(part) for part in (mixer.merge, mixer.fan, mixer.blend))
        self.blocks = mixer.mixer_blocks()
        self.channels = [(self._laid_out(b.channels_up), self._laid_out(b.channels_down)) for b in self.blocks]
        readout = torch.cat([mixer.place.weight, mixer.keep.weight])
        self.readout = self._packed(readout, torch.cat([mixer.place.bias, mixer.keep.bias]))
        self.output = self._packed(mixer.rows[:-1], None)
        self.embedded = mixer.embed(torch.arange(config.shortlist_size + 1, device=device))
        self.follow = F.linear(self.embedded, mixer.follow.weight)
        # What is small is computed in float32, which takes no conversions inside the products.
        self.across = [Across(block) for block in self.blocks]
        self.place_of_slot = mixer.place_of_slot.float()
        self.positions = torch.arange(config.num_positions, device=device)
        self.places = targets(self.positions, mixer.omega.to(device)).flatten(1).T
        self.tokens = mixer.shortlist.tolist()
        self.num_candidates = min(CANDIDATES, len(self.tokens))
        self.unknown = torch.tensor(len(self.tokens), device=device)
        self.row_of = {token: row for row, token in enumerate(self.tokens)}
        self.weight_bytes = sum(linear.num_bytes for linear in self._linears)
        self._read: Callable[..., tuple[Tensor, ...]] = Replayed(self._guess, device)
        if isinstance(self.merge, NativeProduct):
            self._read = CompiledMixer(self, self.num_candidates)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the mixer itself: it does not change, and a drafter that learns apart shares it."""
        return self

    def _packed(self, weight: Tensor, bias: Tensor | None) -> PartLayer:
        self._linears.append(part_layer(weight, bias, self.dtype, weight.device))
        return self._linears[-1]

    def _laid_out(self, linear: torch.nn.Linear) -> PartLayer:
        return self._packed(linear.weight, linear.bias)

    @torch.inference_mode()
    def __call__(self, hidden: Float[Tensor, " d"], context: Sequence[int]) -> Guesses:
        """Return what the slots say after the text ``context``, whose last token was chosen from ``hidden``."""
        unknown, told = len(self.tokens), context[-self.config.num_context :]
        rows = [unknown] * (self.config.num_context - len(told)) + [self.row_of.get(token, unknown) for token in told]
        # From a GPU in one piece: each piece is waited for.
        packed = self._read(hidden.to(self.dtype), torch.tensor(rows))[0].cpu()
        count, width = self.config.num_positions, self.num_candidates
        sizes = [count * width, count * width, (count - 1) * width * width, count]
        best, chances, links, keep = packed.split(sizes)
        tokens = [[self.tokens[int(row)] for row in position] for position in best.view(count, width).tolist()]
        after = links.view(count - 1, width, width).tolist()
        return Guesses(tokens, chances.view(count, width).tolist(), after, keep.tolist())

    def _guess(self, hidden: Float[Tensor, " d"], rows: Int[Tensor, " c"]) -> tuple[Float[Tensor, " n"]]:
        """Return each position's candidates (as rows), their chances, their links and the keep chances, one by one."""
        slots = self.slots(hidden, rows)
        homes, states = slots.homes[0], slots.states[0]
        weights = log_shares(slots.scores, slots.keep_logits, self.config.position_sharpness)[0].exp()
        blended = self.blend(states)
        before = torch.where(homes == 0, rows[-1], self.unknown)
        logits = self.output(states + F.silu(blended + self.follow[before])).float()
        probabilities = logits.softmax(-1)
        mixed = weights.T @ probabilities
        best = most_likely(mixed, self.num_candidates).ids
        chances = mixed.gather(1, best)
        own = homes == self.positions[:, None]
        shares = weights.T * own
        links = self._links(states, blended, logits, probabilities, best, homes)
        links = (shares @ links.flatten(1)).view(-1, *links.shape[1:])[1:]
        # A position that no slot calls home has no links: its candidates stand as they are.
        totals = shares.sum(1)[1:, None, None]
        links = torch.where(totals > 0, links / totals.clamp(min=1e-9), chances[1:, None])
        keep = (own * slots.keep_logits[0].float().sigmoid()).amax(1)
        # A row of a shortlist is below 2^24, so a float32 says it exactly.
        return (torch.cat([part.flatten() for part in (best.float(), chances, links, keep)]),)

    def slots(self, hidden: Float[Tensor, " d"], context: Int[Tensor, " c"]) -> Slots:
        """Return the slots of one hidden state, as :meth:`FasterDecodeMixer.slots` does; ``context`` are rows."""
        x = hidden + F.silu(self.merge(torch.cat([hidden, self.embedded[context].flatten()])[None]))
        x = x + F.silu(self.fan(x)).view(self.config.num_slots, -1)
        for across, block, (up, down) in zip(self.across, self.blocks, self.channels, strict=True):
            x = across(x)
            x = down.add(F.gelu(up(block.channel_norm(x))), x)
        read = self.readout(x).float()
        rotary = (read[:, :-1] + self.place_of_slot).view(self.config.num_slots, -1, 2)
        scores = F.normalize(rotary, dim=-1).flatten(1) @ self.places / rotary.shape[1]
        return Slots(x[None], scores[None], (read[:, -1] + self.mixer.keep_of_slot)[None])

    def _links(
        self,
        states: Float[Tensor, "k d"],
        blended: Float[Tensor, "k d"],
        logits: Float[Tensor, "k s"],
        probabilities: Float[Tensor, "k s"],
        rows: Int[Tensor, "j c"],
        homes: Int[Tensor, " k"],
    ) -> Float[Tensor, "k c c"]:
        """Return what each slot says of its home: the chance of each candidate after each of the position before.

        All but the candidates keep the weight that they had before the slot was told: the shortlist is not read once
        more. Of a slot whose home is the first position it means nothing.
        """
        parents, children = rows[(homes - 1).clamp(min=0)], rows[homes]
        told = states[:, None] + F.silu(blended[:, None] + self.follow[parents])
        scores = torch.bmm(told.float(), self.mixer.rows[children].float().transpose(1, 2))
        others = (1 - probabilities.gather(1, children).sum(1)).clamp(min=1e-6).log() + logits.logsumexp(1)
        return (scores - torch.logaddexp(scores.logsumexp(-1), others[:, None])[..., None]).exp()


class Across:
    """The token-mixing half of a block, without the transpositions: its weights are few."""

    def __init__(self, block: MixerBlock) -> None:
        self.norm, up, down = block.slot_norm, block.slots_up, block.slots_down
        self.up, self.up_bias = up.weight.float(), up.bias.float()[:, None]
        self.down, self.down_bias = down.weight.float(), down.bias.float()[:, None]

    def __call__(self, x: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        """Return the slots, mixed across."""
        raised = F.gelu(torch.addmm(self.up_bias, self.up, self.norm(x).float()))
        return x + torch.addmm(self.down_bias, self.down, raised).to(x.dtype)


def load_mixer(folder: Path) -> FasterDecodeMixer:
    """Read a folder of :meth:`FasterDecodeMixer.save_pretrained`.

    Raises:
        ValueError: a file is missing or damaged.
    """
    try:
        mixer: FasterDecodeMixer = FasterDecodeMixer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{folder} does not hold a mixer: {type(error).__name__}: {reason}") from error
    return mixer
