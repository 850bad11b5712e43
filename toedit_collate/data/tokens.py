"""From a row to its token ids and labels: those that TRL's SFTTrainer makes.

Rows of plain text are tokenized here, in batches. Chats, and prompts with completions, go through
SFTTrainer's own preparation of datasets, without its trainer or a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np

from ..errors import UnusableError, first_line
from ..stores.ragged import Array
from ..tokens.removal import TOKEN_COLUMNS
from .reading import Batch, Data, Row, check_text

COLUMNS = ("input_ids", "prompt", "messages", "conversations", "text")
"""The columns that say what a row is; the first that it has decides, as in SFTTrainer."""
# Documents longer than the model takes are nothing to warn of where they are read.
_SILENT = {"verbose": False}
_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"
# The text of chat data, which an edit of its tokens leaves behind.
CHAT_COLUMNS = ("messages", "conversations", "prompt", "completion")
PER_TOKEN = ("input_ids", "labels", "attention_mask", "position_ids", *TOKEN_COLUMNS)
"""Columns that must have a value for each token."""
SAVE = (
    "save the data that was trained on, trainer.train_dataset.save_to_disk(FOLDER), and give "
    "--data FOLDER"
)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How rows become tokens: the fields of `SFTConfig` that decide it, with the same names.

    Attributes:
        max_length: of a document, in tokens; None: whole documents.
        truncation_mode: of documents that are longer: "keep_start" or "keep_end"; None: cut them
            into windows, which `packing_strategy="bfd_split"` does. The first window is what
            "keep_start" and `packing_strategy="bfd"` keep.
        completion_only_loss: see `SFTConfig`.
        assistant_only_loss: see `SFTConfig`.
        dataset_text_field: the column of rows of plain text.
        eos_token: see `SFTConfig`; None: the tokenizer's.
        chat_template_path: a .jinja file; None: the tokenizer's template.
        add_eos: end plain text with the end token, as SFTTrainer does; False: for trainers that
            don't.

    Raises:
        UnusableError: a value is out of its range, or TRL's own model of a template is asked for.
    """

    max_length: int | None = None
    truncation_mode: str | None = None
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    dataset_text_field: str = "text"
    eos_token: str | None = None
    chat_template_path: str | None = None
    add_eos: bool = True

    def __post_init__(self) -> None:
        if self.truncation_mode not in (None, "keep_start", "keep_end"):
            raise UnusableError(
                f"truncation_mode must be keep_start or keep_end, got {self.truncation_mode!r}"
            )
        if self.truncation_mode and self.max_length is None:
            raise UnusableError(
                f"truncation_mode {self.truncation_mode!r} needs max_length; set it as in training"
            )

    @property
    def window(self) -> int | None:
        """Tokens of the windows that longer documents are cut into; None: they are not."""
        return None if self.truncation_mode else self.max_length

    def set_up(self, tokenizer: Any) -> Any:
        """Give a tokenizer the end token and the chat template, as SFTTrainer does; returns it.

        Raises:
            UnusableError: it has no such token, or the template can't be read.
        """
        if self.eos_token is not None:
            if self.eos_token not in tokenizer.get_vocab():
                raise UnusableError(
                    f"eos_token {self.eos_token!r} is not in the vocabulary of the tokenizer; name "
                    "one of its tokens"
                )
            tokenizer.eos_token = self.eos_token
        path = self.chat_template_path
        if path is not None:
            if not (path.endswith((".jinja", ".j2")) and Path(path).is_file()):
                raise UnusableError(
                    f"chat_template_path {path!r} is no .jinja file. A model's template adds "
                    f"tokens to the vocabulary: {SAVE}"
                )
            tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        return tokenizer


SFT_DEFAULTS = Preparation()


def format_of(row: Row, prep: Preparation = SFT_DEFAULTS) -> tuple[str, ...] | None:
    """The columns of a row that its tokens come from; None: there are none.

    Example:
        >>> format_of({"id": 1, "text": "a"}), format_of({"body": "a"})
        (('text',), None)
    """
    forms: tuple[tuple[str, ...], ...] = (
        ("input_ids",), ("prompt", "completion"), ("messages",), ("conversations",),
        (prep.dataset_text_field,),
    )  # fmt: skip
    return next((form for form in forms if row.get(form[0]) is not None), None)


