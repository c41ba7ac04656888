"""The user's files as functions and statements, by `ast` alone: nothing is imported or run."""

from __future__ import annotations

import ast
import linecache
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from frostline.audit.places import Place, kind_of
from frostline.audit.seen import Seen

# A file that is longer was not typed by a user.
_LONGEST = 20_000
_MOST_FILES = 200


@dataclass(frozen=True)
class Statement:
    """One statement.

    Attributes:
        node: its tree.
        file: the file it stands in.
        function: the function; ``<module>`` outside of any.
        owner: the class that the function is a method of; empty if none.
        around: the statements that it stands in, inside of the function, the outermost first.
    """

    node: ast.stmt
    file: str
    function: str
    owner: str
    around: tuple[ast.stmt, ...]

    @property
    def place(self) -> Place:
        """Its first line."""
        return self.place_of(self.node)

    def place_of(self, node: ast.AST) -> Place:
        """The line of an expression in it."""
        return Place(self.file, getattr(node, "lineno", 0), self.function)

    def covers(self, place: Place) -> bool:
        """Whether a place lies in it."""
        return place.file == self.file and self.node.lineno <= place.line <= (self.node.end_lineno or self.node.lineno)


@dataclass
class Function:
    """One function, or what stands outside of any.

    Attributes:
        name: its name; ``<module>`` outside of any.
        owner: the class that it is a method of; empty if none.
        file: its file.
        body: its statements, as they stand.
        statements: the same one by one, once somebody has asked.
    """

    name: str
    owner: str
    file: str
    body: tuple[ast.stmt, ...]
    statements: tuple[Statement, ...] = ()


def statements_of(function: Function) -> tuple[Statement, ...]:
    """Its statements, those inside of others too, without those of functions inside of it."""
    if not function.statements:
        function.statements = tuple(_statements(function.body, function, ()))
    return function.statements


def _statements(body: Iterable[ast.stmt], function: Function, around: tuple[ast.stmt, ...]) -> Iterator[Statement]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if not isinstance(node, ast.ClassDef):
            yield Statement(node, function.file, function.name, function.owner, around)
        for inner in _bodies(node):
            yield from _statements(inner, function, (*around, node))


def _bodies(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        if getattr(node, name, None):
            yield getattr(node, name)
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield part.body


def files_of(seen: Seen) -> list[str]:
    """The user's files that were on the stack, those that hold the classes of the models, and what they import."""
    modules = {file: name for name, m in list(sys.modules.items()) if (file := getattr(m, "__file__", None))}
    classes = {type(m).__module__ for model in seen.models if model.live is not None for m in model.live.modules()}
    queue = [*seen.sources, *(file for name in classes if (file := _file_of(name)))]
    found: dict[str, None] = {}
    while queue and len(found) < _MOST_FILES:
        file = queue.pop(0)
        if file in found:
            continue
        found[file] = None
        functions = functions_of(file)
        imported = [name for f in functions for name in _imports(f, modules.get(file, ""))]
        queue += [file for name in imported if (file := _file_of(name))]
    return list(found)


def _file_of(module: str) -> str:
    """The file of a module that is loaded, where it is the user's."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return file if file.endswith(".py") and kind_of(file) == "user" else ""


def _imports(function: Function, module: str) -> Iterator[str]:
    for node in function.body:
        for inner in ast.walk(node) if isinstance(node, (ast.Import, ast.ImportFrom, ast.If, ast.Try)) else ():
            if isinstance(inner, ast.Import):
                yield from (alias.name for alias in inner.names)
            elif isinstance(inner, ast.ImportFrom):
                above = ".".join(module.split(".")[: -inner.level]) if inner.level else ""
                name = ".".join(part for part in (above, inner.module or "") if part)
                yield from (name, *(f"{name}.{alias.name}" for alias in inner.names))


def functions_of(file: str) -> list[Function]:
    """The functions of a file, what stands outside of any first; none where it cannot be read as Python."""
    lines = linecache.getlines(file)
    return _parsed(file, "".join(lines)) if 0 < len(lines) <= _LONGEST else []


@lru_cache(maxsize=64)
def _parsed(file: str, text: str) -> list[Function]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return []
    found = [Function("<module>", "", file, tuple(tree.body))]
    _collect(tree.body, "", file, found)
    return found


def _collect(body: Iterable[ast.stmt], owner: str, file: str, found: list[Function]) -> None:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(Function(node.name, owner, file, tuple(node.body)))
            _collect(node.body, "", file, found)
            continue
        for inner in _bodies(node):
            _collect(inner, node.name if isinstance(node, ast.ClassDef) else owner, file, found)
