"""The token ids and labels of a row, as TRL's SFTTrainer makes them.

Rows of plain text are tokenized here, in batches. Chats, and prompts with completions, go through
the code of SFTTrainer that prepares datasets.
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
from ..prior.base import BasePrior
from ..stores.ragged import Array
from ..tokens.protection import Protection
from ..tokens.removal import TOKEN_COLUMNS
from .parsing import Row, check_text
from .reading import Batch, Data

CHAT_COLUMNS = ("messages", "conversations", "prompt", "completion")
"""The text of chat data, which is out of date once its tokens are edited."""
PER_TOKEN = ("input_ids", "labels", "attention_mask", "position_ids", *TOKEN_COLUMNS)
"""Columns that must have a value for each token."""
SAVE = (
    "save the data that was trained on, trainer.train_dataset.save_to_disk(FOLDER), and give "
    "--data FOLDER"
)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How rows become tokens: the fields of `SFTConfig` that matter, with the same names.

    Attributes:
        max_length: tokens of a document; None: whole documents.
        truncation_mode: None: cut longer documents into windows, as `packing_strategy="bfd_split"`
            does. The first window is what "keep_start" and `packing_strategy="bfd"` keep.
        add_eos: end plain text with the end token, as SFTTrainer does.
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
        """The longest window, if longer documents are cut into windows; else None."""
        return None if self.truncation_mode else self.max_length

    def set_up(self, tokenizer: Any) -> Any:
        """Set the end token and the chat template of a tokenizer, or of None; returns it."""
        if tokenizer is None:
            return None
        if self.eos_token is not None:
            if self.eos_token not in tokenizer.get_vocab():
                raise UnusableError(
                    f"eos_token {self.eos_token!r} is not in the vocabulary of the tokenizer; name "
                    "one of its tokens"
                )
            tokenizer.eos_token = self.eos_token
        if (path := self.chat_template_path) is not None:
            if not (path.endswith((".jinja", ".j2")) and Path(path).is_file()):
                raise UnusableError(
                    f"chat_template_path {path!r} is not a .jinja file. A model's template adds "
                    f"tokens to the vocabulary: {SAVE}"
                )
            tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        return tokenizer

    def set_up_prior(self, prior: BasePrior) -> Any:
        """Set up a prior's tokenizer, and protect its tokens as training does; returns it."""
        tokenizer = self.set_up(prior.tokenizer)
        if self.eos_token is not None or self.chat_template_path is not None:
            prior.protection |= Protection.of(tokenizer)
        return tokenizer


SFT_DEFAULTS = Preparation()


def format_of(row: Row, prep: Preparation = SFT_DEFAULTS) -> tuple[str, ...] | None:
    """The columns that SFTTrainer takes a row's tokens from; None: there are none.

    Example:
        >>> format_of({"id": 1, "text": "a"}), format_of({"body": "a"})
        (('text',), None)
    """
    pair = ("prompt", "completion")
    forms = (("input_ids",), pair, ("messages",), ("conversations",), (prep.dataset_text_field,))
    return next((form for form in forms if row.get(form[0]) is not None), None)


def check_format(
    data: Data, row: Row, name: str, prep: Preparation = SFT_DEFAULTS
) -> tuple[str, ...]:
    """`format_of` with checks of the values; an UnusableError names the row."""
    form, field = format_of(row, prep), prep.dataset_text_field
    if form is None:
        raise data.error(
            f"{name} has the columns {sorted(row)}, none of input_ids, {field}, messages, or "
            "prompt and completion with a value: rename the columns, or remove the row"
        )
    if form == ("input_ids",):
        return form
    values: list[Any] = [row.get(column) for column in form]
    if values[-1] is None:
        raise data.error(
            f"completion of {name} is missing; SFTTrainer takes a row with a prompt as prompt and "
            "completion: add it, or remove or rename the column prompt"
        )
    of = f"{' and '.join(form)} of {name}"
    if form != (field,) and all(map(is_chat, values)):
        for content in (one.get("content", one.get("value")) for chat in values for one in chat):
            if not isinstance(content, str | list | dict | None):
                raise data.error(
                    f"{of} has the content {str(content)[:40]}, which is no text "
                    f"({type(content).__name__}); remove the row, or convert the value"
                )
        return form
    if form[0] in CHAT_COLUMNS[:2] or not all(isinstance(value, str) for value in values):
        raise data.error(
            f"{of} is neither text nor a list of messages with role and content: "
            f"{str(values[0] if len(values) == 1 else values)[:60]}; see TRL's dataset formats"
        )
    if prep.assistant_only_loss:
        raise data.error(
            f"assistant_only_loss is for conversations, and {of} is text: leave it out"
        )
    for column in form:
        try:
            check_text(row[column], f"{column} of {name}")
        except ValueError as error:
            raise data.error(str(error)) from None
    return form


