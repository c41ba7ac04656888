"""D802: parameters are replaced or moved after the model was wrapped for distributed training."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.rule import LintRule, Violation
from frostline.lint.wrapping import Wrapping, is_elsewhere, is_in_test, trains_after, wrappings

# Of moves, those that leave a tensor of another type or on another device behind.
_TYPES = frozenset({"half", "bfloat16", "double", "type"})


def check(view: FileView) -> Iterator[Violation]:
    """Modules and parameters that are put into a wrapped model, moves of it, and loads with `assign=True`."""
    for flow in view.flows:
        for wrapping in wrappings(flow):
            for index, event in wrapping.later():
                found = _told(flow, wrapping, event) if event.node is not None else ""
                if found and trains_after(flow, index) is not False and not wrapping.is_redone(index):
                    yield _violation(flow, wrapping, index, event, found)


def _told(flow: Flow, wrapping: Wrapping, event: Event) -> str:
    """What happens to the parameters that the wrapper knows; "" if nothing does."""
    part = wrapping.inside(event.path)
    if part is None:
        return ""
    if event.what in {"new", "new_parameter"} and part and not _holds_nothing(event):
        return f"{shown(event.path)} is replaced"
    if event.what == "load" and event.get("assign") is True:
        return f"{shown(event.path)} gets new parameters (assign=True)"
    if event.what == "move" and not is_in_test(event):
        return _moved(flow, wrapping, event)
    return ""


def _holds_nothing(event: Event) -> bool:
    """Whether what is put there has no parameters that a wrapper would have to know."""
    value = event.get("value")
    name = getattr(value, "cls", "").rpartition(".")[2]
    return name in {"Identity", "ReLU", "GELU", "Flatten", "Dropout", "Softmax", "Sigmoid", "DistributedDataParallel"}


def _moved(flow: Flow, wrapping: Wrapping, event: Event) -> str:
    how = event.get("how")
    if how in _TYPES or (how == "to" and _gives_type(event)):
        return f"{shown(event.path)} gets another type"
    if how not in {"to", "cuda", "to_empty"}:
        return ""  # to the processor, for export
    before = [
        other
        for other in flow.events[: wrapping.index]
        if other.what == "move" and wrapping.inside(other.path) == "" and not is_elsewhere(event, other)
    ]
    # What is on its device already stays where it is. Nor is a model from elsewhere known to be on the processor.
    if before or not _is_made_here(flow, wrapping):
        return ""
    return f"{shown(event.path)} is moved"


def _gives_type(event: Event) -> bool:
    call = event.node
    if not isinstance(call, ast.Call) or event.origin:
        return False
    given = [*call.args, *(k.value for k in call.keywords if k.arg == "dtype")]
    return any(
        isinstance(each, ast.Attribute) and each.attr in {"half", "float16", "bfloat16", "float64", "double"}
        for each in given
    )


def _is_made_here(flow: Flow, wrapping: Wrapping) -> bool:
    """Whether the flow makes the model, so that nobody else moved it; ids of devices would be checked by torch."""
    call = wrapping.event.node
    if isinstance(call, ast.Call) and any(keyword.arg == "device_ids" for keyword in call.keywords):
        return False
    return any(
        event.what == "new" and event.path == wrapping.event.get("of") for event in flow.events[: wrapping.index]
    )


def _violation(flow: Flow, wrapping: Wrapping, index: int, event: Event, told: str) -> Violation:
    sure = trains_after(flow, index) is True
    wrapped = wrapping.event
    return Violation(
        event.node,  # type: ignore[arg-type]
        f"{told} after the model was wrapped: gradients of what is new are not averaged",
        evidence=(
            f"line {wrapped.line} wraps {shown(wrapped.get('of')) or 'the model'} as {shown(wrapping.wrapper)}",
            f"{event.origin or f'line {event.line}'} changes what the wrapper was made for",
        ),
        remedy=f"do this before line {wrapped.line}, then wrap, then make the optimizer",
        severity=Severity.ERROR if sure else Severity.WARNING,
        inferred=not sure,
    )


RULE = LintRule(
    code="D802",
    what="Looks for layers and parameters that are put into a model after it was wrapped in "
    "`DistributedDataParallel`, for loads with `assign=True`, and for moves to another type or device, "
    "where training goes on without wrapping anew.",
    why="The wrapper hangs its hooks on the parameters that it was given, and lays out its buffers for their "
    "type and device. A head that is replaced later is never averaged: each process trains its own, and "
    "the checkpoint is that of one process.",
    example="model = torch.nn.parallel.DistributedDataParallel(net)\nmodel.module.fc = nn.Linear(512, 10)\n"
    "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nfor x, y in loader:\n    optimizer.zero_grad()\n"
    "    criterion(model(x), y).backward()\n    optimizer.step()",
    instead="net.fc = nn.Linear(512, 10)\nmodel = torch.nn.parallel.DistributedDataParallel(net)\n"
    "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nfor x, y in loader:\n    optimizer.zero_grad()\n"
    "    criterion(model(x), y).backward()\n    optimizer.step()",
    remedy="Replace, move and load with `assign=True` first; wrap then; make the optimizer last.",
    safety=Safety.MANUAL,
    how_safe="manual: lines have to change places, and what stands between them may need their order",
    false_alarms="A part that each process trains on its own, on purpose. Let be are: layers without parameters, moves "
    "to where the model already is, moves to the processor and in functions that evaluate or export, a "
    "model that is wrapped anew before it trains, and what stands behind the last training step.",
    source="pytorch#12603, pytorch#104336",
    triggers=("DistributedDataParallel", "DDP", ".module"),
    check=check,
)
