"""F111: a learning rate of 0 was taken for freezing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.layers import LayerBook
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import is_below, owner_of

# Where the rate that a schedule ends or begins with is given, by name and by place. Those that multiply leave a 0.
_LOWEST = {
    "CosineAnnealingLR": ("eta_min", 2),
    "CosineAnnealingWarmRestarts": ("eta_min", 3),
    "CosineLRScheduler": ("lr_min", 2),
}
_LIFTS = {"OneCycleLR": ("max_lr", 1), "CyclicLR": ("max_lr", 2), "SWALR": ("swa_lr", 1)}
_SET_BY_HAND = re.compile(r"""\[\s*["'](lr|initial_lr)["']\s*\]\s*[*+/-]?=(?!=)""")


@dataclass(frozen=True)
class _Zero:
    """A group whose rate is 0 beside others whose rate is not."""

    rate: ast.Constant
    optimizer: Event
    parts: tuple[str, ...]


def check(view: FileView) -> Iterator[Violation]:
    """Groups with the literal rate 0 beside groups that train: lifted by a scheduler, or with statistics that move."""
    if _SET_BY_HAND.search(view.source.text):
        return  # a schedule of one's own
    groups = [node for node in view.nodes(ast.Dict) if _rate(node) is not None]
    calls = [c for c in view.nodes(ast.Call) if _is_zero(_keyword(c, "lr"))]
    if not groups and not calls:
        return
    book = LayerBook(view)
    for flow in view.flows:
        for optimizer in flow.of("optimizer"):
            for zero in _zeros(view, optimizer, groups):
                yield from _violations(view, flow, zero, book)


def _zeros(view: FileView, optimizer: Event, groups: list[ast.Dict]) -> Iterator[_Zero]:
    call = optimizer.node
    if not isinstance(call, ast.Call) or optimizer.origin:
        return
    own = _groups(view, call)
    outer = _keyword(call, "lr") or (call.args[1] if len(call.args) > 1 else None)
    others = [group for group in own if group not in groups]
    trains = bool(others) and not _is_zero(outer)
    trains = trains or any(_rate(group, zero=False) is not None for group in own)
    if not trains:
        return  # all begin at 0: a warm-up
    for group in own:
        rate = _rate(group)
        if rate is None and _is_zero(outer) and _rate(group, zero=False) is None and isinstance(outer, ast.Constant):
            rate = outer
        if rate is not None:
            value = view.value(group)
            yield _Zero(rate, optimizer, tuple(owner_of(s.path) for s in value.sources() if s.path) if value else ())


def _groups(view: FileView, call: ast.Call) -> list[ast.Dict]:
    """The groups that an optimizer is given, written out in the call or under a name in the same function."""
    given = call.args[0] if call.args else _keyword(call, "params")
    if isinstance(given, ast.Name):
        name, here = given.id, view.function(call)
        for node in view.nodes(ast.Assign):
            target = node.targets[0]
            if isinstance(target, ast.Name) and target.id == name and view.function(node) == here:
                given = node.value
    if not isinstance(given, (ast.List, ast.Tuple)):
        return []
    return [each for each in given.elts if isinstance(each, ast.Dict)]


def _rate(group: ast.Dict, *, zero: bool = True) -> ast.Constant | None:
    """The literal rate 0 of a group; with ``zero=False``, whatever rate of its own it has that is not that."""
    keys = {
        key.value: value for key, value in zip(group.keys, group.values, strict=True) if isinstance(key, ast.Constant)
    }
    if "params" not in keys or "lr" not in keys:
        return None
    rate = keys["lr"]
    if zero:
        return rate if isinstance(rate, ast.Constant) and _is_zero(rate) else None
    return None if _is_zero(rate) else rate if isinstance(rate, ast.Constant) else ast.Constant(value=None)


def _is_zero(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and not isinstance(node.value, (bool, str)) and node.value == 0


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _violations(view: FileView, flow: Flow, zero: _Zero, book: LayerBook) -> Iterator[Violation]:
    what = " and ".join(shown(part) for part in zero.parts) or "the group"
    for scheduler in flow.of("scheduler"):
        if scheduler.get("of") != zero.optimizer.path:
            continue
        lifted = _lifts(view, scheduler)
        if lifted:
            yield Violation(
                zero.rate,
                f"a rate of 0 does not freeze: the scheduler lifts it, and {what} trains",
                evidence=(f"line {scheduler.line} makes a {scheduler.get('cls').rpartition('.')[2]} with {lifted}",),
                remedy="freeze the part with frostline.freeze, or leave it out of the optimizer",
                severity=Severity.ERROR,
            )
            return
    norms = [part for part in zero.parts if _moves(flow, part, book)]
    if norms:
        yield Violation(
            zero.rate,
            f"a rate of 0 does not freeze: in train mode the normalization statistics of {shown(norms[0])} still move",
            evidence=(
                f"line {zero.optimizer.line} makes the optimizer; nothing puts {shown(norms[0])} into eval mode",
            ),
            remedy="freeze the part with frostline.freeze, or call its eval() after every train()",
            severity=Severity.INFO,
            inferred=True,
        )


def _lifts(view: FileView, scheduler: Event) -> str:
    """What makes a scheduler give a rate above 0 to a group that has 0; "" where it does not."""
    name = str(scheduler.get("cls") or "").rpartition(".")[2]
    call = scheduler.node
    if not isinstance(call, ast.Call) or scheduler.origin:
        return ""
    argument, place = _LIFTS.get(name) or _LOWEST.get(name) or ("", 0)
    if not argument:
        return ""
    given = _keyword(call, argument) or (call.args[place] if len(call.args) > place else None)
    # A list has a rate for each group, and may have 0 for this one.
    if given is None or _is_zero(given) or isinstance(given, (ast.List, ast.Tuple)):
        return ""
    if name in _LOWEST and not (isinstance(given, ast.Constant) and given.value):
        return ""
    return f"{argument}={view.text(given)}"


def _moves(flow: Flow, part: str, book: LayerBook) -> bool:
    """Whether a part has statistics, and runs in train mode as far as is told."""
    if not any(e.what in {"step", "scaler_step"} for e in flow.events) or book.of_path(flow, part).norms is not True:
        return False
    return not any(
        e.what == "hold" or (e.what == "mode" and e.get("value") is False and is_below(owner_of(e.path), part))
        for e in flow.events
    )


RULE = LintRule(
    code="F111",
    what="Looks for parameter groups with the literal rate 0 beside groups that have another: where a scheduler "
    "gives them a rate above 0, and where normalization layers in them are in train mode.",
    why="Schedulers compute the rate of every group: `CosineAnnealingLR(eta_min=...)`, `OneCycleLR`, `CyclicLR` and "
    "`SWALR` lift a 0, and the part trains. Where the rate stays 0, train mode still moves running statistics.",
    example="optimizer = torch.optim.SGD(\n    [{'params': model.backbone.parameters(), 'lr': 0.0}, {'params': "
    "model.head.parameters()}], lr=0.1\n)\nscheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, "
    "eta_min=1e-3)",
    instead="model.backbone.requires_grad_(False)\noptimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)\n"
    "scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=1e-3)",
    remedy="Freeze the part with `frostline.freeze` and leave it out of the optimizer.",
    safety=Safety.MANUAL,
    how_safe="manual: a group that is to train later may begin at the rate 0",
    false_alarms="A group that is meant to be woken by the scheduler. Silent where all groups begin at 0 (a "
    "warm-up), where the scheduler multiplies (a 0 stays 0) or has a list of rates, and where a line sets rates by "
    "hand.",
    source="advice in Lightning#20340",
    triggers=('"lr"', "'lr'"),
    check=check,
)
