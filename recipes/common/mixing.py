"""Packed rows of text, and mixtures of human and synthetic data by tokens (section 2.1)."""

from __future__ import annotations

import dataclasses
from typing import Any

from toedit_collate.data import encode, format_of
from toedit_collate.errors import UnusableError

from .arguments import DataArguments
from .data import load_training

SHUFFLE_BUFFER = 10_000  # rows of a stream


def pack_text(rows: Any, tokenizer: Any, args: Any) -> Any:
    """Tokenize the column `text`, end each document with EOS, and pack documents into rows.

    Args:
        rows: a `Dataset`, or an `IterableDataset`, which is shuffled in a buffer.
        tokenizer: of the trainee.
        args: the `SFTConfig`: `max_length`, `packing_strategy` and `seed`. With "bfd_split" each
            part of a document keeps its own attention, and no token is lost.

    Returns:
        Rows of `input_ids`, and `seq_lengths` where documents keep their own attention.
    """
    from trl import pack_dataset

    is_stream = not hasattr(rows, "select")
    if is_stream:
        rows = rows.shuffle(seed=args.seed, buffer_size=SHUFFLE_BUFFER)
    columns = rows.column_names or list(next(iter(rows)))
    with args.main_process_first(desc="tokenizing"):  # the other processes find it in the cache
        tokenized = rows.map(
            _tokenize,
            batched=True,
            remove_columns=columns,
            fn_kwargs={"tokenizer": tokenizer},
            **({} if is_stream else {"num_proc": args.dataset_num_proc}),
        )
        return pack_dataset(tokenized, args.max_length, args.packing_strategy)


def _tokenize(batch: dict[str, list[str]], tokenizer: Any) -> dict[str, Any]:
    return {"input_ids": encode(tokenizer, batch["text"])[0]}


def load_mixture(data: DataArguments, tokenizer: Any, args: Any) -> Any:
    """The rows to train on: those of `dataset_name`, or the sources of `datasets`, mixed.

    With `args.packing`, each source is packed by itself, since a packed row is edited or not as a
    whole. TRL then prepares nothing. Rows of a source with `edit: false` have
    False in the column `edit`. The mixture ends with the source that ends first.

    Raises:
        UnusableError: as `load_training`; or sources are packed that have no column `text`.
    """
    if not data.sources:
        return load_training(data, tokenizer)
    from datasets import Value, interleave_datasets

    rows: list[Any] = []
    total = sum(source.weight for source in data.sources)
    for source in data.sources:
        own = dataclasses.replace(data, dataset_name=source.name, datasets=None)
        loaded = load_training(own, tokenizer)
        if args.packing:
            if "text" not in (loaded.column_names or next(iter(loaded))):
                raise UnusableError(
                    f"datasets: {source.name} has no column 'text', and only text is packed apart; "
                    "set packing: false, or dataset_columns: {text: NAME}"
                )
            loaded = pack_text(loaded, tokenizer, args)
        columns = _columns_to_train_on(loaded)
        if rows and columns != _columns_to_train_on(rows[0]):
            raise UnusableError(
                f"datasets: {source.name} has the columns {', '.join(columns)}, and the source "
                f"before it {', '.join(_columns_to_train_on(rows[0]))}; all need the same"
            )
        loaded = loaded.select_columns(columns)
        loaded = loaded.map(_mark, fn_kwargs={"edit": source.edit})
        rows.append(loaded.cast_column("edit", Value("bool")))
    if args.packing:
        args.dataset_kwargs = {"skip_prepare_dataset": True}
    return interleave_datasets(
        rows, probabilities=[source.weight / total for source in data.sources], seed=args.seed
    )


def _columns_to_train_on(rows: Any) -> list[str]:
    first = next(iter(rows))
    return [*dict.fromkeys([*(format_of(first) or ()), *(set(first) & {"labels", "seq_lengths"})])]


def _mark(row: dict[str, Any], edit: bool) -> dict[str, Any]:
    return {"edit": edit}


def mix(human: Any, synthetic: Any, fraction: float, seed: int) -> Any:
    """Packed rows of two datasets, drawn so that a share of the tokens is synthetic.

    Rows are of one length, so their shares are those of the tokens. It ends with the dataset that
    ends first; for runs of the same number of tokens at each fraction, set `max_steps`.

    Source: arXiv:2412.14689, section 2.1 (0, 25, 50, 75 and 100 %).

    Args:
        human: packed rows.
        synthetic: packed rows.
        fraction: of synthetic tokens, 0 to 1.
        seed: of the draw.
    """
    from datasets import interleave_datasets

    if fraction in (0, 1):
        return synthetic if fraction else human
    return interleave_datasets(
        [human, synthetic], probabilities=[1 - fraction, fraction], seed=seed
    )


def limit_tokens(rows: Any, num_tokens: float, args: Any) -> Any:
    """The first rows that hold `num_tokens`, the same ones in each epoch, in another order.

    Args:
        rows: packed rows, all of `args.max_length` tokens; also a stream.
        num_tokens: how many.
        args: the `SFTConfig`: `max_length` and `seed`.

    Raises:
        UnusableError: they hold less than one row.
    """
    count = int(num_tokens // args.max_length)
    if count < 1:
        raise UnusableError(
            f"unique_tokens must be at least max_length ({args.max_length}), got {num_tokens:g}"
        )
    if hasattr(rows, "select"):
        return rows.select(range(min(count, len(rows))))
    from datasets import IterableDataset

    # A shuffled stream gives other rows in each epoch; a generator does not know the epoch.
    fixed = IterableDataset.from_generator(
        _first, gen_kwargs={"rows": rows, "count": count}, features=rows.features
    )
    return fixed.shuffle(seed=args.seed, buffer_size=SHUFFLE_BUFFER)


def _first(rows: Any, count: int) -> Any:
    yield from rows.take(count)
