"""S452: the scheduler steps before the optimizer."""

from __future__ import annotations

import pytest

CODE = "S452"
SCRIPT = """
import torch
from torch import nn
model = nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
for epoch in range(90):
    scheduler.step()  # <- S452
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
"""
BATCH = """
def train(model, optimizer, scheduler, loader):
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        scheduler.step()  # <- S452
        optimizer.step()
"""
TRUE = {
    "script": SCRIPT,
    "each batch": BATCH,
    "scaler": BATCH.replace("optimizer.step()", "scaler.step(optimizer)\n        scaler.update()"),
    "accumulation": """
        for i, batch in enumerate(loader):
            model(batch).mean().backward()
            if (i + 1) % 4 == 0:
                lr_scheduler.step()  # <- S452
                optimizer.step()
                optimizer.zero_grad()
        """,
    "a function trains": """
        def train_epoch(model, optimizer, loader):
            for batch in loader:
                optimizer.zero_grad()
                model(batch).mean().backward()
                optimizer.step()
        def main(model):
            optimizer = torch.optim.Adam(model.parameters())
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
            for epoch in range(10):
                scheduler.step()  # <- S452
                train_epoch(model, optimizer, loader)
        """,
    "trainer": """
        class Trainer:
            def __init__(self, model):
                self.optimizer = torch.optim.Adam(model.parameters())
                self.lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
            def fit(self, epochs):
                while self.epoch < epochs:
                    self.lr_scheduler.step()  # <- S452
                    self.epoch_of_training()
            def epoch_of_training(self):
                for batch in self.loader:
                    self.optimizer.zero_grad()
                    self.model(batch).mean().backward()
                    self.optimizer.step()
        """,
    "two of each": """
        opt_g = torch.optim.Adam(generator.parameters())
        opt_d = torch.optim.Adam(critic.parameters())
        sched_g = torch.optim.lr_scheduler.StepLR(opt_g, 10)
        sched_d = torch.optim.lr_scheduler.StepLR(opt_d, 10)
        for epoch in range(30):
            sched_g.step()  # <- S452
            for real in loader:
                opt_d.step()
                opt_g.step()
            sched_d.step()
        """,
}
SILENT = {
    "twin": SCRIPT.replace("    scheduler.step()  # <- S452\n", "") + "    scheduler.step()\n",
    "behind the step of a batch": BATCH.replace(
        "        scheduler.step()  # <- S452\n        optimizer.step()\n",
        "        optimizer.step()\n        scheduler.step()\n",
    ),
    "given the epoch": SCRIPT.replace("scheduler.step()", "scheduler.step(epoch)"),
    "given a metric": SCRIPT.replace("scheduler.step()", "scheduler.step(validate(model))"),
    "not in the first epoch": SCRIPT.replace("    scheduler.step()", "    if epoch > 0:\n        scheduler.step()"),
    "wound forward": """
        for _ in range(start):
            scheduler.step()
        for epoch in range(start, 90):
            for batch in loader:
                optimizer.step()
            scheduler.step()
        """,
    "stepped before": """
        optimizer.step()
        scheduler.step()
        for epoch in range(90):
            for batch in loader:
                optimizer.step()
            scheduler.step()
        """,
    "each behind its own": """
        for real in loader:
            d_loss(real).backward()
            optimizer_d.step()
            scheduler_d.step()
            g_loss(real).backward()
            optimizer_g.step()
            scheduler_g.step()
        """,
    "another optimizer's comes later": """
        opt_a = torch.optim.SGD(one.parameters(), lr=0.1)
        opt_b = torch.optim.SGD(two.parameters(), lr=0.1)
        sched_a = torch.optim.lr_scheduler.StepLR(opt_a, 10)
        for batch in loader:
            opt_a.step()
            sched_a.step()
            opt_b.step()
        """,
    "no optimizer in sight": """
        for epoch in range(90):
            scheduler.step()
            fit(model, loader)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_once_before_the_loop_is_information(check):
    text = """
        scheduler.step()  # <- S452
        for epoch in range(90):
            for batch in loader:
                optimizer.step()
            scheduler.step()
        """
    (found,) = check(text, CODE)
    assert (found.finding.severity.value, found.fix) == ("info", None)


def test_what_it_says(find):
    (found,) = find(SCRIPT, CODE)
    assert found.finding.message == "scheduler steps before optimizer: the first rate of the schedule is never used"
    assert found.finding.evidence == "line 12 is the first step of optimizer in the loop of line 7"
    assert (found.finding.severity.value, found.finding.inferred) == ("warning", False)


def test_the_fix_changes_neighbours_safely(fixed):
    assert fixed(BATCH, CODE) == BATCH.replace(
        "        scheduler.step()  # <- S452\n        optimizer.step()\n",
        "        optimizer.step()\n        scheduler.step()  # <- S452\n",
    )


def test_the_fix_over_other_lines_is_unsafe(fixed):
    assert fixed(SCRIPT, CODE) == SCRIPT
    line = "    scheduler.step()  # <- S452\n"
    assert fixed(SCRIPT, CODE, unsafe=True) == SCRIPT.replace(line, "") + line


def test_it_names_what_the_lines_read(find):
    text = """
    import torch
    class Trainer:
        def __init__(self, model):
            self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            self.lr_scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 30)
        def train(self):
            for batch in loader:
                loss(batch).backward()
                self.lr_scheduler.step()
                self.optimizer.step()
    trainer = Trainer(model)
    trainer.train()
    """
    (found,) = find(text, CODE)
    assert found.finding.message.startswith("self.lr_scheduler steps before self.optimizer: ")
    assert found.finding.evidence.startswith("line 11 is the first step of self.optimizer in the loop of line 8")
    assert found.finding.remedy.startswith("call it after self.optimizer.step()")
