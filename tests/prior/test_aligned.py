"""A prior with another tokenizer than the trainee's, against tests/reference.py."""

from __future__ import annotations

import functools
import logging
import math
import pickle

import pytest
import reference
import torch
from conftest import make_llama
from tokenizer_pairs import TEXTS, make
from trainees import compiles

from toedit_collate import EditPolicy, Journal, Prior, ToEditCollator, edit_tokens
from toedit_collate.editing.with_journal import edit_with_journal
from toedit_collate.head.projection import Head
from toedit_collate.prior.aligned import AlignedPrior
from toedit_collate.prior.base import BasePrior
from toedit_collate.stores.cache import DecisionCache, Identity
from toedit_collate.tokens.alignment import groups
from toedit_collate.tokens.token_batch import TokenBatch

# Neither side puts a blank before the text: what tests/reference.py knows.
PAIRS = [
    ("coarse", "byte-level"), ("byte-level", "coarse"), ("coarse", "digits"),
    ("byte-level", "swapped"), ("byte-level", "sentencepiece-never"),
    ("sentencepiece-never", "coarse"),
]  # fmt: skip
TEXTS_SCORED = ("code", "emoji", "combining marks", "blanks", "numbers")
MIXED = "The fox 12 + 345 = 357 runs\n    return x * 2\n 😀 na\u0308ive 你好"


@functools.cache
def pair(trainee: str, prior: str) -> tuple[Prior, AlignedPrior, reference.SlowAligned]:
    """A prior, the same aligned to a trainee's tokenizer, and the slow way."""
    own, other = make(prior), make(trainee)
    model = make_llama(3, vocab_size=len(own) + 3, sharpness=6.0, max_position_embeddings=512)
    strong = Prior(model, own)
    aligned = AlignedPrior(strong, other)
    slow = reference.SlowAligned(model, own, other, aligned.aligner.trainee.first)
    return strong, aligned, slow


def ids_of(name: str, text: str) -> list[int]:
    return [make(name).bos_token_id, *make(name)(text, add_special_tokens=False)["input_ids"]]


@functools.cache
def likely(name: str, seed: int = 0) -> str:
    """Text of which much is near certain to the prior: half of it is its own choice."""
    own = make(name)
    model = make_llama(3, vocab_size=len(own) + 3, sharpness=6.0, max_position_embeddings=512)
    drawn = torch.Generator().manual_seed(seed)
    text = [number for number in range(len(own)) if own.decode([number]).isascii()]
    text = [number for number in text if number not in own.all_special_ids]
    ids = [own.bos_token_id]
    for _ in range(40):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, text]
        chosen = int(logits.argmax())
        if torch.rand((), generator=drawn) < 0.3:
            chosen = int(torch.randint(len(text), (), generator=drawn))
        ids.append(text[chosen])
    return own.decode(ids[1:])


def forbidden(name: str) -> list[int]:
    return list(make(name).all_special_ids)


