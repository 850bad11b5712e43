"""Tokens and labels of rows: those of a real SFTTrainer, for its options and many rows."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from conftest import make_llama, make_tokenizer
from transformers import TrainingArguments, tokenization_utils_base
from trl import SFTConfig, SFTTrainer

from toedit_collate import Prior
from toedit_collate.data import (
    Data,
    Documents,
    Preparation,
    encode,
    examples,
    format_of,
    load_rows,
    open_data,
)
from toedit_collate.errors import UnusableError
from toedit_collate.tokens.documents import find_documents
from toedit_collate.tokens.token_batch import TokenBatch

pytestmark = pytest.mark.usefixtures("no_bars")
USER = [{"role": "user", "content": "the fox?"}]
ANSWER = [{"role": "assistant", "content": "jumps over"}]
CHAT = [*USER, *ANSWER]
LONG = "the quick fox jumps over the dog. " * 3
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"a": 1, "b": [2.5]}}}]
ROWS = {
    "text": [{"text": "the fox jumps"}, {"text": "a dog<|eos|>"}, {"text": ""}, {"text": LONG}],
    "pair": [
        {"prompt": "the fox", "completion": " jumps"},
        {"prompt": "the fox ", "completion": "jumps<|eos|>"},  # merges at the border
        {"prompt": "", "completion": "jumps"},
        {"prompt": LONG, "completion": LONG},
    ],
    "pair and text": [
        {"text": "Q: 1+1? 2", "prompt": "Q: 1+1?", "completion": " 2"},
        {"text": "Q: 1+1? 2<|eos|>", "prompt": "Q: 1+1?", "completion": " 2"},
    ],
    "messages": [{"messages": CHAT}, {"messages": CHAT * 4}],
    "messages and text": [{"messages": CHAT, "text": "something else"}],
    "chat pair": [
        {"prompt": USER, "completion": ANSWER},
        {"prompt": USER * 3, "completion": ANSWER},
    ],
    "conversations": [
        {"conversations": [{"from": "user", "value": "the"}, {"from": "assistant", "value": "fox"}]}
    ],
    "tools": [
        {"messages": CHAT, "tools": json.dumps(TOOLS)},
        {"messages": CHAT, "tools": "[]"},
    ],
    "tools as lists": [
        {"messages": CHAT, "tools": TOOLS},
        {"messages": CHAT, "tools": []},
    ],
    "chat_template_kwargs": [
        {"messages": CHAT, "chat_template_kwargs": {"mark": "one"}},
        {"messages": CHAT, "chat_template_kwargs": {"mark": "two"}},
    ],
    "ids": [{"input_ids": [5, 6, 7]}, {"input_ids": list(range(5, 70))}],
    "ids and labels": [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}],
    "ids and masks": [
        {"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "assistant_masks": [1, 0, 1]}
    ],
}
TEMPLATE = (
    "{{ mark | default('') }}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer_with_tools():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def trained_on(folder, dataset, tokenizer, **options) -> list:
    """The documents that SFTTrainer trains on: ids and labels."""
    args = SFTConfig(
        str(folder), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        **{"max_length": None, **options},
    )  # fmt: skip
    trainer = SFTTrainer(make_llama(), args, train_dataset=dataset, processing_class=tokenizer)
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def prepared(path, tokenizer, **options) -> list:
    """Those that commands make of the same file."""
    prep = Preparation(**options)
    found = examples(open_data(path), prep.set_up(tokenizer), prep)
    return [(one.ids, one.labels) for one in found]


def has_label(document) -> bool:
    return any(label != -100 for label in document[1])  # SFTTrainer drops the others if it cuts


OPTIONS = {
    "defaults": {},
    "completion_only_loss": {"completion_only_loss": True},
    "no completion_only_loss": {"completion_only_loss": False},
    "eos_token": {"eos_token": "<|im_end|>"},
    "keep_start": {"max_length": 12, "truncation_mode": "keep_start"},
    "keep_end": {"max_length": 12, "truncation_mode": "keep_end"},
    "both": {"max_length": 5, "truncation_mode": "keep_end", "completion_only_loss": False},
}


# Fields of SFTConfig that change no document: of the model, the loss, the order or the padding.
# Packing puts documents together, or cuts them into the windows of `max_length`.
CHANGE_NOTHING = {
    "activation_offloading", "dataset_kwargs", "dataset_num_proc", "eval_packing", "loss_type",
    "model_init_kwargs", "packing", "packing_strategy", "pad_to_multiple_of", "pad_token",
    "padding_free", "router_aux_loss_coef", "shuffle_dataset", "trust_remote_code",
}  # fmt: skip


def test_every_field_of_sft_config_is_followed_or_changes_no_document():
    """If TRL adds a field, decide which it is: follow it, refuse it, or list it here."""
    fields, plain, followed = (
        {field.name for field in dataclasses.fields(kind)}
        for kind in (SFTConfig, TrainingArguments, Preparation)
    )
    assert not fields - plain - followed - CHANGE_NOTHING


@pytest.mark.parametrize(("rows", "options"), itertools.product(ROWS, OPTIONS))
def test_tokens_are_those_of_sft_trainer(tmp_path, rows, options):
    path, options = tmp_path / "a.jsonl", OPTIONS[options]
    path.write_text("\n".join(map(json.dumps, ROWS[rows])))
    theirs = trained_on(tmp_path, load_rows(str(path)), tokenizer_with_tools(), **options)
    ours = prepared(path, tokenizer_with_tools(), **options)
    if "max_length" in options:
        ours = list(filter(has_label, ours))
    assert ours == theirs
    assert ours or "max_length" in options


@pytest.mark.parametrize("rows", ["messages", "chat pair", "tools", "conversations"])
@pytest.mark.parametrize("options", ["defaults", "completion_only_loss", "keep_start"])
def test_labels_of_the_assistant_are_those_of_sft_trainer(tmp_path, rows, options):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS[rows])))
    options = {**OPTIONS[options], "assistant_only_loss": True}
    if "max_length" in options:
        options["max_length"] = 60
    if rows == "conversations":  # SFTTrainer asks for messages here
        with pytest.raises(ValueError, match="not conversational"):
            trained_on(tmp_path, load_rows(str(path)), tokenizer_with_tools(), **options)
    else:
        theirs = trained_on(tmp_path, load_rows(str(path)), tokenizer_with_tools(), **options)
        assert list(filter(has_label, prepared(path, tokenizer_with_tools(), **options))) == theirs
        assert {label == -100 for _, labels in theirs for label in labels} == {True, False}


def test_a_template_from_a_file_is_that_of_training(tmp_path):
    path, template = tmp_path / "a.jsonl", tmp_path / "of training.jinja"
    path.write_text(json.dumps({"messages": CHAT}))
    template.write_text(TEMPLATE.replace("m.content", "m.content | upper"))
    plain = prepared(path, make_tokenizer())
    options = {"chat_template_path": str(template)}
    found = prepared(path, make_tokenizer(), **options)
    assert found == trained_on(tmp_path, load_rows(str(path)), make_tokenizer(), **options) != plain


def test_a_prompt_that_is_no_prefix_of_the_conversation(tmp_path):
    """A template of a reasoning model: the prompt ends in <think>, which the answer lacks."""
    path, template = tmp_path / "a.jsonl", tmp_path / "thinks.jinja"
    path.write_text(json.dumps({"prompt": USER, "completion": ANSWER}))
    template.write_text(
        TEMPLATE.replace("assistant\n' }}{% endif", "assistant\n<think>' }}{% endif")
    )
    options = {"chat_template_path": str(template)}
    assert "<think>" in template.read_text()
    found = prepared(path, make_tokenizer(), **options)
    assert found == trained_on(tmp_path, load_rows(str(path)), make_tokenizer(), **options)


def test_a_text_column_of_another_name(tmp_path):
    path, options = tmp_path / "a.jsonl", {"dataset_text_field": "body"}
    path.write_text(json.dumps({"body": "the fox", "text": "another"}))
    found = prepared(path, make_tokenizer(), **options)
    assert found == trained_on(tmp_path, load_rows(str(path)), make_tokenizer(), **options)


def test_a_known_template_without_marks_is_patched_as_in_training(tmp_path):
    """SFTTrainer puts marks into the templates of well-known models."""
    from trl.chat_template_utils import qwen3_chat_template

    def tokenizer():
        made = make_tokenizer()
        made.chat_template = qwen3_chat_template
        return made

    path, options = tmp_path / "a.jsonl", {"assistant_only_loss": True}
    path.write_text(json.dumps({"messages": CHAT}))
    found = prepared(path, tokenizer(), **options)
    assert found == trained_on(tmp_path, load_rows(str(path)), tokenizer(), **options)
    assert has_label(found[0])


def test_no_process_waits_for_others(monkeypatch, tmp_path):
    """A command's part of the data is its own: SFTTrainer's preparation lets rank 0 go first."""
    from accelerate import PartialState

    monkeypatch.setattr(PartialState, "main_process_first", lambda self: pytest.fail("waits"))
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": CHAT}))
    assert prepared(path, make_tokenizer())


def test_windows_begin_with_what_truncation_leaves(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS["text"])))
    theirs = trained_on(tmp_path, load_rows(str(path)), make_tokenizer(), max_length=8)
    packed = trained_on(
        tmp_path, load_rows(str(path)), make_tokenizer(), max_length=8, packing=True,
        packing_strategy="wrapped",
    )  # fmt: skip
    ours = prepared(path, make_tokenizer(), max_length=8)
    assert all(one in ours for one in theirs)
    assert not all(one in ours for one in packed)  # docs/limits.md: save the dataset


def test_the_end_token(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"prompt": "a", "completion": "b"}')
    with_end, without = (prepared(path, make_tokenizer(), add_eos=eos) for eos in (True, False))
    assert [ids for ids, _ in with_end] == [[*ids, 1] for ids, _ in without]
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    assert prepared(path, tokenizer) == without


def test_added_tokens_of_a_text_are_marked():
    ids, added = encode(make_tokenizer(), ["the fox", "the fox<|eos|>", ""])
    assert [mask[-1] for mask in added] == [True, False, True]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"prompt": "a"}, {}, r"completion of line 2 is missing; .* rename the column prompt"),
        ({"prompt": "a", "completion": None}, {}, r"completion of line 2 is missing"),
        ({"prompt": "a", "text": "b"}, {}, r"completion of line 2 is missing"),
        ({"completion": "a"}, {}, r"line 2 has the columns .*, none of input_ids, .* prompt and"),
        ({"text": None}, {}, r"line 2 has the columns \['text'\], none of .* with a value"),
        ({"text": 5}, {}, r"text of line 2 is neither text nor a list .* content: 5; see TRL"),
        ({"text": 2.5}, {}, r"text of line 2 is neither text"),
        ({"text": True}, {}, r"text of line 2 is neither text"),
        ({"text": ["a"]}, {}, r"text of line 2 is neither text nor .*: \['a'\]; see TRL"),
        ({"messages": "a"}, {}, r"messages of line 2 is neither text nor a list of messages"),
        ({"messages": []}, {}, r"messages of line 2 is neither text nor a list of messages"),
        ({"messages": [{"role": "user", "content": 5}]}, {}, r"messages of line 2 has the con"),
        ({"prompt": "a", "completion": ANSWER}, {}, r"prompt and completion of line 2 is neither"),
        ({"body": "a"}, {}, r"line 2 has the columns \['body'\], none of input_ids, text, "),
        ({"text": "a"}, {"assistant_only_loss": True}, r"assistant_only_loss is for conversations"),
        ({"text": "a"}, {"dataset_text_field": "body"}, r"line 2 has .* none of input_ids, body,"),
        (
            {"messages": CHAT, "chat_template_kwargs": {"messages": 1}}, {},
            r"line 2: .* can't be tokenized as SFTTrainer does it",
        ),
    ],
)  # fmt: skip
def test_rows_that_can_not_be_tokenized_are_named(tmp_path, row, options, message):
    path = tmp_path / "x.jsonl"
    fine = {"input_ids": [5]}
    path.write_text(f"{json.dumps(fine)}\n{json.dumps(row)}\n")
    with pytest.raises(UnusableError, match=rf"^--data {path}: {message}"):
        prepared(path, make_tokenizer(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation_mode": "keep_middle"}, "must be keep_start or keep_end, got 'keep_middle'"),
        ({"truncation_mode": "keep_end"}, "truncation_mode 'keep_end' needs max_length"),
        ({"eos_token": "<none>"}, "eos_token '<none>' is not in the vocabulary"),
        (
            {"chat_template_path": "Qwen/Qwen3-0.6B"},
            "'Qwen/Qwen3-0.6B' is not a .jinja file",
        ),
    ],
)
def test_options_that_can_not_be_followed_are_refused_by_name(options, message):
    with pytest.raises(UnusableError, match=message):
        Preparation(**options).set_up(make_tokenizer())


def test_a_prior_protects_what_is_set_up():
    """As training does: the tokens of a template that it was not loaded with, too."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    prior = Prior(make_llama(), tokenizer)
    ids = tokenizer.apply_chat_template(CHAT, chat_template=TEMPLATE, return_dict=True)["input_ids"]

    def protected() -> int:
        mask = prior.protection.mask(
            torch.tensor(ids), find_documents(torch.tensor([ids]), None, None)
        )
        return int(mask.sum())

    before = protected()
    tokenizer.chat_template = TEMPLATE
    Preparation(eos_token="<|im_end|>").set_up_prior(prior)
    assert protected() > before + 4


