"""D803: the distributed wrapper is bypassed in training: gradients are not averaged."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.rule import LintRule, Violation
from frostline.lint.wrapping import is_elsewhere, is_in_test, wrappings

_DISTRIBUTED = re.compile(r"DistributedDataParallel|\bDDP\b")


def check(view: FileView) -> Iterator[Violation]:
    """Passes through what lies inside of a wrapper, with a backward pass behind them and none through the wrapper."""
    is_distributed = bool(_DISTRIBUTED.search(view.source.text))
    for flow in view.flows:
        for wrapping in wrappings(flow):
            for index, event in wrapping.later():
                if event.what == "forward" and wrapping.inside(event.path) == "" and event.path != wrapping.wrapper:
                    past = f"line {wrapping.event.line} wraps {shown(wrapping.event.get('of')) or 'the model'}"
                    yield from _violation(
                        view, flow, index, wrapping.wrapper, (past + f" as {shown(wrapping.wrapper)}",), True
                    )
        if any(event.what == "wrap" for event in flow.events) or not is_distributed:
            continue
        # The wrapper was made elsewhere: by its name alone, and in a file that trains on several devices.
        for index, event in enumerate(flow.events):
            wrapper = event.path.removesuffix(".module")
            if event.what == "forward" and wrapper != event.path and wrapper not in {"", "self"}:
                yield from _violation(view, flow, index, wrapper, (f"{shown(wrapper)} is taken for a wrapper",), False)


def _violation(
    view: FileView, flow: Flow, index: int, wrapper: str, evidence: tuple[str, ...], sure: bool
) -> Iterator[Violation]:
    event = flow.events[index]
    if event.no_grad or event.node is None or is_in_test(event):
        return
    backward = _backward_of(flow, index)
    if backward is None or _is_in_eval(flow, index, wrapper) or _has_pass_through(flow, index, wrapper):
        return
    edits: tuple[Edit, ...] = ()
    call = event.node
    if isinstance(call, ast.Call) and not event.origin:
        edits = _edits(view, call, wrapper)
    called = view.text(call.func) if isinstance(call, ast.Call) and not event.origin else shown(event.path)
    yield Violation(
        event.node,
        f"{called}(...) bypasses the distributed wrapper: gradients are not averaged",
        evidence=(*evidence, f"line {backward.line} is the backward pass behind it"),
        remedy=f"call the wrapper itself: {shown(wrapper)}(...)",
        severity=Severity.ERROR if sure else Severity.WARNING,
        edits=edits,
        safety=Safety.UNSAFE if edits else Safety.MANUAL,
        title=f"Call {shown(wrapper)}",
        inferred=not sure,
    )


def _edits(view: FileView, call: ast.Call, wrapper: str) -> tuple[Edit, ...]:
    """``w.module(x)`` and ``w.module.forward(x)`` become ``w(x)``."""
    function = call.func
    if isinstance(function, ast.Attribute) and function.attr == "forward":
        function = function.value
    if isinstance(function, ast.Attribute) and function.attr == "module" and view.text(function.value) == wrapper:
        return (view.replaced(call.func, wrapper),)
    return ()


def _backward_of(flow: Flow, index: int) -> Event | None:
    """The backward pass behind a forward pass, in the same loops."""
    event = flow.events[index]
    around = [loop.key for loop in event.loops if loop.is_over_data]
    for other in flow.events[index + 1 :]:
        same = [loop.key for loop in other.loops if loop.is_over_data] == around
        if same and other.what == "backward" and not is_elsewhere(event, other):
            return other
        if same and other.what in {"step", "scaler_step", "zero_grad"}:
            return None
    return None


def _has_pass_through(flow: Flow, index: int, wrapper: str) -> bool:
    """Whether the same step also calls the wrapper, which averages for all of its parameters."""
    around = [loop.key for loop in flow.events[index].loops]
    return any(
        other.what == "forward" and other.path == wrapper and [loop.key for loop in other.loops] == around
        for other in flow.events
    )


def _is_in_eval(flow: Flow, index: int, wrapper: str) -> bool:
    """Whether the last thing said about the mode is that nothing is trained."""
    modes = [e for e in flow.events[:index] if e.what == "mode" and e.path in {wrapper, f"{wrapper}.module"}]
    return bool(modes) and modes[-1].get("value") is False


RULE = LintRule(
    code="D803",
    what="Looks for calls of `wrapper.module(x)`, of `wrapper.module.forward(x)` and of the model itself after "
    "it was wrapped in `DistributedDataParallel`, with gradients and with a backward pass behind them.",
    why="The wrapper prepares the averaging of gradients in its own `forward`. A call past it skips that: each "
    "process trains by itself on its part of the data, nothing fails, and the model that is saved has seen "
    "a fraction of it.",
    example="ddp = torch.nn.parallel.DistributedDataParallel(model)\nfor x, y in loader:\n    optimizer.zero_grad()\n"
    "    loss = criterion(ddp.module(x), y)\n    loss.backward()\n    optimizer.step()",
    instead="ddp = torch.nn.parallel.DistributedDataParallel(model)\nfor x, y in loader:\n    optimizer.zero_grad()\n"
    "    loss = criterion(ddp(x), y)\n    loss.backward()\n    optimizer.step()",
    remedy="Call the wrapper in training; where a method other than `forward` is wanted, let `forward` call it.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: gradients become averages over the processes, as they were meant to be",
    false_alarms="Passes whose gradients are averaged by hand. Let be are: calls without gradients, in eval mode, in "
    "functions that test, sample or save, and those beside a call of the wrapper in the same step. Where "
    "the wrapper was made elsewhere it is told by `.module` alone, and then only a warning.",
    source="TrainCheck x-jxmnop",
    triggers=("DistributedDataParallel", "DDP", ".module"),
    check=check,
)
