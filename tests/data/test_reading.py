"""What users name as data: every ending, encoding and path, read alike by commands and recipes."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re

import pyarrow
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from toedit_collate.data import Data, format_of, load_rows, open_data, parse_source, parsing
from toedit_collate.data.reading import infer_features, is_local
from toedit_collate.data.tokens import check_first
from toedit_collate.errors import UnusableError

pytestmark = pytest.mark.usefixtures("no_bars")
TEXTS = ['a, "b"', "two\nlines", "été \u2028 𝄞", "2024-03-01", "NA", "1", "null", ""]
ROWS = [{"text": text} for text in TEXTS]
PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: pyarrow.compress(raw, codec="zstd", asbytes=True),
}


def rows_of(source, **options) -> list:
    return [row for batch in open_data(source, **options).batches() for row in batch.rows]


def trained_on(source, streaming=False) -> list:
    """What recipes and `toedit sft` train on."""
    name, config, split = parse_source(str(source))
    return list(load_rows(name, config, split, streaming=streaming))


def json_lines(rows=ROWS) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def values_of(delimiter, rows=ROWS) -> bytes:
    quoted = ('"{}"'.format(row["text"].replace('"', '""')) for row in rows)
    return "\n".join(f"{value}{delimiter}x" for value in ("text", *quoted)).encode()


RAW = {
    ".jsonl": json_lines(),
    ".ndjson": json_lines(),
    ".json": json.dumps(ROWS, indent=1).encode(),
    ".csv": values_of(","),
    ".tsv": values_of("\t"),
    ".txt": "\n\n".join(filter(None, TEXTS)).encode(),
}


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("packed", ["", *PACK])
@pytest.mark.parametrize("ending", RAW)
def test_every_ending_is_read_by_commands_and_recipes(tmp_path, ending, packed, upper):
    path = tmp_path / f"a b{(ending + packed).upper() if upper else ending + packed}"
    path.write_bytes(PACK.get(packed, bytes)(RAW[ending]))
    expected = [text for text in TEXTS if text or ending != ".txt"]
    for found in (rows_of(path), trained_on(path), trained_on(path, streaming=True)):
        assert [row["text"] for row in found] == expected
    assert open_data(path).count_rows() == len(expected)
    assert trained_on(f"{path}:train[1:3]") == rows_of(f"{path}:train[1:3]")
    assert [row["text"] for row in rows_of(f"{path}:train[1:3]")] == expected[1:3]


@pytest.mark.parametrize("ending", [".parquet", ".PARQUET", ".arrow", ".disk"])
def test_tables_are_read_by_commands_and_recipes(tmp_path, ending):
    path, dataset = tmp_path / f"x{ending}", Dataset.from_list(ROWS)
    if ending == ".disk":
        dataset.save_to_disk(str(path))
    elif ending == ".arrow":
        with pyarrow.ipc.new_stream(str(path), dataset.data.schema) as writer:
            writer.write_table(dataset.data.table)
    else:
        dataset.to_parquet(str(path))
    assert rows_of(path) == trained_on(path) == trained_on(path, streaming=True) == ROWS
    assert rows_of(f"{path}:train[1:3]") == ROWS[1:3]
    assert open_data(path).count_rows() in (len(ROWS), None)
    assert list(open_data(path).features()) == ["text"]


CUT = gzip.compress(json_lines(), mtime=0)[:-9]
TYPES = ("NA", "2020-01-01", 'a, "b"\nc')
AWKWARD = {
    "bom.jsonl": (b"\xef\xbb\xbf" + json_lines(), TEXTS),
    "crlf.jsonl": (json_lines().replace(b"\n", b"\r\n") + b"\r\n\r\n", TEXTS),
    "nul.jsonl": (b'{"text": "a\\u0000b"}\n', ["a\0b"]),
    "separator.jsonl": ('{"text": "a\u2028b\x85c"}\n'.encode(), ["a\u2028b\x85c"]),
    "line ends.jsonl": (b'{"text": "a\\r\\nb"}\n', ["a\r\nb"]),
    "line ends.csv": (b'text\r\n"a\r\nb"\r\n', ["a\r\nb"]),
    "line ends.tsv": (b'text\r\n"a\r\nb"\r\n', ["a\r\nb"]),
    "line ends.txt": (b"\xef\xbb\xbfa\r\nb\r\n\r\n\r\n \t\r\nc\r\n\r\n", ["a\r\nb", "c"]),
    "empty.csv": (b'text,n\n"",1\n,2\n', ["", ""]),
    "object.json": (b'{\n "text": "a"\n}\n', ["a"]),
    "lines.json": (b'{"text": "a"}\n{"text": "b"}', ["a", "b"]),
    "types.csv": (
        b'text,n\n"NA",1\n2020-01-01,02\n"a, ""b""\nc",\n',
        ["NA", "2020-01-01", 'a, "b"\nc'],
    ),
    "pair.jsonl": (b'{"text": "\\ud83d\\ude00 \\\\ud800"}', ["😀 \\ud800"]),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_no_text_is_changed(tmp_path, name):
    content, expected = AWKWARD[name]
    path = tmp_path / name
    path.write_bytes(content)
    for found in (rows_of(path), trained_on(path), trained_on(path, streaming=True)):
        assert [row["text"] for row in found] == expected


def test_long_fields_and_lines(tmp_path):
    (tmp_path / "x.csv").write_text(f"text\n{'a' * 200_000}\n")
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "a" * 200_000}))
    assert len(rows_of(tmp_path / "x.csv")[0]["text"]) == 200_000
    assert len(rows_of(tmp_path / "x.jsonl")[0]["text"]) == 200_000


CHATS = [
    {"messages": [{"role": "user", "content": "2024-03-01"}], "edit": False},
    {"messages": [{"role": "tool", "content": "x", "name": "n"}], "tools": [{"a": {"b": 1}}]},
    {"messages": [{"content": [{"type": "text"}], "role": "user"}], "tools": [{"a": {"c": "1"}}]},
    {"n": 1, "x": [], "chat_template_kwargs": {}, "many": [[1], [2.5]]},
    {"n": 2.5, "x": ["a"], "chat_template_kwargs": {"a": None}, "edit": True},
]


def test_an_array_is_searched_once_not_for_each_item(tmp_path, monkeypatch):
    """Twice the items take twice the time."""
    seen, search = [], parsing._may_have_halves
    monkeypatch.setattr(parsing, "_may_have_halves", lambda t: seen.append(t) or search(t))
    (tmp_path / "x.json").write_text(json.dumps([{"text": "a"}] * 50))
    assert len(rows_of(tmp_path / "x.json")) == 50
    assert len(seen) == 1


def test_dicts_keep_their_keys_and_their_order(tmp_path):
    """A template may ask whether a message has a key: nulls that are filled in would change it."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(json_lines(CHATS))
    found = trained_on(path)
    given = [{name: value for name, value in row.items() if value is not None} for row in found]
    assert given == CHATS == rows_of(path)
    assert trained_on(path, streaming=True) == found
    assert [list(row["messages"][0]) for row in given[:3]] == [
        ["role", "content"], ["role", "content", "name"], ["content", "role"]
    ]  # fmt: skip
    assert set(found[0]) == {name for row in CHATS for name in row}


