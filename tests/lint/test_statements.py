"""Statements as lines, and edits that move them."""

from __future__ import annotations

import ast

import pytest

from frostline.lint.file_view import FileView
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.project import Project
from frostline.lint.source import Source, source_from_bytes
from frostline.lint.statements import block_of, has_own_line, line_removed, moved_above, moved_below


def seen(text: str) -> FileView:
    source = source_from_bytes(text.encode(), "a.py")
    assert isinstance(source, Source)
    return FileView(ModuleWalk(source, ast.parse(text), "a", Project()))


def statement(view: FileView, text: str) -> ast.stmt:
    return next(each for each in view.nodes(ast.Expr) if view.text(each) == text)


def test_the_block_of_a_statement():
    view = seen("if a:\n    one()\nelse:\n    two()\ntry:\n    three()\nexcept E:\n    four()\n")
    for name in ("one()", "two()", "three()", "four()"):
        assert [view.text(each) for each in block_of(view, statement(view, name))] == [name]
    assert len(block_of(view, view.tree.body[0])) == 2


@pytest.mark.parametrize(
    ("text", "own"),
    [("f()\n", True), ("f()  # why\n", True), ("f(); g()\n", False), ("g(); f()\n", False), ("f(\n)\n", False)],
)
def test_a_line_for_itself(text, own):
    view = seen(text)
    call = next(each for each in view.nodes(ast.Expr) if view.text(each).startswith("f"))
    assert has_own_line(view, call) is own


def test_a_line_moves_below_with_its_comment():
    view = seen("for x in y:\n    a()  # first\n    b()\n    if c:\n        d()\n")
    assert view.source.apply(moved_below(view, statement(view, "a()"), statement(view, "d()"))).text == (
        "for x in y:\n    b()\n    if c:\n        d()\n        a()  # first\n"
    )


def test_no_move_upwards_by_the_one_and_downwards_by_the_other():
    view = seen("a()\nb()\n")
    a, b = statement(view, "a()"), statement(view, "b()")
    assert moved_below(view, b, a) == ()
    assert moved_above(view, a, b) == ()
    assert view.source.apply(moved_above(view, b, a)).text == "b()\na()\n"


def test_no_move_out_of_another_block():
    view = seen("if c:\n    a()\nb()\n")
    assert moved_below(view, statement(view, "a()"), statement(view, "b()")) == ()


def test_no_move_behind_a_line_that_goes_on():
    view = seen("a()\nb(); c()\n")
    assert moved_below(view, statement(view, "a()"), statement(view, "b()")) == ()


def test_a_line_is_removed_whole():
    view = seen("a()\nb()\n")
    assert view.source.apply([line_removed(view, statement(view, "b()"))]).text == "a()\n"
