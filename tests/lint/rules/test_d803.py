"""D803: the distributed wrapper is bypassed in training: gradients are not averaged."""

from __future__ import annotations

import pytest

from frostline.findings import Severity

CODE = "D803"
LOOP = """
from torch.nn.parallel import DistributedDataParallel as DDP
def train(net, loader, optimizer, criterion):
    {wrap}
    for x, y in loader:
        optimizer.zero_grad()
        loss = criterion({call}, y){mark}
        loss.backward()
        optimizer.step()
"""
MARK = "  # <- D803"
TRUE = {
    "module": LOOP.format(wrap="model = DDP(net)", call="model.module(x)", mark=MARK),
    "forward of it": LOOP.format(wrap="model = DDP(net)", call="model.module.forward(x)", mark=MARK),
    "the net itself": LOOP.format(wrap="model = DDP(net)", call="net(x)", mark=MARK),
    "another name": LOOP.format(wrap="raw = net\n    model = DDP(raw)", call="raw(x)", mark=MARK),
    "same name": LOOP.format(wrap="net = DDP(net, device_ids=[0])", call="net.module(x)", mark=MARK),
    "script": """
        import torch
        ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
        for x in loader:
            ddp.module(x).sum().backward()  # <- D803
            optimizer.step()
        """,
    "trainer": """
        from torch import nn
        class Trainer:
            def __init__(self, model, optimizer):
                self.model = nn.parallel.DistributedDataParallel(model)
                self.optimizer = optimizer
            def step(self, x):
                self.optimizer.zero_grad()
                loss = self.model.module(x).mean()  # <- D803
                loss.backward()
                self.optimizer.step()
        """,
    "made elsewhere": """
        import torch.distributed  # DistributedDataParallel is made in main.py
        def step(model, x, optimizer):
            loss = model.module(x).mean()  # <- D803
            loss.backward()
            optimizer.step()
        """,
}
SILENT = {
    "the wrapper": LOOP.format(wrap="model = DDP(net)", call="model(x)", mark=""),
    "same name, called": LOOP.format(wrap="net = DDP(net)", call="net(x)", mark=""),
    "without gradients": """
        import torch
        from torch.nn.parallel import DistributedDataParallel as DDP
        def run(net, loader, optimizer):
            model = DDP(net)
            for x in loader:
                with torch.no_grad():
                    target = model.module(x)
                (model(x) - target).sum().backward()
                optimizer.step()
        """,
    "beside the wrapper": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        def run(net, loader, optimizer):
            model = DDP(net)
            for x in loader:
                loss = model(x).sum() + model.module(x.flip(0)).sum()
                loss.backward()
                optimizer.step()
        """,
    "validation": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        def run(net, loader, optimizer):
            model = DDP(net)
            for x in loader:
                model(x).sum().backward()
                optimizer.step()
            model.eval()
            for x in loader:
                print(model.module(x))
        """,
    "a function that samples": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        def attack_at_test(net, x):
            model = DDP(net)
            model.module(x).sum().backward()
        """,
    "saved": """
        import torch
        from torch.nn.parallel import DistributedDataParallel as DDP
        def run(net, loader, optimizer):
            model = DDP(net)
            for x in loader:
                model(x).sum().backward()
                optimizer.step()
            torch.save(model.module.state_dict(), "x.pt")
        """,
    "not distributed": """
        def run(net, loader, optimizer):
            for x in loader:
                net.module(x).sum().backward()
                optimizer.step()
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_the_fix_calls_the_wrapper(fixed):
    for call in ("model.module(x)", "model.module.forward(x)"):
        text = LOOP.format(wrap="model = DDP(net)", call=call, mark="")
        assert fixed(text, CODE) == text
        assert fixed(text, CODE, unsafe=True) == LOOP.format(wrap="model = DDP(net)", call="model(x)", mark="")


def test_what_is_said(find):
    (found,) = find(TRUE["module"], CODE)
    assert found.finding.message == "model.module(...) bypasses the distributed wrapper: gradients are not averaged"
    assert found.finding.evidence == "line 4 wraps net as model\nline 8 is the backward pass behind it"
    assert found.finding.severity is Severity.ERROR
    (guessed,) = find(TRUE["made elsewhere"], CODE)
    assert (guessed.finding.severity, guessed.finding.inferred) == (Severity.WARNING, True)
