"""D801: requires_grad is changed after the model was wrapped for distributed training."""

from __future__ import annotations

import pytest

from frostline.findings import Severity

CODE = "D801"
LOOP = """
from torch.nn.parallel import DistributedDataParallel as DDP
def train(net, loader, optimizer, criterion):
    net.backbone.requires_grad_(False)
    model = DDP(net{options})
    for epoch in range(10):
        if epoch == 5:
            {change}
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
"""
TRUE = {
    "thawed": LOOP.format(options="", change="net.backbone.requires_grad_(True)  # <- D801"),
    "through the wrapper": LOOP.format(options="", change="model.module.backbone.requires_grad_(True)  # <- D801"),
    "frozen later": LOOP.format(options="", change="model.module.head.requires_grad_(False)  # <- D801"),
    "thawed, unused are looked for": LOOP.format(
        options=", find_unused_parameters=True", change="net.backbone.requires_grad_(True)  # <- D801"
    ),
    "in a loop over parameters": """
        import torch
        from torch import nn
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model = nn.parallel.DistributedDataParallel(net, device_ids=[0])
        for p in model.module[0].parameters():
            p.requires_grad = False  # <- D801
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x in loader:
            model(x).sum().backward()
            optimizer.step()
        """,
    "two loops": """
        from torch.nn.parallel import DistributedDataParallel
        def main(net, loader, optimizer):
            net.trunk.requires_grad_(False)
            model = DistributedDataParallel(net)
            train(model, loader, optimizer)
            net.trunk.requires_grad_(True)  # <- D801
            train(model, loader, optimizer)
        def train(model, loader, optimizer):
            for x in loader:
                model(x).mean().backward()
                optimizer.step()
        """,
    "trainer": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        class Trainer:
            def __init__(self, net, rank):
                self.model = DDP(net, device_ids=[rank])
            def unfreeze(self):
                self.model.module.trunk.requires_grad_(True)  # <- D801
        """,
    "a helper": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        def thaw(module):
            for p in module.parameters():
                p.requires_grad = True  # <- D801
        def run(net, loader, optimizer):
            for p in net.body.parameters():
                p.requires_grad = False
            net = DDP(net)
            for epoch in range(9):
                if epoch > 3:
                    thaw(net.module.body)
                for x in loader:
                    net(x).sum().backward()
                    optimizer.step()
        """,
}
SILENT = {
    "before": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        def train(net, loader, optimizer):
            net.backbone.requires_grad_(False)
            model = DDP(net)
            for x in loader:
                model(x).sum().backward()
                optimizer.step()
        """,
    "wrapped anew": LOOP.format(options="", change="net.backbone.requires_grad_(True)\n            model = DDP(net)"),
    "frozen, unused are looked for": LOOP.format(
        options=", find_unused_parameters=True", change="net.head.requires_grad_(False)"
    ),
    "a teacher": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        def main(student, teacher, loader, optimizer):
            student, teacher = DDP(student), DDP(teacher)
            for p in teacher.parameters():
                p.requires_grad = False
            for x in loader:
                (student(x) - teacher(x)).sum().backward()
                optimizer.step()
        """,
    "a teacher, in lines": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        def main(student, teacher, loader, optimizer):
            student = DDP(student)
            teacher = DDP(teacher)
            for p in teacher.parameters():
                p.requires_grad = False
            for x in loader:
                (student(x) - teacher(x)).sum().backward()
                optimizer.step()
        """,
    "a discriminator waits": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        def train(critic, generator, loader, opt_g, opt_d):
            critic = DDP(critic)
            generator = DDP(generator)
            for x in loader:
                critic.requires_grad_(True)
                critic(x).mean().backward()
                opt_d.step()
                critic.requires_grad_(False)
                critic(generator(x)).mean().backward()
                opt_g.step()
        """,
    "on as before": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        def train(net, loader, optimizer):
            model = DDP(net)
            for p in model.parameters():
                p.requires_grad = True
            for x in loader:
                model(x).sum().backward()
                optimizer.step()
        """,
    "behind training": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        def train(net, loader, optimizer):
            model = DDP(net)
            for x in loader:
                model(x).sum().backward()
                optimizer.step()
            model.module.body.requires_grad_(False)
        """,
    "the other branch": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        def train(net, loader, optimizer, distributed):
            if distributed:
                model = DDP(net)
            else:
                net.body.requires_grad_(False)
                model = net
            for x in loader:
                model(x).sum().backward()
                optimizer.step()
        """,
    "a gradient": """
        from torch.nn.parallel import DistributedDataParallel as DDP
        def train(net, loader):
            model = DDP(net)
            for x in loader:
                for p in net.parameters():
                    p.grad.requires_grad_(False)
                    p.grad.zero_()
                model(x).sum().backward()
        """,
    "another model": LOOP.format(options="", change="other.backbone.requires_grad_(True)"),
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
        from helpers import thaw
        def run(net, loader, optimizer):
            net.body.requires_grad_(False)
            model = DDP(net)
            for epoch in range(9):
                if epoch > 3:
                    thaw(model.module.body)  # <- D801
                for x in loader:
                    model(x).sum().backward()
                    optimizer.step()
        """
    helpers = "def thaw(module):\n    for p in module.parameters():\n        p.requires_grad = True\n"
    (found,) = check(text, CODE, {"helpers.py": helpers})
    assert found.finding.evidence == (
        "line 6 wraps net as model\nhelpers.py:3 sets requires_grad of model.module.body.*"
    )


def test_what_is_said(find):
    (thawed,), (frozen,) = find(TRUE["thawed"], CODE), find(TRUE["frozen later"], CODE)
    assert thawed.finding.message == (
        "net.backbone is made trainable after the model was wrapped: its gradients are never averaged"
    )
    assert frozen.finding.message == (
        "model.module.head is frozen after the model was wrapped: "
        "the next pass fails, because its gradients are waited for"
    )
    assert thawed.finding.severity is Severity.ERROR
    assert find(TRUE["trainer"], CODE)[0].finding.severity is Severity.WARNING
