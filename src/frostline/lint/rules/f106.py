"""F106: eval() was taken for freezing: the weights train."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.iterations import meet
from frostline.lint.layers import LayerBook
from frostline.lint.rule import LintRule, Violation
from frostline.lint.statements import has_own_line
from frostline.lint.trained_parts import gives_more, is_given, optimizer_of
from frostline.lint.values import is_below, owner_of, related

# Layers that are put into eval mode for the sake of their statistics or of their noise.
_LAYERS = re.compile(r"(norm|bn\d*|dropout|drop\d*|dp\d*)$", re.I)
_TRAINS = frozenset({"step", "scaler_step"})
_MAY_FREEZE = re.compile(r"freeze|frozen|grad|fix|lora|peft", re.I)


def check(view: FileView) -> Iterator[Violation]:
    """Parts that were put into eval mode by themselves, that nothing freezes, and that an optimizer trains."""
    book = LayerBook(view)
    for flow in view.flows:
        for index, event in enumerate(flow.events):
            if event.what == "mode" and event.get("value") is False and event.get("how") == "method":
                yield from _trained(view, flow, index, book)


def _trained(view: FileView, flow: Flow, index: int, book: LayerBook) -> Iterator[Violation]:
    event = flow.events[index]
    part = event.path
    if not part or "*" in part or _LAYERS.search(part) or event.node is None or _is_looked_after(flow, part):
        return
    step = _step_in_eval_mode(flow, index)
    optimizer = optimizer_of(flow, step) if step is not None else None
    if step is None or optimizer is None or is_given(flow, part, optimizer) is not True:
        return
    if not gives_more(optimizer, part) or not _is_chosen(flow, index, part, optimizer):
        return
    layers = book.of_path(flow, part, index)
    does_nothing = layers.norms is False and layers.drops is False
    name = shown(part)
    statement = view.statement(event.node)
    edits = ()
    if isinstance(statement, ast.Expr) and statement.value is event.node and has_own_line(view, statement):
        function = statement.value.func if isinstance(statement.value, ast.Call) else None
        if isinstance(function, ast.Attribute) and not event.origin:
            edits = (view.line_below(statement, f"{view.text(function.value)}.requires_grad_(False)"),)
    yield Violation(
        event.node,
        f"eval() does not freeze: {name} goes on training",
        evidence=(
            f"line {optimizer.line} gives its parameters to the optimizer",
            f"line {step.line} steps while {name} is in eval mode; no line switches requires_grad off",
            *(("no layer in it runs differently in eval mode: the call does nothing",) if does_nothing else ()),
        ),
        remedy=f"{name}.requires_grad_(False), or frostline.freeze",
        severity=Severity.ERROR if does_nothing else Severity.WARNING,
        edits=edits,
        safety=Safety.UNSAFE if edits else Safety.MANUAL,
        title=f"Switch requires_grad of {name} off" if edits else "",
        inferred=True,
    )


def _is_looked_after(flow: Flow, part: str) -> bool:
    """Whether anything freezes a part, runs it without gradients, or may do so."""
    for event in flow.events:
        if event.what in {"flag", "hold", "write"} and related(owner_of(event.path), part):
            return True
        if event.what == "forward" and event.no_grad and related(owner_of(event.path), part):
            return True
        is_unknown = event.what == "unknown" and any(is_below(part, path) for path in event.get("paths", ()))
        if is_unknown and _MAY_FREEZE.search(event.get("name", "")):
            return True
    return False


def _step_in_eval_mode(flow: Flow, index: int) -> Event | None:
    """The first step behind an ``eval()``, where no ``train()`` comes between."""
    evaluated = flow.events[index]
    for event in flow.events[index + 1 :]:
        if not meet(evaluated, event):
            continue
        if event.what == "mode" and event.get("value") is not False and is_below(evaluated.path, owner_of(event.path)):
            return None
        if event.what in _TRAINS:
            return event
    return None


def _is_chosen(flow: Flow, index: int, part: str, optimizer: Event) -> bool:
    """Whether the part was put into eval mode by itself: the rest of what is trained was not."""
    sources = [owner_of(source.path) for source in optimizer.get("sources") or [] if source.path]
    rest = [path for path in sources if not is_below(path, part)]
    modes: dict[str, object] = {}
    for event in flow.events:
        if event.what == "mode" and event is not flow.events[index]:
            modes[owner_of(event.path)] = event.get("value")
        if event.what in _TRAINS:
            break
    # Of another module than the part it must be seen that it trains, or else everything is in eval mode.
    return any(modes.get(path, related(path, part)) is not False for path in rest)


RULE = LintRule(
    code="F106",
    what="Looks for a part of a model that `eval()` is called on by itself before the optimizer steps, whose "
    "parameters the optimizer has, and whose `requires_grad` no line switches off.",
    why="`eval()` switches dropout off and lets normalization layers use their running statistics. It says nothing "
    "about gradients: an optimizer that has the weights goes on changing them.",
    example="optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nmodel.train()\nmodel.backbone.eval()\nfor x, y "
    "in loader:\n    optimizer.zero_grad()\n    criterion(model(x), y).backward()\n    optimizer.step()",
    instead="optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)\nmodel.train()\nmodel.backbone.eval()\n"
    "model.backbone.requires_grad_(False)\nfor x, y in loader:\n    optimizer.zero_grad()\n    criterion(model(x), "
    "y).backward()\n    optimizer.step()",
    remedy="Switch `requires_grad` of the part off as well, or freeze it with `frostline.freeze`, which keeps "
    "parameters and mode.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: training a part with fixed statistics and without dropout can be meant",
    false_alarms="Fine-tuning with the pretrained statistics on purpose: therefore a warning, and an error only "
    "where no layer of the part obeys the mode. Normalization and dropout layers alone are let be: put those into "
    "eval mode, not the part, where it is meant, or silence the line with `# noqa: F106`.",
    source="alexrich021/3dvnet#11",
    triggers=(".eval()", ".train(False)"),
    check=check,
)
