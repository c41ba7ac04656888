"""O407: gradients are cleared before the step that should use them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.iterations import (
    STEPS,
    after,
    before,
    has_closure,
    is_sure,
    loop_of,
    loops_of,
    meet,
    surely_clears,
    whenever,
    within,
)
from frostline.lint.rule import LintRule, Violation
from frostline.lint.statements import moved_below


def check(view: FileView) -> Iterator[Violation]:
    """Calls of `zero_grad` between a backward pass and the step, and at every micro-batch of an accumulation."""
    for flow in view.flows:
        for clear in flow.of("zero_grad"):
            if clear.node is None:
                continue
            found = _before_the_step(view, flow, clear) or _per_micro_batch(view, flow, clear)
            if found is not None:
                yield found


def _before_the_step(view: FileView, flow: Flow, clear: Event) -> Violation | None:
    """``backward(); zero_grad(); step()``: the step finds no gradient."""
    step = next(after(flow, clear, *STEPS, "backward", "grad_set", "unknown"), None)
    if step is None or step.what not in STEPS or has_closure(step) or not surely_clears(flow, clear, step):
        return None
    if loops_of(step) != loops_of(clear) or not whenever(clear, step):
        return None
    passed = next(before(flow, clear, *STEPS, "backward"), None)
    if passed is None or passed.what != "backward" or passed.get("by") == "optimizer" or not meet(passed, step):
        return None
    if loops_of(passed)[: len(loops_of(clear))] != loops_of(clear) or not _is_one_run(passed, clear, step):
        return None
    if _computes_between(view, clear, step):
        return None
    return _violation(
        view,
        flow,
        clear,
        step,
        message=f"gradients are cleared between backward() and the step of {step.path}: it has none to use",
        evidence=(f"line {passed.line} computes them", f"line {step.line} steps"),
        remedy="move it before the backward pass, or behind the step",
        title="Clear behind the step",
    )


def _is_one_run(*events: Event) -> bool:
    """Whether events follow each other where no loop is around them: all in one function and what it calls."""
    return bool(loops_of(events[-1])) or len({event.via[:1] or event.function for event in events}) == 1


def _computes_between(view: FileView, clear: Event, step: Event) -> bool:
    """Whether a call between two lines may compute gradients without our seeing it."""
    first, last = clear.line, step.line
    return any(
        first < call.lineno < last and ("backward" in (name := view.text(call.func)) or name.endswith("grad"))
        for call in view.nodes(ast.Call)
    )


def _per_micro_batch(view: FileView, flow: Flow, clear: Event) -> Violation | None:
    """``zero_grad()`` in every pass, while only every k-th one steps."""
    loop = loop_of(clear)
    if loop is None:
        return None
    inside = [event for event in flow.events if within(event, loop)]
    steps = [event for event in inside if event.what in STEPS]
    passes = [event for event in inside if event.what == "backward"]
    if len({step.path for step in steps}) != 1 or not passes or any(loop_of(e) != loop for e in (*steps, *passes)):
        return None
    if any(event.what == "grad_set" for event in inside) or any(has_closure(step) for step in steps):
        return None
    for step in steps:
        rest = [c for c in step.conditions if c.key not in {each.key for each in clear.conditions}]
        every = next((c for c in rest if c.arm and c.node is not None and _is_every(c.node)), None)
        if every is None or not surely_clears(flow, clear, step) or not whenever(clear, step):
            continue
        if any(every.key in {c.key for c in each.conditions} for each in passes):
            continue  # the branch has a backward pass of its own
        if not any(whenever(each, step) and meet(each, clear) for each in passes):
            continue
        test = view.text(every.node) if every.node is not None else ""
        return _violation(
            view,
            flow,
            clear,
            step,
            message="gradients are cleared at every micro-batch: only the last backward pass before a step counts",
            evidence=(f"line {step.line} steps only where {test}", f"line {passes[-1].line} is the backward pass"),
            remedy="clear once for each step: behind the step, in the same if",
            title="Clear behind the step, once for each",
        )
    return None


def _is_every(test: ast.expr) -> bool:
    """Whether a condition holds in every k-th pass: ``(i + 1) % k == 0``, ``not i % k``, alone or before an ``or``."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return any(_is_every(each) for each in test.values)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return isinstance(test.operand, ast.BinOp) and isinstance(test.operand.op, ast.Mod)
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.ops[0], ast.Eq)
        and isinstance(test.left, ast.BinOp)
        and isinstance(test.left.op, ast.Mod)
        and not (isinstance(test.left.right, ast.Constant) and test.left.right.value == 1)
    )


def _violation(
    view: FileView,
    flow: Flow,
    clear: Event,
    step: Event,
    *,
    message: str,
    evidence: tuple[str, ...],
    remedy: str,
    title: str,
) -> Violation:
    assert clear.node is not None
    statement = view.statement(clear.node)
    target = view.statement(step.node) if step.node is not None else None
    edits = ()
    if isinstance(statement, ast.Expr) and isinstance(target, ast.Expr) and not clear.origin and not step.origin:
        edits = moved_below(view, statement, target)
    sure = is_sure(flow, step)
    return Violation(
        clear.node,
        message,
        evidence=evidence,
        remedy=remedy,
        severity=Severity.ERROR if sure else Severity.WARNING,
        edits=edits,
        safety=Safety.UNSAFE if edits else Safety.MANUAL,
        title=title,
        inferred=not sure,
    )


RULE = LintRule(
    code="O407",
    what="Looks at the order of `backward`, `zero_grad` and `step` of one optimizer in one pass of a loop: whether "
    "gradients are cleared before the step that should use them, and whether they are cleared in every pass where "
    "only every k-th one steps.",
    why="`backward(); zero_grad(); step()` trains nothing, in silence. `zero_grad()` at every micro-batch of "
    "gradient accumulation trains with the last one only, at a k-th of the learning rate if the loss is divided by k.",
    example="for x, y in loader:\n    criterion(model(x), y).backward()\n    optimizer.zero_grad()\n"
    "    optimizer.step()",
    instead="for x, y in loader:\n    optimizer.zero_grad()\n    criterion(model(x), y).backward()\n"
    "    optimizer.step()",
    remedy="Clear once for each step: before its first backward pass, or right after the step.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: training begins, or takes larger steps",
    false_alarms="A step of which only the momentum or the weight decay is wanted. Silent: two nets in turn (a GAN), "
    "gradients that are set by hand, steps with a closure, and branches with a backward pass of their own.",
    source="RAE#67, openWakeWord#316, ultralytics PR11217, accelerate#1299",
    triggers=("zero_grad", "backward"),
    check=check,
)
