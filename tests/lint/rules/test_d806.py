"""D806: the optimizer was made before the model was wrapped or sharded."""

from __future__ import annotations

import pytest

CODE = "D806"
SCRIPT = """
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP, fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP
accelerator = Accelerator()
model = nn.Linear(4, 2)
{first}
{then}
for x, y in loader:
    optimizer.zero_grad()
    criterion(model(x), y).backward()
    optimizer.step()
"""
ADAM = "optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)"
MARKED = ADAM + "  # <- D806"
TRUE = {
    "fully_shard": SCRIPT.format(first=MARKED, then="fully_shard(model)"),
    "FSDP": SCRIPT.format(first=MARKED, then="model = FSDP(model)"),
    "FSDP by another name": SCRIPT.format(first=MARKED, then="wrapped = FSDP(model, device_id=0)"),
    "original parameters": SCRIPT.format(first=MARKED, then="model = FSDP(model, use_orig_params=True)"),
    "a layer": SCRIPT.format(first=MARKED, then="fully_shard(model.layers)"),
    "prepare of the model alone": SCRIPT.format(first=MARKED, then="model = accelerator.prepare(model)"),
    "prepare without the optimizer": SCRIPT.format(
        first=MARKED, then="model, loader = accelerator.prepare(model, loader)"
    ),
    "function": """
        import torch
        from torch.distributed.fsdp import fully_shard
        def main(args):
            net = make(args)
            opt = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)  # <- D806
            if args.shard:
                fully_shard(net)
            train(net, opt)
        """,
    "class": """
        import torch
        from torch.distributed.fsdp import FullyShardedDataParallel
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)  # <- D806
                self.model = FullyShardedDataParallel(self.model)
            def step(self, x):
                self.model(x).sum().backward()
                self.optimizer.step()
        """,
}
SILENT = {
    "twin": SCRIPT.format(first="fully_shard(model)", then=ADAM),
    "FSDP first": SCRIPT.format(first="model = FSDP(model)", then=ADAM),
    "DDP": SCRIPT.format(first=ADAM, then="model = DDP(model)"),
    "cuda": SCRIPT.format(first=ADAM, then="model.cuda()"),
    "to": SCRIPT.format(first=ADAM, then="model = model.to('cuda')"),
    "both in one": SCRIPT.format(first=ADAM, then="model, optimizer = accelerator.prepare(model, optimizer)"),
    "two calls": SCRIPT.format(
        first=ADAM, then="model = accelerator.prepare(model)\noptimizer = accelerator.prepare(optimizer)"
    ),
    "prepared in a list": SCRIPT.format(first=ADAM, then="model, optimizer = accelerator.prepare(*[model, optimizer])"),
    "made anew": SCRIPT.format(first=ADAM + "\nfully_shard(model)", then=ADAM),
    "another model": SCRIPT.format(first=ADAM, then="teacher = FSDP(teacher)"),
    "other branch": "from torch.distributed.fsdp import fully_shard\nif shard:\n    fully_shard(model)\nelse:\n    "
    + ADAM,
    "data alone": SCRIPT.format(first=ADAM, then="loader = accelerator.prepare(loader)"),
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_severities(find):
    assert [
        find(TRUE[name], CODE)[0].finding.severity.value
        for name in ("fully_shard", "original parameters", "prepare of the model alone")
    ] == ["error", "warning", "warning"]


def test_what_is_said(find):
    (found,) = find(TRUE["FSDP"], CODE)
    assert found.finding.message == "optimizer is made before FSDP of line 10: it holds the parameters from before"
    assert found.finding.evidence == "made from model; line 10 wraps model"
    assert found.fix is None