@pytest.mark.filterwarnings("ignore:this policy can change no token")  # of the slow way
@pytest.mark.parametrize(
    ("trainee", "prior"),
    [*PAIRS[:2], *(pytest.param(*one, marks=pytest.mark.slow) for one in PAIRS[2:])],
)
class TestAgainstTheReference:
    @pytest.mark.parametrize(
        "text", ["code", "emoji", "combining marks", "blanks", "numbers", "likely"]
    )
    def test_scores_and_selection(self, trainee, prior, text):
        _, aligned, slow = pair(trainee, prior)
        ids = ids_of(trainee, {**TEXTS, "likely": likely(prior)}[text].replace("▁", "_"))
        chains = slow.chains(ids)
        expected = torch.full((len(ids),), float("nan"), dtype=torch.float64)
        for position in chains:
            expected[position] = slow.logprob(ids, position)
        exact = edit_tokens(aligned, torch.tensor([ids]), return_logprob=True).logprob[0]
        torch.testing.assert_close(exact.double(), expected, rtol=1e-5, atol=3e-5, equal_nan=True)
        ordered = sorted(float(expected[position].exp()) for position in chains)
        middle = len(ordered) // 2  # in the middle between two probabilities
        for threshold in (0.99, math.sqrt(ordered[middle - 1] * ordered[middle])):
            policy = EditPolicy(threshold=max(threshold, 1e-30))
            found = edit_tokens(aligned, torch.tensor([ids]), policy=policy)
            assert torch.equal(found.selected[0], expected.exp() >= policy.threshold)
        assert found.selected.any()
        assert len(chains) >= min(3, len(ids) - 1)

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"top_k": 3, "temperature": 1.5},
            {"sampler": "top_p", "top_p": 0.8, "temperature": 2.0},
            {"sampler": "full"},
            {"sampler": "full", "temperature": 0.7, "protect_special": False},
            {"exclude_original": True},
            {"top_k": 1, "exclude_original": True},
        ],
        ids=lambda one: ",".join(f"{k}={v}" for k, v in one.items()) or "paper",
    )
    def test_distribution_of_draws(self, trainee, prior, settings):
        _, aligned, slow = pair(trainee, prior)
        policy = EditPolicy(**settings)
        ids = ids_of(trainee, MIXED)
        batch = TokenBatch.of(torch.tensor([ids]), None, None, None)
        where = aligned.scorable(batch).nonzero().squeeze(-1)
        found = aligned.predict(batch, where).candidates(policy, torch.arange(len(where)))
        shares = [
            list(zip(i.tolist(), x.tolist(), strict=True))
            for one in found
            for i, x in zip(
                one.ids, (one.logits.double() / policy.temperature).softmax(-1), strict=True
            )
        ]
        assert len(shares) == len(where) > 10
        for position, share in zip(where.tolist(), shares, strict=True):
            left_out = forbidden(trainee) if policy.protect_special else ()
            expected = slow.distribution(ids, position, policy, left_out)
            own = torch.zeros_like(expected)
            for token_id, value in share:
                own[token_id] += value
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)

    def test_draws(self, trainee, prior):
        _, aligned, slow = pair(trainee, prior)
        policy = EditPolicy(region="below", threshold=0.95, temperature=1.5)
        ids = ids_of(trainee, MIXED)
        found = edit_tokens(aligned, torch.tensor([ids]), policy=policy, epoch=2)
        for position in found.selected[0].nonzero().squeeze(-1).tolist():
            u = reference.uniform(ids, position, seed=0, epoch=2, generation=0)
            shares = slow.distribution(ids, position, policy, forbidden(trainee))
            drawn = reference.draw(shares, ids[position], u)
            assert int(found.input_ids[0, position]) == drawn
        assert found.changed.sum() > 5


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_lazily_kept_draws_are_those_of_the_candidates(temperature):
    """A cache draws from the candidates themselves."""
    for trainee, prior in PAIRS[:3]:
        _, aligned, _ = pair(trainee, prior)
        rows = [ids_of(trainee, likely(prior, seed)) for seed in range(2)]
        T = min(map(len, rows))
        ids = torch.tensor([row[:T] for row in rows])
        policy = EditPolicy(threshold=0.3, temperature=temperature)
        for seed in range(8):
            one = policy.replace(seed=seed)
            plain = edit_tokens(aligned, ids, policy=one)
            cached = edit_tokens(aligned, ids, policy=one, cache=DecisionCache())
            assert torch.equal(plain.input_ids, cached.input_ids)
            assert torch.equal(plain.selected, cached.selected)


