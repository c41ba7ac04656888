"""M211: the optimizer's own mode does not follow the model's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation

# Optimizers that train at one point and evaluate at another (schedulefree 1.4, pytorch_optimizer 3).
_TWO_POINTS = re.compile(r"ScheduleFree")


def check(view: FileView) -> Iterator[Violation]:
    """Schedule-free optimizers that step in a flow which validates, saves or steps in the wrong mode of theirs."""
    for flow in view.flows:
        if not flow.is_complete:
            continue
        for made in flow.of("optimizer"):
            if _TWO_POINTS.search(str(made.get("cls", ""))) and made.path:
                yield from _of(view, flow, made)


def _of(view: FileView, flow: Flow, made: Event) -> Iterator[Violation]:
    path = made.path
    steps = [event for event in flow.of("step", "scaler_step") if event.path == path]
    if not steps or any(path in event.get("paths", ()) for event in flow.of("unknown")):
        return
    modes = [event for event in flow.of("optimizer_mode") if event.path == path]
    name = path.rpartition(".")[2]
    called = {each for each in ("train", "eval") if _is_called(view, name, each)}
    if "eval" not in called:
        yield from _never_averaged(view, flow, made, steps)
    elif "train" not in called:
        yield Violation(
            steps[0].node or made.node or view.tree,
            f"{path} steps, and its train() is never called: it steps in eval mode, from the average",
            evidence=(f"line {made.line} makes {path}", "schedulefree raises an exception in this step"),
            remedy=f"{path}.train() before the first step, and after each {path}.eval()",
            severity=Severity.ERROR,
        )
    else:
        yield from _not_switched_back(steps, modes, path)


def _never_averaged(view: FileView, flow: Flow, made: Event, steps: list[Event]) -> Iterator[Violation]:
    """The flow validates or saves, and never asks the optimizer for its average."""
    events = list(flow.events)
    first = events.index(steps[0])
    in_loop = {loop.key for loop in steps[0].loops}
    for index, event in enumerate(events):
        again = index < first and any(loop.key in in_loop for loop in event.loops)
        if not (index > first or again) or event.node is None:
            continue
        if event.what == "mode" and event.get("value") is False and event.get("how") == "method":
            runs = [e for e in events[index + 1 :] if e.what in {"forward", "unknown"}]
            if not runs:
                continue
            does = f"{event.path} goes into eval mode, and {made.path} does not"
        elif event.what in {"save", "state_dict"} and event.get("of", "module") == "module":
            does = f"the model is saved while {made.path} is in train mode"
        else:
            continue
        yield Violation(
            event.node,
            f"{does}: the weights are those it trains at, not their average",
            evidence=(f"line {made.line} makes {made.path}", f"line {steps[0].line} steps"),
            remedy=f"{made.path}.eval() here, and {made.path}.train() before the next step",
            severity=Severity.ERROR if event.what == "mode" else Severity.WARNING,
            edits=_edits(view, flow, made, steps[0]) if event.what == "mode" else (),
            safety=Safety.UNSAFE if event.what == "mode" else Safety.MANUAL,
            title=f"Switch {made.path} with the model",
        )
        return


def _not_switched_back(steps: list[Event], modes: list[Event], path: str) -> Iterator[Violation]:
    """In a loop that steps, `eval()` comes and `train()` stands before the loop only."""
    for event in modes:
        if event.get("value") or not event.loops or event.node is None:
            continue
        loop = event.loops[0].key
        steps_again = any(step.loops and step.loops[0].key == loop for step in steps)
        back = any(e.get("value") and e.loops and e.loops[0].key == loop for e in modes)
        if steps_again and not back:
            yield Violation(
                event.node,
                f"{path} goes into eval mode in a loop that never puts it back: its next step is from the average",
                evidence=(f"line {steps[0].line} steps in the same loop",),
                remedy=f"{path}.train() where the model goes back into train mode",
                severity=Severity.ERROR,
            )


def _edits(view: FileView, flow: Flow, made: Event, step: Event) -> tuple[Edit, ...]:
    """A line below each switch of the model, where the optimizer is known there by the same name."""
    call = step.node
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.func.attr != "step":
        return ()
    name = view.text(call.func.value)
    lines: dict[int, Edit] = {}
    switched: set[bool] = set()
    for event in flow.of("mode"):
        statement = view.statement(event.node) if event.node is not None else None
        mode = event.get("value")
        if event.get("how") != "method" or not isinstance(mode, bool) or not isinstance(statement, ast.Expr):
            continue
        if event.function != step.function or event.origin or event.line < made.line or event.via != step.via:
            return ()
        lines[statement.lineno] = view.line_below(statement, f"{name}.{'train' if mode else 'eval'}()")
        switched.add(mode)
    return tuple(lines.values()) if switched == {True, False} else ()


def _is_called(view: FileView, name: str, method: str) -> bool:
    """Whether the file calls a method on something by the name of the optimizer, wherever that is."""
    return any(
        isinstance(call.func, ast.Attribute)
        and call.func.attr == method
        and view.text(call.func.value).rpartition(".")[2] == name
        for call in view.nodes(ast.Call)
    )


RULE = LintRule(
    code="M211",
    what="Looks, where a schedule-free optimizer is made and steps, for its own `train()` and `eval()` beside "
    "those of the model.",
    why="Such an optimizer trains at one point and evaluates at another, an average. `optimizer.eval()` puts the "
    "average into the model. Without it, validation and checkpoints are of the training point, which is worse; and a "
    "step in eval mode goes off from the wrong point, or raises.",
    example="import schedulefree\noptimizer = schedulefree.AdamWScheduleFree(model.parameters())\nfor epoch in "
    "range(9):\n    model.train()\n    for x, y in loader:\n        criterion(model(x), y).backward()\n        "
    "optimizer.step()\n        optimizer.zero_grad()\n    model.eval()\n    with torch.no_grad():\n        "
    "model(held_out)",
    instead="import schedulefree\noptimizer = schedulefree.AdamWScheduleFree(model.parameters())\nfor epoch in "
    "range(9):\n    model.train()\n    optimizer.train()\n    for x, y in loader:\n        criterion(model(x), "
    "y).backward()\n        optimizer.step()\n        optimizer.zero_grad()\n    model.eval()\n    "
    "optimizer.eval()\n    with torch.no_grad():\n        model(held_out)",
    remedy="Call the optimizer's `train()` and `eval()` wherever the model's are called.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the figures of validation change",
    false_alarms="Validation at the training point on purpose. Files that call the method on something of the "
    "same name, and optimizers that are handed to a trainer, are let be.",
    source="schedule_free#60",
    triggers=("ScheduleFree",),
    check=check,
)
