"""O406: gradients are never cleared and pile up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow, Loop
from frostline.lint.file_view import FileView
from frostline.lint.iterations import (
    STEPS,
    after,
    before,
    has_closure,
    is_sure,
    loop_of,
    may_clear,
    meet,
    whenever,
    within,
)
from frostline.lint.module_walk import plain_path
from frostline.lint.rule import LintRule, Violation
from frostline.lint.statements import ends_its_line

# What a function is called that may clear gradients without our seeing it.
_MAY_CLEAR = re.compile(r"zero|clear|clean|reset|hook|callback|set_grad|step_and|optimi[sz]e")


def check(view: FileView) -> Iterator[Violation]:
    """Loops with a backward pass and a step of an optimizer in which nothing clears its gradients."""
    for flow in view.flows:
        if not flow.is_complete:
            continue
        for step in flow.of(*STEPS):
            loop = loop_of(step)
            if loop is not None and loop.node is not None and not has_closure(step):
                yield from _piled(view, flow, step, loop, loop.node)


def _piled(view: FileView, flow: Flow, step: Event, loop: Loop, node: ast.AST) -> Iterator[Violation]:
    inside = [event for event in flow.events if within(event, loop)]
    passes = [e for e in before(flow, step, "backward") if within(e, loop) and meet(e, step)]
    passes += [e for e in after(flow, step, "backward") if within(e, loop) and meet(e, step)]
    clears = [e for e in flow.of("zero_grad", "grad_set") if may_clear(flow, e, step)]
    if not passes or passes[0].node is None or any(within(e, loop) for e in clears):
        return
    if any(e.what in {"optimizer", "wrap"} and e.path == step.path for e in inside):
        return  # a fresh one in each pass
    if _is_bound_in(node, step.path) or _may_clear(view, node, inside, step):
        return
    outside = [e for e in clears if any(within(e, each) for each in step.loops)]
    if outside and not whenever(step, passes[0]) and not _counts(step):
        return  # one step for each pass of the outer loop, such as at the last batch
    if any(isinstance(each, ast.Break) for each in ast.walk(node)) and not _goes_on(view, step, node):
        return
    call = step.node
    name = _optimizer_text(view, step)
    sure = is_sure(flow, step)
    seen = [f"line {step.line} steps with what line {passes[0].line} has added to"]
    seen += [f"{name}.zero_grad() of line {e.line} stands outside of the loop of line {loop.line}" for e in clears[:1]]
    if not clears:
        seen.append(f"in the loop of line {loop.line} nothing calls zero_grad() or sets .grad")
    if step.origin:
        seen.append(f"the step is at {step.origin}")
    statement = view.statement(call) if call is not None and not step.origin else None
    edits = ()
    if isinstance(statement, ast.Expr) and statement.value is call and name and ends_its_line(view, statement):
        edits = (view.line_below(statement, f"{name}.zero_grad()"),)
    yield Violation(
        passes[0].node,
        f"{name or 'the optimizer'} steps on gradients that nobody clears: each step adds to those of all steps before",
        evidence=tuple(seen),
        remedy=f"{name or 'optimizer'}.zero_grad() after the step",
        severity=Severity.ERROR if sure else Severity.WARNING,
        edits=edits,
        safety=Safety.UNSAFE if edits else Safety.MANUAL,
        title=f"Clear the gradients after {name}.step()",
        inferred=not sure,
    )


def _optimizer_text(view: FileView, step: Event) -> str:
    """The optimizer, as its step names it."""
    node = step.node
    if step.origin or not isinstance(node, ast.Call):
        return step.path
    if step.what == "scaler_step":
        return view.text(node.args[0]) if node.args else step.path
    return view.text(node.func.value) if isinstance(node.func, ast.Attribute) else step.path


def _is_bound_in(loop: ast.AST, path: str) -> bool:
    """Whether a loop gives the name of an optimizer to another one in each pass."""
    root = re.split(r"[.\[]", path)[0]
    bound = {plain_path(e) for e in ast.walk(loop) if isinstance(e, (ast.Name, ast.Attribute)) and _stores(e)}
    return path in bound or root in bound


def _stores(node: ast.Name | ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store)


def _may_clear(view: FileView, loop: ast.AST, inside: list[Event], step: Event) -> bool:
    """Whether something in a loop may clear gradients that is not understood: by its name, or by what it is given."""
    for event in inside:
        if event.what == "unknown" and (step.path in event.get("paths", ()) or _MAY_CLEAR.search(event.get("name"))):
            return True
    functions = {event.function for event in inside}
    bodies: list[ast.AST] = [loop]
    bodies += [view.walk.functions[name].node for name in functions if name in view.walk.functions]
    # Of the function that the loop stands in, only the loop counts.
    return any(_clears_by_hand(view, body) for body in bodies if body is loop or not _holds(body, loop))


def _holds(body: ast.AST, loop: ast.AST) -> bool:
    return any(each is loop for each in ast.walk(body))


def _clears_by_hand(view: FileView, body: ast.AST) -> bool:
    for node in ast.walk(body):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name == "zero_" or "foreach_zero" in name:
                return True
            value = view.value(function)
            is_known = value is not None and value.kind in {"function", "class"}
            if _MAY_CLEAR.search(name) and not is_known and not name.startswith(("zeros", "zero_grad")):
                return True
        elif isinstance(node, ast.Attribute) and node.attr == "grad" and not isinstance(node.ctx, ast.Load):
            return True
    return False


def _counts(step: Event) -> bool:
    """Whether a step stands under a condition on a count: every k-th pass."""
    return any(
        isinstance(node, ast.Mod)
        for condition in step.conditions
        if condition.node is not None
        for node in ast.walk(condition.node)
    )


def _goes_on(view: FileView, step: Event, loop: ast.AST) -> bool:
    """Whether the loop goes on after a step: the block that it stands in does not leave the loop."""
    if step.node is None:
        return True
    for each in (step.node, *view.parents(step.node)):
        if each is loop:
            return not (isinstance(each, (ast.For, ast.While)) and isinstance(each.body[-1], (ast.Break, ast.Return)))
        if isinstance(each, ast.If) and isinstance(each.body[-1], (ast.Break, ast.Return)):
            return False
    return True


RULE = LintRule(
    code="O406",
    what="Looks for loops over data in which `backward()` is called and an optimizer steps, and in which neither its "
    "own nor a model's `zero_grad()` is called and no `.grad` is set.",
    why="`backward()` adds to `.grad`. Without `zero_grad()` each step is made with the sum of all gradients so far: "
    "it behaves like a momentum of 1, overshoots, and the loss explodes or swings.",
    example="for x, y in loader:\n    criterion(model(x), y).backward()\n    optimizer.step()",
    instead="for x, y in loader:\n    optimizer.zero_grad()\n    criterion(model(x), y).backward()\n"
    "    optimizer.step()",
    remedy="Call `optimizer.zero_grad()` once for each step: before the first backward pass that counts for it, or "
    "after the step.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the steps become smaller, which is what the learning rate was meant for",
    false_alarms="A loop that keeps gradients on purpose as its momentum, and optimizers of one's own that clear in "
    "`step()`. Silent: steps with a closure, loops that make the model or the optimizer anew, one step for each pass "
    "of an outer loop, and loops that call something whose name says that it may clear (`reset`, `hook`).",
    source="stackoverflow 60335387, pytorch#47175, TennisCourtDetector#7, torchforge PR71",
    triggers=("backward", "optim"),
    check=check,
)
