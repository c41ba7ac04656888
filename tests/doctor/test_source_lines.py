"""What can be told of the user's source: which statements ran, and what of a model an expression names."""

from __future__ import annotations

import ast

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.doctor import source_lines


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.trunk(x))


def called_by_the_loop(model):
    marker = "called"
    for p in model.trunk.parameters():
        p.flag = marker


def not_called(model):
    marker = "not called"
    for p in model.parameters():
        p.flag = marker


def loop(*, wanted=True):
    model = Net()
    if wanted:
        called_by_the_loop(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()


@pytest.fixture(scope="module")
def seen():
    with fl.watch() as seen:
        loop()
    return seen


def node(text):
    return ast.parse(text, mode="eval").body


def marked(statements, text):
    return [s for s in statements if isinstance(s.node, ast.Assign) and ast.unparse(s.node) == f"marker = '{text}'"]


def test_statements_are_reached_through_the_functions_that_were_there(seen):
    statements = source_lines.reached(seen)
    (called,) = marked(statements, "called")
    assert (called.function, called.place.text) == ("called_by_the_loop", 'marker = "called"')
    assert not marked(statements, "not called")
    assert marked(source_lines.everything(seen), "not called")


def test_a_walk_proves_that_a_loop_ran(seen):
    flags = [s for s in source_lines.everything(seen) if ast.unparse(s.node) == "p.flag = marker"]
    ran = {
        s.function: source_lines.walked_at(source_lines.loops_around(s)[0].iter, s.file, seen)
        for s in flags
        if source_lines.loops_around(s)
    }
    assert [(model.name, path) for model, path in ran["called_by_the_loop"]] == [("model", "trunk")]
    assert ran["not_called"] == []


def test_a_line_that_was_not_come_to_has_no_walk():
    with fl.watch() as seen:
        loop(wanted=False)
    flags = [s for s in source_lines.everything(seen) if s.function == "called_by_the_loop" and s.around]
    assert [source_lines.walked_at(s.around[0].iter, s.file, seen) for s in flags] == [[]]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("model.trunk", "trunk"),
        ("model.trunk[0].weight", "trunk.0.weight"),
        ("model.trunk.named_parameters()", "trunk"),
        ("list(net.trunk.children())", "trunk"),
        ("self.head", "head"),
        ("head", "head"),
        ("model", ""),
    ],
)
def test_the_part_that_an_expression_names(seen, text, path):
    part = source_lines.part_named(node(text), seen)
    assert part is not None
    assert part[1] == path


@pytest.mark.parametrize("text", ["x", "build()", "self", "model.missing", "weight", "1"])
def test_what_names_no_part(seen, text):
    assert source_lines.part_named(node(text), seen) is None


def test_the_variable_of_a_loop_stands_for_what_is_walked(seen):
    walks = [(node("p"), node("m.parameters()")), (node("m"), node("model.trunk.children()"))]
    part = source_lines.part_walked(node("p"), walks, seen)
    assert part is not None
    assert part[1] == "trunk"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("p.requires_grad = False", False),
        ("p.requires_grad: bool = True", True),
        ("p.requires_grad_(False)", False),
        ("p.requires_grad_(requires_grad=False)", False),
        ("p.requires_grad_()", True),
        ("setattr(p, 'requires_grad', False)", False),
        ("p.__setattr__('requires_grad', False)", False),
        ("p.requires_grad = flag", None),
        ("p.require_grad = False", None),
        ("setattr(p, 'grad', None)", None),
    ],
)
def test_what_a_statement_sets_the_flag_to(text, value):
    assert source_lines.sets_flag(ast.parse(text).body[0]) is value


def test_a_file_that_is_no_python_is_left_out(tmp_path, seen):
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    before = seen.sources
    seen.sources = (*before, str(broken), str(tmp_path / "absent.py"))
    try:
        assert source_lines.everything(seen)
    finally:
        seen.sources = before
