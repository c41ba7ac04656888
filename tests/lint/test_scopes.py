"""Functions and classes of a file, and what names mean in them."""

from __future__ import annotations

import ast
import textwrap

from hypothesis import given
from hypothesis import strategies as st

from frostline.lint.scopes import MISSING, Function, Names, bodies, collect, is_property
from frostline.lint.values import Value

ONE, TWO = Value("module", path="one"), Value("module", path="two")


def parsed(text: str) -> list[ast.stmt]:
    return ast.parse(textwrap.dedent(text)).body


def test_names_of_inner_scopes_hide_those_around():
    outer = Names()
    inner = Names(outer)
    outer.bind("a", ONE)
    assert (inner.get("a"), inner.has("a"), inner.get("b"), inner.has("b")) == (ONE, True, None, False)
    inner.bind("a", None)
    assert (inner.get("a"), inner.has("a"), outer.get("a")) == (None, True, ONE)


def test_what_is_known_below_a_path_is_forgotten_with_it():
    names = Names()
    for path in ("m.a", "m.a.b", "m[0]", "m2.a", "m"):
        names.bind(path, ONE)
    assert sorted(names.own) == ["m", "m2.a"]
    names.bind("m.a.b", ONE)
    names.bind("m.a", TWO)
    assert sorted(names.own) == ["m", "m.a", "m2.a"]
    names.put("m2", TWO)
    assert names.get("m2.a") == ONE


def test_changes_since_a_mark_are_told_and_taken_back():
    names = Names()
    names.bind("a", ONE)
    names.bind("m.x", ONE)
    names.bind("n", None)
    before = dict(names.own)
    mark = names.mark()
    names.bind("a", TWO)
    names.bind("a", None)
    names.bind("m", TWO)
    names.bind("new", ONE)
    assert names.changed(mark) == {"a": ONE, "m.x": ONE, "m": MISSING, "new": MISSING}
    names.undo(mark)
    assert names.own == before
    assert names.changed(mark) == {}
    names.release()
    assert names._journal == []


PATHS = st.sampled_from(["a", "a.b", "a.b.c", "a[0]", "b", "b.c"])
STEPS = st.lists(st.tuples(PATHS, st.sampled_from([ONE, TWO, None])), max_size=8)


@given(STEPS, STEPS, STEPS)
def test_marks_within_marks(first, second, third):
    names = Names()
    for path, value in first:
        names.bind(path, value)
    outermost = dict(names.own)
    outer = names.mark()
    for path, value in second:
        names.bind(path, value)
    within = dict(names.own)
    inner = names.mark()
    for path, value in third:
        names.bind(path, value)
    assert {path: within.get(path, MISSING) for path in names.changed(inner)} == names.changed(inner)
    names.undo(inner)
    names.release()
    assert names.own == within
    names.undo(outer)
    names.release()
    assert (names.own, names._journal) == (outermost, [])


def test_functions_and_classes_wherever_they_stand():
    functions, classes = collect(
        parsed(
            """
            def f():
                def g(): pass
                class A:
                    def m(self): pass
            class B(A):
                class C:
                    async def m(self): pass
                if x:
                    def n(self): pass
            try:
                def t(): pass
            except E:
                def t2(): pass
            else:
                with a:
                    for b in c:
                        while d:
                            def deep(): pass
            match x:
                case 1:
                    def never_looked_for(): pass
            """
        )
    )
    assert [(each.name, each.owner, each.around) for each in functions.values()] == [
        ("f", "", ""),
        ("f.<locals>.g", "", "f.<locals>"),
        ("f.<locals>.A.m", "f.<locals>.A", "f.<locals>.A"),
        ("B.C.m", "B.C", "B.C"),
        ("B.n", "B", "B"),
        ("t", "", ""),
        ("deep", "", ""),
        ("t2", "", ""),
    ]
    assert list(classes) == ["f.<locals>.A", "B", "B.C"]


def test_of_two_functions_with_one_name_the_first_without_a_decorator_counts():
    functions, _ = collect(parsed("@overload\ndef f(a): pass\ndef f(b): pass\ndef f(c): pass\n"))
    assert functions["f"].parameters == ("b",)


def function(text: str, owner: str = "") -> Function:
    return Function("f", parsed(text)[0], owner)


def test_parameters_and_defaults():
    one = function("def f(a, b=1, /, c=2, *d, e, g=3, **h): pass")
    assert one.parameters == ("a", "b", "c", "e", "g")
    assert {name: ast.literal_eval(value) for name, value in one.defaults()} == {"b": 1, "c": 2, "g": 3}
    assert list(function("def f(a): pass").defaults()) == []


def test_what_is_bound_to_an_object():
    assert function("def f(self): pass", "A").is_bound
    assert function("@classmethod\ndef f(cls): pass", "A").is_bound
    assert not function("@staticmethod\ndef f(x): pass", "A").is_bound
    assert not function("def f(self): pass").is_bound


def test_properties():
    assert is_property(function("@property\ndef f(self): pass", "A"))
    assert is_property(function("@functools.cached_property\ndef f(self): pass", "A"))
    assert is_property(function("@f.setter\ndef f(self, x): pass", "A"))
    assert not is_property(function("@torch.no_grad()\ndef f(self): pass", "A"))


def test_the_blocks_of_statements():
    texts = {
        "if a: b\nelse: c": ["b", "c"],
        "for a in b: c\nelse: d": ["c", "d"],
        "try: a\nexcept B: c\nexcept D: e\nelse: f\nfinally: g": ["a", "f", "g", "c", "e"],
        "match a:\n case 1: b\n case 2: c": ["b", "c"],
        "a = 1": [],
    }
    for text, wanted in texts.items():
        assert [ast.unparse(block) for block in bodies(parsed(text)[0])] == wanted