def check_first(data: Data, prep: Preparation = SFT_DEFAULTS) -> None:
    """Check the format of the first rows, and that there are some, before a model is loaded."""
    first = next(data.batches(), None)
    if first is None:
        raise data.error("it holds no rows; check the path")
    for row, name in zip(first.rows, first.names, strict=True):
        check_format(data, row, name, prep)


def is_chat(value: Any) -> bool:
    """Whether a value is a list of one or more messages, each with a role (or `from`)."""
    return isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("role", one.get("from")), str)
        for one in value or [None]
    )


def encode(
    tokenizer: Any, texts: Sequence[str], *, eos: bool = True, names: Sequence[str] | None = None
) -> tuple[list[list[int]], list[Array]]:
    """Token ids of texts as SFTTrainer makes them, each with its end token if `eos`.

    A ValueError names the value that is not text; `names` are those of the texts, or their numbers.

    Returns:
        ids: of each text.
        added: (T,) bool for each, True at special tokens that are not in the text.
    """
    for number, text in enumerate(texts):
        check_text(text, f"text {number} (from 0)" if names is None else names[number])
    end = (tokenizer.eos_token or "") if eos else ""
    ended = [text if text.endswith(end) else text + end for text in texts]
    # Not verbose: no warning about documents that are longer than the model's positions.
    encoded = tokenizer(ended, return_special_tokens_mask=True, verbose=False)
    masks = [np.array(mask, bool) for mask in encoded["special_tokens_mask"]]
    for text, whole, mask in zip(texts, ended, masks, strict=True):
        if len(whole) > len(text):
            mask[np.flatnonzero(~mask)[-1:]] = True
    return encoded["input_ids"], masks


def tokenize(
    data: Data, batch: Batch, tokenizer: Any, prep: Preparation = SFT_DEFAULTS
) -> list[Array | None]:
    """Add `input_ids` to rows of text and of chats, and `labels` to chats, in place.

    Rows that have `input_ids` keep them. `prep` may truncate all rows. Without a tokenizer, all
    rows must have tokens. An UnusableError names the row that cannot be used.

    Returns:
        For each row of plain text, (T,) bool, True at special tokens that were added; else None.
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
                f"{name} has {' and '.join(form)} and no input_ids; add --tokenizer, that of the "
                f"training run, or better: {SAVE}"
            )
        if form == (prep.dataset_text_field,):
            texts.append(i)
        else:
            prepare = prepare or _preparation_of_trl(data, tokenizer, prep)
            row.update(prepare(row, name))
    if texts:
        some = [batch.rows[i][prep.dataset_text_field] for i in texts]
        for i, ids, special in zip(texts, *encode(tokenizer, some, eos=prep.add_eos), strict=True):
            batch.rows[i]["input_ids"], added[i] = ids, special
    if prep.truncation_mode:
        N = prep.max_length or 0
        part = slice(N) if prep.truncation_mode == "keep_start" else slice(-N, None)
        for row in batch.rows:
            if len(row["input_ids"]) > N:
                row.update({n: row[n][part] for n in PER_TOKEN if row.get(n) is not None})
        added = [None if special is None else special[part] for special in added]
    return added


class _Rows(list[Row]):
    """Rows in memory with `Dataset.map`, which SFTTrainer's preparation calls."""

    column_names = None  # SFTTrainer then reads the first row

    def map(
        self, function: Callable[..., Row], fn_kwargs: Row | None = None,
        remove_columns: Any = None, **_: Any,
    ) -> _Rows:  # fmt: skip
        removed = [remove_columns] if isinstance(remove_columns, str) else remove_columns or []
        return _Rows(
            {n: v for n, v in row.items() if n not in removed}
            | function(dict(row), **(fn_kwargs or {}))
            for row in self
        )


