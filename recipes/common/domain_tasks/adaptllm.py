"""Rows, predictions and metrics of AdaptLLM's domain tasks, for lm-evaluation-harness.

Source: arXiv:2309.09530; the metrics are those of its evaluation code (github.com/microsoft/LMOps).
A model chooses the option with the highest mean log-probability *per token*, so the rows need the
model's tokenizer. The harness passes it on by `--model_args pretrained=...,tokenizer=...`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_NUMBER = re.compile(r"[-+]?(?:\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?%?")
_ENTITY = re.compile(r"(\S+)\s+\((\S+)\)")
Row = dict[str, Any]


def load_rows(
    path: str, name: str, tokenizer: str | None = None, pretrained: str | None = None, **unused: Any
) -> Any:
    """The test rows of a task, with the number of tokens of each option.

    Where the environment has ADAPTLLM_DATA, a folder, they come from its file NAME.json.

    Args:
        path: id of the dataset on the hub.
        name: of its configuration.
        tokenizer: folder or hub id; default `pretrained`. Without both, the tokens are not counted.
        pretrained: folder or hub id of the model.
        unused: the other things that the harness passes on.
    """
    from datasets import load_dataset
    from transformers import AutoTokenizer

    if folder := os.environ.get("ADAPTLLM_DATA"):
        rows = load_dataset("json", data_files={"test": str(Path(folder) / f"{name}.json")})
    else:
        rows = load_dataset(path, name)
    source = tokenizer or pretrained
    if source is None or "options" not in rows["test"].column_names:
        return rows
    loaded: Any = AutoTokenizer.from_pretrained(source)

    def count(row: Row) -> dict[str, list[int]]:
        before = len(loaded(row["input"])["input_ids"])
        texts = [f"{row['input']} {option}" for option in row["options"]]
        return {"option_tokens": [len(loaded(text)["input_ids"]) - before for text in texts]}

    return rows.map(count)


def chosen(row: Row, results: Sequence[Sequence[Any]]) -> int:
    """Index of the option with the highest mean log-probability per token.

    Raises:
        ValueError: the tokens were not counted.

    Example:
        >>> chosen({"option_tokens": [1, 4]}, [(-2.0, False), (-4.0, False)])
        1
    """
    counts = row.get("option_tokens")
    if counts is None:
        raise ValueError(
            "AdaptLLM's tasks need the tokenizer to count the tokens of each option; run the "
            "harness with --model_args pretrained=MODEL,tokenizer=MODEL"
        )
    means = [total / max(n, 1) for (total, *_), n in zip(results, counts, strict=True)]
    return max(range(len(means)), key=means.__getitem__)


def accuracy(row: Row, results: Sequence[Any]) -> dict[str, bool]:
    """Metric of MQP, PubMedQA and USMLE."""
    return {"acc": chosen(row, results) == row["gold_index"]}


def micro_f1(row: Row, results: Sequence[Any]) -> dict[str, bool]:
    """Metric of RCT and ChemProt: with one label for each row, it is the accuracy."""
    return {"micro_f1": chosen(row, results) == row["gold_index"]}


def weighted_f1(row: Row, results: Sequence[Any]) -> dict[str, Any]:
    """Metric of FPB and FiQA-SA, and of Headline, whose rows belong to nine classes."""
    return {"weighted_f1": (row.get("class_id", 0), row["gold_index"], chosen(row, results))}


def mean_weighted_f1(items: Sequence[tuple[int, int, int]]) -> float:
    """Weighted F1 of each class of questions, averaged over the classes.

    Example:
        >>> mean_weighted_f1([(0, 0, 0), (0, 1, 1), (1, 1, 0), (1, 0, 1)])
        0.5
    """
    from sklearn.metrics import f1_score

    scores = []
    for number in sorted({item[0] for item in items}):
        gold, found = zip(*(item[1:] for item in items if item[0] == number), strict=True)
        scores.append(f1_score(gold, found, average="weighted"))
    return float(sum(scores) / len(scores))


def exact_match(row: Row, results: Sequence[str]) -> dict[str, bool]:
    """Metric of ConvFinQA: a number in the answer is within 0.01 of the right one."""
    right, found = numbers(row["label"]), numbers(results[0])
    return {
        "exact_match": bool(right) and any(math.isclose(n, right[0], abs_tol=0.01) for n in found)
    }


def numbers(text: str) -> list[float]:
    r"""The numbers in the first line of a text; a percentage is a fraction.

    Example:
        >>> numbers(" about 12.5% of $1,200\n7")
        [0.125, 1200.0]
    """
    found = _NUMBER.findall((text.strip().splitlines() or [""])[0])
    return [float(n.strip("%").replace(",", "")) / (100 if "%" in n else 1) for n in found]


def entity_f1(row: Row, results: Sequence[str]) -> dict[str, float]:
    """Metric of NER: F1 of texts and types of entities, for each row.

    An answer names an entity as "Smith (PER)". As in the package nereval, an entity counts twice:
    once for its text, and once for its type. A right entity is compared with the first predicted
    one that agrees in text or type.
    """
    gold, found = entities(row["label"]), entities(results[0])
    right = 0
    for text, kind in gold:
        matches = ((text == other) + (kind == other_kind) for other, other_kind in found)
        right += next((match for match in matches if match), 0)
    return {"entity_f1": right / (len(gold) + len(found)) if right else 0.0}


def entities(text: str) -> list[tuple[str, str]]:
    """Pairs of text and type, each once.

    Example:
        >>> entities("John Smith (PER), Acme (ORG), Smith (PER)")
        [('Smith', 'PER'), ('Acme', 'ORG')]
    """
    return list(dict.fromkeys(_ENTITY.findall(text)))
