"""Commands with a prior whose tokenizer is not the trainee's."""

import json
import re

import pytest
import torch
from conftest import TEXT, make_llama
from datasets import Dataset
from tokenizer_pairs import make
from trainees import QUIET, Recorder
from transformers import Trainer, TrainingArguments

from toedit_collate import EditPolicy, Prior, ToEditCallback, ToEditCollator, edit_tokens
from toedit_collate.commands.main import main
from toedit_collate.stores.cache import DecisionCache

TRAINEE, PRIOR = "coarse", "digits"
POLICY = EditPolicy(threshold=1e-4, exclude_original=True)
pytestmark = pytest.mark.usefixtures("no_bars")


@pytest.fixture(scope="module")
def prior_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    make_llama(3, vocab_size=len(make(PRIOR)) + 3).save_pretrained(folder)
    make(PRIOR).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trainee_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainee")
    make(TRAINEE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows():
    """Token ids of the trainee."""
    words, tokenizer = TEXT.split(), make(TRAINEE)
    texts = [" ".join(words[n : n + 8]) + f" {n}{n} 123" for n in range(6)]
    return [{"input_ids": [tokenizer.bos_token_id, *tokenizer(t)["input_ids"]]} for t in texts]


@pytest.fixture(scope="module")
def data(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("data") / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def expected(prior_folder, rows):
    """The edits of the prior itself, aligned."""
    aligned = Prior.from_pretrained(prior_folder).aligned_to(make(TRAINEE))
    return [edit_tokens(aligned, torch.tensor([row["input_ids"]]), policy=POLICY) for row in rows]


def run(capsys, *argv):
    """Exit status, and what was printed to stdout and stderr."""
    capsys.readouterr()
    status = main([*map(str, argv)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_apply_then_train_without_the_prior(
    tmp_path, capsys, prior_folder, trainee_folder, data, rows, expected
):
    status, _, error = run(
        capsys, "apply", "--prior", prior_folder, "--prior-aligned", trainee_folder, "--data", data,
        "--cache", tmp_path / "cache", "--policy", "threshold=1e-4 exclude_original=true",
    )  # fmt: skip
    assert status == 0, error
    held = DecisionCache(tmp_path / "cache")
    collator = ToEditCollator(held.prior(POLICY), POLICY, tokenizer=make(TRAINEE), cache=held)
    trainer = Trainer(
        make_llama(5, vocab_size=len(make(TRAINEE))),
        TrainingArguments(tmp_path / "run", **QUIET),
        data_collator=collator,
        train_dataset=Dataset.from_list(rows),
        processing_class=make(TRAINEE),
        callbacks=[ToEditCallback(collator)],
    )
    recorder = Recorder(trainer.model)
    trainer.train()
    seen = sorted(tuple(row) for batch in recorder.batches(training=True) for row in batch)
    assert seen == sorted(tuple(one.input_ids[0].tolist()) for one in expected)
    assert collator.stats["changed"] == sum(int(one.changed.sum()) for one in expected) > 0


def test_a_cache_of_it_refuses_the_prior_s_own_tokenizer(
    tmp_path, capsys, prior_folder, trainee_folder, data
):
    status, _, error = run(
        capsys, "apply", "--prior", prior_folder, "--prior-aligned", trainee_folder, "--data", data,
        "--cache", tmp_path / "cache", "--policy", "threshold=1e-4 exclude_original=true",
    )  # fmt: skip
    assert status == 0, error
    held = DecisionCache(tmp_path / "cache")
    with pytest.raises(ValueError, match="tokenizer differs"):
        ToEditCollator(held.prior(POLICY), POLICY, tokenizer=make(PRIOR), cache=held)


def test_inspect(capsys, prior_folder, trainee_folder, data, expected):
    policy = "threshold=0.0001 exclude_original=true"
    status, printed, error = run(
        capsys, "inspect", "--prior", prior_folder, "--prior-aligned", trainee_folder,
        "--data", data, "--policy", policy,
    )  # fmt: skip
    assert status == 0, error
    assert "6 documents, " in printed
    selected, changed = (
        sum(int(getattr(one, name).sum()) for one in expected) for name in ("selected", "changed")
    )
    assert changed > 0
    assert re.search(rf"{re.escape(policy)} +[\d,]+ +{selected:,} +.* %  +{changed:,} ", printed)
