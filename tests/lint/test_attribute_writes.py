"""Places where an attribute is given a value."""

from __future__ import annotations

import textwrap

import pytest

from frostline.lint.attribute_writes import (
    as_call,
    attribute_writes,
    call_text,
    is_an_option,
    is_constructing,
    is_read,
    renamed,
)
from frostline.lint.file_view import FileView
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.parsing import parse
from frostline.lint.project import Project
from frostline.lint.source import edited, source_from_bytes


def view_of(text: str) -> FileView:
    source = source_from_bytes(textwrap.dedent(text).encode(), "train.py")
    return FileView(ModuleWalk(source, parse(source), "train", Project()))


def writes(view: FileView, name: str = "flag"):
    return list(attribute_writes(view, name.__eq__))


@pytest.mark.parametrize(
    ("text", "owners", "alone"),
    [
        ("a.flag = 1", ["a"], True),
        ("a.flag = b.c.flag = 1", ["a", "b.c"], False),
        ("a.flag: int = 1", ["a"], True),
        ("a.flag |= 1", ["a"], False),
        ("setattr(a, 'flag', 1)", ["a"], True),
        ("x = setattr(a, 'flag', 1)", ["a"], False),
        ("a[0].__setattr__('flag', 1)", ["a[0]"], True),
    ],
)
def test_ways_to_write(text, owners, alone):
    view = view_of(text)
    found = writes(view)
    assert [view.text(each.owner) for each in found] == owners
    assert [each.statement is not None for each in found] == [alone] * len(owners)


@pytest.mark.parametrize(
    "text",
    ["flag = 1", "a.flag: int", "a.other = 1", "a.flag == 1", "setattr(a, name, 1)", "setattr(a, 'flag')", "a.flag()"],
)
def test_what_is_none(text):
    assert writes(view_of(text)) == []


def test_literals_and_owners():
    view = view_of("""
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.flag = False
            def freeze(self, on):
                self.flag = on
        for m in Net().children():
            m.flag = 1
        for m in [Net(), Net()]:
            m.flag = None
        """)
    init, method, each, listed = writes(view)
    assert (init.literal, method.literal, each.literal, listed.literal) == (False, None, 1, None)
    assert (init.is_on_self, method.is_on_self, each.is_on_self) == (True, True, False)
    assert (init.is_on_each, each.is_on_each, listed.is_on_each) == (False, True, False)
    assert (is_constructing(view, init), is_constructing(view, method), is_constructing(view, each)) == (
        True,
        False,
        False,
    )


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("a.flag = x", "a.requires_grad_(x)"),
        ("a.b[0].flag = (\n    x)", "a.b[0].requires_grad_(x)"),
        ("setattr(a, 'flag', x)", "a.requires_grad_(x)"),
        ("a.flag = b.flag = x", None),
        ("a.flag &= x", None),
        ("(a or b).flag = x", None),
        ("a.flag = (  # why\n    x)", None),
    ],
)
def test_edits_to_a_call(text, after):
    view = view_of(text)
    edits = as_call(view, writes(view)[0])
    assert (edited(text, edits) if edits else None) == after


def test_the_call_can_be_given_another_flag():
    view = view_of("a.flag = True")
    assert call_text(view, writes(view)[0], "False") == "a.requires_grad_(False)"


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("a.flag = 1", "a.other = 1"),
        ("setattr(a, 'flag', 1)", "setattr(a, 'other', 1)"),
        ('setattr(a, "flag", 1)', 'setattr(a, "other", 1)'),
    ],
)
def test_edits_of_the_name(text, after):
    view = view_of(text)
    assert edited(text, [renamed(view, writes(view)[0], "other")]) == after


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a.flag = 1", False),
        ("print(a.flag)", True),
        ("getattr(a, 'flag')", True),
        ("hasattr(a, 'flag')", True),
        ("getattr(a, 'other')", False),
    ],
)
def test_whether_it_is_read(text, read):
    assert is_read(view_of(text), "flag") is read


@pytest.mark.parametrize(
    ("body", "option"),
    [
        ("def f(self):\n        return self.flag", True),
        ("@property\n    def flag(self):\n        return 1", True),
        ("flag = True", True),
        ("def f(self):\n        self.flag = 1", True),
        ("def f(self):\n        return self.other", False),
    ],
)
def test_an_option_of_a_class(body, option):
    view = view_of(f"from torch import nn\nclass Net(nn.Module):\n    {body}\nnet = Net()\nnet.flag = False\n")
    assert is_an_option(view, next(each for each in writes(view) if not each.is_on_self)) is option


def test_what_a_class_only_writes_on_itself_is_none():
    view = view_of("from torch import nn\nclass Net(nn.Module):\n    def f(self):\n        self.flag = 1\n")
    assert not is_an_option(view, writes(view)[0])
