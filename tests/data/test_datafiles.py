"""Data files: one reader for all formats, and one way from a row to token ids and labels."""

from __future__ import annotations

import json
import os
import re

import datasets
import pytest
from conftest import make_llama, make_tokenizer
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from transformers import tokenization_utils_base
from trl import SFTConfig, SFTTrainer

from toedit_collate.data import (
    examples,
    format_of,
    ids_and_labels,
    load_rows,
    open_data,
    parse_source,
)
from toedit_collate.data.rows import Data, SavedRows
from toedit_collate.errors import UnusableError

pytestmark = pytest.mark.usefixtures("no_bars")
CHAT = [{"role": "user", "content": "the fox?"}, {"role": "assistant", "content": "jumps"}]
TEXTS = ['a, "b"', "two\nlines", "été"]


def rows_of(source, **options) -> list:
    return [row for batch in open_data(str(source), **options).batches() for row in batch.rows]


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "x.csv", "x.txt", "folder"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    rows = [{"text": text} for text in TEXTS]
    dataset = Dataset.from_list(rows)
    writers = {
        "x.jsonl": lambda: path.write_text("\n".join(json.dumps(row) for row in rows)),
        "x.parquet": lambda: dataset.to_parquet(str(path)),
        "x.csv": lambda: dataset.to_csv(str(path)),
        "x.txt": lambda: path.write_text("\n\n".join(TEXTS)),
        "folder": lambda: dataset.save_to_disk(str(path)),
    }
    writers[name]()
    assert rows_of(path) == rows
    assert open_data(path).count_rows() == 3
    assert list(open_data(path).features()) == ["text"]


AWKWARD = {
    "blank.txt": b"\xef\xbb\xbfone\r\n\r\n\r\n \t\r\ntwo\r\nmore\r\n\r\n",
    "a/b.txt": b"one\nline\n\ntwo",
    "types.csv": b'text,n\n"NA",1\n2020-01-01,02\n"a, ""b""\nc",\n',
    "types.jsonl": b'{"text": "2020-01-01"}\n\n{"text": "1", "n": 2}\n',
    "array.json": b'[{"text": "one"}, {"text": "two"}]',
}


@pytest.mark.parametrize(
    ("source", "num"),
    [
        ("blank.txt", 2), ("blank.txt:train[1:]", 1), ("*.txt", 2), ("a", 2), ("types.csv", 3),
        ("types.csv:train[:67%]", 2), ("types.jsonl", 2), ("types.jsonl:train[:1]", 1),
        ("array.json", 2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streaming", [True, False])
def test_recipes_and_commands_read_the_same_rows(tmp_path, source, num, streaming):
    if source.startswith("types.jsonl") and Version(datasets.__version__) < Version("4.8"):
        pytest.skip("datasets before 4.8 refuses a .jsonl with an empty line")
    (tmp_path / "a").mkdir()
    for name, content in AWKWARD.items():
        (tmp_path / name).write_bytes(content)
    name, config, split = parse_source(str(tmp_path / source))
    ours = [
        {name: value for name, value in row.items() if value is not None}
        for row in rows_of(tmp_path / source)
    ]
    theirs = load_rows(name, config, split, streaming=streaming and split == "train")
    assert ours == [{n: v for n, v in row.items() if v is not None} for row in theirs]
    assert len(ours) == num
    assert all(isinstance(row["text"], str) for row in ours)


def test_a_file_that_was_changed_is_read_again(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("one")
    assert load_rows(str(path))["text"][:] == ["one"]
    path.write_text("another")
    assert load_rows(str(path))["text"][:] == ["another"]


def test_the_dataset_that_is_made_on_the_spot():
    data = open_data("toedit-demo:chat:test")
    first = next(data.batches()).rows[0]
    assert format_of(first) == ("prompt", "completion")


def test_a_stream_is_read_as_it_comes():
    stream = IterableDataset.from_generator(lambda: ({"text": str(n)} for n in range(130)))
    data = SavedRows("org/name", stream)
    assert data.count_rows() is None
    assert [len(batch.rows) for batch in data.batches()] == [64, 64, 2]
    assert next(data.batches()).names[1] == "row 1 (from 0)"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": "a"}\n\xff\n', r"line 2 can't be read .*must be UTF-8"),
        ("x.jsonl", b'{"text": "a"}\n[1]\n', r"line 2 is a list; write one JSON object a line"),
        ("x.jsonl", b"[" * 100_000, r"line 1 is not JSON"),
        ("x.csv", b'text,n\n"a",1\nb\n', r"line 3 has 1 fields, and the first line names 2"),
        ("x.csv", b'text\n"a" b\n', r"line 2 is not CSV .*write a quote in it twice"),
        ("x.csv", b"a,a\n1,2\n", r"first line must name the columns, each once, got"),
        ("x.csv", b"", r"first line must name the columns, each once, got None"),
        ("x.parquet", b"PAR1", r"not a parquet file"),
        ("x.doc", b"a", r"a name that ends in '\.doc'; give \.jsonl, \.parquet, \.csv, \.txt"),
    ],
)
def test_what_can_not_be_read_is_named_with_its_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnusableError, match=rf"^--data {re.escape(str(path))}: .*{message}"):
        rows_of(path)


def test_a_long_field_of_csv(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(f"text\n{'a' * 200_000}\n")
    assert len(rows_of(path)[0]["text"]) == 200_000


@pytest.mark.parametrize("source", ["none.jsonl", "./none", "none", "no one/none"])
def test_what_is_not_there(source):
    with pytest.raises(UnusableError, match=rf"^--data {source}: there is no such file or folder"):
        open_data(source)


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(UnusableError, match="neither a file nor a folder; name a regular file"):
        open_data(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("row", "assistant_only"),
    [
        ({"messages": CHAT}, False),
        ({"messages": CHAT}, True),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, False),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, True),
        ({"prompt": "the fox", "completion": " jumps"}, False),
        ({"prompt": "the fox", "completion": " jumps<|eos|>"}, False),
        ({"prompt": "the fox ", "completion": "jumps<|eos|>"}, False),
        ({"text": "the fox jumps"}, False),
        ({"text": "the fox jumps<|eos|>"}, False),
        ({"messages": CHAT, "tools": "[]"}, False),
        ({"prompt": CHAT[:1], "completion": CHAT[1:], "messages": CHAT}, False),
    ],
)
def test_ids_and_labels_are_those_of_trl(tmp_path, row, assistant_only):
    tokenizer = make_tokenizer()
    args = SFTConfig(
        str(tmp_path), assistant_only_loss=assistant_only, report_to="none", use_cpu=True,
        bf16=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        make_llama(), args, train_dataset=Dataset.from_list([row]), processing_class=tokenizer
    )
    theirs = trainer.train_dataset[0]
    ours = ids_and_labels(Data("x"), row, "row 0", tokenizer, assistant_only=assistant_only)
    assert ours == (theirs["input_ids"], theirs["labels"])


