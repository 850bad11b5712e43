"""Resamples follow the distribution that the reference states."""

import itertools
import math

import numpy as np
import pytest
import reference
import torch
from scipy import stats

from toedit_collate import EditPolicy
from toedit_collate.head import projection
from toedit_collate.head.candidates import _most_probable, draw_tokens, surely_kept
from toedit_collate.head.logprob import Scores
from toedit_collate.head.predictions import Predictions
from toedit_collate.head.projection import Head
from toedit_collate.tokens.result import count_draws

V = 40
NUM_DRAWS = 20_000

POLICIES = {
    "paper": {},
    "k=1": {"top_k": 1, "region": "below"},
    "k=V": {"top_k": V},
    "hot": {"top_k": 64, "temperature": 1.5},
    "cold": {"top_k": 64, "temperature": 0.5},
    "top-p": {"sampler": "top_p", "top_p": 0.999},
    "top-p hot": {"sampler": "top_p", "top_p": 0.9, "temperature": 2.0},
    "full": {"sampler": "full"},
    "full hot": {"sampler": "full", "temperature": 3.0},
    "others, top-k": {"exclude_original": True},
    "others, k=1": {"exclude_original": True, "top_k": 1},
    "others, top-p": {"exclude_original": True, "sampler": "top_p", "top_p": 0.5},
    "others, full": {"exclude_original": True, "sampler": "full"},
}


def make_logits(observed_share, seed=0, V=V):
    """Logits whose id 7 has about that share."""
    logits = torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 1.5
    rest = logits[torch.arange(V) != 7].logsumexp(0)
    logits[7] = rest + math.log(observed_share / (1 - observed_share))
    return logits


def draws(logits, policy, uniforms, observed=7, forbidden=()):
    n = len(uniforms)
    forbidden = torch.tensor(forbidden, dtype=torch.int64)
    return draw_tokens(policy, forbidden, logits.repeat(n, 1), torch.full((n,), observed), uniforms)


class TestRejectionSampling:
    """What docs/paper.md says of statistical rejection sampling, with r = log P."""

    @pytest.mark.parametrize("beta", [1.0, 1.5])
    def test_accepted_tokens_follow_an_existing_sampler(self, beta):
        logits = make_logits(0.6)
        p = logits.double().softmax(-1).numpy()
        best = np.argsort(-p)[:8]
        rng = np.random.default_rng(0)
        for ids, chances, policy in (
            (best, np.full(8, 1 / 8), EditPolicy(temperature=beta)),
            (np.arange(V), np.full(V, 1 / V), EditPolicy(sampler="full", temperature=beta)),
            (np.arange(V), p, EditPolicy(sampler="full", temperature=beta / (1 + beta))),
        ):
            proposed = rng.choice(ids, 400_000, p=chances)
            kept = rng.random(len(proposed)) < (p[proposed] / p.max()) ** (1 / beta)
            counts = np.bincount(proposed[kept], minlength=V)
            means = reference.distribution(logits, 7, policy).numpy() * counts.sum()
            assert counts[means == 0].sum() == 0
            likely = means >= 5
            cells = [*counts[likely], counts[~likely].sum() + 1e-9]
            means = [*means[likely], means[~likely].sum() + 1e-9]
            assert stats.chisquare(cells, means).pvalue > 1e-4

    def test_the_chances_in_the_table(self):
        p, beta = np.array([0.99, 0.006, 0.003, 0.001]), 1.5
        a = (p / p.max()) ** (1 / beta)
        orders = list(itertools.permutations(range(4)))
        reached = [np.prod([1 - a[i] for i in o[: o.index(0)]]) for o in orders]  # the best one
        assert 1 - a[0] / a.sum() == pytest.approx(0.0604, abs=5e-5)
        assert 1 - (p * a)[0] / (p * a).sum() == pytest.approx(0.0003, abs=5e-5)
        assert 1 - np.mean(reached) == pytest.approx(0.0317, abs=5e-5)


