"""One file as rules see it: its nodes, where they stand, what they are called, and how edits are written."""

from __future__ import annotations

import ast
import textwrap

import pytest

from frostline.lint.diagnostic import Edit
from frostline.lint.source import Source

TEXT = """
import torch as t
from torch import nn as layers
from torch.nn import functional as F, Linear
import torchvision.models

class Outer:
    class Inner:
        def method(self, x):
            def local():
                return t.no_grad()
            return layers.Linear(2, 2)(F.relu(x))

def build():
    return Linear(2, 2), torchvision.models.resnet18(), helper(), Outer()

def helper():
    return lambda: build()
"""


def after(view, edit: Edit) -> str:
    return view.source.apply([edit]).text


def test_nodes_come_in_the_order_of_the_text(view):
    seen = view("a(b(1), *c)\nfor x in d(): e(f'{g()}')\nclass A(h()): i()\n[j() for k in l()]\n")
    assert [seen.text(node.func) for node in seen.nodes(ast.Call)] == list("abdeghijl")
    assert [type(node) for node in seen.nodes(ast.For, ast.ClassDef)] == [ast.For, ast.ClassDef]
    assert seen.nodes(ast.While) == []


@pytest.mark.parametrize(
    "text",
    [
        "match x:\n  case {'a': [y, *z]} if f(y): g()\n  case A(b=1) | None: pass\n",
        "try:\n  a()\nexcept E as e:\n  b(e)\nelse: c()\nfinally: d()\n",
        "def f(a: int = g(), /, *b: h(), c=i(), **d) -> j(): return (yield k)\n",
        "with a() as b, c(): pass\nassert d, e()\ndel f[g()]\nraise h() from i()\n",
        "x: a() = b()\nx += c()\nx = y = {**d(), e(): f()}\n",
        "print(*a(), **b())\nlambda c=d(): e()\n(f := g())\nh() if i() else j()\n",
        "async def f():\n  async for a in b(): await c()\n  async with d() as e: pass\n",
        "import a.b as c\nfrom d import e as f\nglobal g\nx[a():b():c(), ...]\n",
        "{a() for b in c() if d() for e in f()}\n{g: h() for g in i()}\n",
        "@a()\nclass B(c, d=e()): f: g() = h()\n",
        "f'{a()!r:>{b()}}' 'c'\n",
    ],
)
def test_no_node_is_left_out(view, text):
    """Everything that `ast.walk` meets and that has a place, but for what trees share."""
    seen = view(text)
    wanted = [each for each in ast.walk(seen.tree) if hasattr(each, "lineno")]
    kinds = {type(each) for each in wanted}
    assert {id(each) for kind in kinds for each in seen.nodes(kind)} == {id(each) for each in wanted}
    for each in wanted:
        above = seen.parent(each)
        assert any(each is child for child in ast.iter_child_nodes(above))


def test_where_a_node_stands(view):
    seen = view(TEXT)
    call = next(node for node in seen.nodes(ast.Call) if seen.text(node) == "t.no_grad()")
    kinds = [type(each).__name__ for each in seen.parents(call)]
    assert kinds == ["Return", "FunctionDef", "FunctionDef", "ClassDef", "ClassDef", "Module"]
    assert seen.function(call) == "Outer.Inner.method.<locals>.local"
    assert type(seen.statement(call)) is ast.Return
    assert seen.statement(seen.tree) is None
    assert seen.parent(seen.tree) is None
    outer = seen.nodes(ast.ClassDef)[0]
    assert (seen.function(outer), seen.statement(outer)) == ("<module>", outer)
    assert seen.function(seen.nodes(ast.Import)[0]) == "<module>"


def test_names_are_qualified_through_imports_and_aliases(view):
    seen = view(TEXT)
    names = {seen.text(node.func): seen.name(node.func) for node in seen.nodes(ast.Call)}
    assert names == {
        "t.no_grad": "torch.no_grad",
        "layers.Linear(2, 2)": "",
        "layers.Linear": "torch.nn.Linear",
        "F.relu": "torch.nn.functional.relu",
        "Linear": "torch.nn.Linear",
        "torchvision.models.resnet18": "torchvision.models.resnet18",
        "helper": "train.helper",
        "Outer": "train.Outer",
        "build": "train.build",
    }


def test_values_of_expressions(view):
    seen = view("from torch import nn\nnet = nn.Linear(2, 2)\nw = net.weight\nunknown\n")
    values = {seen.text(node): seen.value(node) for node in seen.nodes(ast.Name, ast.Attribute)}
    assert (values["net"].kind, values["net"].cls, values["net"].sure) == ("module", "torch.nn.Linear", True)
    assert (values["net.weight"].kind, values["net.weight"].path) == ("parameter", "net.weight")
    assert values["unknown"] is None


def test_attributes_that_are_read(view):
    seen = view("a.b = c.d\ngetattr(e, 'f')\nhasattr(g, 'h')\nsetattr(i, 'j', 1)\ngetattr(k, l)\ngetattr(m, 1)\n")
    assert seen.read_attributes == {"d", "f", "h"}


