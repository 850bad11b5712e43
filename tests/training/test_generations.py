"""self_edit(): each generation trains on what the model of the last one has edited."""

import math
import re

import pytest
import torch
from conftest import make_llama, make_tokenizer
from peft import PeftModel, get_peft_model
from trainees import Recorder, by_first_token, dataset, documents, lora, make_trainer
from transformers import AutoModelForCausalLM, TrainerCallback

from toedit_collate import EditPolicy, Journal, Prior, edit_tokens
from toedit_collate.training.generations import (
    GenerationReport,
    format_reports,
    held_out_perplexity,
    self_edit,
)

TEXTS, HELD_OUT = documents(12), documents(6, seed=3)
SOURCE = by_first_token(TEXTS)
POLICY = EditPolicy(threshold=0.02, exclude_original=True)
TOKENIZER = make_tokenizer()


class Killed(Exception):  # noqa: N818
    pass


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed

    def on_train_end(self, args, state, control, **kwargs):
        if self.step == "end":
            raise Killed


class Loop:
    """self_edit() on tiny models, in which each row is written down with its generation."""

    def __init__(self, folder, *, adapter=False, start="base", kill=None, one_folder=False):
        self.folder, self.adapter, self.start = folder, adapter, start
        self.kill = kill  # generation and step
        self.one_folder = one_folder
        self.rows = {}
        self.begun_with = {}

    def make_trainer(self, number, weights):
        self.begun_with[number] = None if weights is None else weights.name
        if self.adapter:
            torch.manual_seed(0)
            model = make_llama()
            settings = lora(target_modules="all-linear")
            if weights is None:
                model = get_peft_model(model, settings)
            else:
                model = PeftModel.from_pretrained(model, weights, is_trainable=True)
            base = model.get_base_model()
        else:
            source = make_llama() if weights is None else None
            base = model = source or AutoModelForCausalLM.from_pretrained(weights)
        killer = [KillAt(self.kill[1])] if self.kill and self.kill[0] == number else []
        trainer, _ = make_trainer(
            self.folder / ("all" if self.one_folder else f"training-{number}"), TOKENIZER,
            model=model, train=dataset(TEXTS), callbacks=killer, learning_rate=1e-2,
            num_train_epochs=2, save_strategy="steps", save_steps=4,
            trainer_arguments={"eval_dataset": dataset(HELD_OUT)},
        )  # fmt: skip
        recorder = Recorder(base)
        self.rows.setdefault(number, []).append(recorder)
        return trainer

    def __call__(self, generations=3, **settings):
        prior = (
            (lambda trainer: Prior.shared(trainer.model))
            if self.adapter
            else Prior(make_llama(), TOKENIZER)
        )
        return self_edit(
            self.make_trainer, prior, POLICY, generations=generations, output_dir=self.folder,
            start=self.start, **settings,
        )  # fmt: skip

    def model_of(self, number):
        folder = self.folder / f"generation-{number}"
        if self.adapter:
            return PeftModel.from_pretrained(make_llama(), folder)
        return AutoModelForCausalLM.from_pretrained(folder)


def perplexity_by_hand(model, texts):
    nll, count = 0.0, 0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([text])
            nll += float(model(input_ids=ids, labels=ids).loss) * (len(text) - 1)
            count += len(text) - 1
    return math.exp(nll / count)


@pytest.fixture(
    scope="module",
    params=[
        "full, previous",
        "lora, base",
        pytest.param("full, base", marks=pytest.mark.slow),
        pytest.param("lora, previous", marks=pytest.mark.slow),
    ],
)
def loop(request, tmp_path_factory):
    kind, start = request.param.split(", ")
    one = Loop(tmp_path_factory.mktemp("loop"), adapter=kind == "lora", start=start)
    one.reports = one()
    return one


