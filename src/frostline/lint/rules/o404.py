"""O404: loading replaced the parameters that the optimizer holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.ownership import Ownership
from frostline.lint.rule import LintRule, Violation


def check(view: FileView) -> Iterator[Violation]:
    """`load_state_dict(assign=True)` and `to_empty` behind an optimizer over the model, and none made after that."""
    for flow in view.flows:
        replaced = [e for e in flow.events if e.node is not None and e.path and _replaces(e)]
        if not replaced:
            continue
        owned = Ownership(flow)
        for event in replaced:
            yield from _orphaned(view, flow, owned, event)


def _replaces(event: Event) -> bool:
    if event.what == "load":
        return event.get("assign") is True and event.get("of") != "optimizer"
    return event.what == "move" and event.get("how") == "to_empty"


def _orphaned(view: FileView, flow: Flow, owned: Ownership, event: Event) -> Iterator[Violation]:
    owner = owned.orphaned(event, event.path)
    if owner is None or owned.trains_after(event, owner) is False or event.node is None:
        return
    by = "load_state_dict(assign=True)" if event.what == "load" else "to_empty()"
    path = shown(owned.path(event.path))
    yield Violation(
        event.node,
        f"{by} puts new parameters into {path}: {owner.name}, which was made before, steps on the old ones",
        evidence=(
            f"line {owner.event.line} makes {owner.name} from {owner.given}",
            *((f"it stands at {event.origin}",) if event.origin else ()),
        ),
        remedy=f"make {owner.name} behind this line" + (", or leave assign=True away" if event.what == "load" else ""),
        severity=Severity.WARNING if flow.has_callers else Severity.ERROR,
        edits=_edits(view, event),
        safety=Safety.UNSAFE,
        title="Load into the parameters that there are",
    )


def _edits(view: FileView, event: Event) -> tuple[Edit, ...]:
    """`assign=True` taken out, where it stands behind another argument."""
    call = event.node
    if event.origin or event.what != "load" or not isinstance(call, ast.Call):
        return ()
    given: list[ast.expr] = [*call.args, *(keyword.value for keyword in call.keywords)]
    for i, keyword in enumerate(call.keywords):
        if keyword.arg == "assign" and isinstance(keyword.value, ast.Constant):
            place = len(call.args) + i
            if place:
                return (Edit(view.source.end(given[place - 1]), view.source.end(keyword.value), ""),)
    return ()


RULE = LintRule(
    code="O404",
    what="Looks for `load_state_dict(..., assign=True)` and `to_empty()` of a model behind an optimizer that was "
    "made from its parameters, where no optimizer is made behind them.",
    why="Both put new `Parameter` objects into the model. The optimizer keeps the old ones: it steps without an "
    "error, on tensors that nobody uses, and the model stays as it was loaded.",
    example="optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nmodel.load_state_dict(state, assign=True)\n"
    "train(model, optimizer)",
    instead="model.load_state_dict(state, assign=True)\noptimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
    "train(model, optimizer)",
    remedy="Make the optimizer after loading, or load without `assign=True`, which writes into the tensors that "
    "there are.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the model begins to train, and without `assign` a model on the meta device cannot be loaded",
    false_alarms="A model that is loaded to be evaluated, in code that does not show it: where the optimizer "
    "steps before the load and not behind it, or is made anew, the rule is silent.",
    source="none found; torch says so in the documentation of `assign`",
    triggers=("assign", "to_empty"),
    check=check,
)