def test_a_line_is_shown_without_its_indentation_and_never_whole_if_it_is_endless(view):
    seen = view("if a:\n    b = 1  # c\n" + "x = '" + "y" * 5_000 + "'\n")
    assert (seen.line(2), len(seen.line(3)), seen.line(99)) == ("b = 1  # c", 500, "")


def test_replacing_adding_behind_and_renaming(view):
    seen = view("a.bad(é.worse)  # rest\n")
    outer = seen.nodes(ast.Call)[0]
    assert after(seen, seen.replaced(outer.args[0], "x")) == "a.bad(x)  # rest\n"
    assert after(seen, seen.behind(outer, ".y()")) == "a.bad(é.worse).y()  # rest\n"
    assert after(seen, seen.attribute_name(outer.func, "good")) == "a.good(é.worse)  # rest\n"
    assert after(seen, seen.attribute_name(outer.args[0], "good")) == "a.bad(é.good)  # rest\n"


@pytest.mark.parametrize(
    ("text", "below", "above"),
    [
        ("f()\ng()\n", "f()\nNEW\ng()\n", "NEW\nf()\ng()\n"),
        ("f()", "f()\nNEW", "NEW\nf()"),
        ("f()  # why\ng()\n", "f()  # why\nNEW\ng()\n", "NEW\nf()  # why\ng()\n"),
        ("if a:\n    f()\n", "if a:\n    f()\n    NEW\n", "if a:\n    NEW\n    f()\n"),
        ("if a:\n\tf()\nb\n", "if a:\n\tf()\n\tNEW\nb\n", "if a:\n\tNEW\n\tf()\nb\n"),
        ("f(\n  1,\n)\n", "f(\n  1,\n)\nNEW\n", "NEW\nf(\n  1,\n)\n"),
        ("f()\r\ng()\r\n", "f()\r\nNEW\r\ng()\r\n", "NEW\r\nf()\r\ng()\r\n"),
        ("f('é')  # ü\n", "f('é')  # ü\nNEW\n", "NEW\nf('é')  # ü\n"),
        ("f('''\nx\n''')\n", "f('''\nx\n''')\nNEW\n", "NEW\nf('''\nx\n''')\n"),
    ],
    ids=["plain", "no end", "comment", "indented", "tab", "several lines", "windows", "letters", "long string"],
)
def test_a_line_below_and_above(view, text, below, above):
    """The first call of a text, as a statement."""
    source = Source("train.py", text)
    seen = view("pass\n")
    seen.source = source
    tree = ast.parse(text)
    statement = next(node for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    assert source.apply([seen.line_below(statement, "NEW")]).text == below
    assert source.apply([seen.line_above(statement, "NEW")]).text == above
    compile(below, "below", "exec")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("f()", "f(k=1)"),
        ("f( )", "f( k=1)"),
        ("f(a)", "f(a, k=1)"),
        ("f(a,)", "f(a, k=1,)"),
        ("f(a, )", "f(a, k=1, )"),
        ("f(*a, **b)", "f(*a, **b, k=1)"),
        ("f(a, b=')')", "f(a, b=')', k=1)"),
        ("f((a))", "f((a), k=1)"),
        ("f(((a)  # )\n  ) , # )\n)", "f(((a)  # )\n  ), k=1 , # )\n)"),
        ("f(a, k2=(b))", "f(a, k2=(b), k=1)"),
        ("f(**(b))", "f(**(b), k=1)"),
        ("f(\n    a,\n    b,\n)", "f(\n    a,\n    b, k=1,\n)"),
        ("f(\n    a,\n    b\n)", "f(\n    a,\n    b, k=1\n)"),
        ("f(a)(b)", "f(a)(b, k=1)"),
        ("f(\n    a,  # first\n    b,  # last\n)", "f(\n    a,  # first\n    b, k=1,  # last\n)"),
        ("f(\n    a  # last\n)", "f(\n    a, k=1  # last\n)"),
        ("f(\n    # nothing yet\n)", "f(\n    # nothing yet\nk=1)"),
        ("f(x for x in y)", "f((x for x in y), k=1)"),
        ("f('é', 'ü')", "f('é', 'ü', k=1)"),
    ],
)
def test_an_argument_is_added_behind_the_others(view, text, wanted):
    seen = view(text)
    call = next(node for node in seen.nodes(ast.Call) if seen.text(node) == text)
    result = after(seen, seen.argument_added(call, "k=1"))
    assert result == wanted
    node = ast.parse(result).body[0].value
    assert [each.arg for each in node.keywords][-1] == "k"


def test_a_name_of_a_file_beside_it(view):
    seen = view("from helpers import f\nf()\n", {"helpers.py": "def f(): pass\n"})
    (call,) = seen.nodes(ast.Call)
    assert seen.name(call.func) == "helpers.f"
    found = seen.walk.find("helpers.f")
    assert found is not None
    assert (found[0].source.path, found[1].name) == ("helpers.py", "f")


def test_flows_are_made_once(view):
    seen = view(textwrap.dedent(TEXT))
    assert seen.flows is seen.flows
