"""Which events of a flow belong to one pass of a loop over batches or epochs, and which of them happen together."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.lint.events import Event, Flow, Loop
from frostline.lint.values import MODULES, PARAMETERS, Value, related

# A loop over these goes through what is there once; it does not train.
_THINGS = PARAMETERS | MODULES | {"list", "tuple", "optimizer", "scheduler", "groups", "module", "name", "state_dict"}
STEPS = ("step", "scaler_step")
"""The kinds of events in which an optimizer steps."""


def repeats(loop: Loop) -> bool:
    """Whether a loop may be one over batches, steps or epochs: not over parameters, modules, optimizers or a literal.

    Example:
        >>> repeats(Loop((1,), "for", Value("range"))), repeats(Loop((1,), "for", Value("parameters")))
        (True, False)
    """
    return loop.kind != "comprehension" and not goes_over_things(loop.over)


def goes_over_things(over: Value | None) -> bool:
    """Whether what a loop goes over is parameters, modules, optimizers or a literal, and no data."""
    if over is None:
        return False
    if over.kind in {"enumerate", "zip"}:
        return any(goes_over_things(item) for item in over.items)
    return over.kind in _THINGS


def loops_of(event: Event) -> tuple[Loop, ...]:
    """The loops over batches, steps or epochs that an event stands in, the outermost first."""
    return tuple(loop for loop in event.loops if repeats(loop))


def loop_of(event: Event) -> Loop | None:
    """The innermost of them; ``None`` if there is none."""
    return next(reversed(loops_of(event)), None)


def within(event: Event, loop: Loop | None) -> bool:
    """Whether an event stands in a loop; everything stands in none."""
    return loop is None or any(each.key == loop.key for each in event.loops)


def meet(one: Event, other: Event) -> bool:
    """Whether two events can happen in the same pass: they stand in no opposite arms of an ``if``."""
    arms = {condition.key: condition.arm for condition in one.conditions}
    return all(arms.get(condition.key, condition.arm) is condition.arm for condition in other.conditions)


def whenever(one: Event, other: Event) -> bool:
    """Whether an event happens in every pass in which another one does: it stands under no condition of its own."""
    theirs = {(condition.key, condition.arm) for condition in other.conditions}
    return all((condition.key, condition.arm) in theirs for condition in one.conditions)


def has_closure(step: Event) -> bool:
    """Whether an optimizer's step is given a function that clears and computes gradients itself, as LBFGS needs it."""
    node = step.node
    if step.what != "step" or not isinstance(node, ast.Call) or step.origin:
        return False
    return bool(node.args) or any(keyword.arg in {"closure", None} for keyword in node.keywords)


def optimizers(flow: Flow) -> frozenset[str]:
    """The paths that are known to be optimizers, by how they are made or used."""
    return frozenset(event.path for event in flow.of("optimizer", "add_group", *STEPS) if event.path)


def may_clear(flow: Flow, clear: Event, step: Event) -> bool:
    """Whether gradients that are cleared may be those that an optimizer steps with: not those of another optimizer."""
    if clear.path == step.path or clear.what == "grad_set" or not clear.path:
        return True
    return not (clear.path in optimizers(flow) and step.path)


def surely_clears(flow: Flow, clear: Event, step: Event) -> bool:
    """Whether gradients that are cleared are those that an optimizer steps with: its own, or those of its model."""
    if clear.path and clear.path == step.path:
        return True
    if clear.get("of") != "module" or not step.path:
        return False
    made = [event for event in flow.of("optimizer") if event.path == step.path]
    sources: list[Value] = [source for event in made for source in event.get("sources", ())]
    if sources:
        return all(related(source.owner, clear.path) and len(source.owner) >= len(clear.path) for source in sources)
    return {event.path for event in flow.of(*STEPS)} == {step.path}


def is_sure(flow: Flow, step: Event) -> bool:
    """Whether what steps is known to be an optimizer, and not only called one."""
    return any(event.path == step.path for event in flow.of("optimizer"))


def before(flow: Flow, event: Event, *kinds: str) -> Iterator[Event]:
    """The events of some kinds that come before another one, the latest first."""
    index = next(i for i, each in enumerate(flow.events) if each is event)
    for each in reversed(flow.events[:index]):
        if each.what in kinds:
            yield each


def after(flow: Flow, event: Event, *kinds: str) -> Iterator[Event]:
    """The events of some kinds that come after another one, in order."""
    index = next(i for i, each in enumerate(flow.events) if each is event)
    for each in flow.events[index + 1 :]:
        if each.what in kinds:
            yield each
