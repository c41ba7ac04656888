"""What an optimizer is given, however the list of it was put together."""

from __future__ import annotations

import textwrap

import pytest

HELPERS = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def parts(self):
        return [self.trunk.weight, *self.head.parameters()]

def trainable(net):
    found = []
    for name, each in net.named_parameters():
        if each.requires_grad:
            found.append(each)
    return found

def lazily(m):
    return filter(lambda p: p.requires_grad, m.parameters())

def groups(net, lr):
    return [{"params": net.trunk.parameters(), "lr": lr}, {"params": net.head.parameters()}]

def body_of(net):
    return net.trunk.parameters()

def some(net, only_head):
    if only_head:
        return net.head.parameters()
    return net.parameters()
"""
START = """
import itertools
import torch
from itertools import chain
from torch import nn, optim
from helpers import Net, body_of, groups, lazily, some, trainable
model = Net()
"""


def sources(view, text: str) -> list[str]:
    """The sources of the last optimizer, as `path`, with `|` and the tests of those that may be less than that."""
    seen = view(START + textwrap.dedent(text), {"helpers.py": HELPERS})
    made = [event for flow in seen.flows for event in flow.of("optimizer")][-1]
    return [each.path + ("|" + ", ".join(each.tests) if each.filtered else "") for each in made.get("sources")]


BOTH = ["model.trunk", "model.head"]
REQUIRED = ["model|p.requires_grad"]
CASES = {
    "all": ("optim.SGD(model.parameters())", ["model"]),
    "by keyword": ("optim.SGD(params=model.head.parameters())", ["model.head"]),
    "filter": ("optim.SGD(filter(lambda x: x.requires_grad, model.parameters()))", REQUIRED),
    "list": ("optim.SGD([q for q in model.parameters() if q.requires_grad])", REQUIRED),
    "generator": ("optim.SGD(q for q in model.parameters() if q.requires_grad)", REQUIRED),
    "by name": ('optim.SGD([q for n, q in model.named_parameters() if "head" in n])', ["model|'head' in name"]),
    "sum": ("optim.SGD(list(model.trunk.parameters()) + list(model.head.parameters()))", BOTH),
    "star": ("optim.SGD([*model.trunk.parameters(), *model.head.parameters()])", BOTH),
    "a star of nobody knows what": ("optim.SGD([*given(), *model.head.parameters()])", ["", "model.head"]),
    "chain": ("optim.SGD(itertools.chain(model.trunk.parameters(), model.head.parameters()))", BOTH),
    "chain of a list": ("optim.SGD(chain(*[model.trunk.parameters(), model.head.parameters()]))", BOTH),
    "chain from iterable": ("optim.SGD(chain.from_iterable(m.parameters() for m in [model.trunk, model.head]))", BOTH),
    "sum of lists": ("optim.SGD(sum([list(m.parameters()) for m in [model.trunk, model.head]], []))", BOTH),
    "list of modules": ("optim.SGD(nn.ModuleList([model.trunk, model.head]).parameters())", BOTH),
    "tensors": ("optim.SGD([model.head.weight, model.head.bias])", ["model.head.weight", "model.head.bias"]),
    "dict": ("optim.SGD(dict(model.named_parameters()).values())", ["model"]),
    "dict comprehension": (
        "optim.SGD({n: q for n, q in model.named_parameters() if q.requires_grad}.values())",
        REQUIRED,
    ),
    "groups": (
        'optim.SGD([{"params": model.trunk.parameters(), "lr": 1}, dict(params=model.head.parameters())])',
        BOTH,
    ),
    "one group each": (
        'optim.SGD([{"params": [q]} for q in model.parameters() if q.requires_grad])',
        ["model.*|p.requires_grad"],
    ),
    "class by name": ('getattr(optim, "SGD")(model.parameters())', ["model"]),
    "class by option": ("getattr(torch.optim, args.name)(model.parameters())", ["model"]),
    "one or the other": (
        "optim.SGD(model.head.parameters() if args.head else model.parameters())",
        ["model.head|?", "model|?"],
    ),
    "append": (
        """
        found = []
        for name, q in model.named_parameters():
            if "head" in name:
                found.append(q)
        optim.SGD(found)
        """,
        ["model|'head' in name"],
    ),
    "append two lists": (
        """
        decay, plain = [], []
        for name, q in model.named_parameters():
            if not q.requires_grad:
                continue
            if "bias" in name:
                plain.append(q)
            else:
                decay.append(q)
        optim.SGD([{"params": decay}, {"params": plain, "weight_decay": 0}])
        """,
        [
            "model|not (not p.requires_grad), not ('bias' in name)",
            "model|not (not p.requires_grad), 'bias' in name",
        ],
    ),
    "append something unknown": (
        """
        found = []
        found.append(something())
        found.extend(model.head.parameters())
        optim.SGD(found)
        """,
        ["", "model.head"],
    ),
    "extend": (
        """
        found = []
        found.extend(model.trunk.parameters())
        found.extend(list(model.head.parameters()))
        optim.SGD(found)
        """,
        BOTH,
    ),
    "add": (
        """
        found = list(model.trunk.parameters())
        found += list(model.head.parameters())
        optim.SGD(found)
        """,
        BOTH,
    ),
    "add in a loop": (
        """
        found = []
        for part in (model.trunk, model.head):
            found += list(part.parameters())
        optim.SGD(found)
        """,
        BOTH,
    ),
    "add under a condition": (
        """
        found = list(model.head.parameters())
        if args.all:
            found += list(model.trunk.parameters())
        optim.SGD(found)
        """,
        ["model.head", "model.trunk|args.all"],
    ),
    "groups appended": (
        """
        found = []
        found.append({"params": model.trunk.parameters()})
        found.append({"params": model.head.parameters(), "lr": 1})
        optim.SGD(found)
        """,
        BOTH,
    ),
    "branches": (
        """
        if args.head:
            given = model.head.parameters()
        else:
            given = model.parameters()
        optim.SGD(given)
        """,
        ["model.head|?", "model|?"],
    ),
    "set anew under a condition": (
        """
        given = model.parameters()
        if args.head:
            given = model.head.parameters()
        optim.SGD(given)
        """,
        ["model|?", "model.head|?"],
    ),
    "all but those": (
        """
        ids = list(map(id, model.head.parameters()))
        base = filter(lambda p: id(p) not in ids, model.parameters())
        optim.SGD([{"params": base}, {"params": model.head.parameters(), "lr": 1}])
        """,
        ["model|id(p) not in ids", "model.head"],
    ),
    "of another file": ("optim.SGD(trainable(model))", REQUIRED),
    "of another file, lazily": ("optim.SGD(lazily(model))", REQUIRED),
    "of another file, a part": ("optim.SGD(body_of(model))", ["model.trunk"]),
    "of another file, groups": ("optim.SGD(groups(model, 0.1))", BOTH),
    "of another file, one or the other": ("optim.SGD(some(model, x))", ["model.head|?", "model|?"]),
    "of a method": ("optim.SGD(model.parts())", ["model.trunk.weight", "model.head"]),
    "unknown": ("optim.SGD(given())", [""]),
}


@pytest.mark.parametrize("name", CASES)
def test_sources(name, view):
    text, wanted = CASES[name]
    assert sources(view, text if text.startswith("\n") else f"optimizer = {text}") == wanted


def test_a_group_that_is_appended_to_the_optimizer(view):
    text = 'o = optim.SGD(model.head.parameters())\no.param_groups.append({"params": model.trunk.parameters()})\n'
    seen = view(START + text, {"helpers.py": HELPERS})
    added = [event for flow in seen.flows for event in flow.of("add_group")]
    assert [(each.path, [s.path for s in each.get("sources")]) for each in added] == [("o", ["model.trunk"])]


def test_what_continue_sends_on_is_not_reached(view):
    text = """
        from torch import nn
        model = nn.Linear(2, 2)
        for name, p in model.named_parameters():
            if "head" in name:
                continue
            p.requires_grad = False
        model.eval()
        """
    (flow,) = view(text).flows
    (flag,) = flow.of("flag")
    assert not flag.whole
    assert [each.arm for each in flag.conditions] == [False]
    assert flow.of("mode")[0].conditions == ()


def test_a_function_of_another_file_is_put_in_place(view):
    helpers = "def freeze(m):\n    for p in m.parameters():\n        p.requires_grad = False\n"
    (flow,) = view("from helpers import freeze\nfreeze(model.trunk)\n", {"helpers.py": helpers}).flows
    (flag,) = flow.of("flag")
    assert (flag.path, flag.line, flag.origin) == ("model.trunk.*", 2, "helpers.py:3")
