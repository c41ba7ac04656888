"""M202: train mode was not restored after validation."""

from __future__ import annotations

import pytest

CODE = "M202"
SCRIPT = """
import torch, torchvision
model = torchvision.models.resnet18()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model.train()
for epoch in range(3):
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        for x, y in val_loader:
            correct += (model(x).argmax(1) == y).sum()
"""
TRUE = {
    "script": SCRIPT.replace("    model.eval()", "    model.eval()  # <- M202"),
    "function": """
        import torch
        def evaluate(net, loader):
            net.eval()  # <- M202
            with torch.no_grad():
                for x in loader:
                    net(x)
        def train(net, loader, optimizer):
            for epoch in range(10):
                for x, y in loader:
                    optimizer.zero_grad()
                    criterion(net(x), y).backward()
                    optimizer.step()
                evaluate(net, loader)
        """,
    "every hundred steps": """
        for epoch in range(epochs):
            model.train()
            for step, (x, y) in enumerate(loader):
                criterion(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
                if step % 100 == 0:
                    model.eval()  # <- M202
                    with torch.no_grad():
                        score = model(held_out)
        """,
    "class": """
        class Trainer:
            def fit(self):
                self.model.train()
                for epoch in range(3):
                    for x, y in self.loader:
                        self.optimizer.zero_grad()
                        self.model(x).mean().backward()
                        self.optimizer.step()
                    self.test()
            def test(self):
                self.model.eval()  # <- M202
                with torch.no_grad():
                    self.model(self.data)
        """,
    "train(False), given away": """
        for epoch in range(3):
            for x, y in loader:
                optimizer.zero_grad()
                criterion(net(x), y).backward()
                optimizer.step()
            net.train(False)  # <- M202
            report(net)
        """,
    "helper in another file": """
        from helpers import accuracy
        for epoch in range(3):
            for x, y in loader:
                optimizer.zero_grad()
                criterion(model(x), y).backward()
                optimizer.step()
            score = accuracy(model, test_loader)  # <- M202
        """,
}
HELPERS = """
import torch
def accuracy(model, loader):
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            model(x)
"""
SILENT = {
    "twin": SCRIPT.replace("    for x, y in loader:", "    model.train()\n    for x, y in loader:"),
    "train again after validation": SCRIPT + "    model.train()\n",
    "restored by a flag": SCRIPT + "    model.train(was_training)\n",
    "each fold has a model of its own": """
        for fold in range(5):
            model = make_model(fold)
            for x, y in loader:
                criterion(model(x), y).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                model(held_out)
        """,
    "made in a function that the loop calls": """
        def run(seed):
            model = build(seed)
            for x, y in loader:
                criterion(model(x), y).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                return model(held_out)
        for seed in range(5):
            run(seed)
        """,
    "left right behind": """
        for epoch in range(3):
            for x, y in loader:
                criterion(model(x), y).backward()
                optimizer.step()
            if done:
                model.eval()
                with torch.no_grad():
                    model(held_out)
                break
        """,
    "behind the loop": """
        for x, y in loader:
            criterion(model(x), y).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            model(held_out)
        """,
    "in eval mode from the start": SCRIPT.replace("model.train()", "model.eval()"),
    "one phase of two": """
        for epoch in range(3):
            for phase in ["train", "val"]:
                if phase == "train":
                    model.train()
                else:
                    model.eval()
                for x, y in loaders[phase]:
                    loss = criterion(model(x), y)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
        """,
    "fixed statistics for the last epochs": """
        for epoch in range(3):
            for x, y in loader:
                criterion(model(x), y).backward()
                optimizer.step()
            if epoch == 1:
                model.eval()
        """,
    "a function brings it back": SCRIPT + "    back_to_train(model)\n",
    "another net": SCRIPT.replace("    model.eval()", "    teacher.eval()"),
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE, {"helpers.py": HELPERS})


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_it_says_where_training_goes_on(check):
    (found,) = check(TRUE["script"], CODE)
    assert found.finding.message == (
        "model stays in eval mode: from the second round on it trains without dropout and with fixed statistics"
    )
    assert found.finding.evidence == (
        "line 9 trains it in the next round of the loop in line 6\nno train() stands between"
    )
    assert found.finding.severity.value == "error"


def test_the_fix_calls_train_first_in_the_loop_and_is_unsafe(fixed):
    assert fixed(SCRIPT, CODE) == SCRIPT
    assert fixed(SCRIPT, CODE, unsafe=True) == SCRIPT.replace(
        "    for x, y in loader:", "    model.train()\n    for x, y in loader:"
    )
