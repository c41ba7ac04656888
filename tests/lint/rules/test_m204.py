"""M204: the mode was set on a module alone, or not at all: parent and children differ."""

from __future__ import annotations

import pytest

CODE = "M204"
TRUE = {
    "script": """
        import torch
        from torch import nn
        net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        net.eval  # <- M204
        with torch.no_grad():
            net(x)
        """,
    "by its name": """
        def validate(model, loader):
            model.eval  # <- M204
            for x, y in loader:
                model(x)
            model.train  # <- M204
        """,
    "class-based": """
        class Trainer:
            def __init__(self):
                self.net = torchvision.models.resnet18()
            def validate(self):
                self.net.eval  # <- M204
        """,
    "Lightning": """
        import lightning as L
        class Lit(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.teacher = torch.nn.Linear(2, 2)
            def training_step(self, batch, i):
                self.teacher.eval  # <- M204
                return self.teacher(batch)
        """,
    "unknown": """
        def test(runner):
            runner.thing.eval  # <- M204
        """,
    "schedule-free": """
        import schedulefree
        optimizer = schedulefree.AdamWScheduleFree(model.parameters())
        optimizer.train  # <- M204
        """,
    "overwritten": """
        def validate(model, x):
            model.eval = True  # <- M204
            return model(x)
        """,
    "flag": """
        from torch import nn
        def validate(net: nn.Module, x):
            net.training = False  # <- M204
            return net(x)
        """,
    "flag of a container": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
            def freeze(self):
                self.body.training = False  # <- M204
        """,
    "flag against a call": """
        model.train()
        for epoch in range(3):
            model.training = False  # <- M204
            evaluate(model)
        """,
}
SILENT = {
    "called": "model.eval()\nmodel.train()\nmodel.train(False)",
    "kept": "mode = model.training\nswitch = model.eval\nswitch()",
    "somebody's trainer": "trainer.train\nrunner.train",
    "a library": "import pandas\npandas.eval",
    "plain evaluation of an object": "class Tree:\n    def eval(self): ...\ntree = Tree()\ntree.eval",
    "all modules": "for m in model.modules():\n    m.training = False",
    "children too": "for model in ensemble.children():\n    model.training = False",
    "a layer": "bn = nn.BatchNorm2d(3)\nbn.training = False\nmodel.bn1.training = False",
    "own flag": """
        class Net(nn.Module):
            def train(self, mode=True):
                self.training = mode
                self.training = False
                return self
        """,
    "the other branch of forward": "model.eval()\nmodel.training = True\nlosses = model(x, y)",
    "called beside it": "net.eval()\nnet.training = False",
    "restored": "was = model.training\nmodel.eval()\nmodel.training = was",
    "an object's flag": "class Game:\n    pass\ngame = Game()\ngame.training = False",
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_the_fix_calls_it(fixed):
    assert fixed("model.eval\nmodel.train  # again", CODE) == "model.eval()\nmodel.train()  # again"


def test_the_fix_of_a_flag_is_unsafe(fixed):
    text = "def test(net: nn.Module):\n    net.training = False\n    return net(x)\n"
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == "def test(net: nn.Module):\n    net.eval()\n    return net(x)\n"


def test_the_fix_of_an_overwritten_method_is_unsafe(fixed):
    text = "model.train = False\n"
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == "model.eval()\n"


def test_what_it_says(find):
    (found,) = find("model.training = False\nmodel(x)", CODE)
    assert (
        found.finding.message == "model.training = False reaches model alone: what was in train mode below it still is"
    )
    assert found.finding.severity.value == "warning"
    assert found.finding.inferred
    (found,) = find("model.eval", CODE)
    assert found.finding.message == "model.eval is not called: the mode stays what it was"
    assert found.finding.severity.value == "error"
