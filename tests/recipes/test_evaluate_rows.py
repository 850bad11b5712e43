"""What a model predicts on rows, against one position at a time."""

import math

import pytest
import torch
from common.precision import fast_precision
from conftest import VOCAB_SIZE, make_llama
from studies.evaluation import NUM_BINS, evaluate, frequency_deciles


def slow(model, input_ids, labels, groups):
    """Loss, calibration error and loss of groups, token by token in float64."""
    nll, bins, of_group = [], [[] for _ in range(NUM_BINS)], {}
    for row, wanted in zip(input_ids, labels, strict=True):
        with torch.no_grad(), fast_precision(torch.device("cpu")):
            logits = model(input_ids=row[None]).logits[0].double()
        for t in range(1, len(row)):
            if wanted[t] == -100:
                continue
            p = logits[t - 1].softmax(-1)
            nll.append(-math.log(p[wanted[t]]))
            of_group.setdefault(int(groups[wanted[t]]), []).append(nll[-1])
            sure = float(p.max())
            right = int(p.argmax()) == int(wanted[t])
            bins[min(int(sure * NUM_BINS), NUM_BINS - 1)].append(sure - right)
    gap = sum(abs(sum(one)) for one in bins) / len(nll)
    means = {name: sum(v) / len(v) for name, v in of_group.items()}
    return sum(nll) / len(nll), gap, means


def test_it_is_what_one_position_at_a_time_gives():
    model = make_llama(1)
    ids = torch.randint(5, 300, (11, 20), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :4] = -100
    labels[3] = -100
    groups = torch.arange(VOCAB_SIZE) % 3
    found = evaluate(model, ids, labels, groups=groups)
    loss, gap, means = slow(model, ids, labels, groups)
    assert found.tokens == 10 * 16
    assert found.loss == pytest.approx(loss, rel=1e-3)
    assert found.ece == pytest.approx(gap, abs=2e-3)
    assert found.deciles == pytest.approx([means[n] for n in range(3)], rel=1e-3)


def test_rows_without_a_label_are_refused():
    ids = torch.ones(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="labels hold no token"):
        evaluate(make_llama(), ids, torch.full_like(ids, -100))


def test_deciles_have_equal_mass_and_the_rarest_last():
    counts = torch.tensor([0, 50, 10, 10, 10, 10, 10, 0])
    assert frequency_deciles(counts).tolist() == [9, 0, 5, 6, 7, 8, 9, 9]
