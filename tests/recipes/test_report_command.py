"""recipes/paper/report.py: what it prints, writes and refuses."""

import json

import pytest
from common.figures import save_figure
from conftest import TEXT, likely_ids, make_llama, make_tokenizer
from paper.report import main


@pytest.fixture(scope="module")
def prior_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    make_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [{"input_ids": one.tolist()} for one in likely_ids(make_llama(), 8, 40)]
    (folder / "first.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "second.txt").write_text("\n\n".join(TEXT[i:] for i in range(8)))
    return folder


def report(capsys, *argv):
    capsys.readouterr()
    status = main([*map(str, argv)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err.splitlines()[-1] if printed.err else ""


def test_two_sets(capsys, prior_folder, data, tmp_path, monkeypatch):
    def save_one(figure, folder, name):  # test_report.py draws them all
        return save_figure(figure, folder, name) if name == "histogram" else []

    monkeypatch.setattr("paper.report.save_figure", save_one)
    status, printed, _ = report(
        capsys, "--prior", prior_folder, "--data", data / "first.jsonl", "--data",
        f"texts={data / 'second.txt'}", "--output", tmp_path / "new", "--map", "none",
    )  # fmt: skip
    assert status == 0
    assert "first: 8 documents, 320 tokens" in printed
    assert "texts: 8 documents" in printed
    found = json.loads((tmp_path / "new" / "report.json").read_text())
    assert [one["name"] for one in found["sets"]] == ["first", "texts"]
    assert (tmp_path / "new" / "report.html").is_file()
    assert (tmp_path / "new" / "figures" / "histogram.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--data", "{data}/first.jsonl", "--data", "{data}/first.jsonl"), "--data NAME="),
    ],
)
def test_refusals(capsys, prior_folder, data, tmp_path, options, message):
    options = [one.format(data=data) for one in options]
    status, _, error = report(
        capsys, "--prior", prior_folder, *options, "--output", tmp_path / "out"
    )
    assert status == 2
    assert error.startswith("report.py: error: ")
    assert message in error