def _preparation_of_trl(data: Data, tokenizer: Any, prep: Preparation) -> Callable[[Row, str], Row]:
    """`SFTTrainer._prepare_dataset` for one row, without a trainer, so that errors name the row.

    The method is private: tests compare its result with the `train_dataset` of a trainer.
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
    own = {"PartialState": lambda: alone, "global_then_local_main_first": nullcontext}
    own["logger"] = logging.get_logger("toedit_collate")
    code = sft_trainer.SFTTrainer._prepare_dataset.__code__
    prepare_dataset = FunctionType(code, vars(sft_trainer) | own)
    args = SimpleNamespace(**{one.name: one.default for one in dataclasses.fields(SFTConfig)})
    args.assistant_only_loss, args.max_length = prep.assistant_only_loss, None
    args.dataset_text_field = prep.dataset_text_field
    end = SimpleNamespace(eos_token=(tokenizer.eos_token or "") if prep.add_eos else "")
    # No warning about documents that are longer than the model's positions.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True

    def prepare(row: Row, name: str) -> Row:
        columns = (*CHAT_COLUMNS, prep.dataset_text_field, "tools", "chat_template_kwargs")
        own = {one: row[one] for one in columns if row.get(one) is not None}
        is_pair = "prompt" in own
        if not is_pair:
            own.pop("completion", None)
        only_completion = prep.completion_only_loss
        trainer = SimpleNamespace(
            _tokenizer=end,
            chat_template=None,
            completion_only_loss=is_pair if only_completion is None else only_completion,
        )
        try:
            if prep.assistant_only_loss and not has_generation_markers(tokenizer.chat_template):
                trainer.chat_template = get_training_chat_template(tokenizer)
            [made] = prepare_dataset(trainer, _Rows([own]), tokenizer, args, False, None, "train")
        except Exception as error:  # of many kinds: the template is a program
            raise data.error(
                f"{name}: {str(next(iter(own.values())))[:60]} can't be tokenized as SFTTrainer "
                f"does it ({first_line(error)}); give messages that the chat template takes, with "
                "role and content"
            ) from None
        return {column: list(made[column]) for column in ("input_ids", "labels")}

    return prepare


def row_labels(
    data: Data, row: Row, ids: Array, name: str, prep: Preparation = SFT_DEFAULTS
) -> Array:
    """Labels of a row that has tokens, as SFTTrainer makes them: (T,) int64.

    Without the column `labels`, a token has a label where `assistant_masks` is 1; and
    `completion_mask`, too, if `completion_only_loss` is true, or is None and the row has prompt and
    completion. An UnusableError is raised if a label is neither -100 nor the token.
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
    for column in ("assistant_masks", *(["completion_mask"] if by_completion else [])):
        mask = per_token(data, row, column, len(ids), name)
        labels = labels if mask is None else np.where(mask != 0, labels, -100)
    return labels


def per_token(data: Data, row: Row, column: str, T: int | None, name: str) -> Array | None:
    """A column of whole numbers, one for each of T tokens (None: any number): (T,) int64.

    Returns None if the column is absent; an UnusableError names the row if it holds something else.
    """
    value = row.get(column)
    if value is None:
        return None
    try:
        numbers = np.asarray(value)
        kinds = "iub" if "mask" in column else "iu"
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in kinds):
            raise TypeError
    except (TypeError, ValueError):
        raise data.error(
            f"{column} of {name} must be a list of whole numbers, got {str(value)[:40]}; {SAVE}"
        ) from None
    if T is not None and len(numbers) != T:
        raise data.error(
            f"{column} of {name} holds {len(numbers)} numbers, not one for each of its {T} tokens; "
            f"{SAVE}"
        )
    return numbers.astype(np.int64)
