"""What a file imports, and edits that add an import where it belongs."""

from __future__ import annotations

import ast

from frostline.lint.diagnostic import Edit
from frostline.lint.file_view import FileView


def name_of(view: FileView, module: str, attribute: str) -> str:
    """What something of a module is called in a file that imports it at its top level; "" where it does not.

    ``copy.deepcopy`` under ``import copy``, ``cp.deepcopy`` under ``import copy as cp``, ``deepcopy`` under
    ``from copy import deepcopy``.
    """
    found = ""
    for statement in view.tree.body:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if alias.name == module:
                    found = found or f"{alias.asname or module}.{attribute}"
        elif isinstance(statement, ast.ImportFrom) and statement.module == module and not statement.level:
            for alias in statement.names:
                if alias.name == attribute:
                    found = alias.asname or attribute
    return found


def import_added(view: FileView, module: str) -> Edit:
    """An edit that adds ``import module`` at the top: below the docstring of the file and ``from __future__``."""
    last: ast.stmt | None = None
    for i, statement in enumerate(view.tree.body):
        is_docstring = (
            i == 0
            and isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        )
        if is_docstring or (isinstance(statement, ast.ImportFrom) and statement.module == "__future__"):
            last = statement
            continue
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            return view.line_above(statement, f"import {module}")
        if last is None:
            decorators = getattr(statement, "decorator_list", [])
            first = min([statement.lineno, *(each.lineno for each in decorators)])
            return view.source.line_above(first, f"import {module}")
        break
    newline = view.source.newline
    if last is None:
        return view.source.line_above(1, f"import {module}")
    return view.line_below(last, f"{'' if isinstance(last, ast.ImportFrom) else newline}import {module}")