@pytest.mark.parametrize("share", [0.993, 0.6, 0.02])
@pytest.mark.parametrize("name", POLICIES)
def test_draws_follow_the_distribution(name, share):
    policy = EditPolicy(**POLICIES[name])
    logits = make_logits(share)
    forbidden = (3, 11)
    uniforms = torch.rand(
        NUM_DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    counts = np.bincount(draws(logits, policy, uniforms, forbidden=forbidden).numpy(), minlength=V)
    expected = reference.distribution(logits, 7, policy, forbidden).numpy() * NUM_DRAWS
    assert counts[expected == 0].sum() == 0
    likely = expected >= 5  # what a chi-square test needs of a cell
    cells = [*counts[likely], counts[~likely].sum()]
    means = [*expected[likely], expected[~likely].sum()]
    if means[-1] == 0:
        cells, means = cells[:-1], means[:-1]
    if len(cells) > 1:
        assert stats.chisquare(cells, means).pvalue > 1e-4
    if policy.exclude_original:
        assert counts[7] == 0


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("observed", [7, 20])
@pytest.mark.parametrize("V", [40, 333])  # less than a chunk of ids; several, and a piece of one
def test_each_draw_is_the_references(V, name, observed):
    policy = EditPolicy(**POLICIES[name])
    logits = make_logits(0.7, seed=3, V=V)
    forbidden = (3, 11, V - 1)
    uniforms = torch.linspace(0, 1 - 1e-9, 101, dtype=torch.float64)
    probabilities = reference.distribution(logits, observed, policy, forbidden)
    expected = [reference.draw(probabilities, observed, float(u)) for u in uniforms]
    got = draws(logits, policy, uniforms, observed=observed, forbidden=forbidden)
    assert got.tolist() == expected
    # As many draws of one token.
    some = logits.unsqueeze(0).clone(), torch.tensor([observed]), uniforms.unsqueeze(0)
    assert draw_tokens(policy, torch.tensor(forbidden), *some)[0].tolist() == expected


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ties", [False, True])
def test_draws_from_all_ids_follow_the_softmax_at_each_position(temperature, dtype, ties):
    n, V, d = 20, 200, 4000
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(n, V, generator=generator) * 2).to(dtype)
    logits = logits.round() if ties else logits
    observed = torch.randint(5, V, (n,), generator=generator)
    uniforms = torch.rand(n, d, dtype=torch.float64, generator=generator)
    forbidden = torch.tensor([0, 3, 199])
    policy = EditPolicy(sampler="full", temperature=temperature)
    drawn = draw_tokens(policy, forbidden, logits.clone(), observed, uniforms)
    expected = logits.double().index_fill(1, forbidden, -math.inf).div(temperature).softmax(-1) * d
    for ids, means in zip(drawn, expected, strict=True):
        counts = torch.bincount(ids, minlength=V)
        assert counts[forbidden].sum() == 0
        likely = means >= 5  # what a chi-square test needs of a cell
        cells = [*counts[likely].tolist(), int(counts[~likely].sum())]
        wanted = [*means[likely].tolist(), float(means[~likely].sum())]
        assert stats.chisquare(cells, wanted).pvalue > 1e-5


def test_the_rows_of_a_block_do_not_change_a_draw(monkeypatch):
    """Small whole numbers multiply without rounding, so only the samplers could differ."""
    generator = torch.Generator().manual_seed(0)
    n, V = 50, 1000
    head = Head(torch.randint(-1, 2, (V, 16), generator=generator).bfloat16())
    states = torch.randint(-2, 3, (n, 16), generator=generator).bfloat16()
    tokens = torch.randint(0, V, (n,), generator=generator)
    uniforms = torch.rand(n, 8, dtype=torch.float64, generator=generator)
    predictions = Predictions(
        head=head,
        states=states,
        tokens=tokens,
        competitors=lambda *_: None,
        forbidden=lambda _: torch.tensor([1, 999]),
    )
    selected = torch.ones(n, dtype=torch.bool)
    scores = Scores(torch.zeros(n), selected, selected)
    for settings in POLICIES.values():
        policy = EditPolicy(**{**settings, "region": "all"})
        drawn = set()
        for block, piece in ((1, 1), (17, 5), (17, 17), (64, 64)):
            monkeypatch.setattr(projection, "MAX_BLOCK_BYTES", block * V * 2)
            monkeypatch.setattr(projection, "PIECE_ELEMENTS", piece * V)
            drawn.add(
                tuple(predictions.draw(policy, scores, selected, uniforms).flatten().tolist())
            )
        assert len(drawn) == 1
        first = predictions.draw(policy, scores, selected, uniforms[:, 0])
        assert first.tolist() == list(drawn.pop()[::8])


