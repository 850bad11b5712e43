"""Texts in, edited texts out; test_engines.py has the engines around it."""

import contextlib
import sys

import numpy as np
import pytest
from conftest import TEXT, make_llama, make_tokenizer

from toedit_collate import DecisionCache, EditPolicy, edit_tokens
from toedit_collate.data import encode
from toedit_collate.integrations import texts as texts_module
from toedit_collate.integrations.datatrove import ToEdit
from toedit_collate.integrations.ray import ToEditBatches
from toedit_collate.integrations.texts import TextEditor

WORDS = TEXT.split()
TEXTS = [" ".join(WORDS[n : n + 4 + n % 7]) for n in range(20)]
# The model is random: to it, all of the text is unlikely.
STRONG = EditPolicy(region="below", threshold=0.5, exclude_original=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    make_llama(sharpness=6.0).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def test_texts_are_edited_as_their_tokens_are(folder):
    editor = TextEditor(folder, STRONG, batch_tokens=64)
    for text, one in zip(TEXTS, editor.edit(TEXTS), strict=True):
        ids = editor.prior.tokenizer(text + "<|eos|>", return_tensors="pt")["input_ids"]
        result = edit_tokens(editor.prior, ids, policy=STRONG)
        assert one.input_ids == result.input_ids[0].tolist()
        assert (one.counts["scored"], one.counts["changed"]) == (
            result.scored.sum(),
            result.changed.sum(),
        )
        assert one.counts["changed"] > 0
        assert one.text == editor.prior.tokenizer.decode(one.input_ids[:-1])


def test_a_text_that_is_not_changed_is_exactly_as_it_was(folder):
    (one,) = TextEditor(folder, "paper").edit(["  two  spaces , and a tab\t."])
    assert (one.text, one.counts["changed"]) == ("  two  spaces , and a tab\t.", 0)


def test_a_long_text_goes_window_by_window(folder):
    editor = TextEditor(folder, STRONG, max_length=8)
    (one,) = editor.edit([TEXT])
    ids = editor.prior.tokenizer(TEXT + "<|eos|>")["input_ids"]
    windows = [ids[n : n + 8] for n in range(0, len(ids), 8)]
    # All but each window's first token, and the end token.
    assert one.counts["scored"] == sum(len(window) - 1 for window in windows) - (
        len(windows[-1]) > 1
    )
    assert [one.input_ids[n] for n in range(0, len(ids), 8)] == [window[0] for window in windows]


def test_tokens_may_be_dropped(folder):
    editor = TextEditor(folder, EditPolicy(region="none", drop_below=0.01))
    (one,) = editor.edit([TEXT])
    assert one.counts["dropped"] > 0
    ids = editor.prior.tokenizer(TEXT + "<|eos|>")["input_ids"]
    assert len(one.input_ids) == len(ids) - one.counts["dropped"]


def test_a_cache_is_filled(folder, tmp_path):
    editor = TextEditor(folder, STRONG, cache=str(tmp_path / "cache"))
    first = editor.edit(TEXTS)
    editor.flush()
    assert editor.edit(TEXTS) == first
    assert list((tmp_path / "cache").rglob("*"))
    assert isinstance(editor._cache, DecisionCache)


@pytest.mark.parametrize(("name", "value"), [("max_length", 1), ("batch_tokens", 0)])
def test_numbers_that_are_too_small(folder, name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        TextEditor(folder, **{name: value})


@pytest.mark.parametrize("target", ["inputs", "labels"])
def test_a_text_has_no_inputs_and_labels_apart(target):
    with pytest.raises(ValueError, match=rf"target='{target}'.*use target='both' here.*cache"):
        TextEditor("no prior is loaded for this", f"region=all target={target}")


def test_rays_batches(folder):
    batch = {"text": TEXTS[:3], "id": [1, 2, 3]}
    edited = ToEditBatches(folder, STRONG)(batch)
    expected = TextEditor(folder, STRONG).edit(TEXTS[:3])
    assert list(edited["text"]) == [one.text for one in expected]
    assert list(edited["changed"]) == [one.counts["changed"] for one in expected]
    assert edited["id"] == [1, 2, 3]
    with pytest.raises(ValueError, match="pass column=NAME"):
        ToEditBatches(folder, STRONG, column="body")(batch)


def test_ray_fills_no_cache(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"does not tell an actor its last batch.*toedit apply --cache"
    ):
        ToEditBatches(folder, STRONG, cache=str(tmp_path))


def test_a_cache_is_filled_without_reading_what_others_wrote(folder, tmp_path):
    for _ in range(2):
        editor = TextEditor(folder, STRONG, cache=str(tmp_path))
        editor.edit(TEXTS)
        editor.flush()
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2
    assert editor._cache.num_documents == len(TEXTS)


class Document:
    def __init__(self, text):
        self.text, self.id, self.metadata = text, "shard/7", {}


class Step(ToEdit):
    """Without datatrove's own statistics."""

    def __init__(self, *args):
        with contextlib.suppress(TypeError):
            super().__init__(*args)

    def track_time(self, _):
        return contextlib.nullcontext()

    def stat_update(self, *_, **__): ...


NO_TEXTS = [None, b"one two", float("nan"), 7, True, ["a"], {"a": 1}, np.float64(1), "half \ud800"]


@pytest.mark.parametrize("value", NO_TEXTS, ids=repr)
@pytest.mark.parametrize("way", ["editor", "ray", "datatrove", "encode"])
def test_what_is_no_text_is_refused_by_row(folder, way, value):
    def run():
        if way == "editor":
            return TextEditor(folder, STRONG).edit(["fine", value])
        if way == "ray":
            column = np.empty(2, dtype=object)
            column[:] = ["fine", None]
            column[1] = value
            return ToEditBatches(folder, STRONG)({"text": column})
        if way == "datatrove":
            return list(Step(folder, STRONG).run([Document(value)]))
        return encode(make_tokenizer(), ["fine", value])

    of = {"ray": r"text of row 1 \(from 0\) of a batch", "datatrove": "text of document 'shard/7'"}
    name = of.get(way, r"text 1 \(from 0\)")
    with pytest.raises(ValueError, match=rf"^{name} (is .*not text|has half of a surrogate pair)"):
        run()


@pytest.mark.parametrize("text", ["the fox", b"the fox"])
def test_one_text_is_no_list_of_letters(folder, text):
    with pytest.raises(TypeError, match=r"list of texts, got one alone; write edit\(\[text\]\)"):
        TextEditor(folder, STRONG).edit(text)


def test_texts_of_numpy_are_texts(folder):
    batch = {"text": np.array(TEXTS[:3])}
    texts = list(ToEditBatches(folder, STRONG)(batch)["text"])
    assert texts == [one.text for one in TextEditor(folder, STRONG).edit(TEXTS[:3])]


def test_documents_of_datatrove_are_edited_in_their_order(folder):
    found = [one.text for one in Step(folder, STRONG).run(map(Document, TEXTS))]
    assert found == [one.text for one in TextEditor(folder, STRONG).edit(TEXTS)]


@pytest.mark.parametrize("texts", [[], [""], ["", "the fox", ""]])
def test_empty_texts(folder, texts):
    edited = TextEditor(folder, STRONG).edit(texts)
    assert [bool(one.text) for one in edited] == [bool(text) for text in texts]
    assert [one.input_ids for one in edited if not one.text] == [[1]] * texts.count("")


def test_twice_the_texts_are_twice_the_steps(folder, monkeypatch):
    """Counted in Python's own instructions, not in seconds."""
    editor = TextEditor(folder, STRONG)
    monkeypatch.setattr(
        texts_module,
        "edit_documents",
        lambda prior, policy, documents, *_, **__: (
            documents.texts(),
            np.zeros((len(documents.lengths), 4), int),
        ),
    )

    def steps(texts) -> int:
        count = 0

        def trace(frame, event, _):
            nonlocal count
            if not frame.f_code.co_filename.endswith("texts.py"):
                return None
            frame.f_trace_opcodes = True
            count += event == "opcode"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            editor.edit(texts)
        finally:
            sys.settrace(before)
        return count

    few, many = steps(TEXTS * 5), steps(TEXTS * 10)
    assert few > 1000
    assert many < 2.1 * few