def check_format(
    data: Data, row: Row, name: str, prep: Preparation = SFT_DEFAULTS
) -> tuple[str, ...]:
    """The columns of a row that its tokens come from, which hold what they should.

    Raises:
        UnusableError: there are none, one is missing, or holds something else.
    """
    form = format_of(row, prep)
    if form is None:
        known = [*COLUMNS[:4], "completion", prep.dataset_text_field]
        if row.get("completion") is not None:
            raise data.error(f"prompt of {name} is missing; a completion needs one")
        if null := [column for column in known if column in row]:
            raise data.error(
                f"{name} has null in {', '.join(null)}, and nothing else to read; remove the row"
            )
        raise data.error(
            f"{name} has the columns {sorted(row)}, none of input_ids, {prep.dataset_text_field}, "
            f"messages, or prompt and completion: rename the columns, or {SAVE}"
        )
    if form == ("prompt", "completion") and row.get("completion") is None:
        raise data.error(
            f"completion of {name} is missing; SFTTrainer takes a row with a prompt as prompt and "
            "completion: add it, or remove or rename the column prompt"
        )
    if form == ("input_ids",):
        return form
    values = [row[column] for column in form]
    texts = all(isinstance(value, str) for value in values) and form[0] in (
        "prompt", prep.dataset_text_field
    )  # fmt: skip
    if not texts and not (all(map(is_chat, values)) and form[0] != prep.dataset_text_field):
        shown = str(values[0] if len(values) == 1 else values)[:60]
        raise data.error(
            f"{' and '.join(form)} of {name} is neither text nor a list of messages with role and "
            f"content: {shown}; see TRL's dataset formats"
        )
    if prep.assistant_only_loss and texts:
        raise data.error(
            f"assistant_only_loss is for conversations, and {name} has text in "
            f"{' and '.join(form)}; SFTTrainer refuses it, too: leave it out"
        )
    for column, value in zip(form, values, strict=True) if texts else ():
        try:
            check_text(value, f"{column} of {name}")
        except ValueError as error:
            raise data.error(str(error)) from None
    return form


def check_first(data: Data, prep: Preparation = SFT_DEFAULTS) -> None:
    """See that the first rows are of a format that is known, before minutes go into a model.

    Raises:
        UnusableError: they are not, or there are no rows.
    """
    first = next(data.batches(), None)
    if first is None:
        raise data.error("it holds no rows; check the path")
    for row, name in zip(first.rows, first.names, strict=True):
        check_format(data, row, name, prep)


def is_chat(value: Any) -> bool:
    """Whether it is a list of messages, one at least, each with a role (or `from`).

    Example:
        >>> is_chat([{"role": "user", "content": "hi"}]), is_chat("hi")
        (True, False)
    """
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(
            isinstance(m, dict) and isinstance(m.get("role", m.get("from")), str) for m in value
        )
    )


def encode(
    tokenizer: Any, texts: Sequence[str], *, eos: bool = True
) -> tuple[list[list[int]], list[Array]]:
    """Token ids of texts as SFTTrainer makes them, each with its end token.

    Args:
        tokenizer: of transformers; one without an end token adds none.
        texts: one document each.
        eos: put an end token after those that have none.

    Returns:
        ids: of each text.
        added: (T,) bool for each, True at special tokens that the text does not have: the end
            token, and what the tokenizer puts around it.
    """
    end = (tokenizer.eos_token or "") if eos else ""
    ended = [text if text.endswith(end) else text + end for text in texts]
    encoded = tokenizer(ended, return_special_tokens_mask=True, **_SILENT)
    masks = [np.array(mask, bool) for mask in encoded["special_tokens_mask"]]
    for text, whole, mask in zip(texts, ended, masks, strict=True):
        if len(whole) > len(text):
            mask[np.flatnonzero(~mask)[-1:]] = True
    return encoded["input_ids"], masks


