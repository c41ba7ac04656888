"""What expressions are, as far as source tells."""

from __future__ import annotations

import ast

import pytest

from frostline.lint.values import Value

HEAD = """
import copy, itertools, torch, timm
import torch.nn as layers
from torch import nn, optim
from torch.optim import AdamW as Opt
net = nn.Linear(2, 2)
opt = optim.SGD(net.parameters())
numbers = [1, 2]
parts = net.parameters()
"""


def value(view, text: str) -> Value | None:
    """What stands on the right side of the last assignment of a text."""
    seen = view(HEAD + text)
    return seen.value(seen.nodes(ast.Assign)[-1].value)


KINDS = {
    "layers.Linear(2, 2)": ("module", "torch.nn.Linear", ""),
    "layers.init.zeros_(net.weight)": ("parameter", "", "net.weight"),
    "layers.Parameter(x)": ("parameter", "torch.nn.Parameter", ""),
    "net": ("module", "torch.nn.Linear", "net"),
    "net.weight": ("parameter", "", "net.weight"),
    "net.weight.data": ("data", "", "net.weight"),
    "net.weight.grad": ("gradient", "", "net.weight"),
    "net.weight[0]": ("parameter", "", "net.weight"),
    "net[0]": ("module", "", "net[0]"),
    "net.parameters()": ("parameters", "", "net"),
    "net.named_parameters()": ("named_parameters", "", "net"),
    "net.children()": ("modules", "", "net"),
    "net.named_modules()": ("named_modules", "", "net"),
    "list(net.parameters())": ("parameters", "", "net"),
    "iter(net.parameters())": ("parameters", "", "net"),
    "sorted(net.modules())": ("modules", "", "net"),
    "list(net)": ("modules", "", "net"),
    "net.to('cuda')": ("module", "torch.nn.Linear", "net"),
    "net.eval().half()": ("module", "torch.nn.Linear", "net"),
    "(y := net)": ("module", "torch.nn.Linear", "net"),
    "net.state_dict()": ("state_dict", "module", "net"),
    "torch.load('x')": ("checkpoint", "", ""),
    "torch.zeros(3)": ("tensor", "", ""),
    "torch.zeros(3) + 1": ("tensor", "", ""),
    "net(x)": ("tensor", "", ""),
    "Opt(net.parameters())": ("optimizer", "torch.optim.AdamW", ""),
    "opt.param_groups": ("groups", "", "opt"),
    "optim.lr_scheduler.StepLR(opt, 1)": ("scheduler", "torch.optim.lr_scheduler.StepLR", ""),
    "torch.amp.GradScaler()": ("scaler", "torch.amp.GradScaler", ""),
    "torch.utils.data.DataLoader(x)": ("loader", "torch.utils.data.DataLoader", ""),
    "optim.swa_utils.AveragedModel(net)": ("averaged", "torch.optim.swa_utils.AveragedModel", ""),
    "getattr(optim, 'Adam')": ("ref", "torch.optim.Adam", ""),
    "getattr(net, 'fc')": ("module", "", "net.fc"),
    "timm.create_model": ("ref", "timm.create_model", ""),
    "net if x else nn.ReLU()": ("module", "torch.nn.Linear", "net"),
    "net or other_net": ("module", "", "other_net"),
    "numbers[1]": ("const", "", ""),
    "not True": ("const", "", ""),
    "enumerate(net.parameters())": ("enumerate", "", ""),
}


@pytest.mark.parametrize("text", KINDS)
def test_kind_class_and_path(view, text):
    found = value(view, f"last = {text}")
    assert found is not None
    assert (found.kind, found.cls, found.path) == KINDS[text]


@pytest.mark.parametrize(
    "text",
    [
        "lambda p: p",
        "f'{net}'",
        "x",
        "x.y.z",
        "net.shape",
        "net.training",
        "numbers[n]",
        "{1: 2}[1]",
        "await x",
        "1 < 2",
    ],
)
def test_what_nothing_is_known_of(view, text):
    assert value(view, f"last = {text}") is None


def test_literals(view):
    for text, wanted in {"3": 3, "-3": -3, "'a'": "a", "None": None, "not 0": True, "-True": -1}.items():
        assert value(view, f"last = {text}") == Value("const", const=wanted)


FILTERS = {
    "[p for p in net.parameters() if p.requires_grad]": ("p.requires_grad",),
    "[q for q in net.parameters() if not q.requires_grad]": ("not p.requires_grad",),
    "[p for n, p in net.named_parameters() if 'bn' in n]": ("'bn' in name",),
    "(p for p in net.parameters() if p.requires_grad)": ("p.requires_grad",),
    "filter(lambda q: q.requires_grad, net.parameters())": ("p.requires_grad",),
    "list(filter(lambda p: p.requires_grad, net.parameters()))": ("p.requires_grad",),
    "filter(chosen, net.parameters())": ("?",),
    "list(net.parameters())[:-1]": (),
}


