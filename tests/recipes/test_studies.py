"""Studies: the loss, the writer, one run, all runs; kills, other priors, and the files."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import TEXT, make_llama, make_tokenizer
from small_studies import arms_file, content_of, made, make_place, world_of
from studies import engine as runs
from studies.engine import make_study
from studies.loss import backward
from studies.settings import Rows, RunSettings, read_study
from studies.train import train
from studies.world import TokenRows, World
from studies.writing import answer_rows, complete_rows, write_rows

from toedit_collate import Prior, edit_tokens, soft_cross_entropy
from toedit_collate.config.policies import parse_policy
from toedit_collate.errors import UnusableError
from toedit_collate.tokens.result import count_draws

STUDIES = sorted((Path(__file__).parents[2] / "recipes/studies").glob("*.yaml"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("studies"))


@pytest.mark.parametrize(
    ("dtype", "close_loss", "close"),
    [(torch.bfloat16, 3e-3, 0.02), (torch.float32, 2e-6, 1e-5)],
    ids=["bf16", "fp32"],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kl", [0.0, 0.3, 1.0])
def test_loss_and_gradients_are_those_of_the_plain_formula(smoothing, kl, dtype, close_loss, close):
    torch.manual_seed(0)
    hidden = torch.randn(3, 200, 16, requires_grad=True)
    head = (torch.randn(50, 16) * 0.3).requires_grad_()
    labels = torch.randint(0, 50, (3, 200))
    labels[:, 5:9] = -100
    soft, soft_head = torch.randn(3, 200, 8).to(dtype), torch.randn(50, 8) * 0.3
    more = {"prior_hidden": soft, "prior_head": soft_head} if kl else {}
    got = backward(
        hidden, head, labels, label_smoothing=smoothing, kl_weight=kl, dtype=dtype, **more
    )
    gradients = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    known = labels[:, 1:] != -100
    logits = F.linear(hidden, head)[:, :-1][known]
    loss = F.cross_entropy(logits, labels[:, 1:][known], label_smoothing=smoothing)
    target = F.linear(soft.float(), soft_head)[:, :-1][known].log_softmax(-1)
    divergence = F.kl_div(logits.log_softmax(-1), target, reduction="batchmean", log_target=True)
    wanted = (1 - kl) * loss + kl * divergence
    wanted.backward()
    assert got == pytest.approx(wanted.item(), rel=close_loss)
    for mine, plain in zip(gradients, (hidden.grad, head.grad), strict=True):
        assert (mine - plain).abs().max() < close * plain.abs().max()


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_the_divergence_is_that_of_trl(beta):
    """So an arm with `kl_weight: 1` is TRL's GKDTrainer with lmbda=0 and temperature 1."""
    pytest.importorskip("trl", reason="trl is not installed here")
    from trl.experimental.gkd import GKDTrainer

    torch.manual_seed(0)
    hidden = torch.randn(2, 60, 16).bfloat16().float().requires_grad_()
    head = (torch.randn(50, 16) * 0.3).bfloat16().float().requires_grad_()
    labels = torch.randint(0, 50, (2, 60))
    labels[:, 5:9] = -100
    soft = torch.randn(2, 60, 8).bfloat16()
    soft_head = (torch.randn(50, 8) * 0.3).bfloat16().float()
    got = backward(
        hidden, head, labels, kl_weight=1.0, kl_beta=beta, prior_hidden=soft, prior_head=soft_head
    )
    gradients = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    wanted = GKDTrainer.generalized_jsd_loss(
        F.linear(hidden, head)[:, :-1], F.linear(soft.float(), soft_head)[:, :-1],
        labels=labels[:, 1:], beta=beta, temperature=1.0,
    )  # fmt: skip
    wanted.backward()
    assert got == pytest.approx(wanted.item(), rel=0.02)
    for mine, trl in zip(gradients, (hidden.grad, head.grad), strict=True):
        assert (mine - trl).abs().max() < 0.02 * trl.abs().max()


