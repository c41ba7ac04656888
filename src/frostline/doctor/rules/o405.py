"""O405: an optimizer was given an iterator that was used up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace

from frostline.audit.events import GroupAdded
from frostline.audit.places import Place
from frostline.audit.seen import Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.source_lines import Statement, called, expressions, reached
from frostline.doctor.telling import at, counted
from frostline.findings import Safety, Severity

_ITERATORS = frozenset(
    {"filter", "map", "zip", "iter", "chain", "islice", "parameters", "named_parameters", "children", "modules"}
)


@dataclass(frozen=True)
class _UsedUp:
    name: str
    made: Statement
    used: Place
    source: str


def look(seen: Seen) -> Iterator[Found]:
    """An optimizer without parameters whose list was an iterator that somebody had walked before."""
    crash = seen.crash
    if crash is not None and "empty parameter list" in crash.text:
        used = _used_up(crash.place, seen)
        if used is not None:
            ended = f"{crash.type}: {crash.text}, raised at {at(crash.place)}"
            yield _found(used, "nothing was left of it for the optimizer", ended)
    for added in seen.of(GroupAdded, lambda e: not e.paths):
        used = _used_up(added.place, seen)
        if used is not None:
            what = f"group {added.group} of {added.optimizer} has no parameter"
            yield _found(used, what, f"{what}, and torch does not warn; made at {at(added.place)}")


def _found(used: _UsedUp, what: str, ended: str) -> Found:
    return Found(
        message=f"the iterator {used.name} was used up before the optimizer was made: {what}",
        evidence=(
            f"made at {at(used.made.place)}",
            f"used up at {at(used.used)}",
            ended,
        ),
        remedy=f"{used.name} = list({used.source})",
        severity=Severity.ERROR,
        safety=Safety.UNSAFE,
        place=used.used,
    )


def _used_up(place: Place, seen: Seen) -> _UsedUp | None:
    """The iterator that a line gives to an optimizer, and the line that walked it before."""
    if not place.is_known:
        return None
    known = seen if place.file in seen.sources else replace(seen, sources=(*seen.sources, place.file))
    statements = [s for s in reached(known) if s.file == place.file]
    here = [s for s in statements if s.covers(place)]
    if not here:
        return None
    maker = max(here, key=lambda s: s.node.lineno)
    for name in _names(maker):
        around = [s for s in statements if "." in name or s.function == maker.function]
        made = [s for s in around if s.node.lineno < maker.node.lineno and _iterator(s, name) is not None]
        if not made:
            continue
        origin = made[-1]
        value = _iterator(origin, name)
        for statement in around:
            between = origin.node.lineno < statement.node.lineno < maker.node.lineno
            if between and (used := _reads(statement, name)) is not None:
                return _UsedUp(name, origin, statement.place_of(used), ast.unparse(value) if value else "")
    return None


def _names(statement: Statement) -> list[str]:
    """The variables among the arguments of the calls of a statement."""
    found: dict[str, None] = {}
    for node in expressions(statement):
        if isinstance(node, ast.Call):
            for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                for inner in ast.walk(argument):
                    if isinstance(inner, (ast.Name, ast.Attribute)):
                        found.setdefault(ast.unparse(inner))
    return list(found)


def _iterator(statement: Statement, name: str) -> ast.expr | None:
    """What a statement assigns to a variable, where that is an iterator."""
    node = statement.node
    if not isinstance(node, ast.Assign) or name not in {ast.unparse(target) for target in node.targets}:
        return None
    value = node.value
    is_one = isinstance(value, ast.GeneratorExp) or (isinstance(value, ast.Call) and called(value) in _ITERATORS)
    return value if is_one else None


def _reads(statement: Statement, name: str) -> ast.AST | None:
    """Where a statement reads a variable."""
    for node in expressions(statement):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load) and ast.unparse(node) == name:
            return node
    return None


def sound(seen: Seen) -> str | None:
    """That no optimizer was made with an empty group."""
    made = seen.of(GroupAdded, lambda e: e.constructed)
    if not made or any(not e.paths for e in made):
        return None
    return f"{counted(len(made), 'parameter group')} came with parameters when the optimizers were made"


RULE = Rule(
    code="O405",
    what="Looks at optimizers that were made with an empty list or group of parameters, and in the source for the "
    "iterator that they were given and for what had walked it before.",
    why="`filter(...)`, `map(...)`, a generator expression and `model.parameters()` can be walked once. Counting their "
    "parameters, or giving them to a second optimizer, leaves nothing. As the only argument that raises `ValueError: "
    "optimizer got an empty parameter list`; inside of a group nothing is said, and the group trains nothing.",
    evidence="The line that made the iterator, the line that walked it, and the optimizer; when the optimizer is made.",
    example="params = filter(lambda p: p.requires_grad, model.parameters())\n"
    "print(sum(p.numel() for p in params))\n"
    "optimizer = torch.optim.SGD(params, lr=0.1)",
    instead="params = [p for p in model.parameters() if p.requires_grad]\n"
    "print(sum(p.numel() for p in params))\n"
    "optimizer = torch.optim.SGD(params, lr=0.1)",
    remedy="Make a list of it.",
    safety=Safety.UNSAFE,
    how_safe="unsafe only in that it edits the source: a list can be walked as often as one likes",
    false_alarms="None known. A list that is empty because everything is frozen is not reported by this rule.",
    source="none found",
    look=look,
    sound=sound,
    explains=("O412",),
)
