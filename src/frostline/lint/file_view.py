"""One file as the rules see it: its nodes, what each expression is, what its functions do, and how to write edits."""

from __future__ import annotations

import ast
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from frostline.lint.diagnostic import Edit
from frostline.lint.events import Flow
from frostline.lint.flows import flows_of
from frostline.lint.values import Value

if TYPE_CHECKING:
    from frostline.lint.module_walk import ModuleWalk
    from frostline.lint.source import Source

_Node = TypeVar("_Node", bound=ast.AST)
# Fields that hold no node, or one of those that all trees share.
_PLAIN = frozenset(
    {"ctx", "op", "ops", "id", "attr", "name", "arg", "level", "kind", "type_comment", "lineno", "names"}
)
_FIELDS: dict[type[ast.AST], tuple[str, ...]] = {
    # What a constant holds is no node, and the names of an import are.
    ast.Constant: (),
    ast.Import: ("names",),
    ast.ImportFrom: ("names",),
}


# Generated files have lines of megabytes, with many mistakes in one line.
_LONGEST_LINE = 500


class FileView:
    """What a rule may ask of a file.

    Args:
        walk: what is in it.

    Attributes:
        walk: its functions and classes, and those of the files that it is linted with.
        source: its text.
        tree: its tree.
    """

    def __init__(self, walk: ModuleWalk) -> None:
        walk.walk_all()
        self.walk = walk
        self.source: Source = walk.source
        self.tree = walk.tree
        self._by_type: dict[type[ast.AST], list[ast.AST]] = {}
        self._parents: dict[int, ast.AST] = {}
        self._lines: dict[int, str] = {}

    def _look(self) -> None:
        """Take down all nodes, in the order of the text, and what each stands in."""
        by_type, parents = self._by_type, self._parents
        stack: list[ast.AST] = [self.tree]
        while stack:
            node = stack.pop()
            kind = node.__class__
            if kind in by_type:
                by_type[kind].append(node)
            else:
                by_type[kind] = [node]
            fields = _FIELDS.get(kind)
            if fields is None:
                fields = _FIELDS[kind] = tuple(name for name in reversed(kind._fields) if name not in _PLAIN)
            for name in fields:
                child: Any = getattr(node, name, None)
                if child.__class__ is list:
                    for each in reversed(child):
                        if isinstance(each, ast.AST):
                            parents[id(each)] = node
                            stack.append(each)
                elif isinstance(child, ast.AST):
                    parents[id(child)] = node
                    stack.append(child)

    def nodes(self, *kinds: type[_Node]) -> list[_Node]:
        """All nodes of these types, those of one type about in the order of the text; no operators."""
        if not self._by_type:
            self._look()
        return [node for kind in kinds for node in self._by_type.get(kind, ())]  # type: ignore[misc]

    def parent(self, node: ast.AST) -> ast.AST | None:
        """What a node stands in; ``None`` of the whole file."""
        if not self._by_type:
            self._look()
        return self._parents.get(id(node))

    def parents(self, node: ast.AST) -> list[ast.AST]:
        """What a node stands in, the innermost first."""
        found: list[ast.AST] = []
        above = self.parent(node)
        while above is not None:
            found.append(above)
            above = self.parent(above)
        return found

    def statement(self, node: ast.AST) -> ast.stmt | None:
        """The innermost statement that a node stands in, or is."""
        return next((each for each in (node, *self.parents(node)) if isinstance(each, ast.stmt)), None)

    def function(self, node: ast.AST) -> str:
        """The qualified name of the function that a node stands in: ``Class.method``; ``<module>`` outside of any."""
        parts: list[str] = []
        inside = False
        for each in (node, *self.parents(node)):
            if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)):
                parts.append(f"{each.name}.<locals>" if inside else each.name)
                inside = True
            elif isinstance(each, ast.ClassDef):
                parts.append(each.name)
        return ".".join(reversed(parts)) if inside else "<module>"

    def value(self, node: ast.expr) -> Value | None:
        """What an expression is, as far as source tells."""
        return self.walk.values.get(id(node))

    def name(self, node: ast.expr) -> str:
        """The qualified name of what an expression refers to: ``torch.nn.functional.dropout``; "" if unknown.

        Imports, aliases and ``from`` are resolved.
        """
        value = self.walk.values.get(id(node))
        return value.cls if value is not None and value.kind in {"ref", "function", "class"} else ""

    @cached_property
    def flows(self) -> list[Flow]:
        """What the code of this file does, in order, with what it calls put in place."""
        return flows_of(self.walk)

    @cached_property
    def read_attributes(self) -> frozenset[str]:
        """The names of the attributes that the file asks anything for, also with ``getattr`` and ``hasattr``."""
        names = {each.attr for each in self.nodes(ast.Attribute) if isinstance(each.ctx, ast.Load)}
        for call in self.nodes(ast.Call):
            if isinstance(call.func, ast.Name) and call.func.id in {"getattr", "hasattr"} and len(call.args) > 1:
                asked = call.args[1]
                if isinstance(asked, ast.Constant) and isinstance(asked.value, str):
                    names.add(asked.value)
        return frozenset(names)

    def text(self, node: ast.AST) -> str:
        """The text of a node."""
        return self.source.segment(node)

    def comments_above(self, node: ast.AST) -> str:
        """The comments that stand right above the statement of a node, in one text."""
        statement = self.statement(node)
        line = getattr(statement or node, "lineno", 1) - 1
        found: list[str] = []
        while line >= 1 and (text := self.source.line_text(line).strip()).startswith("#"):
            found.append(text)
            line -= 1
        return " ".join(reversed(found))

    def line(self, number: int) -> str:
        """A line without its indentation; of a line that nobody could read, its beginning."""
        if number not in self._lines:
            self._lines[number] = self.source.line_text(number).strip()[:_LONGEST_LINE]
        return self._lines[number]

    # Edits.

    def replaced(self, node: ast.AST, text: str) -> Edit:
        """An edit that puts a text in the place of a node."""
        return Edit(self.source.start(node), self.source.end(node), text)

    def behind(self, node: ast.AST, text: str) -> Edit:
        """An edit that puts a text right behind a node."""
        end = self.source.end(node)
        return Edit(end, end, text)

    def attribute_name(self, node: ast.Attribute, text: str) -> Edit:
        """An edit that gives the attribute of an expression another name."""
        end = self.source.end(node)
        return Edit(end - len(node.attr), end, text)

    def line_below(self, statement: ast.stmt, text: str) -> Edit:
        """An edit that puts a line below a statement, indented as that is."""
        end = self.source.end(statement)
        line = self.source.position(end)[0]
        text_of = self.source.line_text(line)
        here = end - self.source.offset(line, 0)
        at = end + len(text_of) - here
        return Edit(at, at, f"{self.source.newline}{self.source.indent_of(statement.lineno)}{text}")

    def line_above(self, statement: ast.stmt, text: str) -> Edit:
        """An edit that puts a line above a statement, indented as that is."""
        at = self.source.offset(statement.lineno, 0)
        return Edit(at, at, f"{self.source.indent_of(statement.lineno)}{text}{self.source.newline}")

    def argument_added(self, call: ast.Call, text: str) -> Edit:
        """An edit that adds an argument behind the others of a call; trailing commas and comments stay."""
        end = self.source.end(call) - 1
        given = [*call.args, *call.keywords]
        if not given:
            return Edit(end, end, text)
        at = max(self.source.end(each) for each in given)
        if at > end:  # a lone generator, which has no brackets of its own
            start = self.source.end(call.func)
            return Edit(start, end + 1, f"({self.source.text[start : end + 1]}, {text})")
        between, seen = self.source.text, at
        while seen < end:
            if between[seen] == "#":
                seen = self.source.offset(self.source.position(seen)[0] + 1, 0)
                continue
            seen += 1
            if between[seen - 1] == ")":  # of an argument in brackets
                at = seen
        return Edit(at, at, f", {text}")
