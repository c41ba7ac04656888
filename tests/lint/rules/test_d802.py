"""D802: parameters are replaced or moved after the model was wrapped for distributed training."""

from __future__ import annotations

import pytest

CODE = "D802"
HEAD = """
import torch, torchvision
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
def train(loader, rank, state):
    net = torchvision.models.resnet18()
    {before}
    model = DDP(net)
    {after}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in loader:
        model(x).sum().backward()
        optimizer.step()
"""
TRUE = {
    "a head": HEAD.format(before="", after="model.module.fc = nn.Linear(512, 10)  # <- D802"),
    "a head of the net itself": HEAD.format(before="", after="net.fc = nn.Linear(512, 10)  # <- D802"),
    "a parameter": HEAD.format(before="", after="net.fc.bias = nn.Parameter(torch.zeros(10))  # <- D802"),
    "half": HEAD.format(before="net.cuda()", after="model.half()  # <- D802"),
    "a type": HEAD.format(before="net.cuda()", after="model.to(torch.bfloat16)  # <- D802"),
    "moved": HEAD.format(before="", after="model.to(rank)  # <- D802"),
    "loaded by assignment": HEAD.format(before="", after="net.load_state_dict(state, assign=True)  # <- D802"),
    "setattr": HEAD.format(before="", after="setattr(net, 'fc', nn.Linear(512, 10))  # <- D802"),
    "trainer": """
        from torch import nn
        class Trainer:
            def __init__(self, model):
                self.model = nn.parallel.DistributedDataParallel(model)
            def change_head(self, classes):
                self.model.module.head = nn.Linear(64, classes)  # <- D802
        """,
    "script": """
        from torch import nn
        model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        model.module[1] = nn.Linear(2, 5)  # <- D802
        for x in loader:
            model(x).sum().backward()
        """,
}
SILENT = {
    "before": HEAD.format(before="net.fc = nn.Linear(512, 10)", after=""),
    "wrapped anew": HEAD.format(before="", after="net.fc = nn.Linear(512, 10)\n    model = DDP(net)"),
    "where it already is": HEAD.format(before="net.to(rank)", after="model.to(rank)"),
    "no parameters": HEAD.format(before="", after="model.module.fc = nn.Identity()"),
    "another one": HEAD.format(before="", after="other.fc = nn.Linear(512, 10)"),
    "a plain load": HEAD.format(before="", after="net.load_state_dict(state)"),
    "behind training": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        def train(net, loader, optimizer):
            model = DDP(net)
            for x in loader:
                model(x).sum().backward()
                optimizer.step()
            model.module.half()
            model.cpu()
        """,
    "a type for validation": """
        import torch
        from torch.nn.parallel import DistributedDataParallel as DDP
        class Trainer:
            def fit(self, model, loader):
                model = DDP(model)
                for x in loader:
                    model(x).sum().backward()
                    self.evaluate(model)
            def evaluate(self, model):
                model = model.to(torch.float16)
                model.eval()
        """,
    "the other branch": """
        from torch import nn
        from torch.nn.parallel import DistributedDataParallel as DDP
        def build(net, distributed):
            if distributed:
                model = DDP(net)
            else:
                net.fc = nn.Linear(2, 2)
            return net
        """,
    "a model from elsewhere": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        def train(net, loader, rank):
            model = DDP(net)
            model.to(rank)
            for x in loader:
                model(x).sum().backward()
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_a_helper_in_another_file(check):
    text = """
        from torch.nn.parallel import DistributedDataParallel as DDP
        from heads import new_head
        def run(net, loader):
            model = DDP(net)
            new_head(model.module, 10)  # <- D802
            for x in loader:
                model(x).sum().backward()
        """
    heads = "from torch import nn\ndef new_head(module, classes):\n    module.head = nn.Linear(8, classes)\n"
    (found,) = check(text, CODE, {"heads.py": heads})
    assert found.finding.message == (
        "model.module.head is replaced after the model was wrapped: gradients of what is new are not averaged"
    )
    assert found.finding.evidence == "line 5 wraps net as model\nheads.py:3 changes what the wrapper was made for"