def test_a_tokenizer_without_template(tmp_path):
    path, tokenizer = tmp_path / "x.jsonl", make_tokenizer()
    tokenizer.chat_template = None
    path.write_text(json.dumps({"messages": CHAT}))
    with pytest.raises(UnusableError, match=r"line 1: .*chat_template is not set"):
        prepared(path, tokenizer)


@pytest.mark.parametrize(
    ("columns", "documents"),
    [
        ({"attention_mask": [0, 1, 1, 1, 0]}, [[6, 7, 8]]),
        ({"attention_mask": [1, 1, 2, 2, 0]}, [[5, 6], [7, 8]]),
        ({"attention_mask": [1, 1, 0, 1, 1], "position_ids": [0, 1, 0, 0, 1]}, [[5, 6], [8, 9]]),
        ({"position_ids": [0, 1, 2, 0, 1]}, [[5, 6, 7], [8, 9]]),
        ({"attention_mask": [True, True, False, False, False]}, [[5, 6]]),
    ],
)
def test_masks_and_positions_mark_documents_as_in_training(tmp_path, columns, documents):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"input_ids": [5, 6, 7, 8, 9], **columns}))
    assert [ids for ids, _ in prepared(path, None)] == documents
    batch = {name: torch.tensor([value]) for name, value in columns.items()}
    trained = TokenBatch.collated({"input_ids": torch.tensor([[5, 6, 7, 8, 9]]), **batch})
    assert trained.documents.lengths == list(map(len, documents))


