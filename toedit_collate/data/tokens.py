"""From a row to its token ids and labels, as TRL's SFTTrainer makes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from ..errors import first_line
from ..stores.ragged import Array
from .rows import Batch, Data, Row

COLUMNS = (("input_ids",), ("prompt", "completion"), ("messages",), ("text",))
"""What rows may hold, the first that fits goes before the others."""
# Columns that say by 0 where a token has no label; all that a row has must be 1 for one.
LOSS_MASKS = ("completion_mask", "assistant_masks")
# Documents longer than the model takes are nothing to warn of where they are read.
_SILENT = {"verbose": False}
# The text of chat data, which an edit of its tokens leaves behind.
CHAT_COLUMNS = ("messages", "prompt", "completion")
SAVE = (
    "save the data that was trained on, trainer.train_dataset.save_to_disk(FOLDER), and give "
    "--data FOLDER"
)


def format_of(row: Row) -> tuple[str, ...] | None:
    """Which of `COLUMNS` a row has; None: none of them.

    Example:
        >>> format_of({"id": 1, "text": "a"}), format_of({"body": "a"})
        (('text',), None)
    """
    present = {name for name, value in row.items() if value is not None}
    return next((names for names in COLUMNS if present.issuperset(names)), None)


def with_end(text: str, tokenizer: Any) -> str:
    """A text as SFTTrainer tokenizes it: with the end token behind it, if it has none.

    A tokenizer without an end token leaves it as it is.
    """
    end = tokenizer.eos_token
    return text if end is None or text.endswith(end) else text + end


def encode(
    tokenizer: Any, texts: Sequence[str], *, eos: bool = True
) -> tuple[list[list[int]], list[Array]]:
    """Token ids of texts, each with its end token.

    Args:
        tokenizer: of transformers.
        texts: one document each.
        eos: put an end token behind those that have none; see `with_end`.

    Returns:
        ids: of each text.
        added: (T,) bool for each, True at special tokens that the text does not have: the end
            token, and what the tokenizer puts around it.
    """
    ended = [with_end(text, tokenizer) if eos else text for text in texts]
    encoded = tokenizer(ended, return_special_tokens_mask=True, **_SILENT)
    masks = [np.array(mask, bool) for mask in encoded["special_tokens_mask"]]
    for text, end, mask in zip(texts, ended, masks, strict=True):
        if len(end) > len(text):
            mask[np.flatnonzero(~mask)[-1:]] = True
    return encoded["input_ids"], masks


def tokenize(
    data: Data, batch: Batch, tokenizer: Any, *, assistant_only: bool = False, eos: bool = True
) -> list[Array | None]:
    """Give rows of text and of chats their `input_ids`, and their masks, in place.

    Rows that have `input_ids` stay as they are. Text gets an end token, chats are put into the
    tokenizer's chat template; of prompt and completion, `completion_mask` says which tokens have a
    label.

    Args:
        data: where the rows come from, for messages.
        batch: its rows are changed.
        tokenizer: or None, where all rows must have tokens.
        assistant_only: give chats `assistant_masks`, by the generation marks of the template: what
            `SFTConfig(assistant_only_loss=True)` does.
        eos: end text by an end token, as SFTTrainer and the recipes do.

    Returns:
        For each row, (T,) bool, True at special tokens that were added to text; None for a row that
        had its tokens, or is no plain text.

    Raises:
        UnusableError: a row can't be read so; it is named.
    """
    added: list[Array | None] = [None] * len(batch.rows)
    texts: list[int] = []
    for i, (row, name) in enumerate(zip(batch.rows, batch.names, strict=True)):
        form = check_format(data, row, name)
        if form == ("input_ids",):
            continue
        if tokenizer is None:
            raise data.error(
                f"{name} has {' and '.join(form)} and no input_ids; add --tokenizer, which then "
                f"must give what training saw, or better: {SAVE}"
            )
        if form == ("text",):
            texts.append(i)
        else:
            row.update(_tokenize_pairs(data, tokenizer, row, form, name, assistant_only, eos))
    if not texts:
        return added
    both = encode(tokenizer, [batch.rows[i]["text"] for i in texts], eos=eos)
    for i, ids, special in zip(texts, *both, strict=True):
        batch.rows[i]["input_ids"], added[i] = ids, special
    return added


def ids_and_labels(
    data: Data, row: Row, name: str, tokenizer: Any, *, assistant_only: bool = False
) -> tuple[list[int], list[int]]:
    """Token ids of one row, and its labels: -100 where a token has none.

    Args:
        data: where the row comes from, for messages.
        row: stays as it is.
        name: of the row, for messages.
        tokenizer: or None, where the row has `input_ids`.
        assistant_only: see `tokenize`.

    Raises:
        UnusableError: the row can't be read so.

    Example:
        >>> row = {"input_ids": [5, 6], "completion_mask": [0, 1]}
        >>> ids_and_labels(Data("a.jsonl"), row, "line 1", None)
        ([5, 6], [-100, 6])
    """
    own = dict(row)
    tokenize(data, Batch([own], [name]), tokenizer, assistant_only=assistant_only)
    ids = whole_numbers(data, own, "input_ids", name)
    return ids.tolist(), row_labels(data, own, ids, name).tolist()


def row_labels(data: Data, row: Row, ids: Array, name: str) -> Array:
    """Labels of a row that has tokens, as TRL's SFTTrainer makes them: (T,) int64.

    It takes `labels` as they are. Without them, a token has a label where all masks that the row
    has are 1.

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
    labels = ids
    for column in LOSS_MASKS:
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


