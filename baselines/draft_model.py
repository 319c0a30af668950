"""A draft model: a small model of the target's vocabulary, kept in step with a text that the target decides on.

It runs as the target does: the same forward pass, a preallocated cache. What drafting reads into that cache is kept
where verification agrees and taken back where it does not, so that after a step few tokens of the text are missing: the
draft's last one, when all of a chain were accepted, or an accepted phrase of Ouroboros's. They are not worth a forward
pass of their own: they are read as rows ahead of the next tree.

A vocabulary of tens of thousands of words makes the LM head the larger half of a small model. Most text uses few of
them, so the head may be restricted to a *shortlist*, the rows of frequent tokens (FR-Spec: Zhao et al. 2025); the
target still decides among all, so nothing is lost but the chance to draft a rare word. Rows of the logits are then
ranks in the shortlist, and :attr:`DraftModel.token_ids` says which tokens they are.

Example::

    draft = DraftModel.from_pretrained("results/draft", target=target)
    draft.prepare(num_tokens=512, tree_width=1)
    draft.begin()
    draft.sync(context)                                        # the cache holds all of it but the last token
    output = draft.read(CandidateTree.chain(context[-1], ()))  # logits [1, S]
    token = draft.token_of(int(output.logits[0].argmax()))
    draft.keep([0])
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from decoding import CandidateTree, TargetModel
from decoding.cache import KVCache
from decoding.target import TreeOutput

MOST_PENDING = 16  # more missing tokens than this are read at once; fewer ride along with the next tree
ROWS = 256  # the cache grows by as many


class DraftModel:
    """A model and the text that its cache holds.

    Args:
        model: runs the forward passes; its head gives a logit for each token of the shortlist.
        shortlist: ids of the tokens that the head knows, ascending; None for the whole vocabulary.
        vocab_size: number of token ids of the target; None for the model's own.

    Attributes:
        num_forwards: forward passes since the model was loaded.
        token_ids: token of each row of the head, a list; None for the whole vocabulary.
        vocab_size: number of token ids, the shortlist's or not.
    """

    def __init__(
        self, model: TargetModel, shortlist: Sequence[int] | None = None, vocab_size: int | None = None
    ) -> None:
        self.model = model
        self.vocab_size = vocab_size or model.vocab_size
        self.token_ids = None if shortlist is None else list(shortlist)
        self.num_forwards = 0
        self._rows: Int[Tensor, " s"] = torch.tensor(self.token_ids or [], dtype=torch.long)
        self._cache: KVCache | None = None
        self._held: list[int] = []  # tokens of the cache's committed rows
        self._pending: list[int] = []  # tokens of the text that come after them and are not yet read
        self._last_tree: CandidateTree | None = None

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, target: TargetModel, use_shortlist: bool = True) -> DraftModel:
        """Load the draft model of ``target``, in its dtype and on its device.

        Models of one family may pad their vocabularies to different sizes: the head is then restricted to the ids that
        both have.

        Raises:
            ValueError: there is no model in the folder, its vocabulary is not the target's, or its shortlist is bad.
        """
        folder = Path(folder)
        check_same_vocabulary(folder, target_folder=target.folder, vocab_size=target.vocab_size)
        model = TargetModel.from_pretrained(
            folder,
            dtype=target.dtype,
            device=target.device,
            decode_width=None,
            engine="auto" if target.native else "eager",
            weights=target.weight_type,
        )
        common = min(model.vocab_size, target.vocab_size)
        if use_shortlist and (folder / "shortlist.json").exists():
            shortlist = read_shortlist(folder / "shortlist.json", common)
        elif model.vocab_size == target.vocab_size:
            return cls(model)
        else:
            shortlist = list(range(common))
        return cls(restrict_head(model, folder, shortlist), shortlist, target.vocab_size)

    @property
    def max_context(self) -> int:
        """Longest text that the model can read."""
        return self.model.max_context

    def token_of(self, row: int) -> int:
        """Return the token that a row of the head stands for."""
        return row if self.token_ids is None else self.token_ids[row]

    def over_vocabulary(self, probabilities: Float[Tensor, "*b s"]) -> Float[Tensor, "*b v"]:
        """Spread a distribution over the shortlist out over the vocabulary: tokens outside have probability 0."""
        if self.token_ids is None:
            return probabilities
        spread = probabilities.new_zeros(*probabilities.shape[:-1], self.vocab_size)
        spread[..., self._rows.to(spread.device)] = probabilities
        return spread

    def prepare(self, num_tokens: int, tree_width: int) -> None:
        """Do before the clock starts what a text of up to ``num_tokens`` and trees up to ``tree_width`` would need.

        The cache is allocated for all of it, and on CUDA the graphs are captured: those of missing tokens ahead of a
        tree among them. A cache that holds a text is emptied.
        """
        widest = MOST_PENDING + tree_width
        capacity = self.model.capacity_for(min(num_tokens, self.max_context), widest)
        self.begin(capacity)
        self.model.prepare(self._started(), widest)

    def begin(self, capacity: int = 0) -> None:
        """Start a new text, for which ``capacity`` rows are set aside; more are added when they are needed."""
        self._held, self._pending, self._last_tree = [], [], None
        if self._cache is None or self._cache.capacity < capacity:
            self._cache = None  # the old one goes before the new one comes
            self._cache = self.model.new_cache(max(1, -(-capacity // ROWS)) * ROWS)
        self._cache.clear()

    def sync(self, context: Sequence[int]) -> None:
        """Bring the cache in step with ``context``: all of it but its last token, the root of the next tree.

        Rows that agree with it stay, drafts among them; the others are taken back. A few missing tokens are only noted
        and read with the next tree, many (a prompt) are read now.
        """
        cache, wanted = self._started(), list(context[:-1])
        agreed = common_length(self._held, wanted)
        del self._held[agreed:]
        cache.truncate(agreed)
        self._pending, self._last_tree = wanted[agreed:], None
        if len(self._pending) > MOST_PENDING:
            self._read_pending()

    def read(self, tree: CandidateTree) -> TreeOutput:
        """Run one forward pass over a tree rooted behind what :meth:`sync` and :meth:`keep` have left; commit nothing.

        Returns:
            Logits over the shortlist ``[W, S]`` and hidden states ``[W, d]`` of the tree's nodes.
        """
        ahead = len(self._pending)
        cache = self._with_room(ahead + tree.width)
        whole = behind(self._pending, tree)
        known = self._known(whole.tokens)
        output = self.model.read(cache, whole if known is whole.tokens else replace(whole, tokens=tuple(known)))
        self.num_forwards += 1
        cache.keep(range(ahead))
        self._held.extend(self._pending)
        self._pending, self._last_tree = [], tree
        return TreeOutput(output.logits[ahead:], output.hidden[ahead:])

    def keep(self, path: Sequence[int]) -> None:
        """Commit nodes of the tree that was read last, the root first, to draft on behind them."""
        if self._last_tree is None:
            raise ValueError("no tree has been read since the text changed")
        self._started().keep(path)
        self._held.extend(self._last_tree.tokens[node] for node in path)
        self._last_tree = None

    def _read_pending(self) -> None:
        """Read the missing tokens in one forward pass and commit them."""
        cache = self._with_room(len(self._pending))
        known = self._known(self._pending)
        if cache.length == 0:
            self.model.prefill(cache, known)
        else:
            self.model.extend(cache, known)
        self.num_forwards += 1
        self._held.extend(self._pending)
        self._pending = []

    def _known(self, tokens: Sequence[int]) -> Sequence[int]:
        """Put token 0 in the place of ids that the target has more of: padding, which no text should hold."""
        size = self.model.vocab_size
        return tokens if max(tokens) < size else [token if token < size else 0 for token in tokens]

    def _started(self) -> KVCache:
        if self._cache is None:
            self.begin()
        assert self._cache is not None
        return self._cache

    def _with_room(self, rows: int) -> KVCache:
        """Return the cache, a larger copy of it where ``rows`` more would not fit: the limit of a text is not known."""
        cache = self._started()
        if cache.length + rows > cache.capacity:
            self._cache = self.model.new_cache(-(-(cache.length + rows) // ROWS) * ROWS)
            self._cache.buffer[:, :, :, : cache.length] = cache.buffer[:, :, :, : cache.length]
            self._cache.length = cache.length
        return self._started()


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two texts share at their beginning."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:  # the usual case, without a loop
        return shorter
    return next(i for i in range(shorter) if first[i] != second[i])


def behind(pending: Sequence[int], tree: CandidateTree) -> CandidateTree:
    """Return ``tree`` hung below a chain of ``pending`` tokens."""
    if not pending:
        return tree
    ahead = len(pending)
    parents = (*range(-1, ahead), *(parent + ahead for parent in tree.parents[1:]))
    return CandidateTree((*pending, *tree.tokens), parents)


def check_same_vocabulary(folder: Path, *, target_folder: Path | None, vocab_size: int, padding: bool = True) -> None:
    """Refuse a draft model whose token ids mean other tokens than the target's.

    With ``padding``, the numbers of ids may differ where the tokenizers are one: what is beyond it is no token.

    Raises:
        ValueError: there is no model in ``folder``, or its vocabulary or tokenizer is not the target's.
    """
    if not (folder / "config.json").exists():
        raise ValueError(f"there is no draft model in {folder}")
    size = json.loads((folder / "config.json").read_text()).get("vocab_size")
    theirs, ours = read_vocabulary(folder), None if target_folder is None else read_vocabulary(target_folder)
    if size != vocab_size and not (padding and theirs and theirs == ours):
        raise ValueError(f"the draft model in {folder} has {size} tokens, the target {vocab_size}")
    if target_folder is None:
        return
    if theirs != ours:
        what = "is not the target's" if theirs and ours else "cannot be compared with the target's"
        raise ValueError(f"the tokenizer of the draft model in {folder} {what} in {target_folder}")


def read_vocabulary(folder: Path) -> dict[str, Any] | None:
    """Return tokens, merges and added tokens of ``tokenizer.json``; None if there is none."""
    file = folder / "tokenizer.json"
    if not file.exists():
        return None
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model.get("merges", ())]
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}
    return {"vocab": model["vocab"], "merges": merges, "added": added}


def read_shortlist(file: Path, vocab_size: int) -> list[int]:
    """Return the token ids of a shortlist.

    Raises:
        ValueError: it is not an ascending list of different token ids.
    """
    ids = json.loads(file.read_text())
    is_list = isinstance(ids, list) and bool(ids) and all(type(i) is int and 0 <= i < vocab_size for i in ids)
    if not is_list or any(low >= high for low, high in pairwise(ids)):
        raise ValueError(f"{file} is not an ascending list of token ids below {vocab_size}")
    return list(ids)


def restrict_head(model: TargetModel, folder: Path, shortlist: Sequence[int]) -> TargetModel:
    """Return ``model`` with the rows of ``shortlist`` alone in its LM head."""
    weights = model.weights
    rows = weights.embedding if weights.config.tie_word_embeddings else _head_of(folder).to(weights.embedding)
    head = type(weights.head)(rows[torch.tensor(shortlist, device=rows.device)], None)
    weight_bytes = weights.weight_bytes - weights.head.num_bytes + head.num_bytes
    return TargetModel(
        replace(weights, head=head, weight_bytes=weight_bytes),
        decode_width=model.decode_width,
        end_token_ids=tuple(model.end_token_ids),
        folder=model.folder,
    )


def _head_of(folder: Path) -> Float[Tensor, "v d"]:
    """Read the weight of an untied LM head: the loaded one may be laid out for its kernel."""
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            if "lm_head.weight" in tensors.keys():  # noqa: SIM118  the handle is no mapping
                weight: Tensor = tensors.get_tensor("lm_head.weight")
                return weight
    raise ValueError(f"the checkpoint in {folder} has no tensor 'lm_head.weight'")
