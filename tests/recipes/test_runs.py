"""The parts that recipes are made of: arguments, data, mixtures, comparison, samples, cards."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import random
import statistics
from types import SimpleNamespace

import pytest
import torch
from common import (
    RunReport,
    limit_tokens,
    load_held_out,
    load_rows,
    load_training,
    mix,
    pack_text,
)
from common.arguments import DataArguments, RunArguments, as_arguments, variant
from common.comparison import format_comparison, summarize
from conftest import make_llama, make_tokenizer
from datasets import Dataset, DatasetDict
from running import ON_CPU, make_files, options, run_recipe
from tokenizer_pairs import make
from trainees import dataset, documents, make_prior, make_trainee, make_trainer
from trl import SFTConfig

from toedit_collate import EditPolicy, Prior
from toedit_collate.config.arguments import EditArguments
from toedit_collate.config.card import add_to_card, editing_section
from toedit_collate.config.parse import given_values, parse
from toedit_collate.data import parse_source
from toedit_collate.data.demo_text import demo_rows
from toedit_collate.errors import UnusableError
from toedit_collate.policy import OPTIONS
from toedit_collate.training.generations import perplexity_of


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def _silent(no_bars):
    pass


class TestArguments:
    def test_each_field_of_a_policy_has_an_argument(self):
        arguments = {one.name for one in dataclasses.fields(EditArguments)}
        assert {f"edit_{name}" for name in OPTIONS} <= arguments

    @pytest.mark.parametrize(
        "policy",
        [
            EditPolicy(), EditPolicy.reference_code(), EditPolicy.reference_code("filtering"),
            EditPolicy(threshold=0.5, protected_token_ids=(3, 4), redraw="never", seed=7),
            EditPolicy(region="all", target="labels", protect="numbers,regex:a,b"),
        ],
    )  # fmt: skip
    def test_a_policy_survives_as_arguments(self, policy):
        again = EditArguments(**as_arguments(policy)).policy()
        assert again is not None
        assert again.record() == policy.record()

    def test_no_policy_survives_as_arguments(self):
        assert EditArguments(**as_arguments(None)).policy() is None

    def test_a_preset_can_be_changed(self):
        edit = EditArguments(edit_policy="reference_code", edit_top_k=8)
        assert edit.policy() == EditPolicy.reference_code(top_k=8)
        assert EditArguments(edit_policy="none", edit_top_k=8).policy() is None

    @pytest.mark.parametrize(
        "text",
        [
            "paper",
            "reference_code,threshold=0.9,exclude_original=true",
            "paper,protect=code,numbers,regex:a b,c,region=all",
        ],
    )
    def test_policies_in_a_word(self, text):
        policy = variant(text)
        assert policy.exclude_original == ("exclude" in text)

    def test_numbers_without_a_point(self):
        """YAML reads `1e-4` as text."""
        assert variant("paper,threshold=1e-4,region=below").threshold == 1e-4
        edit = EditArguments(edit_threshold="1e-4", edit_drop_below="1E-5")
        assert (edit.policy().threshold, edit.policy().drop_below) == (1e-4, 1e-5)
        assert edit.changes() == {"threshold": 1e-4, "drop_below": 1e-5}

    def test_numbers_without_a_point_in_a_config(self, tmp_path):
        text = (
            "output_dir: x\nuse_cpu: true\nbf16: false\nlearning_rate: 2e-4\nprior: p\n"
            "edit_threshold: 1e-4\n"
        )
        (tmp_path / "c.yaml").write_text(text + "compare_policies: ['paper,threshold=1e-3']\n")
        classes = (RunArguments, EditArguments, SFTConfig)
        run, edit, train = parse(
            *classes, args=["--config", str(tmp_path / "c.yaml"), "--edit_drop_below=1e-6"]
        )
        assert (edit.policy().threshold, edit.policy().drop_below) == (1e-4, 1e-6)
        assert train.learning_rate == 2e-4
        assert [policy.threshold for policy in run.variants(edit).values()] == [1e-4, 1e-3]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("paper,0.9", "got 'paper,0.9'"),
            ("paper,threshold=9", "threshold must lie"),
            ("papper", "policy must be one of"),
        ],
    )
    def test_policies_that_are_none(self, text, message):
        with pytest.raises(ValueError, match=message):
            variant(text)

    def test_the_baseline_comes_first(self):
        run = RunArguments(compare_baseline=True, compare_policies=["reference_code"])
        assert list(run.variants(EditArguments())) == ["none", "paper", "reference_code"]
        assert list(RunArguments().variants(EditArguments())) == ["paper"]
        assert not RunArguments(seeds=[1]).compares
        assert RunArguments(seeds=[1, 2]).compares

    @pytest.mark.parametrize(
        ("value", "when"),
        [("epoch", "epoch"), ("50", 50), (50, 50), (None, None), ("save", "save")],
    )
    def test_refresh(self, value, when):
        assert EditArguments(refresh=value).refresh_when == when

    def test_refresh_never_comes_after_no_steps(self):
        with pytest.raises(ValueError, match="positive number of steps, got 0"):
            EditArguments(refresh="0")

    @pytest.mark.parametrize(
        ("value", "path"),
        [(None, False), (False, False), ("false", False), (True, True), ("True", True), ("d", "d")],
    )
    def test_decision_cache(self, value, path):
        assert EditArguments(decision_cache=value).cache_path == path

    def test_given_values(self, tmp_path):
        (tmp_path / "c.yaml").write_text("a: 1\nheld_out: {x: y}\nsave_strategy: 'no'\n")
        words = ["--config", str(tmp_path / "c.yaml"), "--a=2", "--b-c", "x", "y", "--d"]
        assert given_values([*words, "--e", "no", "--f", '{"g": 1}']) == {
            "a": 2, "held_out": {"x": "y"}, "save_strategy": "no", "b_c": ["x", "y"], "d": True,
            "e": "no", "f": {"g": 1},
        }  # fmt: skip


class TestData:
    @pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
    def test_local_files(self, kind, tmp_path):
        rows = Dataset.from_dict({"text": ["one two", "three", "four"]})
        path = tmp_path / f"data.{kind}"
        {"jsonl": rows.to_json, "parquet": rows.to_parquet, "csv": rows.to_csv}[kind](path)
        assert load_rows(str(path))["text"][:] == rows["text"][:]
        assert load_rows(str(path), split="train[1:]")["text"][:] == ["three", "four"]
        streamed = load_rows(str(path), streaming=True)
        assert [row["text"] for row in streamed] == rows["text"][:]

    def test_a_saved_dataset(self, tmp_path):
        rows = Dataset.from_dict({"text": ["one two", "three", "four"]})
        rows.save_to_disk(tmp_path / "data.disk")
        assert load_rows(str(tmp_path / "data.disk"))["text"][:] == rows["text"][:]

    def test_folders(self, tmp_path):
        rows = Dataset.from_dict({"text": ["one", "two"]})
        rows.to_parquet(tmp_path / "many" / "part-0.parquet")
        assert load_rows(str(tmp_path / "many"))["text"][:] == ["one", "two"]
        DatasetDict(train=rows, test=rows.select([1])).save_to_disk(tmp_path / "splits")
        assert load_rows(str(tmp_path / "splits"), split="test")["text"][:] == ["two"]
        rows.save_to_disk(tmp_path / "whole")
        for name in ("splits", "whole"):
            assert load_rows(str(tmp_path / name), split="train[:1]")["text"][:] == ["one"]

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"text": None}, r"row 1 \(from 0\) has the columns \['text'\], none of"),
            ({"text": 5}, r"text of row 1 \(from 0\) is neither text nor"),
            ({"prompt": "a", "completion": None}, r"completion of row 1 \(from 0\) is missing"),
            ({"prompt": "a"}, r"completion of row 1 \(from 0\) is missing"),
        ],
    )
    def test_rows_that_are_no_text_are_named(self, tmp_path, bad, message, streaming):
        """Before SFTTrainer meets them: it then has no attribute 'endswith'."""
        good = {"text": "a"} if "text" in bad else {"prompt": "a", "completion": "b"}
        path = tmp_path / "x.jsonl"
        path.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
        data = DataArguments(dataset_name=str(path), dataset_streaming=streaming)
        with pytest.raises(UnusableError, match=rf"{path}: {message}"):
            list(load_training(data, make_tokenizer()))

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_part_of_a_file_by_its_name(self, tmp_path, streaming):
        (tmp_path / "x.csv").write_text("text\none\ntwo\n")
        name = f"{tmp_path}/x.csv:train[1:]"
        data = DataArguments(dataset_name=name, dataset_streaming=streaming)
        assert list(load_training(data, make_tokenizer())) == [{"text": "two"}]

    def test_conversations_are_one_of_trls_formats(self, tmp_path):
        row = {"conversations": [{"from": "user", "value": "a"}, {"from": "gpt", "value": "b"}]}
        (tmp_path / "x.jsonl").write_text(json.dumps(row))
        data = DataArguments(dataset_name=str(tmp_path / "x.jsonl"))
        assert list(load_training(data, make_tokenizer())) == [row]

    def test_held_out_text_is_checked(self, tmp_path):
        (tmp_path / "x.jsonl").write_text('{"text": "a b"}\n{"text": null}')
        data = DataArguments(held_out={"own": f"{tmp_path}/x.jsonl"})
        with pytest.raises(UnusableError, match=r"held_out: own: row 1 \(from 0\) has the columns"):
            load_held_out(data, make_tokenizer(), None)

    @pytest.mark.parametrize("name", ["gone.jsonl", "./gone", "nobody/nothing"])
    def test_what_is_not_there(self, name):
        with pytest.raises(UnusableError, match=name.replace(".", r"\.")):
            load_rows(name)

    @pytest.mark.parametrize(
        ("text", "parsed"),
        [
            ("hub/id", ("hub/id", None, "train")),
            ("hub/id:cfg", ("hub/id", "cfg", "train")),
            ("hub/id:cfg:test[:5%]", ("hub/id", "cfg", "test[:5%]")),
            ("a.txt:train[3:5]", ("a.txt", None, "train[3:5]")),
        ],
    )
    def test_sources(self, text, parsed):
        assert parse_source(text) == parsed

    @pytest.mark.parametrize("text", ["a:b:c:d", "a:b:c d"])
    def test_sources_that_are_none(self, text):
        with pytest.raises(UnusableError, match="hub_id:config:split"):
            parse_source(text)

    def test_columns_and_formats(self, files):
        tokenizer = make_tokenizer()
        renamed = DataArguments(dataset_name=files.other_docs, dataset_columns={"text": "body"})
        assert isinstance(load_training(renamed, tokenizer)[0]["text"], str)  # not the 3
        limited = DataArguments(dataset_name=files.docs, dataset_limit=3)
        assert len(load_training(limited, tokenizer)) == 3
        mapped = DataArguments(dataset_name=files.instruct, dataset_format="oss_instruct")
        with pytest.raises(UnusableError, match="problem, solution"):
            load_training(DataArguments(dataset_name=files.instruct), tokenizer)
        row = load_training(mapped, tokenizer)[0]
        assert row["completion"][0]["role"] == "assistant"
        with pytest.raises(UnusableError, match="dataset_format must be one of"):
            load_training(dataclasses.replace(mapped, dataset_format="osss"), tokenizer)
        with pytest.raises(UnusableError, match="dataset_name is missing"):
            load_training(DataArguments(), tokenizer)

    def test_a_format_goes_before_a_column_of_the_same_name(self, tmp_path):
        """A raw tree of oasst1 has `text`, which is a single message."""
        tree = [
            {"message_id": "a", "parent_id": None, "text": "Hi?", "role": "prompter", "rank": None},
            {"message_id": "b", "parent_id": "a", "text": "Hi!", "role": "assistant", "rank": 0},
        ]
        path = tmp_path / "tree.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in tree))
        data = DataArguments(dataset_name=str(path), dataset_format="oasst1")
        assert "text" not in load_training(data, make_tokenizer()).column_names

    def test_held_out_texts_are_cut_and_scored_whole(self, tmp_path):
        """Windows are scored each on its own, from their second token on."""
        tokenizer, model = make_tokenizer(), make_trainee()
        texts = ["the quick brown fox " * 9, "a slow turtle", "x", "xz"]
        (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
        data = DataArguments(held_out={"t": str(tmp_path / "t.jsonl")})
        sets = load_held_out(data, tokenizer, 16)
        windows = []
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            windows += [ids[i : i + 16] for i in range(0, len(ids), 16)]
        windows = [window for window in windows if len(window) > 1]
        assert min(map(len, windows)) == 2
        assert sets["t"]["input_ids"][:] == windows
        nll, count = 0.0, 0
        for window in windows:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([window])).logits[0].double()
            for i in range(1, len(window)):
                nll -= float(logits[i - 1].log_softmax(-1)[window[i]])
                count += 1
        for packing in (False, True):  # no leak across documents of a packed row
            trainer, _ = make_trainer(
                tmp_path, tokenizer, kind="SFTTrainer", model=model, max_length=16, packing=packing,
                train=dataset(documents(4)), trainer_arguments={"eval_dataset": sets},
            )  # fmt: skip
            found = perplexity_of(trainer, Prior(model), "t")
            assert found == pytest.approx(math.exp(nll / count), rel=1e-4)
        with pytest.raises(
            ValueError, match=r"dataset must be one of the Trainer's \['t'\].*got None"
        ):
            perplexity_of(trainer, Prior(model))

    def test_data_made_on_the_spot(self):
        train, test = (demo_rows("docs", split) for split in ("train", "test"))
        assert not {row["text"] for row in train} & {row["text"] for row in test}
        assert demo_rows("chat", "train")[0].keys() == {"prompt", "completion"}
        with pytest.raises(UnusableError, match="chat"):
            demo_rows("other", "train")


class TestMixing:
    def args(self, **more):
        return SFTConfig(
            output_dir="unused", use_cpu=True, bf16=False, max_length=32, report_to="none", **more
        )

    def rows(self, word: str, num: int = 300):
        rng = random.Random(word)
        return Dataset.from_list([{"text": f"{word} " * rng.randint(1, 60)} for _ in range(num)])

    def test_no_token_is_lost(self):
        tokenizer, rows = make_tokenizer(), self.rows("fox", 40)
        packed = pack_text(rows, tokenizer, self.args(packing_strategy="bfd_split"))
        wanted = sum(len(tokenizer(row["text"])["input_ids"]) + 1 for row in rows)
        assert sum(map(len, packed["input_ids"])) == wanted
        assert [sum(lengths) for lengths in packed["seq_lengths"]] == [
            len(ids) for ids in packed["input_ids"]
        ]
        assert max(map(len, packed["input_ids"])) == 32

    @pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
    @pytest.mark.parametrize("streaming", [False, True])
    def test_shares_are_of_tokens(self, fraction, streaming):
        """Though synthetic documents are longer: within four standard errors of a share of rows."""
        tokenizer = make_tokenizer()
        fox, dog = tokenizer(" fox")["input_ids"], tokenizer(" turtle")["input_ids"]
        human, synthetic = self.rows("fox"), self.rows("turtle " * 5)
        if streaming:
            human, synthetic = human.to_iterable_dataset(), synthetic.to_iterable_dataset()
        args = self.args(packing_strategy="wrapped")
        rows = list(mix(*(pack_text(r, tokenizer, args) for r in (human, synthetic)), fraction, 0))
        made = [row for row in rows if dog[0] in row["input_ids"] or dog[-1] in row["input_ids"]]
        share = sum(len(r["input_ids"]) for r in made) / sum(len(r["input_ids"]) for r in rows)
        assert fox != dog
        assert abs(share - fraction) <= 4 * math.sqrt(fraction * (1 - fraction) / len(rows)) + 1e-9
        assert len(rows) > 100

    @pytest.mark.parametrize("streaming", [False, True])
    def test_unique_tokens_are_the_same_in_each_epoch(self, streaming):
        tokenizer, args = make_tokenizer(), self.args(packing_strategy="wrapped")
        sources = [self.rows(word) for word in ("fox", "turtle")]
        sources = [rows.to_iterable_dataset() if streaming else rows for rows in sources]
        mixed = mix(*(pack_text(rows, tokenizer, args) for rows in sources), 0.5, 0)
        rows = limit_tokens(mixed, 700, args)
        epochs = []
        for epoch in range(3):
            if streaming:
                rows.set_epoch(epoch)
            epochs.append([tuple(row["input_ids"]) for row in rows])
        assert [len(epoch) for epoch in epochs] == [21, 21, 21]  # of 32 tokens
        assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
        assert (epochs[0] != epochs[1]) == streaming  # the Trainer shuffles what is no stream
        with pytest.raises(UnusableError, match=r"at least max_length \(32\), got 31"):
            limit_tokens(mixed, 31, args)


class TestGlobalBatchSize:
    def args(self, rows=24, deepspeed=None):
        return SimpleNamespace(
            per_device_train_batch_size=rows, gradient_accumulation_steps=1, deepspeed=deepspeed
        )

    @pytest.mark.parametrize(
        ("total", "processes", "rows"),
        [(768, 4, 24), (768, 8, 24), (768, 1, 24), (8, 8, 1), (8, 1, 8), (120, 4, 15)],
    )
    def test_a_step_has_as_many_rows_on_any_number_of_processes(self, total, processes, rows):
        args = self.args()
        for _ in range(2):  # a second time changes nothing
            RunArguments(global_batch_size=total).spread_batch(args, processes)
            assert args.per_device_train_batch_size == rows
            assert rows * args.gradient_accumulation_steps * processes == total

    def test_what_cannot_be_divided_is_refused(self):
        for total in (12, 4):
            with pytest.raises(UnusableError, match=rf"multiple of the 8 processes, got {total}"):
                RunArguments(global_batch_size=total).spread_batch(self.args(), 8)
        with pytest.raises(UnusableError, match="a file in `deepspeed`"):
            RunArguments(global_batch_size=8).spread_batch(self.args(deepspeed="x.json"), 8)
        both = RunArguments(global_batch_size=8)
        both.given = {"gradient_accumulation_steps": 2}
        with pytest.raises(UnusableError, match="leave one of them out"):
            both.spread_batch(self.args(), 8)
        args = self.args()
        RunArguments().spread_batch(args, 7)
        assert vars(args) == vars(self.args())

    @pytest.mark.parametrize("name", ["cpt", "self_edit"])
    def test_recipes_follow_it(self, files, tmp_path, name):
        words = {
            **ON_CPU, "model_name_or_path": files.model, "prior": files.model, "max_length": 64,
            "dataset_name": files.docs, "output_dir": tmp_path, "global_batch_size": 6,
            "per_device_train_batch_size": 4, "max_steps": 2,
        }  # fmt: skip
        words |= {"generations": 1} if name == "self_edit" else {}
        run_recipe(name, *options(**words))
        args = torch.load(next(tmp_path.rglob("training_args.bin")), weights_only=False)
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 6


class TestComparison:
    def reports(self):
        rng = random.Random(0)
        return [
            {
                "policy": policy, "seed": seed, "train": {"loss": rng.random()},
                "edit": {} if policy == "none" else {"selected_share": 0.1, "changed_share": 0.01},
                "held_out": {"a": 10 + rng.random()}, "tasks": {"t": {"acc": 0.5, "acc_stderr": 9}},
            }
            for seed in range(4)
            for policy in ("none", "paper")
        ]  # fmt: skip

    def test_against_the_obvious(self):
        reports = self.reports()
        plain, edited = summarize(reports, "none")
        a = [r["held_out"]["a"] for r in reports if r["policy"] == "none"]
        b = [r["held_out"]["a"] for r in reports if r["policy"] == "paper"]
        measure = edited["measures"]["perplexity a"]
        assert measure["mean"] == pytest.approx(statistics.mean(b))
        assert measure["standard_error"] == pytest.approx(statistics.stdev(b) / 2)
        differences = [y - x for x, y in zip(a, b, strict=True)]
        assert measure["difference"] == pytest.approx(statistics.mean(differences))
        assert measure["difference_error"] == pytest.approx(statistics.stdev(differences) / 2)
        assert plain["changed_share"] is None
        assert "t acc_stderr" not in edited["measures"]  # that is over questions

    def test_one_seed_has_no_error(self):
        rows = summarize(self.reports()[:2], "none")
        assert rows[1]["measures"]["train loss"]["standard_error"] is None
        table = format_comparison(rows)
        assert "±" not in table
        widths = {line.count("|") for line in table.splitlines()}
        assert len(widths) == 1

    def test_without_a_baseline(self):
        rows = summarize([r for r in self.reports() if r["policy"] == "paper"], "none")
        assert "difference" not in format_comparison(rows)
        assert "| paper | 4 | 10.00% | 1.0000% |" in format_comparison(rows)


def test_the_card_says_how_the_data_was_edited(tmp_path):
    """Also that of a prior with another tokenizer, and of a baseline."""
    tokenizer, other = make_tokenizer(), make("coarse")
    priors = {
        "plain": make_prior(tokenizer),
        "aligned": Prior(make_llama(3, vocab_size=len(other)), other).aligned_to(tokenizer),
    }
    for name, prior in priors.items():
        trainer, collator = make_trainer(
            tmp_path / name, tokenizer, kind="SFTTrainer", way="attach", prior=prior,
            policy=EditPolicy(threshold=0.02, exclude_original=True),
            train=dataset(documents(6)), max_length=32,
        )  # fmt: skip
        trainer.train()
        card = editing_section(collator)
        stats = collator.stats
        assert f"Of the {stats['scored']:,} tokens" in card
        assert f"{stats['changed']:,} changed" in card
        assert stats["changed"] > 0
        share = (
            f"{stats.get('aligned_share', 0):.1%} of the tokens begin where a token of the prior"
        )
        assert (share in card) == (name == "aligned")
    assert "this run is a baseline" in editing_section(None)


def test_a_policy_keeps_to_its_cell_of_the_comparison():
    row = {"policy": "paper,protect=regex:a|b", "seeds": [0], "measures": {}}
    table = format_comparison([{**row, "selected_share": 0.1, "changed_share": None}])
    assert table.splitlines()[-1] == r"| paper,protect=regex:a\|b | 1 | 10.00% | - |"


def test_what_is_pushed_says_how_it_was_edited(tmp_path, monkeypatch):
    """The hub is out of reach: what would be uploaded is looked at instead."""
    import transformers.trainer as module

    uploaded = {}

    class Hub:
        @staticmethod
        def upload_folder(*, folder_path, **kwargs):
            uploaded["card"] = (pathlib.Path(folder_path) / "README.md").read_text()

    monkeypatch.setattr(module, "hf_api", Hub, raising=False)
    # Of older ones, such as transformers 5.6.
    monkeypatch.setattr(module, "upload_folder", Hub.upload_folder, raising=False)
    tokenizer = make_tokenizer()
    trainer, collator = make_trainer(
        tmp_path, tokenizer, kind="SFTTrainer", way="attach", prior=make_prior(tokenizer),
        train=dataset(documents(4)), max_length=32,
    )  # fmt: skip
    add_to_card(trainer)
    trainer.train()
    trainer.hub_model_id = "someone/model"
    trainer.push_to_hub(dataset_name="d")
    assert uploaded["card"].count("## How the training data was edited") == 1
    assert f"{collator.stats['changed']:,} changed" in uploaded["card"]


def test_a_report_names_the_aligned_share_where_there_is_one():
    edit = {"scored": 70, "selected": 7, "selected_share": 0.1, "changed": 1, "changed_share": 0.01}
    plain = RunReport("paper", 0, "out", edit=edit)
    aligned = RunReport("paper", 0, "out", edit={**edit, "aligned_share": 0.7314})
    assert "aligned" not in plain.as_text()
    assert "aligned: 73.1% of the tokens begin where a token of the prior" in aligned.as_text()
