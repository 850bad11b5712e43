"""Studies of tiny runs: a prior, text, and the YAML files that ask about them."""

import json

import yaml
from conftest import TEXT, make_llama, make_tokenizer
from studies.engine import make_study
from studies.settings import Rows, WorldSettings, read_study
from studies.world import World

TRAINEE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def make_place(folder):
    """A folder with a prior and text."""
    make_llama(3, initializer_range=0.1).save_pretrained(folder / "prior")
    make_tokenizer().save_pretrained(folder / "prior")
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": TEXT}) for _ in range(12)))
    (folder / "b.jsonl").write_text(json.dumps({"text": TEXT[::-1]}))
    chat = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "a dog"}]
    (folder / "c.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for _ in range(6)))
    return folder


def world_of(place, **changes):
    settings = {
        "trainee": TRAINEE,
        "row_length": 16,
        "train": Rows(file="a.jsonl", rows=(0, 6)),
        "validation": Rows(file="a.jsonl", rows=(6, 9)),
        "test": Rows(file="a.jsonl", rows=(9, 12)),
        "others": {"b": Rows(file="b.jsonl", rows=(0, 2))},
        "replay": Rows(file="b.jsonl", rows=(2, 4)),
    }
    return World(WorldSettings(**{**settings, **changes}), place, str(place / "prior"))


def content_of(study, place, **changes):
    """A study file of tiny runs."""
    world = {
        "trainee": TRAINEE,
        "row_length": 16,
        **{
            name: {"file": "a.jsonl", "rows": rows}
            for name, rows in (("train", [0, 6]), ("validation", [6, 9]), ("test", [9, 12]))
        },
        "others": {"b": {"file": "b.jsonl", "rows": [0, 2]}},
    }
    content = {
        "question": "Is it so?",
        "counts_as_yes": "It is.",
        "world": world,
        "run": {"epochs": 2, "batch_rows": 2},
        "seeds": [0, 1],
        **changes,
    }
    path = place / f"{study}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def arms_file(place, name="arms", **changes):
    arms = {
        "none": {"trials": [{"learning_rate": 1e-9}, {"learning_rate": 0.01}]},
        "all": {"policy": "region=all target=labels"},
        "itself": {"policy": "threshold=0.01", "prior": "self"},
    }
    return content_of(name, place, **{"tuning_seed": 7, "arms": arms, **changes})


def made(path, place, output):
    return make_study(read_study(path), place, str(place / "prior"), output)
