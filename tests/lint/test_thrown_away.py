"""Expressions that are statements of their own."""

from __future__ import annotations

import ast
import json
import textwrap

from frostline.lint.file_view import FileView
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.parsing import parse
from frostline.lint.project import Project
from frostline.lint.source import source_from_bytes
from frostline.lint.thrown_away import names_in, scope_of, thrown_away


def view_of(text: str, name: str = "train.py") -> FileView:
    source = source_from_bytes(textwrap.dedent(text).encode(), name)
    return FileView(ModuleWalk(source, parse(source), "train", Project()))


def test_calls_and_comparisons_are_found_and_texts_are_not():
    view = view_of('"""Text."""\nf(x)\ny = g(x)\ndef h():\n    """Text."""\n    x == 1\n')
    assert [ast.unparse(each) for each in thrown_away(view)] == ["f(x)", "x == 1"]


def test_what_a_cell_shows_is_not_thrown_away():
    cells = [
        {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": lines}
        for lines in (["a\n", "b"], ["if c:\n", "    d\n"], ["e"])
    ]
    view = view_of(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), "train.ipynb")
    assert [ast.unparse(each) for each in thrown_away(view)] == ["a", "d"]


def test_names_are_looked_for_in_the_function_around():
    view = view_of("x = 1\ndef f(y):\n    x = y\n    return x\nx\n")
    inside, outside = view.nodes(ast.Return)[0], view.nodes(ast.Expr)[0]
    assert scope_of(view, inside) is view.nodes(ast.FunctionDef)[0]
    assert scope_of(view, outside) is view.tree
    assert [each.lineno for each in names_in(scope_of(view, inside), "x")] == [3, 4]
    assert sorted(each.lineno for each in names_in(scope_of(view, outside), "x")) == [1, 3, 4, 5]
