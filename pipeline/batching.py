"""Many prompts answered at once, for training text; nothing here is timed.

Training needs tokens a second over all prompts together, where a benchmark's cell needs them one prompt at a time. So
prompts go through transformers' own model in batches: what all prompts of a batch begin with (few-shot examples) is
read once, the rest is padded on the left, keys and values are written in place into one buffer, and rows that ended
are taken out. The attention treats the query heads that share a key head as further queries of that head, so that keys
and values are never copied for grouped-query attention. Example::

    model = load_batch_model(Path("results/models/smollm2-135m"), torch.bfloat16)
    ids = answer(model, [Job((1, 5, 9), 64, ending)], Draw(0.0, 1.0), torch.Generator())[0].ids
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from decoding.stopping import Ending

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "sdpa_by_key_head"
# A batch is made smaller when this share of its rows is left.
REPACK_AT = 0.8


@dataclass(frozen=True)
class Job:
    """A prompt and when its answer ends."""

    prompt_ids: tuple[int, ...]
    ending: Ending


class Answer(NamedTuple):
    """The tokens of an answer; ``finished`` if it ended by itself and not at the limit."""

    ids: list[int]
    finished: bool


@dataclass(frozen=True)
class Draw:
    """How tokens are chosen: ``temperature`` 0 is greedy, ``top_p`` 1 keeps every token."""

    temperature: float = 0.0
    top_p: float = 1.0


def grouped_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "batch heads new dim"],
    key: Float[Tensor, "batch key_heads length dim"],
    value: Float[Tensor, "batch key_heads length dim"],
    attention_mask: Bool[Tensor, "batch 1 new length"],
    scaling: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "batch new heads dim"], None]:
    """Attend with the query heads of one key head laid one after the other along the queries."""
    batch, heads, new, dim = query.shape
    groups = heads // key.shape[1]
    rows = query.reshape(batch, key.shape[1], groups * new, dim)
    mask = attention_mask.repeat(1, 1, groups, 1)
    out = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, new, dim).transpose(1, 2), None


class BatchCache:
    """Keys and values of all layers in buffers of full length, with what a model calls of transformers' ``Cache``."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.length = 0
        self.capacity = capacity
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new keys and values behind the old ones; return all up to them."""
        end = self.length + key.shape[2]
        return _written(self.keys, layer, key, self.length, end, self.capacity), _written(
            self.values, layer, value, self.length, end, self.capacity
        )

    def get_seq_length(self, layer: int = 0) -> int:
        """Return how many tokens are held."""
        return self.length

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Keep these rows, in this order; an index may be repeated."""
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):
                if buffer is not None:
                    kept = buffer.new_empty(len(rows), *buffer.shape[1:])
                    kept[:, :, : self.length] = buffer[rows, :, : self.length]
                    buffers[layer] = kept


def _written(buffers: list[Tensor | None], layer: int, new: Tensor, start: int, end: int, capacity: int) -> Tensor:
    buffer = buffers[layer]
    if buffer is None:
        buffers[layer] = buffer = new.new_empty(new.shape[0], new.shape[1], capacity, new.shape[3])
    buffer[:, :, start:end] = new
    return buffer[:, :, :end]


def load_batch_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model folder with the attention above."""
    from transformers import AttentionInterface, AutoModelForCausalLM

    AttentionInterface.register(ATTENTION, grouped_attention)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=ATTENTION, local_files_only=True, trust_remote_code=False
    )
    model.train(False)
    return cast("PreTrainedModel", model)


@cache
def shared_model(folder: Path) -> PreTrainedModel:
    """Load a model once in bfloat16, for all who ask for it in this process."""
    return load_batch_model(folder, torch.bfloat16)


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts begin with, leaving each at least one of its own."""
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)


