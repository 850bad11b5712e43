"""Trainer and SFTTrainer with a prior whose tokenizer is not the trainee's."""

from __future__ import annotations

import json
import math
import pickle

import aligned_run
import pytest
import torch
from aligned_run import NUM_ROWS, POLICY, TRAINEE, rows, strong_prior, trainee
from conftest import make_llama
from datasets import Dataset
from launch import run_on_two_ranks
from tokenizer_pairs import TEXTS, make
from trainees import QUIET, Recorder
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from toedit_collate import Prior, ToEditCallback, ToEditCollator, attach, edit_tokens
from toedit_collate.training.generations import self_edit


@pytest.fixture(scope="module")
def strong():
    return strong_prior()


@pytest.fixture
def aligned(strong):
    return strong.aligned_to(make(TRAINEE))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_trainer(tmp_path, aligned, num_workers):
    data = rows(6)
    collator = ToEditCollator(aligned, POLICY)
    trainer = Trainer(
        trainee(),
        TrainingArguments(tmp_path, dataloader_num_workers=num_workers, **QUIET),
        data_collator=collator,
        train_dataset=Dataset.from_list(data),
        processing_class=make(TRAINEE),
        callbacks=[ToEditCallback(collator)],
    )
    recorder = Recorder(trainer.model)
    trainer.train()
    seen = sorted(map(tuple, (row for b in recorder.batches(training=True) for row in b)))
    expected = [
        edit_tokens(aligned, torch.tensor([row["input_ids"]]), policy=POLICY) for row in data
    ]
    assert seen == sorted(tuple(one.input_ids[0].tolist()) for one in expected)
    assert collator.stats["changed"] == sum(int(one.changed.sum()) for one in expected) > 0
    assert collator.stats["scored"] == sum(int(one.scored.sum()) for one in expected)
    assert 0.5 < collator.stats["aligned_share"] <= 1
    logged = [one for one in trainer.state.log_history if "toedit/aligned_share" in one]
    assert len(logged) == 3
    assert all(math.isfinite(one["toedit/prior_perplexity"]) for one in logged)


@pytest.mark.slow
def test_two_ranks_make_the_edits_of_one_process(tmp_path, aligned):
    run_on_two_ranks(aligned_run, tmp_path, "rank-1.json")
    ranks = [json.loads((tmp_path / f"rank-{n}.json").read_text()) for n in range(2)]
    expected = [
        edit_tokens(aligned, torch.tensor([row["input_ids"]]), policy=POLICY)
        for row in rows(NUM_ROWS)
    ]
    seen = [tuple(row) for rank in ranks for row in rank["rows"]]
    assert sorted(seen) == sorted(tuple(one.input_ids[0].tolist()) for one in expected)
    assert sum(int(one.changed.sum()) for one in expected) > 0
    assert [len(rank["rows"]) for rank in ranks] == [NUM_ROWS // 2] * 2
    for rank in ranks:  # that of all ranks
        assert rank["logged"] == [pytest.approx(aligned.aligned_share)]


def test_workers_tokenize_for_the_prior(aligned, monkeypatch):
    collator = ToEditCollator(aligned, POLICY)
    loader = torch.utils.data.DataLoader(rows(4), 2, collate_fn=collator, num_workers=1)
    expected = [ToEditCollator(aligned, POLICY)(rows(4)[n : n + 2])["input_ids"] for n in (0, 2)]
    here = aligned.aligner
    batches = list(loader)
    monkeypatch.setattr(here, "align", None)  # in this process: batches edit themselves from now
    for batch, one in zip(batches, expected, strict=True):
        assert torch.equal(batch["input_ids"], one)


def test_a_collator_from_another_process_has_the_aligner(aligned):
    collator = ToEditCollator(aligned, POLICY)
    there = pickle.loads(pickle.dumps(collator))
    assert there.aligner is not None
    assert ToEditCollator(Prior(make_llama(0), None)).aligner is None


@pytest.mark.parametrize(
    "settings",
    [
        {"assistant_only_loss": True},
        {"assistant_only_loss": True, "packing": True, "max_length": 128},
    ],
    ids=["assistant only", "packed"],
)
def test_sft(tmp_path, aligned, settings):
    data = [
        {
            "messages": [
                {"role": "user", "content": f"the fox {n}"},
                {"role": "assistant", "content": TEXTS["words"][n : n + 60]},
            ]
        }
        for n in range(4)
    ]
    trainer = SFTTrainer(
        trainee(),
        SFTConfig(str(tmp_path), **{"max_length": 256, **QUIET, **settings}),
        train_dataset=Dataset.from_list(data),
        processing_class=make(TRAINEE),
    )
    found = []
    policy = POLICY.replace(threshold=1e-6)
    collator = attach(
        trainer, aligned, policy, on_edit=lambda batch, one: found.append((batch, one))
    )
    trainer.train()
    assert collator.stats["changed"] > 0
    special = torch.tensor(make(TRAINEE).all_special_ids)
    for batch, one in found:
        assert not one.scored[batch["labels"] == -100].any()
        assert not one.changed[torch.isin(batch["input_ids"], special)].any()
        assert not torch.isin(one.input_ids[one.changed], special).any()
        assert torch.equal(one.labels[one.changed], one.input_ids[one.changed])
    assert 0.5 < collator.stats["aligned_share"] <= 1


def test_generations_are_refused_before_anything_is_trained(tmp_path, aligned):
    def make_trainer(number, weights):
        return Trainer(trainee(), TrainingArguments(tmp_path / "run", **QUIET))

    with pytest.raises(ValueError, match=r"generations with a prior that has the trainee's"):
        self_edit(make_trainer, aligned, POLICY, generations=2, output_dir=tmp_path / "out")
    assert not list((tmp_path / "out").glob("generation-*"))
