"""`inspect_edits`: what several policies would do to data, in one pass of the prior."""

from __future__ import annotations

import heapq
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch

from ..config.policies import parse_policy, short_name
from ..data import Example, Preparation, examples
from ..data.progress import progress_bar
from ..editing.edit import check_num_draws
from ..policy import PRESETS, EditPolicy
from ..prior.base import BasePrior
from ..tokens.alignment.ways import WAYS
from .findings import Document, Edit, KindTally, Probabilities
from .inspection import Inspection
from .kinds import Reader
from .reading import Source, as_data, as_token_batch, in_batches
from .scoring import Outcome, Scored, score_batch

Order = Literal["edited", "file", "random"]
NUM_CANDIDATES = 5
# A token that no policy selects, and that the prior finds less probable than this, gets no list of
# candidates: there are too many such tokens, and the list decides nothing.
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
    preparation: Preparation | None = None,
    epoch: int = 0,
    batch_tokens: int = 4096,
    progress: bool = False,
) -> Inspection:
    """See what policies would do to data before training: one pass of the prior for all of them.

    The edits are those of `edit_tokens`, with the draws of generation 0.

    Args:
        prior: with its tokenizer.
        data: a file, folder or hub id as `toedit inspect --data` takes it; or rows: dicts with
            `text`, `messages`, `prompt` and `completion`, or `input_ids`; or texts.
        policies: names of presets, text such as "reference_code top_k=8", policies, or a dict of
            policies by name.
        limit: read this many documents; None: all.
        keep: keep this many documents to show.
        order: which ones to keep: "edited", those with the most edits; "file", the first;
            "random", a random choice.
        find: only documents whose text matches this regular expression.
        seed: of order "random", which then also chooses the documents to read.
        max_length: split longer documents into windows of this many tokens, as training does;
            None: the longest input of the prior.
        assistant_only: in chats, only the assistant's turns have labels.
        preparation: how rows become tokens, in place of `max_length` and `assistant_only`.
        epoch: of the draws.
        batch_tokens: how many tokens to score at once.
        progress: show a progress bar.

    Returns:
        Tables, documents and a recommendation; `to_html` makes a page of them.

    Raises:
        ValueError: the prior has no tokenizer; a policy is unknown, or the prior cannot follow it;
            there is no document.
        UnusableError: the data cannot be read.

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
    for policy in chosen.values():
        check_num_draws(prior, policy)
    context, *others = dict.fromkeys(policy.context for policy in chosen.values())
    if others:
        raise ValueError(
            f"policies have the contexts {context!r} and {others[0]!r}, and a text is scored once "
            "for all of them; inspect them one after the other"
        )
    reader = Reader(prior.tokenizer)
    data = as_data(data)
    prep = preparation or Preparation(max_length=max_length, assistant_only_loss=assistant_only)
    if prep.max_length is None:
        prep = replace(prep, max_length=prior.max_length)
    tokenizer = prep.set_up_prior(prior)
    documents = examples(data, tokenizer, prep, vocab_size=prior.vocab_size)
    if find is not None:
        documents = _matching(documents, find, reader)
    if order == "random":
        documents = iter(_sample(documents, limit or keep, seed))
    elif limit is not None:
        documents = islice(documents, limit)
    seen = Inspection(
        policies=dict(chosen),
        documents=[],
        tallies={name: KindTally() for name in chosen},
        probabilities=Probabilities(),
        num_documents=0,
        num_tokens=0,
        prior=describe(prior),
        data=data.name,
        reader=reader,
    )
    if prior.unaligned is not prior:
        seen.alignment = {name: KindTally(WAYS) for name in chosen}

    def edited() -> Iterator[tuple[int, Document]]:
        with progress_bar(lambda: None, "documents", shown=progress) as bar:
            for batch in in_batches(documents, batch_tokens):
                scored = score_batch(prior, as_token_batch(batch), context)
                outcomes = {name: scored.outcome(one, epoch=epoch) for name, one in chosen.items()}
                found = _split(scored, outcomes, reader, batch)
                for source, document in zip(batch, found, strict=True):
                    _count(seen, document, source, chosen)
                    yield source.number, document
                bar.update(len(batch))

    def rank(one: tuple[int, Document]) -> tuple[int, int, int]:
        number, document = one
        if order == "edited":
            return document.num_edits, document.num_selected, -number
        return 0, 0, -number

    # As a stream: only the documents to show are held.
    seen.documents = [document for _, document in heapq.nlargest(keep, edited(), key=rank)]
    if not seen.num_documents:
        wanted = "" if find is None else f" that matches {find!r}"
        raise ValueError(f"{seen.data} has no document of two tokens or more{wanted}")
    return seen


def named_policies(
    policies: Mapping[str, EditPolicy] | Sequence[EditPolicy | str] | EditPolicy | str,
    **changes: Any,
) -> dict[str, EditPolicy]:
    """Policies by name, in their order.

    Args:
        policies: see `inspect_edits`.
        changes: fields to set in all policies that are given as text.

    Raises:
        ValueError: an unknown preset or field, a value out of its range, or no policy at all.
        TypeError: a value of the wrong type.

    Example:
        >>> found = named_policies(["paper", "reference_code top_k=8", "threshold=0.5"])
        >>> list(found), found["threshold=0.5"].threshold
        (['paper', 'reference_code top_k=8', 'threshold=0.5'], 0.5)
    """
    if isinstance(policies, Mapping):
        named = dict(policies)
    else:
        given = [policies] if isinstance(policies, (str, EditPolicy)) else list(policies)
        named = {}
        for one in given:
            name = " ".join(one.split()) if isinstance(one, str) else short_name(one)
            named[name] = parse_policy(one, **changes) if isinstance(one, str) else one
    if not named:
        raise ValueError(f"policies is empty; name at least one of {', '.join(PRESETS)}")
    return named


def describe(prior: BasePrior) -> str:
    """A prior in a few words."""
    config = getattr(getattr(prior, "model", None), "config", None)
    return getattr(config, "_name_or_path", "") or prior.description


def _split(
    scored: Scored, outcomes: Mapping[str, Outcome], reader: Reader, batch: list[Example]
) -> Iterator[Document]:
    """The documents of a batch, each with its edits and candidates."""
    found = scored.batch.documents
    logprob = np.full(found.num_tokens, np.nan, np.float32)
    logprob[scored.where.numpy()] = scored.logprob.numpy()
    wanted = logprob >= np.log(CANDIDATES_FROM)
    for outcome in outcomes.values():
        wanted |= (outcome.selected | outcome.dropped | outcome.protected).numpy()
    # `most_probable` counts tokens within `where`, not within the batch.
    at = torch.from_numpy(wanted[scored.where.numpy()].nonzero()[0])
    ids, chances = (x.tolist() for x in scored.most_probable(at, NUM_CANDIDATES))
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
        protected=outcome.protected[part].numpy(),
        before=ids,
        after=[None if gone else token for gone, token in zip(dropped, tokens, strict=True)],
    )


def _count(
    seen: Inspection,
    document: Document,
    source: Example,
    policies: Mapping[str, EditPolicy],
) -> None:
    seen.num_documents += 1
    seen.num_tokens += len(document.ids)
    has_score = ~np.isnan(document.probability)
    has_label = np.array(source.labels) != -100
    scored_label = has_score & has_label
    seen.probabilities.add(np.log(document.probability[scored_label].clip(1e-38)))
    for name, policy in policies.items():
        edit = document.edits[name]
        labelled = scored_label if policy.scope == "loss" else has_score
        seen.tallies[name].add(document.text.kinds, labelled, edit)
        if document.ways is not None:
            counts = document.ways >= 0
            if policy.scope == "loss":
                counts = counts & has_label
            ways = np.where(counts, 1 << document.ways.clip(0), 0).astype(np.uint16)
            seen.alignment[name].add(ways, counts, edit)


def _sample(documents: Iterable[Example], size: int, seed: int) -> list[Example]:
    """A reservoir sample, in the order of the file."""
    rng = random.Random(seed)
    chosen: list[Example] = []
    for count, document in enumerate(documents):
        if count < size:
            chosen.append(document)
        elif (place := rng.randrange(count + 1)) < size:
            chosen[place] = document
    return sorted(chosen, key=lambda document: document.number)


def _matching(documents: Iterable[Example], find: str, reader: Reader) -> Iterator[Example]:
    try:
        pattern = re.compile(find)
    except re.error as error:
        raise ValueError(
            f"find must be a regular expression, got {find!r} ({error}); put a backslash in front "
            "of characters that are meant literally"
        ) from None
    for document in documents:
        if pattern.search("".join(map(reader.piece, document.ids))):
            yield document