@pytest.mark.parametrize("name", ["byte-level", "coarse", "digits"])
@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.2},
        {"threshold": 0.2, "temperature": 1.5, "exclude_original": True},
        {"region": "below", "threshold": 0.5, "sampler": "full"},
        {"threshold": 0.3, "drop_below": 0.001, "protect_special": False},
    ],
)
def test_the_same_tokenizer_gives_the_same_edit_bit_for_bit(name, settings):
    prior, _, _ = pair("byte-level", name)
    forced = AlignedPrior(prior, make(name))
    ids = [ids_of(name, text) for text in (MIXED, likely(name), TEXTS["words"])]
    T = max(map(len, ids))
    rows = torch.tensor([row + [2] * (T - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (T - len(row)) for row in ids])
    policy = EditPolicy(**settings)
    own = edit_tokens(prior, rows, attention_mask=mask, policy=policy, return_logprob=True)
    other = edit_tokens(forced, rows, attention_mask=mask, policy=policy, return_logprob=True)
    is_text = (mask == 1) & ~torch.isin(rows, torch.tensor(make(name).all_special_ids))
    assert torch.equal(own.logprob[is_text], other.logprob[is_text])
    kept = own.selected & is_text
    assert torch.equal(kept, other.selected)
    assert kept.any()
    assert torch.equal(own.dropped & is_text, other.dropped)
    if_special = EditPolicy(**{**settings, "protect_special": True})
    first, second = (
        edit_tokens(one, rows, attention_mask=mask, policy=if_special) for one in (prior, forced)
    )
    assert torch.equal(first.input_ids, second.input_ids)
    assert torch.equal(first.selected, second.selected)


class TestApi:
    def test_the_same_prior_where_tokenizers_are_the_same(self):
        prior, aligned, _ = pair("coarse", "byte-level")
        assert prior.aligned_to(make("byte-level")) is prior
        assert prior.aligned_to(pickle.loads(pickle.dumps(make("byte-level")))) is prior
        assert isinstance(aligned, AlignedPrior)
        assert isinstance(aligned, BasePrior)
        assert aligned.aligned_to(make("coarse")) is aligned
        assert aligned.aligned_to(make("byte-level")) is prior

    def test_without_it_the_error_names_the_way(self):
        prior, _, _ = pair("coarse", "byte-level")
        with pytest.raises(ValueError, match=r"differs.*aligned_to\(tokenizer\).*prior_aligned"):
            ToEditCollator(prior, tokenizer=make("coarse"))

    def test_a_prior_without_tokenizer(self):
        with pytest.raises(ValueError, match=r"no tokenizer.*Prior\(model, tokenizer\)"):
            Prior(make_llama(0)).aligned_to(make("coarse"))

    def test_weights_of_the_trainee_are_refused(self):
        _, aligned, _ = pair("coarse", "byte-level")
        for refused in (aligned.check_can_swap, lambda: aligned.swap("folder")):
            with pytest.raises(ValueError, match="make generations with a prior"):
                refused()

    def test_it_stays_at_home(self):
        with pytest.raises(TypeError, match="ToEditCollator"):
            pickle.dumps(pair("coarse", "byte-level")[1])

    def test_another_pair_has_another_fingerprint(self):
        prior, aligned, _ = pair("coarse", "byte-level")
        others = {prior.aligned_to(make("digits")).fingerprint, prior.fingerprint}
        assert aligned.fingerprint not in others
        assert len(others) == 2


class TestDocuments:
    def test_the_same_edit_in_any_layout(self):
        _, aligned, _ = pair("coarse", "digits")
        texts = [MIXED, likely("digits"), "12 345"]
        documents = [ids_of("coarse", text) for text in texts]
        policy = EditPolicy(threshold=0.2, temperature=2.0)
        packed = torch.tensor([[token for one in documents for token in one]])
        positions = torch.tensor([[i for one in documents for i in range(len(one))]])
        together = edit_tokens(aligned, packed, position_ids=positions, policy=policy)
        alone = [edit_tokens(aligned, torch.tensor([one]), policy=policy) for one in documents]
        assert torch.equal(together.input_ids[0], torch.cat([one.input_ids[0] for one in alone]))
        assert torch.equal(together.selected[0], torch.cat([one.selected[0] for one in alone]))
        assert together.changed.any()

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_the_same_edit_in_any_batch(self, side):
        _, aligned, _ = pair("coarse", "digits")
        texts = [MIXED, likely("digits"), "12 345", likely("digits", 1)]
        documents = [ids_of("coarse", text) for text in texts]
        policy = EditPolicy(threshold=0.2, temperature=2.0)
        alone = [edit_tokens(aligned, torch.tensor([one]), policy=policy) for one in documents]
        assert sum(int(one.changed.sum()) for one in alone) > 0
        for order in ([0, 1, 2, 3], [3, 1], [2, 0, 1]):
            T = max(len(documents[n]) for n in order)
            rows, mask = torch.full((len(order), T), 2), torch.zeros(len(order), T).long()
            places = []
            for row, n in enumerate(order):
                size = len(documents[n])
                place = slice(T - size, T) if side == "left" else slice(0, size)
                rows[row, place], mask[row, place] = torch.tensor(documents[n]), 1
                places.append(place)
            found = edit_tokens(aligned, rows, attention_mask=mask, policy=policy)
            for row, (n, place) in enumerate(zip(order, places, strict=True)):
                assert torch.equal(found.input_ids[row, place], alone[n].input_ids[0])
                assert torch.equal(found.selected[row, place], alone[n].selected[0])

    def test_bytes_that_disagree_are_left_alone_counted_and_said(self, caplog):
        prior, _, _ = pair("byte-level", "sentencepiece-first")
        aligned = AlignedPrior(prior, make("byte-level"))
        bad, good = ids_of("byte-level", "the ▁ fox"), ids_of("byte-level", "the old fox")
        T = max(len(bad), len(good))
        rows = torch.tensor([one + [2] * (T - len(one)) for one in (bad, good)])
        mask = torch.tensor([[1] * len(one) + [0] * (T - len(one)) for one in (bad, good)])
        policy = EditPolicy(region="below", threshold=0.99)
        with caplog.at_level(logging.WARNING):
            found = edit_tokens(aligned, rows, attention_mask=mask, policy=policy)
        assert not found.scored[0].any()
        assert found.scored[1].any()
        assert aligned.counts["left_alone"] == 1
        assert aligned.counts["documents"] == 2
        assert "disagree about the bytes of 1 of 2 documents" in caplog.text

    def test_a_low_share_is_said_once(self, caplog, monkeypatch):
        monkeypatch.setattr("toedit_collate.prior.aligned._SEEN", 10)
        aligned = AlignedPrior(pair("byte-level", "coarse")[0], make("byte-level"))
        ids = torch.tensor([ids_of("byte-level", TEXTS["CJK"])])
        with caplog.at_level(logging.WARNING):
            edit_tokens(aligned, ids)
            edit_tokens(aligned, ids)
        assert aligned.aligned_share < 0.2
        assert caplog.text.count("of the trainee's tokens begin where one of the prior's") == 1

    def test_behind_the_prior_s_last_position_nothing_is_scored(self, caplog):
        model = make_llama(0, vocab_size=len(make("digits")), max_position_embeddings=16)
        aligned = Prior(model, make("digits")).aligned_to(make("coarse"))
        ids = torch.tensor([ids_of("coarse", "1234 5678 12 34 56 78 90 the fox")])
        with caplog.at_level(logging.WARNING):
            found = edit_tokens(aligned, ids, policy=EditPolicy(region="below"))
        assert found.scored[0, 1:4].all()
        assert not found.scored[0, -2:].any()
        assert "its 16 positions" in caplog.text

    def test_documents_from_a_worker_are_not_tokenized_again(self, monkeypatch):
        _, aligned, _ = pair("coarse", "digits")
        ids = torch.tensor([ids_of("coarse", likely("digits"))])
        batch = TokenBatch.of(ids, None, None, None)
        there = pickle.loads(pickle.dumps(aligned.aligner))
        prepared = there.prepare(batch)
        expected = edit_tokens(aligned, ids, policy=EditPolicy(threshold=0.1))
        aligned.take_prepared(pickle.loads(pickle.dumps(prepared)))
        monkeypatch.setattr(aligned.aligner, "align", None)
        found = edit_tokens(aligned, ids, policy=EditPolicy(threshold=0.1))
        assert torch.equal(found.input_ids, expected.input_ids)
        aligned.take_prepared({})

    def test_the_trainee_s_chat_markers_are_not_edited_and_not_shown(self):
        prior, _, _ = pair("byte-level", "sentencepiece-never")
        aligned = prior.aligned_to(make("byte-level"))
        trainee = make("byte-level")
        messages = [
            {"role": "user", "content": "the fox"},
            {"role": "assistant", "content": "the lazy dog"},
        ]
        ids = torch.tensor([trainee.apply_chat_template(messages)["input_ids"]])
        found = edit_tokens(aligned, ids, policy=EditPolicy(region="below", threshold=0.999))
        special = torch.isin(ids, torch.tensor(trainee.all_special_ids))
        assert special.sum() == 4
        assert not found.scored[special].any()
        assert found.changed.any()
        assert not torch.isin(found.input_ids[~special], ids[special]).any()


class TestBounds:
    """P is a lower bound: nothing that is done for a *low* P is done in silence."""

    @pytest.mark.parametrize(
        "settings",
        [
            {"region": "below", "threshold": 0.3},
            {"drop_below": 0.001},
            {"region": "none", "drop_below": 0.01},
            {"region": "below", "drop_below": 0.01},
        ],
    )
    @pytest.mark.parametrize("cached", [False, True])
    def test_what_a_low_p_decides_is_said_once(self, caplog, settings, cached):
        aligned = AlignedPrior(pair("coarse", "digits")[0], make("coarse"))
        ids = torch.tensor([ids_of("coarse", MIXED)])
        for _ in range(2):
            cache = DecisionCache() if cached else None
            edit_tokens(aligned, ids, policy=EditPolicy(**settings), cache=cache)
        assert caplog.text.count("P of an aligned prior are lower bounds") == 1

    @pytest.mark.parametrize("settings", [{}, {"region": "all"}, {"region": "above"}])
    def test_other_policies_are_not_spoken_of(self, caplog, settings):
        aligned = AlignedPrior(pair("coarse", "digits")[0], make("coarse"))
        ids = torch.tensor([ids_of("coarse", MIXED)])
        edit_tokens(aligned, ids, policy=EditPolicy(**settings))
        assert "lower bounds" not in caplog.text


class TestPolicies:
    @pytest.mark.filterwarnings("ignore:this policy can change no token")  # of the slow way
    @pytest.mark.parametrize("target", ["both", "inputs", "labels"])
    def test_every_scored_token_is_drawn_into_the_target(self, target):
        _, aligned, slow = pair("coarse", "byte-level")
        policy = EditPolicy(region="all", temperature=1.5, target=target)
        ids = ids_of("coarse", "The fox 12 + 345\n    return")
        chains = slow.chains(ids)
        drawn = list(ids)
        for position in chains:
            u = reference.uniform(ids, position, seed=0, epoch=1, generation=0)
            shares = slow.distribution(ids, position, policy, forbidden("coarse"))
            drawn[position] = reference.draw(shares, ids[position], u)
        source = torch.tensor([ids])
        found = edit_tokens(aligned, source, labels=source, policy=policy, epoch=1)
        assert found.selected[0].nonzero().squeeze(-1).tolist() == sorted(chains)
        expected = {
            "both": (drawn, drawn), "inputs": (drawn, ids), "labels": (ids, drawn),
        }[target]  # fmt: skip
        assert (found.input_ids[0].tolist(), found.labels[0].tolist()) == expected
        assert drawn != ids

    @compiles
    def test_chains_are_drawn_together_and_tables_are_made_once(self, monkeypatch):
        aligned = pair("coarse", "byte-level")[0].aligned_to(make("coarse"))
        tables, products = [], []
        make_table, project = groups.first_tokens, Head.project
        monkeypatch.setattr(groups, "first_tokens", lambda *a: tables.append(a) or make_table(*a))
        monkeypatch.setattr(Head, "project", lambda *a: products.append(a) or project(*a))
        ids = torch.tensor([ids_of("coarse", MIXED)])
        num_tables, num_products = [], []
        for epoch, rows in enumerate((2, 16)):
            tables.clear(), products.clear()
            edit_tokens(aligned, ids.repeat(rows, 1), policy=EditPolicy(region="all"), epoch=epoch)
            num_tables.append(len(tables))
            num_products.append(len(products))
        assert num_tables[0] > 0 == num_tables[1]
        assert num_products[1] < 2 * num_products[0]

    def test_a_compiled_prior_makes_the_same_edit(self):
        _, aligned, _ = pair("coarse", "digits")
        own = make("digits")
        model = make_llama(3, vocab_size=len(own) + 3, max_position_embeddings=512)
        compiled = Prior(model, own).aligned_to(make("coarse"))
        graphs = []

        def backend(module, example_inputs):
            graphs.append(module)
            return module.forward

        torch._dynamo.reset()
        compiled.compile(backend=backend)
        policy = EditPolicy(threshold=0.2, temperature=2.0)
        for text in (MIXED, likely("digits"), TEXTS["words"]):
            ids = torch.tensor([ids_of("coarse", text)])
            got, expected = (edit_tokens(one, ids, policy=policy) for one in (compiled, aligned))
            assert torch.equal(got.input_ids, expected.input_ids)
            assert torch.equal(got.selected, expected.selected)
        assert graphs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantization", "package"), [("int8", "torchao"), ("8bit", "bitsandbytes")]
)
def test_a_quantized_prior_against_the_slow_way(tmp_path, quantization, package):
    """What its own rounded weights say, not those that were rounded."""
    pytest.importorskip(package)
    own, other = make("digits"), make("coarse")
    # 8-bit kernels want sizes of more than a few numbers.
    make_llama(3, vocab_size=len(own) + 3, hidden_size=64, intermediate_size=128).save_pretrained(
        tmp_path
    )
    own.save_pretrained(tmp_path)
    whole = Prior.from_pretrained(tmp_path).aligned_to(other)
    strong = Prior.from_pretrained(tmp_path, quantization=quantization)
    aligned = strong.aligned_to(other)
    assert aligned.fingerprint != whole.fingerprint
    slow = reference.SlowAligned(strong.model, own, other, aligned.aligner.trainee.first)
    ids = ids_of("coarse", MIXED)
    chains = slow.chains(ids)
    expected = torch.full((len(ids),), float("nan"), dtype=torch.float64)
    for position in chains:
        expected[position] = slow.logprob(ids, position)
    found = edit_tokens(aligned, torch.tensor([ids]), return_logprob=True)
    torch.testing.assert_close(found.logprob[0].double(), expected, rtol=2e-3, atol=2e-2,
                               equal_nan=True)  # fmt: skip
    rounded = edit_tokens(whole, torch.tensor([ids]), return_logprob=True).logprob
    assert (found.logprob - rounded).abs().nan_to_num().max() > 1e-3
    policy = EditPolicy(threshold=1e-3, exclude_original=True)
    edit = edit_tokens(aligned, torch.tensor([ids]), policy=policy)
    assert edit.changed.any()
    assert torch.equal(edit.changed, edit.selected)


