"""Statements as lines: whether one has its line for itself, which block it stands in, and edits that move it."""

from __future__ import annotations

import ast

from frostline.lint.diagnostic import Edit
from frostline.lint.file_view import FileView
from frostline.lint.scopes import bodies


def block_of(view: FileView, statement: ast.stmt) -> list[ast.stmt]:
    """The block of statements that a statement is one of."""
    above = view.parent(statement)
    if isinstance(above, ast.Module):
        return above.body
    if isinstance(above, (ast.ExceptHandler, ast.match_case)):
        return above.body
    blocks = bodies(above) if isinstance(above, ast.stmt) else ()
    return next((block for block in blocks if any(each is statement for each in block)), [])


def has_own_line(view: FileView, statement: ast.stmt) -> bool:
    """Whether a statement is one line, with nothing else on it but a comment."""
    if statement.end_lineno != statement.lineno:
        return False
    line = view.source.line_text(statement.lineno).strip()
    text = view.text(statement)
    rest = line[len(text) :].strip()
    return line.startswith(text) and (not rest or rest.startswith("#"))


def line_removed(view: FileView, statement: ast.stmt) -> Edit:
    """An edit that takes out the line of a statement that has it for itself."""
    return Edit(view.source.offset(statement.lineno, 0), view.source.offset(statement.lineno + 1, 0), "")


def moved_below(view: FileView, statement: ast.stmt, other: ast.stmt) -> tuple[Edit, ...]:
    """Edits that move the line of a statement below another statement; none where that is no plain move of a line.

    The other one comes later, or in a block of a later one, so that the block that is left does not become empty.
    """
    block = block_of(view, statement)
    around = [other, *(each for each in view.parents(other) if isinstance(each, ast.stmt))]
    place = next((i for i, each in enumerate(block) if each is statement), len(block))
    later = any(each is inner for each in block[place + 1 :] for inner in around)
    if not later or not has_own_line(view, statement):
        return ()
    if not ends_its_line(view, other):
        return ()
    return line_removed(view, statement), view.line_below(other, view.source.line_text(statement.lineno).strip())


def moved_above(view: FileView, statement: ast.stmt, other: ast.stmt) -> tuple[Edit, ...]:
    """Edits that move the line of a statement above an earlier one of its block; none where that is no plain move."""
    block = block_of(view, statement)
    if (
        not any(each is other for each in block)
        or other.lineno >= statement.lineno
        or not has_own_line(view, statement)
    ):
        return ()
    if not begins_its_line(view, other):
        return ()
    return view.line_above(other, view.source.line_text(statement.lineno).strip()), line_removed(view, statement)


def begins_its_line(view: FileView, statement: ast.stmt) -> bool:
    """Whether nothing stands before a statement on its first line."""
    indent = view.source.indent_of(statement.lineno)
    return view.source.start(statement) == view.source.offset(statement.lineno, 0) + len(indent)


def ends_its_line(view: FileView, statement: ast.stmt) -> bool:
    """Whether nothing but a comment stands behind a statement on its last line."""
    end = view.source.end(statement)
    line, column = view.source.position(end)
    rest = view.source.line_text(line)[column - 1 :].strip()
    return not rest or rest.startswith("#")