LONG = "the fox " * 20
LONG_CHAT = [{"role": "user", "content": LONG}, {"role": "assistant", "content": LONG}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": LONG_CHAT},
        {"prompt": LONG_CHAT[:1], "completion": LONG_CHAT[1:]},
        {"prompt": LONG, "completion": LONG},
        {"text": LONG},
    ],
)
def test_nothing_is_said_of_documents_longer_than_the_model_takes(monkeypatch, row):
    said = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", lambda *a, **_: said.append(a))
    for is_ours in (True, False):
        tokenizer = make_tokenizer()
        tokenizer.model_max_length = 16
        if is_ours:
            ids, _ = ids_and_labels(Data("x"), row, "row 0", tokenizer)
            assert len(ids) > 16
        else:
            tokenizer(LONG)
        assert bool(said) is not is_ours


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    max_length=st.integers(1, 12),
)
def test_windows_cover_each_document_once(tmp_path_factory, lengths, max_length):
    """Packed rows give their documents; none of the windows reaches over a border."""
    path = tmp_path_factory.mktemp("x") / "x.jsonl"
    row = {"input_ids": list(range(sum(lengths))), "seq_lengths": lengths}
    path.write_text(json.dumps(row))
    found = list(examples(open_data(path), None, max_length=max_length))
    assert [i for one in found for i in one.ids] == row["input_ids"]
    assert [one.labels for one in found] == [one.ids for one in found]
    expected = [
        (start, min(max_length, length - start))
        for length in lengths
        for start in range(0, length, max_length)
    ]
    assert [(one.start, len(one.ids)) for one in found] == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            '{"text": "half \\ud800 of it"}',
            r"text of line 2 has half of a surrogate pair, '\\ud800'",
        ),
        ('{"prompt": "a", "completion": "\\udc00"}', r"completion of line 2 has half of a surrog"),
        ('{"text": null}', r"line 2 has null in text, and nothing else to read; remove the row"),
        ('{"text": 5}', r"text of line 2 is neither text nor a list .* content: 5; see TRL"),
        ('{"text": ["a"]}', r"text of line 2 is neither text nor .*: \['a'\]; see TRL"),
    ],
)
def test_rows_that_are_no_text_are_named(tmp_path, row, message):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "the fox \\ud83d\\ude00"}\n' + row + "\n")
    with pytest.raises(UnusableError, match=message):
        list(examples(open_data(path), make_tokenizer()))
