"""O401: parameters that were unfrozen later are in no optimizer."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.ownership import Owner, Ownership, place_of, root_of
from frostline.lint.rule import LintRule, Violation
from frostline.lint.statements import ends_its_line
from frostline.lint.values import is_below, owner_of, related


def check(view: FileView) -> Iterator[Violation]:
    """Flags set to True behind an optimizer, over parameters that no optimizer of the flow was ever given."""
    for flow in view.flows:
        thaws = [e for e in flow.of("flag") if e.get("value") is True and e.path and e.node is not None]
        owned = Ownership(flow) if thaws else None
        if owned is None or not owned.owners or owned.steps_unseen():
            continue
        for thaw in thaws:
            yield from _left_out(view, flow, owned, thaw)


def _left_out(view: FileView, flow: Flow, owned: Ownership, thaw: Event) -> Iterator[Violation]:
    path = owned.path(thaw.path)
    index = place_of(flow, thaw)
    before = [o for o in owned.made() if o.index < index and owned.later(o, thaw) and _is_of(o, path)]
    if not before or any(not o.is_known for o in owned.owners if o.index < index or _is_of(o, path)):
        return
    if owned.is_given_later(path, thaw) or owned.may_be_given(thaw, path, *(o.event.path for o in before)):
        return
    reasons = [_why_without(owned, owner, path) for owner in before]
    if any(reason is None for reason in reasons):
        return
    owner, reason = before[-1], reasons[-1]
    if reason is None or owned.trains_after(thaw, owner) is False:
        return
    freeze, why = reason
    optimizer = owner.name
    part = shown(owner_of(thaw.path))
    exact = thaw.whole and not any(related(s.path, path) and not s.filtered for o in before for s in o.sources)
    sure = owned.trains_after(thaw, owner) is True and not flow.has_callers
    yield Violation(
        thaw.node or freeze.node or ast.Pass(),
        f"what is unfrozen in {part} is in no optimizer: it gets gradients and never trains",
        evidence=(
            f"line {owner.event.line} makes {optimizer} {why}",
            f"line {freeze.line} had frozen it before",
            *((f"it stands at {thaw.origin}",) if thaw.origin else ()),
        ),
        remedy=f'{optimizer}.add_param_group({{"params": {part}.parameters()}}), where it is unfrozen',
        severity=Severity.ERROR if sure else Severity.WARNING,
        edits=_edits(view, thaw, owner, part) if exact else (),
        safety=Safety.UNSAFE,
        title=f"Add {part} to {optimizer}",
    )


def _is_of(owner: Owner, path: str) -> bool:
    """Whether an optimizer has something of the model that a path lies in."""
    return any(root_of(s.path) == root_of(path) or related(s.path, path) for s in owner.sources if s.path)


def _why_without(owned: Ownership, owner: Owner, path: str) -> tuple[Event, str] | None:
    """The freezing, and the reason, for which an optimizer did not get a path; ``None`` where it may have it."""
    if not owner.may_have(path):
        freeze = owned.is_frozen(path, len(owned.flow.events)) or _frozen_before(owned, path)
        return (freeze, f"over {owner.given} alone") if freeze is not None else None
    if owner.required_only(path):
        freeze = owned.is_frozen(path, owner.index)
        if freeze is None:
            return None
        return freeze, "over what was trainable then"
    # All of a model is unfrozen, of which the optimizer has a part.
    inside = [source for source in owner.sources if is_below(source.path, path)]
    if len(inside) == len(owner.sources) and all(source.path != path for source in inside):
        freeze = owned.is_frozen(path, owner.index) or _frozen_before(owned, path)
        return (freeze, f"over {owner.given} alone") if freeze is not None else None
    return None


def _frozen_before(owned: Ownership, path: str) -> Event | None:
    """What froze a path, or all around it, at some time before it is thawed."""
    found = [e for e in owned.flags(path, False) if e.what == "flag" and e.whole and is_below(path, owned.path(e.path))]
    return found[0] if found else None


def _edits(view: FileView, thaw: Event, owner: Owner, part: str) -> tuple[Edit, ...]:
    """A line that adds the group, behind the statement or loop that unfreezes."""
    if thaw.origin or thaw.via or not owner.event.path or owner.event.function != thaw.function or thaw.node is None:
        return ()
    statement = view.statement(thaw.node)
    if statement is None:
        return ()
    above = view.parent(statement)
    if isinstance(above, (ast.For, ast.AsyncFor)) and thaw.loops and thaw.loops[-1].node is above:
        if len(above.body) != 1 or above.orelse:
            return ()
        statement = above
    if not ends_its_line(view, statement) or owner.event.path == "<return>":
        return ()
    return (view.line_below(statement, f'{owner.event.path}.add_param_group({{"params": {part}.parameters()}})'),)


RULE = LintRule(
    code="O401",
    what="Looks for parameters whose `requires_grad` becomes true behind an optimizer that did not get them: it "
    "was made from what was trainable while they were frozen, or over another part alone; and no group is added, "
    "nor an optimizer made anew.",
    why="An optimizer keeps the list that it was given. What a filter left out stays out: behind the unfreezing "
    "it gets gradients, costs time and memory, and never moves. The loss goes on falling, because the head "
    "trains.",
    example="model.backbone.requires_grad_(False)\n"
    "optimizer = torch.optim.AdamW(filter(lambda p: p.requires_grad, model.parameters()), lr=1e-3)\n"
    "for epoch in range(10):\n    if epoch == 3:\n        model.backbone.requires_grad_(True)\n"
    "    for x, y in loader:\n        optimizer.zero_grad()\n        criterion(model(x), y).backward()\n"
    "        optimizer.step()",
    instead="model.backbone.requires_grad_(False)\n"
    "optimizer = torch.optim.AdamW(filter(lambda p: p.requires_grad, model.parameters()), lr=1e-3)\n"
    "for epoch in range(10):\n    if epoch == 3:\n        model.backbone.requires_grad_(True)\n"
    '        optimizer.add_param_group({"params": model.backbone.parameters(), "lr": 1e-5})\n'
    "    for x, y in loader:\n        optimizer.zero_grad()\n        criterion(model(x), y).backward()\n"
    "        optimizer.step()",
    remedy="Add a group where you unfreeze, or give the optimizer all parameters from the start: frozen ones are "
    "passed over as long as they have no gradient.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the part begins to train, at the learning rate that the optimizer has by default, and a "
    "scheduler that was made before does not know the group",
    false_alarms="Unfreezing to read gradients (an attack, an analysis) while nothing is to move. Where an "
    "optimizer steps that was made elsewhere, or a function by a name such as `add_params` or `unfreeze` is "
    "given the model or the optimizer, the rule is silent.",
    source="LMFlow#726, fastai#2133",
    triggers=("requires_grad", "freez", "froze", "thaw", "trainable"),
    check=check,
)
