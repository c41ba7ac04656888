"""Layers and parameters that code puts into plain lists, tuples and dicts."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass

from frostline.lint.file_view import FileView
from frostline.lint.scopes import AnyFunction
from frostline.lint.values import Value

REGISTERED = frozenset(
    f"torch.nn.{name}" for name in ("ModuleList", "ModuleDict", "Sequential", "ParameterList", "ParameterDict")
)
"""Containers of torch that register what is in them."""

_FILLS = frozenset({"append", "extend", "insert", "update", "setdefault"})
# Modules that are kept out of sight on purpose: they are never trained.
_FIXED = re.compile(r"\.(eval|requires_grad_)\(")
_KINDS: dict[type[ast.AST], str] = {
    ast.List: "list",
    ast.ListComp: "list",
    ast.Tuple: "tuple",
    ast.Dict: "dict",
    ast.DictComp: "dict",
}


@dataclass(frozen=True)
class Kept:
    """Layers in a plain container.

    Attributes:
        kind: of the container: ``list``, ``tuple`` or ``dict``.
        where: the expression that makes it.
        parts: what is in it.
        fills: what fills it later.
        is_plain: its expression can be wrapped as it stands.
    """

    kind: str
    where: ast.expr
    parts: tuple[Value, ...]
    fills: tuple[ast.AST, ...] = ()
    is_plain: bool = True


def kept_in(view: FileView, given: ast.expr, name: str, method: AnyFunction, nodes: list[ast.AST]) -> Kept | None:
    """The layers in what an attribute is given; ``None`` where it is no plain container, or has other things in it.

    Args:
        view: the file.
        given: the expression.
        name: the attribute.
        method: the method that the assignment stands in.
        nodes: all nodes of the methods of the class.
    """
    if isinstance(given, ast.Name):
        return _through_a_name(view, given, method)
    kind, parts = _parts(view, given)
    if not kind:
        return None
    fills = [node for node in nodes if _fills(node, lambda each: is_own(each, name))]
    if not parts and not is_empty(given):
        return None  # something else is in it
    added = [value for node in fills for each in _added(node) if (value := _layer(view, each)) is not None]
    if parts is None or (fills and not added and not parts):
        return None
    only_one = len(parts) == 1 and not fills and isinstance(given, (ast.List, ast.Tuple))
    if only_one or not (parts or added):
        return None  # one thing in a list is how something is kept out of sight on purpose
    others = len(added) < sum(len(_added(node)) for node in fills)
    return Kept(kind, given, (*parts, *added), tuple(fills), not others and not isinstance(given, ast.BinOp))


def _through_a_name(view: FileView, given: ast.Name, method: AnyFunction) -> Kept | None:
    """A local list that is filled, and then kept."""
    start: ast.expr | None = None
    fills: list[ast.AST] = []
    for node in ast.walk(method):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == given.id for t in node.targets):
            if start is not None:
                return None
            start = node.value
        elif isinstance(node, ast.Call) and view.name(node.func) in REGISTERED:
            if any(isinstance(each, ast.Name) and each.id == given.id for each in ast.walk(node)):
                return None
        elif _fills(node, lambda each: isinstance(each, ast.Name) and each.id == given.id):
            fills.append(node)
    if start is None:
        return None
    kind, parts = _parts(view, start)
    added = [value for node in fills for each in _added(node) if (value := _layer(view, each)) is not None]
    if not kind or parts is None or not (parts or added) or (not parts and not is_empty(start)):
        return None
    return Kept(kind, given, (*parts, *added), tuple(fills), len(added) == sum(len(_added(node)) for node in fills))


def _parts(view: FileView, node: ast.expr) -> tuple[str, list[Value] | None]:
    """What kind of container an expression makes, and the layers in it; ``None`` where there are other things in it."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _parts(view, node.left)
    kind = _KINDS.get(type(node), "")
    elements: list[ast.expr] = []
    if isinstance(node, (ast.List, ast.Tuple)):
        elements = node.elts
    elif isinstance(node, ast.ListComp):
        elements = [node.elt]
    elif isinstance(node, ast.Dict):
        elements = node.values
    elif isinstance(node, ast.DictComp):
        elements = [node.value]
    elif isinstance(node, ast.Call) and view.name(node.func) in {"builtins.list", "builtins.dict", "builtins.tuple"}:
        kind = view.name(node.func).removeprefix("builtins.")
        elements = [keyword.value for keyword in node.keywords]
        if node.args:
            return "", None
    found: list[Value] = []
    for element in elements:
        if isinstance(element, (ast.List, ast.Tuple)):
            inner = [value for each in element.elts if (value := _layer(view, each)) is not None]
            if len(inner) < len(element.elts):
                return kind, None
            found += inner
            continue
        value = _layer(view, element)
        if value is None:
            return kind, None
        found.append(value)
    return kind, found


def is_empty(node: ast.expr) -> bool:
    """Whether it makes an empty list or dict.

    Example:
        >>> [is_empty(ast.parse(text, mode="eval").body) for text in ("[]", "dict()", "{1: 2}")]
        [True, True, False]
    """
    if isinstance(node, ast.Call):
        return not node.args and not node.keywords
    return isinstance(node, (ast.List, ast.Dict)) and not (node.elts if isinstance(node, ast.List) else node.keys)


def _layer(view: FileView, node: ast.expr) -> Value | None:
    """A layer that is made right here: what has a name may be registered under it."""
    if not isinstance(node, ast.Call) or _FIXED.search(view.text(node)):
        return None
    value = view.value(node)
    if value is None or not (value.kind == "module" or value.cls == "torch.nn.Parameter"):
        return None
    if value.copy_of and not value.cls and not value.maker:
        return None  # a copy of something unknown
    return value


def _fills(node: ast.AST, is_it: Callable[[ast.AST], bool]) -> bool:
    """Whether a statement or call puts something into a container."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _FILLS:
        return is_it(node.func.value)
    if isinstance(node, ast.AugAssign):
        return is_it(node.target)
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        return is_it(node.targets[0].value)
    return False


def _added(node: ast.AST) -> list[ast.expr]:
    """What a statement or call puts in."""
    given: ast.expr | None = None
    if isinstance(node, ast.Call):
        given = node.args[-1] if node.args else None
    elif isinstance(node, (ast.AugAssign, ast.Assign)):
        given = node.value
    if isinstance(given, (ast.List, ast.Tuple)):
        return list(given.elts)
    if isinstance(given, ast.ListComp):
        return [given.elt]
    if isinstance(given, ast.Dict):
        return list(given.values)
    return [given] if given is not None else []


def is_own(node: ast.AST, name: str = "") -> bool:
    """Whether it is an attribute of ``self``, by any name or by this one."""
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and name in ("", node.attr)
    )
