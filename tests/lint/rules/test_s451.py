"""S451: a parameter group came after the scheduler and is scheduled wrongly."""

from __future__ import annotations

import pytest

CODE = "S451"
SCRIPT = """
import torch
from torch.optim import lr_scheduler
optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)
scheduler = {scheduler}
for epoch in range(9):
    train(epoch)
    if epoch == 3:
        optimizer.add_param_group({{"params": model.layer4.parameters(), "lr": 0.01}})  # <- S451
    scheduler.step()
"""
RAISES = (
    "lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)",
    "lr_scheduler.MultiplicativeLR(optimizer, lambda epoch: 0.9)",
    "lr_scheduler.CyclicLR(optimizer, 0.01, 0.1)",
    "lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=90)",
    "lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10)",
    "torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [3])",
)
FOLLOWS = (
    "lr_scheduler.StepLR(optimizer, 3)",
    "lr_scheduler.MultiStepLR(optimizer, [3, 6])",
    "lr_scheduler.ExponentialLR(optimizer, 0.9)",
    "lr_scheduler.CosineAnnealingLR(optimizer, 9)",
    "lr_scheduler.PolynomialLR(optimizer, 9)",
    "lr_scheduler.ReduceLROnPlateau(optimizer)",
)
TRUE = {
    "LambdaLR": SCRIPT.format(scheduler=RAISES[0]),
    "transformers": """
        from transformers import get_linear_schedule_with_warmup
        optimizer = torch.optim.AdamW(head.parameters())
        scheduler = get_linear_schedule_with_warmup(optimizer, 10, 100)
        optimizer.add_param_group({"params": body.parameters()})  # <- S451
        """,
    "trainer": """
        class Trainer:
            def __init__(self, model):
                self.optimizer = torch.optim.Adam(model.fc.parameters())
                self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=9)
            def thaw(self, block):
                block.requires_grad_(True)
                self.optimizer.add_param_group({"params": block.parameters()})  # <- S451
        """,
    "a helper adds": """
        def thaw(optimizer, block):
            optimizer.add_param_group({"params": block.parameters()})  # <- S451
        def main(model):
            opt = torch.optim.SGD(model.head.parameters(), lr=0.1)
            warm = torch.optim.lr_scheduler.LinearLR(opt, 0.1, total_iters=5)
            for epoch in range(10):
                if epoch == 2:
                    thaw(opt, model.body)
                warm.step()
        """,
    "warm-up": SCRIPT.format(scheduler="lr_scheduler.ConstantLR(optimizer, 0.3)"),
}
SILENT = {
    "twin: from the start": """
        optimizer = torch.optim.SGD([{"params": head.parameters()}, {"params": body.parameters()}], lr=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
        """,
    "added before": """
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        optimizer.add_param_group({"params": body.parameters()})
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
        """,
    "made anew": SCRIPT.format(scheduler=RAISES[0]).replace(
        "    scheduler.step()",
        "        scheduler = lr_scheduler.LambdaLR(optimizer, lambda e: 1.0)\n    scheduler.step()",
    ),
    "another optimizer's": """
        first = torch.optim.SGD(head.parameters(), lr=0.1)
        second = torch.optim.SGD(body.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(first, lambda epoch: 1.0)
        second.add_param_group({"params": neck.parameters()})
        """,
    "no scheduler": """
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        optimizer.add_param_group({"params": body.parameters()})
        """,
    "one of its own": SCRIPT.format(scheduler="MyLR(optimizer)"),
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


@pytest.mark.parametrize("scheduler", RAISES)
def test_schedulers_that_raise(scheduler, check):
    (found,) = check(SCRIPT.format(scheduler=scheduler), CODE)
    assert "raises" in found.finding.message


@pytest.mark.parametrize("scheduler", FOLLOWS)
def test_schedulers_that_follow(scheduler, find):
    assert find(SCRIPT.format(scheduler=scheduler), CODE) == []


def test_what_it_says(find):
    (found,) = find(SCRIPT.format(scheduler=RAISES[3]), CODE)
    assert found.finding.message == "this group comes after OneCycleLR was made: its next step raises KeyError"
    assert found.finding.evidence == (
        "line 5: scheduler was made for the groups that there were\nKeyError: 'initial_lr'"
    )
    (found,) = find(TRUE["warm-up"], CODE)
    assert found.finding.severity.value == "warning"
