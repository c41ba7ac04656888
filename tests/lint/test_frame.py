"""What is taken down while a function is walked through."""

from __future__ import annotations

import ast

from frostline.lint.events import Condition, Loop
from frostline.lint.frame import Frame
from frostline.lint.scopes import Names
from frostline.lint.values import Value


def frame() -> Frame:
    return Frame("A.f", "A", Names(), frozenset())


def call(text: str = "\n  f()") -> ast.Call:
    return next(node for node in ast.walk(ast.parse(text.strip("\n").strip())) if isinstance(node, ast.Call))


def test_an_event_has_its_place():
    one = frame()
    one.loops, one.conditions, one.no_grad = (Loop((1,), "for"),), (Condition((2,), True),), 1
    node = call()
    one.emit("step", "opt", node, value=3)
    (event,) = one.events
    assert (event.what, event.path, event.line, event.column, event.node) == ("step", "opt", 1, 0, node)
    assert (event.loops, event.conditions, event.no_grad) == (one.loops, one.conditions, True)
    assert (event.function, event.data) == ("A.f", {"value": 3})


def test_nothing_happens_where_it_is_quiet():
    one = frame()
    one.quiet = 1
    one.emit("step", "opt", call())
    one.emit_new("optimizer", call())
    assert one.events == []


def test_what_is_made_gets_the_path_that_it_is_given_later_once():
    one, node = frame(), call()
    one.emit_new("optimizer", node)
    one.emit_new("optimizer", call())
    assert [event.path for event in one.events] == ["", ""]
    one.name_fresh(node, "opt")
    one.name_fresh(node, "other")
    assert [event.path for event in one.events] == ["opt", ""]


def test_something_is_done_to_each_of_a_literal_list():
    one = frame()
    items = (Value("module", path="a"), None, Value("module", path="b"))
    assert [path for path, _ in one.subjects(Value("module", path=".*", items=items), "m")] == ["a", "b"]
    assert list(one.subjects(Value("module", path="a"), "m")) == [("a", Value("module", path="a"))]
    assert list(one.subjects(Value("module"), "m")) == [("m", Value("module"))]
    assert list(one.subjects(None, "m")) == [("m", None)]
