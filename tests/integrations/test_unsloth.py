"""Unsloth's published patches of a trainer's collator, without Unsloth, which needs a GPU.

Its file utils/packing.py is loaded by itself, where the package is there (`pip install --no-deps
unsloth`); the trainer is TRL's own.
"""

import importlib.machinery
import importlib.util
import pathlib

import pytest
from conftest import TEXT, make_tokenizer
from seen_rows import watch_rows
from trainees import QUIET, make_trainee

from toedit_collate import EditPolicy, Prior, attach

WORDS = TEXT.split()
TEXTS = [" ".join(WORDS[n : n + 6 + n % 3]) for n in range(16)]
STRONG = EditPolicy(region="below", threshold=0.5, exclude_original=True)


@pytest.fixture(scope="module")
def patches():
    found = importlib.machinery.PathFinder.find_spec("unsloth")  # imports nothing
    if found is None:
        pytest.skip("Unsloth is not installed here")
    file = pathlib.Path(found.origin).parent / "utils" / "packing.py"
    spec = importlib.util.spec_from_file_location("unsloth_packing", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["padding-free", "packed"])
def test_a_patched_collator(patches, tmp_path, kind):
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    tokenizer = make_tokenizer()
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    settings = {**QUIET, "max_steps": 2, "gradient_checkpointing": False}
    trainer = SFTTrainer(
        make_trainee(),
        args=SFTConfig(
            str(tmp_path), **settings, packing=kind == "packed", padding_free=True,
            max_length=64 if kind == "packed" else None,
            eval_packing=False, eval_strategy="steps", eval_steps=1,
        ),
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        eval_dataset=Dataset.from_dict({"input_ids": ids[:4]}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    if kind == "packed":
        patches.enable_sample_packing(trainer.model, trainer)
    else:
        patches.enable_padding_free_metadata(trainer.model, trainer)
    lengths = []
    collator = attach(
        trainer, Prior.shared(trainer.model), STRONG,
        on_edit=lambda batch, edit: lengths.append(batch["packed_seq_lengths"].tolist()),
    )  # fmt: skip
    with watch_rows() as seen:
        trainer.train()
    assert len(lengths) == 2
    assert all(sum(of) <= 128 and len(of) > 1 for of in lengths)
    assert collator.stats["changed"] > 0
    # The first token of each document is never edited, and no text is left whole.
    trained = tokenizer.batch_decode(seen.trained)
    assert not any(text in row for text in TEXTS for row in trained)
    evaluated = tokenizer.batch_decode(seen.evaluated)
    assert all(any(text in row for row in evaluated) for text in TEXTS[:4])
