"""The datasets of the paper, by hand-written rows with their own columns, as TRL's formats."""

import pytest
from common.formats import FORMATS, to_trl_format
from conftest import make_tokenizer
from datasets import Dataset, IterableDataset
from trainees import make_trainee, make_trainer

# Conversations of princeton-nlp/less_data: all its sets have these columns.
LESS = [
    {
        "dataset": "set",
        "id": f"set_{number}",
        "messages": [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": f"answer {number}"},
        ],
    }
    for number in range(3)
]


def message(number, parent, text, rank=None, role=None, tree="a", **more):
    """A row of OpenAssistant/oasst1, with the columns that it has."""
    role = role or ("prompter" if parent is None else "assistant")
    return {
        "message_id": f"{tree}{number}",
        "parent_id": None if parent is None else f"{tree}{parent}",
        "user_id": "u",
        "created_date": "2023-02-05",
        "text": text,
        "role": role,
        "lang": "en",
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "synthetic": False,
        "model_name": None,
        "detoxify": {"toxicity": 0.1},
        "message_tree_id": f"{tree}0",
        "tree_state": "ready_for_export",
        "emojis": {"name": ["+1"], "count": [1]},
        "labels": {"name": ["spam"], "value": [0.0], "count": [3]},
        **more,
    }


TREES = [
    message(0, None, "hello"),
    message(1, 0, "worse", rank=1),
    message(2, 0, "better", rank=0),
    message(3, 2, "and then", role="prompter", rank=1),
    message(4, 2, "what then", role="prompter", rank=0),
    message(5, 4, "this then"),
    message(6, 5, "thanks", role="prompter"),
    # Of a tree in which nobody answered there is nothing to learn.
    message(0, None, "anybody", tree="b"),
    message(0, None, "ranks", tree="c"),
    message(1, 0, "deleted", rank=0, tree="c", deleted=True),
    message(2, 0, "unranked", tree="c"),
    message(3, 0, "ranked", rank=2, tree="c"),
]
ROWS = {
    "natural_instructions": [
        {
            "task_name": "task1356_xlsum_title_generation",
            "id": "task1356-1",
            "definition": "In this task, you make a title.",
            "inputs": "A text.",
            "targets": "A title",
        },
        {"task_name": "t", "id": "t-2", "definition": "Say no.", "inputs": "", "targets": "No"},
    ],
    "cot": LESS,
    "flan_v2": LESS,
    "oasst1": TREES,
    "oss_instruct": [
        {
            "lang": "python",
            "raw_index": 1,
            "index": 2,
            "seed": "x = 1",
            "openai_fingerprint": "fp",
            "problem": "Add two numbers.",
            "solution": "a + b",
        }
    ],
    "evol_instruct": [{"instruction": "Add two numbers.", "response": "a + b"}],
    "alpaca": [
        {"instruction": "Add.", "input": "1, 2", "output": "3", "text": "all of it"},
        {"instruction": "Sing.", "input": None, "output": "La", "text": "all of it"},
    ],
    "sharegpt": [
        {
            "id": "s",
            "conversations": [
                {"from": "system", "value": "Be kind."},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello"},
                {"from": "human", "value": "Bye"},
            ],
        },
        {"id": "t", "conversations": [{"from": "gpt", "value": "Did you ask?"}]},
    ],
}