def test_labels_of_many_draws_have_the_loss_of_the_package():
    torch.manual_seed(0)
    hidden = torch.randn(2, 60, 16, requires_grad=True)
    head = (torch.randn(50, 16) * 0.3).requires_grad_()
    labels = torch.randint(0, 50, (2, 60))
    labels[:, 5:9] = -100
    draws = count_draws(torch.randint(0, 50, (120, 4))).view(2, 60, 4, 2)
    got = backward(hidden, head, labels, draws=draws, dtype=torch.float32)
    gradients = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    wanted = soft_cross_entropy(F.linear(hidden, head), draws, labels)
    wanted.backward()
    assert got == pytest.approx(wanted.item(), rel=2e-6)
    for mine, plain in zip(gradients, (hidden.grad, head.grad), strict=True):
        assert (mine - plain).abs().max() < 1e-5 * plain.abs().max()


@pytest.mark.parametrize("policy", ["distill num_draws=4", "distill num_draws=4 redraw=never"])
def test_many_draws_reach_the_loss(place, monkeypatch, policy):
    from studies import train as module

    world, seen = world_of(place), []

    def sees(hidden, head, labels, **kwargs):
        seen.append((labels, kwargs["draws"]))
        return backward(hidden, head, labels, **kwargs)

    monkeypatch.setattr(module, "backward", sees)
    train(world, RunSettings(policy=policy, epochs=2, batch_rows=6), 0)
    (labels, first), (_, second) = seen
    assert first.shape == (*labels.shape, 4, 2)
    assert (first[..., 1].sum(-1) == 4).all()
    # Each epoch has the rows in another order.
    first, second = (sorted(x.flatten(1).tolist()) for x in (first, second))
    assert (first == second) == ("never" in policy)
    with pytest.raises(ValueError, match="replay"):
        train(world, RunSettings(policy=policy, epochs=1, replay=0.5), 0)


def test_a_trainee_keeps_some_layers_of_the_prior(place):
    world = world_of(place, trainee=None, keep_layers=[1], prior_dtype="bfloat16")
    source, model = make_llama(3, initializer_range=0.1), world.new_trainee(0)
    assert world.prior.model.dtype == torch.bfloat16
    assert len(model.model.layers) == model.config.num_hidden_layers == 1
    kept, own = source.model.layers[1].state_dict(), model.model.layers[0].state_dict()
    assert all(torch.equal(kept[name], own[name]) for name in kept)
    train(world, RunSettings(epochs=1), 0)


def test_a_frozen_head_gets_no_gradient():
    hidden = torch.randn(1, 9, 8, requires_grad=True)
    head = torch.randn(20, 8)
    backward(hidden, head, torch.randint(0, 20, (1, 9)))
    assert hidden.grad.abs().sum() > 0
    assert head.grad is None


def test_written_rows_follow_the_model():
    model = make_llama(2, sharpness=4.0).eval()
    rows = write_rows(model, 3000, 3, 0, seed=5)
    assert rows.shape == (3000, 3)
    assert (rows[:, 0] == 0).all()
    with torch.no_grad():
        first = model(input_ids=torch.tensor([[0]])).logits[0, -1].softmax(-1)
        usual = int(first.argmax())
        second = model(input_ids=torch.tensor([[0, usual]])).logits[0, -1].softmax(-1)
    # bfloat16 moves a probability by a percent or so; 3,000 draws are this sure of a share.
    for p, drawn in ((first, rows[:, 1]), (second, rows[rows[:, 1] == usual][:, 2])):
        share = torch.bincount(drawn, minlength=len(p)) / len(drawn)
        assert len(drawn) > 300
        assert (share - p).abs().max() < 0.03 + 4 * (0.25 / len(drawn)) ** 0.5


