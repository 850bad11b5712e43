"""What goes on for ever is stopped, on each Python, and what comes to an end is not disturbed."""

import sys
import threading

import pytest

from toedit_collate.tokens.step_limit import EndlessError, with_step_limit

# All would end by themselves, some seconds later, so that a limit that fails takes no memory.
LONG = 10**6


def a_loop_in_one_line():
    return [None for _ in zip(range(LONG), iter(int, 1), strict=False)]


def a_loop(rounds=LONG):
    n = 0
    while n < rounds:
        n += 1


def a_generator():
    return sum(1 for _ in range(LONG))


def one_call(n):
    return n


def calls():
    return sum(map(one_call, range(LONG)))


def one_that_comes_back_from_an_error():
    for _ in range(LONG):
        try:
            raise ValueError
        except ValueError:
            pass


@pytest.mark.parametrize(
    "function",
    [a_loop_in_one_line, a_loop, a_generator, calls, one_that_comes_back_from_an_error],
)
def test_what_goes_on_is_stopped_each_time(function):
    for _ in range(2):  # a code object that was run before is instrumented otherwise
        with pytest.raises(EndlessError, match="stopped after 1000 steps"):
            with_step_limit(function, 1000)
    assert with_step_limit(lambda: 3, 1000) == 3


def test_nothing_is_left_behind():
    for _ in range(10):  # more than there are places for tools
        with pytest.raises(EndlessError):
            with_step_limit(a_loop, 10)
    assert sys.gettrace() is None
    a_loop(50_000)


def test_an_error_of_the_function_comes_through():
    with pytest.raises(ZeroDivisionError):
        with_step_limit(lambda: 1 / 0, 1000)


def test_other_threads_are_not_stopped():
    ended = []
    other = threading.Thread(target=lambda: ended.append(a_loop(50_000)))

    def beside():
        other.start()
        other.join()

    with_step_limit(beside, 10_000)
    assert ended == [None]
