"""Which parts of models a file holds with ``frostline.freeze``: they stay in eval mode, whoever calls train()."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase

from frostline.lint.events import Flow
from frostline.lint.file_view import FileView
from frostline.lint.module_walk import plain_path
from frostline.lint.torch_names import HOLDS
from frostline.lint.values import is_below


def is_held(view: FileView, flow: Flow, path: str) -> bool:
    """Whether a part of a flow is held, in the flow or anywhere in its file, with its mode.

    A selector that is no literal text may name every part. ``level="grad"`` holds no mode.

    Args:
        view: the file.
        flow: the flow in which the part is used.
        path: the part, as the flow knows it: ``teacher``, ``self.teacher``.
    """
    for event in flow.of("hold"):
        if isinstance(event.node, ast.Call) and not event.origin:
            inside = path[len(event.path) + 1 :] if event.path and is_below(path, event.path) else ""
            if (event.path == path or inside) and _names(event.node, inside):
                return True
        elif event.path and is_below(path, event.path):
            return True
    name = re.split(r"[.:]", path)[-1]
    owner = view.walk.qualified(flow.owner) if flow.owner and path.startswith("self.") else ""
    return any(_holds_of(view, call, name, owner) for call in view.nodes(ast.Call) if view.name(call.func) in HOLDS)


def _holds_of(view: FileView, call: ast.Call, name: str, owner: str) -> bool:
    """Whether a call holds the part of a name: given by itself, or as a part of what owns it."""
    if not call.args:
        return False
    given = call.args[0]
    if plain_path(given).rpartition(".")[2] == name:
        return _names(call, "")
    value = view.value(given)
    cls = value.cls if value is not None else ""
    if not owner or (cls and cls != owner and plain_path(given) != "self"):
        return False
    selects = len(call.args) > 1
    return _names(call, name) and (selects or cls == owner or plain_path(given) == "self")


def _names(call: ast.Call, inside: str) -> bool:
    """Whether the selectors of a call take in a part, or layers of it; "" is all that the call is given."""
    for keyword in call.keywords:
        if keyword.arg == "level" and isinstance(keyword.value, ast.Constant) and keyword.value.value == "grad":
            return False
    selectors = call.args[1:]
    if not selectors:
        return True
    for selector in selectors:
        if not (isinstance(selector, ast.Constant) and isinstance(selector.value, str)):
            return True
        text = selector.value.removesuffix(".**").removesuffix(".*")
        if not inside or text in {"*", "**"} or fnmatchcase(inside, text):
            return True
        if inside.startswith(f"{text}.") or text.startswith(f"{inside}."):
            return True
    return False
