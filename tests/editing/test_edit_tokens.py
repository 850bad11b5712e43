"""edit_tokens against the slow reference: families, layouts, samplers, scopes, drops."""

import math

import pytest
import reference
import torch
from conftest import VOCAB_SIZE, likely_ids, make_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from sameness import assert_same_edit
from torch.utils._python_dispatch import TorchDispatchMode

from toedit_collate import EditPolicy, Prior, edit_tokens
from toedit_collate.head import projection

POLICIES = {
    "paper": EditPolicy(scope="all"),
    "half": EditPolicy(threshold=0.5, sampler="full", temperature=1.3),
    "reversed": EditPolicy(region="below", threshold=0.1, top_k=5),
    "reversed, nucleus": EditPolicy(region="below", threshold=0.4, sampler="top_p", top_p=0.9),
    "others": EditPolicy(threshold=0.6, exclude_original=True),
    "authors' script": EditPolicy.reference_code(),
    "drop": EditPolicy(threshold=0.7, drop_below=1e-4, temperature=2.0),
    "filtering": EditPolicy(region="none", drop_below=1e-3),
    "deletion above": EditPolicy(region="none", drop_above=0.6),
    "drawn, or deleted above": EditPolicy(threshold=0.3, drop_above=0.8, drop_below=1e-4),
    "every token": EditPolicy(region="all", top_k=5),
    "every token, dropped or drawn": EditPolicy(region="all", drop_below=1e-2, sampler="top_p"),
}


@pytest.fixture(scope="module")
def ids(prior):
    return likely_ids(prior.model, 6, 40)


@pytest.mark.parametrize("name", POLICIES)
def test_matches_the_reference(prior, ids, name):
    result = assert_same_edit(prior, POLICIES[name], ids)
    assert (result.dropped | result.selected).any()  # no row of this test passes on nothing


def test_every_selected_token_changes_among_others(prior, ids):
    result = edit_tokens(prior, ids, policy=POLICIES["others"])
    assert result.selected.sum() > 10
    assert torch.equal(result.changed, result.selected)


def test_changed_is_what_differs_and_lies_within_selected(prior, ids):
    result = edit_tokens(prior, ids, policy=POLICIES["half"])
    assert torch.equal(result.changed, result.input_ids != ids)
    assert result.changed.any()
    assert not (result.changed & ~result.selected).any()
    assert result.selected.sum() > result.changed.sum()


def pad(rows, side, value):
    T = max(map(len, rows))
    full = torch.full((len(rows), T), value)
    for b, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(T - len(row), T)
        full[b, place] = torch.as_tensor(row)
    return full


def arrange(documents, layout):
    """Documents as a batch: (arguments of edit_tokens, places of each document's tokens)."""
    if layout == "packed":
        flat = torch.cat(documents).unsqueeze(0)
        positions = torch.cat([torch.arange(len(d)) for d in documents]).unsqueeze(0)
        starts = torch.tensor([0, *(len(d) for d in documents)]).cumsum(0)
        places = [(0, slice(a, a + len(d))) for a, d in zip(starts, documents, strict=False)]
        return {"input_ids": flat, "position_ids": positions}, places
    ids = pad([d.tolist() for d in documents], layout, 2)
    mask = pad([[1] * len(d) for d in documents], layout, 0)
    T = ids.shape[1]
    places = [
        (b, slice(0, len(d)) if layout == "right" else slice(T - len(d), T))
        for b, d in enumerate(documents)
    ]
    return {"input_ids": ids, "attention_mask": mask}, places


@st.composite
def document_sets(draw):
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    seed = draw(st.integers(0, 2**16))
    pool = likely_ids(_LLAMA, 1, 30, seed)[0]
    generator = torch.Generator().manual_seed(seed)
    starts = [int(torch.randint(0, 31 - n, (1,), generator=generator)) for n in lengths]
    return [pool[a : a + n].clone() for a, n in zip(starts, lengths, strict=True)]


_LLAMA = make_llama(seed=5)
_PRIOR = Prior(_LLAMA)


