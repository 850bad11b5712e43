"""Known instruction datasets as the conversations that SFTTrainer trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from toedit_collate.data import check_text

Row = dict[str, Any]
Message = dict[str, str]

ROLES = {
    "system": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant",
}  # fmt: skip
TREE = ("message_id", "parent_id", "text", "role", "rank")


@dataclass(frozen=True)
class Format:
    """How the rows of a known dataset become TRL's.

    Attributes:
        description: what it is, and where on the hub.
        columns: those that a row must have; if there are several versions of the dataset, the
            columns of each.
        convert: makes TRL's rows of theirs; rows that give no conversation are left out.
        is_single_turn: True where they become prompt and completion, False for messages.
    """

    description: str
    columns: tuple[tuple[str, ...], ...]
    convert: Callable[[Sequence[Row]], Iterable[Row]]
    is_single_turn: bool = True

    def fits(self, columns: Iterable[str]) -> bool:
        """True where a dataset with these columns can be converted."""
        return any(set(wanted) <= set(columns) for wanted in self.columns)


def to_trl_format(dataset: Any, name: str) -> Any:
    """Convert a known dataset to one of TRL's conversational formats.

    Single turns become `prompt` and `completion`, each a list of messages, and SFTTrainer trains on
    the completion. Conversations become `messages`; `SFTConfig(assistant_only_loss=True)` makes
    it train on the assistant's turns alone.

    Args:
        dataset: a `datasets.Dataset` or `datasets.IterableDataset`.
        name: one of `FORMATS`.

    Returns:
        The same kind of dataset, without the columns that it had.

    Raises:
        ValueError: there is no such format, or a column, or a value that must be there, is missing.
    """
    from datasets import Features, Value

    if name not in FORMATS:
        raise ValueError(f"dataset_format must be one of {', '.join(FORMATS)}, got {name!r}")
    form = FORMATS[name]
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if not form.fits(columns):
        wanted = [", ".join(c for c in one if c not in columns) for one in form.columns]
        raise ValueError(
            f"dataset_format {name!r} needs the column {' or the columns '.join(wanted)}, and the "
            f"dataset has {', '.join(sorted(columns))}; say which is which by dataset_columns, as "
            f"in {{{wanted[0].split(', ')[0]}: their_name}}, or name another dataset_format"
        )
    messages = [{"role": Value("string"), "content": Value("string")}]
    keys = ("prompt", "completion") if form.is_single_turn else ("messages",)
    known = {column for one in form.columns for column in one} | {"input", "deleted"}
    # Others may be large, and types may be too odd to be read.
    dataset = dataset.select_columns([column for column in columns if column in known])
    return dataset.map(
        _convert_batch,
        batched=True,
        # The messages of a tree lie in many rows; Open Assistant is small enough to be read whole.
        batch_size=None if _is_tree(columns) else 1000,
        remove_columns=[column for column in columns if column in known],
        features=Features(dict.fromkeys(keys, messages)),
        fn_kwargs={"name": name, "keys": keys},
    )


def _convert_batch(batch: dict[str, list[Any]], name: str, keys: Sequence[str]) -> dict[str, Any]:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    converted = list(FORMATS[name].convert(rows))
    return {key: [row[key] for row in converted] for key in keys}


def _is_tree(columns: Iterable[str]) -> bool:
    return "messages" not in columns and set(TREE) <= set(columns)


def prompt_completion(prompt: str, completion: str) -> Row:
    """One question and its answer.

    Example:
        >>> prompt_completion("Two and two?", "Four.")["completion"]
        [{'role': 'assistant', 'content': 'Four.'}]
    """
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }


def _pairs(*prompt: str, completion: str, optional: str = "") -> Callable[..., Iterable[Row]]:
    """Rows with a question, perhaps in several columns, and an answer in another."""

    def convert(rows: Sequence[Row]) -> Iterable[Row]:
        for row in rows:
            parts = [_value(row, column, column != optional) for column in prompt]
            asked = "\n\n".join(part for part in parts if part)
            yield prompt_completion(asked, _value(row, completion))

    return convert


def _value(row: Row, column: str, is_required: bool = True) -> str:
    value = row.get(column)
    if value is None and is_required:
        seen = ", ".join(name for name in row if row[name] is not None)
        raise ValueError(
            f"a row has nothing in the column {column!r}, only in {seen or 'no other'}; filter the "
            "dataset, name another column by dataset_columns, or another dataset_format"
        )
    if value is not None:
        check_text(value, f"{column} of a row")
    return value or ""


def _flan(rows: Sequence[Row]) -> Iterable[Row]:
    for row in rows:
        if "messages" not in row:
            yield prompt_completion(_value(row, "inputs"), _value(row, "targets"))
        elif messages := conversation(row["messages"], "role", "content"):
            yield {"prompt": messages[:-1], "completion": messages[-1:]}


def _oasst1(rows: Sequence[Row]) -> Iterable[Row]:
    has_trees = bool(rows) and _is_tree(rows[0])
    found = best_paths(rows) if has_trees else (row["messages"] for row in rows)
    yield from _messages(found, "role", "text" if has_trees else "content")


def _sharegpt(rows: Sequence[Row]) -> Iterable[Row]:
    return _messages((row["conversations"] for row in rows), "from", "value")


def _messages(turns: Iterable[Sequence[Row]], role: str, content: str) -> Iterable[Row]:
    conversations = (conversation(one, role, content) for one in turns)
    return ({"messages": one} for one in conversations if one)


def conversation(turns: Sequence[Row] | None, role: str, content: str) -> list[Message]:
    """Turns as TRL has them, up to the assistant's last; empty if there is none to learn from.

    Args:
        turns: of one conversation.
        role: the key of who speaks.
        content: the key of the message text.

    Raises:
        ValueError: a role is unknown, or there is no message.

    Example:
        >>> turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
        >>> conversation(turns, "from", "value")[1]
        {'role': 'assistant', 'content': 'Hello'}
    """
    messages = []
    for turn in turns or []:
        speaker = turn.get(role)
        if speaker not in ROLES:
            raise ValueError(
                f"a turn has {role} {speaker!r}, which is none of {', '.join(ROLES)}; filter or "
                "rename such turns in the dataset"
            )
        messages.append({"role": ROLES[speaker], "content": _value(turn, content)})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    # An answer to nothing is no conversation: prompt and completion need a prompt, for one.
    return messages if any(message["role"] == "user" for message in messages) else []


def best_paths(rows: Iterable[Row]) -> Iterable[list[Row]]:
    """The best-ranked path through each of Open Assistant's trees of messages.

    From the first message on, the reply of the lowest `rank` is taken, as in
    OpenAssistant/oasst_top1_2023-08-25 and timdettmers/openassistant-guanaco. All paths to an
    assistant's reply, of which there are several in a tree, are in princeton-nlp/less_data.

    Args:
        rows: the messages of whole trees, with message_id, parent_id (None for the first of a
            tree), text, role (prompter, assistant), rank (0 is the best; None if there is but one
            reply), and perhaps deleted.
    """
    replies: dict[str | None, list[Row]] = {}
    for row in rows:
        if not row.get("deleted"):
            replies.setdefault(row["parent_id"], []).append(row)
    for first in replies.get(None, []):
        path = [first]
        while following := replies.get(path[-1]["message_id"]):
            path.append(min(following, key=lambda row: (row["rank"] is None, row["rank"])))
        yield path


LESS = ("messages",)
FLAN = (LESS, ("inputs", "targets"))
FORMATS: dict[str, Format] = {
    "natural_instructions": Format(
        "Muennighoff/natural-instructions: the definition of the task before each of its inputs",
        (("definition", "inputs", "targets"),),
        _pairs("definition", "inputs", completion="targets"),
    ),
    "cot": Format("CoT of princeton-nlp/less_data (messages), or inputs and targets", FLAN, _flan),
    "flan_v2": Format(
        "FLAN v2 of princeton-nlp/less_data (messages), or inputs and targets", FLAN, _flan
    ),
    "oasst1": Format(
        "OpenAssistant/oasst1: the best-ranked path of each tree; or princeton-nlp/less_data's",
        (LESS, TREE),
        _oasst1,
        is_single_turn=False,
    ),
    "oss_instruct": Format(
        "ise-uiuc/Magicoder-OSS-Instruct-75K",
        (("problem", "solution"),),
        _pairs("problem", completion="solution"),
    ),
    "evol_instruct": Format(
        "ise-uiuc/Magicoder-Evol-Instruct-110K",
        (("instruction", "response"),),
        _pairs("instruction", completion="response"),
    ),
    "alpaca": Format(
        "instruction, input (may be missing or empty) and output",
        (("instruction", "output"),),
        _pairs("instruction", "input", completion="output", optional="input"),
    ),
    "sharegpt": Format(
        "conversations of turns, each with from and value",
        (("conversations",),),
        _sharegpt,
        is_single_turn=False,
    ),
}
