"""F110: a frozen parameter keeps moving: its gradient is zero, not None."""

from __future__ import annotations

from pathlib import Path

import pytest

CODE = "F110"
LOOP = """
import torch
optimizer = {optimizer}
for epoch in range(10):
    if epoch == 5:
        model.backbone.requires_grad_(False)
    for x, y in loader:
        optimizer.zero_grad({given}){mark}
        criterion(model(x), y).backward()
        optimizer.step()
"""
SGD = "torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)"


def loop(optimizer: str = SGD, given: str = "set_to_none=False", mark: str = "  # <- F110") -> str:
    return LOOP.format(optimizer=optimizer, given=given, mark=mark)


TRUE = {
    "momentum": loop(),
    "by position": loop(given="False"),
    "weight decay": loop("torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)"),
    "adam": loop("torch.optim.AdamW(model.parameters())"),
    "behind the first stage": """
        import torch
        def main(model, loader):
            opt = torch.optim.Adam(model.parameters())
            epoch(model, opt, loader)
            for p in model.trunk.parameters():
                p.requires_grad = False
            epoch(model, opt, loader)
        def epoch(model, opt, loader):
            for x, y in loader:
                opt.zero_grad(set_to_none=False)  # <- F110
                criterion(model(x), y).backward()
                opt.step()
        """,
    "trainer": """
        import torch
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.optimizer = torch.optim.Adam(self.model.parameters())
            def fit(self, loader):
                for epoch in range(9):
                    self.maybe_freeze(epoch)
                    for batch in loader:
                        self.model.zero_grad(set_to_none=False)  # <- F110
                        self.model(batch).mean().backward()
                        self.optimizer.step()
            def maybe_freeze(self, epoch):
                if epoch >= 3:
                    self.model.trunk.requires_grad_(False)
        """,
    "an optimizer from elsewhere": """
        def train(model, optimizer, loader, freeze_at):
            for step, batch in enumerate(loader):
                if step == freeze_at:
                    model.trunk.requires_grad_(False)
                model(batch).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)  # <- F110
        """,
}
SILENT = {
    "none": loop(given="", mark=""),
    "said to be none": loop(given="set_to_none=True", mark=""),
    "nothing that moves": loop("torch.optim.SGD(model.parameters(), lr=0.1)", mark=""),
    "not in the optimizer": loop("torch.optim.Adam(model.head.parameters())", mark=""),
    "frozen before the first step": """
        import torch
        model.backbone.requires_grad_(False)
        optimizer = torch.optim.Adam(model.parameters())
        for x, y in loader:
            optimizer.zero_grad(set_to_none=False)
            criterion(model(x), y).backward()
            optimizer.step()
        """,
    "frozen by a setting": """
        import torch
        optimizer = torch.optim.Adam(model.parameters())
        for x, y in loader:
            if args.freeze:
                model.backbone.requires_grad_(False)
            optimizer.zero_grad(set_to_none=False)
            criterion(model(x), y).backward()
            optimizer.step()
        """,
    "gradients are dropped": """
        import torch
        optimizer = torch.optim.Adam(model.parameters())
        for epoch in range(9):
            if epoch == 3:
                for p in model.backbone.parameters():
                    p.requires_grad = False
                    p.grad = None
            for x, y in loader:
                optimizer.zero_grad(set_to_none=False)
                criterion(model(x), y).backward()
                optimizer.step()
        """,
    "another optimizer afterwards": """
        import torch
        optimizer = torch.optim.Adam(model.parameters())
        for x, y in loader:
            optimizer.zero_grad(set_to_none=False)
            criterion(model(x), y).backward()
            optimizer.step()
        model.backbone.requires_grad_(False)
        optimizer = torch.optim.Adam(model.head.parameters())
        for x, y in loader:
            optimizer.zero_grad(set_to_none=False)
            criterion(model(x), y).backward()
            optimizer.step()
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_the_message_names_what_moves(find):
    [found] = find(TRUE["momentum"], CODE)
    assert found.finding.message == "model.backbone is frozen but keeps moving: its gradients are zeros, not None"
    assert found.finding.evidence.splitlines() == [
        "line 6 freezes model.backbone while training runs",
        "line 3 gives it to an optimizer that moves what has a gradient, be it zero",
    ]
    assert (found.finding.severity.value, found.finding.inferred) == ("error", False)


def test_an_optimizer_from_elsewhere_makes_it_a_warning(find):
    [found] = find(TRUE["an optimizer from elsewhere"], CODE)
    assert (found.finding.severity.value, found.finding.inferred) == ("warning", True)


@pytest.mark.parametrize("given", ["set_to_none=False", "False"])
def test_the_fix_sets_gradients_to_none(given, fixed):
    text = loop(given=given, mark="")
    assert fixed(text, CODE, unsafe=True) == loop(given=given.replace("False", "True"), mark="")
    assert fixed(text, CODE) == text


def test_the_planted_loop_is_found_and_its_twin_is_not(find):
    text = Path(__file__).parents[3].joinpath("benchmarks/planted_loops/f110.py").read_text()
    assert [each.finding.line for each in find(text, CODE)] == [31]
