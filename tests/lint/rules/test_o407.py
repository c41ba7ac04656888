"""O407: gradients are cleared before the step that should use them."""

from __future__ import annotations

import pytest

CODE = "O407"
SCRIPT = """
import torch
from torch import nn
model = nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in loader:
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.zero_grad()  # <- O407
    optimizer.step()
"""
MICRO = """
def train(model, optimizer, loader, k):
    for i, (x, y) in enumerate(loader):
        optimizer.zero_grad()  # <- O407
        loss = criterion(model(x), y) / k
        loss.backward()
        if (i + 1) % k == 0:
            optimizer.step()
"""
TRUE = {
    "script": SCRIPT,
    "through the model": SCRIPT.replace("optimizer.zero", "model.zero"),
    "scaler": """
        scaler = torch.cuda.amp.GradScaler()
        for batch in loader:
            scaler.scale(model(batch).loss).backward()
            optimizer.zero_grad(set_to_none=True)  # <- O407
            scaler.step(optimizer)
            scaler.update()
        """,
    "training_step by hand": """
        import pytorch_lightning as pl
        class Net(pl.LightningModule):
            def training_step(self, batch, index):
                opt = self.optimizers()
                loss = self.model(batch).mean()
                self.manual_backward(loss)
                opt.zero_grad()  # <- O407
                opt.step()
        """,
    "trainer": """
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.optimizer = torch.optim.Adam(model.parameters())
            def fit(self, loader):
                for batch in loader:
                    self.model(batch).mean().backward()
                    self.clear()
                    self.optimizer.step()
            def clear(self):
                self.optimizer.zero_grad()  # <- O407
        """,
    "where it steps": """
        for i, batch in enumerate(loader):
            net(batch).mean().backward()
            if i % 4 == 3:
                optimizer.zero_grad()  # <- O407
                optimizer.step()
        """,
    "micro-batches": MICRO,
    "micro-batches, behind the step": """
        for step, batch in enumerate(loader, start=1):
            loss = model(batch).mean() / 4
            loss.backward()
            if step % 4 == 0 or step == len(loader):
                optimizer.step()
            optimizer.zero_grad()  # <- O407
        """,
}
SILENT = {
    "twin": SCRIPT.replace(
        "    loss.backward()\n    optimizer.zero_grad()", "    optimizer.zero_grad()\n    loss.backward()"
    ),
    "behind the step": SCRIPT.replace(
        "    optimizer.zero_grad()  # <- O407\n    optimizer.step()", "    optimizer.step()\n    optimizer.zero_grad()"
    ),
    "clears where it steps": MICRO.replace("        optimizer.zero_grad()  # <- O407\n", "")
    + "            optimizer.zero_grad()\n",
    "gan": """
        for real in loader:
            d_loss(critic(real)).backward()
            optimizer_d.step()
            optimizer_g.zero_grad()
            g_loss(critic(generator(z))).backward()
            optimizer_g.step()
            optimizer_d.zero_grad()
        """,
    "another optimizer's": """
        for batch in loader:
            model(batch).mean().backward()
            opt_b.zero_grad()
            opt_a.step()
            other(batch).mean().backward()
            opt_b.step()
        """,
    "attack, then a pass of its own": """
        for x, y in loader:
            criterion(model(x), y).backward()
            bad = x + 0.1 * x.grad.sign()
            optimizer.zero_grad()
            criterion(model(bad), y).backward()
            optimizer.step()
        """,
    "gradients set by hand": """
        for batch in loader:
            model(batch).mean().backward()
            kept = [p.grad.clone() for p in model.parameters()]
            optimizer.zero_grad()
            for p, g in zip(model.parameters(), kept):
                p.grad = g
            optimizer.step()
        """,
    "closure": """
        optimizer = torch.optim.LBFGS(model.parameters())
        model(x).sum().backward()
        optimizer.zero_grad()
        optimizer.step(closure)
        """,
    "generator every fifth": """
        for i, real in enumerate(loader):
            optimizer_g.zero_grad()
            optimizer_d.zero_grad()
            d_loss(critic(real)).backward()
            optimizer_d.step()
            if i % 5 == 0:
                g_loss(critic(generator(z))).backward()
                optimizer_g.step()
        """,
    "a function computes between": """
        for batch in loader:
            model(batch).mean().backward()
            optimizer.zero_grad()
            compute_backward(batch)
            optimizer.step()
        """,
    "accumulation of accelerate": """
        for batch in loader:
            with accelerator.accumulate(model):
                optimizer.zero_grad()
                accelerator.backward(model(batch).loss)
                optimizer.step()
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_a_helper_in_another_file_clears(check):
    text = """
        from helpers import clear
        for batch in loader:
            model(batch).mean().backward()
            clear(optimizer)  # <- O407
            optimizer.step()
        """
    check(text, CODE, {"helpers.py": "def clear(optimizer):\n    optimizer.zero_grad()\n"})


def test_what_it_says(find):
    (found,) = find(SCRIPT, CODE)
    assert found.finding.message == (
        "gradients are cleared between backward() and the step of optimizer: it has none to use"
    )
    assert found.finding.evidence == "line 8 computes them\nline 10 steps"


def test_the_fix_clears_behind_the_step_and_is_unsafe(fixed):
    assert fixed(SCRIPT, CODE) == SCRIPT
    assert fixed(SCRIPT, CODE, unsafe=True).endswith(
        "    loss.backward()\n    optimizer.step()\n    optimizer.zero_grad()  # <- O407\n"
    )


def test_the_fix_of_an_accumulation_clears_in_the_branch_that_steps(fixed):
    assert fixed(MICRO, CODE, unsafe=True).endswith(
        "        if (i + 1) % k == 0:\n            optimizer.step()\n            optimizer.zero_grad()  # <- O407\n"
    )
