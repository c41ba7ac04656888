"""F109: a parameter was frozen between backward and step: its gradient is still applied."""

from __future__ import annotations

from pathlib import Path

import pytest

CODE = "F109"
TRUE = {
    "script": """
        import torch
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i, (x, y) in enumerate(loader):
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            if i == 100:
                model.backbone.requires_grad_(False)  # <- F109
            optimizer.step()
        """,
    "loop over parameters": """
        def train(model, optimizer, loader):
            for x, y in loader:
                loss = model(x, y)
                loss.backward()
                for p in model.encoder.parameters():
                    p.requires_grad = False  # <- F109
                optimizer.step()
                optimizer.zero_grad()
        """,
    "scaler": """
        import torch
        scaler = torch.amp.GradScaler()
        optimizer = torch.optim.AdamW(net.parameters())
        for epoch in range(9):
            for batch in loader:
                scaler.scale(net(batch).mean()).backward()
                if epoch > 3:
                    net.stem.requires_grad_(False)  # <- F109
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        """,
    "trainer": """
        import torch
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.optimizer = torch.optim.Adam(self.model.parameters())
            def iteration(self, batch, step):
                self.model(batch).mean().backward()
                self.maybe_freeze(step)
                self.optimizer.step()
                self.optimizer.zero_grad()
            def maybe_freeze(self, step):
                if step == 10:
                    for p in self.model.trunk.parameters():
                        p.requires_grad = False  # <- F109
        """,
    "manual lightning": """
        import lightning as L
        import torch
        class Net(L.LightningModule):
            def training_step(self, batch, batch_idx):
                optimizer = self.optimizers()
                optimizer.zero_grad()
                loss = self(batch).mean()
                self.manual_backward(loss)
                self.backbone.requires_grad_(False)  # <- F109
                optimizer.step()
        """,
}
SILENT = {
    "before the pass": """
        import torch
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i, (x, y) in enumerate(loader):
            if i == 100:
                model.backbone.requires_grad_(False)
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
        """,
    "after the step": """
        def train(model, optimizer, loader):
            for x, y in loader:
                model(x, y).backward()
                optimizer.step()
                model.encoder.requires_grad_(False)
                optimizer.zero_grad()
        """,
    "gradients are dropped": """
        def train(model, optimizer, loader):
            for x, y in loader:
                model(x, y).backward()
                for p in model.encoder.parameters():
                    p.requires_grad = False
                    p.grad = None
                optimizer.step()
        """,
    "two nets in turn": """
        def train(net_d, net_g, opt_d, opt_g, loader):
            for x in loader:
                net_d(x).mean().backward()
                opt_d.step()
                net_d.requires_grad_(False)
                net_d(net_g(x)).mean().backward()
                opt_g.step()
                net_d.requires_grad_(True)
        """,
    "another optimizer": """
        import torch
        def train(net_d, net_g, loader):
            opt_g = torch.optim.Adam(net_g.parameters())
            for x in loader:
                net_d(net_g(x)).mean().backward()
                net_d.requires_grad_(False)
                opt_g.step()
        """,
    "cleared in between": """
        def train(model, optimizer, loader):
            for x, y in loader:
                model(x, y).backward()
                optimizer.zero_grad()
                model.encoder.requires_grad_(False)
                optimizer.step()
        """,
    "behind the loop": """
        def train(model, optimizer, loader):
            for x, y in loader:
                model(x, y).backward()
            model.encoder.requires_grad_(False)
            for x, y in loader:
                optimizer.step()
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_the_message_names_the_lines_around(find):
    [found] = find(TRUE["script"], CODE)
    assert found.finding.message == (
        "model.backbone is frozen between backward and step: the gradient that it has is still applied"
    )
    assert found.finding.evidence.splitlines() == [
        "line 6 is the backward pass that fills its gradients",
        "line 9 applies them, whether or not it requires any",
    ]


@pytest.mark.parametrize(("name", "told"), [("script", ("error", False)), ("loop over parameters", ("warning", True))])
def test_an_optimizer_from_elsewhere_makes_it_a_warning(name, told, find):
    [found] = find(TRUE[name], CODE)
    assert (found.finding.severity.value, found.finding.inferred) == told


def test_the_planted_loop_is_found_and_its_twin_is_not(find):
    text = Path(__file__).parents[3].joinpath("benchmarks/planted_loops/f109.py").read_text()
    assert [each.finding.line for each in find(text, CODE)] == [32]
