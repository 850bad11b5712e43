"""`inspect_edits`: what several policies would do to some data, in one pass of the prior."""

from __future__ import annotations

import heapq
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch

from ..data.progress import progress_bar
from ..policy import EditPolicy
from ..prior.base import BasePrior
from ..tokens.alignment.ways import WAYS
from .batches import as_token_batch, in_batches
from .documents import Source, SourceDocument, name_of, read_documents
from .inspection import Document, Edit, Inspection
from .kinds import Reader
from .naming import named_policies
from .passes import Outcome, Scored, score_batch
from .tally import KindTally, Probabilities

Order = Literal["edited", "file", "random"]
NUM_CANDIDATES = 5
# Where the prior finds a token less probable than this, and no policy selects it, runners-up are
# not kept: there are too many of them, and they decide nothing.
CANDIDATES_FROM = 0.5


def inspect_edits(
    prior: BasePrior,
    data: Source,
    policies: Mapping[str, EditPolicy] | Sequence[EditPolicy | str] | EditPolicy | str = "paper",
    *,
    limit: int | None = 500,
    keep: int = 200,
    order: Order = "edited",
    find: str | None = None,
    seed: int = 0,
    max_length: int | None = None,
    assistant_only: bool = False,
    epoch: int = 0,
    batch_tokens: int = 4096,
    progress: bool = False,
) -> Inspection:
    """See what policies would do to data, before training: several of them in one pass.

    The edits are those of `edit_tokens`, with the draws of generation 0.

    Args:
        prior: with its tokenizer.
        data: a file, folder or hub id as `toedit inspect --data` takes it; or rows: dicts with
            `text`, `messages`, `prompt` and `completion`, or `input_ids`; or texts.
        policies: names of presets, words such as "reference_code top_k=8", policies, or a dict of
            policies by name.
        limit: look at so many documents; None: at all.
        keep: keep so many to be shown.
        order: which: "edited", those with the most edits; "file", the first; "random", any.
        find: look only at documents with this in their text; a regular expression.
        seed: of order "random", which then also chooses the documents to look at.
        max_length: longer documents are cut into windows of so many tokens, as in training; None:
            what the prior can take.
        assistant_only: in chats, only the assistant's turns have labels.
        epoch: of the draws.
        batch_tokens: how many tokens to score at once.
        progress: show a bar.

    Returns:
        Tables, documents and a recommendation; `to_html` makes a page of them.

    Raises:
        ValueError: the prior has no tokenizer; a policy is unknown; there is nothing to look at.
        UnusableError: the data can't be read.

    Example:
        >>> from toedit_collate import EditPolicy, Prior
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> words = enumerate("? the sea is 42 miles wide".split())
        >>> raw = Tokenizer(models.WordLevel({word: i for i, word in words}, unk_token="?"))
        >>> raw.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
        >>> config = LlamaConfig(
        ...     vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=2,
        ... )
        >>> prior = Prior(LlamaForCausalLM(config), tokenizer)
        >>> all_others = EditPolicy(threshold=1e-6, exclude_original=True)
        >>> policies = {"paper": EditPolicy(), "all others": all_others}
        >>> seen = inspect_edits(prior, ["the sea is 42 miles wide"], policies)
        >>> [seen.tallies[name].share("digits", "changed") for name in policies]
        [0.0, 1.0]
    """
    chosen = named_policies(policies)
    reader = Reader(prior.tokenizer)
    length = max_length or prior.max_length
    documents = read_documents(
        data, prior.tokenizer, max_length=length, vocab_size=prior.vocab_size,
        assistant_only=assistant_only,
    )  # fmt: skip
    if find is not None:
        documents = _matching(documents, find, reader)
    if order == "random":
        documents = iter(_sample(documents, limit or keep, seed))
    elif limit is not None:
        documents = islice(documents, limit)
    kept = _Kept(keep, order)
    seen = Inspection(
        policies=dict(chosen),
        documents=[],
        tallies={name: KindTally() for name in chosen},
        probabilities=Probabilities(),
        num_documents=0,
        num_tokens=0,
        prior=describe(prior),
        data=name_of(data),
        reader=reader,
    )
    if prior.unaligned is not prior:
        seen.alignment = {name: KindTally(WAYS) for name in chosen}
    for batch in _with_bar(in_batches(documents, batch_tokens), progress):
        scored = score_batch(prior, as_token_batch(batch))
        outcomes = {name: scored.outcome(policy, epoch=epoch) for name, policy in chosen.items()}
        for source, document in zip(batch, _split(scored, outcomes, reader, batch), strict=True):
            _count(seen, document, source, chosen)
            kept.offer(document, source.number)
    if not seen.num_documents:
        sought = "" if find is None else f" with {find!r} in it"
        raise ValueError(f"there is no document of two tokens or more{sought} in {seen.data}")
    seen.documents = kept.in_order()
    return seen


def describe(prior: BasePrior) -> str:
    """A prior in a few words."""
    config = getattr(getattr(prior, "model", None), "config", None)
    return getattr(config, "_name_or_path", "") or prior.description


