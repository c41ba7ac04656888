"""M201: validation runs in train mode."""

from __future__ import annotations

import pytest

CODE = "M201"
SCRIPT = """
import torch, torchvision
net = torchvision.models.resnet18()
opt = torch.optim.SGD(net.parameters(), lr=0.1)
for epoch in range(3):
    net.train()
    for x, y in train_loader:
        opt.zero_grad()
        criterion(net(x), y).backward()
        opt.step()
    with torch.no_grad():
        for x, y in val_loader:
            correct += (net(x).argmax(1) == y).sum()
"""
LISTED = """
import torch
from torch import nn
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
opt = torch.optim.SGD(model.parameters(), lr=0.1)
@torch.no_grad()
def evaluate():
    hits = [(model(x).argmax(-1) == y).float().mean() for x, y in data]
    return torch.stack(hits).mean()
for epoch in range(3):
    model.train()
    for x, y in data:
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    print(evaluate())
"""
INLINE = SCRIPT.replace(
    "        for x, y in val_loader:\n            correct += (net(x).argmax(1) == y).sum()",
    "        scores = [score(net(x), y) for x, y in val_loader]",
)
TRUE = {
    "in a list comprehension": LISTED.replace("in data]", "in data]  # <- M201"),
    "in a generator": LISTED.replace("[(", "sum((").replace("in data]", "in data)  # <- M201"),
    "in a comprehension over validation data": INLINE.replace("val_loader]", "val_loader]  # <- M201"),
    "script": SCRIPT.replace("y).sum()", "y).sum()  # <- M201"),
    "planted": """
        import torch
        from torch import nn
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            net.train()
            for _ in range(2):
                x, y = batch()
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
            correct = 0
            with torch.no_grad():
                for _ in range(2):
                    x, y = batch()
                    correct += (net(x).argmax(1) == y).sum().item()  # <- M201
        """,
    "no mode at all": """
        for epoch in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                criterion(model(x), y).backward()
                optimizer.step()
            with torch.no_grad():
                for x, y in test_loader:
                    preds.append(model(x))  # <- M201
        """,
    "functions": """
        import torch
        def train_one_epoch(model, loader, optimizer):
            model.train()
            for x, y in loader:
                optimizer.zero_grad()
                loss_of(model(x), y).backward()
                optimizer.step()
        @torch.no_grad()
        def evaluate(model, loader):
            for x, y in loader:
                out = model(x)  # <- M201
                hits.update(out, y)
        def main():
            model = build()
            optimizer = torch.optim.Adam(model.parameters())
            for epoch in range(10):
                train_one_epoch(model, train_loader, optimizer)
                evaluate(model, other_loader)
        """,
    "class": """
        import torch
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.optimizer = torch.optim.Adam(model.parameters())
            def fit(self):
                for epoch in range(3):
                    self.model.train()
                    for x, y in self.batches:
                        self.optimizer.zero_grad()
                        self.model(x).mean().backward()
                        self.optimizer.step()
                    self.validate()
            def validate(self):
                with torch.no_grad():
                    for x, y in self.held_out:
                        self.total += self.model(x).mean()  # <- M201
        """,
    "eval undone": """
        model.eval()
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
        with torch.inference_mode():
            for x, y in loader:
                accuracy.update(model(x), y)  # <- M201
        """,
}
SILENT = {
    "in a list comprehension, in eval mode": LISTED.replace("    hits =", "    model.eval()\n    hits ="),
    "in a comprehension over validation data, in eval mode": INLINE.replace("    with", "    net.eval()\n    with"),
    "a comprehension over crops gives targets": SCRIPT.replace(
        "        opt.zero_grad()",
        "        with torch.no_grad():\n            targets = [net(crop) for crop in crops]\n        opt.zero_grad()",
    ).replace("    with torch.no_grad():\n        for", "    net.eval()\n    with torch.no_grad():\n        for"),
    "so it does in a function that is called after evaluation": """
        import torch, torchvision
        net = torchvision.models.resnet18()
        def train_and_eval(opt, loader):
            net.train()
            for x in loader:
                with torch.no_grad():
                    targets = [net(crop) for crop in x]
                loss(net(x), targets).backward()
                opt.step()
        """,
    "twin": SCRIPT.replace("    with torch.no_grad", "    net.eval()\n    with torch.no_grad"),
    "only validates": """
        @torch.no_grad()
        def evaluate(model, loader):
            for x, y in loader:
                correct += (model(x).argmax(1) == y).sum()
        """,
    "mode by a flag": """
        def run(model, loader, training):
            model.train(training)
            for x, y in loader:
                loss = criterion(model(x), y)
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                for x, y in val_loader:
                    correct += (model(x).argmax(1) == y).sum()
        """,
    "one of two modes": """
        import torch
        def run(model, loader, training):
            model.train() if training else model.eval()
            for x, y in loader:
                if training:
                    criterion(model(x), y).backward()
                    optimizer.step()
                else:
                    with torch.no_grad():
                        correct += (model(x).argmax(1) == y).sum()
        """,
    "targets for the next step": """
        for x in loader:
            with torch.no_grad():
                pseudo = model(x).argmax(1)
                acc += pseudo.sum()
            loss = criterion(model(noise(x)), pseudo)
            loss.backward()
            optimizer.step()
        """,
    "statistics are estimated anew": SCRIPT.replace("correct += (net(x).argmax(1) == y).sum()", "net(x)").replace(
        "val_loader", "train_loader"
    ),
    "no layer that the mode changes": SCRIPT.replace(
        "torchvision.models.resnet18()", "torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())"
    ),
    "lightning": """
        import lightning as L, torch
        class Net(L.LightningModule):
            def training_step(self, batch, index):
                loss = self.net(batch)
                loss.backward()
            def validation_step(self, batch, index):
                with torch.no_grad():
                    for x in batch:
                        self.acc += self.net(x)
        """,
    "a helper nobody knows sets the mode": SCRIPT.replace("    with torch.no", "    set_mode(net)\n    with torch.no"),
    "eval of all": SCRIPT.replace("    with torch.no", "    for m in models:\n        m.eval()\n    with torch.no"),
    "in a helper's file": "from helpers import quiet\n"
    + SCRIPT.replace("    with torch.no_grad", "    quiet(net)\n    with torch.no_grad"),
    "mc dropout": """
        import torch
        def mc_dropout_test(model, loader):
            model.train()
            for x, y in loader:
                model(x).sum().backward()
                optimizer.step()
            with torch.no_grad():
                for x, y in test_loader:
                    acc += model(x)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE, {"helpers.py": "def quiet(model):\n    model.eval()\n"}) == []


def test_it_says_what_trains_and_what_set_the_mode(check):
    (found,) = check(TRUE["script"], CODE)
    assert found.finding.message == "net is validated in train mode: no eval() before this pass"
    assert found.finding.evidence == "line 9 trains it; line 6 put it into train mode"
    assert found.finding.severity.value == "error"
    assert not found.finding.inferred


def test_without_any_mode_it_is_a_warning(check):
    (found,) = check(TRUE["no mode at all"], CODE)
    assert (found.finding.severity.value, found.finding.inferred) == ("warning", True)


def test_the_fix_calls_eval_above_the_block_and_is_unsafe(fixed):
    assert fixed(SCRIPT, CODE) == SCRIPT
    after = fixed(SCRIPT, CODE, unsafe=True)
    assert after == SCRIPT.replace("    with torch.no_grad", "    net.eval()\n    with torch.no_grad")


def test_no_fix_where_nothing_brings_train_mode_back(find):
    (found,) = find(TRUE["no mode at all"], CODE)
    assert found.fix is None


def test_the_fix_for_a_comprehension_stands_above_its_statement(fixed):
    assert fixed(LISTED, CODE, unsafe=True) == LISTED.replace("    hits =", "    model.eval()\n    hits =")
