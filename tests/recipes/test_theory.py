"""The simulated linear process against its exact expectation, run by run of X and of the masks."""

import numpy as np
import pytest
from paper.simulation import (
    Problem,
    Schedule,
    schedules_of_total_share,
    share_within_twice,
    simulate,
    standard_schedules,
)
from reference import expected_linear_errors

SMALL = Problem(dimension=3, samples=20, edits=4, runs=4000, noise=0.5, seed=1)
SCHEDULES = standard_schedules(SMALL)


@pytest.mark.parametrize("number", range(len(SCHEDULES)), ids=[one.name for one in SCHEDULES])
def test_process_has_its_expectation(number):
    schedule = SCHEDULES[number]
    (curve,) = simulate(SMALL, [schedule])
    exact, error = expected_linear_errors(SMALL, schedule, runs=600)
    # Five standard errors of both: one failure in a million tests.
    spread = 5 * np.hypot(curve.standard_error, error / SMALL.unit)
    assert (np.abs(curve.mean - exact / SMALL.unit) < spread).all()


def test_full_replacement_grows_with_the_generations():
    (curve,) = simulate(SMALL, [SCHEDULES[1]])
    assert SCHEDULES[1].name == "full replacement"
    assert np.abs(curve.mean - np.arange(1, 6)).max() < 5 * curve.standard_error.max()
    assert curve.twice == "broken"
    assert curve.described


def test_disjoint_edits_repeat_the_models_error():
    """Each row edited once: Theorem 1's form says 2, the process goes far beyond."""
    (curve,) = simulate(SMALL, [SCHEDULES[5]])
    assert SCHEDULES[5].closed_form(SMALL) == 2
    assert curve.mean[-1] > 2.3
    assert not curve.described
    assert curve.twice == "broken"


def test_same_seed_same_numbers_and_arms_share_their_problem():
    first, second = (simulate(SMALL, SCHEDULES[:2]) for _ in range(2))
    assert np.array_equal(first[1].mean, second[1].mean)
    assert first[0].mean[0] == first[1].mean[0]  # the fit to real data


@pytest.mark.parametrize("share", [0.1, 0.37, 1.0])
def test_ways_to_edit_a_share_edit_that_share(share):
    problem = Problem()
    for one in schedules_of_total_share(problem, share):
        assert sum(one.counts) == round(share * problem.samples)
        assert len(one.counts) == problem.edits


def test_bounds():
    problem = Problem()
    assert problem.unit == pytest.approx(10 / 89)
    halving = standard_schedules(problem)[3]
    assert halving.counts[:4] == (30, 15, 8, 4)
    assert halving.closed_form(problem) == pytest.approx(1.6)
    # By hand: sqrt(990 / 696,870) sqrt(30) / (1 - sqrt(1/2)), in units of 10/89.
    assert halving.decaying_bound(problem) == pytest.approx(7.2731, abs=1e-4)
    assert standard_schedules(problem)[2].decaying_bound(problem) == np.inf


def test_share_within_twice_where_it_is_never_passed():
    assert share_within_twice([0.5, 1.0], [1.2, 1.9]) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 13}, r"samples must be at least dimension \+ 4 = 14, got 13"),
        ({"runs": 1}, r"runs must be at least 2, got 1"),
        ({"noise": 0.0}, r"noise must be a finite number above 0, got 0.0"),
    ],
)
def test_problems_that_can_not_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        Problem(**arguments)


def test_an_arm_that_does_not_fit():
    schedule = Schedule("too many", (15, 15, 0, 0), disjoint=True)
    with pytest.raises(ValueError, match=r"'too many' edits \(15, 15, 0, 0\) rows"):
        simulate(SMALL, [schedule])
