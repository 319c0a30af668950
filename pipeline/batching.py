"""Many prompts answered at once: for training text, and as the twin of a batch (``pipeline.batch_speed``).

Both need tokens a second over all prompts together, where a benchmark's cell needs them one prompt at a time. So each
forward pass reads the next token of up to ``MOST_ROWS`` texts, each with a cache of its own; a text that ends makes
room for the next. What a prompt shares with one that is still in a cache (few-shot examples) is copied and not read
again. It is the engine that cells run on, and the numbers are those of reading each text alone, on a GPU in bfloat16
but for near-ties: what is learned is what will be drafted for. Example::

    target = shared_model(Path("results/models/smollm2-135m"))
    ids = answer(target, [Job((1, 5, 9), ending)])[0].ids
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from decoding import TargetModel
from decoding.cache import KVCache
from decoding.pool import prefill_together
from decoding.ranking import choices, most_likely
from decoding.stopping import Ending
from decoding.target import TreeOutput

MOST_ROWS = 48
TOGETHER = 4096  # tokens of prompts, with their padding, that are read in one pass at most
REFILL = 6  # a part of the places, one in so many, is free before prompts are read into them in one pass
ROOM = 1.5  # of the weights, with the caches of so many texts
# The nucleus is looked for among so many tokens: sorting the whole vocabulary would cost more than a forward pass.
NUCLEUS_WITHIN = 256


@dataclass(frozen=True)
class Job:
    """A prompt, when its answer ends, and what draws its tokens: one generator for all jobs, or each its own.

    With its own, what is drawn does not depend on which other jobs there are.
    """

    prompt_ids: tuple[int, ...]
    ending: Ending
    generator: torch.Generator | None = None


class Answer(NamedTuple):
    """The ``n`` tokens of an answer; ``finished`` if it ended by itself and not at the limit.

    ``states`` are the target's last hidden states, the head's input, at which each token was chosen; None where they
    were not asked for.
    """

    ids: list[int]
    finished: bool
    states: Float[Tensor, "n d"] | None


@dataclass(frozen=True)
class Draw:
    """How tokens are chosen: ``temperature`` 0 is greedy, ``top_p`` 1 keeps every token."""

    temperature: float = 0.0
    top_p: float = 1.0


@cache
def shared_model(folder: Path) -> TargetModel:
    """Load a model once in bfloat16, for all who ask for it in this process; on a GPU where there is one.

    Over all visible cards where one has no room for it and its caches: nothing is timed, so no one need ask for it.
    """
    cards = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if len(cards) > 1:
        weight_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        fits = ROOM * weight_bytes < torch.cuda.get_device_properties(cards[0]).total_memory
        cards = cards[:1] if fits else cards
    device = cards[0] if cards else "cpu"
    return TargetModel.from_pretrained(folder, dtype=torch.bfloat16, device=device, devices=cards)


def choose(
    logits: Float[Tensor, "rows vocabulary"], draw: Draw, generators: Sequence[torch.Generator | None]
) -> list[int]:
    """Return the next token of each row: the likeliest, or one drawn from the nucleus (Holtzman et al. 2020)."""
    if draw.temperature == 0:
        return list(choices(logits))
    if draw.top_p == 1:
        return _drawn((logits / draw.temperature).softmax(-1), generators)
    top = most_likely(logits / draw.temperature, NUCLEUS_WITHIN)
    probabilities = top.log_probabilities.exp()
    outside = probabilities.cumsum(-1) - probabilities >= draw.top_p
    drawn = torch.tensor(_drawn(probabilities.masked_fill(outside, 0.0), generators))
    ids: list[int] = top.ids.cpu().gather(-1, drawn[:, None])[:, 0].tolist()
    return ids


def _drawn(probabilities: Float[Tensor, "rows choices"], generators: Sequence[torch.Generator | None]) -> list[int]:
    """Return a choice for each row; on the host, where the generators draw."""
    rows, first = probabilities.cpu(), generators[0]
    if all(generator is first for generator in generators):
        return [int(choice) for choice in torch.multinomial(rows, 1, generator=first)[:, 0]]
    return [int(torch.multinomial(row, 1, generator=own)) for row, own in zip(rows, generators, strict=True)]


class Place:
    """A place in the batch: a cache, the prompt whose keys it holds, and the text that grows in it."""

    def __init__(self, store: KVCache) -> None:
        self.cache = store
        self.prompt: tuple[int, ...] = ()
        self.job = -1
        self.text: list[int] = []
        self.states: list[Tensor] = []

    def forget(self) -> None:
        """Take what the cache holds for nothing."""
        self.prompt, self.cache.length = (), 0

    def begin(self, target: TargetModel, prompt: tuple[int, ...], others: Sequence[Place]) -> TreeOutput:
        """Read a prompt, all but what another place has read already; return what comes first, a row."""
        donor = max(others, key=lambda row: common(row.prompt, prompt))
        shared = min(common(donor.prompt, prompt), len(prompt) - 1)
        if donor is not self:
            for buffer, theirs in zip(self.cache.buffers, donor.cache.buffers, strict=True):
                buffer[:, :, :, :shared] = theirs[:, :, :, :shared]
        self.cache.length = shared
        if shared == 0:
            return target.prefill(self.cache, prompt)
        return target.extend(self.cache, prompt[shared:])


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two prompts begin with alike."""
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)