def tokenize(
    data: Data, batch: Batch, tokenizer: Any, prep: Preparation = SFT_DEFAULTS
) -> list[Array | None]:
    """Give rows of text and of chats their `input_ids`, and chats their `labels`, in place.

    Rows that have `input_ids` keep them. All rows are truncated where `prep` says so.

    Args:
        data: where the rows come from, for messages.
        batch: its rows are changed.
        tokenizer: or None, where all rows must have tokens.
        prep: how; see `Preparation`.

    Returns:
        For each row, (T,) bool, True at special tokens that were added to text; None for a row that
        had its tokens, or is no plain text.

    Raises:
        UnusableError: a row can't be read so; it is named.
    """
    added: list[Array | None] = [None] * len(batch.rows)
    texts: list[int] = []
    prepare = None
    for i, (row, name) in enumerate(zip(batch.rows, batch.names, strict=True)):
        form = check_format(data, row, name, prep)
        if form == ("input_ids",):
            continue
        if tokenizer is None:
            raise data.error(
                f"{name} has {' and '.join(form)} and no input_ids; add --tokenizer, which then "
                f"must give what training saw, or better: {SAVE}"
            )
        if form == (prep.dataset_text_field,):
            texts.append(i)
        else:
            prepare = prepare or _preparation_of_trl(data, tokenizer, prep)
            row.update(prepare(row, name))
    if texts:
        some = [batch.rows[i][prep.dataset_text_field] for i in texts]
        both = encode(tokenizer, some, eos=prep.add_eos)
        for i, ids, special in zip(texts, *both, strict=True):
            batch.rows[i]["input_ids"], added[i] = ids, special
    if prep.truncation_mode:
        for i, (row, name) in enumerate(zip(batch.rows, batch.names, strict=True)):
            added[i] = _truncate(data, row, name, prep, added[i])
    return added


def _truncate(
    data: Data, row: Row, name: str, prep: Preparation, added: Array | None
) -> Array | None:
    """Cut a row in place; returns what is left of `added`."""
    T, N = len(row["input_ids"]), prep.max_length
    assert N is not None
    if T <= N:
        return added
    if row.get("seq_lengths") is not None or row.get("position_ids") is not None:
        raise data.error(
            f"{name} is packed (seq_lengths, position_ids) and longer than max_length {N}; leave "
            "truncation_mode out"
        )
    part = slice(None, N) if prep.truncation_mode == "keep_start" else slice(-N, None)
    for column, value in row.items():
        if column in PER_TOKEN and value is not None and len(value) == T:
            row[column] = value[part]
    return None if added is None else added[part]


class _Rows(list[Row]):
    """Rows in memory, with the methods of a dataset that SFTTrainer's preparation calls."""

    column_names = None  # it then looks at the first row

    def map(
        self, function: Callable[..., Row], fn_kwargs: Row | None = None,
        remove_columns: Any = None, **_: Any,
    ) -> _Rows:  # fmt: skip
        removed = [remove_columns] if isinstance(remove_columns, str) else remove_columns or []
        done = [(row, function(dict(row), **(fn_kwargs or {}))) for row in self]
        return _Rows(
            {**{n: v for n, v in row.items() if n not in removed}, **new} for row, new in done
        )


def _preparation_of_trl(data: Data, tokenizer: Any, prep: Preparation) -> Callable[[Row, str], Row]:
    """SFTTrainer's preparation of its dataset, for one row at a time; see `_prepare_dataset` there.

    A row by itself, so that an error names it. The method is private, and tests compare it with
    a trainer's `train_dataset`. Without a trainer there are no other processes to wait for.
    """
    try:
        from transformers.utils import logging
        from trl import SFTConfig
        from trl.chat_template_utils import get_training_chat_template, has_generation_markers
        from trl.trainer import sft_trainer
    except ImportError as error:
        raise UnusableError(
            f"chats, and prompts with completions, are tokenized by TRL ({first_line(error)}); "
            'pip install "toedit_collate[recipes]"'
        ) from None
    alone = SimpleNamespace(main_process_first=nullcontext)
    prepare_dataset = FunctionType(
        sft_trainer.SFTTrainer._prepare_dataset.__code__,
        {
            **vars(sft_trainer), "global_then_local_main_first": nullcontext,
            "PartialState": lambda: alone, "logger": logging.get_logger("toedit_collate"),
        },
    )  # fmt: skip
    args = SimpleNamespace(**{one.name: one.default for one in dataclasses.fields(SFTConfig)})
    args.assistant_only_loss, args.max_length = prep.assistant_only_loss, None
    args.dataset_text_field = prep.dataset_text_field
    tokenizer.deprecation_warnings[_TOO_LONG] = True

    def prepare(row: Row, name: str) -> Row:
        columns = (*CHAT_COLUMNS, prep.dataset_text_field, "tools", "chat_template_kwargs")
        own = {one: row[one] for one in columns if row.get(one) is not None}
        is_pair = "prompt" in own
        talks = not isinstance(own.get("completion"), str)
        if talks and not tokenizer.chat_template:
            raise data.error(
                f"{name} holds messages, and the tokenizer has no chat template; use one with a "
                "template (of an instruction-tuned model), or data with text"
            )
        if not is_pair:
            own.pop("completion", None)
        template = tokenizer.chat_template
        try:
            needs_marks = prep.assistant_only_loss and not has_generation_markers(template)
            wanted = prep.completion_only_loss
            trainer = SimpleNamespace(
                _tokenizer=SimpleNamespace(
                    eos_token=(tokenizer.eos_token or "") if prep.add_eos else ""
                ),
                chat_template=get_training_chat_template(tokenizer) if needs_marks else None,
                completion_only_loss=is_pair if wanted is None else wanted,
            )
            [made] = prepare_dataset(trainer, _Rows([own]), tokenizer, args, False, None, "train")
        except Exception as error:  # of many kinds: the template is a program
            shown = str(own.get("messages") or own.get("conversations") or own.get("prompt"))[:60]
            raise data.error(
                f"{name}: {shown} can't be tokenized as SFTTrainer does it ({first_line(error)}); "
                "give messages that the chat template takes, with role and content"
            ) from None
        return {column: list(made[column]) for column in ("input_ids", "labels")}

    return prepare


