"""The loss of drawn labels, against the dense definition in float64."""

from __future__ import annotations

import pytest
import torch

from toedit_collate.head.projection import Head
from toedit_collate.head.soft_labels import drawn_log_prob, soft_cross_entropy

B, T, V, D, N = 3, 7, 23, 5, 16


def made(seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, T, D, generator=random, dtype=dtype)
    weight = torch.randn(V, D, generator=random, dtype=dtype)
    bias = torch.randn(V, generator=random, dtype=dtype)
    labels = torch.randint(V, (B, T), generator=random)
    labels[torch.rand(B, T, generator=random) < 0.3] = -100
    raw = torch.randint(V, (B, T, N), generator=random)
    return hidden, weight, bias, labels, raw


def packed(raw, labels):
    """(B, T, N) draws as a batch carries them."""
    draws = torch.zeros(*raw.shape, 2, dtype=torch.int32)
    for b, t in (labels != -100).nonzero().tolist():
        ids, counts = raw[b, t].unique(return_counts=True)
        draws[b, t, : len(ids), 0], draws[b, t, : len(ids), 1] = ids.int(), counts.int()
    return draws


def dense(logits, raw, labels):
    """The mean of the N hard cross-entropies of each label."""
    total, count = 0.0, 0
    for b in range(B):
        for t in range(1, T):
            if labels[b, t] != -100:
                log_p = logits[b, t - 1].log_softmax(-1)
                total = total - sum(log_p[int(one)] for one in raw[b, t]) / N
                count += 1
    return total / count


def test_loss_and_gradients_are_those_of_the_definition():
    hidden, weight, bias, labels, raw = made()
    logits = (hidden @ weight.T + bias).requires_grad_()
    expected = dense(logits, raw, labels)
    (wanted,) = torch.autograd.grad(expected, logits)
    loss = soft_cross_entropy(logits, packed(raw, labels), labels)
    (got,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("elements", [V, 5 * V, 10**6])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.7, None), (1.0, 3.0), (0.7, 3.0)])
def test_without_logits(monkeypatch, elements, scale, cap):
    from toedit_collate.head import soft_labels

    monkeypatch.setattr(soft_labels, "MAX_TILE_ELEMENTS", elements)
    parts = [one.requires_grad_() for one in made()[:3]]
    *_, labels, raw = made()
    hidden, weight, bias = parts
    logits = (hidden @ weight.T + bias) * scale
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    expected = dense(logits, raw, labels)
    wanted = torch.autograd.grad(expected, parts)
    head = Head(weight, bias, scale, cap)
    log_prob, entropy, is_top1, known = drawn_log_prob(head, hidden, packed(raw, labels), labels)
    loss = -log_prob.sum() / known.sum()
    got = torch.autograd.grad(loss, parts)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)
    p = logits[:, :-1].softmax(-1)
    torch.testing.assert_close(entropy, torch.where(known, -(p * p.log()).sum(-1), 0).float())
    assert torch.equal(is_top1, (p.argmax(-1) == labels[:, 1:]) & known)


def test_one_draw_is_a_hard_label():
    hidden, weight, bias, labels, _ = made()
    logits = hidden @ weight.T + bias
    draws = torch.stack([labels.clamp(min=0), torch.ones_like(labels)], -1)[:, :, None]
    hard = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(soft_cross_entropy(logits, draws, labels), hard)


def test_the_number_of_labels_of_a_whole_step_divides():
    hidden, weight, bias, labels, raw = made()
    logits, draws = hidden @ weight.T + bias, packed(raw, labels)
    whole = soft_cross_entropy(logits, draws, labels)
    count = (labels[:, 1:] != -100).sum()
    rows = [soft_cross_entropy(logits[[b]], draws[[b]], labels[[b]], count) for b in range(B)]
    torch.testing.assert_close(sum(rows), whole)


def test_the_gradient_is_that_of_the_kl_term_on_average():
    """Over many draws from q, the mean gradient is that of KL(q || p), within 5 standard errors."""
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 2, 6, generator=random, dtype=torch.float64).requires_grad_()
    q = torch.randn(6, generator=random, dtype=torch.float64).softmax(-1)
    kl = (q * (q.log() - logits[0, 0].log_softmax(-1))).sum()
    (wanted,) = torch.autograd.grad(kl, logits)
    labels, many = torch.zeros(1, 2, dtype=torch.long), []
    for _ in range(400):
        raw = torch.multinomial(q, 8, replacement=True, generator=random)
        counts = torch.bincount(raw, minlength=6)
        draws = torch.zeros(1, 2, 6, 2, dtype=torch.int32)
        draws[0, 1, :, 0], draws[0, 1, :, 1] = torch.arange(6), counts
        loss = soft_cross_entropy(logits, draws, labels)
        many.append(torch.autograd.grad(loss, logits)[0])
    many = torch.stack(many)
    error = many.std(0) / len(many) ** 0.5
    assert ((many.mean(0) - wanted).abs() <= 5 * error + 1e-12).all()


def test_nothing_to_learn_is_a_differentiable_zero():
    hidden, weight, bias, labels, raw = made()
    hidden.requires_grad_()
    labels[:] = -100
    head = Head(weight, bias)
    log_prob, *_ = drawn_log_prob(head, hidden, packed(raw, labels), labels)
    log_prob.sum().backward()
    assert not hidden.grad.any()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda logits, draws, labels: (logits, draws[:, 1:], labels), "draws must have the shape"),
        (
            lambda logits, draws, labels: (logits, draws[..., 0], labels),
            "draws must have the shape",
        ),
        (lambda logits, draws, labels: (logits[:, 1:], draws, labels), "prompt tuning"),
    ],
)
def test_refusals(change, match):
    hidden, weight, _, labels, raw = made()
    with pytest.raises(ValueError, match=match):
        soft_cross_entropy(*change(hidden @ weight.T, packed(raw, labels), labels))