def test_another_tokenizer_is_another_identity_in_a_cache(tmp_path):
    strong, aligned, _ = pair("coarse", "byte-level")
    # Ids mean the same bytes to this one but for a few, so the same rows are valid for both.
    other = strong.aligned_to(make("swapped"))
    policy = EditPolicy(threshold=0.2, temperature=2.0)
    identities = [Identity.of(one, policy) for one in (strong, aligned, other)]
    assert len({one.digest for one in identities}) == 3
    ids = torch.tensor([ids_of("swapped", likely("byte-level"))])
    with DecisionCache(tmp_path / "cache") as cache:
        for one in (strong, aligned, other):
            plain = edit_tokens(one, ids, policy=policy)
            for _ in range(2):
                found = edit_tokens(one, ids, policy=policy, cache=cache)
                assert torch.equal(found.input_ids, plain.input_ids)
                assert torch.equal(found.selected, plain.selected)
    cache = DecisionCache(tmp_path / "cache")
    with pytest.raises(ValueError, match="holds the decisions of several"):
        cache.prior(policy)
    meant = cache.prior(policy, other.fingerprint)
    meant.set_tokenizer(make("swapped"))
    with pytest.raises(ValueError, match="tokenizer differs"):
        meant.set_tokenizer(make("coarse"))


