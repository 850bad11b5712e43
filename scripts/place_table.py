"""The table of docs/frameworks.md: in each place, rows edited and the loss, with and without.

    python scripts/place_table.py toedit-sft  # version_matrix.py makes the environment

A tiny Llama trains eight steps of two rows, twice: on the rows as they are, and edited by a policy
that changes every token that it may. A row counts as edited if no text of the data is in it whole.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
TESTS = pathlib.Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "helpers")]

import torch
import yaml
from conftest import TEXT, make_llama, make_tokenizer
from seen_rows import SeenRows, watch_rows
from transformers import Trainer

WORDS = TEXT.split()
TEXTS = [" ".join(WORDS[n % 24 : n % 24 + 8]) for n in range(24)]
SECTION = {"region": "below", "exclude_original": True}
STEPS, HELD_OUT = 8, 6
LORA = ["q_proj", "v_proj"]
# Settings that Trainers of all frameworks have.
SETTINGS = {
    "max_steps": STEPS, "learning_rate": 1e-2, "logging_steps": STEPS, "eval_strategy": "steps",
    "eval_steps": STEPS, "save_strategy": "no", "report_to": "none", "seed": 0, "bf16": False,
    "dataloader_pin_memory": False, "gradient_checkpointing": False,
}  # fmt: skip


@contextlib.contextmanager
def logged() -> Iterator[dict[str, float]]:
    """What Trainers log while the block runs."""
    values: dict[str, float] = {}
    log = Trainer.log

    def spy(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        values.update(logs)
        log(self, logs, *args, **kwargs)

    Trainer.log = spy  # type: ignore[method-assign]
    try:
        yield values
    finally:
        Trainer.log = log  # type: ignore[method-assign]


def write_inputs(folder: pathlib.Path) -> None:
    make_llama(sharpness=6.0).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for split, texts in (("train", TEXTS[HELD_OUT:]), ("test", TEXTS[:HELD_OUT])):
        lines = "\n".join(json.dumps({"text": text}) for text in texts)
        (folder / "data" / f"{split}.jsonl").write_text(lines)
    (folder / "all.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))


def write_yaml(folder: pathlib.Path, settings: dict[str, Any]) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def by_sft(folder: pathlib.Path, edit: bool) -> None:
    from toedit_collate.commands.main import main

    changes = {f"edit_{name}": value for name, value in SECTION.items()}
    settings = {
        **SETTINGS, "model_name_or_path": str(folder / "model"), "use_peft": True,
        "lora_target_modules": LORA, "dataset_name": str(folder / "data"), "use_cpu": True,
        "output_dir": str(folder / "out"), "per_device_train_batch_size": 2,
        **(changes if edit else {"edit_policy": "none"}),
    }  # fmt: skip
    assert main(["sft", "--config", write_yaml(folder, settings)]) == 0


def by_axolotl(folder: pathlib.Path, edit: bool) -> None:
    from axolotl.cli.train import do_cli
    from axolotl.integrations.base import PluginManager

    PluginManager.get_instance().plugins.clear()
    ours = {"plugins": ["toedit_collate.integrations.axolotl.ToEditPlugin"], "toedit": SECTION}
    settings = {
        **SETTINGS, "base_model": str(folder / "model"), "adapter": "lora", "lora_r": 8,
        "lora_alpha": 16, "lora_target_modules": LORA, "micro_batch_size": 2,
        "gradient_accumulation_steps": 1, "optimizer": "adamw_torch", "lr_scheduler": "constant",
        "datasets": [
            {"path": str(folder / "all.jsonl"), "ds_type": "json", "type": "completion"}
        ],
        "val_set_size": HELD_OUT, "sequence_len": 64, "attn_implementation": "sdpa",
        "dataset_prepared_path": str(folder / f"prepared-{edit}"), "dataset_num_proc": 1,
        "output_dir": str(folder / "out"), "fp16": False, "tf32": False,
        "special_tokens": {"pad_token": "<|pad|>"}, "dataloader_num_workers": 0,
        **{f"lora_{part}_kernel": False for part in ("mlp", "qkv", "o")},
        **(ours if edit else {}),
    }  # fmt: skip
    del settings["report_to"]
    do_cli(config=write_yaml(folder, settings))


def by_llamafactory(folder: pathlib.Path, edit: bool) -> None:
    from toedit_collate.integrations.llamafactory import main

    rows = [{"instruction": "", "input": "", "output": text} for text in TEXTS]
    (folder / "texts.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"texts": {"file_name": "texts.json"}}))
    settings = {
        **SETTINGS, "model_name_or_path": str(folder / "model"), "stage": "sft", "do_train": True,
        "dataset": "texts", "dataset_dir": str(folder), "template": "empty", "cutoff_len": 128,
        "finetuning_type": "lora", "lora_target": ",".join(LORA), "val_size": HELD_OUT,
        "per_device_train_batch_size": 2, "use_cpu": True, "lr_scheduler_type": "constant",
        "preprocessing_num_workers": 1, "output_dir": str(folder / "out"),
        "overwrite_output_dir": True, "toedit": SECTION if edit else {"policy": "none"},
    }  # fmt: skip
    sys.argv = ["llamafactory"]
    assert main(["train", write_yaml(folder, settings)]) == 0


def make_loaders(edit: bool) -> tuple[Any, Any, Any]:
    """A collator, and the loaders of a loop of one's own."""
    from torch.utils.data import DataLoader

    from toedit_collate import EditPolicy, Prior, ToEditCollator

    tokenizer = make_tokenizer()
    collator = ToEditCollator(Prior(make_llama(sharpness=6.0), tokenizer), EditPolicy(**SECTION))
    base = collator if edit else collator.base_collator
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    generator = torch.Generator().manual_seed(0)
    train = DataLoader(rows[HELD_OUT:], 2, collate_fn=base, shuffle=True, generator=generator)
    return collator, train, rows[:HELD_OUT]


