"""N307: statistics adapt to the data that is tested on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.layers import LayerBook
from frostline.lint.phases import TRAINS, Phases
from frostline.lint.rule import LintRule, Violation
from frostline.lint.rules.m201 import VALIDATES
from frostline.lint.values import owner_of

_NORM = re.compile(r"norm|(^|\W|_)bn\d*(_|\W|$)", re.I)
_OTHER = re.compile(r"drop|(^|\W|_)mc(_|\W|$)", re.I)
_DECLARED = re.compile(r"transductive|\btent\b|test.?time|adapt|mc_?dropout|(^|_)tta(_|$)|monte", re.I)
_LEARNS = re.compile(r"grad$|adapt|fast_weights|inner|clone", re.I)


def check(view: FileView) -> Iterator[Violation]:
    """`train()` in code that tests, with a pass behind it; statistics that are estimated on test data."""
    book = LayerBook(view)
    for flow in view.flows:
        phases = Phases(flow)
        for index, event in enumerate(flow.events):
            if event.what == "mode" and event.get("value") is True and event.get("how") == "method":
                yield from _switched(view, flow, phases, book, index)
            elif event.what == "update_bn" and isinstance(event.node, ast.Call) and not event.origin:
                yield from _estimated(view, event.node)


def _switched(view: FileView, flow: Flow, phases: Phases, book: LayerBook, index: int) -> Iterator[Violation]:
    mode = flow.events[index]
    path = owner_of(mode.path)
    if not path:
        return
    is_part = mode.path != path or _is_put_back(flow, phases, index)
    if not (is_part or VALIDATES.search(mode.function.rpartition(".")[2])) or not _is_of_norms(view, mode):
        return
    tested = _tested(flow, phases, index, path, is_part)
    if tested is None:
        return
    layers = book.of_path(flow, phases.canonical(tested.path))
    if layers.norms is False:
        return
    around = view.parents(mode.node) if mode.node is not None else []
    function = next((each for each in around if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))), None)
    declared = _is_declared(view, mode, function)
    if is_part and mode.path == path and not declared and not _NORM.search(path):
        return  # a part of the whole in train mode: M203 and its kin
    shown = view.text(mode.node.func.value) if _is_method(mode) else path  # type: ignore[union-attr]
    if mode.path != path:
        shown = f"a part of {path}"
    evidence = [f"line {tested.line} tests with it" + (", without gradients" if tested.no_grad else "")]
    if mode.origin:
        evidence.append(f"train() is called at {mode.origin}")
    if declared:
        evidence.append(f"{declared!r} says that it is meant: report the figure as transductive")
    yield Violation(
        mode.node or view.tree,
        f"{shown} is put into train mode for a test: batch statistics adapt to the data under test",
        evidence=tuple(evidence),
        remedy=f"{path}.eval() before the test",
        severity=Severity.INFO if declared else Severity.WARNING,
        inferred=True,
    )


def _is_method(mode: Event) -> bool:
    return not mode.origin and isinstance(mode.node, ast.Call) and isinstance(mode.node.func, ast.Attribute)


def _is_put_back(flow: Flow, phases: Phases, index: int) -> bool:
    """Whether a part is put into train mode right after the whole was put into eval mode, in the same function."""
    mode = flow.events[index]
    for before in reversed(flow.events[:index]):
        if before.function != mode.function or before.what in TRAINS or before.what == "forward":
            return False
        if before.what == "mode":
            whole, part = phases.canonical(before.path), phases.canonical(mode.path)
            return before.get("value") is False and part.startswith(f"{whole}.")
    return False


def _is_of_norms(view: FileView, mode: Event) -> bool:
    """Whether the layers that are switched may be norms: not those that a condition says are dropout."""
    conditions = [c for c in mode.conditions if c.node is not None]
    tests = " ".join(view.text(c.node) for c in conditions if c.node is not None and view.parent(c.node) is not None)
    if mode.path == owner_of(mode.path):
        return not _OTHER.search(mode.path)
    if _OTHER.search(tests) or _OTHER.search(mode.function):
        return bool(_NORM.search(tests))
    return bool(_NORM.search(tests) or _NORM.search(mode.function))


def _tested(flow: Flow, phases: Phases, index: int, path: str, is_part: bool) -> Event | None:
    """The first pass behind the switch that tests, if nothing is learned in the function."""
    mode = flow.events[index]
    own = [e for e in flow.events if e.function == mode.function and e.via[: len(mode.via)] == mode.via]
    learns = any(e.what in TRAINS or (e.what == "unknown" and _LEARNS.search(str(e.get("name")))) for e in own)
    if learns and not is_part:
        return None
    for i, event in enumerate(flow.events[index + 1 :], start=index + 1):
        if event.what == "mode" and phases.is_about(event, path) and phases.is_of_all(event, path):
            return None
        if event.what in TRAINS or event.what == "new":
            return None
        if event.what == "forward" and phases.is_about(event, path):
            tests = event.no_grad or (not is_part and event.function == mode.function)
            return event if tests and i not in phases.training else None
    return None


def _is_declared(view: FileView, mode: Event, function: ast.AST | None) -> str:
    """The word in the function that says that it is meant; "" if there is none."""
    texts = [mode.function, *mode.via]
    if function is not None and not mode.origin:
        texts.append(view.text(function))
    elif not mode.origin and mode.node is not None:
        around = range(max(mode.line - 3, 1), mode.line + 1)
        texts += [view.source.line_text(line) for line in around]
    found = next((match for text in texts if (match := _DECLARED.search(text))), None)
    return found[0] if found is not None else ""


def _estimated(view: FileView, call: ast.Call) -> Iterator[Violation]:
    """`update_bn` on a loader whose name says that it is test data."""
    loader = call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "loader"), None)
    names = [
        each.id if isinstance(each, ast.Name) else each.attr if isinstance(each, ast.Attribute) else str(each.value)
        for each in ast.walk(loader or call)
        if isinstance(each, (ast.Name, ast.Attribute))
        or (isinstance(each, ast.Constant) and isinstance(each.value, str))
    ]
    if loader is None or not any(VALIDATES.search(name) or re.search("query", name) for name in names):
        return
    yield Violation(
        loader,
        f"the statistics are estimated on {view.text(loader)}: the model adapts to the data it is tested on",
        evidence=("update_bn goes over the loader in train mode and keeps the averages of what it sees",),
        remedy="give update_bn the loader of the training data",
        severity=Severity.WARNING,
        inferred=True,
    )


RULE = LintRule(
    code="N307",
    what="Looks for `train()` on a model, or on its normalization layers, in code that tests, with a pass behind it "
    "from which nothing is learned; and for `update_bn` on a loader that is called after test or validation data.",
    why="The result is no longer that of the trained model: it depends on the order and the mix of the test data, "
    "and on how often it was tested. In few-shot tests the figure rises by what the other queries give away.",
    example="model.eval()\nfor m in model.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.train()\n"
    "with torch.no_grad():\n    scores = [model(x) for x in test_loader]",
    instead="model.eval()\nwith torch.no_grad():\n    scores = [model(x) for x in test_loader]",
    remedy="Leave the layers in eval mode while testing. Where adaptation is meant, say so in a comment, and report "
    "the figure as transductive.",
    safety=Safety.MANUAL,
    how_safe="manual: adaptation at test time may be meant",
    false_alarms="Adaptation at test time that is meant: with a name or comment that says so (`transductive`, "
    "`tent`, `adapt`, `tta`, `mc_dropout`) it is only an info. Models that give their losses in train mode only, as "
    "the detectors of torchvision, and whose normalization is frozen. Dropout that is switched on by itself is let "
    "be. Silence others with `# noqa: N307`.",
    source="LearningToCompare_FSL#48",
    triggers=(".train(", "update_bn"),
    check=check,
)
