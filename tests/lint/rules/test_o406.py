"""O406: gradients are never cleared and pile up."""

from __future__ import annotations

import pytest

CODE = "O406"
SCRIPT = """
import torch
from torch import nn
model = nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(3):
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()  # <- O406
        optimizer.step()
"""
TRUE = {
    "script": SCRIPT,
    "clears once for each epoch": SCRIPT.replace("    for x", "    optimizer.zero_grad()\n    for x"),
    "clears before the loop": """
        def fit(model, optimizer, loader, criterion):
            optimizer.zero_grad()
            for x, y in tqdm(loader):
                criterion(model(x), y).backward()  # <- O406
                optimizer.step()
        """,
    "scaler": """
        scaler = torch.amp.GradScaler("cuda")
        def train_epoch(net, loader, optimizer):
            for i, batch in enumerate(loader):
                with torch.autocast("cuda"):
                    loss = net(batch)
                scaler.scale(loss).backward()  # <- O406
                scaler.step(optimizer)
                scaler.update()
        """,
    "accumulation": """
        model = torch.nn.Linear(2, 2)
        opt = torch.optim.AdamW(model.parameters())
        for i, batch in enumerate(batches):
            loss = model(batch).mean() / 4
            loss.backward()  # <- O406
            if (i + 1) % 4 == 0:
                opt.step()
        """,
    "the other net's are cleared": """
        opt_d = torch.optim.Adam(critic.parameters())
        opt_g = torch.optim.Adam(generator.parameters())
        for real in loader:
            opt_d.zero_grad()
            critic_loss(critic, real).backward()
            opt_d.step()
            generator_loss(critic, generator).backward()  # <- O406
            opt_g.step()
        """,
    "trainer": """
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.optimizer = torch.optim.Adam(model.parameters())
            def fit(self, loader):
                for batch in loader:
                    self.update(batch)
            def update(self, batch):
                self.model(batch).mean().backward()  # <- O406
                self.optimizer.step()
        """,
}
HELPERS = """
def update(model, optimizer, batch):
    model(batch).mean().backward()
    optimizer.step()
def clear(model):
    for p in model.parameters():
        p.grad = None
"""
SILENT = {
    "twin": SCRIPT.replace("        loss =", "        optimizer.zero_grad()\n        loss ="),
    "clears behind the step": SCRIPT + "        optimizer.zero_grad()\n",
    "clears through the model": SCRIPT + "        model.zero_grad(set_to_none=True)\n",
    "clears by hand": SCRIPT + "        for p in model.parameters():\n            p.grad = None\n",
    "clears in place": SCRIPT + "        for p in model.parameters():\n            p.grad.zero_()\n",
    "something may clear": SCRIPT + "        reset_gradients(model)\n",
    "accumulation": """
        for i, batch in enumerate(loader):
            (model(batch).mean() / 4).backward()
            if (i + 1) % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()
        """,
    "one step for each epoch": """
        for epoch in range(9):
            optimizer.zero_grad()
            for batch in loader:
                model(batch).mean().backward()
            optimizer.step()
        """,
    "step at the last batch": """
        for epoch in range(9):
            optimizer.zero_grad()
            for i, batch in enumerate(loader):
                model(batch).mean().backward()
                if i == len(loader) - 1:
                    optimizer.step()
        """,
    "closure": """
        optimizer = torch.optim.LBFGS(model.parameters())
        for x in loader:
            def closure():
                optimizer.zero_grad()
                loss = model(x).sum()
                loss.backward()
                return loss
            closure().backward()
            optimizer.step(closure)
        """,
    "gan": """
        for real in loader:
            optimizer_d.zero_grad()
            d_loss(critic(real)).backward()
            optimizer_d.step()
            optimizer_g.zero_grad()
            g_loss(critic(generator(z))).backward()
            optimizer_g.step()
        """,
    "lightning": """
        import lightning as L
        class Net(L.LightningModule):
            def training_step(self, batch, index):
                return self.model(batch).mean()
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)
        """,
    "deepspeed": """
        for batch in loader:
            loss = model_engine(batch)
            model_engine.backward(loss)
            model_engine.step()
        """,
    "accelerate": """
        from accelerate import Accelerator
        accelerator = Accelerator()
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(batch).loss)
                optimizer.step()
                optimizer.zero_grad()
        """,
    "a fresh model in each pass": """
        for lr in rates:
            model = torch.nn.Linear(2, 2)
            optimizer = torch.optim.SGD(model.parameters(), lr=lr)
            model(x).sum().backward()
            optimizer.step()
        """,
    "one step of a function": """
        def update(model, optimizer, batch):
            model(batch).mean().backward()
            optimizer.step()
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_a_helper_in_another_file_does(check, find):
    text = """
        from helpers import update, clear
        for batch in loader:
            update(model, optimizer, batch)  # <- O406
        """
    (found,) = check(text, CODE, {"helpers.py": HELPERS})
    assert "the step is at helpers.py:4" in found.finding.evidence
    assert find(text + "    clear(model)\n", CODE, {"helpers.py": HELPERS}) == []


def test_what_it_says(find):
    (found,) = find(SCRIPT, CODE)
    assert found.finding.message == (
        "optimizer steps on gradients that nobody clears: each step adds to those of all steps before"
    )
    assert found.finding.evidence == (
        "line 10 steps with what line 9 has added to\nin the loop of line 7 nothing calls zero_grad() or sets .grad"
    )


def test_the_fix_clears_behind_the_step_and_is_unsafe(fixed):
    assert fixed(SCRIPT, CODE) == SCRIPT
    assert fixed(SCRIPT, CODE, unsafe=True) == SCRIPT + "        optimizer.zero_grad()\n"
    assert "        opt.step()\n        opt.zero_grad()\n" in fixed(TRUE["accumulation"], CODE, unsafe=True)
