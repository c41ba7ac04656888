"""O414: the loss is computed from the input, not from the prediction."""

from __future__ import annotations

import pytest

CODE = "O414"
SCRIPT = """
import torch
from torch import nn
model = nn.Linear(4, 3)
criterion = nn.CrossEntropyLoss()
for inputs, labels in loader:
    outputs = model(inputs)
    loss = criterion(inputs, labels)  # <- O414
    loss.backward()
"""
TRUE = {
    "script": SCRIPT,
    "functional": """
        import torch.nn.functional as F
        def train(model, loader):
            for x, y in loader:
                logits = model(x.to(device))
                F.cross_entropy(x, y).backward()  # <- O414
        """,
    "thrown away": """
        for i, (images, targets) in enumerate(loader):
            net(images)
            loss = loss_fn(images, targets)  # <- O414
            (loss / 4).backward()
        """,
    "lightning": """
        class Net(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.model = nn.Linear(4, 3)
                self.criterion = nn.MSELoss()
            def training_step(self, batch, index):
                x, y = batch
                prediction = self.model(x)
                return self.criterion(x, y)  # <- O414
        """,
    "trainer": """
        class Trainer:
            def epoch(self):
                for data, target in self.loader:
                    self.optimizer.zero_grad()
                    output = self.model(data)
                    loss = self.loss_func(data, target)  # <- O414
                    loss.backward()
                    self.optimizer.step()
        """,
}
SILENT = {
    "twin": SCRIPT.replace("criterion(inputs,", "criterion(outputs,"),
    "autoencoder": SCRIPT.replace("criterion(inputs, labels)", "criterion(outputs, inputs)"),
    "autoencoder, the other way round": SCRIPT.replace("criterion(inputs, labels)", "criterion(inputs, outputs)"),
    "the output is used elsewhere": SCRIPT + "    total = loss + outputs.mean()\n",
    "consistency": """
        for x, noisy in loader:
            out = model(x)
            loss = mse_loss(out, model(noisy)) + mse_loss(x, noisy)
        """,
    "rebound to the output": """
        for x, y in loader:
            features = net(x)
            x = head(x)
            loss = criterion(x, y)
        """,
    "the name is reused": """
        def step(model, x, y):
            x = model(x)
            return criterion(x, y)
        """,
    "the model gives the loss": """
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
        """,
    "returned": """
        def step(model, x, y):
            out = model(x)
            loss = criterion(x, y)
            return out, loss
        """,
    "a loss that calls the model": """
        def loss_fn(x, y):
            return (model(x) - y).square().mean()
        for x, y in loader:
            first = model(x)
            loss_fn(x, y).backward()
        """,
    "a method that may": """
        class Net(Base):
            def training_step(self, x, y):
                features = self.backbone(x)
                return self.loss(x, y)
        """,
    "another input": """
        for x, y in loader:
            warm = model(x)
            loss = criterion(z, y)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_it_says(find):
    (found,) = find(SCRIPT, CODE)
    assert found.finding.message == (
        "the loss is computed from inputs, which model was given, and not from what it returned"
    )
    assert found.finding.evidence == "line 7 calls model(inputs); nothing uses outputs"


def test_the_fix_takes_the_output_and_is_unsafe(fixed):
    assert fixed(SCRIPT, CODE) == SCRIPT
    assert fixed(SCRIPT, CODE, unsafe=True) == SCRIPT.replace("criterion(inputs,", "criterion(outputs,")
    assert fixed(TRUE["thrown away"], CODE, unsafe=True) == fixed(TRUE["thrown away"], CODE)
