"""S453: the learning rate jumps on resuming: the scheduler's state was not loaded."""

from __future__ import annotations

import pytest

CODE = "S453"
SCRIPT = """
import torch
model = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)
checkpoint = torch.load("last.pt")
model.load_state_dict(checkpoint["model"])
optimizer.load_state_dict(checkpoint["optimizer"])  # <- S453
for epoch in range(checkpoint["epoch"], 90):
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    scheduler.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, "last.pt")
"""
LOAD = 'optimizer.load_state_dict(checkpoint["optimizer"])  # <- S453\n'
TRUE = {
    "script": SCRIPT,
    "made after loading": """
        def main(model, args):
            optimizer = torch.optim.AdamW(model.parameters())
            if args.resume:
                state = torch.load(args.resume)
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optim"])  # <- S453
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 90)
            for epoch in range(90):
                for batch in loader:
                    model(batch).mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                scheduler.step()
        """,
    "trainer": """
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.optimizer = torch.optim.Adam(model.parameters())
                self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 10)
            def save(self, path):
                torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, path)
            def load(self, path):
                checkpoint = torch.load(path)
                self.model.load_state_dict(checkpoint["model"])
                self.optimizer.load_state_dict(checkpoint["optimizer"])  # <- S453
            def fit(self):
                for epoch in range(90):
                    self.optimizer.step()
                    self.scheduler.step()
        """,
    "transformers": """
        from transformers import get_linear_schedule_with_warmup
        def train(model, path):
            optimizer = torch.optim.AdamW(model.parameters())
            lr_scheduler = get_linear_schedule_with_warmup(optimizer, 100, 1000)
            optimizer.load_state_dict(torch.load(path))  # <- S453
            for batch in loader:
                optimizer.zero_grad()
                model(batch).loss.backward()
                optimizer.step()
                lr_scheduler.step()
        """,
    "made by a function": """
        def make(model):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        def resume(model, checkpoint):
            optimizer, scheduler = make(model)
            optimizer.load_state_dict(checkpoint["optimizer"])  # <- S453
            for epoch in range(9):
                optimizer.step()
                scheduler.step()
        """,
}
SILENT = {
    "twin": SCRIPT.replace(LOAD, LOAD[:50] + '\nscheduler.load_state_dict(checkpoint["scheduler"])\n'),
    "told where to begin": SCRIPT.replace("warm_up)", "warm_up, last_epoch=start)"),
    "given the epoch": SCRIPT.replace("scheduler.step()", "scheduler.step(epoch)"),
    "wound forward": SCRIPT.replace(
        LOAD, LOAD.replace("  # <- S453", "") + 'for _ in range(checkpoint["epoch"]):\n    scheduler.step()\n'
    ),
    "no scheduler": SCRIPT.replace("    scheduler.step()\n", "").replace(
        "scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)\n", ""
    ),
    "set back for each fold": """
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
        begun = optimizer.state_dict()
        train(model)
        optimizer.load_state_dict(begun)
        for epoch in range(9):
            optimizer.step()
            scheduler.step()
        """,
    "the model only": SCRIPT.replace(LOAD, ""),
    "a function may load it": SCRIPT.replace(LOAD, LOAD + "restore(scheduler, checkpoint)\n"),
    "loaded by another method": """
        class Trainer:
            def __init__(self, model):
                self.optimizer = torch.optim.Adam(model.parameters())
                self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 10)
            def load(self, path):
                self.optimizer.load_state_dict(torch.load(path)["optimizer"])
            def load_schedule(self, path):
                self.scheduler.load_state_dict(torch.load(path)["scheduler"])
            def fit(self):
                for epoch in range(90):
                    self.optimizer.step()
                    self.scheduler.step()
        """,
    "nothing is trained after it": """
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
        for epoch in range(9):
            optimizer.step()
            scheduler.step()
        optimizer.load_state_dict(best)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_a_scaler_is_information(check):
    text = """
        scaler = torch.amp.GradScaler()
        def resume(model, optimizer, path):
            checkpoint = torch.load(path)
            optimizer.load_state_dict(checkpoint["optimizer"])  # <- S453
            for batch in loader:
                scaler.scale(model(batch).mean()).backward()
                scaler.step(optimizer)
                scaler.update()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
        """
    (found,) = check(text, CODE)
    assert found.finding.severity.value == "info"
    assert found.finding.message == "optimizer is resumed without the state of scaler: its scale begins anew"


def test_what_it_says(find):
    (found,) = find(SCRIPT, CODE)
    assert found.finding.message == (
        "optimizer is resumed without the state of scheduler: its schedule begins anew in the middle of the run"
    )
    assert found.finding.evidence == (
        "line 5 makes scheduler, which begins anew: nothing is loaded into it\nline 15 saves without it"
    )
    assert found.fix is None
