"""What two ranks do in test_aligned_training.py; run by torchrun, results in files of each rank."""

from __future__ import annotations

import json
import os
import pathlib
import sys

from conftest import TEXT, make_llama
from datasets import Dataset
from tokenizer_pairs import make
from trainees import QUIET, Recorder
from transformers import Trainer, TrainingArguments

from toedit_collate import EditPolicy, Prior, ToEditCallback, ToEditCollator

POLICY = EditPolicy(threshold=1e-4, exclude_original=True)
TRAINEE, PRIOR = "coarse", "digits"
NUM_ROWS = 8


def strong_prior() -> Prior:
    return Prior(make_llama(3, vocab_size=len(make(PRIOR)) + 3), make(PRIOR))


def trainee():
    tokenizer = make(TRAINEE)
    return make_llama(5, vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id)


def rows(num: int) -> list[dict]:
    words, tokenizer = TEXT.split(), make(TRAINEE)
    texts = [" ".join(words[n : n + 8]) + f" {n}{n} 123" for n in range(num)]
    return [{"input_ids": [tokenizer.bos_token_id, *tokenizer(t)["input_ids"]]} for t in texts]


def main(folder: pathlib.Path) -> None:
    rank = int(os.environ["RANK"])
    collator = ToEditCollator(strong_prior().aligned_to(make(TRAINEE)), POLICY)
    settings = {**QUIET, "logging_steps": NUM_ROWS // 4}  # one line, at the end
    trainer = Trainer(
        trainee(),
        TrainingArguments(folder / f"run-{rank}", dataloader_num_workers=1, **settings),
        data_collator=collator,
        train_dataset=Dataset.from_list(rows(NUM_ROWS)),
        processing_class=make(TRAINEE),
        callbacks=[ToEditCallback(collator)],
    )
    recorder = Recorder(trainer.model)
    trainer.train()
    logged = [one for one in trainer.state.log_history if "toedit/aligned_share" in one]
    result = {
        "rows": [row for batch in recorder.batches(training=True) for row in batch],
        "logged": [one["toedit/aligned_share"] for one in logged],
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