def test_draws_are_counted():
    drawn = torch.randint(0, 9, (30, 12), generator=torch.Generator().manual_seed(0))
    for row, counted in zip(drawn.tolist(), count_draws(drawn).tolist(), strict=True):
        filled = [pair for pair in counted if pair[1]]
        assert filled == [[i, row.count(i)] for i in sorted(set(row))]
        assert counted == filled + [[0, 0]] * (12 - len(filled))


def test_a_token_stays_where_nothing_else_may_be_drawn():
    others = torch.tensor([i for i in range(V) if i != 7])
    uniforms = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    for settings in POLICIES.values():
        logits = make_logits(0.3).repeat(3, 1)
        drawn = draw_tokens(EditPolicy(**settings), others, logits, torch.full((3,), 7), uniforms)
        assert drawn.tolist() == [7, 7, 7]


@pytest.mark.parametrize("sampler", [{"top_k": 4}, {"sampler": "top_p", "top_p": 0.5}])
def test_ties_are_settled_by_id(sampler):
    """bf16 logits tie often; which of them is a candidate must not depend on the kernel."""
    logits = torch.zeros(V)
    logits[7] = 1.0
    policy = EditPolicy(region="below", **sampler)
    uniforms = torch.rand(2000, dtype=torch.float64)
    got = set(draws(logits, policy, uniforms).tolist())
    expected = reference.distribution(logits, 7, policy)
    assert got == set(expected.nonzero().flatten().tolist())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5, 4.0])
@pytest.mark.parametrize(
    "sampler",
    [{"top_k": 8}, {"top_k": 2}, {"sampler": "top_p", "top_p": 0.97}, {"sampler": "full"}],
)
def test_lazy_resample_never_differs_from_the_full_draw(temperature, sampler):
    """What is surely kept is kept by the full draw, too; and it is most of what is kept."""
    policy = EditPolicy(region="below", temperature=temperature, **sampler)
    generator = torch.Generator().manual_seed(0)
    kept_early = kept = 0
    for seed, share in enumerate([0.2, 0.45, 0.51, 0.7, 0.95, 0.99, 0.9999]):
        logits = make_logits(share, seed)
        uniforms = torch.rand(500, dtype=torch.float64, generator=generator)
        logprob = logits.log_softmax(-1)[7].expand(500)
        most = policy.top_k if policy.sampler == "top_k" else V
        sure = surely_kept(uniforms, logprob, policy, num_candidates=most)
        same = draws(logits, policy, uniforms) == 7
        assert not (sure & ~same).any()
        kept_early += int(sure.sum())
        kept += int(same.sum())
    assert kept_early > 0.5 * kept


def test_nothing_is_surely_kept_among_others():
    policy = EditPolicy(exclude_original=True)
    zero = torch.zeros(3, dtype=torch.float64)
    assert not surely_kept(zero, torch.zeros(3), policy, num_candidates=8).any()


def test_uniform_at_the_very_end_of_the_scale_gives_a_candidate():
    logits = make_logits(0.3)
    last = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    for settings in POLICIES.values():
        policy = EditPolicy(**settings)
        token = int(draws(logits, policy, last))
        assert reference.distribution(logits, 7, policy)[token] > 0


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4, 64])
@pytest.mark.parametrize("steps", [1, 4, None])
def test_candidates_are_the_most_probable_by_logit_and_then_id(k, exclude, steps):
    """Row by row against a sort in Python: many ties, minus zero, ids that are forbidden."""
    generator = torch.Generator().manual_seed(k)
    policy = EditPolicy(top_k=k, exclude_original=exclude, threshold=0.4)
    for V in (2, 5, 64, 130, 700):
        logits = torch.randn(40, V, generator=generator) * 3
        if steps:
            logits = (logits * steps).round() / steps
        logits[torch.rand(logits.shape, generator=generator) < 0.1] = -math.inf
        logits[:, 0], logits[::2, 0] = 0.0, -0.0
        own = torch.randint(0, V, (40, 1), generator=generator)
        found = _most_probable(logits.clone(), own[:, 0], policy)
        for row, ids, values, observed in zip(
            logits.tolist(), found.ids, found.logits, own[:, 0].tolist(), strict=True
        ):
            order = sorted(range(V), key=lambda i, row=row: (-row[i], i))
            wanted = order[:k]
            if exclude:
                others = [i for i in order if i != observed]
                wanted = [i for i in wanted if i != observed] or others[:1]
            admitted = ids[values > -math.inf].tolist()
            assert admitted == sorted(i for i in wanted if row[i] > -math.inf)
            assert ids.tolist() == sorted(ids.tolist())