@settings(max_examples=25, deadline=None)
@given(documents=document_sets(), name=st.sampled_from(["half", "reversed", "others"]))
def test_a_document_is_edited_alike_in_every_layout(documents, name):
    policy = POLICIES[name].replace(protect_special=False)
    alone = [edit_tokens(_PRIOR, d.unsqueeze(0), policy=policy) for d in documents]
    for layout in ("left", "right", "packed"):
        arguments, places = arrange(documents, layout)
        result = edit_tokens(_PRIOR, policy=policy, **arguments)
        for (row, columns), single in zip(places, alone, strict=True):
            assert torch.equal(result.input_ids[row, columns], single.input_ids[0])
            assert torch.equal(result.selected[row, columns], single.selected[0])
        total = sum(int(single.selected.sum()) for single in alone)
        assert int(result.selected.sum()) == total  # so: none at padding
        outside = ~result.selected
        assert torch.equal(result.input_ids[outside], arguments["input_ids"][outside])


@pytest.mark.parametrize("layout", ["left", "right", "packed"])
@pytest.mark.parametrize("name", ["half", "reversed"])
def test_layouts_match_the_reference(prior, ids, layout, name):
    documents = [ids[0, :30], ids[1, :1], ids[2, :17], ids[3, :40]]
    arguments, _ = arrange(documents, layout)
    assert assert_same_edit(prior, POLICIES[name], **arguments).selected.any()


def in_numbers(documents):
    """Packed documents and padding after them, known by the mask alone."""
    ids = torch.cat([*documents, torch.full((3,), 2)]).unsqueeze(0)
    numbers = [torch.full((len(d),), n) for n, d in enumerate(documents, 1)]
    return {"input_ids": ids, "attention_mask": torch.cat([*numbers, torch.zeros(3)])[None].long()}


def in_pairs(documents):
    numbered = in_numbers(documents)
    number = numbered["attention_mask"]
    pairs = (number.unsqueeze(1) == number.unsqueeze(2)).tril() & (number != 0).unsqueeze(-1)
    return {**numbered, "attention_mask": pairs.unsqueeze(1)}


@pytest.mark.parametrize("told_by", [in_numbers, in_pairs])
def test_masks_that_keep_documents_apart(prior, ids, told_by):
    documents = [ids[0, :30], ids[1, :1], ids[2, :17]]
    by_positions, _ = arrange(documents, "packed")
    expected = edit_tokens(prior, policy=POLICIES["others"], **by_positions)
    arguments = told_by(documents)
    result = edit_tokens(prior, policy=POLICIES["others"], **arguments)
    assert expected.changed.any()
    assert torch.equal(result.input_ids[:, :48], expected.input_ids)
    assert not result.scored[:, 48:].any()
    assert result.attention_mask is arguments["attention_mask"]


def test_numbers_of_documents_follow_when_tokens_are_removed(prior, ids):
    policy = EditPolicy(threshold=0.6, drop_below=0.3, exclude_original=True)
    arguments = in_numbers([ids[0, :30], ids[1, :20]])
    result = assert_same_edit(prior, policy, **arguments)
    kept = [(~result.dropped & (arguments["attention_mask"] == n)).sum().item() for n in (1, 2)]
    assert [(result.attention_mask == n).sum().item() for n in (1, 2)] == kept
    assert sum(kept) < 50
    with pytest.raises(ValueError, match=r"drop_below.*four dimensions; mark documents by"):
        edit_tokens(prior, policy=policy, **in_pairs([ids[0, :30]]))


@pytest.mark.parametrize(
    "implementation",
    ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)],
)
def test_no_document_sees_its_neighbour(implementation):
    model = make_llama(seed=1, attn_implementation=implementation)
    prior = Prior(model)
    ids = likely_ids(make_llama(seed=1), 1, 48)
    positions = torch.cat([torch.arange(20), torch.arange(28)]).unsqueeze(0)
    packed = edit_tokens(prior, ids, position_ids=positions, return_logprob=True).logprob
    changed = ids.clone()
    changed[0, :20] = changed[0, :20].flip(0)
    other = edit_tokens(prior, changed, position_ids=positions, return_logprob=True).logprob
    assert torch.equal(packed[0, 20:].nan_to_num(), other[0, 20:].nan_to_num())
    expected = reference.logprob(make_llama(seed=1), ids, position_ids=positions)
    assert torch.allclose(packed.double(), expected, atol=1e-4, equal_nan=True)
    assert packed.isnan().nonzero().tolist() == [[0, 0], [0, 20]]


