"""`toedit inspect`: what it prints, and the files it writes."""

import json
import re

import pytest
from conftest import TEXT, likely_ids, make_llama, make_tokenizer
from journals import record

from toedit_collate import Journal
from toedit_collate.commands.main import main

SOURCE = [7, 8, 9, 10, 11, 12, 13, 14]


@pytest.fixture(scope="module")
def prior_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    make_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "data.jsonl"
    rows = [{"input_ids": one.tolist()} for one in likely_ids(make_llama(), 6, 40)]
    rows.append({"text": TEXT})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def inspect(capsys, *argv):
    capsys.readouterr()
    status = main(["inspect", *map(str, argv)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err.splitlines()[-1] if printed.err else ""


def test_tables_documents_and_a_recommendation(capsys, prior_folder, data, tmp_path):
    page = tmp_path / "page.html"
    status, printed, _ = inspect(
        capsys, "--prior", prior_folder, "--data", data, "--policy", "threshold=0.2",
        "reference_code threshold=0.1", "--html", page,
    )  # fmt: skip
    assert status == 0
    assert "7 documents, " in printed
    assert re.search(r"^threshold=0\.2 +[\d,]+ +[\d,]+ ", printed, re.MULTILINE)
    assert re.search(r"^reference_code threshold=0\.1 +[\d,]+ ", printed, re.MULTILINE)
    assert "most probable others: " in printed
    assert printed.count("Recommendation") == 1
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_what_a_run_edited(capsys, prior_folder, tmp_path):
    with Journal(tmp_path / "journal") as journal:
        record(journal, SOURCE, {1: 99, 3: None})
        record(journal, SOURCE, {1: 98}, generation=2, prior="b" * 32)
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"input_ids": SOURCE}) + "\n")
    page = tmp_path / "page.html"
    status, printed, _ = inspect(
        capsys, "--journal", tmp_path / "journal", "--data", data, "--prior", prior_folder,
        "--html", page,
    )  # fmt: skip
    assert status == 0
    assert printed.startswith("What training edited")
    assert "-- generation 1: 1 changed, 1 removed" in printed
    assert "-- generation 2: 1 changed" in printed
    stats = Journal(tmp_path / "journal").stats()[2]
    assert (
        f"generation 2: training selected {stats['selected']} of {stats['scored']} scored tokens"
        in printed
    )
    assert page.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policy", "papper"), "--policy: policy must be one of paper"),
        (("--html", "/nowhere/page.html"), "--html /nowhere/page.html: cannot be written"),
        (("--journal", "/nowhere"), "--journal /nowhere does not exist"),
        (
            ("--journal", "/nowhere", "--policy", "paper", "--protect", "code"),
            "--policy, --protect cannot be used with --journal",
        ),
    ],
)
def test_refusals(capsys, prior_folder, data, options, message):
    status, _, error = inspect(capsys, "--prior", prior_folder, "--data", data, *options)
    assert status == 2
    assert error.startswith("toedit inspect: error: ")
    assert message in error


def test_a_journal_of_other_data(capsys, prior_folder, data, tmp_path):
    with Journal(tmp_path / "journal") as journal:
        record(journal, SOURCE, {1: 99})
    status, _, error = inspect(
        capsys, "--journal", tmp_path / "journal", "--data", data, "--prior", prior_folder
    )
    assert status == 2
    assert "contains none of the 7 documents" in error