@pytest.mark.parametrize("text", FILTERS)
def test_what_some_are_left_out_of(view, text):
    found = value(view, f"last = {text}")
    assert found is not None
    assert (found.kind, found.path, found.filtered, found.tests) == ("parameters", "net", True, FILTERS[text])


def test_what_none_are_left_out_of(view):
    found = value(view, "last = [p for p in net.parameters()]")
    assert found is not None
    assert (found.kind, found.path, found.filtered, found.lazy) == ("parameters", "net", False, False)


@pytest.mark.parametrize(
    ("text", "lazy"),
    [
        ("net.parameters()", True),
        ("list(net.parameters())", False),
        ("(p for p in net.parameters())", True),
        ("[p for p in net.parameters()]", False),
        ("itertools.chain(net.parameters(), head.parameters())", True),
        ("list(itertools.chain(net.parameters(), head.parameters()))", False),
        ("iter(list(net.parameters()))", True),
    ],
)
def test_what_can_be_gone_through_once(view, text, lazy):
    found = value(view, f"last = {text}")
    assert found is not None
    assert found.lazy is lazy


ITEMS = {
    "[net.weight, net.bias]": ["parameter net.weight", "parameter net.bias"],
    "(net, opt)": ["module net", "optimizer opt"],
    "[*net.parameters(), x]": ["parameters net", "-"],
    "{'params': net.parameters(), 'lr': 1}": ["parameters net"],
    "dict(params=net.parameters(), lr=1)": ["parameters net"],
    "dict(net.named_parameters())": ["named_parameters net"],
    "{n: p for n, p in net.named_parameters()}": ["parameters net"],
    "list(net.parameters()) + list(head.parameters())": ["parameters net", "parameters head"],
    "sum([list(net.parameters()), list(head.parameters())], [])": ["parameters net", "parameters head"],
    "itertools.chain(net.parameters(), head.parameters())": ["parameters net", "parameters head"],
    "nn.Sequential(net, nn.ReLU())": ["module net", "module"],
    "[{'params': m.parameters()} for m in net.children()]": ["group"],
}


@pytest.mark.parametrize("text", ITEMS)
def test_what_is_in_it(view, text):
    found = value(view, f"last = {text}")
    assert found is not None
    assert [f"{item.kind} {item.path}".rstrip() if item is not None else "-" for item in found.items] == ITEMS[text]


def test_copies_and_makers(view):
    copied = value(view, "last = copy.deepcopy(net)")
    assert copied is not None
    assert (copied.kind, copied.path, copied.copy_of) == ("module", "", "net")
    made = value(view, "last = timm.create_model('resnet50', pretrained=True)")
    assert made is not None
    assert (made.kind, made.maker) == ("module", "timm.create_model:resnet50")


def test_what_it_is_called_is_a_guess_and_how_it_is_used_is_none(view):
    seen = view("def f(model, opt, thing, other):\n    model, opt, thing, other\n    thing.parameters()\n")
    values = {node.id: seen.value(node) for node in seen.nodes(ast.Name)}
    assert values["model"] == Value("module", path="model", sure=False)
    assert values["opt"] == Value("optimizer", path="opt", sure=False)
    assert values["thing"] == Value("module", path="thing")
    assert values["other"] is None


def test_names_that_are_bound_nowhere_are_what_everybody_means(view):
    seen = view("nn.Linear(2, 2)\nF.dropout(x)\noptim.SGD(x)\n")
    assert [seen.name(node.func) for node in seen.nodes(ast.Call)] == [
        "torch.nn.Linear",
        "torch.nn.functional.dropout",
        "torch.optim.SGD",
    ]
    seen = view("nn = other()\nnn.Linear(2, 2)\n")
    assert seen.name(seen.nodes(ast.Call)[-1].func) == ""


def test_what_doubles_in_every_line_is_not_looked_into(view):
    many = value(view, "ps = list(net.parameters())\n" + "ps = [ps, ps]\n" * 60 + "last = ps\n")
    assert many is None or many.size < 5_000
    few = value(view, "ps = list(net.parameters())\n" + "ps = [ps, ps]\n" * 5 + "last = ps\n")
    assert few is not None
    assert len(few.sources()) == 32


@pytest.mark.parametrize(
    ("over", "item"),
    [
        ("net.parameters()", ("parameter", "net.*")),
        ("net.modules()", ("module", "net.*")),
        ("nn.ModuleList()", ("module", ".*")),
        ("[net, head]", ("module", ".*")),
        ("[net, net.features2]", ("module", ".*")),
        ("unknown_things", None),
    ],
)
def test_what_a_loop_goes_over(view, over, item):
    seen = view(HEAD + f"head = nn.Linear(1, 1)\nfor each in {over}:\n    each\n")
    found = seen.value(seen.nodes(ast.Expr)[-1].value)
    assert (None if found is None or found.kind == "unknown" else (found.kind, found.path)) == item
