"""Studies whose trainee or prior is trained beforehand, and the precision that they compute in."""

import dataclasses
import json
from contextlib import nullcontext

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_studies import TRAINEE, content_of, made, make_place, world_of
from studies import engine as runs
from studies import world as worlds
from studies.engine import prepare_world
from studies.evaluation import evaluate
from studies.settings import Rows, read_study

from toedit_collate.errors import UnusableError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("prepared"))


def prepared_file(place, name, **changes):
    """A study of a trainee and a prior that are trained beforehand."""
    before = {"file": "b.jsonl", "epochs": 3, "learning_rate": 0.01, "batch_rows": 2}
    world = yaml.safe_load(content_of("plain", place).read_text())["world"]
    world["trainee_before"] = {**before, "rows": [0, 4]}
    world["prior_before"] = {**before, "rows": [4, 8]}
    arms = {"none": {}, "all": {"policy": "region=all"}}
    return content_of(name, place, **{"world": world, "arms": arms, "tuning_seed": 7, **changes})


def test_models_that_are_trained_beforehand_are_what_runs_start_from(place, tmp_path, capsys):
    study = read_study(prepared_file(place, "prepared"))
    world = prepare_world(study.world, place, str(place / "prior"), tmp_path)
    plain = world_of(place)
    start, raw = world.new_trainee(0), plain.new_trainee(0)
    assert start.config.hidden_size == TRAINEE["hidden_size"]
    text = plain.rows(Rows(file="b.jsonl", rows=(0, 4)))
    assert evaluate(start, *both(text)).loss < evaluate(raw, *both(text)).loss - 0.1
    for a, b in zip(start.parameters(), world.new_trainee(5).parameters(), strict=True):
        assert torch.equal(a, b)  # whatever the seed
    more = plain.rows(Rows(file="b.jsonl", rows=(4, 8)))
    better, as_it_came = (w.prior.model for w in (world, plain))
    assert evaluate(better, *both(more)).loss < evaluate(as_it_came, *both(more)).loss - 0.1
    assert capsys.readouterr().out.count("beforehand") == 2
    again = prepare_world(study.world, place, str(place / "prior"), tmp_path)
    assert "beforehand" not in capsys.readouterr().out  # they are there
    assert again.prior.fingerprint == world.prior.fingerprint


def both(rows):
    return rows.input_ids, rows.labels


def test_a_study_takes_the_models_it_prepared(place, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    path = prepared_file(place, "prepares", seeds=[0])
    used, true = [], runs.train

    def watched(world, *args, **kwargs):
        used.append(world)
        return true(world, *args, **kwargs)

    monkeypatch.setattr(runs, "train", watched)
    made(path, place, tmp_path)
    used = [world for world in used if world.prepared]  # the others prepared them
    assert {world.prepared["prior"].parent for world in used} == {tmp_path / "prepared"}
    kept = json.loads((tmp_path / "made_with.json").read_text())
    assert kept["prior"] == used[0].prior.fingerprint != world_of(place).prior.fingerprint
    assert kept["precision"] in ("bfloat16", "float32")
    (weights,) = (tmp_path / "prepared").glob("trainee-*/model.safetensors")
    content = load_file(weights)
    save_file({name: value + 1 for name, value in content.items()}, weights, {"format": "pt"})
    with pytest.raises(UnusableError, match="made with another trainee before training"):
        made(path, place, tmp_path)


def test_preparation_that_broke_off_is_made_again(place, tmp_path, monkeypatch):
    study = read_study(prepared_file(place, "broken"))
    true = runs.train

    def dies(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare_world(study.world, place, str(place / "prior"), tmp_path)
    assert not list(tmp_path.glob("prepared/*-*"))
    monkeypatch.setattr(runs, "train", true)
    prepare_world(study.world, place, str(place / "prior"), tmp_path)
    assert len(list(tmp_path.glob("prepared/*-*"))) == 2


def test_other_preparation_is_another_model(place, tmp_path):
    study = read_study(prepared_file(place, "first"))
    one = prepare_world(study.world, place, str(place / "prior"), tmp_path)
    longer = dataclasses.replace(study.world.trainee_before, epochs=1)
    changed = dataclasses.replace(study.world, trainee_before=longer)
    other = prepare_world(changed, place, str(place / "prior"), tmp_path)
    assert one.prepared["trainee"] != other.prepared["trainee"]
    assert one.prepared["prior"] == other.prepared["prior"]


def test_results_of_another_precision_are_not_taken(place, tmp_path, monkeypatch):
    world = world_of(place)
    for dtype, refused in ((torch.float32, False), (torch.bfloat16, True)):
        monkeypatch.setattr(worlds, "fast_dtype", lambda device, dtype=dtype: dtype)
        with pytest.raises(UnusableError, match="another precision") if refused else nullcontext():
            world.check_output(tmp_path)
