"""Functions and classes of a file: where they stand, and what names mean inside of them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from frostline.lint.events import Event
from frostline.lint.values import Value

AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


class Missing:
    """Stands for no value where ``None`` is one."""


MISSING = Missing()


class Names:
    """What names and paths stand for, in one scope and those around it.

    What changes in a branch can be asked for, and taken back, at a cost that depends on what changed alone.

    Args:
        around: the scope that this one stands in.

    Attributes:
        own: what is bound in this scope.
    """

    __slots__ = ("_above", "_journal", "_open", "around", "own")

    def __init__(self, around: Names | None = None) -> None:
        self.own: dict[str, Value | None] = {}
        self.around = around
        # Paths that others in it lie, or lay, below.
        self._above: set[str] = set()
        self._journal: list[tuple[str, Value | Missing | None]] = []
        self._open = 0

    def get(self, path: str) -> Value | None:
        """What a path stands for, the innermost scope first; ``None`` if nothing is known."""
        scope: Names | None = self
        while scope is not None:
            if path in scope.own:
                return scope.own[path]
            scope = scope.around
        return None

    def has(self, path: str) -> bool:
        """Whether it is bound anywhere, known or not."""
        scope: Names | None = self
        while scope is not None:
            if path in scope.own:
                return True
            scope = scope.around
        return False

    def bind(self, path: str, value: Value | None) -> None:
        """From here on a path stands for something else, and what was known below it is not known any more."""
        if path in self._above:
            for below in [p for p in self.own if p.startswith((f"{path}.", f"{path}["))]:
                self._note(below)
                del self.own[below]
        above = path
        while (end := max(above.rfind("."), above.rfind("["))) > 0 and (above := above[:end]) not in self._above:
            self._above.add(above)
        self.put(path, value)

    def put(self, path: str, value: Value | None) -> None:
        """A path stands for something else; what is known below it stays known."""
        self._note(path)
        self.own[path] = value

    def _note(self, path: str) -> None:
        if self._open:
            self._journal.append((path, self.own.get(path, MISSING)))

    def mark(self) -> int:
        """Take down changes from here on, until :meth:`release`; gives the place that the other methods ask for."""
        self._open += 1
        return len(self._journal)

    def release(self) -> None:
        """What the innermost :meth:`mark` began is over."""
        self._open -= 1
        if not self._open:
            self._journal.clear()

    def changed(self, mark: int) -> dict[str, Value | Missing | None]:
        """The paths that were bound or forgotten since a mark, with what they stood for then."""
        before: dict[str, Value | Missing | None] = {}
        for path, value in self._journal[mark:]:
            before.setdefault(path, value)
        return before

    def undo(self, mark: int) -> None:
        """Make everything as it was at a mark."""
        for path, value in self.changed(mark).items():
            if isinstance(value, Missing):
                self.own.pop(path, None)
            else:
                self.own[path] = value
        del self._journal[mark:]


@dataclass
class Class:
    """A class of a file.

    Attributes:
        name: its qualified name in the file: ``Outer.Inner``.
        node: its statement.
        attributes: what its methods set on ``self``, and what its body sets.
    """

    name: str
    node: ast.ClassDef
    attributes: dict[str, Value] = field(default_factory=dict)


@dataclass
class Function:
    """A function of a file.

    Attributes:
        name: its qualified name in the file: ``Class.method``.
        node: its statement.
        owner: the qualified name of the class that it is a method of; "" if none.
        around: the function or class that it stands in; "" if none.
        events: what it does, once somebody has asked.
        returned: what it returns, likewise.
        local_names: the names that it binds itself.
        is_walked: whether somebody has.
        matters: whether it does anything that its caller could notice, once somebody has asked: as the constructor of
            what is being made (``True``), or called in any other way.
    """

    name: str
    node: AnyFunction
    owner: str = ""
    around: str = ""
    events: list[Event] = field(default_factory=list)
    returned: Value | None = None
    local_names: frozenset[str] = frozenset()
    is_walked: bool = False
    matters: dict[bool, bool] = field(default_factory=dict[bool, bool])

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its parameters, in the order in which a call fills them."""
        arguments = self.node.args
        return tuple(a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))

    @property
    def is_bound(self) -> bool:
        """Whether its first parameter is the object or class that it is called on."""
        return bool(self.owner) and not _decorated(self.node, "staticmethod")

    def defaults(self) -> Iterator[tuple[str, ast.expr]]:
        """Its parameters that have one, with their default values."""
        arguments = self.node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        if arguments.defaults:
            for argument, default in zip(positional[-len(arguments.defaults) :], arguments.defaults, strict=True):
                yield argument.arg, default
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            if default is not None:
                yield argument.arg, default


def _decorated(node: AnyFunction, name: str) -> bool:
    return any(isinstance(each, ast.Name) and each.id == name for each in node.decorator_list)


def is_property(function: Function) -> bool:
    """Whether it is read as an attribute."""
    return any(
        (isinstance(each, ast.Name) and each.id in {"property", "cached_property"})
        or (isinstance(each, ast.Attribute) and each.attr in {"cached_property", "setter"})
        for each in function.node.decorator_list
    )


def collect(body: Iterable[ast.stmt]) -> tuple[dict[str, Function], dict[str, Class]]:
    """All functions and classes of a file, those inside of others too, in the order in which they stand."""
    functions: dict[str, Function] = {}
    classes: dict[str, Class] = {}
    _collect(body, "", "", functions, classes)
    return functions, classes


def _collect(
    body: Iterable[ast.stmt], prefix: str, owner: str, functions: dict[str, Function], classes: dict[str, Class]
) -> None:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name = prefix + node.name
            # Of two with one name (overloads, a property and its setter) the first one without a decorator counts.
            if name not in functions or functions[name].node.decorator_list:
                functions[name] = Function(name, node, owner, prefix[:-1])
            _collect(node.body, f"{name}.<locals>.", "", functions, classes)
        elif isinstance(node, ast.ClassDef):
            name = prefix + node.name
            classes[name] = Class(name, node)
            _collect(node.body, f"{name}.", name, functions, classes)
        elif isinstance(node, (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.AsyncFor, ast.AsyncWith)):
            for inner in bodies(node):
                _collect(inner, prefix, owner, functions, classes)


def bodies(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The blocks of statements of a compound statement."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if block:
            yield block
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield part.body
