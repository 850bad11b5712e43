"""Batches of real text for a real prior."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...prior.prior import Prior
from ..datafiles.rows import open_data
from ..errors import UnusableError

Batch = dict[str, Any]
"""input_ids, attention_mask and labels, (B, T) int64 on the CPU, padded on the right."""
Example = tuple[list[int], list[int]]
"""Token ids and labels of a document, or of a piece of one."""
_SPARE = 4  # so many times as many pieces are read as are needed, and then chosen from


def text_batches(prior: Prior, path: Path, *, num: int, B: int, T: int, seed: int) -> list[Batch]:
    """Up to `num` batches from a data file; documents longer than T tokens are cut into pieces.

    Chat data is cut at T tokens; the labels of its prompts are -100.

    Raises:
        UnusableError: the file can't be read, or holds too little.
    """
    pieces: list[Example] = []
    for ids, labels in _examples(prior, path):
        # Of a long document its last, shorter piece is left out: batches of those are full.
        for start in range(0, max(len(ids) - T, 0) + 1, T):
            if len(ids) > 1:  # a token alone can't be scored
                pieces.append((ids[start : start + T], labels[start : start + T]))
        if len(pieces) >= _SPARE * num * B:
            break
    if len(pieces) < B:
        raise UnusableError(
            f"--data {path}: gives {len(pieces)} pieces of up to {T} tokens, and a batch takes "
            f"{B}; give more text, or a smaller --batch"
        )
    if all(label == -100 for _, labels in pieces for label in labels[1:]):
        raise UnusableError(
            f"--data {path}: no token has a label other than -100, so none would be edited; mend "
            "the labels, or leave them out"
        )
    random.Random(seed).shuffle(pieces)
    num = min(num, len(pieces) // B)
    return [_pad(pieces[n * B : (n + 1) * B], prior.pad_id) for n in range(num)]


def _pad(examples: list[Example], pad_id: int) -> Batch:
    T = max(len(ids) for ids, _ in examples)

    def column(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (T - len(row)) for row in values])

    return {
        "input_ids": column([ids for ids, _ in examples], pad_id),
        "attention_mask": column([[1] * len(ids) for ids, _ in examples], 0),
        "labels": column([labels for _, labels in examples], -100),
    }


def _examples(prior: Prior, path: Path) -> Iterator[Example]:
    if path.suffix == ".txt":
        if not path.is_file():
            raise UnusableError(f"--data {path}: there is no such file; check the path")
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableError(
                f"--data {path}: can't be read ({error}); it must be UTF-8"
            ) from None
        for document in re.split(r"\n[ \t]*\n", text):
            if document.strip():
                yield _tokenize(prior, {"text": document}, path, "the text")
        return
    for batch in open_data(path, None).batches():
        for row, name in zip(batch.rows, batch.names, strict=True):
            yield _tokenize(prior, row, path, name)


def _tokenize(prior: Prior, row: dict[str, Any], path: Path, name: str) -> Example:
    """Token ids and labels of a row, by the columns that it has."""
    if isinstance(row.get("input_ids"), list):
        ids = row["input_ids"]
        labels = row["labels"] if isinstance(row.get("labels"), list) else ids
        _check_ids(prior, ids, labels, path, name)
        return ids, labels
    tokenizer = prior.tokenizer
    if tokenizer is None:
        raise UnusableError(
            f"--data {path}: {name} needs a tokenizer, and there is none beside the prior; save "
            "one there, or give rows with input_ids"
        )
    if isinstance(row.get("text"), str):
        ids = tokenizer(row["text"])["input_ids"]
        return ids, ids
    if isinstance(row.get("messages"), list):
        ids = _render(tokenizer, row["messages"], path)
        return ids, ids
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return _masked(tokenizer(prompt)["input_ids"], tokenizer(prompt + completion)["input_ids"])
    if isinstance(prompt, list) and isinstance(completion, list):
        before = _render(tokenizer, prompt, path, add_generation_prompt=True)
        return _masked(before, _render(tokenizer, prompt + completion, path))
    raise UnusableError(
        f"--data {path}: {name} has {sorted(row)}; the bench reads input_ids, text, messages, or "
        "prompt and completion: rename the columns"
    )


def _check_ids(prior: Prior, ids: list[Any], labels: list[Any], path: Path, name: str) -> None:
    wrong = [i for i in ids if not isinstance(i, int) or not 0 <= i < prior.vocab_size]
    if wrong:
        raise UnusableError(
            f"--data {path}: {name} has {wrong[0]!r} in input_ids, and the prior's ids are 0 to "
            f"{prior.vocab_size - 1}; give rows that the prior's tokenizer made"
        )
    if len(labels) != len(ids) or any(y not in (x, -100) for x, y in zip(ids, labels, strict=True)):
        raise UnusableError(
            f"--data {path}: {name} has labels that are not its {len(ids)} input_ids or -100; mend "
            "them, or leave the column labels out"
        )


def _masked(prompt: list[int], both: list[int]) -> Example:
    num = min(len(prompt), len(both))
    return both, [-100] * num + both[num:]


def _render(tokenizer: Any, messages: list[Any], path: Path, **settings: bool) -> list[int]:
    if not tokenizer.chat_template:
        raise UnusableError(
            f"--data {path}: holds messages, and the prior's tokenizer has no chat template; use "
            "a prior with one, or data with text"
        )
    try:
        return tokenizer.apply_chat_template(messages, return_dict=True, **settings)["input_ids"]
    except Exception as error:  # of many kinds: the template is a program
        raise UnusableError(
            f"--data {path}: the prior's chat template refuses {str(messages)[:60]} ({error}); "
            "give messages with role and content"
        ) from None
