"""M211: the optimizer's own mode does not follow the model's."""

from __future__ import annotations

import pytest

CODE = "M211"
SCRIPT = """
import torch
import schedulefree
from torch import nn

net = nn.Linear(4, 3)
optimizer = schedulefree.{cls}(net.parameters(), lr=0.1)
for epoch in range(3):
    net.train()
    {train}
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval(){mark}
    {eval}
    with torch.no_grad():
        net(held_out).argmax(1)
"""


def script(train: str = "pass", eval: str = "pass", mark: str = "", cls: str = "AdamWScheduleFree") -> str:  # noqa: A002
    return SCRIPT.format(train=train, eval=eval, mark=mark, cls=cls)


TRUE = {
    "neither": script(mark="  # <- M211"),
    "train only": script(train="optimizer.train()", mark="  # <- M211"),
    "SGD": script(train="optimizer.train()", mark="  # <- M211", cls="SGDScheduleFree"),
    "eval only": script(eval="optimizer.eval()").replace("optimizer.step()", "optimizer.step()  # <- M211"),
    "not put back": script(eval="optimizer.eval()  # <- M211").replace("for epoch", "optimizer.train()\nfor epoch"),
    "saved": """
        from schedulefree import RAdamScheduleFree
        def run(model, loader, criterion):
            opt = RAdamScheduleFree(model.parameters())
            opt.train()
            for x, y in loader:
                criterion(model(x), y).backward()
                opt.step()
                opt.zero_grad()
            torch.save(model.state_dict(), "model.pth")  # <- M211
        """,
    "trainer": """
        import schedulefree
        class Trainer:
            def __init__(self, model: torch.nn.Module):
                self.model = model
                self.optimizer = schedulefree.AdamWScheduleFree(model.parameters())
            def fit(self, loader, held_out):
                self.optimizer.train()
                for epoch in range(3):
                    self.epoch(loader)
                    self.validate(held_out)
            def epoch(self, loader):
                self.model.train()
                for x, y in loader:
                    self.model(x).sum().backward()
                    self.optimizer.step()
            def validate(self, loader):
                self.model.eval()  # <- M211
                for x, y in loader:
                    self.model(x)
        """,
}
SILENT = {
    "both": script(train="optimizer.train()", eval="optimizer.eval()"),
    "another optimizer": script().replace("schedulefree.AdamWScheduleFree", "torch.optim.AdamW"),
    "handed on": """
        import schedulefree
        optimizer = schedulefree.AdamWScheduleFree(model.parameters())
        for x in loader:
            model(x).sum().backward()
            optimizer.step()
        model.eval()
        finish(model, optimizer)
        """,
    "only trains": """
        import schedulefree
        optimizer = schedulefree.AdamWScheduleFree(model.parameters())
        optimizer.train()
        for x in loader:
            model(x).sum().backward()
            optimizer.step()
        """,
    "not used here": """
        import schedulefree
        def make(model):
            return schedulefree.AdamWScheduleFree(model.parameters())
        """,
    "by a callback": """
        import schedulefree
        class Lit(L.LightningModule):
            def configure_optimizers(self):
                return schedulefree.AdamWScheduleFree(self.parameters())
            def on_validation_epoch_start(self):
                self.optimizers().eval()
        """,
    "switched in a method": """
        import schedulefree
        class Trainer:
            def __init__(self, model: torch.nn.Module):
                self.model = model
                self.opt = schedulefree.AdamWScheduleFree(model.parameters())
            def train(self):
                self.model.train()
                self.opt.train()
            def eval(self):
                self.model.eval()
                self.opt.eval()
            def fit(self, loader):
                self.train()
                for x in loader:
                    self.model(x).sum().backward()
                    self.opt.step()
                self.eval()
                self.model(x)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_the_fix_switches_it_with_the_model(fixed):
    text = script().replace("    pass\n", "")
    assert fixed(text, CODE) == text
    after = text.replace("    net.train()", "    net.train()\n    optimizer.train()")
    after = after.replace("    net.eval()", "    net.eval()\n    optimizer.eval()")
    assert fixed(text, CODE, unsafe=True) == after


def test_what_it_says(find):
    (found,) = find(TRUE["neither"], CODE)
    assert found.finding.message == (
        "net goes into eval mode, and optimizer does not: the weights are those it trains at, not their average"
    )
    assert found.finding.evidence == "line 7 makes optimizer\nline 14 steps"
