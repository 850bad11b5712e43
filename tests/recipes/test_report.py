"""The report's figures against slow counts; its folder."""

import json
import math

import numpy as np
import pytest
import torch
from common.ngrams import NGrams, bucket_of, collision_index, entropy
from conftest import TEXT, likely_ids, make_llama, make_tokenizer
from paper import measure, report
from paper.compare import coverage, warnings_of
from paper.draw import embedding_map
from paper.measure import SetSettings, measure_set
from paper.report import write_report
from paper.whatif import Setting, WhatIf
from reference import distribution, document_logits

from toedit_collate import Prior
from toedit_collate.inspection.kinds import Reader


@pytest.fixture(scope="module")
def prior():
    return Prior(make_llama(), make_tokenizer())


@pytest.fixture(scope="module")
def rows():
    ids = likely_ids(make_llama(), 10, 30, seed=5)
    return [{"input_ids": one[: 12 + 2 * i].tolist()} for i, one in enumerate(ids)]


@pytest.fixture(scope="module")
def measured(prior, rows):
    return measure_set(prior, rows, SetSettings(batch_tokens=60), name="some")


def chances(prior, rows):
    """P of all tokens with one, document by document, in float64."""
    found = []
    for row in rows:
        ids = row["input_ids"]
        p = document_logits(prior.model, ids).softmax(-1)
        found.append([float(p[i - 1, ids[i]]) for i in range(1, len(ids))])
    return found


def test_probabilities_and_perplexities(prior, rows, measured):
    every = chances(prior, rows)
    flat = np.concatenate(every)
    assert measured.num_documents == 10
    assert measured.probabilities.total == len(flat)
    assert measured.deciles.tolist() == np.histogram(flat, np.linspace(0, 1, 11))[0].tolist()
    assert measured.share_from(0.99) == pytest.approx((flat >= 0.99).mean())
    assert measured.probabilities.perplexity == pytest.approx(
        math.exp(-np.log(flat).mean()), rel=1e-4
    )
    assert max(map(len, every)) < 30  # all are short: then all count
    expected = sorted(-np.log(one).mean() for one in every)
    assert sorted(measured.log_perplexity) == pytest.approx(expected, rel=1e-4)


def test_what_settings_would_change(prior, rows):
    """With every position looked at, the estimates are the exact expectations."""
    rows = rows[:2]  # the reference is slow
    seen = measure_set(prior, rows, SetSettings(batch_tokens=20))
    results = {one["setting"]: one for one in seen.whatif.results()}
    exact = {name: [] for name in results}
    kl = {name: [] for name in results}
    settings = {one.name: one.policy for one in seen.whatif.settings}
    editable = 0
    forbidden = {*prior.special_ids, *range(len(prior.tokenizer), prior.vocab_size)}
    for row in rows:
        ids = row["input_ids"]
        logits = document_logits(prior.model, ids)
        for i in range(1, len(ids)):
            editable += 1
            for name, policy in settings.items():
                p = logits[i - 1].softmax(-1)
                inside = p >= policy.threshold if policy.region == "above" else (
                    p <= policy.threshold
                )  # fmt: skip
                allowed = torch.ones_like(inside)
                allowed[list(range(len(prior.tokenizer), prior.vocab_size))] = False
                q = distribution(logits[i - 1], ids[i], policy, forbidden)
                exact[name].append(float(1 - q[ids[i]]) if inside[ids[i]] else 0.0)
                region = inside & allowed
                edited = torch.where(region, 0.0, p * allowed) + (p * region).sum() * q
                some = edited > 0
                kl[name].append(float((edited[some] * (edited[some] / p[some]).log()).sum()))
    assert editable == seen.whatif.tokens.sum()
    for name, one in results.items():
        error = 5 * one["changed_share_error"] + 1e-5
        assert one["changed_share"] == pytest.approx(np.mean(exact[name]), abs=error), name
        assert one["kl"] == pytest.approx(np.mean(kl[name]), abs=5 * one["kl_error"] + 1e-4), name
    assert results["sampler top_p"]["changed_share"] == 0
    assert results["P <= 0.1"]["changed_share"] > results["P >= 0.99"]["changed_share"]


def test_a_threshold_between_the_strata_is_refused():
    from toedit_collate import EditPolicy

    with pytest.raises(ValueError, match=r"threshold of x must be one of .* got 0.3"):
        WhatIf([Setting("t", "x", EditPolicy(threshold=0.3))])


