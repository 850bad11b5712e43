"""`toedit apply`: the cache it fills serves training without the prior; the data it writes."""

import itertools
import re

import pytest
import torch
from conftest import make_llama, make_tokenizer
from test_journal_command import read, split, write
from trainees import (
    AGGRESSIVE,
    Recorder,
    dataset,
    documents,
    make_trainee,
    make_trainer,
)
from trl import SFTConfig, SFTTrainer

from toedit_collate import EditPolicy, Prior, ToEditCollator, attach, edit_tokens
from toedit_collate.commands.journal import as_python
from toedit_collate.commands.main import main
from toedit_collate.data import documents as data_documents
from toedit_collate.data import load_rows
from toedit_collate.stores.cache import DecisionCache

AS_OPTIONS = ("--policy", "threshold=0.05 exclude_original=true")  # AGGRESSIVE
REMOVING_AS_OPTIONS = ("--policy", f"{AS_OPTIONS[1]} drop_below=1e-3")
STRONG = ("--policy", "region=below threshold=0.9 exclude_original=true")
pytestmark = pytest.mark.usefixtures("no_bars")
REMOVING = AGGRESSIVE.replace(drop_below=1e-3)


def apply(capsys, *argv):
    """Exit status, and what was printed to stdout and stderr."""
    capsys.readouterr()
    status = main(["apply", *map(str, argv)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def applied(capsys, *argv):
    status, printed, error = apply(capsys, *argv)
    assert status == 0, error
    return printed


def refused(capsys, *argv):
    status, _, error = apply(capsys, *argv)
    assert status == 2
    # Before it, transformers shows how it loads weights.
    line = error.splitlines()[-1]
    assert line.startswith("toedit apply: error: ")
    assert "Traceback" not in error
    return line


@pytest.fixture(scope="module")
def prior_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    make_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def real(prior_folder):
    """The prior itself."""
    return Prior.from_pretrained(prior_folder)


@pytest.fixture(scope="module")
def rows():
    texts = documents(20, seed=3)
    return [
        {"input_ids": text, "labels": [-100] * 3 + text[3:], "number": number}
        for number, text in enumerate(texts)
    ]


@pytest.fixture
def data(tmp_path, rows):
    return write(tmp_path / "data", rows)


def edited(collator, rows, *, epoch, size=4):
    """The rows as a training loop gets them."""
    collator.set_epoch(epoch)
    found = []
    for begin in range(0, len(rows), size):
        batch = dict(collator([dict(row) for row in rows[begin : begin + size]]))
        real = batch["attention_mask"].bool()
        for ids, labels, of in zip(batch["input_ids"], batch["labels"], real, strict=True):
            found.append((ids[of].tolist(), labels[of].tolist()))
    return found


def only_tokens(rows):
    return [{key: row[key] for key in ("input_ids", "labels")} for row in rows]


# --- the cache ---


class TestTraining:
    @pytest.mark.parametrize(
        ("options", "policy"),
        [
            (AS_OPTIONS, AGGRESSIVE),
            (REMOVING_AS_OPTIONS, REMOVING),
            (("--policy", "threshold=0.3 top_k=16"), EditPolicy(threshold=0.3, top_k=16)),
        ],
    )
    def test_without_the_prior_as_with_it(
        self, tmp_path, capsys, prior_folder, real, data, rows, options, policy
    ):
        cache = tmp_path / "cache"
        printed = applied(
            capsys, "--prior", prior_folder, "--data", data, "--cache", cache, *options
        )
        assert "20 rows, 20 documents" in printed
        tokenizer = make_tokenizer()
        held = DecisionCache(cache)
        ours = ToEditCollator(held.prior(policy), policy, tokenizer=tokenizer, cache=held)
        theirs = ToEditCollator(real, policy, tokenizer=tokenizer)
        given = only_tokens(rows)
        for epoch in (0, 1):
            found = edited(ours, given, epoch=epoch, size=3)
            assert found == edited(theirs, given, epoch=epoch)
            assert (
                sum(ids != row["input_ids"] for (ids, _), row in zip(found, rows, strict=True)) > 5
            )
        assert edited(ours, given, epoch=0) != edited(ours, given, epoch=1)

    @pytest.mark.parametrize(
        ("form", "options", "config"),
        [
            ("both", (), {"max_length": None}),
            ("pair", ("--max-length", "9"), {"max_length": 9}),
            (
                "text",
                ("--max-length", "9"),
                {"max_length": 9, "packing": True, "packing_strategy": "bfd"},
            ),
            (
                "chat",
                ("--max-length", "9"),
                {"max_length": 9, "packing": True, "packing_strategy": "bfd_split"},
            ),
            (
                "chat",
                ("--max-length", "9", "--truncation-mode", "keep_end"),
                {"max_length": 9, "truncation_mode": "keep_end"},
            ),
            (
                "pair",
                ("--no-completion-only-loss",),
                {"completion_only_loss": False, "max_length": None},
            ),
            ("text", ("--eos-token", "<|im_end|>"), {"eos_token": "<|im_end|>"}),
        ],
    )
    def test_decisions_are_those_of_documents_in_training(
        self, tmp_path, capsys, prior_folder, options, config, form
    ):
        """Rows of a file, cut and labelled by SFTTrainer: a document without a decision raises."""
        words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "again"]
        texts = [" ".join(words[n:] + words[:n]) for n in range(6)]
        pairs = [{"prompt": text[:11], "completion": text[11:]} for text in texts]
        user, assistant = {"role": "user"}, {"role": "assistant"}
        rows = {
            "text": [{"text": text} for text in texts],
            "pair": pairs,
            "both": [{"text": "another", **pair} for pair in pairs],
            "chat": [
                {"messages": [user | {"content": t[:9]}, assistant | {"content": t}]} for t in texts
            ],
        }[form]
        data, cache = write(tmp_path / "rows.jsonl", rows), tmp_path / "cache"
        applied(
            capsys, "--prior", prior_folder, "--data", data, "--cache", cache, *STRONG, *options
        )
        as_policy = EditPolicy(region="below", threshold=0.9, exclude_original=True)
        held = DecisionCache(cache)
        args = SFTConfig(
            str(tmp_path / "run"), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
            num_train_epochs=1, save_strategy="no", gradient_checkpointing=False, **config,
        )  # fmt: skip
        trainer = SFTTrainer(
            make_llama(), args, train_dataset=load_rows(str(data)),
            processing_class=make_tokenizer(),
        )  # fmt: skip
        collator = attach(trainer, held.prior(as_policy), as_policy, cache=held)
        trainer.train()
        assert collator.stats["changed"] > 6

    def test_a_document_that_is_not_in_it(self, tmp_path, capsys, prior_folder, data, rows):
        cache = DecisionCache(tmp_path / "cache")
        applied(capsys, "--prior", prior_folder, "--data", data, "--cache", cache.path, *AS_OPTIONS)
        collator = ToEditCollator(
            cache.prior(), AGGRESSIVE, tokenizer=make_tokenizer(), cache=cache
        )
        other = {**rows[0], "labels": rows[0]["input_ids"]}  # its prompt, too, is to be edited
        with pytest.raises(ValueError, match=r"1 of the batch's 2 doc.*run `toedit apply --cache`"):
            edited(collator, only_tokens([other, rows[1]]), epoch=0)

    def test_another_policy_or_tokenizer(self, tmp_path, capsys, prior_folder, data, rows):
        cache = DecisionCache(tmp_path / "cache")
        applied(capsys, "--prior", prior_folder, "--data", data, "--cache", cache.path, *AS_OPTIONS)
        tokenizer = make_tokenizer()
        with pytest.raises(ValueError, match=r"another policy.*threshold=0\.05, now 0\.99"):
            cache.prior(EditPolicy())
        collator = ToEditCollator(cache.prior(), EditPolicy(), tokenizer=tokenizer, cache=cache)
        with pytest.raises(ValueError, match=r"another policy.*threshold=0\.05, now 0\.99"):
            edited(collator, only_tokens(rows), epoch=0)
        other = make_tokenizer()
        other.backend_tokenizer.model = type(other.backend_tokenizer.model)()
        with pytest.raises(ValueError, match="tokenizer differs"):
            ToEditCollator(cache.prior(), AGGRESSIVE, tokenizer=other, cache=cache)

    def test_packed_as_it_will_be_trained_on(self, tmp_path, capsys, prior_folder, real):
        """Data that SFTTrainer packed; what a model is given, with and without the prior."""
        given = []
        for way in ("the prior", "the cache"):
            trainer, _ = make_trainer(
                tmp_path / "run", make_tokenizer(), kind="SFTTrainer", model=make_trainee(),
                train=dataset(documents(12, seed=3)), packing=True, max_length=40,
                num_train_epochs=2,
            )  # fmt: skip
            recorder = Recorder(trainer.model)
            if way == "the prior":
                trainer.train_dataset.save_to_disk(tmp_path / "data")
                attach(trainer, real, AGGRESSIVE)
            else:
                cache = DecisionCache(tmp_path / "cache")
                printed = applied(
                    capsys, "--prior", prior_folder, "--data", tmp_path / "data", "--cache",
                    cache.path, *AS_OPTIONS,
                )  # fmt: skip
                assert "12 documents" in printed
                attach(trainer, cache.prior(), AGGRESSIVE, cache=cache)
            trainer.train()
            given.append(recorder.batches(training=True))
        assert given[0] == given[1]
        assert len(given[0]) > 2

    def test_masks_are_labels(self, tmp_path, capsys, prior_folder, real):
        """`completion_mask` and `assistant_masks`, as SFTTrainer makes labels of them."""
        text = documents(1, seed=3)[0]
        T = len(text)
        completion = [0, 0] + [1] * (T - 2)
        assistant = [1] * (T - 3) + [0] * 3
        cases = {
            "both": ({"completion_mask": completion, "assistant_masks": assistant}, [2, T - 3]),
            "one": ({"assistant_masks": [*assistant[::-1]]}, [3, T]),
            "completion": ({"completion_mask": completion}, [2, T]),
            "not asked for": ({"completion_mask": completion}, [0, T]),
            "none": ({}, [0, T]),
            "labels": ({"labels": [-100] * T, "completion_mask": completion}, [0, 0]),
        }
        for name, (masks, (begin, end)) in cases.items():
            cache = DecisionCache(tmp_path / name)
            data = write(tmp_path / f"{name}.jsonl", [{"input_ids": text, **masks}])
            asked = ["--completion-only-loss"] if name in ("both", "completion") else []
            printed = applied(
                capsys, "--prior", prior_folder, "--data", data, "--cache", cache.path,
                *AS_OPTIONS, *asked,
            )  # fmt: skip
            assert f"{max(end - max(begin, 1), 0)} scored" in printed
            if name != "labels":
                labels = [t if begin <= n < end else -100 for n, t in enumerate(text)]
                ids = torch.tensor([text])
                cached = cache.prior()
                cached.set_tokenizer(real.tokenizer)  # that the chat template is read with
                result = edit_tokens(
                    cached, ids, labels=torch.tensor([labels]), policy=AGGRESSIVE, cache=cache
                )
                expected = edit_tokens(real, ids, labels=torch.tensor([labels]), policy=AGGRESSIVE)
                assert torch.equal(result.input_ids, expected.input_ids)


class TestCache:
    def test_known_documents_cost_no_pass(self, tmp_path, capsys, prior_folder, data, monkeypatch):
        passes = []
        states = Prior.predictive_states

        def counted(self, documents, tokens, where, *more):
            passes.append(len(where))
            return states(self, documents, tokens, where, *more)

        monkeypatch.setattr(Prior, "predictive_states", counted)
        options = ("--prior", prior_folder, "--data", data, "--cache", tmp_path / "cache")
        first = applied(capsys, *options, *AS_OPTIONS)
        assert sum(passes) > 100
        assert re.search(r"20 new, 0 known already", first)
        done = len(passes)
        again = applied(capsys, *options, *AS_OPTIONS)
        assert len(passes) == done
        assert "0 new, 20 known already\n" in again
        assert "20 documents in" in again

    def test_interrupted(self, tmp_path, capsys, prior_folder, data, monkeypatch):
        options = ("--prior", prior_folder, "--data", data, "--cache", tmp_path / "cache")
        monkeypatch.setattr(data_documents, "edit_tokens", _interrupt_at(11))
        status, _, error = apply(capsys, *options, "--batch-tokens", "16", *AS_OPTIONS)
        assert status == 130
        assert re.search(r"interrupted after 0 rows; what was decided is kept", error)
        monkeypatch.undo()
        assert re.search(r"10 new, 10 known already", applied(capsys, *options, *AS_OPTIONS))

    def test_in_parts(self, tmp_path, capsys, prior_folder):
        texts = documents(30, seed=3) * 10  # several batches of rows
        data = write(tmp_path / "data.jsonl", [{"input_ids": text} for text in texts])
        options = ("--prior", prior_folder, "--data", data, "--cache", tmp_path / "cache")
        rows = 0
        for shard in ("0/2", "1/2"):
            printed = applied(capsys, *options, *AS_OPTIONS, "--shard", shard)
            rows += int(re.match(r"(\d+) rows", printed).group(1))
        assert rows == 300
        assert "0 new, 300 known" in applied(capsys, *options, *AS_OPTIONS)

    def test_the_printed_python_works(self, tmp_path, capsys, prior_folder, data, rows):
        options = ("--prior", prior_folder, "--data", data, "--cache", tmp_path / "cache")
        for more in ((), ("--dtype", "bfloat16")):  # then there are two priors in the cache
            printed = applied(capsys, *options, *AS_OPTIONS, *more)
            lines = [line[4:] for line in printed.splitlines() if line.startswith("    ")]
            assert len(lines) == 4
            names = {"tokenizer": make_tokenizer()}
            exec("\n".join(lines), names)
            assert names["policy"] == AGGRESSIVE
            assert edited(names["collator"], only_tokens(rows), epoch=0)
        assert re.search(r'cache\.prior\(policy, "[0-9a-f]{12}"\)', printed)


def _interrupt_at(call):
    """In place of `edit_tokens`: what Ctrl-C does in the middle of the work."""
    calls = itertools.count(1)

    def interrupted(*args, **kwargs):
        if next(calls) == call:
            raise KeyboardInterrupt
        return edit_tokens(*args, **kwargs)

    return interrupted


# --- the edited dataset ---


class TestOutput:
    @pytest.mark.parametrize("output", ["out", "out.jsonl"])
    @pytest.mark.parametrize("with_cache", [False, True])
    @pytest.mark.parametrize("policy", [AGGRESSIVE, REMOVING])
    def test_is_the_edit_of_epoch_0(
        self, tmp_path, capsys, prior_folder, real, data, rows, output, with_cache, policy
    ):
        options = ["--prior", prior_folder, "--data", data, "--output", tmp_path / output]
        options += [*(REMOVING_AS_OPTIONS if policy is REMOVING else AS_OPTIONS)]
        options += ["--batch-tokens", "64"]
        if with_cache:
            options += ["--cache", tmp_path / "cache"]
        printed = applied(capsys, *options)
        found = read(tmp_path / output)
        expected = edited(
            ToEditCollator(real, policy, tokenizer=make_tokenizer()), only_tokens(rows), epoch=0
        )
        assert [(row["input_ids"], row["labels"]) for row in found] == expected
        assert [row["number"] for row in found] == list(range(20))
        tokenizer = make_tokenizer()
        assert [row["text"] for row in found] == [
            tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids, _ in expected
        ]
        removed = sum(len(row["input_ids"]) for row in rows) - sum(len(ids) for ids, _ in expected)
        assert (removed > 5) == (policy is REMOVING)
        assert re.search(rf"epoch 0: \d+ changed \(\d+\.\d\d%\), {removed} removed", printed)
        assert ("To train without the prior" in printed) == with_cache

    @pytest.mark.parametrize("output", ["out", "out.jsonl"])
    def test_text(self, tmp_path, capsys, prior_folder, real, output):
        """Text is tokenized once, with an end token; its tokens are written next to it."""
        texts = ["the quick brown fox jumps over the lazy dog", "a slow green turtle walks", "6"]
        data = write(tmp_path / "data.jsonl", [{"text": text, "n": 1} for text in texts])
        applied(
            capsys, "--prior", prior_folder, "--data", data, "--output", tmp_path / output,
            "--policy", "threshold=0.001 exclude_original=true",
        )  # fmt: skip
        policy = EditPolicy(threshold=0.001, exclude_original=True)
        tokenizer = make_tokenizer()
        for row, text in zip(read(tmp_path / output), texts, strict=True):
            ids = torch.tensor([tokenizer(text + "<|eos|>")["input_ids"]])
            expected = edit_tokens(real, ids, policy=policy).input_ids[0].tolist()
            assert row["input_ids"] == expected
            assert row["text"] == tokenizer.decode(expected[:-1])
            assert row["n"] == 1

    def test_packed_rows(self, tmp_path, capsys, prior_folder, real):
        texts = documents(9, seed=3)
        packed = [
            {
                "input_ids": [*itertools.chain(*texts[n : n + 3])],
                "seq_lengths": [*map(len, texts[n : n + 3])],
            }
            for n in range(0, 9, 3)
        ]
        data = write(tmp_path / "data", packed)
        output = tmp_path / "out"
        applied(
            capsys, "--prior", prior_folder, "--data", data, "--output", output,
            *REMOVING_AS_OPTIONS,
        )  # fmt: skip
        found = [one for row in read(output) for one in split(row["input_ids"], row["seq_lengths"])]
        assert found == [
            edit_tokens(real, torch.tensor([text]), policy=REMOVING).input_ids[0].tolist()
            for text in texts
        ]

    def test_padding_stays(self, tmp_path, capsys, prior_folder, real):
        text = documents(1, seed=3)[0]
        row = {"input_ids": [2, 2, *text, 2], "attention_mask": [0, 0, *[1] * len(text), 0]}
        row["labels"] = [-100, -100, *text, 0]  # at padding it may be anything
        data = write(tmp_path / "data.jsonl", [row])
        applied(
            capsys, "--prior", prior_folder, "--data", data, "--output", tmp_path / "o.jsonl",
            *AS_OPTIONS,
        )  # fmt: skip
        (found,) = read(tmp_path / "o.jsonl")
        expected = edit_tokens(real, torch.tensor([text]), policy=AGGRESSIVE).input_ids[0].tolist()
        assert found["input_ids"] == [2, 2, *expected, 2]
        assert found["attention_mask"] == row["attention_mask"]

    def test_compile(self, tmp_path, capsys, prior_folder, data, monkeypatch):
        compiled = []
        monkeypatch.setattr(Prior, "compile", lambda prior: compiled.append(prior))
        options = ("--prior", prior_folder, "--data", data, "--output", tmp_path / "o.jsonl")
        applied(capsys, *options, "--compile")
        assert len(compiled) == 1

    def test_seed(self, tmp_path, capsys, prior_folder, data):
        options = ["--prior", prior_folder, "--data", data]
        for seed in (0, 1):
            output = tmp_path / f"{seed}.jsonl"
            policy = f"{AS_OPTIONS[1]} seed={seed}"
            applied(capsys, *options, "--output", output, "--policy", policy)
        assert read(tmp_path / "0.jsonl") != read(tmp_path / "1.jsonl")


# --- what is refused ---


class TestRefused:
    def test_nothing_to_make(self, capsys, prior_folder, data):
        error = refused(capsys, "--prior", prior_folder, "--data", data)
        assert re.search(r"nothing to write; add --cache DIR.*or --output OUT", error)

    def test_policy(self, tmp_path, capsys, prior_folder, data):
        options = ("--prior", prior_folder, "--data", data, "--cache", tmp_path / "cache")
        error = refused(capsys, *options, "--policy", "threshold=99")
        assert re.search(r"threshold .*got 99; .*write 0\.99 for 99 %", error)
        error = refused(capsys, *options, "--policy", "mine")
        assert re.search(r"--policy: policy must be one of paper, .*got 'mine'", error)

    @pytest.mark.parametrize(
        ("option", "value"),
        [("--shard", "2/2"), ("--shard", "half"), ("--batch-tokens", "0"), ("--dtype", "int3")],
    )
    def test_options(self, capsys, option, value):
        with pytest.raises(SystemExit):
            main(["apply", "--prior", "p", "--data", "d", option, value])
        error = capsys.readouterr().err
        assert option in error
        assert value in error

    def test_prior(self, tmp_path, capsys, data):
        options = ("--data", data, "--cache", tmp_path / "cache")
        error = refused(capsys, "--prior", tmp_path / "none", *options)
        assert re.search(r"--prior .*none: can't be loaded", error)
        make_llama().save_pretrained(tmp_path / "bare")
        error = refused(capsys, "--prior", tmp_path / "bare", *options)
        assert re.search(r"--prior .*bare: has no tokenizer.*save_pretrained", error)

    def test_device(self, tmp_path, capsys, prior_folder, data):
        error = refused(
            capsys, "--prior", prior_folder, "--data", data, "--cache", tmp_path / "cache",
            "--device", "abacus",
        )  # fmt: skip
        assert "abacus" in error

    def test_places(self, tmp_path, capsys, prior_folder, data):
        (tmp_path / "file").write_text("")
        options = ("--prior", prior_folder, "--data", data)
        assert "--cache" in refused(capsys, *options, "--cache", tmp_path / "file")
        error = refused(capsys, *options, "--output", tmp_path / "file")
        assert "exists already" in error
        error = refused(capsys, "--prior", prior_folder, "--data", "none", "--cache", "c")
        assert "--data none: there is no such file" in error

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"input_ids": [9, 320]}, r"line 2 has the token 320.*\[0, 320\)"),
            ({"input_ids": [9, 8], "labels": [9]}, r"labels of line 2 .*each of its 2 tokens"),
            ({"input_ids": [9, 8], "labels": [8, -100]}, r"labels of line 2.*label 8 at token 9"),
            ({"input_ids": [9, 8], "assistant_masks": [0.5, 1]}, r"assistant_masks of line 2"),
            ({"messages": []}, r"messages of line 2 is neither text nor a list of messages"),
            (
                {"body": "a"},
                r"line 2 has the columns \['body'\], none of input_ids, text, me",
            ),
        ],
    )
    def test_rows(self, tmp_path, capsys, prior_folder, row, message):
        data = write(tmp_path / "data.jsonl", [{"input_ids": [9, 8, 7]}, row])
        output = tmp_path / "out.jsonl"
        error = refused(capsys, "--prior", prior_folder, "--data", data, "--output", output)
        assert re.search(rf"--data {re.escape(str(data))}: .*{message}", error)
        assert not output.exists()

    def test_a_long_row(self, tmp_path, capsys, prior_folder):
        data = write(tmp_path / "data.jsonl", [{"input_ids": [9] * 300}])
        output = tmp_path / "out.jsonl"
        error = refused(capsys, "--prior", prior_folder, "--data", data, "--output", output)
        assert "300 tokens is longer than the prior's 256 positions; shorten rows" in error
        assert not output.exists()

    def test_no_rows(self, tmp_path, capsys, prior_folder):
        (tmp_path / "data.jsonl").write_text("\n")
        options = ("--prior", prior_folder, "--data", tmp_path / "data.jsonl")
        assert "no rows" in refused(capsys, *options, "--cache", tmp_path / "cache")
        assert "no rows" in refused(capsys, *options, "--output", tmp_path / "out.jsonl")
        assert not (tmp_path / "out.jsonl").exists()

    def test_a_prior_that_gives_nan(self, tmp_path, capsys, data):
        model = make_llama()
        with torch.no_grad():
            model.model.norm.weight[0] = float("nan")
        model.save_pretrained(tmp_path / "prior")
        make_tokenizer().save_pretrained(tmp_path / "prior")
        error = refused(
            capsys, "--prior", tmp_path / "prior", "--data", data, "--cache", tmp_path / "cache"
        )
        assert "prior" in error

    def test_a_damaged_cache(self, tmp_path, capsys, prior_folder, data):
        options = ("--prior", prior_folder, "--data", data, "--cache", tmp_path / "cache")
        applied(capsys, *options, *AS_OPTIONS)
        (segment,) = (tmp_path / "cache").glob("*/*.safetensors")
        segment.write_bytes(segment.read_bytes()[:100])
        error = refused(capsys, *options, *AS_OPTIONS)
        assert re.search(rf"{segment}.*damaged.*delete it", error)


