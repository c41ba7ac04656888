"""N307: statistics adapt to the data that is tested on."""

from __future__ import annotations

import pytest

CODE = "N307"
SCRIPT = """
import torch, torchvision
from torch import nn
net = torchvision.models.resnet18()
net.eval()
for m in net.modules():
    if isinstance(m, nn.BatchNorm2d):
        m.train()
with torch.no_grad():
    for x in batches:
        net(x)
"""
TRUE = {
    "norms put back": SCRIPT.replace("m.train()", "m.train()  # <- N307"),
    "test function": """
        import torch
        def test(model, loader):
            model.train()  # <- N307
            with torch.no_grad():
                for x, y in loader:
                    correct += (model(x).argmax(1) == y).sum()
        """,
    "few-shot test": """
        def meta_test(encoder, support, query):
            encoder.train()  # <- N307
            return encoder(query) @ encoder(support).T
        """,
    "class": """
        class Trainer:
            @torch.no_grad()
            def validate(self):
                self.model.train()  # <- N307
                for x, y in self.loader:
                    self.model(x)
        """,
    "update_bn": """
        from torch.optim.swa_utils import update_bn
        update_bn(test_loader, swa_model)  # <- N307
        """,
    "helper": """
        from helpers import norms_to_train
        model.eval()
        norms_to_train(model)  # <- N307
        # back with m.train()
        with torch.no_grad():
            model(x)
        """,
}
HELPERS = """
from torch import nn
def norms_to_train(model):
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.train()
"""
SILENT = {
    "twin": SCRIPT.replace("        m.train()", "        pass"),
    "train mode comes back behind": """
        @torch.no_grad()
        def evaluate(model, loader):
            model.eval()
            for x, y in loader:
                model(x)
            model.train()
        """,
    "dropout alone": SCRIPT.replace("nn.BatchNorm2d", "nn.Dropout"),
    "a test of training": """
        def test_training(model):
            model.train()
            loss = model(x).sum()
            loss.backward()
        """,
    "training": """
        def train_epoch(model, loader):
            model.train()
            for x, y in loader:
                criterion(model(x), y).backward()
                optimizer.step()
        """,
    "update_bn on training data": """
        from torch.optim.swa_utils import update_bn
        update_bn(train_loader, swa_model)
        """,
    "fine-tunes while it tests": """
        def meta_test(model, task):
            model.train()
            grads = torch.autograd.grad(loss(model(task.x), task.y), model.parameters())
        """,
    "no norms": SCRIPT.replace("torchvision.models.resnet18()", "nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))"),
    "eval comes after": """
        def test(model, loader):
            model.train()
            model.eval()
            with torch.no_grad():
                model(x)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE, {"helpers.py": HELPERS})


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_it_says_what_tests(check):
    (found,) = check(TRUE["norms put back"], CODE)
    assert found.finding.message == (
        "a part of net is put into train mode for a test: batch statistics adapt to the data under test"
    )
    assert found.finding.evidence == "line 11 tests with it, without gradients"
    assert (found.finding.severity.value, found.fix) == ("warning", None)


@pytest.mark.parametrize("word", ["transductive", "mc_dropout", "test-time adaptation", "tent"])
def test_declared_it_is_an_info(word, find):
    text = TRUE["test function"].replace("# <- N307", f"# {word}")
    (found,) = find(text, CODE)
    assert found.finding.severity.value == "info"