def test_the_same_seed_gives_the_same_text():
    model = make_llama(2)
    first, again, other = (write_rows(model, 3, 20, 0, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def chats_of(place, **changes):
    """A world of conversations."""
    chats = Rows(file="c.jsonl", rows=(0, 6))
    return world_of(place, row_length=48, train=chats, validation=chats, test=chats, replay=None,
                    others={}, **changes)  # fmt: skip


@pytest.mark.parametrize("token", [9, 1], ids=["a token", "the end token"])
def test_rows_are_completed_behind_their_prompts(place, token):
    world, model = world_of(place), make_llama(7)
    model.lm_head = torch.nn.Linear(32, 320)
    with torch.no_grad():  # sure of one token, which does not end a row
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(100.0 * (torch.arange(320) == token))
    source = world.rows(world.settings.test)
    done = complete_rows(model, source, world.tokenizer)
    assert torch.equal(done.input_ids[:, :4], source.input_ids[:, :4])
    assert (done.labels[:, :4] == -100).all()
    assert torch.equal(done.labels[:, 4:], torch.full((3, 12), token))
    assert torch.equal(done.input_ids[:, 4:], done.labels[:, 4:])


def test_conversations_are_not_completed(place):
    world = chats_of(place)
    with pytest.raises(ValueError, match="on_policy needs rows of text"):
        complete_rows(make_llama(7), world.rows(world.settings.test), world.tokenizer)


def test_sampled_rows_differ_and_follow_the_seed(place):
    world, model = world_of(place), make_llama(7, sharpness=1.0)
    source = world.rows(world.settings.test)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(complete_rows(model, source, world.tokenizer).input_ids)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_on_policy_steps_learn_from_the_prior_on_what_the_trainee_wrote(place, monkeypatch, share):
    from studies import train as module

    world, steps = world_of(place), []
    own, true = [], module.complete_rows

    def completes(model, rows, *args, **kwargs):
        own.append((rows, true(model, rows, *args, **kwargs)))
        return own[-1][1]

    def sees(hidden, head, labels, **kwargs):
        steps.append((labels, kwargs["prior_hidden"]))
        return backward(hidden, head, labels, **kwargs)

    monkeypatch.setattr(module, "complete_rows", completes)
    monkeypatch.setattr(module, "backward", sees)
    settings = RunSettings(kl_weight=1.0, on_policy=share, epochs=6, batch_rows=2)
    model, _ = train(world, settings, 3)
    assert len(steps) == 18
    assert len(own) in {0.0: (0,), 0.5: range(4, 15), 1.0: (18,)}[share]
    for labels, states in steps:
        written = [done.input_ids for _, done in own if torch.equal(done.labels, labels)]
        assert bool(written) == bool((labels == -100).any())  # the given text has labels throughout
        ids = written[0] if written else labels
        with torch.no_grad():
            expected = world.prior.model.base_model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(states.float(), expected, rtol=0.05, atol=0.1)
    for source, done in own:
        assert torch.equal(source.input_ids[:, :4], done.input_ids[:, :4])
        assert not torch.equal(source.input_ids, done.input_ids)
    again, _ = train(world, settings, 3)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "settings",
    [{"on_policy": 1.5, "kl_weight": 1.0}, {"on_policy": 0.5}, {"on_policy": 0.5, "kl_weight": 0.5},
     {"on_policy": 0.5, "kl_weight": 1.0, "policy": "paper"},
     {"on_policy": 0.5, "kl_weight": 1.0, "replay": 0.5}],
)  # fmt: skip
def test_on_policy_goes_with_the_prior_alone(settings):
    with pytest.raises(ValueError, match="on_policy="):
        RunSettings(**settings)


def test_a_run_is_its_seed(place):
    world = world_of(place)
    settings = RunSettings(policy="threshold=0.01", epochs=2, batch_rows=2, replay=0.5)
    (one, first), (two, second) = (train(world, settings, 4) for _ in range(2))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first["train_loss"] == second["train_loss"]
    assert first["edit"]["changed"] > 0
    other, _ = train(world, settings, 5)
    assert not torch.equal(other.lm_head.weight, one.lm_head.weight)


def test_the_trainee_may_have_another_tokenizer_than_the_prior(place):
    folder = place / "trainee"
    tokenizer = make_tokenizer().train_new_from_iterator([TEXT], 275)  # with fewer merges
    tokenizer.save_pretrained(folder)
    make_llama(5, vocab_size=len(tokenizer)).save_pretrained(folder)
    settings = world_of(place, trainee=None).settings
    world = World(settings, place, str(place / "prior"), trainee=str(folder))
    model, found = train(world, RunSettings(policy="region=all target=labels", epochs=1), 0)
    assert model.config.vocab_size == len(world.tokenizer)
    assert 0 < found["edit"]["changed"] <= found["edit"]["selected"]
    with pytest.raises(ValueError, match="kl_weight and on_policy need a prior with the trainee's"):
        train(world, RunSettings(kl_weight=1.0), 0)


def test_an_edit_that_changes_nothing_leaves_the_run_as_it_was(place):
    world = world_of(place)
    plain, _ = train(world, RunSettings(epochs=2, batch_rows=2), 0)
    idle, found = train(world, RunSettings(epochs=2, batch_rows=2, policy="threshold=0.9999999"), 0)
    assert found["edit"]["changed"] == 0
    assert found["edit"]["scored"] > 0
    for a, b in zip(plain.parameters(), idle.parameters(), strict=True):
        assert torch.equal(a, b)


def seen_batches(world, settings, monkeypatch):
    """The (ids, labels) of each step."""
    from studies import train as module

    seen, batch = [], module._batch
    monkeypatch.setattr(module, "_batch", lambda *a: seen.append((a[2], batch(*a))) or seen[-1][1])
    train(world, settings, 0)
    return [(places, (ids, labels)) for places, (ids, labels, _) in seen]


def test_rows_that_are_replayed_are_not_edited(place, monkeypatch):
    world = world_of(place)
    settings = RunSettings(policy="region=all", epochs=3, batch_rows=4, replay=1.0)
    own, extra = world.rows(world.settings.train), world.rows(world.settings.replay)
    kinds = set()
    for places, (ids, labels) in seen_batches(world, settings, monkeypatch):
        for row, target, where in zip(ids, labels, places, strict=True):
            is_own = where < len(own)
            source = own.input_ids[where] if is_own else extra.input_ids[where - len(own)]
            kinds.add((is_own, torch.equal(row, source)))
            assert torch.equal(row, target)
    assert kinds == {(True, False), (False, True)}


def test_conversations_are_padded_and_only_answers_are_edited(place, monkeypatch):
    world = chats_of(place)
    source = world.rows(world.settings.train)
    assert source.is_padded
    assert (source.labels == -100).any()
    assert (source.labels != -100).any()
    settings = RunSettings(policy="region=all", epochs=1, batch_rows=6, lora_rank=2)
    ((places, (ids, labels)),) = seen_batches(world, settings, monkeypatch)
    changed = ids != source.input_ids[places]
    assert changed.any()
    assert not changed[labels == -100].any()


def test_padding_may_be_the_end_token_of_a_turn():
    """SmolLM2 pads with its end token: the mask has no hole where a turn ends."""
    ids = torch.tensor([[5, 9, 6, 7, 9, 9, 9], [5, 9, 6, 9, 8, 7, 9]])
    labels = torch.tensor([[-100, -100, 6, 7, 9, -100, -100], [-100, -100, -100, 9, 8, 7, 9]])
    mask = TokenRows(ids, labels, is_padded=True).attention_mask
    assert mask.tolist() == [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]]


