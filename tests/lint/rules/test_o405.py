"""O405: an optimizer was given an iterator that was used up."""

from __future__ import annotations

import pytest

CODE = "O405"
COUNTED = """
import torch
params = {made}
print(sum(p.numel() for p in params))  # <- O405
optimizer = torch.optim.SGD(params, lr=0.1)
"""
TRUE = {
    "filter": COUNTED.format(made="filter(lambda p: p.requires_grad, model.parameters())"),
    "generator": COUNTED.format(made="(p for p in model.parameters() if p.requires_grad)"),
    "parameters": COUNTED.format(made="model.parameters()"),
    "len of a list": """
        import torch
        def main(net):
            params = filter(lambda p: p.requires_grad, net.parameters())
            print(len(list(params)))  # <- O405
            return torch.optim.Adam(params)
        """,
    "loop": """
        from torch import optim
        trainable = model.head.parameters()
        for p in trainable:  # <- O405
            print(p.shape)
        optimizer = optim.AdamW(trainable)
        """,
    "groups": """
        import torch
        base = filter(lambda p: id(p) not in ids, model.parameters())
        head = model.head.parameters()
        print(sum(p.numel() for p in base))  # <- O405
        optimizer = torch.optim.SGD([{"params": base}, {"params": head, "lr": 0.1}], lr=0.01)
        """,
    "two optimizers": """
        import torch
        params = model.parameters()
        one = torch.optim.SGD(params, lr=0.1)  # <- O405
        two = torch.optim.Adam(params)
        """,
    "clip behind the optimizer": """
        import torch
        params = model.parameters()
        optimizer = torch.optim.SGD(params, lr=0.1)
        for x in loader:
            model(x).sum().backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)  # <- O405
            optimizer.step()
        """,
    "clip in a loop": """
        import torch
        params = model.parameters()
        for x in loader:
            model(x).sum().backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)  # <- O405
            optimizer.step()
        """,
    "counted behind it": """
        import torch
        params = (p for p in model.parameters() if p.requires_grad)
        optimizer = torch.optim.SGD(params, lr=0.1)
        total = sum(p.numel() for p in params)  # <- O405
        """,
    "attribute": """
        import torch
        from torch import nn
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.params = filter(lambda p: p.requires_grad, model.parameters())
                self.optimizer = torch.optim.Adam(self.params)
            def step(self, x):
                self.model(x).sum().backward()
                nn.utils.clip_grad_norm_(self.params, 1.0)  # <- O405
                self.optimizer.step()
        """,
    "of another file": """
        import torch
        from tools import trainable
        params = trainable(model)
        print(sum(p.numel() for p in params))  # <- O405
        optimizer = torch.optim.SGD(params, lr=0.1)
        """,
}
SILENT = {
    "list": COUNTED.format(made="[p for p in model.parameters() if p.requires_grad]").replace("  # <- O405", ""),
    "list of a filter": COUNTED.format(made="list(filter(lambda p: p.requires_grad, model.parameters()))").replace(
        "  # <- O405", ""
    ),
    "used once": """
        params = filter(lambda p: p.requires_grad, model.parameters())
        optimizer = torch.optim.SGD(params, lr=0.1)
        """,
    "made anew": """
        params = model.parameters()
        print(sum(p.numel() for p in params))
        params = model.parameters()
        optimizer = torch.optim.SGD(params, lr=0.1)
        """,
    "either": """
        params = model.parameters()
        if args.adam:
            optimizer = torch.optim.Adam(params)
        elif args.sgd:
            optimizer = torch.optim.SGD(params, lr=0.1)
        else:
            optimizer = torch.optim.RMSprop(params)
        """,
    "return": """
        def build(model, name):
            params = model.parameters()
            if name == "adam":
                return torch.optim.Adam(params)
            return torch.optim.SGD(params, lr=0.1)
        """,
    "printed": """
        params = model.parameters()
        print(params)
        optimizer = torch.optim.SGD(params, lr=0.1)
        """,
    "a method, each time anew": """
        for epoch in range(3):
            params = model.parameters()
            optimizer = torch.optim.SGD(params, lr=0.1)
        """,
    "no optimizer": """
        params = model.parameters()
        a = sum(p.numel() for p in params)
        b = list(params)
        """,
    "two functions": """
        def one(model):
            params = model.parameters()
            return torch.optim.SGD(params, lr=0.1)
        def two(model):
            params = model.parameters()
            return sum(p.numel() for p in params)
        """,
    "a list by then": """
        params = model.parameters()
        params = list(params)
        print(sum(p.numel() for p in params))
        optimizer = torch.optim.SGD(params, lr=0.1)
        """,
}
TOOLS = {"tools.py": "def trainable(m):\n    return filter(lambda p: p.requires_grad, m.parameters())\n"}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE, TOOLS if name == "of another file" else None)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_is_said(find):
    (found,) = find(TRUE["filter"], CODE)
    assert found.finding.message == "params is an iterator and used up here: nothing is left of it for the optimizer"
    assert found.finding.evidence.splitlines() == [
        "line 3 makes it: filter(lambda p: p.requires_grad, model.parameters())",
        "line 5 gets it as well",
    ]


@pytest.mark.parametrize(
    ("made", "after"),
    [
        (
            "filter(lambda p: p.requires_grad, model.parameters())",
            "list(filter(lambda p: p.requires_grad, model.parameters()))",
        ),
        (
            "(p for p in model.parameters() if p.requires_grad)",
            "list(p for p in model.parameters() if p.requires_grad)",
        ),
        ("model.parameters()", "list(model.parameters())"),
    ],
)
def test_the_fix_makes_a_list(made, after, fixed):
    assert fixed(COUNTED.format(made=made), CODE) == COUNTED.format(made=after)
