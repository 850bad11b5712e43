"""Datasets of the hub or of local files, in the formats that TRL trains on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toedit_collate.config.arguments import DataArguments
from toedit_collate.data import load_rows, parse_source
from toedit_collate.errors import UnusableError

_FORMATS = ("text", "messages", "prompt and completion", "input_ids")


def load_source(source: str | Mapping[str, Any]) -> Any:
    """Load what a `held_out` entry names.

    Args:
        source: "file", "file:split", "hub_id", "hub_id:config" or "hub_id:config:split"; or the
            keyword arguments of `datasets.load_dataset`.

    Raises:
        UnusableError: it can't be loaded.
    """
    if isinstance(source, Mapping):
        import datasets

        return datasets.load_dataset(**{"split": "train", **source})
    name, config, split = parse_source(source)
    return load_rows(name, config, split)


def load_training(data: DataArguments, tokenizer: Any) -> Any:
    """The rows to train on, in a format that SFTTrainer takes.

    Args:
        data: names them.
        tokenizer: of the trainee; conversations need its chat template.

    Raises:
        UnusableError: there is no dataset, it has none of TRL's formats, or the tokenizer no chat
            template.
    """
    if data.dataset_name is None:
        raise UnusableError(
            "dataset_name is missing; name a hub dataset, or a local .jsonl or .parquet file"
        )
    rows = load_rows(
        data.dataset_name, data.dataset_config, data.dataset_train_split,
        streaming=data.dataset_streaming,
    )  # fmt: skip
    if data.dataset_limit is not None:
        rows = first_rows(rows, data.dataset_limit)
    return in_trl_format(rows, data, tokenizer, data.dataset_name)


def load_held_out(
    data: DataArguments, tokenizer: Any, max_length: int | None
) -> dict[str, Any] | None:
    """The held-out sets, each of its rows a document, or a part of one that is longer.

    A text is cut into windows of `max_length` tokens, each scored on its own.

    Source: arXiv:2412.14689, Appendix C.2.

    Returns:
        Name -> dataset; None where there is none.
    """
    sets = {}
    for name, source in data.held_out_sources.items():
        rows = in_trl_format(load_source(source), data, tokenizer, f"held_out: {name}")
        if "text" in rows.column_names:
            rows = rows.map(
                _windows,
                batched=True,
                remove_columns=rows.column_names,
                fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
            )
        if data.held_out_limit is not None:
            rows = first_rows(rows, data.held_out_limit)
        sets[name] = rows
    return sets or None


def _windows(
    batch: dict[str, list[Any]], tokenizer: Any, max_length: int | None
) -> dict[str, list[Any]]:
    windows = []
    for ids in tokenizer(batch["text"], add_special_tokens=True, verbose=False)["input_ids"]:
        step = max_length or max(len(ids), 1)
        # A window of one token has none that could be scored.
        windows += [w for i in range(0, len(ids), step) if len(w := ids[i : i + step]) > 1]
    return {"input_ids": windows, "labels": windows}


def first_rows(rows: Any, limit: int) -> Any:
    """At most `limit` rows."""
    return (
        rows.select(range(min(limit, len(rows)))) if hasattr(rows, "select") else rows.take(limit)
    )


def in_trl_format(rows: Any, data: DataArguments, tokenizer: Any, what: str) -> Any:
    """Rows as TRL's formats have them; `what` names the dataset in errors.

    Raises:
        UnusableError: columns are missing, or the tokenizer has no chat template.
    """
    columns = _columns(rows)
    renamed = {theirs: ours for ours, theirs in data.columns.items() if theirs in columns}
    if renamed:
        # A column that stands in the way of a new name is not wanted.
        rows = rows.remove_columns(
            [n for n in renamed.values() if n in columns and n not in renamed]
        )
        rows = rows.rename_columns(renamed)
    if data.dataset_format is not None:
        from .formats import FORMATS, to_trl_format

        if data.dataset_format not in FORMATS:
            raise UnusableError(
                f"dataset_format must be one of {', '.join(FORMATS)}, got {data.dataset_format!r}"
            )
        # A held-out set, or data prepared beforehand, may have one of TRL's formats already.
        if FORMATS[data.dataset_format].fits(_columns(rows)) or not _is_known(_columns(rows)):
            rows = to_trl_format(rows, data.dataset_format)
    columns = _columns(rows)
    if not _is_known(columns):
        raise UnusableError(
            f"{what} has the columns {', '.join(sorted(columns))}, and SFTTrainer wants "
            f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}; say which is which, as in "
            "dataset_columns: {text: body}, or name a dataset_format"
        )
    _check_template(rows, tokenizer, what)
    return rows


def _columns(rows: Any) -> set[str]:
    names = rows.column_names
    if names is None:  # of a stream, until it is read
        names = list(next(iter(rows)))
    return set(names)


def _is_known(columns: set[str]) -> bool:
    return bool(columns & {"text", "messages", "input_ids"}) or {"prompt", "completion"} <= columns


def _check_template(rows: Any, tokenizer: Any, what: str) -> None:
    first = next(iter(rows), None)
    if first is None:
        raise UnusableError(f"{what} has no rows")
    talks = any(isinstance(first.get(n), list) for n in ("messages", "prompt", "completion"))
    if talks and not getattr(tokenizer, "chat_template", None):
        raise UnusableError(
            f"{what} holds conversations, and the tokenizer of "
            f"{getattr(tokenizer, 'name_or_path', '')!r} has no chat template; name one by "
            "chat_template_path (a .jinja file, or a model that has one), or start from an "
            "instruction-tuned model"
        )