@pytest.mark.parametrize("layout", ["left", "right", "packed"])
def test_logprob_is_exact_and_does_not_alter_the_edit(prior, ids, layout):
    arguments, _ = arrange([ids[0, :30], ids[1, :5], ids[2, :17]], layout)
    policy = POLICIES["half"]
    with_logprob = edit_tokens(prior, policy=policy, return_logprob=True, **arguments)
    without = edit_tokens(prior, policy=policy, **arguments)
    expected = reference.logprob(prior.model, **arguments)
    assert torch.allclose(with_logprob.logprob.double(), expected, atol=1e-4, equal_nan=True)
    assert without.logprob is None
    assert torch.equal(with_logprob.input_ids, without.input_ids)
    assert torch.equal(with_logprob.selected, without.selected)


def test_logprob_covers_tokens_outside_the_scope(prior, ids):
    labels = ids.clone()
    labels[:, :20] = -100
    result = edit_tokens(prior, ids, labels=labels, policy=POLICIES["half"], return_logprob=True)
    assert not result.logprob[:, 1:].isnan().any()
    assert not result.selected[:, :20].any()
    assert result.selected[:, 20:].any()


class TestScope:
    def labels(self, ids):
        labels = ids.clone()
        labels[:, :25] = -100
        labels[0] = -100
        return labels

    def test_loss_edits_only_labelled_tokens(self, prior, ids):
        labels = self.labels(ids)
        result = assert_same_edit(prior, POLICIES["others"], ids, labels=labels)
        assert result.changed.any()
        assert torch.equal(result.input_ids[labels == -100], ids[labels == -100])

    def test_all_edits_prompts_too_but_gives_them_no_label(self, prior, ids):
        labels = self.labels(ids)
        policy = POLICIES["others"].replace(scope="all")
        result = assert_same_edit(prior, policy, ids, labels=labels)
        assert result.changed[labels == -100].any()
        assert torch.equal(result.labels == -100, labels == -100)

    @pytest.mark.parametrize("scope", ["loss", "all"])
    def test_labels_follow_changed_tokens(self, prior, ids, scope):
        labels = self.labels(ids)
        policy = POLICIES["others"].replace(scope=scope)
        result = edit_tokens(prior, ids, labels=labels, policy=policy)
        kept = labels != -100
        assert torch.equal(result.labels[kept], result.input_ids[kept])
        assert (result.labels != labels).any()


