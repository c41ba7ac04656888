"""T701: a learner is tested in train mode: statistics of the test tasks are used, and move."""

from __future__ import annotations

import pytest

CODE = "T701"
HIGHER = """
import higher, torch
from torch import nn
def main(tasks):
    net = nn.Sequential(nn.Conv2d(1, 64, 3), nn.{norm}(64), nn.ReLU())
    train(net, tasks)
    {test}(net, tasks)
def train(net, tasks):
    net.train()
    for x, y in tasks:
        with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fnet, steps):
            loss(fnet(x), y).backward()
def {test}(net, tasks):
    {mode}
    for x, y in tasks:
        with higher.innerloop_ctx(net, opt, track_higher_grads=False) as (fnet, steps):
            steps.step(loss(fnet(x), y))
            accuracy(fnet(x), y)
"""
TRUE = {
    "higher's example": HIGHER.format(norm="BatchNorm2d", test="test", mode="net.train()  # <- T701"),
    "dropout": HIGHER.format(norm="Dropout2d", test="meta_test", mode="net.train()  # <- T701"),
    "maml by hand": """
        import torch
        def meta_test(model, tasks, inner_lr):
            model.train()  # <- T701
            for support_x, support_y, query_x, query_y in tasks:
                fast_weights = adapt(model, support_x, support_y)
                model(query_x)
        """,
    "learn2learn": """
        import learn2learn as l2l
        class Trainer:
            def __init__(self, model):
                self.maml = l2l.algorithms.MAML(model, lr=0.1)
                self.model = model
            def evaluate(self, tasks):
                self.model.train()  # <- T701
                for x, y in tasks:
                    self.model(x)
        """,
    "a flag": """
        import learn2learn
        def validate(net, tasks):
            net.train(True)  # <- T701
            for x in tasks:
                net(x)
        """,
    "given to somebody": """
        import torchmeta
        def test_epoch(model, loader, few_shot):
            model.train()  # <- T701
            for batch in loader:
                scores(adapt(model, batch))
        """,
}
SILENT = {
    "eval": HIGHER.format(norm="BatchNorm2d", test="test", mode="net.eval()"),
    "nothing depends on the mode": HIGHER.format(norm="GroupNorm", test="test", mode="net.train()"),
    "the test function trains": HIGHER.format(norm="BatchNorm2d", test="train_and_test", mode="net.train()"),
    "restored": """
        import higher
        def test(net, tasks):
            net.eval()
            for x in tasks:
                net(x)
            net.train()
        """,
    "train for the support set alone": """
        import higher
        def meta_test(net, tasks):
            for support, query in tasks:
                net.train()
                fit(net, support)
                net.eval()
                net(query)
        """,
    "on purpose": """
        import higher
        def test(net, tasks, transductive):
            if transductive:
                net.train()
            for x in tasks:
                net(x)
        """,
    "no meta-learning": """
        def test(net, loader):
            net.train()
            for x in loader:
                net(x)
        """,
    "attention has queries": """
        def evaluate(model, loader):
            model.train()
            for query, key in loader:
                model(query, key)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_is_said(find):
    (found,) = find(TRUE["higher's example"], CODE)
    assert found.finding.message == (
        "net is tested in train mode: predictions depend on which examples share a batch, "
        "and running statistics take in the test tasks"
    )
    assert found.finding.evidence == (
        "test tests, and line 16 runs net in train mode\nthe file does meta-learning: higher is imported"
    )
    (dropped,) = find(TRUE["dropout"], CODE)
    assert dropped.finding.message == "net is tested in train mode: dropout is on"