class _Batch:
    """The rows of one batch that have not ended yet, and the logits of what comes next in each."""

    def __init__(self, model: PreTrainedModel, jobs: Sequence[Job]) -> None:
        self.model = model
        prompts = [job.prompt_ids for job in jobs]
        prefix = shared_prefix(prompts)
        rests = [prompt[prefix:] for prompt in prompts]
        width = max(map(len, rests))
        length, limit = prefix + width, max(job.ending.max_new_tokens for job in jobs)
        self.cache = BatchCache(model.config.num_hidden_layers, length + limit)
        self.rows = list(range(len(jobs)))
        # True where a row has a token: the places before the rest of a short prompt have none.
        self.seen = torch.ones(len(jobs), length + limit, dtype=torch.bool)
        ids = torch.zeros(len(jobs), width, dtype=torch.long)
        for row, rest in enumerate(rests):
            ids[row, width - len(rest) :] = torch.tensor(rest)
            self.seen[row, prefix : length - len(rest)] = False
        if prefix:
            start = torch.tensor([prompts[0][:prefix]])
            self._forward(start, torch.arange(prefix)[None], torch.ones(1, 1, prefix, prefix, dtype=torch.bool).tril())
            self.cache.select(torch.zeros(len(jobs), dtype=torch.long))
        self.position = torch.tensor([len(prompt) for prompt in prompts])
        positions = (torch.arange(prefix, length) - (length - self.position)[:, None]).clamp_min(0)
        mask = self.seen[:, None, None, :length] & torch.ones(width, length, dtype=torch.bool).tril(prefix)
        # Padding sees itself, since a query that sees nothing gives NaN.
        mask |= torch.eye(length, dtype=torch.bool)[prefix:]
        self.logits = self._forward(ids, positions, mask)

    def _forward(
        self, ids: Int[Tensor, "rows new"], positions: Int[Tensor, "rows new"], mask: Bool[Tensor, "rows 1 new length"]
    ) -> Float[Tensor, "rows vocabulary"]:
        out = self.model(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=self.cache, logits_to_keep=1
        )
        self.cache.length += ids.shape[1]
        logits: Tensor = out.logits[:, -1]
        return logits

    def append(self, tokens: Int[Tensor, " rows"]) -> None:
        """Read one more token of each row."""
        mask = self.seen[:, None, None, : self.cache.length + 1]
        self.logits = self._forward(tokens[:, None], self.position[:, None], mask)
        self.position = self.position + 1

    def keep(self, places: list[int]) -> None:
        """Go on with these rows alone."""
        chosen = torch.tensor(places)
        self.cache.select(chosen)
        self.rows = [self.rows[place] for place in places]
        self.seen, self.position, self.logits = self.seen[chosen], self.position[chosen], self.logits[chosen]


def choose(
    logits: Float[Tensor, "rows vocabulary"], draw: Draw, generator: torch.Generator | None
) -> Int[Tensor, " rows"]:
    """Return the next token of each row: the likeliest, or one drawn from the nucleus (Holtzman et al. 2020)."""
    if draw.temperature == 0:
        return logits.argmax(-1)
    # The nucleus is looked for among the 1,024 likeliest tokens: sorting the whole vocabulary would cost a forward.
    top, ids = (logits.float() / draw.temperature).topk(min(1024, logits.shape[-1]))
    probabilities = top.softmax(-1)
    outside = probabilities.cumsum(-1) - probabilities >= draw.top_p
    drawn = torch.multinomial(probabilities.masked_fill(outside, 0.0), 1, generator=generator)
    return ids.gather(-1, drawn)[:, 0]


@torch.inference_mode()
def answer(
    model: PreTrainedModel, jobs: Sequence[Job], draw: Draw = Draw(), generator: torch.Generator | None = None
) -> list[Answer]:
    """Answer all ``jobs`` as one batch; answers in the order of the jobs."""
    batch = _Batch(model, jobs)
    texts: list[list[int]] = [[] for _ in jobs]
    ended: dict[int, bool] = {}
    while True:
        tokens = choose(batch.logits, draw, generator)
        for row, token in zip(batch.rows, tokens.tolist(), strict=True):
            if row not in ended:
                texts[row].append(token)
                cut = jobs[row].ending.check(texts[row], len(texts[row]) - 1)
                if cut.ended or cut.kept == jobs[row].ending.max_new_tokens:
                    ended[row] = cut.ended
        if len(ended) == len(jobs):
            return [Answer(text, ended[row]) for row, text in enumerate(texts)]
        batch.append(tokens)
        alive = [place for place, row in enumerate(batch.rows) if row not in ended]
        if len(alive) <= REPACK_AT * len(batch.rows):
            batch.keep(alive)