def check_values(data: Data, form: tuple[str, ...], values: list[Any], name: str) -> None:
    """See that columns of text or chats hold text or messages.

    Raises:
        UnusableError: they don't.
    """
    texts = all(isinstance(value, str) for value in values) and form != ("messages",)
    chats = all(is_chat(value) for value in values) and form != ("text",)
    if not (texts or chats):
        shown = str(values[0] if len(values) == 1 else values)[:60]
        raise data.error(
            f"{' and '.join(form)} of {name} is neither text nor a list of messages with role and "
            f"content: {shown}; see TRL's dataset formats"
        )
    for column, value in zip(form, values, strict=True) if texts else ():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a letter: "\ud800"
            raise data.error(
                f"{column} of {name} has half of a surrogate pair, {error.object[error.start]!a}, "
                "which is no text; remove it"
            ) from None


def check_first(data: Data) -> None:
    """See that the first rows are of a format that is known, before minutes go into a model.

    Raises:
        UnusableError: they are not, or there are no rows.
    """
    first = next(data.batches(), None)
    if first is None:
        raise data.error("it holds no rows; check the path")
    for row, name in zip(first.rows, first.names, strict=True):
        check_format(data, row, name)


def check_format(data: Data, row: Row, name: str) -> tuple[str, ...]:
    """Which of `COLUMNS` a row has, which hold what they should.

    Raises:
        UnusableError: it has none of them.
    """
    form = format_of(row)
    if form is None:
        null = [column for column in dict.fromkeys(sum(COLUMNS, ())) if column in row]
        if null:
            raise data.error(
                f"{name} has null in {', '.join(null)}, and nothing else to read; remove the row"
            )
        raise data.error(
            f"{name} has the columns {sorted(row)}, none of input_ids, text, messages, or "
            f"prompt and completion: rename the columns, or {SAVE}"
        )
    if form != ("input_ids",):
        check_values(data, form, [row[column] for column in form], name)
    return form


def is_chat(value: Any) -> bool:
    """Whether it is a list of messages, one at least, each with a role.

    Example:
        >>> is_chat([{"role": "user", "content": "hi"}]), is_chat("hi")
        (True, False)
    """
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in value)
    )


def _tokenize_pairs(
    data: Data, tokenizer: Any, row: Row, form: tuple[str, ...], name: str, assistant_only: bool,
    eos: bool,
) -> Row:  # fmt: skip
    """`input_ids` and masks of messages, or of prompt and completion."""
    if form == ("messages",):
        return _render(data, tokenizer, row, row["messages"], name, assistant_only)
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        before = tokenizer(prompt, **_SILENT)["input_ids"]
        whole = prompt + (with_end(completion, tokenizer) if eos else completion)
        columns = {"input_ids": tokenizer(whole, **_SILENT)["input_ids"]}
    else:
        before = _render(data, tokenizer, row, prompt, name, False, add_generation_prompt=True)[
            "input_ids"
        ]
        both = [*prompt, *completion]
        columns = _render(data, tokenizer, row, both, name, assistant_only)
    # A template may render the prompt alone in another way: the completion begins where they part.
    pairs = zip(before, columns["input_ids"], strict=False)
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    num = len(columns["input_ids"])
    return {**columns, "completion_mask": [int(i >= start) for i in range(num)]}


def _render(
    data: Data, tokenizer: Any, row: Row, messages: Any, name: str, assistant_only: bool,
    **settings: bool,
) -> Row:  # fmt: skip
    if not getattr(tokenizer, "chat_template", None):
        raise data.error(
            f"{name} holds messages, and the tokenizer has no chat template; use one with a "
            "template (of an instruction-tuned model), or data with text"
        )
    settings |= row.get("chat_template_kwargs") or {}
    if assistant_only:
        settings["return_assistant_tokens_mask"] = True
        if "{% generation" not in tokenizer.chat_template.replace("{%-", "{%"):
            raise data.error(
                f"{name}: the chat template has no {{% generation %}} marks, by which the "
                "assistant's turns are known; add them, or leave assistant_only_loss out"
            )
    tools = row.get("tools")
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
        found = tokenizer.apply_chat_template(
            messages, tools=tools, return_dict=True, tokenizer_kwargs=_SILENT, **settings
        )
    except Exception as error:  # of many kinds: the template is a program
        raise data.error(
            f"{name}: the tokenizer's chat template refuses {str(messages)[:60]} "
            f"({first_line(error)}); give messages with role and content"
        ) from None
    columns: Row = {"input_ids": found["input_ids"]}
    if assistant_only:
        columns["assistant_masks"] = found["assistant_masks"]
    return columns
