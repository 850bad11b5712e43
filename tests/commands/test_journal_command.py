"""`toedit journal`: what it shows, what it finds, and that an export is what was trained on."""

import datetime
import io
import itertools
import json
import os
import re
import shutil
import sys

import datasets
import numpy as np
import pytest
from conftest import make_tokenizer
from datasets import Dataset, load_from_disk
from journals import POLICY, record
from tokenizers.normalizers import Lowercase
from tokenizers.processors import TemplateProcessing
from trainees import Recorder, by_first_token, dataset, documents, make_prior, make_trainer
from transformers import DataCollatorForSeq2Seq

from toedit_collate import EditPolicy, Journal, attach
from toedit_collate.commands import journal as journal_command
from toedit_collate.commands.main import main
from toedit_collate.data import open_data
from toedit_collate.data.output import Reviser
from toedit_collate.data.reading import BATCH_SIZE
from toedit_collate.stores.journal.files import (
    Frame,
    file_of,
    list_files,
    read_frame,
    write_frame,
)

pytestmark = pytest.mark.usefixtures("no_bars")
REMOVING = EditPolicy(threshold=0.05, exclude_original=True, drop_below=1e-3)
FIRST, SECOND = list(range(10, 22)), list(range(30, 38))
CHAT = [{"role": "user", "content": "a"}]


