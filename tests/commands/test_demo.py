"""`toedit demo`: one real run with tiny settings, its parts, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import likely_ids, make_llama
from conftest import make_tokenizer as make_test_tokenizer

from toedit_collate import EditPolicy, Prior, edit_tokens
from toedit_collate.commands.demo.measure import edit_cost, survey
from toedit_collate.commands.demo.show import find_passage
from toedit_collate.commands.demo.tune import tune
from toedit_collate.commands.main import main
from toedit_collate.config.options import wants_color
from toedit_collate.data.demo_model import make_tokenizer, orthogonalize, read_corpus
from toedit_collate.data.demo_text import enough_examples, plain_text, python_topics
from toedit_collate.errors import UnusableError
from toedit_collate.inspection.marking import Passage, legend, mark_edits

ANIMALS = ["fox", "dog", "turtle", "ship", "river", "mill", "bridge", "wind"]
MARK = re.compile(r"\[(.+?) -> (.+?), P=(0\.99\d+|1\.0000)\]", re.DOTALL)


def easy_text() -> str:
    """Documents of fixed phrases with a few free words: easy to learn, not wholly certain."""
    rng = random.Random(0)
    return "\n\n".join(
        f"Report number {rng.randint(1, 99)} of the committee on navigation. " * 2
        + "".join(
            f"Yesterday the {rng.choice(ANIMALS)} went slowly past the {rng.choice(ANIMALS)} "
            "under the old stone, and nobody who was there said anything about it. "
            for _ in range(3)
        )
        for _ in range(120)
    )


def run(*argv: str) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = main(["demo", *argv])
    return status, printed.getvalue()


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> tuple[str, Path]:
    """The output of a small demo, and the folder with the prior that it made."""
    folder = tmp_path_factory.mktemp("demo")
    data = folder / "easy.txt"
    data.write_text(easy_text())
    with pytest.MonkeyPatch.context() as patch:
        for module in ("show", "measure"):  # on a busy machine, too, all is looked at
            patch.setattr(f"toedit_collate.commands.demo.{module}._SECONDS", math.inf)
        status, printed = run(
            "--data", str(data), "--prior-steps", "100", "--seconds", "100000", "--steps", "4",
            "--output", str(folder / "prior"),
        )  # fmt: skip
    assert status == 0
    return printed, folder


# --- the whole run ---


def test_the_sections_come_in_order(small_run):
    printed, _ = small_run
    places = [printed.index(f"\n{n}. ") for n in range(1, 6)]
    assert places == sorted(places)
    assert printed.index("\nNext\n----\n") > places[-1]
    assert "\33[" not in printed  # not a terminal
    assert "105 documents to train on, 15 held out" in printed


def test_the_passage_has_marked_edits(small_run):
    printed, _ = small_run
    passage = printed.split("\n2. ")[1].split("[old -> new")[0]
    marks = MARK.findall(passage)
    stated = re.search(r"(\d+) of these (\d+) tokens are selected, (\d+) changed", printed)
    selected, tokens, changed = map(int, stated.groups())
    assert 1 <= changed == len(marks)
    assert changed < selected < tokens
    assert all(old != new for old, new, _ in marks)
    assert re.search(r"\{[^}]+\}", passage)


def test_the_shares_tell_the_presets_apart(small_run):
    printed, _ = small_run
    paper, script = (_counts(printed, name) for name in ("paper", "reference_code"))
    assert paper[0] == script[0] > paper[1] == script[1] > 0  # the same tokens are selected
    assert script[2] > 3 * paper[2]


def _counts(printed: str, name: str) -> list[int]:
    """Tokens scored, selected and changed, as the table has them."""
    row = re.search(rf"^{name} {{2,}}(.+)$", printed, re.MULTILINE).group(1)
    return [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) ", row)]


def test_cost_and_perplexities_are_numbers(small_run):
    printed, _ = small_run
    ratio = float(re.search(r"takes ([\d.]+) times as long", printed).group(1))
    assert ratio > 0
    perplexities = {
        name: float(value)
        for name, value in re.findall(
            r"^  (before|after, \S+ \S+) +([\d.]+)$", printed, re.MULTILINE
        )
    }
    assert list(perplexities) == ["before", "after, without editing", "after, with reference_code"]
    assert all(value >= 1 for value in perplexities.values())
    assert re.search(r"Edited on the way: [\d,]+ tokens scored, [\d,]+ \(.+?\) selected", printed)


def test_the_saved_prior_can_be_used_again(small_run, capsys):
    _, folder = small_run
    data = folder / "chat.jsonl"
    messages = [{"role": "user", "content": "Who went?"}, {"role": "assistant", "content": "..."}]
    lines = [{"messages": [*messages, {"role": "user", "content": str(n)}]} for n in range(9)]
    data.write_text("\n".join(map(json.dumps, lines)))
    status, printed = run(
        "--prior", str(folder / "prior"), "--data", str(data), "--steps", "1",
        "--policy", "low_drop_up_revise threshold=0.5", "--color", "always",
    )  # fmt: skip
    assert status == 0
    assert "loaded" in printed
    assert "edited with the policy low_drop_up_revise threshold=0.5" in printed
    assert "after, with low_drop_up_revise threshold=0.5" in printed
    assert re.search(r"^paper .* 0 \(0\.0000%\)$", printed, re.MULTILINE)  # removed
    assert "\33[9;31mold\33[0m" in printed
    assert "warn" not in capsys.readouterr().err.lower()


@pytest.mark.slow
def test_the_default_run(capsys):
    assert main(["demo"]) == 0
    printed = capsys.readouterr().out
    assert MARK.search(printed)
    assert _counts(printed, "paper")[1] > 100


def test_the_command_imports_no_optional_package():
    code = (
        "import sys, contextlib\n"
        "from toedit_collate.commands.main import main\n"
        "with contextlib.suppress(SystemExit): main(['demo', '--help'])\n"
        "loaded = {'trl', 'peft', 'datasets', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--prior" in done.stdout


# --- its parts ---


def test_edits_are_marked_in_plain_text_and_in_colour():
    tokenizer = make_test_tokenizer()
    before = tokenizer("the fox jumps over it\nthere")["input_ids"]
    texts = [tokenizer.decode([i]) for i in before]
    assert "".join(texts) == "the fox jumps over it\nthere"
    new = tokenizer(" dog")["input_ids"][-1]
    line_end = texts.index("\n")
    after = list(before)
    after[1] = after[line_end] = new
    selected = [False] * len(before)
    selected[1] = selected[2] = selected[3] = selected[line_end] = True
    passage = Passage(before, after, selected, [0.9934] * len(before))
    drawn = tokenizer.decode([new])
    plain = mark_edits(passage, tokenizer, color=False)
    assert f"[{texts[1]} -> {drawn}, P=0.993]{{{texts[2]}{texts[3]}}}" in plain
    assert f"[\\n -> {drawn}, P=0.993]" in plain
    assert passage.num_changed == 2
    colored = mark_edits(passage, tokenizer, color=True)
    assert f"\33[9;31m{texts[1]}\33[0m\33[1;32m{drawn}\33[0m" in colored
    assert f"\33[4m{texts[2]}{texts[3]}\33[0m" in colored
    without_marks = re.sub(r"\x1b\[1;32m.*?\x1b\[0m|\x1b\[2m.*?\x1b\[0m|\x1b\[[\d;]+m", "", colored)
    assert without_marks.replace("\\n", "\n") == "the fox jumps over it\nthere"


def test_letters_of_several_tokens_are_shown_whole():
    tokenizer = make_test_tokenizer()
    before = tokenizer("a ü b")["input_ids"]
    unmarked = Passage(before, before, [False] * len(before), [0.5] * len(before))
    assert mark_edits(unmarked, tokenizer, color=False) == "a ü b"


@pytest.mark.parametrize(
    ("choice", "terminal", "no_color", "expected"),
    [
        ("auto", True, "", True),
        ("auto", True, "1", False),
        ("auto", False, "", False),
        ("always", False, "1", True),
        ("never", True, "", False),
    ],
)
def test_color_is_for_terminals_and_the_willing(monkeypatch, choice, terminal, no_color, expected):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("NO_COLOR", no_color)
    assert wants_color(Namespace(color=choice)) is expected
    assert ("\33[" in legend(color=expected)) is expected


@pytest.fixture(scope="module")
def sharp() -> tuple[Prior, list[dict[str, torch.Tensor]]]:
    """A prior that finds many tokens certain, and a padded batch."""
    model = make_llama()
    ids = likely_ids(model, B=4, T=40)
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    return Prior(model), [{"input_ids": ids, "attention_mask": mask, "labels": ids}]


def test_the_survey_counts_what_edit_tokens_does(sharp):
    prior, batches = sharp
    policies = {"a": EditPolicy(), "b": EditPolicy(exclude_original=True)}
    counted = survey(prior, batches, policies)
    assert (counted.num_batches, counted.num_draws) == (1, 4)
    for name, policy in policies.items():
        results = [edit_tokens(prior, **batches[0], policy=policy, epoch=e) for e in range(4)]
        for field in ("scored", "selected", "changed"):
            expected = sum(int(getattr(r, field).sum()) for r in results)
            assert getattr(counted.shares[name], field) == expected
    assert counted.shares["b"].changed == counted.shares["b"].selected > 0


def test_the_passage_is_the_one_with_the_most_changes(sharp):
    prior, batches = sharp
    policy = EditPolicy(exclude_original=True)
    result = edit_tokens(prior, **batches[0], policy=policy, return_logprob=True)
    passage = find_passage(prior, batches, policy, num_tokens=16)
    most = max(
        int(result.changed[row, start : start + 16].sum())
        for row in range(4)
        for start in range(0, (30 if row == 1 else 40) - 15, 8)
    )
    assert passage.num_changed == most > 0
    chances = [p for p, s in zip(passage.probability, passage.selected, strict=True) if s]
    assert min(chances) >= 0.99


def test_tokens_that_are_removed_are_in_the_passage(sharp):
    prior, batches = sharp
    policy = EditPolicy(drop_below=0.3, threshold=0.5, exclude_original=True)
    result = edit_tokens(prior, **batches[0], policy=policy)
    passage = find_passage(prior, batches, policy, num_tokens=16)
    assert passage.num_removed > 0
    assert passage.num_changed > 0
    for row, ids in enumerate(batches[0]["input_ids"].tolist()):
        for start in range(len(ids) - 15):
            if ids[start : start + 16] == passage.before:
                window = slice(start, start + 16)
                gone = result.dropped[row, window]
                kept = result.changed[row, window] & ~gone
                assert passage.num_removed == gone.sum()
                assert passage.num_changed == kept.sum()
                return
    raise AssertionError("the passage is none of the windows")


def test_the_cost_is_a_ratio_of_paired_times(sharp):
    cost = edit_cost(*sharp, EditPolicy(), most=3)
    assert cost.num_pairs == 3
    assert 0 < cost.lowest <= cost.ratio <= cost.highest
    assert cost.forward_ms > 0


def test_tuning_leaves_the_prior_as_it_was(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text(easy_text())
    model, tokenizer = make_llama(), make_test_tokenizer()
    prior = Prior(model, tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = tune(prior, read_corpus(path), EditPolicy(), steps=1, seed=0)
    assert result.stats["batches"] == 1
    assert result.stats["scored"] > 0
    assert 0 < result.time_share < 1
    after = prior.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(p.requires_grad for p in prior.model.parameters())


@pytest.mark.parametrize("shape", [(64, 64), (64, 160), (160, 64)])
def test_orthogonalize_keeps_directions_and_levels_sizes(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, before, vh = torch.linalg.svd(matrix, full_matrices=False)
    levelled = u.T @ orthogonalize(matrix) @ vh.T
    sizes = levelled.diagonal()
    assert before.max() / before.min() > 2
    assert sizes[before > 0.1 * before.max()].min() > 0.5
    assert sizes.max() < 1.4
    assert (levelled - sizes.diag()).abs().max() < 1e-3


def test_the_made_tokenizer_gives_the_text_back():
    tokenizer = make_tokenizer(["the quick brown fox\n    jumps"])
    ids = tokenizer("the fox\n  é")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == "the fox\n  é"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "user:\nhi<|eos|>\n"


# --- the text ---


def test_nothing_held_out_of_the_built_in_text_is_trained_on():
    corpus = python_topics()
    train, held_out = (
        {paragraph for example in part for paragraph in plain_text(example).split("\n\n")}
        for part in (corpus.train, corpus.held_out)
    )
    assert len(train) > 1000
    assert len(held_out) > 50
    assert not train & held_out
    assert any("\n\n" in plain_text(example) for example in corpus.train)
    assert corpus == python_topics()


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("name", "rows", "first"),
    [
        ("x.jsonl", [{"text": "a", "id": 1}, {"text": "b"}, {"text": " "}], {"text": "a"}),
        ("x.jsonl", [{"prompt": "p", "completion": "c", "text": "t"}] * 3, None),
        ("x.jsonl", [{"messages": CHAT}] * 3, {"messages": CHAT}),
        ("x.jsonl", [{"prompt": CHAT[:1], "completion": CHAT[1:]}] * 3, None),
        ("x.parquet", [{"text": "a"}, {"text": "b"}], {"text": "a"}),
        ("x.parquet", [{"messages": CHAT}] * 3, {"messages": CHAT}),
        ("x.txt", "a\n\nb\n\n\n\n", {"text": "a"}),
        ("x.csv", 'text,id\n"a\nb, ""c""",1\nb,2\n', {"text": 'a\nb, "c"'}),
    ],
)
def test_formats(tmp_path, name, rows, first):
    path = _write(tmp_path / name, rows)
    corpus = read_corpus(path)
    examples = corpus.train + corpus.held_out
    assert len(examples) == (2 if first and "text" in first else 3)
    assert len(corpus.held_out) == 1
    if first is None:
        first = {key: rows[0][key] for key in ("prompt", "completion")}
    assert first in examples
    assert corpus.is_conversational == any(not isinstance(v, str) for v in first.values())
    assert all(isinstance(plain_text(example), str) for example in examples)