def _split(
    scored: Scored, outcomes: Mapping[str, Outcome], reader: Reader, batch: list[SourceDocument]
) -> Iterator[Document]:
    """The documents of a batch, each with its edits and candidates."""
    found = scored.batch.documents
    logprob = np.full(found.num_tokens, np.nan, np.float32)
    logprob[scored.where.numpy()] = scored.logprob.numpy()
    wanted = logprob >= np.log(CANDIDATES_FROM)
    for outcome in outcomes.values():
        wanted |= (outcome.selected | outcome.dropped | outcome.spared).numpy()
    # In `where`, the places have other numbers than among all tokens.
    at = torch.from_numpy(wanted[scored.where.numpy()].nonzero()[0])
    ids, chances = (x.tolist() for x in scored.runners_up(at, NUM_CANDIDATES))
    place = scored.where[at].numpy()
    ways = scored.prior.ways(scored.batch)
    begin = 0
    for source, length in zip(batch, found.lengths, strict=True):
        part = slice(begin, begin + length)
        first, last = np.searchsorted(place, [begin, begin + length])
        candidates = {
            int(place[i] - begin): list(zip(ids[i], chances[i], strict=True))
            for i in range(first, last)
        }
        yield Document(
            name=source.name,
            ids=source.ids,
            text=reader.read(source.ids),
            probability=np.exp(logprob[part]),
            edits={name: _edit_of(outcome, source.ids, part) for name, outcome in outcomes.items()},
            candidates=candidates,
            ways=None if ways is None else ways[part],
        )
        begin += length


def _edit_of(outcome: Outcome, ids: list[int], part: slice) -> Edit:
    dropped = outcome.dropped[part].tolist()
    tokens = outcome.tokens[part].tolist()
    return Edit(
        scored=outcome.scored[part].numpy(),
        selected=outcome.selected[part].numpy(),
        spared=outcome.spared[part].numpy(),
        before=ids,
        after=[None if gone else token for gone, token in zip(dropped, tokens, strict=True)],
    )


def _count(
    seen: Inspection,
    document: Document,
    source: SourceDocument,
    policies: Mapping[str, EditPolicy],
) -> None:
    seen.num_documents += 1
    seen.num_tokens += len(document.ids)
    has_score = ~np.isnan(document.probability)
    has_label = has_score & (np.array(source.labels) != -100)
    seen.probabilities.add(np.log(document.probability[has_label].clip(1e-38)))
    for name, policy in policies.items():
        edit = document.edits[name]
        changed, removed = np.zeros_like(has_score), np.zeros_like(has_score)
        changed[edit.changed] = True
        removed[edit.removed] = True
        seen.tallies[name].add(
            document.text.kinds,
            has_label if policy.scope == "loss" else has_score,
            edit.selected, changed, removed, edit.spared,
        )  # fmt: skip
        if document.ways is not None:
            counts = document.ways >= 0
            if policy.scope == "loss":
                counts = counts & (np.array(source.labels) != -100)
            kinds = np.where(counts, 1 << document.ways.clip(0), 0).astype(np.uint16)
            seen.alignment[name].add(kinds, counts, edit.selected, changed, removed, edit.spared)


class _Kept:
    """The documents that will be shown; never more than `size`."""

    def __init__(self, size: int, order: Order) -> None:
        self.size = size
        self.order = order
        self._heap: list[tuple[tuple[int, int], int, Document]] = []

    def offer(self, document: Document, number: int) -> None:
        """Keep a document if it belongs to the first in the order."""
        rank = (0, 0)
        if self.order == "edited":
            rank = (document.num_edits, document.num_selected)
        entry = (rank, -number, document)  # numbers differ: documents are never compared
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
        elif self._heap and entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def in_order(self) -> list[Document]:
        """The documents, the first first."""
        return [document for _, _, document in sorted(self._heap, reverse=True)]


def _sample(documents: Iterable[SourceDocument], size: int, seed: int) -> list[SourceDocument]:
    """Some documents, each with the same chance, in the order of the file: a reservoir."""
    rng = random.Random(seed)
    chosen: list[SourceDocument] = []
    for count, document in enumerate(documents):
        if count < size:
            chosen.append(document)
        elif (place := rng.randrange(count + 1)) < size:
            chosen[place] = document
    return sorted(chosen, key=lambda document: document.number)


def _matching(
    documents: Iterable[SourceDocument], find: str, reader: Reader
) -> Iterator[SourceDocument]:
    try:
        pattern = re.compile(find)
    except re.error as error:
        raise ValueError(
            f"find must be a regular expression, got {find!r} ({error}); put a backslash before "
            "signs that mean themselves"
        ) from None
    for document in documents:
        if pattern.search("".join(map(reader.piece, document.ids))):
            yield document


def _with_bar(batches: Iterator[list[SourceDocument]], progress: bool) -> Iterator[Any]:
    with progress_bar(lambda: None, "documents", shown=progress) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))
