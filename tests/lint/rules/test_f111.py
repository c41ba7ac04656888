"""F111: a learning rate of 0 was taken for freezing."""

from __future__ import annotations

from pathlib import Path

import pytest

CODE = "F111"
GROUPS = """
import torch
from torch.optim.lr_scheduler import *
optimizer = torch.optim.SGD([
    {{"params": model.backbone.parameters(), "lr": {rate}}},{mark}
    {{"params": model.head.parameters()}},
], lr=0.1, momentum=0.9)
{scheduler}
for epoch in range(9):
    train(model, optimizer)
    scheduler.step()
"""


def groups(scheduler: str, rate: str = "0.0", mark: str = "  # <- F111") -> str:
    return GROUPS.format(scheduler=f"scheduler = torch.optim.lr_scheduler.{scheduler}", rate=rate, mark=mark)


TRUE = {
    "cosine": groups("CosineAnnealingLR(optimizer, T_max=10, eta_min=1e-4)"),
    "cosine by position": groups("CosineAnnealingLR(optimizer, 10, 1e-4)"),
    "restarts": groups("CosineAnnealingWarmRestarts(optimizer, 10, eta_min=1e-5)", rate="0"),
    "one cycle": groups("OneCycleLR(optimizer, max_lr=0.1, total_steps=100)"),
    "cyclic": groups("CyclicLR(optimizer, 1e-4, 0.1)"),
    "groups with a name": """
        from torch import optim
        from torch.optim.lr_scheduler import OneCycleLR
        def make(net):
            params = [
                {"params": net.trunk.parameters(), "lr": 0},  # <- F111
                {"params": net.fc.parameters(), "lr": 1e-3},
            ]
            opt = optim.AdamW(params)
            sched = OneCycleLR(opt, 1e-3, epochs=10, steps_per_epoch=100)
            return opt, sched
        """,
    "the others have a rate": """
        import torch
        class Trainer:
            def __init__(self, model, steps):
                self.optimizer = torch.optim.Adam(
                    [{"params": model.body.parameters()}, {"params": model.head.parameters(), "lr": 1e-3}],
                    lr=0.0,  # <- F111
                )
                self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps, eta_min=1e-5)
        """,
    "lightning": """
        import lightning as L
        import torch
        class Net(L.LightningModule):
            def configure_optimizers(self):
                optimizer = torch.optim.AdamW([
                    {"params": self.encoder.parameters(), "lr": 0.0},  # <- F111
                    {"params": self.head.parameters(), "lr": 1e-3},
                ])
                scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5, 1, 1e-6)
                return [optimizer], [scheduler]
        """,
}
SILENT = {
    "a rate of its own": groups("CosineAnnealingLR(optimizer, T_max=10, eta_min=1e-4)", rate="1e-5", mark=""),
    "down to zero": groups("CosineAnnealingLR(optimizer, T_max=10)", mark=""),
    "multiplies": groups("StepLR(optimizer, 10)", mark=""),
    "a rate for each group": groups("OneCycleLR(optimizer, max_lr=[0.0, 0.1], total_steps=100)", mark=""),
    "set by hand": groups("OneCycleLR(optimizer, max_lr=0.1, total_steps=100)", mark="")
    + "    optimizer.param_groups[0]['lr'] = 0.0\n",
    "all begin at zero": """
        import torch
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=100)
        """,
    "left out": """
        import torch
        model.backbone.requires_grad_(False)
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=1e-3)
        """,
    "another optimizer's scheduler": """
        import torch
        one = torch.optim.SGD([{"params": a.parameters(), "lr": 0.0}, {"params": b.parameters()}], lr=0.1)
        two = torch.optim.SGD(c.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(two, 100, eta_min=1e-3)
        """,
}
STATISTICS = """
    import torch
    from torchvision.models import resnet18
    from torch import nn
    trunk, head = resnet18(), nn.Linear(1000, 2)
    optimizer = torch.optim.SGD(
        [{{"params": trunk.parameters(), "lr": 0.0}}, {{"params": head.parameters()}}], lr=0.1
    )
    {mode}
    for x, y in loader:
        criterion(head(trunk(x)), y).backward()
        optimizer.step()
    """


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_the_message_says_what_lifts_the_rate(find):
    [found] = find(TRUE["cosine"], CODE)
    assert found.finding.message == ("a rate of 0 does not freeze: the scheduler lifts it, and model.backbone trains")
    assert found.finding.evidence == "line 8 makes a CosineAnnealingLR with eta_min=1e-4"
    assert (found.finding.severity.value, found.fix) == ("error", None)


def test_statistics_move_at_a_rate_of_zero(find):
    [found] = find(STATISTICS.format(mode="trunk.train()"), CODE)
    assert (found.finding.line, found.finding.severity.value) == (7, "info")
    assert find(STATISTICS.format(mode="trunk.eval()"), CODE) == []


def test_the_planted_loop_is_found_and_its_twin_is_not(find):
    text = Path(__file__).parents[3].joinpath("benchmarks/planted_loops/f111.py").read_text()
    assert [(each.finding.line, each.finding.severity.value) for each in find(text, CODE)] == [
        (32, "error"),
        (49, "info"),
    ]
