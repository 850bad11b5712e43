"""What the tests of recipes and runs need: a saved model, local data, and a way to run a recipe."""

from __future__ import annotations

import json
import pathlib
import runpy
import sys
from dataclasses import dataclass

import torch
from conftest import likely_ids, make_llama, make_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
CONFIGS = RECIPES / "configs"
# Many tokens are selected, and each of them changes.
STRONG = {"edit_threshold": 0.3, "edit_exclude_original": "true"}
ON_CPU = {
    "use_cpu": "true", "bf16": "false", "report_to": "none", "disable_tqdm": "true",
    "dataloader_pin_memory": "false", "gradient_checkpointing": "false", "logging_steps": 1,
    "save_strategy": "no",
}  # fmt: skip


@dataclass(frozen=True)
class Files:
    """A model, and data in all the formats, in one folder."""

    folder: pathlib.Path

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    def __getattr__(self, name: str) -> str:
        return str(self.folder / f"{name}.jsonl")


def texts_in(files: Files) -> list[str]:
    """The documents of `files.docs`."""
    lines = pathlib.Path(files.docs).read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def make_files(folder: pathlib.Path) -> Files:
    model, tokenizer = make_llama(), make_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    texts = [tokenizer.decode(ids) for ids in likely_ids(model, 24, 40)]
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    turns = [
        ([{"role": "user", "content": " ".join(words[: 2 + i % 6])}],
         [{"role": "assistant", "content": text[:60] or "yes"}])
        for i, text in enumerate(texts)
    ]  # fmt: skip
    rows = {
        "docs": [{"text": text} for text in texts],
        "other_docs": [{"body": text[::-1], "text": 3} for text in texts],
        "chat": [{"prompt": p, "completion": c} for p, c in turns],
        "messages": [{"messages": p + c} for p, c in turns],
        "instruct": [{"problem": p[0]["content"], "solution": c[0]["content"]} for p, c in turns],
    }
    for name, content in rows.items():
        lines = [json.dumps(row) for row in content]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return Files(folder)


def options(**values) -> list[str]:
    """Command-line options."""
    words = []
    for name, value in values.items():
        words.append(f"--{name}")
        if isinstance(value, dict):
            words.append(json.dumps(value))
        else:
            words += [str(v) for v in value] if isinstance(value, (list, tuple)) else [str(value)]
    return words


def run_recipe(name: str, *words: str) -> dict:
    """Run `recipes/NAME.py` in this process, as a script."""
    before = sys.argv
    sys.argv = [f"recipes/{name}.py", *words]
    try:
        return runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


def metrics(folder) -> dict:
    return json.loads((pathlib.Path(folder) / "metrics.json").read_text())


def weights(folder) -> dict[str, torch.Tensor]:
    """What a run has saved."""
    from safetensors.torch import load_file

    folder = pathlib.Path(folder)
    (path,) = [*folder.glob("adapter_model.safetensors"), *folder.glob("model.safetensors")]
    return load_file(path)


def write_choices(folder: pathlib.Path, name: str, questions: pathlib.Path) -> None:
    """A task of lm-evaluation-harness: JSON lines with question, choices, answer (an index)."""
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(questions.resolve())}},
        "test_split": "test",
        "fewshot_split": "test",  # the question asked is left out of the examples
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(json.dumps(config))