def by_loop(folder: pathlib.Path, edit: bool) -> dict[str, float]:
    from torch.utils.data import DataLoader

    torch.manual_seed(0)
    collator, loader, held_out = make_loaders(edit)
    model = make_llama(sharpness=6.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _, batch in zip(range(STEPS), loader, strict=False):
        loss = model(**batch.to("cpu") if edit else batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    losses_held_out = []

    def evaluate() -> None:
        for batch in DataLoader(held_out, 2, collate_fn=collator.base_collator):
            losses_held_out.append(model(**batch).loss.item())

    with torch.no_grad():
        evaluate()
    return {"loss": mean(losses), "eval_loss": mean(losses_held_out)}


def by_lightning(folder: pathlib.Path, edit: bool) -> dict[str, float]:
    import lightning.pytorch as lightning
    from torch.utils.data import DataLoader

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_llama(sharpness=6.0).train()
            self.losses: dict[str, list[float]] = {"loss": [], "eval_loss": []}

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.model(**batch).loss
            self.losses["loss"].append(loss.item())
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.losses["eval_loss"].append(self.model(**batch).loss.item())

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-2)

    torch.manual_seed(0)
    collator, train, held_out = make_loaders(edit)
    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=STEPS, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    # The same collator for both: it recognises Lightning's loops.
    both = collator if edit else collator.base_collator
    trainer.fit(module, train, DataLoader(held_out, 2, collate_fn=both))
    trainer.validate(module, DataLoader(held_out, 2, collate_fn=both), verbose=False)
    last = module.losses["eval_loss"][-len(held_out) // 2 :]
    return {"loss": mean(module.losses["loss"]), "eval_loss": mean(last)}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


PLACES: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "toedit-sft": (by_sft, ("trl", "transformers", "peft")),
    "axolotl": (by_axolotl, ("axolotl", "transformers", "trl", "peft")),
    "llamafactory": (by_llamafactory, ("llamafactory", "transformers", "trl", "peft")),
    "lightning": (by_lightning, ("lightning", "transformers")),
    "loop": (by_loop, ("torch", "transformers")),
}


def count_edited(rows: list[list[int]], tokenizer: Any) -> str:
    texts = tokenizer.batch_decode(rows)
    edited = sum(not any(source in text for source in TEXTS) for text in texts)
    return f"{edited} of {len(rows)}"


def run(place: str, edit: bool) -> tuple[SeenRows, dict[str, float]]:
    with tempfile.TemporaryDirectory() as name, watch_rows() as seen, logged() as values:
        write_inputs(pathlib.Path(name))
        values.update(PLACES[place][0](pathlib.Path(name), edit) or {})
    return seen, values


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("place", choices=PLACES)
    place = parser.parse_args().place
    _, without = run(place, False)
    seen, with_edit = run(place, True)
    tokenizer = make_tokenizer()
    versions = ", ".join(f"{one} {importlib.metadata.version(one)}" for one in PLACES[place][1])
    cells = [place, versions, count_edited(seen.trained, tokenizer)]
    cells.append(count_edited(seen.evaluated, tokenizer))
    for key in ("loss", "eval_loss"):
        cells += [f"{float(values[key]):.2f}" for values in (without, with_edit)]
    print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