def places_for(target: TargetModel, jobs: Sequence[Job]) -> list[Place]:
    """Return places with room for any of ``jobs``: one each, but for ``MOST_ROWS`` at most."""
    longest = max(len(job.prompt_ids) + job.ending.max_new_tokens for job in jobs)
    capacity = target.capacity_for(longest, 1)
    return [Place(store) for store in target.new_caches(min(MOST_ROWS, len(jobs)), capacity)]


def answer(
    target: TargetModel,
    jobs: Sequence[Job],
    draw: Draw = Draw(),
    *,
    places: Sequence[Place] | None = None,
    with_states: bool = False,
) -> list[Answer]:
    """Return the answers to ``jobs`` in their order; arguments as for :func:`answers_as_they_end`."""
    found = dict(answers_as_they_end(target, jobs, draw, places=places, with_states=with_states))
    return [found[number] for number in range(len(jobs))]


@torch.inference_mode()
def answers_as_they_end(
    target: TargetModel,
    jobs: Sequence[Job],
    draw: Draw = Draw(),
    *,
    places: Sequence[Place] | None = None,
    with_states: bool = False,
) -> Iterator[tuple[int, Answer]]:
    """Answer all ``jobs``, as many at a time as there are places; yield each answer, with its job's number, as it ends.

    Args:
        target: the model.
        jobs: prompts, and when their answers end.
        draw: how tokens are chosen.
        places: caches made before (:func:`places_for`), where making them is not to be timed. What they hold of an
            earlier call is not used.
        with_states: also return the hidden states.
    """
    rows = places_for(target, jobs) if places is None else places
    for row in rows:
        row.forget()
    ended: list[tuple[int, Answer]] = []
    live: list[Place] = []
    free = list(rows)
    begun = 0
    while True:
        while count := _read_now(target, rows, free, live, jobs[begun:]):
            first = _begun(target, rows, free, range(begun, begun + count), jobs, draw)
            for row, token, state in first:
                _place(row, token, state if with_states else None, jobs, ended, live, free)
            begun += count
        yield from ended
        ended.clear()
        if not live:
            return
        output = target.read_each([row.cache for row in live], [row.text[-1] for row in live])
        tokens = choose(output.logits, draw, [jobs[row.job].generator for row in live])
        before, live = live, []
        states = output.hidden if with_states else [None] * len(before)
        for row, token, state in zip(before, tokens, states, strict=True):
            _place(row, token, state, jobs, ended, live, free)


def _read_now(
    target: TargetModel, rows: Sequence[Place], free: Sequence[Place], live: Sequence[Place], waiting: Sequence[Job]
) -> int:
    """Return how many of the ``waiting`` prompts are to be read in one pass, before the next tokens are; 0: none.

    The compiled engine reads them one by one as fast, and less where they begin alike. On torch's a pass over several
    costs hardly more than over one, so some places are left free until there are enough.
    """
    most = min(len(free), len(waiting))
    if not most or target.native is not None or not target.reads_together:
        return min(most, 1)
    if live and most < min(len(waiting), max(1, len(rows) // REFILL)):
        return 0
    room, longest = min(free[0].cache.capacity, target.max_context), 0
    for count, job in enumerate(waiting[:most]):
        longest = max(longest, len(job.prompt_ids))
        if (count + 1) * longest > TOGETHER or longest > room:
            return max(count, 1)
    return most


def _begun(
    target: TargetModel,
    rows: Sequence[Place],
    free: list[Place],
    numbers: Sequence[int],
    jobs: Sequence[Job],
    draw: Draw,
) -> list[tuple[Place, int, Float[Tensor, " d"]]]:
    """Take a free place for each of these jobs and read its prompt; return each one's first token, and its state."""
    taken, prompts = [free.pop() for _ in numbers], [jobs[number].prompt_ids for number in numbers]
    if len(taken) == 1:
        logits, hidden = taken[0].begin(target, prompts[0], rows)
    else:
        for row in taken:
            row.forget()
        found = prefill_together([row.cache for row in taken], prompts)
        assert found is not None  # such a target's caches share a pool
        logits, hidden = found
    for number, row, prompt in zip(numbers, taken, prompts, strict=True):
        row.job, row.prompt, row.text, row.states = number, prompt, [], []
    tokens = choose(logits, draw, [jobs[number].generator for number in numbers])
    return list(zip(taken, tokens, hidden, strict=True))


def _place(
    row: Place,
    token: int,
    state: Float[Tensor, " d"] | None,
    jobs: Sequence[Job],
    ended: list[tuple[int, Answer]],
    live: list[Place],
    free: list[Place],
) -> None:
    """Append a token, and the state it was chosen at if wanted, to the text of ``row``, which then goes on or ends."""
    row.text.append(token)
    if state is not None:
        row.states.append(state.to(row.cache.buffers[0].dtype))
    ending = jobs[row.job].ending
    cut = ending.check(row.text, len(row.text) - 1)
    if cut.ended or cut.kept == ending.max_new_tokens:
        ended.append((row.job, Answer(row.text, cut.ended, torch.stack(row.states) if row.states else None)))
        free.append(row)
    else:
        live.append(row)
