"""M201: validation runs in train mode."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.events import Event, Flow, Loop
from frostline.lint.file_view import FileView
from frostline.lint.iterations import goes_over_things, loop_of, within
from frostline.lint.layers import LayerBook
from frostline.lint.phases import TRAINS, Phases
from frostline.lint.rule import LintRule, Violation
from frostline.lint.statements import begins_its_line
from frostline.lint.values import related

VALIDATES = re.compile(r"(^|_)(val|valid|validate|validation|test|eval|evaluate|evaluation|dev)(_|$)", re.I)
"""Names of functions and loaders by which people validate."""
_FIGURES = re.compile(r"correct|accura|(^|_)(acc|iou|f1|auc|dice|psnr|val|test|eval)(_|$)", re.I)
# Passes in train mode that are meant: statistics are estimated, dropout is sampled from.
_MEANT = re.compile(r"calib|recompute|update_bn|precise|(^|_)(bn|mc|swa)(_|$)|dropout|bayes|uncertain", re.I)


def check(view: FileView) -> Iterator[Violation]:
    """Passes without gradients that count hits in a loop of their own, in a flow that trains the same model."""
    book = LayerBook(view)
    for flow in view.flows:
        if flow.owner and view.walk.is_lightning(view.walk.qualified(flow.owner)):
            continue  # the trainer switches the mode
        phases = Phases(flow)
        if not phases.training:
            continue
        for index, event in enumerate(flow.events):
            if event.what == "forward" and event.no_grad and event.path:
                yield from _violation(view, flow, phases, book, index)


def _violation(view: FileView, flow: Flow, phases: Phases, book: LayerBook, index: int) -> Iterator[Violation]:
    event = flow.events[index]
    trained = [i for i in phases.trains(event.path) if _comes_first(flow.events[i], i, event, index)]
    loop = _comprehension_of(event) or loop_of(event)
    if not trained or not _validates(flow, event, loop):
        return
    modes = phases.modes_at(index, event.path)
    if any(mode.what == "mode" and mode.get("value") is not True for mode in modes):
        return
    last = next((mode for mode in modes if mode.what == "mode"), None)
    if last is not None and last.function == event.function and VALIDATES.search(_name(event)):
        return  # train() in the middle of a test is another mistake: N307
    since = last if last is not None else flow.events[trained[0]]
    first = next(i for i, each in enumerate(flow.events) if each is since)
    if phases.unknown(event.path, min(first, index), index):
        return  # who knows what was done to it there
    layers = book.of_path(flow, phases.canonical(event.path))
    if layers.norms is False and layers.drops is False:
        return
    called = view.value(event.node.func) if isinstance(event.node, ast.Call) and not event.origin else None
    sure = last is not None and ((called is not None and called.sure) or any(m.what == "new" for m in modes))
    name = view.text(event.node.func) if isinstance(event.node, ast.Call) and not event.origin else event.path
    told = f"line {last.line} put it into train mode" if last is not None else "nothing put it into eval mode before"
    evidence = [f"line {flow.events[trained[0]].line} trains it; {told}"]
    if event.origin:
        evidence.append(f"the pass without gradients is at {event.origin}")
    edit = _edit(view, flow, phases, event, trained, loop)
    yield Violation(
        event.node or view.tree,
        f"{name} is validated in train mode: no eval() before this pass",
        evidence=tuple(evidence),
        remedy=f"{name}.eval() before the loop, and {name}.train() before training goes on",
        severity=Severity.ERROR if sure else Severity.WARNING,
        edits=(edit,) if edit is not None else (),
        safety=Safety.UNSAFE,
        title=f"Call {name}.eval() before validation",
        inferred=not sure,
    )


def _comes_first(training: Event, place: int, event: Event, index: int) -> bool:
    """Whether a model has been trained when it is validated: before it, or in an earlier round of a loop."""
    return place < index or any(within(training, loop) for loop in event.loops)


def _name(event: Event) -> str:
    return event.function.rpartition(".")[2]


def _comprehension_of(event: Event) -> Loop | None:
    """The comprehension that an event stands in, where it goes over data: ``[model(x) for x, y in loader]``."""
    inner = event.loops[-1] if event.loops else None
    return inner if inner is not None and inner.kind == "comprehension" and not goes_over_things(inner.over) else None


def _validates(flow: Flow, event: Event, loop: Loop | None) -> bool:
    """Whether a pass without gradients is one of validation: by names, or because something is counted there."""
    if _MEANT.search(event.function) or any(_MEANT.search(call) for call in event.via):
        return False
    if loop is not None and any(e.what in TRAINS and within(e, loop) for e in flow.events):
        return False  # targets for the step that follows
    if loop is None:
        return bool(VALIDATES.search(_name(event)))
    around = loop_of(event) if loop.kind == "comprehension" else None
    # In the pass that trains, a comprehension gives targets, unless it goes over data called so.
    trains = around is not None and any(
        e.what in TRAINS and within(e, around) and e.function == event.function for e in flow.events
    )
    if (VALIDATES.search(_name(event)) and not trains) or (loop.over is not None and VALIDATES.search(loop.over.path)):
        return True
    if loop.node is None:
        return False
    over = [loop.node.iter] if isinstance(loop.node, (ast.For, ast.AsyncFor)) else []
    over += [each.iter for each in getattr(loop.node, "generators", ())]
    if any(
        VALIDATES.search(each.id if isinstance(each, ast.Name) else each.attr)
        for given in over
        for each in ast.walk(given)
        if isinstance(each, (ast.Name, ast.Attribute))
    ):
        return True
    return any(_counts(node) for node in ast.walk(loop.node))


def _counts(node: ast.AST) -> bool:
    """Whether hits are summed up: ``correct += ...``, ``accuracy.update(...)``."""
    if isinstance(node, ast.AugAssign):
        target = node.target.value if isinstance(node.target, ast.Subscript) else node.target
        name = target.id if isinstance(target, ast.Name) else target.attr if isinstance(target, ast.Attribute) else ""
        return bool(_FIGURES.search(name))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in {"update", "append"}:
        owner = node.func.value
        name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        return bool(_FIGURES.search(name))
    return False


def _edit(
    view: FileView, flow: Flow, phases: Phases, event: Event, trained: list[int], loop: Loop | None
) -> Edit | None:
    """A line with eval() above the validation, where train() is called again before the next round."""
    node = event.node
    if event.origin or not isinstance(node, ast.Call) or loop is None or loop.node is None:
        return None
    for i in trained:
        shared = [each for each in event.loops if within(flow.events[i], each)]
        if shared and not any(
            e.what == "mode" and e.get("value") is True and phases.is_of_all(e, event.path) and within(e, shared[-1])
            for e in flow.events
        ):
            return None
    inside = view.parents(node)
    if loop.node not in inside:
        return None
    # Above the loop, or above `with torch.no_grad():` around it.
    at: ast.AST = view.statement(loop.node) or loop.node
    above = view.parent(at)
    while isinstance(above, (ast.With, ast.AsyncWith)):
        at, above = above, view.parent(above)
    path = view.text(node.func)
    value = view.value(node.func)
    if not isinstance(at, ast.stmt) or not begins_its_line(view, at) or "(" in path:
        return None
    if value is None or value.kind != "module" or any(related(path, target) for target in loop.targets):
        return None
    return view.line_above(at, f"{path}.eval()")


RULE = LintRule(
    code="M201",
    what="Looks at passes under `torch.no_grad()` in a loop that counts hits, goes over validation data or stands in "
    "a function called so, of a model that the same code trains, where no `eval()` came before.",
    why="In train mode dropout drops, so that the figure is too low and different each time; and batch normalization "
    "normalizes with the batch that is validated and moves its running statistics towards it: validation data gets "
    "into the model.",
    example="for epoch in range(epochs):\n    model.train()\n    for x, y in train_loader:\n"
    "        optimizer.zero_grad()\n        criterion(model(x), y).backward()\n        optimizer.step()\n"
    "    with torch.no_grad():\n        for x, y in val_loader:\n"
    "            correct += (model(x).argmax(1) == y).sum()",
    instead="for epoch in range(epochs):\n    model.train()\n    for x, y in train_loader:\n"
    "        optimizer.zero_grad()\n        criterion(model(x), y).backward()\n        optimizer.step()\n"
    "    model.eval()\n    with torch.no_grad():\n        for x, y in val_loader:\n"
    "            correct += (model(x).argmax(1) == y).sum()",
    remedy="Call `model.eval()` before validation, and `model.train()` before training goes on.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the figures of validation change, and with them what early stopping picks",
    false_alarms="A pass in train mode on purpose, where no name says so; functions named after dropout, calibration "
    "or statistics are let be. Code whose caller has called `eval()` while it also trains; functions that only "
    "validate, models without dropout and batch normalization, and models given to functions that nobody here knows "
    "are never reported. Silence others with `# noqa: M201`.",
    source="pytorch-3dunet#53, stacked_hourglass#44, SynDiff#46, MultiBench#26",
    triggers=("no_grad", "inference_mode", "set_grad_enabled", "eval", "valid", "test"),
    check=check,
)
