"""Calls as they are put in place: names of the function become names of its caller."""

from __future__ import annotations

import ast

import pytest

from frostline.lint.expansion import PlacedCall, matters, split_path


@pytest.mark.parametrize(
    ("path", "parts"),
    [("a", ("a", "")), ("a.b.c", ("a", ".b.c")), ("a[0].b", ("a", "[0].b")), ("", ("", "")), (".*", ("", ".*"))],
)
def test_the_name_that_a_path_begins_with(path: str, parts: tuple[str, str]):
    assert split_path(path) == parts


def test_paths_as_the_caller_knows_them():
    call = PlacedCall("f", roots={"m": "model", "lost": ""}, locals=frozenset({"x"}), node=ast.Pass())
    paths = {
        "m": "model",
        "m.fc": "model.fc",
        "m[0]": "model[0]",
        "lost.a": "",
        "x.a": "f():x.a",
        "other": "other",
        "": "",
    }
    assert {path: call.path(path) for path in paths} == paths
    assert PlacedCall.top("f").path("x.a") == "x.a"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("m.eval()", True),
        ("print(m)", False),
        ("x = nn.Linear(2, 2)", False),
        ("m.fc = nn.Linear(2, 2)", True),
        ("g(m)", False),
        ("h(m)", True),
        ("f(m)", False),
        ("a = m.parameters()", False),
    ],
)
def test_whether_a_caller_could_notice_what_a_function_does(view, body: str, told: bool):
    walk = view(f"def f(m):\n    {body}\ndef g(m): f(m)\ndef h(m):\n    g(m)\n    m.train()\n").walk
    assert matters(walk, walk.functions["f"], False) is told


def test_what_a_constructor_makes_is_no_surprise(view):
    walk = view("class A(nn.Module):\n    def __init__(self):\n        self.a = nn.Linear(2, 2)\n").walk
    init = walk.functions["A.__init__"]
    assert (matters(walk, init, True), matters(walk, init, False)) == (False, True)
    # Whoever asked first decides nothing.
    assert (matters(walk, init, False), matters(walk, init, True)) == (True, False)


@pytest.mark.parametrize("first", ["a", "b"])
def test_functions_that_call_each_other_are_told_alike_whoever_is_asked_first(view, first: str):
    walk = view("def b(m): a(m)\ndef a(m):\n    b(m)\n    m.eval()\n").walk
    assert matters(walk, walk.functions[first], False)
    assert all(matters(walk, walk.functions[name], False) for name in "ab")


def test_thousands_of_functions_in_a_chain_are_no_matter(view):
    walk = view("".join(f"def f{i}(m): f{i + 1}(m)\n" for i in range(3_000)) + "def f3000(m): m.eval()\n").walk
    assert matters(walk, walk.functions["f0"], False)
    assert walk.functions["f1500"].matters == {False: True}
