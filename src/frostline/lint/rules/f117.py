"""F117: a trainable part runs without gradients and never learns."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.ownership import Ownership
from frostline.lint.phases import Phases
from frostline.lint.rule import LintRule, Violation
from frostline.lint.torch_names import NO_GRAD
from frostline.lint.values import Value, is_below, owner_of, related

# Networks that are trained otherwise, or not at all, whoever has their parameters.
_NOT_TRAINED = re.compile(
    r"teacher|target|momentum|reference|lpips|vgg|perceptual|tokenizer|"
    r"(^|[._])(ema|ref|key|swa)([._\d]|$)|_(k|ema|ref)$",
    re.I,
)
_CUTS = {"detach", "detach_", "data"}
# What may be asked of a part without using what it computes.
_HARMLESS = frozenset(
    {"parameters", "named_parameters", "train", "eval", "to", "cuda", "cpu", "load_state_dict", "state_dict", "modules"}
)


def check(view: FileView) -> Iterator[Violation]:
    """Parts that only ever run without gradients, and that an optimizer was given although nothing froze them."""
    for flow in view.flows:
        if not any(event.no_grad or _is_detached(view, event) for event in flow.of("forward")):
            continue
        phases = Phases(flow)
        ownership = Ownership(flow)
        seen: set[str] = set()
        for event in flow.of("forward"):
            part = phases.canonical(event.path)
            if part in seen or not part or not (event.no_grad or _is_detached(view, event)):
                continue
            seen.add(part)
            if flow.owner and part.startswith("self."):
                yield from _of_class(view, flow, phases, event, part)
            yield from _of_flow(view, flow, phases, ownership, event, part)


def _of_flow(
    view: FileView, flow: Flow, phases: Phases, ownership: Ownership, event: Event, part: str
) -> Iterator[Violation]:
    """A part that runs in the training loop of the same flow that makes the optimizer."""
    if not _never_learns(view, flow, phases, part) or not _is_needed(flow, phases, event, part):
        return
    index = next(i for i, each in enumerate(flow.events) if each is event)
    if ownership.flags(part, value=False) or phases.unknown(part, 0, index):
        return
    for owner in ownership.owners:
        if any(source.path and not source.filtered and is_below(part, source.path) for source in owner.sources):
            named = any(source.path == part for source in owner.sources)
            yield _violation(view, event, part, f"line {owner.event.line} gives its parameters to {owner.name}", named)
            return


def _of_class(view: FileView, flow: Flow, phases: Phases, event: Event, part: str) -> Iterator[Violation]:
    """A part of a module whose own pass cuts it off, where another piece of the file trains the whole module."""
    if flow.name.rpartition(".")[2] != "forward" or event.conditions or event.origin:
        return
    if not _never_learns(view, flow, phases, part):
        return
    used = [e for e in flow.of("forward") if not e.no_grad and not related(phases.canonical(e.path), part)]
    if not used:
        return  # nothing of it trains: it is run for its output
    cls = view.walk.qualified(flow.owner)
    if _is_frozen_by_class(view, flow.owner, part):
        return
    for other in view.flows:
        for made in other.of("new"):
            value: Value = made.get("value")
            if not value.cls or not made.path or value.copy_of or not _runs(view, value.cls, cls):
                continue
            ownership = Ownership(other)
            inside = f"{made.path}{part[len('self') :]}"
            index = next(i for i, each in enumerate(other.events) if each is made)
            if ownership.flags(inside, value=False) or Phases(other).unknown(made.path, 0, index):
                continue
            for owner in ownership.owners:
                if owner.index > index and any(
                    source.path and not source.filtered and is_below(inside, source.path) for source in owner.sources
                ):
                    given = f"line {owner.event.line} gives its parameters to {owner.name}"
                    yield _violation(view, event, part, given, named=False)
                    return


def _runs(view: FileView, cls: str, owner: str) -> bool:
    """Whether instances of a class run the pass of another one: it is that, or inherits its ``forward``."""
    found = view.walk.method(cls, "forward")
    return found is not None and found[0].qualified(found[1].owner) == owner


def _is_frozen_by_class(view: FileView, owner: str, part: str) -> bool:
    """Whether any method of a class touches the flags of a part, or gives it to somebody who may."""
    return any(
        each.what in {"flag", "hold", "unknown"}
        and any(path and related(owner_of(path), part) for path in (each.path, *each.get("paths", ())))
        for function in view.walk.functions.values()
        if function.owner == owner
        for each in function.events
    )


def _never_learns(view: FileView, flow: Flow, phases: Phases, part: str) -> bool:
    """Whether no pass of the flow lets a gradient into a part, and no name says that this is meant."""
    if _NOT_TRAINED.search(part):
        return False
    for event in flow.of("forward"):
        path = phases.canonical(event.path)
        if related(path, part) and not event.no_grad and not _is_detached(view, event):
            return False
    if any(related(phases.canonical(event.path), part) for event in flow.of("write", "average", "load", "wrap")):
        return False
    return not _is_used_otherwise(view, part)


def _is_used_otherwise(view: FileView, part: str) -> bool:
    """Whether the part occurs in a way that is no pass: its weights are used, or it is handed on."""
    for node in view.nodes(ast.Attribute, ast.Name):
        value = view.value(node)
        if value is None or value.path != part or isinstance(node.ctx, ast.Store):
            continue
        above = view.parent(node)
        if isinstance(above, ast.Call) and above.func is node:
            continue
        if isinstance(above, ast.Attribute) and above.attr in _HARMLESS:
            continue
        method = view.parent(above) if isinstance(above, ast.Attribute) else None
        if isinstance(method, ast.Call) and method.func is above:
            continue  # a method: a pass of its own, or one that emits what it does
        return True
    return False


def _is_needed(flow: Flow, phases: Phases, event: Event, part: str) -> bool:
    """Whether it runs where something else is trained: in the loop of a step, or in that of a trainer."""
    others = [
        flow.events[i]
        for i in phases.training
        if not related(phases.canonical(flow.events[i].path), part)
        and {loop.key for loop in flow.events[i].loops} >= {loop.key for loop in event.loops}
    ]
    if any(each.function == event.function for each in others):
        return True
    in_step = event.function.rpartition(".")[2] == "training_step"
    return in_step and any(
        e.function == event.function and not e.no_grad and not related(phases.canonical(e.path), part)
        for e in flow.of("forward")
    )


def _is_detached(view: FileView, event: Event) -> bool:
    """Whether what a pass gives is detached at once, or in the next statement under the same name."""
    node = event.node
    if event.origin or not isinstance(node, ast.Call):
        return False
    above = view.parent(node)
    if isinstance(above, ast.Attribute) and above.attr in _CUTS:
        return True
    if not isinstance(above, ast.Assign) or len(above.targets) != 1 or not isinstance(above.targets[0], ast.Name):
        return False
    name = above.targets[0].id
    block = view.parent(above)
    body: list[ast.stmt] = getattr(block, "body", [])
    place = next((i for i, each in enumerate(body) if each is above), None)
    if place is None or place + 1 >= len(body):
        return False
    later = body[place + 1]
    if not isinstance(later, ast.Assign) or len(later.targets) != 1:
        return False
    target, given = later.targets[0], later.value
    while isinstance(given, ast.Call) and isinstance(given.func, ast.Attribute):
        if given.func.attr in _CUTS and isinstance(given.func.value, ast.Name):
            return given.func.value.id == name and isinstance(target, ast.Name) and target.id == name
        given = given.func.value
    return False


def _switch(view: FileView, event: Event) -> ast.expr | None:
    """The ``no_grad()`` of the ``with`` around a pass; ``None`` where a decorator or a caller switches."""
    if event.origin or not event.no_grad or event.node is None:
        return None
    for above in view.parents(event.node):
        if isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return None
        for item in above.items if isinstance(above, (ast.With, ast.AsyncWith)) else []:
            call = item.context_expr
            called = view.name(call.func if isinstance(call, ast.Call) else call)
            if called in NO_GRAD or called == "torch.set_grad_enabled":
                return call
    return None


def _violation(view: FileView, event: Event, part: str, given: str, named: bool) -> Violation:
    node = event.node or view.tree
    place = _switch(view, event) or node
    shown = view.text(node.func) if isinstance(node, ast.Call) and not event.origin else part
    cut = "it only runs with gradients switched off" if event.no_grad else "what it gives is detached"
    evidence = [given, "nothing freezes it, and no other pass lets a gradient in"]
    if event.origin:
        evidence.append(f"the pass is at {event.origin}")
    return Violation(
        place,
        f"{shown} looks as if it trained, and cannot: {cut}",
        evidence=tuple(evidence),
        remedy=f"to train it, remove {'no_grad()' if event.no_grad else 'detach()'}; "
        "to keep it, freeze it and leave it out of the optimizer",
        severity=Severity.ERROR if named else Severity.WARNING,
        inferred=not named,
    )


RULE = LintRule(
    code="F117",
    what="Looks for a part that an optimizer was given, that nothing froze, and that only runs under `no_grad()` (or "
    "is detached at once) where the rest is trained.",
    why="Under `no_grad()` nothing is recorded: the part stays as it is. The optimizer skips it without a word, the "
    "counts of trainable parameters say otherwise, and the learning curve is that of the head alone.",
    example="optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nfor x, y in loader:\n"
    "    with torch.no_grad():\n        features = model.backbone(x)\n    loss = criterion(model.head(features), y)\n"
    "    optimizer.zero_grad()\n    loss.backward()\n    optimizer.step()",
    instead="optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nfor x, y in loader:\n"
    "    features = model.backbone(x)\n    loss = criterion(model.head(features), y)\n    optimizer.zero_grad()\n"
    "    loss.backward()\n    optimizer.step()",
    remedy="Remove `no_grad()` to train the part, or freeze it and leave it out of the optimizer.",
    safety=Safety.MANUAL,
    how_safe="manual: whether the part was to train is not known",
    false_alarms="A part that is meant to be fixed, and was given to the optimizer for brevity: freeze it, and the "
    "flags say what happens. Frozen parts, parts that run with gradients anywhere in reach, teachers, targets and "
    "averages by name, and parts whose weights are used otherwise are let be. Silence others with `# noqa: F117`.",
    source="none exact; similar: state-spaces/s4#26",
    triggers=("no_grad", "inference_mode", "set_grad_enabled", "detach", ".data"),
    check=check,
)