def toedit(capsys, *argv):
    """Exit status, and what was printed to stdout and stderr."""
    capsys.readouterr()
    status = main(["journal", *map(str, argv)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def export(capsys, journal, data, output, *options):
    status, printed, error = toedit(
        capsys, "export", journal, "--data", data, "--output", output, *options
    )
    assert status == 0, error
    return read(output), printed


def read(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return load_from_disk(str(path)).to_list()


def write(path, rows):
    """Save rows by the name of the file."""
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        Dataset.from_list(rows).save_to_disk(path)
    return path


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def journal(tmp_path):
    """Two documents: the first has edits in two generations, the second in the first alone."""
    with Journal(tmp_path / "journal") as journal:
        record(journal, FIRST, {1: 99, 3: None, 5: 98})
        record(journal, SECOND, {})
        record(journal, FIRST, {2: None, 4: 97}, generation=2, prior="b" * 32)
    return tmp_path / "journal"


# The first document, after one generation and after two: of the source, places 3 and 2 are gone.
FIRST_AFTER_1 = [10, 99, 12, 14, 98, *FIRST[6:]]
FIRST_AFTER_2 = [10, 99, 14, 97, *FIRST[6:]]


# --- export: what the model was given ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two generations with prompts and removals: its folder, and what was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = make_tokenizer()
    texts = documents(12, seed=3)
    labels = [[-100] * 3 + text[3:] for text in texts]
    train = dataset(texts, labels=labels, number=list(range(12)))
    trainer, _ = make_trainer(
        folder, tokenizer, train=train, base_collator=DataCollatorForSeq2Seq(tokenizer),
        num_train_epochs=2,
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    attach(
        trainer, make_prior(tokenizer), REMOVING, journal=Journal(folder / "journal"),
        refresh="epoch",
    )  # fmt: skip
    trainer.train()
    given = [
        {row[0]: (row, label) for one in epoch for row, label in zip(one.rows, one.labels)}  # noqa: B905
        for epoch in (recorder.given[:6], recorder.given[6:])
    ]
    assert [len(of) for of in given] == [12, 12]
    assert given[0] != given[1]
    rows = train.to_list()
    for name in ("data", "data.jsonl", "data.parquet"):
        write(folder / name, rows)
    return folder, rows, given


@pytest.mark.parametrize("kind", ["data", "data.jsonl", "data.parquet"])
@pytest.mark.parametrize("output", ["out", "out.jsonl"])
def test_an_export_is_what_the_model_was_given(trained, tmp_path, capsys, kind, output):
    folder, source, given = trained
    for generation in (1, 2):
        exported, _ = export(
            capsys, folder / "journal", folder / kind, tmp_path / f"{generation}" / output,
            "--generation", generation,
        )  # fmt: skip
        assert [row["number"] for row in exported] == list(range(12))
        for row, before in zip(exported, source, strict=True):
            ids, labels = given[generation - 1][row["input_ids"][0]]
            assert row["input_ids"] == ids
            assert row["labels"] == labels
            assert row.keys() == before.keys()
    assert sum(len(row["input_ids"]) for row in exported) < sum(
        len(row["input_ids"]) for row in source
    )


def test_the_last_generation_is_the_default(trained, tmp_path, capsys):
    folder, source, _ = trained
    default, printed = export(capsys, folder / "journal", folder / "data", tmp_path / "a.jsonl")
    last, _ = export(
        capsys, folder / "journal", folder / "data", tmp_path / "b.jsonl", "--generation", 2
    )
    assert default == last
    assert "12 rows as generation 2 trained on them" in printed
    changed = removed = 0
    for row in source:
        tokens, places = Journal(folder / "journal").revise(row["input_ids"], 2)
        changed += int((tokens != np.array(row["input_ids"])[places]).sum())
        removed += len(row["input_ids"]) - len(tokens)
    assert changed > 5
    assert removed > 5
    assert f": {changed:,} changed, {removed:,} removed" in printed


def test_generation_0_is_the_source(trained, tmp_path, capsys):
    folder, source, _ = trained
    rows, printed = export(
        capsys, folder / "journal", folder / "data", tmp_path / "out", "--generation", 0
    )
    assert rows == source
    assert "12 rows, the source" in printed


@pytest.mark.parametrize("output", ["out", "out.jsonl"])
def test_packed_rows(tmp_path, capsys, tokenizer, output):
    """What SFTTrainer packs, and saves as its train_dataset; each document is replayed."""
    trainer, _ = make_trainer(
        tmp_path / "run", tokenizer, kind="SFTTrainer", train=dataset(documents(12, seed=3)),
        packing=True, max_length=40, num_train_epochs=2,
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    attach(
        trainer, make_prior(tokenizer), REMOVING, journal=Journal(tmp_path / "journal"),
        refresh="epoch",
    )  # fmt: skip
    trainer.train()
    trainer.train_dataset.save_to_disk(tmp_path / "data")
    num_steps = len(recorder.given) // 2
    epochs = [split_by_position(recorder.given[:num_steps])]
    epochs.append(split_by_position(recorder.given[num_steps:]))
    for generation, given in enumerate(epochs, 1):
        exported, printed = export(
            capsys, tmp_path / "journal", tmp_path / "data", tmp_path / f"{generation}" / output,
            "--generation", generation,
        )  # fmt: skip
        ours = [one for row in exported for one in split(row["input_ids"], row["seq_lengths"])]
        labels = [one for row in exported for one in split(row["labels"], row["seq_lengths"])]
        assert max(len(row["seq_lengths"]) for row in exported) > 1
        assert len(ours) == 12
        assert by_first_token(ours) == by_first_token(given)
        assert labels == ours
        assert "12 documents" in printed
    assert epochs[0] != epochs[1]


def split(values, lengths):
    assert sum(lengths) == len(values)
    ends = np.cumsum(lengths)
    return [values[end - n : end] for n, end in zip(lengths, ends, strict=True)]


def split_by_position(given):
    found = []
    for one in given:
        for row, positions in zip(one.rows, one.positions, strict=True):
            starts = [i for i, p in enumerate(positions) if p == 0] + [len(row)]
            found += [row[a:b] for a, b in itertools.pairwise(starts)]
    return found


# --- export: columns ---


def test_columns_follow_the_tokens(journal, tmp_path, capsys):
    T = len(FIRST)
    rows = [
        {
            "id": "a",
            "input_ids": FIRST,
            "labels": [-100, -100, *FIRST[2:]],
            "attention_mask": [1] * T,
            "completion_mask": [0, 0] + [1] * (T - 2),
            "assistant_masks": [0, 1] * (T // 2) + [1] * (T % 2),
            "other": list(range(T)),
            "text": "the source",
        },
        {
            "id": "b",
            "input_ids": SECOND,
            "labels": SECOND,
            "attention_mask": [1] * 8,
            "completion_mask": [1] * 8,
            "assistant_masks": [1] * 8,
            "other": [1, 2],
            "text": "unchanged",
        },
    ]
    data = write(tmp_path / "data", rows)
    (first, second), printed = export(capsys, journal, data, tmp_path / "out")
    kept = [n for n in range(T) if n not in (2, 3)]
    assert first == {
        "id": "a",
        "input_ids": FIRST_AFTER_2,
        "labels": [-100, -100, 14, 97, *FIRST[6:]],
        "attention_mask": [1] * (T - 2),
        "completion_mask": [[0, 0, *[1] * (T - 2)][n] for n in kept],
        "assistant_masks": [rows[0]["assistant_masks"][n] for n in kept],
        "other": list(range(T)),
    }
    del rows[1]["text"]
    assert second == rows[1]
    assert re.search(
        r"2 documents, of which generation 2 knows 1; the others are unchanged", printed
    )
    assert "column text was left out" in printed


def test_padding_stays(journal, tmp_path, capsys, tokenizer, tokenizer_folder):
    """A row that was padded when it was tokenized: padding is no part of its document."""
    row = {"input_ids": [2, 2, *FIRST, 2], "attention_mask": [0, 0, *[1] * len(FIRST), 0]}
    (row,), _ = export(
        capsys, journal, write(tmp_path / "d.jsonl", [row]), tmp_path / "o.jsonl",
        "--tokenizer", tokenizer_folder,
    )  # fmt: skip
    assert row["input_ids"] == [2, 2, *FIRST_AFTER_2, 2]
    assert row["text"] == tokenizer.decode(FIRST_AFTER_2)
    assert row["attention_mask"] == [0, 0, *[1] * len(FIRST_AFTER_2), 0]


def test_documents_by_position_ids(journal, tmp_path, capsys):
    positions = [*range(2, 2 + len(SECOND)), *range(len(FIRST)), *range(len(SECOND))]
    row = {"input_ids": [*SECOND, *FIRST, *SECOND], "position_ids": positions}
    (row,), _ = export(capsys, journal, write(tmp_path / "d.jsonl", [row]), tmp_path / "o.jsonl")
    assert row["input_ids"] == [*SECOND, *FIRST_AFTER_2, *SECOND]
    left = len(FIRST_AFTER_2)
    assert row["position_ids"] == [*range(2, 10), *range(left), *range(len(SECOND))]


def test_lists_of_fixed_length_may_shrink(journal, tmp_path, capsys):
    T = len(FIRST)
    features = datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("int32"), length=T),
            "attention_mask": datasets.List(datasets.Value("int8"), length=T),
            "vector": datasets.List(datasets.Value("float32"), length=2),
        }
    )
    row = {"input_ids": FIRST, "attention_mask": [1] * T, "vector": [0.5, 1.5]}
    Dataset.from_list([row], features=features).save_to_disk(tmp_path / "data")
    (row,), _ = export(capsys, journal, tmp_path / "data", tmp_path / "out")
    assert row["input_ids"] == FIRST_AFTER_2
    written = load_from_disk(tmp_path / "out").features
    assert written["input_ids"] == datasets.List(datasets.Value("int32"))
    assert written["vector"] == features["vector"]


def test_columns_of_json_lines_may_be_missing_or_null(journal, tmp_path, capsys):
    rows = [{"input_ids": SECOND, "note": None}] * (2 * BATCH_SIZE)
    rows += [{"input_ids": FIRST, "note": "n", "more": 1}]
    data = write(tmp_path / "data.jsonl", rows)
    exported, _ = export(capsys, journal, data, tmp_path / "out")
    assert exported[0] == {"input_ids": SECOND, "note": None, "more": None}
    assert exported[-1] == {"input_ids": FIRST_AFTER_2, "note": "n", "more": 1}
    assert len(exported) == len(rows)


def test_dates_become_text_in_json_lines(journal, tmp_path, capsys):
    day = datetime.datetime(2024, 2, 29, 12)
    data = write(tmp_path / "data", [{"input_ids": FIRST, "at": day}])
    (row,), _ = export(capsys, journal, data, tmp_path / "out.jsonl")
    assert row["at"] == "2024-02-29T12:00:00"


# --- export: text ---


def test_text_is_decoded(journal, tmp_path, capsys, tokenizer, tokenizer_folder):
    data = write(tmp_path / "data.jsonl", [{"input_ids": FIRST, "text": "old"}])
    options = ("--tokenizer", tokenizer_folder)
    (row,), _ = export(capsys, journal, data, tmp_path / "a.jsonl", *options)
    assert row["text"] == tokenizer.decode(FIRST_AFTER_2)
    assert row["text"] != tokenizer.decode(FIRST)
    (row,), printed = export(capsys, journal, data, tmp_path / "b.jsonl")
    assert row == {"input_ids": FIRST_AFTER_2}
    assert "column text was left out" in printed


@pytest.mark.parametrize("output", ["out", "out.jsonl"])
@pytest.mark.parametrize(("end", "more"), [("<|eos|>", ()), ("", ("--no-eos",))])
def test_data_of_text(tmp_path, capsys, output, end, more):
    """Text is tokenized as in training; what is added to it is not written back as text."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", 0), ("<|eos|>", 1)]
    )
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    first, second = "the quick <|im_start|>brown fox", "A lazy Dog"  # which decoding would not give
    ids = tokenizer(first + end)["input_ids"]
    num_added = 2 if end else 1
    assert (ids[0], ids[-num_added:]) == (0, [1] * num_added)
    new = tokenizer.convert_tokens_to_ids("X")
    with Journal(tmp_path / "journal") as journal:
        record(journal, ids, {1: None, 2: new})
    data = write(tmp_path / "data.jsonl", [{"text": first, "n": 1}, {"text": second, "n": 2}])
    rows, printed = export(
        capsys, tmp_path / "journal", data, tmp_path / output,
        "--tokenizer", tmp_path / "tokenizer", *more,
    )  # fmt: skip
    assert rows[0]["input_ids"] == [0, new, *ids[3:]]
    assert rows[0]["text"] == "X" + tokenizer.decode(ids[3:-num_added])
    assert "<|im_start|>" in rows[0]["text"]
    unchanged = {"input_ids": tokenizer(second + end)["input_ids"], "text": second, "n": 2}
    assert rows[1] == unchanged
    assert "2 documents, of which generation 1 knows 1;" in printed


# --- export: what it reads and writes ---


def test_rows_come_in_small_batches(tmp_path):
    rows = [{"input_ids": [n]} for n in range(2 * BATCH_SIZE + 5)]
    for name in ("data", "data.jsonl", "data.parquet"):
        data = open_data(write(tmp_path / name, rows), None)
        batches = list(data.batches())
        assert [row for batch in batches for row in batch.rows] == rows
        assert len(batches) == 3
        assert data.count_rows() in (len(rows), None)
        assert re.search(rf"\b{len(rows) - (not name.endswith('jsonl'))}\b", batches[-1].names[-1])


def test_a_split_of_several(journal, tmp_path, capsys):
    both = {"a": Dataset.from_list([{"input_ids": FIRST}] * 2), "b": dataset([SECOND])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "data")
    status, _, error = toedit(
        capsys, "export", journal, "--data", tmp_path / "data", "--output", tmp_path / "out"
    )
    assert status == 2
    assert "no split 'train' (" in error
    rows, _ = export(capsys, journal, tmp_path / "data", tmp_path / "out", "--split", "a")
    assert [row["input_ids"] for row in rows] == [FIRST_AFTER_2] * 2


@pytest.mark.parametrize("name", ["out", "out.jsonl"])
def test_nothing_is_overwritten(journal, tmp_path, capsys, name):
    data = write(tmp_path / "data.jsonl", [{"input_ids": FIRST}])
    rows, _ = export(capsys, journal, data, tmp_path / name)
    status, _, error = toedit(
        capsys, "export", journal, "--data", data, "--output", tmp_path / name,
        "--generation", 1,
    )  # fmt: skip
    assert status == 2
    assert f"--output {tmp_path / name}: exists already; remove it" in error
    assert read(tmp_path / name) == rows


@pytest.mark.parametrize("name", ["out", "out.jsonl"])
def test_an_export_that_is_interrupted_leaves_nothing(journal, tmp_path, capsys, monkeypatch, name):
    data = write(tmp_path / "data.jsonl", [{"input_ids": FIRST}] * BATCH_SIZE)
    before = sorted(tmp_path.iterdir())
    seen = []

    def stop(*_):
        seen.extend(tmp_path.glob(f".{name}.partial-*"))
        raise KeyboardInterrupt

    monkeypatch.setattr(Reviser, "revise", stop)
    with pytest.raises(KeyboardInterrupt):
        toedit(capsys, "export", journal, "--data", data, "--output", tmp_path / name)
    assert seen
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("out", f"input_ids of line {BATCH_SIZE + 1} must be a list of whole numbers"),
        ("out.parquet", f"input_ids of line {BATCH_SIZE + 1} must be a list of whole numbers"),
        ("out.jsonl", f"input_ids of line {BATCH_SIZE + 1} must be a list of whole numbers"),
    ],
)
def test_an_export_that_meets_a_bad_row_leaves_nothing(journal, tmp_path, capsys, name, expected):
    rows = [{"input_ids": FIRST}] * BATCH_SIZE + [{"input_ids": "no list"}]
    data = write(tmp_path / "data.jsonl", rows)
    before = sorted(tmp_path.iterdir())
    status, _, message = toedit(
        capsys, "export", journal, "--data", data, "--output", tmp_path / name
    )
    assert status == 2
    assert expected in message
    assert sorted(tmp_path.iterdir()) == before


def test_an_error_on_the_way_to_a_dataset_is_ours(journal, tmp_path, capsys):
    data = write(tmp_path / "data", [{"input_ids": FIRST, "seq_lengths": [3]}])
    status, _, error = toedit(
        capsys, "export", journal, "--data", data, "--output", tmp_path / "out"
    )
    assert status == 2
    message = f"seq_lengths of row 0 (from 0) sum to 3, but it has {len(FIRST)} tokens"
    assert error.startswith(f"toedit journal export: error: --data {data}: {message}")
    assert error.count("\n") == 1


def test_the_bar_is_for_terminals(journal, tmp_path, capsys, monkeypatch):
    data = write(tmp_path / "data.jsonl", [{"input_ids": FIRST}] * 7)
    argv = ["journal", "export", str(journal), "--data", str(data), "--output"]
    assert main([*argv, str(tmp_path / "a.jsonl")]) == 0
    assert capsys.readouterr().err == ""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main([*argv, str(tmp_path / "b.jsonl")]) == 0
    assert "/7 " in terminal.getvalue()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"input_ids": [1, 2]}], [], r"generation 2 .* none of its documents; .*train_dataset\."),
        ([{"input_ids": FIRST}], ["--generation", "3"], r"--generation 3: not in .* of \[1, 2\]"),
        ([{"body": "a"}], [], r"line 1 has the columns \['body'\], none of input_ids, text, mess"),
        ([{"messages": CHAT}], [], r"line 1 has messages and no input_ids; add --tokenizer"),
        ([{"text": "a"}], [], r"line 1 has text and no input_ids; add --tokenizer.*save_to_disk"),
        ([{"input_ids": FIRST}], ["--tokenizer", "./no"], r"--tokenizer \./no: can't be loaded"),
        (
            [{"input_ids": FIRST}],
            ["--split", "a"],
            r"--split a: a file has no splits",
        ),
        ([{"input_ids": [1.5]}], [], r"input_ids of line 1 must be .* got \[1\.5\]"),
        ([{"input_ids": [-5]}], [], r"line 1 has the token -5 in input_ids"),
        ([{"input_ids": FIRST, "labels": [1]}], [], r"labels of line 1 holds 1 numbers, .* 12 tok"),
        ([{"input_ids": FIRST, "loss_mask": [1]}], [], r"loss_mask of line 1 holds 1 numbers"),
        ([{"input_ids": FIRST, "position_ids": [1]}], [], r"position_ids of line 1 holds 1 numb"),
        ([], [], r"it holds no rows"),
        ([5], [], r"line 1 is a int; write one JSON object a line"),
    ],
)
def test_what_an_export_says_of_mistakes(journal, tmp_path, capsys, rows, options, message):
    data = write(tmp_path / "data.jsonl", rows)
    status, _, error = toedit(
        capsys, "export", journal, "--data", data, "--output", tmp_path / "out.jsonl", *options
    )
    assert status == 2
    assert re.match(rf"toedit journal export: error: .*{message}", error)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.doc", "a", r"ends in '\.doc'; give files of one kind of \.jsonl, .* or a folder"),
        ("data.txt", "a", r"document 1 has text and no input_ids; add --tokenizer"),
        ("data.jsonl", '{"input_ids": [1]}\n{"inp', r"line 2 is not JSON .*one JSON object a li"),
        ("data.parquet", "no", r"can't be read as parquet"),
        ("folder", None, r"the folder holds no data files; check the path"),
        ("none.jsonl", "", r"there is no such file or folder"),
    ],
)
def test_data_that_cannot_be_used(journal, tmp_path, capsys, name, content, message):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    elif content:
        path.write_text(content)
    status, _, error = toedit(
        capsys, "export", journal, "--data", path, "--output", tmp_path / "out.jsonl"
    )
    assert status == 2
    assert re.match(rf"toedit journal export: error: --data {path}: .*{message}", error)


def test_outputs_of_other_formats(journal, tmp_path, capsys):
    data = write(tmp_path / "data.jsonl", [{"input_ids": FIRST}])
    status, _, error = toedit(capsys, "export", journal, "--data", data, "--output", "out.csv")
    assert status == 2
    assert re.search(r"ends in '\.csv'; write \.jsonl or \.parquet", error)


@pytest.mark.parametrize("action", ["show", "verify"])
def test_paths_without_a_journal(tmp_path, capsys, action):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("none", "does not exist"), ("file", "is a file"), ("empty", "without journal files"),
    ):  # fmt: skip
        status, _, error = toedit(capsys, action, tmp_path / name)
        assert status == 2
        assert re.match(
            rf"toedit journal {action}: error: PATH {tmp_path / name} .*{message}", error
        )


# --- show ---


def test_show_has_the_numbers_of_each_generation(trained, capsys):
    folder, _, _ = trained
    status, printed, _ = toedit(capsys, "show", folder / "journal", "--limit", 0)
    assert status == 0
    names, *rows = (line.split() for line in printed.split("\n\n")[0].splitlines())
    assert names[0] == "generation"
    stats = Journal(folder / "journal").stats()
    assert [int(row[0]) for row in rows] == [1, 2]
    for row, of in zip(rows, stats.values(), strict=True):
        numbers = [cell for cell in row if not cell.startswith("(")]
        shares = [float(cell.strip("(%)")) for cell in row if cell.startswith("(")]
        expected = ["documents", "tokens", "scored", "selected", "changed", "dropped"]
        assert numbers[1:7] == [f"{of[name]:,}" for name in expected]
        assert shares[0] == pytest.approx(100 * of["selected_share"], rel=0.01)
        assert shares[1] == pytest.approx(100 * of["changed_share"], rel=0.01)


def test_show_says_what_made_a_generation(trained, journal, capsys):
    _, printed, _ = toedit(capsys, "show", journal, "--limit", 0)
    assert "generation 1: prior a, EditPolicy()\n" in printed.replace("a prior", "a")
    assert "generation 2: prior bbbbbbbbbbbb, EditPolicy()\n" in printed
    _, printed, _ = toedit(capsys, "show", trained[0] / "journal")
    assert re.search(
        r"^generation 2: prior [0-9a-f]{12}, "
        r"EditPolicy\(threshold=0\.05, drop_below=0\.001, exclude_original=True\)$",
        printed,
        re.M,
    )


def test_show_lists_changes(journal, capsys, tokenizer, tokenizer_folder):
    _, printed, _ = toedit(capsys, "show", journal)
    changes = [line.split(maxsplit=3) for line in printed.split("change\n")[-1].splitlines()]
    key = read_frame(list_files(journal)[0].path).keys[0]
    assert changes == [
        ["1", f"{key:016x}", "1", "11 -> 99"],
        ["1", f"{key:016x}", "3", "13 -> removed"],
        ["1", f"{key:016x}", "5", "15 -> 98"],
        ["2", f"{key:016x}", "2", "12 -> removed"],
        ["2", f"{key:016x}", "4", "98 -> 97"],
    ]
    _, printed, _ = toedit(capsys, "show", journal, "--tokenizer", tokenizer_folder, "--limit", 4)
    text = tokenizer.decode([12])
    assert printed.splitlines()[-2].endswith(f" 2  {text!r} (12) -> removed")
    assert "--limit shows more" in printed.splitlines()[-1]


def test_show_while_a_segment_is_being_written(journal, capsys):
    file = list_files(journal)[0].path
    _, before, _ = toedit(capsys, "show", journal)
    file.with_name(f"{file.name}.0123456789ab.unfinished").write_bytes(file.read_bytes()[:-5])
    status, after, _ = toedit(capsys, "show", journal)
    assert status == 0
    assert after == before


def test_show_refuses_a_damaged_journal(journal, capsys):
    flip_a_byte(list_files(journal)[0].path)
    status, _, error = toedit(capsys, "show", journal)
    assert status == 2
    assert re.search(r"is damaged: .*`toedit journal verify .*` checks all files", error)


# --- verify ---


def verify(capsys, journal):
    status, printed, error = toedit(capsys, "verify", journal)
    assert status in (0, 1), error
    verdict = printed.splitlines()[-1]
    assert verdict == f"{journal}: sound" if status == 0 else "not sound, " in verdict
    return status, printed


def flip_a_byte(path, place=-20):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_sound_journal(trained, capsys):
    folder, _, _ = trained
    status, printed = verify(capsys, folder / "journal")
    assert status == 0
    assert re.search(r"^generation-0001\.rank-00000\S+: documents: 12, ", printed)


def test_a_damaged_file_does_not_hide_others(journal, capsys):
    first, second = (file.path for file in list_files(journal))
    flip_a_byte(first)
    flip_a_byte(second)
    status, printed = verify(capsys, journal)
    assert status == 1
    for path in (first, second):
        assert f"{path.name}: DAMAGED\n" in printed
        assert f"problem: journal file {path} is damaged: its checksum is wrong" in printed
    assert "not sound, 2 problems" in printed


def test_an_unfinished_segment_is_no_damage(journal, capsys):
    file = list_files(journal)[0].path
    file.with_name(f"{file.name}.0123456789ab.unfinished").write_bytes(file.read_bytes()[:-7])
    assert verify(capsys, journal)[0] == 0


def test_a_cut_or_missing_segment_is_damage(journal, capsys):
    with Journal(journal) as more:
        record(more, [1, 2, 3], {1: 7}, generation=2, prior="b" * 32)
    *_, last_but_one, last = list_files(journal)
    last.path.write_bytes(last.path.read_bytes()[:-7])
    status, printed = verify(capsys, journal)
    assert status == 1
    assert f"{last.path.name}: DAMAGED" in printed
    last_but_one.path.unlink()
    status, printed = verify(capsys, journal)
    assert status == 1
    assert "generation 2, rank 0, segment 0 is missing" in printed
    assert f"{last.path.name}: DAMAGED" in printed


def copied(file, folder, rank):
    """A file of another journal as that of another rank."""
    shutil.copy(file, file_of(folder, 1, rank, 0).path)


def test_edits_of_one_document_by_two_ranks(journal, tmp_path, capsys):
    with Journal(tmp_path / "other") as other:
        record(other, FIRST, {1: 99, 3: None, 5: 98})
    file = list_files(tmp_path / "other")[0].path
    copied(file, journal, 1)
    status, printed = verify(capsys, journal)
    assert status == 0
    assert "\ngeneration 1: documents: 2\n" in printed

    with Journal(tmp_path / "third") as third:
        record(third, FIRST, {1: 99, 3: None, 5: 97})
    file = list_files(tmp_path / "third")[0].path
    copied(file, journal, 2)
    status, printed = verify(capsys, journal)
    assert status == 1
    key = read_frame(file).keys[0]
    assert re.search(
        rf"problem: generation 1 has two different edits .*\(1; one is {key:016x}\)", printed
    )
    assert "\ngeneration 1: documents: 2\n" in printed


@pytest.mark.parametrize(
    "other", [{"prior": "another"}, {"policy": {**POLICY, "top_k": 64}}], ids=["prior", "policy"]
)
def test_a_generation_made_in_two_ways(journal, tmp_path, capsys, other):
    with Journal(tmp_path / "other") as second:
        record(second, [5, 6, 7], {}, **other)
    file = list_files(tmp_path / "other")[0].path
    copied(file, journal, 1)
    status, printed = verify(capsys, journal)
    assert status == 1
    seen = "prior another" if "prior" in other else r"EditPolicy\(top_k=64\)"
    assert re.search(rf"problem: generation 1 was made in 2 ways: .*{seen}.*rank-00001", printed)


def test_void_edits_are_no_contradictions(tmp_path, capsys):
    with Journal(tmp_path / "journal") as journal:
        journal.start_run("run")
        record(journal, FIRST, {1: 99}, step=0)
        record(journal, SECOND, {1: 99}, step=5)
    with Journal(tmp_path / "journal") as journal:
        journal.start_run("run", attempt=1, resumed_at=3)
        record(journal, SECOND, {1: 98}, step=3)
    status, printed = verify(capsys, tmp_path / "journal")
    assert status == 0
    assert "generation 1: documents: 2\n" in printed
    _, shown, _ = toedit(capsys, "show", tmp_path / "journal")
    assert "31 -> 98" in shown
    assert "31 -> 99" not in shown


def frame_with(**changes):
    """A frame of one document, changes (1, 7, 8) and (4, 7, -1), or with something wrong in it."""
    settings = {
        "info": {
            "generation": 1, "prior": "p", "policy": POLICY, "run": "r", "attempt": 0,
            "resumed_at": 0,
        },
        "keys": np.array([5], np.uint64),
        "counts": np.array([2]),
        "changes": np.array([[1, 7, 8], [4, 7, -1]]),
        "steps": {name: np.array([1]) for name in
                  ("step", "documents", "tokens", "scored", "selected", "changed")},
    }  # fmt: skip
    return Frame(**{**settings, **changes})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"steps": {**frame_with().steps, "documents": np.array([2])}},
            "its arrays do not fit each other",
        ),
        ({"info": {**frame_with().info, "generation": 2}}, "is of generation 2; was it renamed"),
        ({"info": {"generation": 1, "run": "r"}}, "its facts do not say which run wrote it"),
    ],
)
def test_frames_that_no_writer_writes(tmp_path, capsys, wrong, message):
    (tmp_path / "journal").mkdir()
    first, second = (file_of(tmp_path / "journal", 1, 0, n).path for n in (0, 1))
    write_frame(first, frame_with())
    assert verify(capsys, tmp_path / "journal")[0] == 0
    write_frame(second, frame_with(**wrong))
    status, printed = verify(capsys, tmp_path / "journal")
    assert status == 1
    assert re.search(rf"^problem: .*{second.name}.*{message}", printed, re.M)


def test_data_that_does_not_fit_the_edits(journal, tmp_path, capsys):
    """Only a wrong journal can do this: a document is known by its content."""
    file = list_files(journal)[-1].path
    frame = read_frame(file)
    changes = frame.changes.copy()
    changes[0, 1] = 200  # the old token
    write_frame(file, Frame(frame.info, frame.keys, frame.counts, changes, frame.steps))
    data = write(tmp_path / "data.jsonl", [{"input_ids": SECOND}, {"input_ids": FIRST}])
    status, _, error = toedit(
        capsys, "export", journal, "--data", data, "--output", tmp_path / "out.jsonl"
    )
    assert status == 2
    assert re.search(
        rf"--data {data}: a document can't be replayed: .* generation 2: its "
        "changes belong to another document",
        error,
    )


# --- faults ---


def test_a_full_disk_leaves_no_half_file(journal, tmp_path, capsys, monkeypatch):
    data = write(tmp_path / "data.jsonl", [{"input_ids": FIRST}])
    before = sorted(tmp_path.iterdir())

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_command, "write_rows", fail)
    status, _, error = toedit(
        capsys, "export", journal, "--data", data, "--output", tmp_path / "out.jsonl"
    )
    assert status == 2
    assert re.search(r"--output .*out\.jsonl: .*No space", error)
    assert sorted(tmp_path.iterdir()) == before


def test_an_interrupt_leaves_no_half_file(journal, tmp_path, monkeypatch):
    data = write(tmp_path / "data.jsonl", [{"input_ids": FIRST}])
    before = sorted(tmp_path.iterdir())

    def interrupted(_data, _reviser, _rows, target, *_):
        target.write_text("half a li")
        raise KeyboardInterrupt

    monkeypatch.setattr(journal_command, "write_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["journal", "export", str(journal), "--data", str(data),
              "--output", str(tmp_path / "out.jsonl")])  # fmt: skip
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
def test_what_is_no_file_is_told(journal, capsys, make):
    path = list_files(journal)[0].path
    path.unlink()
    make(path)
    status, printed = verify(capsys, journal)
    assert status == 1
    assert re.search(rf"problem: journal file {path} is damaged: it is not a regular file", printed)
    status, _, error = toedit(capsys, "show", journal)
    assert status == 2
    assert "is damaged: it" in error


# --- the command ---


def test_numbers_out_of_range_are_refused_by_argparse(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["journal", "show", "x", "--limit", "-1"])
    assert "--limit: must be a whole number from 0, got '-1'" in capsys.readouterr().err
