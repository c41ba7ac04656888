"""Seconds under names: none lost, none counted twice, and the counting costs next to nothing."""

from __future__ import annotations

import json
import timeit
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from frostline.runs.time_spent import SpentRow, TimeSpent


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_blocks_of_one_name_add_up_and_what_lies_between_is_not_counted(clock: Clock):
    spent = TimeSpent(clock)
    for seconds in (1.0, 2.0):
        with spent("loading"):
            clock.pass_by(seconds)
        clock.pass_by(50.0)
    with spent("head"):
        clock.pass_by(1.0)
    assert spent.to_json() == {"loading": 3.0, "head": 1.0}
    assert spent.rows() == (SpentRow("loading", 3.0, 0.75), SpentRow("head", 1.0, 0.25))


class Naive:
    """What one writes first: each block adds its own duration, whatever lies within."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = self.clock()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - started

    def to_json(self) -> dict[str, float]:
        return self.seconds


def nest(spent: TimeSpent | Naive, clock: Clock) -> float:
    """Three names within each other, one of them twice; gives how long the outermost took."""
    started = clock()
    with spent("head"):
        clock.pass_by(1.0)
        with spent("prefix"):
            clock.pass_by(2.0)
            with spent("loading"):
                clock.pass_by(4.0)
            with spent("head"):
                clock.pass_by(8.0)
            clock.pass_by(16.0)
        clock.pass_by(32.0)
    return clock() - started


def test_no_second_of_nested_blocks_is_counted_twice(clock: Clock):
    spent = TimeSpent(clock)
    assert nest(spent, clock) == sum(spent.to_json().values()) == 63.0
    assert spent.to_json() == {"head": 41.0, "prefix": 18.0, "loading": 4.0}


def test_the_naive_account_fails_the_same_check(clock: Clock):
    spent = Naive(clock)
    assert nest(spent, clock) < sum(spent.to_json().values())


def test_a_block_that_an_exception_leaves_is_counted_and_closed(clock: Clock):
    spent = TimeSpent(clock)
    with pytest.raises(KeyError), spent("outer"), spent("inner"):
        clock.pass_by(3.0)
        raise KeyError
    clock.pass_by(9.0)
    with spent("outer"):
        clock.pass_by(1.0)
    assert spent.to_json() == {"outer": 1.0, "inner": 3.0}


def test_an_open_block_is_read_up_to_now(clock: Clock):
    spent = TimeSpent(clock)
    with spent("saving"):
        clock.pass_by(2.0)
        assert spent.to_json() == {"saving": 2.0}
        clock.pass_by(3.0)
    assert spent.to_json() == {"saving": 5.0}


def test_waiting_for_items_is_counted_and_working_on_them_is_not(clock: Clock):
    spent = TimeSpent(clock)

    class Loader:
        def __iter__(self) -> Iterator[int]:
            clock.pass_by(0.5)  # workers start
            return self.batches()

        def batches(self) -> Iterator[int]:
            for number in range(3):
                clock.pass_by(1.0)
                yield number
            clock.pass_by(0.25)  # workers stop

    seen: list[int] = []
    for number in spent.waits("loading", Loader()):
        clock.pass_by(10.0)
        seen.append(number)
    assert seen == [0, 1, 2]
    assert spent.to_json() == {"loading": 3.75}


def test_waiting_may_be_given_up_and_may_fail(clock: Clock):
    spent = TimeSpent(clock)

    def broken() -> Iterator[int]:
        yield 1
        clock.pass_by(2.0)
        raise OSError("no such image")

    for _ in spent.waits("loading", range(5)):
        break
    with pytest.raises(OSError, match="no such image"):
        list(spent.waits("loading", broken()))
    clock.pass_by(7.0)
    assert spent.to_json() == {"loading": 2.0}


def test_seconds_from_elsewhere(clock: Clock):
    spent = TimeSpent(clock)
    with spent("head"):
        clock.pass_by(1.0)
        spent.add("decoding", 0.5)
    spent.add("decoding", 0.25)
    assert spent.to_json() == {"head": 1.0, "decoding": 0.75}
    for impossible in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"'head': .* s cannot have been spent"):
            spent.add("head", impossible)
    assert json.loads(json.dumps(spent.to_json(), allow_nan=False)) == spent.to_json()


def test_nothing_spent_has_no_shares(clock: Clock):
    assert TimeSpent(clock).rows() == ()
    spent = TimeSpent(clock)
    with spent("head"):
        pass
    assert spent.rows() == (SpentRow("head", 0.0, 0.0),)


def test_no_block_is_closed_that_was_not_opened(clock: Clock):
    spent = TimeSpent(clock)
    spent.begin("head")
    spent.end()
    with pytest.raises(IndexError):
        spent.end()


def test_a_block_costs_less_than_two_microseconds():
    """The least of many rounds, because the machine has other things to do as well."""
    spent = TimeSpent()

    def nested() -> None:
        with spent("head"), spent("loading"):
            pass

    assert min(timeit.repeat(nested, number=500, repeat=40)) / 500 / 2 < 2e-6
