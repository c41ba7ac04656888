"""Layers and parameters in plain lists, tuples and dicts."""

from __future__ import annotations

import ast
import textwrap

import pytest

from frostline.lint.file_view import FileView
from frostline.lint.kept_layers import Kept, kept_in
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.parsing import parse
from frostline.lint.project import Project
from frostline.lint.source import Source, source_from_bytes


def kept(lines: str) -> Kept | None:
    """What is kept in `self.x`, which the first line of a method sets."""
    text = "class Net(nn.Module):\n    def __init__(self, n):\n" + textwrap.indent(lines, " " * 8)
    source = source_from_bytes(text.encode(), "net.py")
    assert isinstance(source, Source)
    tree = parse(source)
    assert isinstance(tree, ast.Module)
    view = FileView(ModuleWalk(source, tree, "net", Project()))
    (method,) = view.nodes(ast.FunctionDef)
    nodes = list(ast.walk(method))
    given = next(
        n.value for n in view.nodes(ast.Assign) if isinstance(n.targets[0], ast.Attribute) and n.targets[0].attr == "x"
    )
    return kept_in(view, given, "x", method, nodes)


@pytest.mark.parametrize(
    ("lines", "kind", "parts", "fills", "is_plain"),
    [
        ("self.x = [nn.Linear(1, 1) for _ in range(n)]", "list", 1, 0, True),
        ("self.x = (nn.Linear(1, 1), nn.ReLU())", "tuple", 2, 0, True),
        ("self.x = dict(a=nn.Linear(1, 1))", "dict", 1, 0, True),
        ("self.x = []\nself.x.append(nn.Linear(1, 1))", "list", 1, 1, True),
        ("self.x = []\nself.x.append(nn.Linear(1, 1))\nself.x.append(n)", "list", 1, 2, False),
        ("self.x = [nn.Linear(1, 1), nn.Linear(1, 1)] * n", "list", 2, 0, False),
        ("y = []\ny += [nn.Linear(1, 1)]\nself.x = y", "list", 1, 1, True),
    ],
)
def test_what_is_in_it(lines, kind, parts, fills, is_plain):
    found = kept(lines)
    assert found is not None
    assert (found.kind, len(found.parts), len(found.fills), found.is_plain) == (kind, parts, fills, is_plain)


@pytest.mark.parametrize(
    "lines",
    [
        "self.x = n",
        "self.x = [n, nn.Linear(1, 1)]",
        "self.x = [nn.Linear(1, 1)]",
        "self.x = []",
        "self.x = []\nself.x.append(n)",
        "self.x = list(n)",
        "y = []\ny.append(nn.Linear(1, 1))\nz = nn.Sequential(*y)\nself.x = y",
        "y = n\nself.x = y",
    ],
)
def test_nothing_is_kept(lines):
    assert kept(lines) is None
