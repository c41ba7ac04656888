"""O402: the optimizer holds parameters that the model no longer has."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.model_parts import has_parameters
from frostline.lint.ownership import Owner, Ownership, place_of, root_of
from frostline.lint.rule import LintRule, Violation
from frostline.lint.statements import moved_below
from frostline.lint.values import is_below


def check(view: FileView) -> Iterator[Violation]:
    """Parts of a model that are made or replaced behind the optimizer over the model, which nothing adds to it."""
    for flow in view.flows:
        made = [e for e in flow.of("new", "renew") if e.path and e.node is not None]
        if not made or not any(e.what == "optimizer" for e in flow.events):
            continue
        owned = Ownership(flow)
        for new in made:
            yield from _orphaned(view, flow, owned, new)


def _orphaned(view: FileView, flow: Flow, owned: Ownership, new: Event) -> Iterator[Violation]:
    value = new.get("value")
    if new.what == "new" and has_parameters(value, view.walk) is False:
        return
    owner = owned.orphaned(new, new.path)
    if owner is None or (value is not None and value.copy_of):
        return
    path = owned.path(new.path)
    index = place_of(flow, new)
    if any(e for e in owned.flags(path, False) if place_of(flow, e) > index):
        return  # it is frozen: nobody wants to train it
    trains = owned.trains_after(new, owner)
    if new.what == "new" and root_of(path) == path and any(source.path == path for source in owner.sources):
        # Another model by the same name, unless the same optimizer steps for it.
        if trains is not True or not _is_trained(owned, new):
            return
    elif not any(is_below(path, source.path) for source in owner.sources):
        return
    if trains is False or (trains is None and not _is_final(view, flow, owner)):
        return
    how = _how(new, shown(path))
    yield Violation(
        new.node or ast.Pass(),
        f"{how} behind {owner.name}, which was made from the parameters before: the new ones never train",
        evidence=(
            f"line {owner.event.line} makes {owner.name} from {owner.given}",
            *((f"it stands at {new.origin}",) if new.origin else ()),
            "no group is added and no optimizer made behind it",
        ),
        remedy=f"make {owner.name} behind this line",
        severity=Severity.ERROR if trains and new.what == "new" and not flow.has_callers else Severity.WARNING,
        edits=_edits(view, new, owner),
        safety=Safety.UNSAFE,
        title=f"Make {owner.name} after it",
        inferred=new.get("how") == "resize",
    )


def _how(new: Event, path: str) -> str:
    if new.get("how") == "resize":
        return f"the embeddings of {path} are resized"
    return f"{path} is made"


def _is_trained(owned: Ownership, new: Event) -> bool:
    """Whether the model that is made runs forward and backward behind it."""
    behind = owned.flow.events[place_of(owned.flow, new) + 1 :]
    runs = any(e.what == "forward" and is_below(owned.path(e.path), owned.path(new.path)) for e in behind)
    return runs and any(e.what == "backward" for e in behind)


def _is_final(view: FileView, flow: Flow, owner: Owner) -> bool:
    """Whether nobody outside of the flow is likely to make the optimizer anew: a script, or a class that never does."""
    if not flow.owner:
        return True
    made = [
        name
        for name, function in view.walk.functions.items()
        if function.owner == flow.owner and any(e.what == "optimizer" for e in function.events)
    ]
    return len(made) <= 1 and owner.event.function in made


def _edits(view: FileView, new: Event, owner: Owner) -> tuple[Edit, ...]:
    """The line of the optimizer moved behind the new part, where nothing between the two needs it."""
    made = owner.event
    if new.origin or made.origin or new.via or made.via or new.node is None or made.node is None:
        return ()
    first, last = view.statement(made.node), view.statement(new.node)
    if first is None or last is None:
        return ()
    between = view.source.text[view.source.end(first) : view.source.start(last)]
    if not made.path or made.path in between or new.function != made.function:
        return ()
    return moved_below(view, first, last)


RULE = LintRule(
    code="O402",
    what="Looks for modules that are made and put into a model, or embeddings that are resized, behind an "
    "optimizer that was made from the parameters of the model, where neither a group is added nor an optimizer "
    "made behind them.",
    why="`model.fc = nn.Linear(...)` makes new parameters. The optimizer keeps the old ones, on which it steps "
    "without an error; the new head stays at its random start while the rest of the model adapts to it.",
    example="optimizer = torch.optim.SGD(model.parameters(), lr=0.01)\nmodel.fc = nn.Linear(512, 10)\n"
    "train(model, optimizer)",
    instead="model.fc = nn.Linear(512, 10)\noptimizer = torch.optim.SGD(model.parameters(), lr=0.01)\n"
    "train(model, optimizer)",
    remedy="Make the optimizer after the model has its last form; `frostline.replace_head`, then the optimizer, "
    "is this order.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the part begins to train; the line of the optimizer is moved only where nothing in between "
    "names it",
    false_alarms="A part that is put in on purpose to stay as it is: freeze it, which says so, and the rule is "
    "silent. Modules without parameters (`nn.Identity`), copies, and models whose optimizer does not step again "
    "are let be. A method is reported only if no other one of its class makes an optimizer.",
    source="HVPNeT#5, FairMOT#125, accelerate#2665, accelerate#3256",
    triggers=("optim", "Optim", "SGD", "Adam"),
    check=check,
)