def test_numbers_keep_their_digits(tmp_path):
    row = {"hash": 2**64 - 1, "meta": {"score": 0.1234567890123, "none": None}, "x": 1e-9}
    path = tmp_path / "x.jsonl"
    path.write_bytes(json_lines([row, {**row, "hash": 1}]))
    assert trained_on(path)[0] == row == rows_of(path)[0]


def test_two_csv_files_may_be_read_at_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"text\nx\n{name * 200_000}\n")
    first, second = (iter(open_data(tmp_path / f"{n}.csv").read()) for n in "ab")
    next(second)
    assert len(list(first)) == 2
    assert len(list(second)) == 1


def test_types_of_columns():
    rows = [{"a": 1, "b": [{"c": "x"}], "d": None}, {"a": 2.0, "b": [], "d": [1]}]
    types = {name: type(one).__name__ for name, one in infer_features(rows).items()}
    assert types == {"a": "Value", "b": "Json", "d": "List"}
    assert infer_features(rows)["a"].dtype == "float64"
    assert not infer_features([])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", r"it holds no rows; check the path"),
        ("x.jsonl", b"\n \n", r"it holds no rows; check the path"),
        ("x.csv", b"", r"it holds no rows; check the path"),
        ("x.csv", b"text\n", r"it holds no rows; check the path"),
        ("x.txt", b"\n\n", r"it holds no rows; check the path"),
        ("x.json", b"[]", r"it holds no rows; check the path"),
        ("x.jsonl.gz", gzip.compress(b"", mtime=0), r"it holds no rows; check the path"),
        ("x.jsonl", b'{"text": "a"}\n\xff\n', r"line 2 can't be read .*must be UTF-8"),
        ("x.jsonl", '{"text": "a"}'.encode("utf-16"), r"line 1 can't be read .*must be UTF-8"),
        ("x.txt", "a b\n".encode("utf-16-le"), r"line 1 seems to be UTF-16.*must be UTF-8"),
        ("x.csv", "text\na\n".encode("utf-16-be"), r"line 1 seems to be UTF-16.*must be UTF-8"),
        ("x.txt", "é".encode("latin-1"), r"line 1 can't be read .*must be UTF-8"),
        ("x.csv", "text\né".encode("cp1252"), r"line 2 can't be read .*must be UTF-8"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "b', r"line 2 is not JSON \(Unterminated string"),
        ("x.json", b'[{"text": "a"}, {"te', r"line 1 is not JSON \(Unterminated string"),
        ("x.jsonl", b'{"text": "a"} {"text": "b"}', r"line 1 is not JSON \(Extra data"),
        ("x.jsonl", b'{"text": "a"}\n[1]\n', r"line 2 is a list; write one JSON object a line"),
        ("x.json", b'[{"text": "a"}, 5]', r"item 1 \(from 0\) is a int; write one JSON object"),
        ("x.jsonl", b'{"text": "a"}\n\n"b"\n', r"line 3 is a str; write one JSON object a line"),
        ("x.jsonl", b"[" * 100_000, r"line 1 is not JSON"),
        ("x.jsonl", b'{"text":"a","text":"b"}', r"line 1 has the key 'text' twice in one object"),
        ("x.jsonl", b'{"a":{"b":1,"b":2}}', r"line 1 has the key 'b' twice in one object"),
        ("x.jsonl", b'{"a": 1}\n{"text": "\\uD800"}', r"text of line 2 has half of a sur"),
        ("x.jsonl", b'{"a\\ud800": 1}', r"'a\\ud800' of line 1 has half of a surrogate pair"),
        ("x.jsonl", b'{"m": [{"c": "\\udc00"}]}', r"m of line 1 has half of a surrogate pair"),
        ("x.csv", b'text,n\n"a",1\nb\n', r"line 3 has 1 fields, and the first line names 2"),
        ("x.csv", b'text\n"a" b\n', r"line 2 is not CSV .*write a quote in it twice"),
        ("x.csv", b'text\n"a\nb', r"line 2 is not CSV \(unexpected end of data\)"),
        ("x.csv", b"a,a\n1,2\n", r"first line must name the columns, each once, got"),
        ("x.tsv", b"a\tb\n1\n", r"line 2 has 1 fields, and the first line names 2"),
        ("x.parquet", b"PAR1", r"can't be"),
        ("x.jsonl.gz", CUT, r"can't be read after row \d+ \("),
        ("x.jsonl.gz", json_lines(), r"can't be read after row 0 \(Not a gzipped file"),
        ("x.jsonl.xz", lzma.compress(json_lines())[:-9], r"can't be read after row \d+ \("),
        ("x.jsonl.bz2", bz2.compress(json_lines())[:-9], r"can't be read after row \d+ \("),
        ("x.jsonl.zst", b"none", r"can't be read after row 0 \(ZSTD"),
        ("x.doc", b"a", r"its name ends in '\.doc'; give files of one kind of \.jsonl"),
        ("x", b"a", r"its name ends in 'nothing'"),
        ("x.gz", b"a", r"its name ends in '\.gz'"),
        ("x.jsonl.zip", b"PK", r"its name ends in '\.zip'; give files of one kind of"),
        ("x.parquet.gz", b"a", r"its name ends in '\.gz'"),
    ],
)  # fmt: skip
def test_what_can_not_be_read_is_named_with_its_line(tmp_path, name, content, message):
    """One error, in commands and recipes alike: file, line, reason."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnusableError, match=rf"^--data {re.escape(str(path))}: .*{message}"):
        check_first(open_data(path)) if "no rows" in message else rows_of(path)
    for streaming in (False, True):
        if "no rows" not in message or not streaming:
            with pytest.raises(UnusableError, match=rf"^{re.escape(str(path))}: .*{message}"):
                trained_on(path, streaming)


PLACES = [
    "runs/10:30", "C:\\data", "a[1]", "é ü 数据", "with space", "x#y", "50%", "a*b", "~tilde",
    "-dash", "org", "a'b\"c", "name.parquet", "train", "+", "http:", "{a,b}",
]  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("place", PLACES)
def test_odd_paths_are_paths(tmp_path, monkeypatch, place, ending):
    """By name, with a split, as a folder, and by a pattern; never looked up on the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    os.makedirs(place)
    file = f"{place}/valid.{ending}"
    Dataset.from_list(ROWS).to_parquet(file) if ending == "parquet" else None
    if ending == "jsonl":
        (tmp_path / place / "valid.jsonl").write_bytes(json_lines())
    for source, split in ((file, "train"), (f"{file}:train[:50%]", "train[:50%]")):
        assert parse_source(source) == (file, None, split)
        assert is_local(source)
        assert rows_of(source) == trained_on(source) == ROWS[: 4 if ":50%" in split else None]
    os.rename(file, f"{place}/x.{ending}")  # "valid" would be the name of a split
    assert rows_of(place) == trained_on(place) == ROWS
    if "[" not in place:
        assert rows_of(f"{place}/*.{ending}") == ROWS
        assert rows_of(f"{place}/*.{ending}:train[1:2]") == ROWS[1:2]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("bio.jsonl:train[900:]", ("bio.jsonl", None, "train[900:]")),
        ("none/10:30/bio.jsonl", ("none/10:30/bio.jsonl", None, "train")),
        ("none/10:30/bio.jsonl:test", ("none/10:30/bio.jsonl", None, "test")),
        ("C:\\none\\bio.jsonl", ("C:\\none\\bio.jsonl", None, "train")),
        ("C:/none/bio.csv.gz:train[:5]", ("C:/none/bio.csv.gz", None, "train[:5]")),
        ("BIO.JSONL:train", ("BIO.JSONL", None, "train")),
        ("org/id", ("org/id", None, "train")),
        ("org/id:config", ("org/id", "config", "train")),
        ("org/id:config:test[:10%]", ("org/id", "config", "test[:10%]")),
        ("toedit-demo:chat:test", ("toedit-demo", "chat", "test")),
    ],
)
def test_what_does_not_exist_is_parsed_by_its_look(text, parsed):
    assert parse_source(text) == parsed
    assert is_local(text) is (not text.startswith("org"))


