"""recipes/paper/make_data.py: each corpus from local stand-ins with the source's columns."""

from __future__ import annotations

import json

import pytest
from common.arguments import DataArguments
from common.data import in_trl_format
from conftest import make_tokenizer
from paper import make_data
from paper.make_data import main, read_corpora
from running import make_files

from toedit_collate.data import load_rows

CHAT = {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}]}
READING = [
    {"context": "First.", "QA_list": [{"Q": "who", "A": "me"}], "inherit_from_prev": False},
    {"context": "More.", "QA_list": [], "inherit_from_prev": True},
    {"context": "Second.", "QA_list": [], "inherit_from_prev": False},
]
# A row of each source, and what becomes of it.
STAND_INS = {
    "medicine": (READING, ["First.\n\nQuestion: who\nAnswer: me\n\nMore.", "Second."]),
    "finance": ({"title": "Up", "text": "it goes", "url": "x"}, ["Up it goes"]),
    "openorca": ({"id": "1", "system_prompt": "", "question": "a b", "response": "c"}, ["a b c"]),
    "openwebmath": ({"text": "1 + 1", "url": "x", "date": "y", "metadata": "{}"}, ["1 + 1"]),
    "dolma": ({"text": "a text", "id": "1"}, ["a text"]),
    "cosmopedia": ({"text": "a text", "prompt": "p", "token_length": 2}, ["a text"]),
    "natural_instructions": ({"definition": "d", "inputs": "i", "targets": "t"}, ["d\n\ni\nt"]),
    "cot": (CHAT, ["ask\nsay"]),
    "flan_v2": (CHAT, ["ask\nsay"]),
    "oasst1": (CHAT, ["ask\nsay"]),
    "oss_instruct": ({"problem": "p", "solution": "s", "lang": "python"}, ["p\ns"]),
    "evol_instruct": ({"instruction": "p", "response": "s"}, ["p\ns"]),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files")).model


def make(model, folder, name, rows, *words):
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return main(
        [name, "--folder", str(folder), "--source", str(source), "--tokenizer", model, *words]
    )


def written(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_there_is_a_stand_in_for_each_corpus():
    assert set(STAND_INS) == set(read_corpora())


@pytest.mark.parametrize("name", STAND_INS)
def test_rows_are_made_to_train_on(name, model, tmp_path, capsys):
    row, texts = STAND_INS[name]
    assert make(model, tmp_path, name, [row, row]) == 0
    rows = written(tmp_path, name)
    assert [make_data.text_of(one) for one in rows] == texts * 2
    assert f"{len(rows)} documents of 2 rows" in capsys.readouterr().out
    loaded = load_rows(str(tmp_path / f"{name}.jsonl"))
    in_trl_format(loaded, DataArguments(), make_tokenizer(), name)


def test_it_stops_at_the_number_of_tokens_and_goes_on_after_a_kill(model, tmp_path, monkeypatch):
    rows = [{"text": f"the fox {number}"} for number in range(50)]
    monkeypatch.setattr(make_data, "CHUNK", 7)
    (tmp_path / "whole").mkdir()
    make(model, tmp_path / "whole", "dolma", rows, "--tokens", "150")
    wanted = written(tmp_path / "whole", "dolma")
    state = json.loads((tmp_path / "whole" / "dolma.state.json").read_text())
    assert 150 <= state["count"] < 160
    assert len(wanted) == state["documents"] < 50
    assert [row["text"] for row in wanted] != [
        row["text"] for row in rows[: len(wanted)]
    ]  # shuffled

    def killed(file):
        calls.append(1)
        if len(calls) == 3:  # the third chunk is written, and its state is not
            raise KeyboardInterrupt

    calls: list[int] = []
    monkeypatch.setattr(make_data.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        make(model, tmp_path, "dolma", rows, "--tokens", "150")
    monkeypatch.setattr(make_data.os, "fsync", lambda file: None)
    assert make(model, tmp_path, "dolma", rows, "--tokens", "150") == 0
    assert written(tmp_path, "dolma") == wanted
    assert make(model, tmp_path, "dolma", rows, "--tokens", "150") == 0  # nothing more to do
    assert written(tmp_path, "dolma") == wanted


def test_refusals(model, tmp_path, capsys):
    assert main(["nosuch"]) == 2
    assert "medicine" in capsys.readouterr().err
    assert make(model, tmp_path, "dolma", [{"text": "a fox"}]) == 0
    assert make(model, tmp_path, "dolma", [{"text": "a fox"}], "--seed", "1") == 2
    assert "was begun with" in capsys.readouterr().err
    assert main(["--list"]) == 0
    assert "cosmopedia: " in capsys.readouterr().out