def ids_and_labels(
    data: Data, row: Row, name: str, tokenizer: Any, prep: Preparation = SFT_DEFAULTS
) -> tuple[list[int], list[int]]:
    """Token ids of one row, and its labels: -100 where a token has none.

    Args:
        data: where the row comes from, for messages.
        row: stays as it is.
        name: of the row, for messages.
        tokenizer: or None, where the row has `input_ids`.
        prep: how; see `Preparation`.

    Raises:
        UnusableError: the row can't be read so.

    Example:
        >>> row = {"input_ids": [5, 6], "labels": [-100, 6]}
        >>> ids_and_labels(Data("a.jsonl", "", lambda: []), row, "line 1", None)
        ([5, 6], [-100, 6])
    """
    own = dict(row)
    tokenize(data, Batch([own], [name]), tokenizer, prep)
    ids = whole_numbers(data, own, "input_ids", name)
    return ids.tolist(), row_labels(data, own, ids, name, prep).tolist()


def row_labels(
    data: Data, row: Row, ids: Array, name: str, prep: Preparation = SFT_DEFAULTS
) -> Array:
    """Labels of a row that has tokens, as SFTTrainer makes them: (T,) int64.

    It takes `labels` as they are. Without them, a token has a label where `assistant_masks` is 1,
    and `completion_mask`, too, if `completion_only_loss` is true, or is None and the row has prompt
    and completion.

    Raises:
        UnusableError: a label is neither -100 nor the token, or a column is of another length.
    """
    labels = per_token(data, row, "labels", len(ids), name)
    if labels is not None:
        real = per_token(data, row, "attention_mask", len(ids), name)
        wrong = (labels != -100) & (labels != ids) & (True if real is None else real != 0)
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise data.error(
                f"labels of {name} must be -100 or equal to input_ids (the model shifts them), "
                f"got label {labels[at]} at token {ids[at]}, place {at}"
            )
        return labels
    by_completion = prep.completion_only_loss
    if by_completion is None:
        by_completion = row.get("prompt") is not None and row.get("completion") is not None
    labels = ids
    for column in ("assistant_masks", *(("completion_mask",) if by_completion else ())):
        mask = per_token(data, row, column, len(ids), name)
        if mask is not None:
            labels = np.where(mask != 0, labels, -100)
    return labels


def per_token(data: Data, row: Row, column: str, T: int, name: str) -> Array | None:
    """A column with a whole number for each of T tokens: (T,) int64; None where it is absent.

    Raises:
        UnusableError: it holds something else.
    """
    if row.get(column) is None:
        return None
    values = whole_numbers(data, row, column, name)
    if len(values) != T:
        raise data.error(
            f"{column} of {name} holds {len(values)} numbers, not one for each of its {T} tokens; "
            f"{SAVE}"
        )
    return values


def whole_numbers(data: Data, row: Row, column: str, name: str) -> Array:
    """A column of whole numbers, int64.

    Raises:
        UnusableError: it holds something else.
    """
    value = row[column]
    try:
        numbers = np.asarray(value)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iub"):
            raise TypeError
    except (TypeError, ValueError):
        raise data.error(
            f"{column} of {name} must be a list of whole numbers, got {str(value)[:40]}; {SAVE}"
        ) from None
    return numbers.astype(np.int64)