def _write(path: Path, rows: str | bytes | list) -> Path:
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    elif isinstance(rows, str):
        path.write_text(rows)
    elif path.suffix == ".parquet":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("x.doc", "a", r"ends in '\.doc'; give files of one kind of \.jsonl"),
        ("x.csv", "a,b\n1,2\n", r"line 2 has \['a', 'b'\]; .*rename"),
        ("x.jsonl", [{"body": "a"}], r"line 1 has \['body'\]; .*rename the columns"),
        ("x.jsonl", [{"prompt": "a"}], r"completion of line 1 is missing"),
        ("x.jsonl", ["text"], r"line 1 is a str"),
        ("x.jsonl", '{"text": "a"}\n{"text', r"line 2 is not JSON .*one JSON object a line"),
        ("x.jsonl", [{"text": 5}], r"text of line 1 is neither text nor .*5"),
        ("x.jsonl", [{"messages": "hi"}], r"messages of line 1 is neither"),
        ("x.jsonl", [{"prompt": "p", "completion": CHAT}], r"prompt and completion of line 1"),
        ("x.jsonl", [{"text": "a"}, {"messages": CHAT}], r"2 formats .*keep to one"),
        ("x.jsonl", [{"text": ""}], r"0 documents; .*at least 2"),
        ("x.txt", "one document", r"1 documents; .*at least 2"),
        ("x.txt", b"\xff\xfe\n\n\xff", r"can't be read .*UTF-8"),
        ("x.parquet", "not parquet", r"can't be read as parquet"),
    ],
)
def test_data_that_cannot_be_used(tmp_path, name, rows, message):
    path = _write(tmp_path / name, rows)
    with pytest.raises(UnusableError, match=message) as caught:
        read_corpus(path)
    assert str(path) in str(caught.value)