@pytest.mark.parametrize("text", ["a:b:c:d", "org/id:config:te st"])
def test_what_is_no_source_is_refused(text):
    with pytest.raises(UnusableError, match=r"held_out has .*; write file, file:split, hub_id"):
        parse_source(text)


@pytest.mark.parametrize(
    "source",
    ["none.jsonl", "none.JSONL.GZ", "./none", "/none/none", "none one", "no*.jsonl", "C:\\a.jsonl",
     "~/none.txt", "none.jsonl:train[:5]", "", ":x"],
)  # fmt: skip
def test_files_that_are_not_there(source, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asks the hub"))
    with pytest.raises(UnusableError, match=rf"^--data {re.escape(source)}: there is no such file"):
        open_data(source)
    with pytest.raises(UnusableError, match="there is no such file or folder; check the path"):
        load_rows(parse_source(source)[0])


@pytest.mark.parametrize(
    "source", ["s3://b/x.jsonl", "hf://datasets/a/b", "https://e.org/x.csv:train", "gs://b/x"]
)
def test_addresses_are_refused_by_name(source, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asks the hub"))
    with pytest.raises(UnusableError, match=r"addresses are not read; download the file"):
        open_data(source)


def test_what_is_neither_here_nor_on_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnusableError, match=r"^--data none: there is no such file .* from the hub"):
        open_data("none")


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(UnusableError, match="neither a file nor a folder; name a regular file"):
        open_data(tmp_path / "x.jsonl")


def test_folders(tmp_path):
    folder = tmp_path / "a folder"
    (folder / "deep").mkdir(parents=True)
    with pytest.raises(UnusableError, match="the folder holds no data files; check the path"):
        open_data(folder)
    (folder / "README.md").write_text("about")
    (folder / "1.jsonl").write_bytes(json_lines(ROWS[:3]))
    (folder / "deep" / "2.jsonl").write_bytes(json_lines(ROWS[3:]))
    assert rows_of(folder) == trained_on(folder) == ROWS
    names = [name for batch in open_data(folder).batches() for name in batch.names]
    assert names[0] == f"line 1 of {folder / '1.jsonl'}"
    (folder / "test.jsonl").write_bytes(json_lines(ROWS[:1]))
    assert rows_of(f"{folder}:test") == rows_of(folder, split="test") == ROWS[:1]
    (folder / "test.jsonl").write_bytes(b"{")
    with pytest.raises(UnusableError, match=rf"--data .*: {folder}/test.jsonl: line 1 is not JSON"):
        rows_of(folder, split="test")


def test_files_of_several_kinds(tmp_path):
    (tmp_path / "1.jsonl").write_bytes(json_lines())
    (tmp_path / "2.jsonl").write_bytes(json_lines())
    (tmp_path / "3.txt").write_text("a")
    for source in (tmp_path, tmp_path / "*"):
        with pytest.raises(
            UnusableError, match=r"ends in '\.jsonl' and '\.txt'; give files of one"
        ):
            open_data(source)
    assert rows_of(tmp_path / "*.jsonl") == ROWS * 2


def test_splits_of_saved_datasets(tmp_path):
    dataset = Dataset.from_list(ROWS)
    DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(str(tmp_path / "two"))
    DatasetDict(other=dataset.select([1])).save_to_disk(str(tmp_path / "one"))
    assert rows_of(tmp_path / "two") == ROWS
    assert rows_of(tmp_path / "two", split="test") == trained_on(f"{tmp_path}/two:test") == ROWS[:1]
    assert rows_of(tmp_path / "one") == ROWS[1:2]
    for source in ("two", "one"):
        with pytest.raises(UnusableError, match=r"no split 'none' .*with one of"):
            rows_of(tmp_path / source, split="none")


def test_a_file_has_no_splits(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(json_lines())
    with pytest.raises(UnusableError, match="--split test: a file has no splits"):
        open_data(tmp_path / "x.jsonl", split="test")
    with pytest.raises(UnusableError, match=r"no split 'test' .* with one of train"):
        open_data(f"{tmp_path}/x.jsonl:test")


@pytest.mark.parametrize("ending", ["jsonl", "txt", "parquet"])
def test_a_file_that_was_changed_is_read_again(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    for text in ("one", "another"):
        if ending == "parquet":
            Dataset.from_list([{"text": text}]).to_parquet(str(path))
        else:
            path.write_text(json.dumps({"text": text}) if ending == "jsonl" else text)
        assert trained_on(path) == [{"text": text}]


def test_the_dataset_that_is_made_on_the_spot():
    first = next(open_data("toedit-demo:chat:test").batches()).rows[0]
    assert format_of(first) == ("prompt", "completion")
    assert is_local("toedit-demo")


def test_a_stream_is_read_as_it_comes(monkeypatch):
    stream = IterableDataset.from_generator(lambda: ({"text": str(n)} for n in range(130)))
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: stream)
    data = open_data("org/name")
    assert data.count_rows() is None
    assert [len(batch.rows) for batch in data.batches()] == [64, 64, 2]
    assert next(data.batches()).names[1] == "row 1 (from 0)"


def test_json_of_a_saved_dataset_is_read_as_it_was(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(json_lines(CHATS))
    load_rows(str(tmp_path / "x.jsonl")).save_to_disk(str(tmp_path / "saved"))
    found = rows_of(tmp_path / "saved")
    assert [{n: v for n, v in row.items() if v is not None} for row in found] == CHATS


def test_rows_in_memory():
    data = Data("rows", "", lambda: [("row 0", {"text": "a"})])
    assert data.count_rows() == 1
    assert str(data.error("is wrong")) == "rows: is wrong"
