"""M202: train mode was not restored after validation."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.events import Event, Flow, Loop
from frostline.lint.file_view import FileView
from frostline.lint.iterations import within
from frostline.lint.layers import LayerBook
from frostline.lint.phases import SWITCHES, Phases, is_left
from frostline.lint.rule import LintRule, Violation
from frostline.lint.statements import begins_its_line
from frostline.lint.values import related
from frostline.lint.wrapping import is_elsewhere

_LOCAL = re.compile(r"^(\w[\w.<>]*)\(\):")


def check(view: FileView) -> Iterator[Violation]:
    """`eval()` behind training in a loop whose next round trains the same model without `train()`."""
    book = LayerBook(view)
    for flow in view.flows:
        phases = Phases(flow)
        for place in phases.training:
            event = flow.events[place]
            layers = book.of_path(flow, phases.canonical(event.path))
            if layers.norms is False and layers.drops is False:
                continue
            if any(
                mode.what == "mode" and mode.get("value") is not True for mode in phases.modes_at(place, event.path)
            ):
                continue  # it is in eval mode from the start, or who knows
            for loop in event.loops:
                if loop.kind != "comprehension" and (found := _unrestored(view, flow, phases, place, loop)) is not None:
                    yield _violation(view, flow, event, found, loop)


def _unrestored(view: FileView, flow: Flow, phases: Phases, place: int, loop: Loop) -> Event | None:
    """The `eval()` of a loop that is still in force when its next round trains."""
    event = flow.events[place]
    local = _LOCAL.match(event.path)
    if loop.node is None or (local is not None and view.function(loop.node) != local[1]):
        return None  # each round makes a model of its own
    if _is_bound_in(loop.node, phases.canonical(event.path)):
        return None
    inside = [(i, e) for i, e in enumerate(flow.events) if within(e, loop)]
    for i, each in inside:
        if i < place and _may_restore(phases, each, event.path):
            return None
        if each.what == "unknown" and SWITCHES.search(str(each.get("name"))) and _is_given(phases, each, event.path):
            return None
    last: Event | None = None
    for i, each in reversed(inside):
        if i <= place:
            break
        if each.what != "mode" or not phases.is_about(each, event.path) or is_elsewhere(each, event):
            continue
        if each.get("value") is not False:
            return None
        if phases.is_of_all(each, event.path):
            last = last or each
    if last is None or not _is_used_after(flow, phases, last, event, loop):
        return None
    lines = [last.line, *(int(call.rpartition(":")[2]) for call in last.via)]
    return None if is_left(loop.node, lines) else last


def _is_bound_in(node: ast.AST, path: str) -> bool:
    """Whether a loop gives a name to another model in each round."""
    names = (path, path.partition(".")[0])
    for each in ast.walk(node):
        targets = (
            each.targets
            if isinstance(each, ast.Assign)
            else [each.target]
            if isinstance(each, (ast.For, ast.AnnAssign, ast.NamedExpr))
            else [i.optional_vars for i in each.items if i.optional_vars is not None]
            if isinstance(each, ast.With)
            else []
        )
        for target in targets:
            parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
            if any(ast.unparse(part) in names for part in parts):
                return True
    return False


def _may_restore(phases: Phases, event: Event, path: str) -> bool:
    """Whether something before the training of a round makes the mode what it is, whichever."""
    if event.what == "new":
        return related(phases.canonical(event.path), phases.canonical(path))
    return event.what == "mode" and phases.is_about(event, path)


def _is_given(phases: Phases, event: Event, path: str) -> bool:
    given = [*event.get("paths", ()), str(event.get("name", "")).rpartition(".")[0]]
    return any(each and related(phases.canonical(each), phases.canonical(path)) for each in given)


def _is_used_after(flow: Flow, phases: Phases, mode: Event, training: Event, loop: Loop) -> bool:
    """Whether the model is validated behind `eval()`: called without training, or given to a function nobody knows."""
    first = next(i for i, each in enumerate(flow.events) if each is mode)
    for i, each in enumerate(flow.events[first:], start=first):
        if not within(each, loop):
            continue
        if each.what == "forward" and i not in phases.training:
            if related(phases.canonical(each.path), phases.canonical(training.path)):
                return True
        elif each.what == "unknown" and _is_given(phases, each, training.path):
            return True
    return False


def _violation(view: FileView, flow: Flow, training: Event, mode: Event, loop: Loop) -> Violation:
    receiver = mode.node.func.value if _is_method(mode) else None  # type: ignore[union-attr]
    name = view.text(receiver) if receiver is not None else mode.path
    value = view.value(receiver) if receiver is not None else None
    sure = value is not None and value.kind == "module" and value.sure
    evidence = [
        f"line {training.line} trains it in the next round of the loop in line {loop.line}",
        "no train() stands between",
    ]
    if mode.origin:
        evidence.append(f"eval() is called at {mode.origin}")
    edit = _edit(view, flow, mode, loop)
    return Violation(
        mode.node or view.tree,
        f"{name} stays in eval mode: from the second round on it trains without dropout and with fixed statistics",
        evidence=tuple(evidence),
        remedy=f"{name}.train() at the start of each round",
        severity=Severity.ERROR if sure else Severity.WARNING,
        edits=(edit,) if edit is not None else (),
        safety=Safety.UNSAFE,
        title="Call train() at the start of each round",
        inferred=not sure,
    )


def _is_method(mode: Event) -> bool:
    return not mode.origin and isinstance(mode.node, ast.Call) and isinstance(mode.node.func, ast.Attribute)


def _edit(view: FileView, flow: Flow, mode: Event, loop: Loop) -> Edit | None:
    """A line with train() as the first of the loop, where the loop knows the model by its path."""
    if not isinstance(loop.node, (ast.For, ast.AsyncFor, ast.While)) or "(" in mode.path or not mode.path:
        return None
    if view.function(loop.node) != flow.name and not mode.path.startswith("self"):
        return None
    first = loop.node.body[0]
    if first.lineno == loop.node.lineno or not begins_its_line(view, first):
        return None
    return view.line_above(first, f"{mode.path}.train()")


RULE = LintRule(
    code="M202",
    what="Looks for `eval()` in a loop behind the training steps of the same model, where no `train()` stands in the "
    "loop: the next round trains in eval mode.",
    why="From the second epoch on dropout no longer regularizes, and batch normalization keeps the statistics that "
    "it had by then while its inputs go on changing. The loss looks better for it, so that nobody looks.",
    example="model.train()\nfor epoch in range(epochs):\n    for x, y in loader:\n        optimizer.zero_grad()\n"
    "        criterion(model(x), y).backward()\n        optimizer.step()\n    model.eval()\n"
    "    with torch.no_grad():\n        validate(model)",
    instead="for epoch in range(epochs):\n    model.train()\n    for x, y in loader:\n        optimizer.zero_grad()\n"
    "        criterion(model(x), y).backward()\n        optimizer.step()\n    model.eval()\n"
    "    with torch.no_grad():\n        validate(model)",
    remedy="Call `model.train()` at the start of each epoch.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: what is trained changes from the second round on",
    false_alarms="A model that is to train in eval mode after its first validation. Models that are in eval mode "
    "from the start, that are made anew in each round, that are given to a function whose name speaks of training or "
    "modes, and loops that are left right behind `eval()` are let be. Silence others with `# noqa: M202`.",
    source="joeynmt#184, hendrycks/ethics#5, ncsn#2, simpletransformers#941, small-text#40",
    triggers=("eval", ".train(False)", ".train(mode=False)", "valid", "test", "accuracy"),
    check=check,
)
