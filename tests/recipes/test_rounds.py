"""recipes/paper/rounds.py: rounds of edits by one frozen prior, against edits one after another."""

import json

import numpy as np
import pytest
from conftest import likely_ids, make_llama, make_tokenizer
from paper.rounds import GROUPS, entropy, jackknife, main

from toedit_collate import EditPolicy, Prior, edit_tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    make_llama().save_pretrained(folder / "prior")
    make_tokenizer().save_pretrained(folder / "prior")
    rows = [{"input_ids": one.tolist()} for one in likely_ids(make_llama(), 24, 30)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_rounds_are_edits_of_the_round_before(folder, capsys):
    policy = "threshold=0.5 temperature=1.5 sampler=full"
    output = folder / "runs.jsonl"
    assert main([
        "--prior", str(folder / "prior"), "--data", str(folder / "data.jsonl"), "--policy", policy,
        "--rounds", "2", "--output", str(output),
    ]) == 0  # fmt: skip
    found = json.loads(output.read_text())["rounds"]
    prior = Prior.from_pretrained(folder / "prior")
    ids = likely_ids(make_llama(), 24, 30)
    edit = EditPolicy(threshold=0.5, temperature=1.5, sampler="full")
    assert len(found) == 3
    for number, row in enumerate(found):
        result = edit_tokens(prior, ids, policy=edit, generation=number, return_logprob=True)
        tokens = int(result.scored.sum())
        p = result.logprob[result.scored].exp()
        assert row["tokens"] == tokens
        assert row["values"]["selected, %"][0] == pytest.approx(
            100 * int(result.selected.sum()) / tokens
        )
        assert row["values"]["changed, %"][0] == pytest.approx(
            100 * int(result.changed.sum()) / tokens
        )
        assert row["values"]["-log P"][0] == pytest.approx(-float(p.log().mean()), rel=1e-5)
        assert row["bins"][9] == int((p >= 0.9).sum())
        ids = result.input_ids
    assert "| from the last |" in capsys.readouterr().out


def test_a_policy_that_removes_tokens_is_refused(folder, capsys):
    assert main([
        "--prior", str(folder / "prior"), "--data", str(folder / "data.jsonl"),
        "--policy", "filtering",
    ]) == 2  # fmt: skip
    assert "neither drop_below nor drop_above" in capsys.readouterr().err


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=GROUPS)
    mean, error = jackknife(lambda kept: values[kept].mean(keepdims=True))
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / GROUPS**0.5)
    assert entropy(np.array([3, 3, 0, 3])) == pytest.approx(np.log(3))
