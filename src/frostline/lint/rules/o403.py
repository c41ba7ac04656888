"""O403: frozen parameters are kept in the optimizer."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.iterations import loop_of
from frostline.lint.ownership import Owner, Ownership, is_required_only, place_of
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import PARAMETERS, Value, is_below, owner_of
from frostline.lint.wrapping import is_elsewhere

_THAWS = re.compile(r"unfreeze|thaw|set_trainable|toggle", re.I)
_MOVES_WITHOUT = re.compile(r"Adam|Lion|Muon|LAMB|Lamb|RMSprop|Adagrad")


def check(view: FileView) -> Iterator[Violation]:
    """Optimizers over all of a model of which a part is frozen, before or behind them, and stays so."""
    for flow in view.flows:
        freezes = [e for e in flow.of("flag") if e.get("value") is False and e.path]
        made = flow.of("optimizer")
        if not freezes or not made:
            continue
        owned = Ownership(flow)
        for owner in owned.made():
            yield from _kept(view, flow, owned, owner, freezes)


def _kept(view: FileView, flow: Flow, owned: Ownership, owner: Owner, freezes: list[Event]) -> Iterator[Violation]:
    if owner.event.node is None or _is_thawed_somewhere(view, flow):
        return
    for freeze in freezes:
        path = owned.path(freeze.path)
        source = next((s for s in owner.sources if _takes_all(s) and is_below(path, s.path)), None)
        if source is None or is_elsewhere(freeze, owner.event) or _is_thawed(owned, path, place_of(flow, freeze)):
            continue
        is_before = place_of(flow, freeze) < owner.index
        if is_before and is_required_only(source):
            continue
        if path == source.path and freeze.whole and not _is_renewed(owned, path, place_of(flow, freeze)):
            continue  # all of it: then it trains nothing, which is a mistake of its own
        yield from _violation(view, flow, owner, freeze, source, is_before)
        return


def _takes_all(source: Value) -> bool:
    return source.kind in PARAMETERS and bool(source.path) and (not source.filtered or is_required_only(source))


def _is_thawed_somewhere(view: FileView, flow: Flow) -> bool:
    """Whether something thaws again what a flow froze: keeping it in the optimizer is right then."""
    if any(e.what == "flag" and e.get("value") is None for e in flow.events):
        return True
    return any(_THAWS.search(name) for name in view.walk.functions)


def _is_thawed(owned: Ownership, path: str, index: int) -> bool:
    """Whether what is frozen at a place in the flow is thawed behind it, all of it or around it."""
    events = owned.flow.events[index + 1 :]
    return any(e.what == "flag" and e.get("value") is True and is_below(path, owned.path(e.path)) for e in events)


def _is_renewed(owned: Ownership, path: str, index: int) -> bool:
    """Whether a part of what is frozen is thawed, or put in anew, behind it."""
    for event in owned.flow.events[index + 1 :]:
        part = owned.path(event.path)
        if (
            part != path
            and is_below(part, path)
            and (event.what == "new" or (event.what == "flag" and event.get("value")))
        ):
            return True
    return False


def _violation(
    view: FileView, flow: Flow, owner: Owner, freeze: Event, source: Value, is_before: bool
) -> Iterator[Violation]:
    node = owner.event.node
    assert node is not None
    part = shown(owner_of(freeze.path))
    index = place_of(flow, freeze)
    if is_before:
        severity, message = Severity.INFO, f"{owner.name} is given the frozen parameters of {part} as well"
    elif is_required_only(source) and not _has_trained(flow, index):
        severity = Severity.WARNING
        message = f"what {owner.name} is given is filtered before {part} is frozen, and leaves nothing out"
    else:
        if _has_trained(flow, index) and not _may_move(flow, owner):
            return  # frozen on the way, and its gradients are None from the next round on: as one does it
        severity = Severity.WARNING if _has_trained(flow, index) else Severity.INFO
        message = f"{part} is frozen behind {owner.name}, which keeps its parameters"
    if severity is Severity.INFO and any(e for e in flow.of("zero_grad") if e.get("set_to_none") is False):
        return  # gradients of zeros: that is more than a matter of order, and told as such
    yield Violation(
        node,
        message,
        evidence=(
            f"line {freeze.line} freezes {part if freeze.whole else f'a part of {part}'}",
            *((f"it stands at {freeze.origin}",) if freeze.origin else ()),
            "without a gradient they are passed over; with a stray one, momentum or weight decay moves them",
        ),
        remedy=f"[p for p in {shown(source.path)}.parameters() if p.requires_grad]"
        + ("" if is_before else f", behind the line that freezes {part}"),
        severity=severity,
        edits=_edits(view, owner) if is_before else (),
        safety=Safety.UNSAFE,
        title="Leave frozen parameters out",
    )


def _has_trained(flow: Flow, index: int) -> bool:
    """Whether something is trained before a place in the flow, or in rounds of a loop around it."""
    event = flow.events[index]
    return any(e.what in {"backward", "step", "scaler_step"} for e in flow.events[:index]) or loop_of(event) is not None


def _may_move(flow: Flow, owner: Owner) -> bool:
    """Whether gradients may be left when training is interrupted to freeze, and something moves what has them."""
    if flow.of("zero_grad"):
        return False
    options = owner.event.get("options", {})
    moves = options.get("momentum") or options.get("weight_decay")
    return bool(moves) or bool(_MOVES_WITHOUT.search(owner.event.get("cls", "").rpartition(".")[2]))


def _edits(view: FileView, owner: Owner) -> tuple[Edit, ...]:
    """A filter around `model.parameters()`, where the optimizer is given just that."""
    call = owner.event.node
    if owner.event.origin or not isinstance(call, ast.Call) or owner.event.via:
        return ()
    given = call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "params"), None)
    if (
        isinstance(given, ast.Call)
        and isinstance(given.func, ast.Attribute)
        and given.func.attr == "parameters"
        and not given.args
        and not given.keywords
    ):
        return (view.replaced(given, f"(p for p in {view.text(given)} if p.requires_grad)"),)
    return ()


RULE = LintRule(
    code="O403",
    what="Looks for optimizers that are given all parameters of a model of which a part is frozen before, and "
    "for filters on `requires_grad` that are applied before the freezing, so that they leave nothing out.",
    why="It is harmless as long as the gradients are `None`: the step passes them over, and no state is kept. "
    "They are walked over at every step, though, and one stray gradient is enough for weight decay and momentum "
    "to move them.",
    example="model.backbone.requires_grad_(False)\noptimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)",
    instead="model.backbone.requires_grad_(False)\n"
    "optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)",
    remedy="Freeze first, then filter. Keep them in if they are to be unfrozen later: groups, schedulers and "
    "checkpoints then keep their layout.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: without them the optimizer's state has another layout, which an old checkpoint does not "
    "have, and what is unfrozen later has no optimizer",
    false_alarms="Keeping them in on purpose, to unfreeze them later: where the file has a function that does, "
    "the rule is silent. Told for information only, but for filters that come too early.",
    source="transformers#21182",
    triggers=("requires_grad", "freez", "froze"),
    check=check,
)