def test_ngrams_are_counted_by_hand():
    counts = NGrams()
    documents = [[5, 6, 5, 6, 7], [5, 6], [8]]
    for ids in documents:
        counts.add(np.array(ids))
    assert counts.top_bigrams(2) == [((5, 6), 3), ((6, 5), 1)]
    assert counts.top_share(1) == pytest.approx(3 / 5)
    assert counts.counts[1].sum() == 8
    buckets = np.bincount(bucket_of(np.array([5, 6, 5, 6, 7, 5, 6, 8])), minlength=10_000)
    assert (counts.counts[1].sum(0) == buckets).all()


def test_concentration_has_its_interval_and_does_not_grow_with_the_set():
    rng = np.random.default_rng(0)

    def counted(documents, p):
        counts = NGrams()
        for _ in range(documents):
            counts.add(rng.choice(len(p), 50, p=p))
        return counts.concentration(1)

    p = np.arange(1, 201) / np.arange(1, 201).sum()
    true = 10_000 * float((p**2).sum())  # ids in different buckets, nearly
    small, large = counted(100, p), counted(1000, p)
    assert small[1] < true * 1.05
    assert small[2] > true * 0.95
    assert large[0] == pytest.approx(small[0], rel=0.1)
    assert large[2] - large[1] < small[2] - small[1]


def test_coverage_and_warnings(prior):
    assert coverage(np.array([1.0, 2, 3, 4]), np.array([1.5, 3.5])) == 0.5
    varied = [{"input_ids": one.tolist()} for one in likely_ids(make_llama(), 40, 40, seed=1)]
    same = [{"input_ids": [7, 8, 9, 10] * 10}] * 40
    first = measure_set(prior, varied, name="varied")
    warned = warnings_of([first, measure_set(prior, same, name="same"), first])
    assert any(
        s.startswith("same is over-concentrated compared with varied: two tokens") for s in warned
    )
    assert any(s.startswith("same covers ") for s in warned)
    assert not [s for s in warned if s.startswith("varied")]


def test_entropy_and_index_of_nothing():
    assert entropy(np.zeros(4, np.int64)) == 0
    assert math.isnan(collision_index(np.array([1, 0])))


def test_the_folder(prior, rows, measured, tmp_path):
    other = measure_set(prior, [TEXT[i : i + 90] for i in range(12)], name="texts")
    record = write_report(
        [measured, other], tmp_path, reader=Reader(prior.tokenizer), prior="tiny",
        with_baselines=True,
    )  # fmt: skip
    assert json.loads((tmp_path / "report.json").read_text()) == record
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    for name in ("deciles", "histogram", "perplexity", "ngrams", "bigrams", "what_if", "map"):
        assert {f"{name}.png", f"{name}.svg"} <= figures
    for name in ("deciles", "sets", "what_if", "bigrams", "baselines", "map"):
        assert f"{name}.csv" in figures
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page
    assert 'src="figures/histogram.svg"' in page
    assert [one["name"] for one in record["baselines"]] == [
        "all", "importance resampling (DSIR)", "perplexity filter", "density sampling",
    ]  # fmt: skip
    assert [one["kept"] for one in record["baselines"]] == [12, 6, 6, 6]


def test_a_map_by_principal_components(measured):
    from sklearn.decomposition import PCA

    (ours,) = embedding_map([measured], "pca")
    states = np.stack([one.state for one in measured.sample]).astype(np.float64)
    theirs = PCA(2).fit_transform(states)
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-6)


def test_too_little_for_a_map(prior, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "save_figure", lambda *args: None)  # test_the_folder draws
    two = measure_set(prior, [TEXT, TEXT[5:]])
    record = write_report([two], tmp_path, reader=Reader(prior.tokenizer), prior="tiny")
    assert record["warnings"] == [
        "There is no map: a map needs the hidden states of three documents or more."
    ]
    assert not (tmp_path / "figures" / "map.png").exists()


def test_memory_is_bounded(prior, rows, monkeypatch):
    monkeypatch.setattr(measure, "MAX_SAMPLED", 4)
    seen = measure_set(prior, iter(rows * 5), SetSettings(batch_tokens=60))
    assert seen.num_documents == 50
    assert len(seen.sample) == 4


def test_short_documents_blur_no_distribution(prior):
    ids = likely_ids(make_llama(), 6, 50, seed=2)
    rows = [{"input_ids": one[: 40 if i % 2 else 8].tolist()} for i, one in enumerate(ids)]
    assert len(measure_set(prior, rows).log_perplexity) == 3