class TestEdges:
    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            ({"input_ids": torch.tensor([[7]])}, "one token"),
            (
                {
                    "input_ids": torch.full((2, 9), 2),
                    "attention_mask": torch.zeros(2, 9, dtype=torch.long),
                },
                "all padding",
            ),
            (
                {
                    "input_ids": torch.full((2, 9), 7),
                    "labels": torch.full((2, 9), -100),
                },
                "all labels -100",
            ),
            (
                {
                    "input_ids": torch.full((2, 9), 7),
                    "position_ids": torch.zeros(2, 9, dtype=torch.long),
                },
                "documents of one token",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    @pytest.mark.parametrize("return_logprob", [False, True])
    def test_selects_nothing(self, prior, arguments, why, return_logprob):
        policy = EditPolicy(region="below", threshold=0.9999)
        result = edit_tokens(prior, policy=policy, return_logprob=return_logprob, **arguments)
        assert not result.selected.any()
        assert torch.equal(result.input_ids, arguments["input_ids"])

    def test_a_batch_that_has_nothing_to_edit_costs_no_forward_pass(self, prior, ids):
        calls = []
        handle = prior.model.model.register_forward_hook(lambda *_: calls.append(1))
        try:
            edit_tokens(prior, ids, labels=torch.full_like(ids, -100))
            assert calls == []
            edit_tokens(prior, ids)
            assert calls == [1]
        finally:
            handle.remove()

    def test_exactly_at_the_threshold(self):
        """Two ids of P = 1/2 each: "above" and "below" both take P = threshold."""
        model = make_llama(seed=2, vocab_size=2, bos_token_id=None, eos_token_id=None,
                           pad_token_id=None)  # fmt: skip
        with torch.no_grad():
            model.lm_head.weight.zero_()
        ids = torch.tensor([[0, 1, 1, 0]])
        for region in ("above", "below"):
            policy = EditPolicy(threshold=0.5, region=region)
            assert edit_tokens(Prior(model), ids, policy=policy).selected[:, 1:].all()

    def test_padded_vocabulary_is_never_drawn(self, tokenizer, ids):
        model = make_llama()
        with torch.no_grad():  # make the padding of the vocabulary the most probable of all
            model.lm_head.weight[len(tokenizer) :] = model.lm_head.weight[20] * 1.01
        policy = EditPolicy(region="below", threshold=0.999, sampler="full", temperature=3.0)
        free = edit_tokens(Prior(model), ids, policy=policy)
        assert (free.input_ids >= len(tokenizer)).any()
        bound = edit_tokens(Prior(model, tokenizer), ids, policy=policy)
        assert bound.changed.sum() > 50
        assert (bound.input_ids < len(tokenizer)).all()

    def test_int32_and_the_device_of_the_input_come_back(self, prior, ids):
        result = edit_tokens(prior, ids.int(), policy=POLICIES["others"])
        assert result.input_ids.dtype == torch.int32
        assert torch.equal(
            result.input_ids.long(), edit_tokens(prior, ids, policy=POLICIES["others"]).input_ids
        )

    def test_inputs_are_left_alone(self, prior, ids):
        before, labels = ids.clone(), ids.clone()
        edit_tokens(prior, ids, labels=labels, policy=POLICIES["others"])
        assert torch.equal(ids, before)
        assert torch.equal(labels, before)


class TestDraws:
    def test_epochs_differ_unless_never_redrawn(self, prior, ids):
        policy = POLICIES["reversed"]
        first, second = (edit_tokens(prior, ids, policy=policy, epoch=e) for e in (0, 1))
        assert torch.equal(first.selected, second.selected)
        assert not torch.equal(first.input_ids, second.input_ids)
        never = policy.replace(redraw="never")
        first, second = (edit_tokens(prior, ids, policy=never, epoch=e) for e in (0, 1))
        assert torch.equal(first.input_ids, second.input_ids)
        assert first.changed.any()

    @pytest.mark.parametrize(
        "change", [{"generation": 1}, {"policy": POLICIES["reversed"].replace(seed=1)}]
    )
    def test_generation_and_seed_matter(self, prior, ids, change):
        base = edit_tokens(prior, ids, policy=POLICIES["reversed"])
        other = edit_tokens(prior, ids, **{"policy": POLICIES["reversed"], **change})
        assert not torch.equal(base.input_ids, other.input_ids)

    def test_global_random_state_plays_no_part_and_is_left_alone(self, prior, ids):
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = edit_tokens(prior, ids, policy=POLICIES["reversed"])
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert torch.equal(
            first.input_ids, edit_tokens(prior, ids, policy=POLICIES["reversed"]).input_ids
        )


class TestDropBelow:
    policy = EditPolicy(threshold=0.6, drop_below=1e-3, exclude_original=True)

    @pytest.mark.parametrize("layout", ["left", "right", "packed"])
    def test_rows_shrink_and_everything_follows(self, prior, ids, layout):
        documents = [ids[0, :30], ids[1, :9], ids[2, :17]]
        arguments, _ = arrange(documents, layout)
        labels = torch.where(
            torch.arange(arguments["input_ids"].shape[1]) % 3 == 0, -100, arguments["input_ids"]
        )
        if "attention_mask" in arguments:
            labels = labels.masked_fill(arguments["attention_mask"] == 0, -100)
        policy = self.policy.replace(scope="all")
        result = edit_tokens(prior, labels=labels, policy=policy, **arguments)
        new, _, _, dropped = reference.edit(
            prior.model, policy=policy, labels=labels, forbidden=prior.special_ids, **arguments
        )
        assert result.selected.any()
        rows = []
        for document in reference.documents_of(**arguments):
            rows.append([
                (int(new[place]), -100 if labels[place] == -100 else int(new[place]))
                for place in document
                if not dropped[place]
            ])  # fmt: skip
        left = reference.documents_of(result.input_ids, result.attention_mask, result.position_ids)
        got = [[(int(result.input_ids[p]), int(result.labels[p])) for p in d] for d in left]
        assert got == rows
        assert result.input_ids.shape[1] == max(
            map(len, rows) if layout != "packed" else [sum(map(len, rows))]
        )
        assert (result.source >= 0).sum() == sum(map(len, rows))
        assert torch.equal(
            (arguments["input_ids"].gather(1, result.source.clamp(min=0)) == result.input_ids)
            | (result.source < 0)
            | result.changed.gather(1, result.source.clamp(min=0)),
            torch.ones_like(result.input_ids, dtype=torch.bool),
        )

    def test_rows_that_were_padded_on_the_left_are_so_still(self, prior, ids):
        arguments, _ = arrange([ids[0, :30], ids[1, :9], ids[2, :17]], "left")
        result = edit_tokens(prior, policy=self.policy, **arguments)
        assert result.dropped.any()
        assert result.attention_mask[:, -1].all()
        assert not result.attention_mask[:, 0].all()

    def test_unpadded_rows_get_a_mask(self, prior, ids):
        result = edit_tokens(prior, ids, policy=self.policy)
        assert result.dropped.any()
        lengths = (~result.dropped).sum(1)
        assert torch.equal(result.attention_mask.sum(1), lengths)
        assert result.input_ids.shape[1] == lengths.max()

    def test_several_packed_rows(self, prior, ids):
        positions = torch.cat([torch.arange(15), torch.arange(25)]).expand(6, 40)
        result = edit_tokens(prior, ids, position_ids=positions, policy=self.policy)
        documents = reference.documents_of(result.input_ids, None, result.position_ids)
        real = [d for d in documents if result.source[d[0]] >= 0]
        assert len(real) == 12
        assert result.attention_mask is None
        assert all(result.source[p] >= 0 for d in real for p in d)

    def test_first_and_protected_tokens_stay(self, prior, ids):
        policy = self.policy.replace(protected_token_ids=tuple(range(100)), drop_below=0.5)
        result = edit_tokens(prior, ids, policy=policy)
        assert result.dropped.sum() > 20
        assert not result.dropped[:, 0].any()
        assert not result.dropped[ids < 100].any()


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any new tensor; slices of the model's weights are not new."""

    def __init__(self, model):
        super().__init__()
        self.largest = 0
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if not isinstance(tensor, torch.Tensor):
                continue
            if tensor.untyped_storage().data_ptr() not in self.weights:
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("name", [*POLICIES, "logprob"])
def test_the_logits_are_never_whole(name, monkeypatch):
    model = make_llama(seed=3, vocab_size=4000)
    prior = Prior(model)
    ids = torch.randint(5, 4000, (8, 64))
    policy = POLICIES.get(name, POLICIES["half"])
    arguments = {"policy": policy, "return_logprob": name == "logprob"}
    monkeypatch.setattr(projection, "MAX_BLOCK_BYTES", 18 * 4 * 4000)  # 18 rows
    with LargestTensor(model) as mode:
        edit_tokens(prior, ids, **arguments)
    assert mode.largest < 0.05 * 8 * 64 * 4000
    with LargestTensor(model) as mode, torch.no_grad():  # the check can fail
        model(input_ids=ids)
    assert mode.largest == 8 * 64 * 4000


def test_ids_of_the_sample_are_scored_exactly(prior, ids):
    result = edit_tokens(prior, ids, num_sampled=10, policy=POLICIES["paper"])
    assert result.sample_logprob.shape == (10,)
    every = edit_tokens(prior, ids, num_sampled=10**6)
    expected = reference.logprob(prior.model, ids)[:, 1:]
    allowed = ~torch.isin(ids, torch.tensor(sorted(prior.special_ids)))[:, 1:]
    assert torch.allclose(every.sample_logprob.double(), expected[allowed].flatten(), atol=1e-4)
    assert math.isfinite(float(every.sample_logprob.mean()))
    assert prior.vocab_size == VOCAB_SIZE