def turns(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def pair(prompt, completion):
    return {"prompt": turns(prompt), "completion": turns(completion, first="assistant")}


ANSWERED = [pair(f"question {number}", f"answer {number}") for number in range(3)]
EXPECTED = {
    "natural_instructions": [
        pair("In this task, you make a title.\n\nA text.", "A title"),
        pair("Say no.", "No"),
    ],
    "cot": ANSWERED,
    "flan_v2": ANSWERED,
    "oasst1": [
        {"messages": turns("hello", "better", "what then", "this then")},
        {"messages": turns("ranks", "ranked")},
    ],
    "oss_instruct": [pair("Add two numbers.", "a + b")],
    "evol_instruct": [pair("Add two numbers.", "a + b")],
    "alpaca": [pair("Add.\n\n1, 2", "3"), pair("Sing.", "La")],
    "sharegpt": [
        {"messages": [{"role": "system", "content": "Be kind."}, *turns("Hi", "Hello")]},
    ],
}


def stream(rows):
    """An IterableDataset that, as many streams, does not know its columns before it is read."""
    found = IterableDataset.from_generator(lambda: iter(rows))
    assert found.column_names is None
    return found


@pytest.mark.parametrize("kind", [Dataset.from_list, stream], ids=["dataset", "stream"])
@pytest.mark.parametrize("name", FORMATS)
def test_rows_become_conversations(name, kind):
    converted = to_trl_format(kind(ROWS[name]), name)
    assert list(converted) == EXPECTED[name]
    assert set(converted.column_names) == set(EXPECTED[name][0])
    assert isinstance(converted, Dataset if kind is not stream else IterableDataset)


@pytest.mark.parametrize("name", ["cot", "flan_v2"])
def test_flan_may_have_inputs_and_targets(name):
    rows = [{"inputs": "Two and two?", "targets": "Four.", "task": "cot_gsm8k"}]
    assert list(to_trl_format(Dataset.from_list(rows), name)) == [pair("Two and two?", "Four.")]


def test_open_assistant_may_be_conversations():
    converted = to_trl_format(Dataset.from_list(LESS), "oasst1")
    assert list(converted) == [{"messages": row["messages"]} for row in LESS]


def test_alpaca_may_lack_the_input():
    rows = Dataset.from_list(ROWS["alpaca"]).remove_columns("input")
    assert next(iter(to_trl_format(rows, "alpaca"))) == pair("Add.", "3")


@pytest.mark.parametrize("kind", [Dataset.from_list, stream], ids=["dataset", "stream"])
def test_a_tree_is_whole_wherever_batches_end(kind):
    # More messages than a batch of map has; replies come long after what they reply to.
    trees = [f"{number}." for number in range(600)]
    rows = [message(0, None, f"ask {tree}", tree=tree) for tree in trees]
    rows += [message(1, 0, f"answer {tree}", tree=tree) for tree in trees]
    converted = list(to_trl_format(kind(rows), "oasst1"))
    assert converted == [{"messages": turns(f"ask {tree}", f"answer {tree}")} for tree in trees]


def test_a_batch_may_give_no_conversation_at_all():
    rows = [ROWS["sharegpt"][1]] * 1000 + [ROWS["sharegpt"][0]]
    assert list(to_trl_format(Dataset.from_list(rows), "sharegpt")) == EXPECTED["sharegpt"]


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("oss_instruct", [{"task": "a", "solution": "b"}],
         r"dataset_format 'oss_instruct' needs the column problem, and the dataset has solution, "
         r"task; say which is which by dataset_columns, as in \{problem: their_name\}, or name "
         r"another dataset_format"),
        ("flan_v2", [{"inputs": "a", "outputs": "b"}],
         r"'flan_v2' needs the column messages or the columns targets, .* has inputs, outputs;"),
        ("sharegpt", [{"messages": []}], r"'sharegpt' needs the column conversations, .* messages"),
        ("evol_instruct", [{"instruction": "a", "response": None}],
         r"a row has nothing in the column 'response', only in instruction; filter .*"
         r"dataset_columns, or another dataset_format"),
        ("sharegpt", [{"conversations": [{"from": "tool", "value": "a"}]}],
         r"a turn has from 'tool', which is none of system, user, .*; filter or rename"),
        ("alpaca", [{"instruction": "a", "output": 5}], r"output of a row is 5, which is not text"),
        ("alpaca", [{"instruction": "a", "output": b"x"}], r"output of a row is b'x', which is no"),
        ("cot", [{"messages": [{"role": "user", "content": None}]}],
         r"a row has nothing in the column 'content', only in role"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [Dataset.from_list, stream], ids=["dataset", "stream"])
def test_what_is_missing_is_named(name, rows, message, kind):
    with pytest.raises(ValueError, match=message):
        list(to_trl_format(kind(rows), name))


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match=r"one of natural_instructions, cot, .* got 'orca'"):
        to_trl_format(Dataset.from_list([{"text": "a"}]), "orca")


def test_a_format_says_what_it_takes():
    assert FORMATS["flan_v2"].fits(["targets", "inputs", "task"])
    assert FORMATS["flan_v2"].fits(["messages"])
    assert not FORMATS["flan_v2"].fits(["inputs", "text"])


@pytest.mark.parametrize("kind", [Dataset.from_list, stream], ids=["dataset", "stream"])
@pytest.mark.parametrize("name", FORMATS)
def test_sft_trainer_trains_on_the_answers_alone(tmp_path, name, kind):
    tokenizer = make_tokenizer()
    trainer, _ = make_trainer(
        tmp_path, tokenizer, kind="SFTTrainer", model=make_trainee(),
        train=to_trl_format(kind(ROWS[name]), name), max_steps=1,
        assistant_only_loss=not FORMATS[name].is_single_turn,
    )  # fmt: skip
    rows = list(trainer.train_dataset)
    assert len(rows) == len(EXPECTED[name])
    for row, expected in zip(rows, EXPECTED[name], strict=True):
        messages = expected.get("messages") or expected["prompt"] + expected["completion"]
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        trained = tokenizer.decode([token for token, label in pairs if label != -100])
        assert [part.strip() for part in trained.split("<|im_end|>")] == [*answers, ""]