def test_a_packed_row_is_split_once_not_for_each_of_its_documents(tmp_path, monkeypatch):
    """Twice the documents take twice the time."""
    seen, start = [], Documents.start.fget
    monkeypatch.setattr(Documents, "start", property(lambda self: seen.append(1) or start(self)))
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"input_ids": [5, 6] * 50, "seq_lengths": [2] * 50}))
    assert prepared(path, None) == [([5, 6], [5, 6])] * 50
    assert len(seen) < 10


@pytest.mark.parametrize("column", ["input_ids", "labels"])
def test_true_is_no_token(tmp_path, column):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"input_ids": [1, 1], column: [True, True]}))
    with pytest.raises(UnusableError, match=rf"{column} of line 1 must be a list of whole numbers"):
        prepared(path, None)


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"text": "a", "prompt": None, "completion": None}, ("text",)),
        ({"text": "a", "completion": "b"}, ("text",)),
        ({"prompt": "a", "completion": "b", "messages": CHAT}, ("prompt", "completion")),
        ({"input_ids": [1], "text": "a"}, ("input_ids",)),
        ({"messages": CHAT, "text": "a"}, ("messages",)),
        ({"body": "a"}, None),
    ],
)
def test_which_columns_decide(row, form):
    assert format_of(row) == form


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": LONG * 9}, *ANSWER]},
        {"prompt": LONG * 9, "completion": LONG},
        {"text": LONG * 9},
    ],
)
def test_nothing_is_said_of_documents_longer_than_the_model_takes(monkeypatch, row):
    logged = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", lambda *a, **_: logged.append(a))
    for is_ours in (True, False):
        tokenizer = make_tokenizer()
        tokenizer.model_max_length = 16
        if is_ours:
            data = Data("x", "", lambda: [("row 0", row)])
            assert len(next(examples(data, tokenizer)).ids) > 16
        else:
            tokenizer(LONG)
        assert bool(logged) is not is_ours