def test_policies_may_remove_tokens(place, monkeypatch):
    world = chats_of(place)
    source = world.rows(world.settings.train)
    settings = RunSettings(policy="region=none drop_below=0.5", epochs=1, batch_rows=6)
    ((_, (ids, labels)),) = seen_batches(world, settings, monkeypatch)
    assert ids.shape == labels.shape == source.input_ids.shape
    known = labels != -100
    assert 0 < known.sum() < (source.labels != -100).sum()
    assert torch.equal(ids[known], labels[known])


def answers(model, rows, seed=1):
    return answer_rows(model, rows, make_tokenizer(), seed)


def test_answers_keep_the_prompt_and_fill_the_row():
    ids = torch.full((3, 12), 0)
    labels = torch.full((3, 12), -100)
    for row, (start, stop) in enumerate([(2, 6), (7, 12), (4, 5)]):
        ids[row, :stop] = torch.arange(10, 10 + stop)
        labels[row, start:stop] = ids[row, start:stop]
    rows = TokenRows(ids, labels, is_padded=True)
    model = make_llama(3)
    got = answers(model, rows)
    end = make_tokenizer().eos_token_id
    for row, start in enumerate([2, 7, 4]):
        assert torch.equal(got.input_ids[row, :start], ids[row, :start])
        assert (got.labels[row, :start] == -100).all()
        written = got.labels[row][got.labels[row] != -100]
        assert torch.equal(written, got.input_ids[row, start : start + len(written)])
        assert len(written) == 12 - start or end in written.tolist()
    assert torch.equal(answers(model, rows).labels, got.labels)
    assert not torch.equal(answers(model, rows, seed=2).labels, got.labels)


