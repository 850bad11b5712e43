"""`toedit apply`: score a dataset once, offline, for training runs without the prior."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import options
from ..data import (
    Batch,
    Data,
    Documents,
    Preparation,
    find_documents,
    labels_of,
    open_data,
    tokenize,
)  # fmt: skip
from ..data.documents import COUNTS, check_ids, edit_documents
from ..data.files import whole
from ..data.output import OUTPUT_HELP, Reviser, check_output, write_rows
from ..data.progress import progress_bar
from ..data.tokens import check_first
from ..errors import UnusableError
from ..policy import EditPolicy
from ..prior.prior import Prior
from ..stores.cache import NO_LIMIT, DecisionCache, Identity
from ..stores.cache.decisions import list_identities
from ..stores.journal import Texts
from ..stores.ragged import Array
from ..stores.segments import DamagedFileError
from .journal import as_python

_BEST = (
    ". Best is the tokenized data of the training run, saved with "
    "trainer.train_dataset.save_to_disk(FOLDER); the prior's tokenizer reads text and chats"
)
# Documents are sorted by length within this many batches.
BATCHES_PER_WINDOW = 16
# Write the cache at least this often, so that a killed run loses little.
SECONDS_BETWEEN_WRITES = 60.0


def add_apply(commands: Any) -> None:
    """Add `apply` to the subcommands of an argparse parser."""
    parser = options.add_command(
        commands,
        "apply",
        "score a dataset once, offline: fill a decision cache, or write the edited dataset",
        "Score all documents of a dataset with the prior. With --cache, store the decisions: "
        "training runs then edit the documents without the prior, with a fresh draw in each epoch. "
        "With --output, write the dataset with one edit, that of epoch 0, as token ids: nothing is "
        "tokenized again. With --cache, a command that was killed continues where it was.",
        "toedit apply --prior Qwen/Qwen2.5-0.5B --data chats.jsonl --cache decisions",
    )
    options.add_data(parser, required=True, more=_BEST)
    output = options.Group(parser, "output")
    output.value("--cache", "folder of the decision cache", "DIR", Path)
    output.value("--output", f"the edited dataset: {OUTPUT_HELP}", "OUT", Path)
    output.value(
        "--shard",
        "score the I-th of N equal parts of the data, counted from 0: start N processes, one for "
        "each GPU, with the same --cache or with an --output each",
        "I/N",
        _shard,
        "0/1",
    )
    options.add_reading(parser, max_length="whole documents", batch_tokens=16_384)
    options.add_prior(parser, required=True)
    more = "; the training run must have the same, but for seed and redraw"
    options.add_policy(options.Group(parser, "policy"), more=more)
    parser.set_defaults(run=_run)


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(
            f"must be I/N with 0 <= I < N, as in 0/8 to 7/8, got {text!r}"
        )
    return int(number), int(count)


def _run(args: argparse.Namespace) -> int:
    policy = options.read_policy(args.policy)
    if args.cache is None and args.output is None:
        raise UnusableError(
            "nothing to write; add --cache DIR, for training without the prior, or --output OUT"
        )
    if args.output is not None:
        if policy.target != "both":
            raise UnusableError(
                f"target={policy.target} cannot be used with --output, which writes one text "
                "for inputs and labels; set the target in the training run only, or use --cache"
            )
        check_output(args.output)
    from ..config.priors import open_prior  # late: it imports the Trainer

    data, prep = open_data(args.data, args.split), options.preparation_of(args)
    check_first(data, prep)
    cache = None if args.cache is None else _open_cache(args.cache)
    prior = open_prior(args.prior, **options.prior_options(args))
    prep.set_up_prior(prior)
    scorer = Scorer(prior, policy, cache, args.batch_tokens)
    number, count = args.shard
    desc = f"part {number}/{count}" if count > 1 else None
    begin = time.monotonic()

    def count_rows() -> int | None:
        return (total := data.count_rows()) and len(range(number, total, count))

    try:
        if cache is not None:
            cache.open(Identity.of(prior, policy))
            before = cache.num_documents
        with progress_bar(count_rows, "rows", desc=desc) as bar:
            windows = read_windows(data, prior, prep, args.batch_tokens, args.shard)
            edited = (scorer.edit(window, bar) for window in windows)
            _write(args.output, edited, data, prep, prior.tokenizer, bar)
            if not scorer.counts["rows"] and count == 1:  # a part of few rows may be empty
                raise data.error("it holds no rows; check the path")
        scorer.write()
    except KeyboardInterrupt:
        scorer.write()
        kept = "" if cache is None else "; what was decided is kept: start again to continue"
        print(f"interrupted after {scorer.counts['rows']:,} rows{kept}", file=sys.stderr)
        return 130
    except DamagedFileError as error:
        raise UnusableError(str(error)) from None
    _print_report(args, scorer.counts, time.monotonic() - begin, prior)
    if cache is not None:
        _print_cache(args.cache, policy, scorer.counts, cache, before)
    return 0


def _open_cache(path: Path) -> DecisionCache:
    try:
        cache = DecisionCache(path, max_bytes=NO_LIMIT)
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # fail before hours of scoring, not after
            pass
    except OSError as error:
        raise UnusableError(
            f"--cache {path}: can't be written to ({error}); name a folder, new or of a cache"
        ) from None
    return cache


def _write(
    output: Path | None, edited: Iterator[Any], data: Any, prep: Any, tokenizer: Any, bar: Any
) -> None:
    """Write the edited rows. All columns follow the tokens, and text is decoded from them."""
    if output is None:
        for _ in edited:  # only fill the cache
            pass
        return
    reviser = Reviser(data, tokenizer, prep)

    def rows() -> Iterator[Any]:
        for window, texts in edited:
            known = np.ones(len(texts.start), bool)
            yield from reviser.revise(window.rows, window.added, window.documents, texts, known)

    with whole(output, "--output", replace=False) as target:
        write_rows(data, reviser, rows(), target, output.suffix, bar)


def _print_report(
    args: argparse.Namespace, counts: Counter[str], seconds: float, prior: Prior
) -> None:
    num_scored, num_tokens = counts["scored"], counts["tokens"]
    print(
        f"{counts['rows']:,} rows, {counts['documents']:,} documents, {num_tokens:,} tokens: "
        f"{num_scored:,} scored, {counts['selected']:,} selected "
        f"({counts['selected'] / max(num_scored, 1):.2%})\n"
        f"{seconds:,.1f} s, {num_tokens / max(seconds, 1e-9):,.0f} tokens/s, on {prior.device}"
    )
    if args.output is not None:
        print(
            f"{args.output}: the edit of epoch 0: {counts['changed']:,} changed "
            f"({counts['changed'] / max(num_scored, 1):.2%}), {counts['dropped']:,} removed"
        )


def _print_cache(
    path: Path, policy: EditPolicy, counts: Counter[str], cache: DecisionCache, before: int
) -> None:
    """Print what is in the cache, and how to train with it; `before`: its documents before."""
    identity = cache.identity
    assert identity is not None
    new = cache.num_documents - before
    print(
        f"{path}: {cache.num_documents:,} documents in {cache.nbytes:,} bytes; {new:,} new, "
        f"{counts['editable'] - new:,} known already"
    )
    # If the cache holds several priors, say which one.
    several = sum(one.policy == identity.policy for one in list_identities(path)) > 1
    prior = f'cache.prior(policy, "{identity.digest[:12]}")' if several else "cache.prior(policy)"
    print(
        "\nTo train without the prior:\n\n"
        "    from toedit_collate import DecisionCache, EditPolicy, ToEditCollator\n\n"
        f'    policy, cache = {as_python(policy.record())}, DecisionCache("{path}")\n'
        f"    collator = ToEditCollator({prior}, policy, tokenizer=tokenizer, cache=cache)\n"
        f"    # or, with SFTTrainer: attach(trainer, {prior}, policy, cache=cache)"
    )


class Window(NamedTuple):
    """Some rows with their tokens.

    Attributes:
        rows: with `input_ids`.
        added: for each row, see `tokenize`.
        documents: of M tokens.
        labels: (M,) int64.
    """

    rows: Batch
    added: list[Array | None]
    documents: Documents
    labels: Array


def read_windows(
    data: Data, prior: Prior, prep: Preparation, batch_tokens: int, shard: tuple[int, int]
) -> Iterator[Window]:
    """Read the I-th of N parts of the data (`shard`), some rows at a time.

    Raises:
        UnusableError: a row cannot be used, or the prior cannot score a document.
    """
    rows, added = Batch([], []), list[Any]()
    num_tokens = num_read = 0
    for batch in data.batches():
        # Every N-th row, so that all parts have the same size, and documents of all lengths.
        mine = slice((shard[0] - num_read) % shard[1], None, shard[1])
        num_read += len(batch.rows)
        part = Batch(batch.rows[mine], batch.names[mine])
        added += tokenize(data, part, prior.tokenizer, prep)
        rows.rows.extend(part.rows)
        rows.names.extend(part.names)
        num_tokens += sum(len(row["input_ids"]) for row in part.rows)
        if num_tokens >= BATCHES_PER_WINDOW * batch_tokens:
            yield _window(data, prior, prep, rows, added)
            rows, added, num_tokens = Batch([], []), [], 0
    if rows.rows:
        yield _window(data, prior, prep, rows, added)


def _window(
    data: Data, prior: Prior, prep: Preparation, rows: Batch, added: list[Array | None]
) -> Window:
    documents = find_documents(data, rows)
    labels = labels_of(data, rows, documents, prep)
    documents = documents.cut(prep.window)
    check_ids(data, rows, documents, prior.vocab_size)
    return Window(rows, added, documents, labels)


class Scorer:
    """Edits windows, some `batch_tokens` at a time, and fills the cache, if there is one.

    Attributes:
        counts: so far. `editable` documents have a token to which the policy applies.
    """

    def __init__(
        self, prior: Prior, policy: EditPolicy, cache: DecisionCache | None, batch_tokens: int
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._prior, self._policy, self._cache = prior, policy, cache
        self._batch_tokens = batch_tokens
        self._written_at = time.monotonic()

    def edit(self, window: Window, bar: Any) -> tuple[Window, Texts]:
        """Edit a window, and return it with its documents after the edit; `bar` counts its rows.

        Raises:
            UnusableError: the prior cannot score it, or the cache cannot be written.
        """
        try:
            texts, counts = edit_documents(
                self._prior, self._policy, window.documents, window.labels,
                batch_tokens=self._batch_tokens, cache=self._cache,
            )  # fmt: skip
        except ValueError as error:  # the prior returned NaN, or a file of the cache is damaged
            raise UnusableError(str(error)) from None
        self.counts.update(dict(zip(COUNTS, counts.sum(0).tolist(), strict=True)))
        self.counts.update(
            rows=len(window.rows.rows), documents=len(counts), tokens=len(window.labels),
            editable=int((counts[:, 0] > 0).sum()),
        )  # fmt: skip
        bar.update(len(window.rows.rows))
        if time.monotonic() - self._written_at > SECONDS_BETWEEN_WRITES:
            self.write()
        return window, texts

    def write(self) -> None:
        """Write the cache; raises an UnusableError if that is impossible."""
        self._written_at = time.monotonic()
        try:
            if self._cache is not None:
                self._cache.flush()
        except OSError as error:
            raise UnusableError(
                f"--cache can't be written ({error}); make room, and start again: what was written "
                "before is kept"
            ) from None
