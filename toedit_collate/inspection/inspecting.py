"""`inspect_edits`: what several policies would do to data, in one pass of the prior."""

from __future__ import annotations

import heapq
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..config.policies import parse_policy, short_name
from ..data import Example, Preparation, examples
from ..data.progress import progress_bar
from ..editing.edit import check_num_draws
from ..policy import PRESETS, EditPolicy
from ..prior.base import BasePrior
from .advice import Advice, recommend
from .findings import Document, Edit, Findings, KindTally
from .kinds import Reader
from .page import as_page
from .reading import Source, as_data, as_token_batch, in_batches
from .scoring import Scored, score_batch
from .terminal import as_text

NUM_CANDIDATES = 5
# A token that no policy selects, and that the prior finds less probable than this, gets no list of
# candidates: there are too many such tokens, and the list decides nothing.
CANDIDATES_FROM = 0.5
Policies = Mapping[str, EditPolicy] | Sequence[EditPolicy | str] | EditPolicy | str


class Inspection(Findings):
    """Findings that show themselves as text, as a page, and in a notebook."""

    def to_html(self) -> str:
        """A page that needs no network; see `toedit_collate.inspection.page`."""
        return as_page(self)

    def recommend(self) -> Advice | None:
        """Which policy to use, if any, and why; None for edits of a training run."""
        return recommend(self)

    def __str__(self) -> str:
        return as_text(self, color=False)

    def _repr_html_(self) -> str:
        page = html.escape(self.to_html(), quote=True)
        style = "width:100%;height:48rem;border:0"
        return f'<iframe style="{style}" title="toedit inspect" srcdoc="{page}"></iframe>'


def inspect_edits(
    prior: BasePrior,
    data: Source,
    policies: Policies = "paper",
    *,
    limit: int | None = 500,
    keep: int = 200,
    max_length: int | None = None,
    assistant_only: bool = False,
    preparation: Preparation | None = None,
    batch_tokens: int = 4096,
    progress: bool = False,
) -> Inspection:
    """See what policies would do to data before training: one pass of the prior for all of them.

    The edits are those of `edit_tokens` in the first epoch.

    Args:
        prior: with its tokenizer.
        data: a file, folder or hub id as `toedit inspect --data` takes it; or rows: dicts with
            `text`, `messages`, `prompt` and `completion`, or `input_ids`; or texts.
        policies: names of presets, text such as "reference_code top_k=8", policies, or a dict of
            policies by name.
        limit: read the first N documents; None: all.
        keep: keep the N documents with the most edits, to show them.
        max_length: split longer documents into windows of this many tokens, as training does;
            None: the longest input of the prior.
        assistant_only: in chats, only the assistant's turns have labels.
        preparation: how rows become tokens, instead of `max_length` and `assistant_only`.
        batch_tokens: how many tokens to score at once.
        progress: show a progress bar.

    Returns:
        Tables, documents and a recommendation.

    Raises:
        ValueError: the prior has no tokenizer; a policy is unknown, or the prior does not support
            it; there is no document.
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
    documents = islice(examples(data, tokenizer, prep, vocab_size=prior.vocab_size), limit)
    seen = Inspection(
        policies=dict(chosen),
        tallies={name: KindTally() for name in chosen},
        prior=describe(prior),
        data=data.name,
        reader=reader,
        is_aligned=prior.unaligned is not prior,
    )

    def edited() -> Iterator[Document]:
        with progress_bar(lambda: None, "documents", shown=progress) as bar:
            for batch in in_batches(documents, batch_tokens):
                scored = score_batch(prior, as_token_batch(batch), context)
                edits = {name: scored.edit(one) for name, one in chosen.items()}
                found = _split(scored, edits, reader, batch)
                for source, document in zip(batch, found, strict=True):
                    _count(seen, document, source, chosen)
                    yield document
                bar.update(len(batch))

    # From a stream: only the documents to show are in memory.
    seen.documents = heapq.nlargest(keep, edited(), key=lambda document: document.num_edits)
    if not seen.num_documents:
        raise ValueError(f"{seen.data} has no document of two tokens or more")
    return seen


def named_policies(policies: Policies, **changes: Any) -> dict[str, EditPolicy]:
    """Policies by name, in their order.

    Args:
        policies: see `inspect_edits`.
        changes: fields to set in all policies that are given as text.

    Raises:
        ValueError: an unknown preset or field, a value out of range, or no policy at all.
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
    scored: Scored, edits: Mapping[str, Edit], reader: Reader, batch: list[Example]
) -> Iterator[Document]:
    """The documents of a batch, each with its edits and candidates."""
    logprob = np.full(scored.batch.documents.num_tokens, np.nan, np.float32)
    logprob[scored.where.numpy()] = scored.logprob.numpy()
    wanted = logprob >= np.log(CANDIDATES_FROM)
    for edit in edits.values():
        wanted |= edit.selected | edit.protected | (edit.after < 0)
    # `most_probable` takes indices into `where`.
    at = torch.from_numpy(wanted[scored.where.numpy()].nonzero()[0])
    most_probable = scored.most_probable(at, NUM_CANDIDATES)
    candidates = dict(zip(scored.where[at].tolist(), most_probable, strict=True))
    begin = 0
    for source in batch:
        end = begin + len(source.ids)
        pieces, kinds = reader.read(source.ids)
        yield Document(
            name=source.name,
            ids=source.ids,
            pieces=pieces,
            kinds=kinds,
            probability=np.exp(logprob[begin:end]),
            edits={name: edit.part(slice(begin, end)) for name, edit in edits.items()},
            candidates={i - begin: candidates[i] for i in range(begin, end) if i in candidates},
        )
        begin = end


def _count(
    seen: Findings, document: Document, source: Example, policies: Mapping[str, EditPolicy]
) -> None:
    seen.num_documents += 1
    seen.num_tokens += len(document.ids)
    has_score = ~np.isnan(document.probability)
    has_label = has_score & (np.array(source.labels) != -100)
    seen.probabilities.add(np.log(document.probability[has_label].clip(1e-38)))
    for name, policy in policies.items():
        in_scope = has_label if policy.scope == "loss" else has_score
        seen.tallies[name].add(document.kinds, in_scope, document.edits[name])