def test_answers_end_with_the_end_token_and_what_followed_it(monkeypatch):
    """A writer that always ends: each answer is the end token and the old answer's tail."""
    end = make_tokenizer().eos_token_id
    model = make_llama(3)
    ids = torch.tensor([[10, 11, 12, end, 13, 0], [10, 12, end, 14, 15, 0], [10, 12, 13, 0, 0, 0]])
    labels = torch.where(torch.arange(6) < torch.tensor([[2], [1], [1]]), -100, ids)
    labels[:, 5] = -100
    labels[2, 3:] = -100
    monkeypatch.setattr(
        "studies.writing._sample",
        lambda model, prompts, *_: torch.cat([prompts, torch.tensor([[end, 7]] * 3)], 1),
    )
    got = answers(model, TokenRows(ids, labels, is_padded=True)).labels
    assert [row[row != -100].tolist() for row in got] == [[end, 13], [end, 14, 15], [end]]


def test_answers_are_drawn_from_the_prompt_alone():
    """Prompts of two lengths in one batch, padded at the left, each get the model's shares."""
    torch.manual_seed(0)
    model = make_llama(3, vocab_size=8, initializer_range=0.5)
    prompts = [[3, 4], [5, 6, 7, 3, 4]]
    ids = torch.full((4000, 6), 0)
    labels = torch.full((4000, 6), -100)
    for row in range(4000):
        prompt = prompts[row % 2]
        ids[row, : len(prompt)] = torch.tensor(prompt)
        ids[row, len(prompt)] = labels[row, len(prompt)] = 1
    tokenizer = type("Ends", (), {"pad_token_id": 0, "eos_token_id": 2})
    got = answer_rows(model, TokenRows(ids, labels, is_padded=True), tokenizer, 5)
    for kind, prompt in enumerate(prompts):
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([prompt])).logits[0, -1].float().softmax(-1)
        first = got.input_ids[kind::2, len(prompt)]
        shares = torch.bincount(first, minlength=8) / 2000
        assert (shares - wanted).abs().max() < 0.05  # 4 standard errors of 2,000 draws: 0.045


def test_dropout_acts_in_training_only(place):
    world = world_of(place)
    plain, _ = train(world, RunSettings(epochs=1), 0)
    dropped, _ = train(world, RunSettings(epochs=1, dropout=0.5), 0)
    assert not torch.equal(plain.lm_head.weight, dropped.lm_head.weight)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(dropped(input_ids=ids).logits, dropped(input_ids=ids).logits)


