"""Expressions that are statements of their own, so that nobody uses what they give."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.lint.file_view import FileView
from frostline.lint.scopes import AnyFunction


def thrown_away(view: FileView) -> Iterator[ast.Expr]:
    """Statements that are nothing but an expression.

    The last one of a cell of a notebook is not among them: what it gives is shown below the cell.
    """
    shown = _shown(view)
    for statement in view.nodes(ast.Expr):
        if id(statement) not in shown and not isinstance(statement.value, ast.Constant):
            yield statement


def _shown(view: FileView) -> set[int]:
    if not view.source.is_notebook:
        return set()
    body = view.walk.tree.body
    last = {view.source.cell_of(statement.lineno)[0]: statement for statement in body}
    return {id(statement) for statement in last.values()}


def scope_of(view: FileView, node: ast.AST) -> AnyFunction | ast.Module:
    """The function that a node stands in, or the whole file."""
    for each in view.parents(node):
        if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return each
    return view.walk.tree


def names_in(scope: ast.AST, name: str) -> list[ast.Name]:
    """Where a name is read, bound or deleted."""
    return [node for node in ast.walk(scope) if isinstance(node, ast.Name) and node.id == name]