class TestLoop:
    def test_each_generation_begins_where_it_should(self, loop):
        earlier = {2: "generation-1", 3: "generation-2"} if loop.start == "previous" else {}
        assert loop.begun_with == {1: None, 2: None, 3: None} | earlier

    def test_the_journal_replays_every_trained_row(self, loop):
        journal = Journal(loop.folder / "journal")
        assert journal.generations == [1, 2, 3]
        for number, recorders in loop.rows.items():
            rows = recorders[0].rows(training=True)
            assert len(rows) == 2 * len(TEXTS)
            moved = 0
            for row in rows:
                assert journal.replay(SOURCE[row[0]], number) == row
                moved += journal.replay(SOURCE[row[0]], number - 1) != row
            assert moved > 0

    def test_a_generation_edits_the_last_one_with_the_model_of_the_last_one(self, loop):
        journal = Journal(loop.folder / "journal")
        for number in (1, 2, 3):
            prior = Prior(make_llama() if number == 1 else loop.model_of(number - 1), TOKENIZER)
            for text in TEXTS:
                before = torch.tensor([journal.replay(text, number - 1)])
                edited = edit_tokens(prior, before, policy=POLICY, generation=number - 1)
                ours = torch.tensor([journal.replay(text, number)])
                assert torch.equal(ours != before, edited.changed)

    def test_reports(self, loop):
        journal = Journal(loop.folder / "journal").stats()
        assert [report.generation for report in loop.reports] == [0, 1, 2, 3]
        first, *others = loop.reports
        assert first.perplexity == pytest.approx(perplexity_by_hand(make_llama(), HELD_OUT), 1e-4)
        assert (first.folder, first.scored) == (None, 0)
        for report in others:
            of = journal[report.generation]
            for name in ("tokens", "scored", "selected", "changed", "dropped"):
                assert getattr(report, name) == of[name]
            assert report.tokens == sum(map(len, TEXTS))
            assert report.changed > 0
            by_hand = perplexity_by_hand(loop.model_of(report.generation), HELD_OUT)
            assert report.perplexity == pytest.approx(by_hand, rel=1e-4)
            assert report.perplexity != pytest.approx(first.perplexity, rel=1e-2)
            assert report.folder == str(loop.folder / f"generation-{report.generation}")

    def test_called_again_it_only_reports(self, loop):
        again = Loop(loop.folder, adapter=loop.adapter, start=loop.start)
        assert again() == loop.reports
        assert again.rows == {}

    @pytest.mark.parametrize(
        ("kill", "checkpoint", "one_folder"),
        [
            pytest.param((1, 3), 0, False, marks=pytest.mark.slow),
            ((2, 6), 4, True),
            pytest.param((2, 6), 4, False, marks=pytest.mark.slow),
            pytest.param((2, "end"), 12, True, marks=pytest.mark.slow),
            pytest.param((3, 12), 8, False, marks=pytest.mark.slow),
        ],
    )
    def test_after_a_kill_it_gives_the_same(self, loop, tmp_path, kill, checkpoint, one_folder):
        """It goes on from the last checkpoint of the generation that was killed."""
        settings = {"adapter": loop.adapter, "start": loop.start, "one_folder": one_folder}
        killed = Loop(tmp_path, kill=kill, **settings)
        with pytest.raises(Killed):
            killed()
        again = Loop(tmp_path, **settings)
        reports = again()
        assert set(again.rows) == set(range(kill[0], 4))
        assert [self.plain(r) for r in reports] == [self.plain(r) for r in loop.reports]
        ours, theirs = (Journal(f / "journal") for f in (tmp_path, loop.folder))
        assert ours.stats() == theirs.stats()
        for number in (1, 2, 3):
            for text in TEXTS:
                assert ours.replay(text, number) == theirs.replay(text, number)
        assert len(again.rows[kill[0]][0].rows(training=True)) == 2 * (12 - checkpoint)

    @staticmethod
    def plain(report):
        return {k: v for k, v in vars(report).items() if k != "folder"}


def test_format():
    reports = [
        GenerationReport(generation=0, perplexity=12.34567),
        GenerationReport(
            generation=1, tokens=1100, scored=1000, selected=125, changed=1, perplexity=11.0
        ),
        GenerationReport(generation=2, tokens=1100, scored=1000, selected=117),
    ]
    lines = format_reports(reports).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert cells == [
        ["generation", "scored", "selected", "changed", "held-out perplexity"],
        ["0", "-", "-", "-", "12.3457"],
        ["1", "1,000", "125 (12.50%)", "1 (0.1000%)", "11.0000"],
        ["2", "1,000", "117 (11.70%)", "0 (0.0000%)", "-"],
    ]


def test_perplexity_leaves_out_what_has_no_label():
    model = make_llama()
    ids = torch.tensor([HELD_OUT[0][:8], HELD_OUT[1][:8]])
    labels = ids.clone()
    labels[:, :4] = -100
    with torch.no_grad():
        expected = math.exp(float(model(input_ids=ids, labels=labels).loss))
    prior = Prior(model)
    assert held_out_perplexity(prior, [{"input_ids": ids, "labels": labels}]) == pytest.approx(
        expected, rel=1e-5
    )
    assert math.isnan(held_out_perplexity(prior, []))


class TestRefusals:
    @pytest.mark.parametrize("generations", [0, -1])
    def test_generations(self, tmp_path, generations):
        with pytest.raises(ValueError, match="must be a positive number, got"):
            Loop(tmp_path)(generations)

    def test_start(self, tmp_path):
        with pytest.raises(ValueError, match=r"start must be 'base' or 'previous', got 'first'"):
            Loop(tmp_path, start="first")()

    def test_refresh(self, tmp_path):
        with pytest.raises(TypeError, match="multiple values for keyword argument 'refresh'"):
            Loop(tmp_path)(refresh=2)

    def test_a_prior_that_was_swapped(self, tmp_path):
        prior = Prior(make_llama())
        prior.swap(make_llama(1).state_dict())
        with pytest.raises(ValueError, match="got one of generation 1; load it again"):
            self_edit(Loop(tmp_path).make_trainer, prior, generations=1, output_dir=tmp_path)


@pytest.mark.parametrize(
    ("start", "policy", "message"),
    [
        ("previous", POLICY, r"generation-0, .* start='base', but start is .*output_dir"),
        ("base", POLICY.replace(top_k=9), r"generation-0, .* top_k=8, but top_k is 9 now"),
    ],
)
def test_a_folder_of_another_loop_is_refused(tmp_path, start, policy, message):
    loop = Loop(tmp_path)
    loop(generations=1)
    with pytest.raises(ValueError, match=message):
        self_edit(
            loop.make_trainer, Prior(make_llama(), TOKENIZER), policy, generations=1,
            output_dir=tmp_path, start=start,
        )  # fmt: skip