@pytest.fixture
def no_figures(monkeypatch):
    """To draw takes longer than these studies."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(runs, "save_figure", lambda *args: None)


def test_a_study_keeps_the_best_trial_and_goes_on_after_a_kill(
    place, tmp_path, monkeypatch, no_figures
):
    path = arms_file(place)
    whole = made(path, place, tmp_path / "whole")
    assert "none: epochs=2, learning_rate=0.01" in whole
    calls, true = [], runs.train

    def dies(*args, **kwargs):
        calls.append(args[2])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return true(*args, **kwargs)

    monkeypatch.setattr(runs, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        made(path, place, tmp_path / "killed")
    finished = len(list((tmp_path / "killed/runs").glob("*/*.json")))
    assert finished == 3
    again = made(path, place, tmp_path / "killed")
    assert len(calls) - 4 == 8 - finished  # two trials, and three arms with two seeds
    drop = "seconds"
    one, two = (
        json.loads((tmp_path / name / "arms.json").read_text())["rows"]
        for name in ("whole", "killed")
    )
    for row in (*one, *two):
        row["measures"].pop(drop)
    assert one == two
    assert again == whole
    calls.clear()
    made(path, place, tmp_path / "killed")
    assert not calls


def test_runs_of_another_prior_are_not_taken(place, tmp_path, no_figures):
    path = arms_file(place, "priors", arms={"none": {}}, seeds=[0])
    made(path, place, tmp_path)
    other = tmp_path / "other"
    make_llama(4).save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    with pytest.raises(UnusableError, match="made with another prior"):
        make_study(read_study(path), place, str(other), tmp_path)


def test_generations(place, tmp_path, monkeypatch, no_figures):
    path = content_of(
        "generations", place, generations=3, policies={"edited": "region=all"},
        fractions=[0.0, 0.5, 1.0],
    )  # fmt: skip
    from studies import collapse

    calls, true = [], collapse.train

    def watched(world, settings, seed, *, rows):
        if len(calls) == 5:
            calls.append(None)
            raise KeyboardInterrupt
        calls.append(rows.input_ids)
        return true(world, settings, seed, rows=rows)

    monkeypatch.setattr(collapse, "train", watched)
    with pytest.raises(KeyboardInterrupt):
        made(path, place, tmp_path)
    table = made(path, place, tmp_path)
    per_seed = 1 + 3 + 2 * 2 + 2
    assert len(calls) == 2 * per_seed + 1
    assert table.count("| replaced |") == 2
    assert "| mixture 50% | 1 |" in table
    real = world_of(place).rows(Rows(file="a.jsonl", rows=(0, 6))).input_ids
    (folder,) = (tmp_path / "runs").glob("seed-0-*")
    found = {p.stem: json.loads(p.read_text()) for p in folder.glob("*.json")}
    assert found["real-0"]["differs_from_real"] == 0
    assert found["replaced-1"]["differs_from_real"] > 0.5
    rows = sorted(map(tuple, calls[2].tolist()))  # the half and half mixture
    assert len([row for row in rows if row in set(map(tuple, real.tolist()))]) >= 3
    assert 0 < found["edited-1"]["differs_from_real"] <= found["edited-2"]["differs_from_real"]


def test_generations_edit_what_the_last_one_edited(place, tmp_path, no_figures):
    """The rows of generation 2 are those of generation 1, edited by its model."""
    from studies.collapse import Chain

    path = content_of("chain", place, generations=3, policies={"edited": "region=all"}, seeds=[0])
    study = read_study(path)
    chain = Chain(study, world_of(place), 0, tmp_path)
    model = make_llama(9)
    real = chain.real.input_ids
    rows = chain.edit(model, chain.real, "region=all", 2)
    wanted = edit_tokens(
        Prior(model, make_tokenizer()), real, policy=parse_policy("region=all"), generation=2
    )
    assert torch.equal(rows.input_ids, wanted.input_ids)
    made(path, place, tmp_path)
    (folder,) = (tmp_path / "runs").glob("seed-0-*")
    first, second = (
        one.input_ids
        for one in (chain.rows_after("real", 0, "edited"), chain.rows_after("edited", 1))
    )
    assert folder == chain.folder
    assert not torch.equal(first, second)
    changed = [
        json.loads((folder / f"{name}.json").read_text())["changed"]
        for name in ("real-0", "edited-1", "edited-2")
    ]
    shares = [(a != b).double().mean().item() for a, b in ((real, first), (first, second))]
    assert changed == [None, *shares]
    assert shares[0] != shares[1]


def test_an_unknown_writer_is_refused(place):
    path = content_of("writers", place, generations=3, writers=["replace"])
    with pytest.raises(UnusableError, match="writers may be replaced and accumulated, got replace"):
        read_study(path)


def test_generations_of_conversations_keep_the_prompts(place, tmp_path, no_figures):
    path = content_of(
        "answers", place, generations=3, writers=["replaced"], policies={"edited": "region=all"},
        seeds=[0],
    )  # fmt: skip
    content = yaml.safe_load(path.read_text())
    content["world"] |= {
        "train": {"file": "c.jsonl", "rows": [0, 4]},
        "validation": {"file": "c.jsonl", "rows": [4, 5]},
        "test": {"file": "c.jsonl", "rows": [5, 6]},
        "row_length": 32,
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    table = made(path, place, tmp_path)
    assert table.count("| replaced |") == 2
    assert "accumulated" not in table
    from studies.collapse import Chain

    study = read_study(path)
    world = World(study.world, place, str(place / "prior"))
    chain = Chain(study, world, 0, tmp_path)
    prompt = chain.real.labels == -100
    prompt &= chain.real.attention_mask.bool()
    assert prompt.any()
    for arm, generation, name in (("real", 0, ""), ("replaced", 1, ""), ("edited", 1, "edited")):
        rows = chain.rows_after(arm, generation, name)
        assert torch.equal(rows.input_ids[prompt], chain.real.input_ids[prompt])
        assert (rows.labels[prompt] == -100).all()
        assert not torch.equal(rows.labels, chain.real.labels)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_can_be_read(path):
    study = read_study(path)
    assert study.question
    assert study.counts_as_yes
    text = path.read_text()
    assert "# Preregistered" in text
    used = study.world
    same = [used.validation, used.test]
    for one in same:  # never what was trained on
        if one.file == used.train.file:
            assert one.rows[0] >= used.train.rows[1] or one.rows[1] <= used.train.rows[0]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_has_a_size_for_a_gpu(path):
    sizes = yaml.safe_load(path.read_text())["sizes"]
    small, large = read_study(path), read_study(path, "gpu")
    assert large.name == f"{small.name}-gpu"
    assert len(large.seeds) > len(small.seeds)
    for size in sizes:
        one = read_study(path, size)
        assert one.question == small.question
        world = one.world
        for held_out in (world.validation, world.test):
            apart = held_out.rows[0] >= world.train.rows[1]
            assert apart or held_out.file != world.train.file


def test_a_size_changes_what_it_names(place):
    path = arms_file(
        place, "sized", arms={"none": {}, "all": {"policy": "region=all"}},
        sizes={"more": {"run": {"epochs": 5}, "world": {"train": {"rows": [0, 8]}}, "seeds": [3]}},
    )  # fmt: skip
    plain, more = read_study(path), read_study(path, "more")
    assert (plain.world.train.rows, more.world.train.rows) == ((0, 6), (0, 8))
    assert more.world.train.file == plain.world.train.file
    assert [trials[0].epochs for trials in more.arms.values()] == [5, 5]
    assert more.arms["none"][0].batch_rows == plain.arms["none"][0].batch_rows
    assert (more.seeds, more.name) == ([3], "sized-more")
    with pytest.raises(UnusableError, match="did you mean more"):
        read_study(path, "mor")


def test_runs_of_tokens_that_were_made_in_another_way_are_not_taken(place, tmp_path):
    """The same file in other rows is something else than the runs there were made with."""
    world_of(place).check_output(tmp_path)
    world_of(place).check_output(tmp_path)
    again = world_of(place)
    rows = again.rows(again.settings.train)
    rows.input_ids[0, 0] += 1
    with pytest.raises(UnusableError, match=r"made with another a\.jsonl in rows of 16 tokens"):
        again.check_output(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {"none": {"policy": "paper", "epoch": 3}}}, "did you mean epochs"),
        ({"worlds": 3}, "did you mean world"),
        ({"run": {"learning_rat": 3}}, "did you mean learning_rate"),
    ],
)
def test_a_mistake_in_a_study_is_named(place, change, message):
    with pytest.raises(UnusableError, match=message):
        read_study(arms_file(place, "wrong", **change))


def test_documents_of_text_end_once(place):
    """As SFTTrainer and the recipes end them: by one end token each, whole rows of them."""
    rows = world_of(place).rows(Rows(file="a.jsonl", rows=(0, 12))).input_ids.flatten().tolist()
    tokenizer = make_tokenizer()
    one = [*tokenizer(TEXT).input_ids, tokenizer.eos_token_id]
    assert rows == (one * 12)[: len(rows)]


def test_a_file_that_is_too_short_is_named(place, tmp_path):
    world = world_of(place, test=Rows(file="b.jsonl", rows=(0, 10_000)))
    with pytest.raises(UnusableError, match=r"b\.jsonl: rows 0 to 10000 are wanted"):
        world.rows(world.settings.test)


def test_the_script_runs_a_study(place, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    path = arms_file(place, "script", arms={"none": {}, "P >= 0.01": {"policy": "threshold=0.01"}})
    words = ["run.py", "--study", path, "--prior", place / "prior", "--data", place]
    monkeypatch.setattr(sys, "argv", [str(w) for w in (*words, "--output", tmp_path)])
    runpy.run_path(str(STUDIES[0].parent / "run.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.startswith("Is it so?")
    assert "| P >= 0.01 | " in printed
    assert (tmp_path / "script.md").read_text().strip() in printed
    assert {path.suffix for path in tmp_path.glob("script.*")} == {".md", ".json", ".png", ".svg"}
