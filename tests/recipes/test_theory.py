"""The simulated linear process against its exact expectation, run by run of X and of the masks."""

import numpy as np
import pytest
from paper.simulation import (
    Arm,
    World,
    arms_of_total_share,
    share_within_twice,
    simulate,
    standard_arms,
)
from reference import expected_linear_errors

SMALL = World(dimension=3, samples=20, edits=4, runs=4000, noise=0.5, seed=1)
ARMS = standard_arms(SMALL)


@pytest.mark.parametrize("number", range(len(ARMS)), ids=[arm.name for arm in ARMS])
def test_process_has_its_expectation(number):
    arm = ARMS[number]
    (curve,) = simulate(SMALL, [arm])
    exact, error = expected_linear_errors(SMALL, arm, runs=600)
    # Five standard errors of both: one failure in a million tests.
    spread = 5 * np.hypot(curve.standard_error, error / SMALL.unit)
    assert (np.abs(curve.mean - exact / SMALL.unit) < spread).all()


def test_full_replacement_grows_with_the_generations():
    (curve,) = simulate(SMALL, [ARMS[1]])
    assert ARMS[1].name == "full replacement"
    assert np.abs(curve.mean - np.arange(1, 6)).max() < 5 * curve.standard_error.max()
    assert curve.twice == "broken"
    assert curve.described


def test_disjoint_edits_repeat_the_models_error():
    """Each row edited once: Theorem 1's form says 2, the process goes far beyond."""
    (curve,) = simulate(SMALL, [ARMS[5]])
    assert ARMS[5].closed_form(SMALL) == 2
    assert curve.mean[-1] > 2.3
    assert not curve.described
    assert curve.twice == "broken"


def test_same_seed_same_numbers_and_arms_share_their_world():
    first, second = (simulate(SMALL, ARMS[:2]) for _ in range(2))
    assert np.array_equal(first[1].mean, second[1].mean)
    assert first[0].mean[0] == first[1].mean[0]  # the fit to real data


@pytest.mark.parametrize("share", [0.1, 0.37, 1.0])
def test_ways_to_edit_a_share_edit_that_share(share):
    world = World()
    for arm in arms_of_total_share(world, share):
        assert sum(arm.counts) == round(share * world.samples)
        assert len(arm.counts) == world.edits


def test_bounds():
    world = World()
    assert world.unit == pytest.approx(10 / 89)
    halving = standard_arms(world)[3]
    assert halving.counts[:4] == (30, 15, 8, 4)
    assert halving.closed_form(world) == pytest.approx(1.6)
    # By hand: sqrt(990 / 696,870) sqrt(30) / (1 - sqrt(1/2)), in units of 10/89.
    assert halving.decaying_bound(world) == pytest.approx(7.2731, abs=1e-4)
    assert standard_arms(world)[2].decaying_bound(world) == np.inf


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
def test_worlds_that_can_not_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        World(**arguments)


def test_an_arm_that_does_not_fit():
    arm = Arm("too many", (15, 15, 0, 0), disjoint=True)
    with pytest.raises(ValueError, match=r"'too many' edits \(15, 15, 0, 0\) rows"):
        simulate(SMALL, [arm])
