"""S452: the scheduler steps before the optimizer."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.iterations import STEPS, after, before, is_sure, loops_of, meet, whenever, within
from frostline.lint.rule import LintRule, Violation
from frostline.lint.statements import block_of, moved_below


def check(view: FileView) -> Iterator[Violation]:
    """Calls of `scheduler.step()` that come before the first step of the optimizer in a pass of their loop."""
    for flow in view.flows:
        for ahead in flow.of("scheduler_step"):
            if ahead.node is not None and _is_plain(ahead):
                yield from _early(view, flow, ahead)


def _is_plain(ahead: Event) -> bool:
    """Whether it is called without arguments: with an epoch or a metric it may stand anywhere."""
    node = ahead.node
    return isinstance(node, ast.Call) and not node.args and not node.keywords and not ahead.origin


def _early(view: FileView, flow: Flow, ahead: Event) -> Iterator[Violation]:
    loops = loops_of(ahead)
    made = [e for e in flow.of("scheduler") if e.path == ahead.path]
    of = made[-1].get("of") if made else ""
    loop = loops[-1] if loops else None
    # Outside of the last loop over data, what came before is not a part of the pass.
    earlier = [
        e for e in before(flow, ahead, *STEPS) if within(e, loop) and (not of or e.path == of) and meet(e, ahead)
    ]
    steps = [
        e
        for e in after(flow, ahead, *STEPS)
        if loops_of(e)[: len(loops)] == loops and (not of or e.path == of) and whenever(ahead, e)
    ]
    if not steps or earlier or _may_step(flow, ahead, steps[0]):
        return
    step = steps[0]
    if not of and len({e.path for e in flow.of(*STEPS)}) > 1 and _names_another(flow, ahead, step):
        return
    if loop is None:
        yield from _once(view, flow, ahead, step)
        return
    if any(event.what == "scheduler" and event.path == ahead.path for event in flow.events if within(event, loop)):
        # A scheduler that is made in the same pass is stepped once to begin with.
        return
    sure = bool(made) and is_sure(flow, step)
    edits, safety = _moved(view, ahead, step)
    yield Violation(
        ahead.node or view.tree,
        f"{_written(view, ahead)} steps before {_written(view, step)}: the first rate of the schedule is never used",
        evidence=(
            f"line {step.line} is the first step of {_written(view, step)} in the loop of line {loop.line}"
            + (f" (at {step.origin})" if step.origin else ""),
        ),
        remedy=f"call it after {_written(view, step)}.step(), at the end of the step or epoch",
        severity=Severity.WARNING,
        edits=edits,
        safety=safety,
        title="Step the scheduler behind the optimizer",
        inferred=not sure,
    )


def _written(view: FileView, event: Event) -> str:
    """What is stepped, as its line reads; where that is in another file, the path by which it is known here."""
    node = event.node
    if event.origin or not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return shown(event.path)
    # A scaler, or a framework, is what steps there; the optimizer is what it is given.
    return view.text(node.func.value) if node.func.attr == "step" and event.what != "scaler_step" else shown(event.path)


def _may_step(flow: Flow, ahead: Event, step: Event) -> bool:
    """Whether something before a scheduler's step may be a step of the optimizer that is not understood."""
    loops = loops_of(ahead)
    return any(
        step.path in event.get("paths", ()) and loops_of(event)[: len(loops)] == loops
        for event in before(flow, ahead, "unknown")
    )


def _names_another(flow: Flow, ahead: Event, step: Event) -> bool:
    """Whether, by its name, a scheduler belongs to another optimizer: ``scheduler_g`` to ``optimizer_g``."""
    last = ahead.path.rpartition(".")[2].lower()
    ends = [path for path in {e.path for e in flow.of(*STEPS)} if last.endswith(path.rpartition(".")[2].lower()[-2:])]
    return step.path not in ends


def _once(view: FileView, flow: Flow, ahead: Event, step: Event) -> Iterator[Violation]:
    """A call before the loop: it takes the first rate off the schedule."""
    loops = loops_of(step)
    again = [e for e in after(flow, ahead, "scheduler_step") if e.path == ahead.path and loops_of(e)]
    if not loops or not again or ahead.loops or ahead.conditions or ahead.function != step.function:
        return
    yield Violation(
        ahead.node or view.tree,
        f"{_written(view, ahead)} steps once before the loop of line {loops[0].line}: the first rate is never used",
        evidence=(f"line {step.line} is the first step of {_written(view, step)}",),
        remedy="remove it, unless the schedule was made with one step too many for this",
        severity=Severity.INFO,
        inferred=True,
    )


def _moved(view: FileView, ahead: Event, step: Event) -> tuple[tuple[Edit, ...], Safety]:
    """Edits that put the scheduler's step behind the optimizer's, or behind the loop over batches that holds it."""
    statement = view.statement(ahead.node) if ahead.node is not None else None
    target = view.statement(step.node) if step.node is not None and not step.origin else None
    if not isinstance(statement, ast.Expr) or target is None or ahead.function != step.function:
        return (), Safety.MANUAL
    block = block_of(view, statement)
    chain = [target, *(each for each in view.parents(target) if isinstance(each, ast.stmt))]
    # In its own block: the step itself, or the loop over batches, or the branch that the step stands in.
    place = next((each for each in chain if any(each is other for other in block)), None)
    if place is None or not isinstance(place, (ast.Expr, ast.For, ast.With, ast.Assign)):
        return (), Safety.MANUAL
    edits = moved_below(view, statement, place)
    if not edits:
        return (), Safety.MANUAL
    index = next(i for i, each in enumerate(block) if each is statement)
    is_next = isinstance(place, ast.Expr) and block[index + 1] is place
    return edits, Safety.SAFE if is_next else Safety.UNSAFE


RULE = LintRule(
    code="S452",
    what="Looks, in each loop over epochs or batches, for a `scheduler.step()` without arguments that comes before "
    "the first step of its optimizer in that loop.",
    why="The first rate of the schedule is then never used, and every later one comes one step or epoch too early. A "
    "warm-up that should begin at a small rate begins higher; a schedule made before torch 1.1 in this order is off "
    "by one epoch.",
    example="for epoch in range(epochs):\n    scheduler.step()\n    for x, y in loader:\n"
    "        optimizer.zero_grad()\n"
    "        criterion(model(x), y).backward()\n        optimizer.step()",
    instead="for epoch in range(epochs):\n    for x, y in loader:\n        optimizer.zero_grad()\n"
    "        criterion(model(x), y).backward()\n        optimizer.step()\n    scheduler.step()",
    remedy="Call `scheduler.step()` after `optimizer.step()`.",
    safety=Safety.SAFE,
    how_safe="safe where the two calls follow each other and change places; unsafe where the call moves over other "
    "lines, which may read the rate",
    false_alarms="Schedulers of one's own that set the rate of the step to come. Silent: calls with an argument (an "
    "epoch, a metric), calls under a condition of their own such as `if epoch > 0`, and schedules that are wound "
    "forward in a loop of their own. A single call before the loop is information only.",
    source="pytorch documentation, torch.optim, How to adjust learning rate",
    triggers=("sched", "lr_"),
    check=check,
)
