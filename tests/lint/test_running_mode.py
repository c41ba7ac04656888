"""Whether code runs in the forward pass of a module, and how its mode is written there."""

from __future__ import annotations

import ast
import textwrap

import pytest

from frostline.lint.file_view import FileView
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.parsing import parse
from frostline.lint.project import Project
from frostline.lint.running_mode import Pass, Passes, asks_for_mode, assigned, decided_by_mode, is_meant
from frostline.lint.source import Source, source_from_bytes


def look(text: str) -> tuple[FileView, ast.Call, Pass | None]:
    """A file, its call of `here()`, and the pass that this runs in."""
    source = source_from_bytes(textwrap.dedent(text).encode(), "net.py")
    assert isinstance(source, Source)
    tree = parse(source)
    assert isinstance(tree, ast.Module)
    view = FileView(ModuleWalk(source, tree, "net", Project()))
    call = next(c for c in view.nodes(ast.Call) if isinstance(c.func, ast.Name) and c.func.id == "here")
    return view, call, Passes(view).of(call)


@pytest.mark.parametrize(
    ("text", "mode", "sure"),
    [
        ("class A(nn.Module):\n    def forward(self, x):\n        here()", "self.training", True),
        ("class A(nn.Module):\n    def forward(this, x):\n        def g():\n            here()", "this.training", True),
        ("class A(nn.Module):\n    def step(self, training):\n        here()", "training", True),
        ("class A(nn.Module):\n    @staticmethod\n    def f(x):\n        here()", "", True),
        ("from x import B\nclass A(B):\n    def forward(self):\n        here()", "self.training", False),
        ("def f(x, is_training):\n    here()", "is_training", True),
        ("def f(module: nn.Module, x):\n    here()", "module.training", False),
        ("def f():\n    here()\nclass A(nn.Module):\n    def forward(self):\n        f()", "", False),
        (
            "def f():\n    here()\ndef g():\n    f()\nclass A(nn.Module):\n    def forward(self):\n        return g()",
            "",
            False,
        ),
    ],
)
def test_the_mode_in_reach(text, mode, sure):
    _, _, where = look(text)
    assert where is not None
    assert (where.mode, where.sure) == (mode, sure)


@pytest.mark.parametrize(
    "text",
    [
        "here()",
        "def f(x):\n    here()",
        "class A:\n    def forward(self):\n        here()",
        "class A(nn.Module):\n    def __init__(self):\n        here()",
        "class A(nn.Module):\n    def training_step(self, x):\n        here()",
        "from x import B\nclass A(B):\n    def run(self):\n        here()",
        "class A(nn.Module):\n    x = here()",
    ],
)
def test_no_pass(text):
    assert look(text)[2] is None


METHOD = "class A(nn.Module):\n    def forward(self, x):\n        {}\n"


@pytest.mark.parametrize(
    "line",
    [
        "if self.training: here()",
        "y = here() if self.training else x",
        "y = self.training and here()",
        "if not self.training: return x\n        here()",
        "assert self.training\n        here()",
    ],
)
def test_decided_by_mode(line):
    view, call, where = look(METHOD.format(line))
    assert where is not None
    assert decided_by_mode(view, call, where.method)


@pytest.mark.parametrize(
    "line", ["if self.p: here()", "if here(): pass", "if self.training: pass\n        here()", "here()"]
)
def test_not_decided_by_mode(line):
    view, call, where = look(METHOD.format(line))
    assert where is not None
    assert not decided_by_mode(view, call, where.method)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("class MCDropout(nn.Module):\n    def forward(self):\n        here()", True),
        ("def mc_predict(x):\n    here()", True),
        ("def f(x):\n    here(always_on)", True),
        ("def f(x):\n    # drops under eval() too\n    here()", True),
        ("def f(x):\n    # drops\n    here()", False),
        ("def mcnemar(x):\n    here()", False),
    ],
)
def test_is_meant(text, meant):
    view, call, _ = look(text)
    assert is_meant(view, call) is meant


def test_all_that_a_name_is_given():
    (function,) = ast.parse("def f(p):\n    q: int = 1\n    q = q + 1\n    q += 1\n    with p as q: pass").body
    assert isinstance(function, ast.FunctionDef)
    assert [each and ast.unparse(each) for each in assigned(function, "q")] == ["1", "q + 1", None, None]
    assert assigned(function, "p") == []


@pytest.mark.parametrize(
    ("text", "asks"), [("is_train", True), ("self.training", True), ("x.drain", False), ("p", False)]
)
def test_asks_for_mode(text, asks):
    assert asks_for_mode(ast.parse(text)) is asks
