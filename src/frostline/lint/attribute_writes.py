"""Places where an attribute is given a value, however that is written, and edits that say it otherwise."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from frostline.lint.diagnostic import Edit
from frostline.lint.file_view import FileView
from frostline.lint.values import EACH, Value

# What can stand before a dot as it is.
_ATOMS = (ast.Name, ast.Attribute, ast.Subscript, ast.Call)


@dataclass(frozen=True)
class AttributeWrite:
    """One attribute that is given a value.

    Attributes:
        name: the attribute.
        owner: whose attribute it is.
        value: what that is, as far as source tells.
        given: what the attribute becomes; ``None`` where that is computed from what it was.
        node: what is wrong if the name is: the target, or the name in a call of ``setattr``.
        statement: the whole statement, where it does nothing else; ``None`` for one of several targets.
    """

    name: str
    owner: ast.expr
    value: Value | None
    given: ast.expr | None
    node: ast.expr
    statement: ast.stmt | None = field(default=None, repr=False)

    @property
    def literal(self) -> object:
        """What the attribute becomes, where that is a literal; ``None`` otherwise."""
        return self.given.value if isinstance(self.given, ast.Constant) else None

    @property
    def is_on_self(self) -> bool:
        """Whether a class sets it on its own instances."""
        return self.value is not None and self.value.path == "self"

    @property
    def is_on_each(self) -> bool:
        """Whether it is set on each of what a loop goes over: not one by one on what a list names."""
        return self.value is not None and self.value.path.endswith(EACH) and not self.value.items


def attribute_writes(view: FileView, wanted: Callable[[str], bool]) -> Iterator[AttributeWrite]:
    """Assignments to attributes with certain names: plain, in a row, annotated, computed in place, through ``setattr``.

    Args:
        view: the file.
        wanted: whether a name is one of them.
    """
    for node in view.nodes(ast.Assign, ast.AnnAssign, ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if isinstance(node, ast.AnnAssign) and node.value is None:
            continue
        for target in targets:
            if isinstance(target, ast.Attribute) and wanted(target.attr):
                yield AttributeWrite(
                    target.attr,
                    target.value,
                    view.value(target.value),
                    None if isinstance(node, ast.AugAssign) else node.value,
                    target,
                    node if len(targets) == 1 and not isinstance(node, ast.AugAssign) else None,
                )
    for call in view.nodes(ast.Call):
        found = _by_call(view, call)
        if found is not None and wanted(found.name):
            yield found


def _by_call(view: FileView, call: ast.Call) -> AttributeWrite | None:
    """``setattr(x, "name", value)`` and ``x.__setattr__("name", value)``."""
    if call.keywords:
        return None
    if len(call.args) == 3 and isinstance(call.func, ast.Name) and view.name(call.func) == "builtins.setattr":
        owner, name, given = call.args
    elif len(call.args) == 2 and isinstance(call.func, ast.Attribute) and call.func.attr == "__setattr__":
        owner, (name, given) = call.func.value, call.args
    else:
        return None
    if not isinstance(name, ast.Constant) or not isinstance(name.value, str):
        return None
    above = view.parent(call)
    statement = above if isinstance(above, ast.Expr) else None
    return AttributeWrite(name.value, owner, view.value(owner), given, name, statement)


def renamed(view: FileView, write: AttributeWrite, name: str) -> Edit:
    """An edit that gives another attribute the value."""
    if isinstance(write.node, ast.Attribute):
        return view.attribute_name(write.node, name)
    quote = "'" if view.text(write.node).endswith("'") else '"'
    return view.replaced(write.node, f"{quote}{name}{quote}")


def as_call(view: FileView, write: AttributeWrite, flag: str = "") -> tuple[Edit, ...]:
    """An edit that calls ``requires_grad_`` in place of the assignment; none where more than that stands there.

    Args:
        view: the file.
        write: the assignment.
        flag: what the method is given; what was assigned, if that is empty.
    """
    if write.statement is None or not isinstance(write.owner, _ATOMS) or "#" in view.text(write.statement):
        return ()
    return (view.replaced(write.statement, call_text(view, write, flag)),)


def call_text(view: FileView, write: AttributeWrite, flag: str = "") -> str:
    """What would be typed: ``model.backbone.requires_grad_(False)``."""
    given = flag or (view.text(write.given) if write.given is not None else "False")
    return f"{view.text(write.owner)}.requires_grad_({given})"


def is_read(view: FileView, name: str) -> bool:
    """Whether a file asks anything for an attribute of this name."""
    return name in view.read_attributes


def is_an_option(view: FileView, write: AttributeWrite) -> bool:
    """Whether the class of what is written to has an attribute of this name that it reads, or made something of it.

    A class that only writes it, on itself, has none.
    """
    if write.value is None or not write.value.cls:
        return False
    for _, owner in view.walk.ancestry(write.value.cls):
        for node in ast.walk(owner.node):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == write.name:
                return True
            if isinstance(node, ast.Attribute) and node.attr == write.name and _is_self(node.value):
                if isinstance(node.ctx, ast.Load) or not write.is_on_self:
                    return True
            elif isinstance(node, ast.Name) and node.id == write.name and isinstance(node.ctx, ast.Store):
                return True
    return False


def is_constructing(view: FileView, write: AttributeWrite) -> bool:
    """Whether a class sets it on an instance that is being made."""
    return write.is_on_self and view.function(write.node).rpartition(".")[2] in {"__init__", "__new__", "__setstate__"}


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
