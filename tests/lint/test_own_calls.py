"""Calls of what the files hold: what they are given, and what they give back."""

from __future__ import annotations

import ast

import pytest

HEAD = """
from torch import nn, optim
net = nn.Linear(2, 2)
class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.body = nn.Linear(n, n)
    def parts(self): return self.body.parameters()
    def itself(self): return self
class Plain:
    def __init__(self, model):
        self.model = model
    @staticmethod
    def static(m): return m
    @classmethod
    def made(cls, m): return cls(m)
class Mine(optim.SGD): pass
def same(model): return model
def named(*, model): return model
def part(model): return model.fc
def parts(m): return m.parameters()
def two(model): return model, model.fc
def made():
    inner = nn.Linear(2, 2)
    return inner
def group(m, lr): return [{"params": m.parameters(), "lr": lr}]
def nothing(m): m.eval()
def early(model):
    if model is None: return None
    return model
def recursive(m): return recursive(m)
"""


def value(view, text: str):
    seen = view(HEAD + text)
    return seen.value(seen.nodes(ast.Assign)[-1].value)


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        ("same(net)", ("module", "torch.nn.Linear", "net")),
        ("named(model=net)", ("module", "torch.nn.Linear", "net")),
        ("part(net)", ("module", "", "net.fc")),
        ("parts(net)", ("parameters", "", "net")),
        ("parts(net.fc)", ("parameters", "", "net.fc")),
        ("made()", ("module", "torch.nn.Linear", "")),
        ("early(net)", ("module", "torch.nn.Linear", "net")),
        ("Net(3)", ("module", "train.Net", "")),
        ("Net(3).to(x)", ("module", "train.Net", "")),
        ("Plain(net)", ("object", "train.Plain", "")),
        ("Mine(net.parameters())", ("optimizer", "train.Mine", "")),
    ],
)
def test_what_a_call_gives(view, call, wanted):
    found = value(view, f"last = {call}")
    assert found is not None
    assert (found.kind, found.cls, found.path) == wanted


@pytest.mark.parametrize("call", ["nothing(net)", "recursive(net)", "same()", "same(*x)"])
def test_what_gives_nothing_known(view, call):
    found = value(view, f"last = {call}")
    assert found is None or found.path == ""


def test_tuples_and_groups_are_given_back_part_by_part(view):
    assert [item.path for item in value(view, "last = two(net)").items] == ["net", "net.fc"]
    assert [source.path for source in value(view, "last = group(net.head, 1)").sources()] == ["net.head"]


def test_methods_give_what_belongs_to_their_object(view):
    assert value(view, "n = Net(2)\nlast = n.parts()").path == "n.body"
    assert value(view, "n = Net(2)\nlast = n.itself()").path == "n"
    assert value(view, "p = Plain(net)\nlast = p.model").path == "p.model"


def calls(view, text: str, files: dict[str, str] | None = None) -> list[tuple[str, ...]]:
    """Callee, receiver, and what it is given, of the calls outside of functions."""
    seen = view(text, files)
    return [
        (
            each.get("callee"),
            each.get("receiver").path if each.get("receiver") is not None else "-",
            " ".join([*each.get("paths"), *(f"{k}={v}" for k, v in each.get("keyed").items())]),
        )
        for each in seen.walk.events
        if each.what == "call"
    ]


def test_calls_say_whom_they_call_and_what_they_give(view):
    assert calls(view, HEAD + "same(net)\nnamed(model=net.fc)\np = Plain(net)\np.static(net)\nNet(3)\n") == [
        ("same", "-", "net"),
        ("named", "-", "model=net.fc"),
        ("Plain.__init__", "", "net"),
        ("Plain.static", "p", "net"),
        ("Net.__init__", "", ""),
    ]


def test_a_class_of_another_file_with_an_inherited_constructor(view):
    files = {"nets.py": HEAD + "class Sub(Net): pass\n"}
    assert calls(view, "from nets import Sub\ns = Sub(2)\nx = s.parts()\n", files) == [
        ("Net.__init__", "", ""),
        ("Net.parts", "s", ""),
    ]