def test_only_as_many_examples_are_kept_as_are_trained_on():
    corpus = python_topics()
    few = enough_examples(corpus, 10, seed=1)
    assert len(few.train) == 10
    assert few.held_out == corpus.held_out
    assert few.train != enough_examples(corpus, 10, seed=2).train
    assert enough_examples(corpus, 10**6, seed=1) is corpus


# --- what the command says of mistakes ---


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--data", "no-such.txt"],
            r"no-such\.txt: there is no such file or folder; check the path",
        ),
        (["--prior", "./no-such"], r"--prior \./no-such: can't be loaded .*name a folder"),
        (["--prior", "x", "--seconds", "5"], r"--seconds 5\.0 .*--prior x gives one; leave one"),
        (["--prior", "x", "--output", "y"], r"--output y .*--prior x"),
    ],
)
def test_one_line_and_status_2(capsys, argv, message):
    assert main(["demo", *argv]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.match(r"toedit demo: error: .*" + message, lines[-1])


@pytest.mark.parametrize("argv", [["--seconds", "0"], ["--steps", "x"], ["--seed", "-1"]])
def test_numbers_out_of_range_are_refused_by_argparse(capsys, argv):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", *argv])
    assert re.search(rf"{argv[0]}: must be .*{argv[1]}", capsys.readouterr().err)


def test_a_file_is_no_output_folder(tmp_path, capsys):
    path = _write(tmp_path / "file", "x")
    assert main(["demo", "--output", str(path)]) == 2
    assert re.search(r"--output .*can't be made .*name a folder", capsys.readouterr().err)


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(["demo"]) == 2
    assert "needs peft" in (message := capsys.readouterr().err)
    assert 'pip install "toedit_collate[recipes]"' in message


def test_messages_need_a_chat_template(tmp_path, capsys):
    tokenizer = make_test_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "prior")
    make_llama().save_pretrained(tmp_path / "prior")
    data = _write(tmp_path / "chat.jsonl", [{"messages": CHAT}] * 3)
    assert main(["demo", "--prior", str(tmp_path / "prior"), "--data", str(data)]) == 2
    assert re.search(r"no chat template, and .*chat\.jsonl holds messages", capsys.readouterr().err)
