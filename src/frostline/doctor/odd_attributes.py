"""Attributes that mean nothing to torch, on parameters and modules: what was meant by them, and what came of it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from frostline.audit.places import NOWHERE, Place
from frostline.audit.seen import ModelSeen, OddAttribute, Seen, TensorSeen
from frostline.doctor.rule import Found
from frostline.doctor.source_lines import (
    WALKS,
    Statement,
    called,
    dotted,
    loops_around,
    part_walked,
    reached,
    walked_at,
    walks_around,
)
from frostline.doctor.telling import counted, freezer, parts_of, quoted, share
from frostline.findings import Safety, Severity
from frostline.state import names

_FALSE = frozenset({"False", "0", "0.0", "tensor(False)"})


@dataclass(frozen=True)
class Meant:
    """What one odd attribute, set on one line, was meant for.

    Attributes:
        model: the model.
        name: the attribute.
        value: what it was set to.
        on: how many parameters or modules it was set on, ``4 parameters`` for example.
        to_freeze: whether it was meant to freeze; otherwise to make trainable.
        missed: the parameters that are not as it was meant.
        place: the line; unknown where it was not found.
    """

    model: ModelSeen
    name: str
    value: str
    on: str
    to_freeze: bool
    missed: list[TensorSeen]
    place: Place


def is_false(value: str) -> bool:
    """Whether the text of a value is one of those that mean no.

    Example:
        >>> is_false("False"), is_false("True")
        (True, False)
    """
    return value in _FALSE


def meant(seen: Seen, meaning: Callable[[OddAttribute], bool | None]) -> Iterator[Meant]:
    """The odd attributes that were meant for freezing or thawing and did not do it, those of one line together.

    Args:
        seen: what was seen.
        meaning: whether an attribute was meant to freeze (``True``) or to make trainable (``False``); ``None`` where it
            was meant for neither.
    """
    for model in seen.models:
        groups: dict[tuple[str, str, Place, bool], list[OddAttribute]] = {}
        for odd in model.odd:
            to_freeze = meaning(odd)
            if to_freeze is not None:
                place = odd.place if odd.place.is_known else _place(odd, model, seen)
                groups.setdefault((odd.name, odd.value, place, to_freeze), []).append(odd)
        for (name, value, place, to_freeze), odds in groups.items():
            missed = [t for t in _concerned(odds, model) if starts_trainable(t, model) is to_freeze]
            if missed:
                on = counted(len(odds), odds[0].on)
                yield Meant(model, name, value, on, to_freeze, missed, place)


def told(one: Meant, seen: Seen, *, message: str, why: str, right: str = "") -> Found:
    """The finding about it.

    Args:
        one: what was meant.
        seen: what was seen.
        message: its one line.
        why: why the attribute does nothing, in a few words.
        right: the same line as it should be, where that is known.
    """
    paths = tuple(t.path for t in one.missed)
    changed = sum(bool(t.moved_in_step) for t in one.missed)
    evidence = [f"{one.name} = {one.value} was set on {one.on}; {why}"]
    flag = f"requires_grad is still {one.to_freeze} in {counted(len(paths), 'parameter')}"
    if one.to_freeze:
        steps = counted(len(seen.steps), "step")
        flag += f"; {share(changed, len(paths))} changed in {steps}" if changed else "; no optimizer moved them"
    evidence.append(flag)
    parts = parts_of(paths, one.model)
    if one.to_freeze:
        freeze = f"frostline.freeze({one.model.name}, {quoted(parts)})"
        remedy = f"{right}\nor, so that statistics stay too: {freeze}" if right else freeze
    else:
        remedy = right or "requires_grad_(True) on the parameters, before the optimizer is made"
    return Found(
        message=message,
        model=one.model.name,
        paths=paths,
        evidence=tuple(evidence),
        remedy=remedy,
        severity=Severity.ERROR if changed or not one.to_freeze else Severity.WARNING,
        safety=Safety.SAFE if one.to_freeze else Safety.MANUAL,
        place=one.place if one.place != NOWHERE else None,
        repair=freezer(seen, one.model, parts) if one.to_freeze else None,
    )


def _place(odd: OddAttribute, model: ModelSeen, seen: Seen) -> Place:
    """The line that set it: the only one that sets such an attribute, or the only one that does on this part."""
    lines = [s for s in reached(seen) if _may_set(s, odd, model, seen)]
    if len(lines) > 1:
        parts = [(s, part_walked(target, walks_around(s), seen)) for s in lines if (target := _sets(s.node, odd.name))]
        lines = [s for s, part in parts if part is not None and part[0] is model and names.is_under(odd.path, part[1])]
    return lines[0].place if len(lines) == 1 else NOWHERE


def _may_set(statement: Statement, odd: OddAttribute, model: ModelSeen, seen: Seen) -> bool:
    """Whether a statement sets such an attribute, and on something that it can be."""
    target = _sets(statement.node, odd.name)
    if target is None:
        return False
    for loop in loops_around(statement):
        parts = walked_at(loop.iter, statement.file, seen)
        asks = any(called(node) in WALKS for node in ast.walk(loop.iter))
        if asks and not any(m is model and names.is_under(odd.path, p) for m, p in parts):
            return False  # this loop did not run, or over something else
    if dotted(target) != "self":
        return True
    return odd.on == "module" and model.modules[odd.path].type == statement.owner


def _sets(node: ast.AST, name: str) -> ast.expr | None:
    """On what a statement sets an attribute of this name."""
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return next((t.value for t in targets if isinstance(t, ast.Attribute) and t.attr == name), None)
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and called(call) == "setattr" and len(call.args) == 3:
        what = call.args[1]
        return call.args[0] if isinstance(what, ast.Constant) and what.value == name else None
    return None


def starts_trainable(tensor: TensorSeen, model: ModelSeen) -> bool:
    """Whether a parameter required gradients when training began; at the end, where it never began."""
    return tensor.trainable if model.contract_at is not None else tensor.trainable_now


def _concerned(odds: Iterable[OddAttribute], model: ModelSeen) -> list[TensorSeen]:
    found: dict[str, TensorSeen] = {}
    for odd in odds:
        if odd.on == "parameter":
            tensors = [model.tensors[odd.path]] if odd.path in model.tensors else []
        else:
            tensors = [t for t in model.below(odd.path) if t.kind == "parameter"]
        found |= {t.path: t for t in tensors}
    return list(found.values())
