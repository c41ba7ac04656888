"""Which passes of a flow train a model, and which mode it is in at each of them."""

from __future__ import annotations

import ast
import textwrap

import pytest

from frostline.lint.events import Flow
from frostline.lint.file_view import FileView
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.parsing import parse
from frostline.lint.phases import Phases, is_left
from frostline.lint.project import Project
from frostline.lint.source import Source, source_from_bytes


def flow_of(text: str, name: str = "<module>") -> Flow:
    source = source_from_bytes(textwrap.dedent(text).encode(), "train.py")
    assert isinstance(source, Source)
    tree = parse(source)
    assert isinstance(tree, ast.Module)
    view = FileView(ModuleWalk(source, tree, "train", Project()))
    return next(flow for flow in view.flows if flow.name == name)


def modes(text: str, path: str = "model") -> list[tuple[str, int, object]]:
    """What may have decided the mode at the last pass: kind, line and value."""
    flow = flow_of(text)
    last = max(i for i, event in enumerate(flow.events) if event.what == "forward")
    found = Phases(flow).modes_at(last, path)
    return [(event.what, event.line, event.get("value") if event.what == "mode" else None) for event in found]


def test_a_pass_trains_where_a_backward_pass_follows_in_its_loop():
    flow = flow_of(
        """
        for x in loader:
            model(x).sum().backward()
            teacher(x)
        for x in loader:
            model(x)
        """
    )
    phases = Phases(flow)
    assert [(flow.events[i].path, flow.events[i].line) for i in phases.training] == [("model", 3)]
    assert phases.trains("model.head") == phases.training
    assert phases.trains("teacher") == []


def test_a_step_tells_it_too_and_no_grad_the_contrary():
    flow = flow_of(
        """
        for x in loader:
            with torch.no_grad():
                model(x)
            loss = net(x)
            optimizer.step()
        """
    )
    assert [flow.events[i].path for i in Phases(flow).training] == ["net"]


def test_wrappers_are_looked_through():
    flow = flow_of(
        """
        import torch
        model = torch.nn.Linear(2, 2)
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        wrapped.module(x)
        """
    )
    phases = Phases(flow)
    assert phases.canonical("wrapped.module.0") == "model.0"
    assert phases.canonical("wrapped") == "model"
    assert phases.canonical("other._orig_mod.fc.*") == "other.fc"


def test_the_last_change_decides():
    assert modes("model.train()\nmodel.eval()\nmodel(x)\n") == [("mode", 2, False)]


def test_a_change_under_a_condition_leaves_the_one_before_possible():
    text = "model.eval()\nif flag:\n    model.train()\nmodel(x)\n"
    assert modes(text) == [("mode", 3, True), ("mode", 1, False)]


def test_a_change_in_another_branch_is_left_out():
    text = "model.eval()\nif flag:\n    model.train()\nelse:\n    model(x)\n"
    assert modes(text) == [("mode", 1, False)]


def test_a_change_of_a_part_does_not_decide():
    text = "model.train()\nmodel.head.eval()\nmodel(x)\n"
    assert modes(text) == [("mode", 2, False), ("mode", 1, True)]


def test_a_change_of_something_without_a_name_may_be_meant():
    text = "model.train()\nfor m in everything:\n    m.eval()\nmodel(x)\n"
    assert modes(text) == [("mode", 3, False), ("mode", 1, True)]


def test_nothing_is_looked_for_before_a_model_was_made():
    text = "import torchvision\nmodel.eval()\nmodel = torchvision.models.resnet18()\nmodel(x)\n"
    assert modes(text) == [("new", 3, None)]


@pytest.mark.parametrize(
    "made",
    [
        "model = torchvision.models.resnet18().eval()",
        "def make():\n    net = torchvision.models.resnet18()\n    net.eval()\n    return net\nmodel = make()",
    ],
)
def test_what_makes_a_model_may_set_its_mode(made):
    assert ("mode", False) in [(what, value) for what, _, value in modes(f"import torchvision\n{made}\nmodel(x)\n")]


def test_calls_that_nobody_knows():
    flow = flow_of("helper(model)\nother(net)\nmodel.prepare_it(model)\nmodel(x)\n")
    found = Phases(flow).unknown("model.head", 0, len(flow.events))
    assert [event.line for event in found] == [1, 3]


@pytest.mark.parametrize(
    ("text", "line", "left"),
    [
        ("for x in y:\n    a()\n    break\n", 2, True),
        ("for x in y:\n    if a():\n        b()\n        return\n", 3, True),
        ("for x in y:\n    if a():\n        b()\n    c()\n", 3, False),
        ("for x in y:\n    for z in x:\n        a()\n        break\n", 3, False),
        ("for x in y:\n    if z:\n        break\n    a()\n", 4, False),
        ("while True:\n    try:\n        a()\n        raise b\n    finally:\n        c()\n", 3, True),
    ],
)
def test_whether_a_loop_is_left_behind_a_line(text, line, left):
    loop = ast.parse(text).body[0]
    assert is_left(loop, [line]) is left