# --- the policy as Python ---


@pytest.mark.parametrize(
    "policy",
    [
        EditPolicy.paper(),
        EditPolicy.reference_code("up_revise"),
        EditPolicy.reference_code("low_drop_up_revise"),
        EditPolicy.reference_code("filtering"),
        EditPolicy.reference_code(top_k=9),
        EditPolicy(
            region="below", threshold=0.1, sampler="top_p", top_p=0.5, temperature=2.0,
            scope="all", drop_below=0.01, exclude_original=True, protect_special=False,
            protected_token_ids=(7, 8), seed=5, redraw="never", protect="code,numbers",
        ),
    ],
)  # fmt: skip
def test_the_policy_is_printed_as_python(policy):
    assert eval(as_python(policy.record())) == policy


# --- long documents, chats, parts ---


class TestWhatElseItTakes:
    def test_long_documents_are_cut_into_windows(self, tmp_path, capsys, prior_folder, real):
        """Each window is edited as a document of its own; the row stays one row."""
        (ids,) = documents(1, seed=5)
        ids = (ids * 300)[:600]  # the prior has 256 positions
        data = write(tmp_path / "data.jsonl", [{"input_ids": ids}])
        output = tmp_path / "out.jsonl"
        options = ("--prior", prior_folder, "--data", data, "--output", output, *AS_OPTIONS)
        applied(capsys, *options, "--max-length", "250")
        (row,) = read(output)
        expected = [
            edit_tokens(real, torch.tensor([ids[i : i + 250]]), policy=AGGRESSIVE).input_ids[0]
            for i in range(0, 600, 250)
        ]
        assert row["input_ids"] == torch.cat(expected).tolist() != ids

    def test_chats_are_edited_where_they_have_labels(self, tmp_path, capsys, prior_folder):
        prompt = [{"role": "user", "content": "the quick brown fox"}]
        completion = [{"role": "assistant", "content": "jumps over the lazy dog " * 4}]
        data = write(tmp_path / "data.jsonl", [{"prompt": prompt, "completion": completion}])
        output = tmp_path / "out.jsonl"
        applied(capsys, "--prior", prior_folder, "--data", data, "--output", output, *STRONG)
        (row,) = read(output)
        tokenizer = make_tokenizer()
        source = tokenizer.apply_chat_template(prompt + completion, return_dict=True)["input_ids"]
        changed = [
            i for i, (a, b) in enumerate(zip(source, row["input_ids"], strict=True)) if a != b
        ]
        assert changed
        assert all(row["labels"][i] == row["input_ids"][i] for i in changed)
        assert row["labels"].count(-100) > 4
        assert "prompt" not in row

    @pytest.mark.parametrize("num_rows", [5, 130])
    def test_parts_are_equal(self, tmp_path, capsys, prior_folder, num_rows):
        data = write(tmp_path / "data.jsonl", [{"input_ids": [9, 8]} for _ in range(num_rows)])
        sizes = []
        for part in range(3):
            output = tmp_path / f"{part}.jsonl"
            options = ("--prior", prior_folder, "--data", data, "--output", output)
            applied(capsys, *options, "--shard", f"{part}/3")
            sizes.append(len(read(output)))
        assert sum(sizes) == num_rows
        assert max(sizes) - min(sizes) <= 1

    def test_bad_data_is_refused_before_the_prior_is_loaded(self, tmp_path, capsys):
        (tmp_path / "data.jsonl").write_text('{"body": "a"}\n')
        options = ("--data", tmp_path / "data.jsonl", "--output", tmp_path / "out.jsonl")
        error = refused(capsys, "--prior", tmp_path / "none", *options)
        assert "line 1 has the columns ['body']" in error
