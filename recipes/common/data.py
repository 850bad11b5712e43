"""Datasets of the hub or of local files, in the formats that TRL trains on."""

from __future__ import annotations

from typing import Any

from toedit_collate.data import Data, check_text, format_of, load_rows, parse_source
from toedit_collate.data.tokens import check_format, is_chat
from toedit_collate.errors import UnusableError

from .arguments import DataArguments


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
    name, config, split = parse_source(data.dataset_name, "dataset_name")
    if split == "train":
        split = data.dataset_train_split
    rows = load_rows(
        name, data.dataset_config or config, split, streaming=data.dataset_streaming,
        option="dataset_name",
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
        loaded = load_rows(
            *parse_source(str(source), f"held_out: {name}"), option=f"held_out: {name}"
        )
        rows = in_trl_format(loaded, data, tokenizer, f"held_out: {name}")
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
    for number, text in enumerate(batch["text"]):
        check_text(text, f"text {number} (from 0)")
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
        # A column that already has the new name is removed.
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
        if FORMATS[data.dataset_format].fits(_columns(rows)) or _format(rows, what) is None:
            rows = to_trl_format(rows, data.dataset_format)
    form = _format(rows, what)
    if form is None:
        raise UnusableError(
            f"{what} has the columns {', '.join(sorted(_columns(rows)))}, and SFTTrainer wants "
            "text, messages, prompt and completion, or input_ids; say which is which, as in "
            "dataset_columns: {text: body}, or name a dataset_format"
        )
    rows = _checked(rows, form, Data(what, "", lambda: []))
    if is_chat(next(iter(rows))[form[-1]]) and not getattr(tokenizer, "chat_template", None):
        raise UnusableError(
            f"{what} holds conversations, and the tokenizer of "
            f"{getattr(tokenizer, 'name_or_path', '')!r} has no chat template; name one by "
            "chat_template_path (a .jinja file, or a model that has one), or start from an "
            "instruction-tuned model"
        )
    return rows


def _checked(rows: Any, form: tuple[str, ...], data: Data) -> Any:
    """Rows that hold what their format says; those of a stream are checked as they come.

    Raises:
        UnusableError: one holds null, or a number for a text; names it.
    """

    def check(row: dict[str, Any], number: int) -> dict[str, Any]:
        check_format(data, row, f"row {number} (from 0)")
        return {}

    if not hasattr(rows, "select"):
        return rows.map(check, with_indices=True, features=rows.features)
    columns = [rows.data.column(name) for name in form if name in rows.column_names]
    is_list = isinstance(rows[0][form[0]], list)
    is_fine = [
        not column.null_count
        and (str(column.type) == "string" or (is_list and "timestamp" not in str(column.type)))
        for column in columns
    ]
    if not all(is_fine) or len(columns) < len(form):  # a pass over the rows tells which
        for number, row in enumerate(rows):
            check(row, number)
    return rows


def _columns(rows: Any) -> set[str]:
    return set(rows.column_names or next(iter(rows)))  # of a stream, its first row tells


def _format(rows: Any, what: str) -> tuple[str, ...] | None:
    """The format of the first row; None: it is none of TRL's."""
    first = next(iter(rows), None)
    if first is None:
        raise UnusableError(f"{what} has no rows")
    return format_of(first)
