"""Which events belong to one pass of a loop, and which happen together."""

from __future__ import annotations

import ast

import pytest

from frostline.lint.events import Condition, Event, Flow, Loop
from frostline.lint.iterations import (
    after,
    before,
    has_closure,
    loop_of,
    loops_of,
    may_clear,
    meet,
    repeats,
    surely_clears,
    whenever,
    within,
)
from frostline.lint.values import Value

EPOCHS = Loop((1,), "for", Value("range"))
BATCHES = Loop((2,), "for", Value("enumerate", items=(Value("loader"),)))
PARTS = Loop((3,), "for", Value("parameters", path="model"))
YES, NO = Condition((7,), True), Condition((7,), False)


def event(what="step", path="optimizer", loops=(), conditions=(), **data):
    return Event(what, path, 1, 0, loops=loops, conditions=conditions, data=data)


@pytest.mark.parametrize("over", [None, Value("range"), Value("loader"), Value("zip", items=(Value("loader"), None))])
def test_loops_that_repeat(over):
    assert repeats(Loop((1,), "for", over))


@pytest.mark.parametrize(
    "loop",
    [
        PARTS,
        Loop((1,), "comprehension"),
        Loop((1,), "for", Value("optimizer")),
        Loop((1,), "for", Value("list", items=())),
        Loop((1,), "for", Value("zip", items=(Value("optimizer"), Value("scheduler")))),
        Loop((1,), "for", Value("enumerate", items=(Value("modules"),))),
    ],
)
def test_loops_over_things_do_not(loop):
    assert not repeats(loop)


def test_the_loops_of_an_event():
    step = event(loops=(EPOCHS, BATCHES, PARTS))
    assert loops_of(step) == (EPOCHS, BATCHES)
    assert loop_of(step) is BATCHES
    assert loop_of(event()) is None
    assert [within(step, loop) for loop in (EPOCHS, PARTS, Loop((9,), "for"), None)] == [True, True, False, True]


def test_opposite_arms_do_not_meet():
    assert not meet(event(conditions=(YES,)), event(conditions=(NO,)))
    assert meet(event(conditions=(YES,)), event(conditions=(YES,)))
    assert meet(event(conditions=(YES,)), event())


def test_whenever_is_no_condition_of_its_own():
    assert whenever(event(), event(conditions=(YES,)))
    assert not whenever(event(conditions=(YES,)), event())
    assert not whenever(event(conditions=(YES,)), event(conditions=(NO,)))


def test_a_step_with_a_closure():
    def stepped(text, what="step"):
        return Event(what, "optimizer", 1, 0, node=ast.parse(text, mode="eval").body)

    assert has_closure(stepped("optimizer.step(closure)"))
    assert has_closure(stepped("optimizer.step(closure=once)"))
    assert not has_closure(stepped("optimizer.step()"))
    assert not has_closure(stepped("scaler.step(optimizer)", "scaler_step"))


def test_whose_gradients_are_cleared():
    body = Value("parameters", path="model.body")
    made = event("optimizer", "one", sources=[body])
    one, other = event(path="one"), event(path="other")
    flow = Flow("f", (made, one, other))
    own, foreign = event("zero_grad", "one", of="optimizer"), event("zero_grad", "other", of="optimizer")
    model, rest = event("zero_grad", "model", of="module"), event("zero_grad", "critic", of="module")
    assert [may_clear(flow, each, one) for each in (own, foreign, model, rest)] == [True, False, True, True]
    assert [surely_clears(flow, each, one) for each in (own, foreign, model, rest)] == [True, False, True, False]
    # Of an optimizer that was made elsewhere, the model's is its own only where nothing else steps.
    assert not surely_clears(flow, model, other)
    assert surely_clears(Flow("f", (other,)), model, other)


def test_before_and_after_are_by_place_in_the_flow():
    first, middle, last = event("backward"), event("step"), event("backward")
    flow = Flow("f", (first, middle, last))
    assert [id(each) for each in before(flow, middle, "backward")] == [id(first)]
    assert [id(each) for each in after(flow, middle, "backward")] == [id(last)]
    assert list(before(flow, first, "step")) == []