@pytest.mark.parametrize(
    "policy",
    [
        EditPolicy(threshold=0.2, temperature=2.0),
        EditPolicy(region="all", top_k=8, target="labels"),
        EditPolicy(threshold=0.2, top_k=8, drop_below=0.001),
    ],
    ids=["sharp", "labels", "dropping"],
)
def test_a_cache_then_needs_no_prior(tmp_path, policy):
    """The edits and the counts of a run without a cache: tokens that can't be scored are not."""
    _, aligned, _ = pair("coarse", "digits")
    rows = [
        torch.tensor([ids_of("coarse", text)]) for text in (MIXED, likely("digits"), TEXTS["words"])
    ]

    def edited(prior, cache=None):
        return [edit_tokens(prior, r, labels=r, policy=policy, cache=cache) for r in rows]

    expected = edited(aligned)
    with DecisionCache(tmp_path / "cache") as cache:
        filled = edited(aligned, cache)
    with DecisionCache(tmp_path / "cache") as cache:
        stand_in = cache.prior(policy)
        stand_in.set_tokenizer(make("coarse"))
        alone = edited(stand_in, cache)
    fields = ["input_ids", "labels", "scored", "selected", "changed", "dropped"]
    for found in (filled, alone):
        for one, plain in zip(found, expected, strict=True):
            for field in fields:
                assert torch.equal(getattr(one, field), getattr(plain, field)), field
    assert any(one.changed.any() for one in expected)
    assert not all(one.scored[:, 1:].all() for one in expected)


def test_a_journal_replays_it(tmp_path):
    _, aligned, _ = pair("coarse", "digits")
    ids = torch.tensor([ids_of("coarse", likely("digits"))])
    source = TokenBatch.of(ids, None, None, None)
    journal = Journal(tmp_path / "journal")
    policy = EditPolicy(threshold=0.2, temperature=2.0)
    both = [
        edit_with_journal(aligned, journal, source, policy=policy, step=0, num_sampled=4)
        for _ in range(2)
    ]
    assert torch.equal(both[0].final.input_ids, both[1].final.input_ids)
    assert both[0].final.changed.any()
    assert both[1].num_replayed == ids.numel()
    assert journal.replay(ids[0].tolist(), 1) == both[0].final.input_ids[0].tolist()
