"""How lists of parameters are put together: sums, branches, filters and lists that are filled one by one."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace

from frostline.lint.events import Condition
from frostline.lint.values import EACH, MODULES, PARAMETERS, Value

# Kinds of values that an optimizer may be given.
LISTS = PARAMETERS | {"list", "tuple", "group", "parameter"}
UNKNOWN = Value("unknown")
# More parts than this are told one by one by nobody.
_MOST_PARTS = 64


def is_list(value: Value | None) -> bool:
    """Whether it is something that an optimizer may be given: parameters, or a list of parameters or groups."""
    return value is not None and value.kind in LISTS


def joined(one: Value, other: Value | None) -> Value:
    """The sum of two lists.

    Example:
        >>> body, head = Value("parameters", path="body"), Value("parameters", path="head")
        >>> [source.path for source in joined(body, head).sources()]
        ['body', 'head']
    """
    parts = [*_parts(one), *(_parts(other) if other is not None else (UNKNOWN,))]
    if len(parts) > _MOST_PARTS:
        parts = [*parts[:_MOST_PARTS], UNKNOWN]
    if len(parts) == 1 and parts[0].kind in PARAMETERS:
        return replace(parts[0], lazy=False)
    kind = "parameters" if any(part.kind in PARAMETERS for part in parts) else "list"
    return Value(kind, items=tuple(parts))


def _parts(value: Value) -> tuple[Value, ...]:
    if value.kind in {"list", "tuple"} or (value.kind in PARAMETERS and value.items):
        parts = tuple(UNKNOWN if item is None else item for item in value.items)
        return (
            tuple(replace(part, filtered=True, tests=part.tests + value.tests) for part in parts)
            if value.filtered
            else parts
        )
    return (value,)


def either(one: Value, other: Value) -> Value | None:
    """What stands at a name behind a branch that made it two lists: at most both, and maybe less.

    Example:
        >>> all_of, head = Value("parameters", path="net"), Value("parameters", path="net.head")
        >>> [(source.path, source.filtered) for source in either(all_of, head).sources()]
        [('net', True), ('net.head', True)]
    """
    if one == other:
        return one
    if not is_list(one) or not is_list(other):
        return None
    # What both of them have is there in any case: a list that was begun before and grew in one arm.
    mine, theirs = _parts(one), _parts(other)
    if mine == theirs[: len(mine)] or theirs == mine[: len(theirs)]:
        return other if len(theirs) > len(mine) else one
    parts = [part for part in mine if part in theirs]
    for part in (*mine, *theirs):
        maybe = part if part.filtered else replace(part, filtered=True, tests=(*part.tests, "?"))
        if part not in parts and maybe not in parts:
            parts.append(maybe)
    kind = "parameters" if any(part.kind in PARAMETERS for part in parts) else "list"
    return parts[0] if len(parts) == 1 and kind == "parameters" else Value(kind, items=tuple(parts))


def spelled_tests(conditions: Iterable[Condition | ast.expr], values: Mapping[int, Value]) -> tuple[str, ...]:
    """The tests that a parameter passes, as text in which its name is ``name`` and it itself ``p``."""
    found: list[str] = []
    for each in conditions:
        node = each.node if isinstance(each, Condition) else each
        if node is None:
            found.append("?")
            continue
        text = _renamed(node, values)
        found.append(text if not isinstance(each, Condition) or each.arm else f"not ({text})")
    return tuple(found)


class _Renamed(ast.NodeTransformer):
    def __init__(self, roles: dict[str, str]) -> None:
        self._roles = roles

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self._roles.get(node.id, node.id), node.ctx)


_ROLES = {"name": "name", "parameter": "p", "module": "m"}


def _renamed(node: ast.expr, values: Mapping[int, Value]) -> str:
    roles: dict[str, str] = {}
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            value = values.get(id(each))
            if value is not None and value.kind in _ROLES:
                roles[each.id] = _ROLES[value.kind]
    return ast.unparse(_Renamed(roles).visit(copy.deepcopy(node)) if roles else node)


def appended(receiver: Value, added: Value | None, tests: tuple[str, ...], is_repeated: bool) -> Value:
    """A list behind ``append``.

    Args:
        receiver: the list.
        added: what is appended; ``None`` if that is unknown.
        tests: what it has to pass.
        is_repeated: a loop that is not over the parts of a model appends, or a branch that may not be taken.
    """
    if added is None:
        return joined(receiver, UNKNOWN)
    if added.kind == "parameter" and added.path.endswith(EACH):
        added = Value("parameters", path=added.path.removesuffix(EACH), items=added.items)
    if tests or is_repeated:
        added = replace(added, filtered=True, tests=(*added.tests, *tests))
    return joined(receiver, replace(added, lazy=False)) if added.kind in PARAMETERS else _with_item(receiver, added)


def _with_item(receiver: Value, added: Value) -> Value:
    parts = (*_parts(receiver), added)
    if len(parts) > _MOST_PARTS:
        parts = (*parts[:_MOST_PARTS], UNKNOWN)
    kind = "parameters" if any(part.kind in PARAMETERS for part in parts) else "list"
    return Value(kind, items=parts)


def of_parts(kind: str, receiver: Value) -> Value | None:
    """``m.parameters()`` where m is one of a literal list of modules, or a list of modules that has no name itself."""
    if kind not in PARAMETERS or not receiver.items or not (receiver.path.endswith(EACH) or not receiver.path):
        return None
    items = tuple(
        Value(kind, path=item.path, lazy=True, sure=item.sure) if item is not None and item.path else UNKNOWN
        for each in receiver.items
        for item in (each.items if each is not None and each.kind in {"list", "tuple"} else (each,))
    )
    return Value(kind, items=items, lazy=True)


def is_over_parts(value: Value | None) -> bool:
    """Whether a loop over it is one over the parts of a model."""
    return value is not None and (value.kind in PARAMETERS | MODULES or (value.kind == "tuple" and bool(value.items)))
