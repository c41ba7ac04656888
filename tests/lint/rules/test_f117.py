"""F117: a trainable part runs without gradients and never learns."""

from __future__ import annotations

import pytest

CODE = "F117"
SCRIPT = """
import torch
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in loader:
    with torch.no_grad():
        features = model.backbone(x)
    loss = criterion(model.head(features), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
CLASS = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)
    def forward(self, x):
        {forward}
        return self.head(features)
def main(loader):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in loader:
        criterion(model(x), y).backward()
        optimizer.step()
"""
TRUE = {
    "script": SCRIPT.replace("torch.no_grad():", "torch.no_grad():  # <- F117"),
    "given by name": SCRIPT.replace("model.parameters()", "[*model.head.parameters(), *model.backbone.parameters()]")
    .replace("[*", "list(")
    .replace(", *model", ") + list(model")
    .replace("()], lr", "()), lr")
    .replace("torch.no_grad():", "torch.no_grad():  # <- F117"),
    "class": CLASS.format(
        forward="with torch.no_grad():  # <- F117\n            features = self.backbone(x)",
    ),
    "detached": CLASS.format(forward="features = self.backbone(x).detach()  # <- F117"),
    "detached in the next line": CLASS.format(
        forward="features = self.backbone(x)  # <- F117\n        features = features.detach()"
    ),
    "lightning": """
        import lightning as L, torch
        from torch import nn
        class Lit(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.encoder = nn.Linear(4, 8)
                self.head = nn.Linear(8, 3)
            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters())
            def training_step(self, batch, index):
                x, y = batch
                with torch.no_grad():  # <- F117
                    z = self.encoder(x)
                return nn.functional.cross_entropy(self.head(z), y)
        """,
    "trainer": """
        import torch
        class Trainer:
            def __init__(self, net, head):
                self.head = head
                self.encoder = torch.nn.Linear(4, 8)
                groups = [{"params": self.encoder.parameters()}, {"params": self.head.parameters()}]
                self.optimizer = torch.optim.Adam(groups)
            def fit(self):
                for x, y in self.loader:
                    with torch.inference_mode():  # <- F117
                        z = self.encoder(x)
                    criterion(self.head(z), y).backward()
                    self.optimizer.step()
        """,
}
SILENT = {
    "twin": SCRIPT.replace("with torch.no_grad():", "if True:"),
    "frozen": SCRIPT.replace("optimizer = ", "model.backbone.requires_grad_(False)\noptimizer = "),
    "not in the optimizer": SCRIPT.replace("model.parameters()", "model.head.parameters()"),
    "filtered": SCRIPT.replace("model.parameters()", "[p for p in model.parameters() if p.requires_grad]"),
    "teacher": SCRIPT.replace("backbone", "teacher"),
    "trains elsewhere in the loop": SCRIPT.replace(
        "optimizer.zero", "aux(model.backbone(x)).backward()\n    optimizer.zero"
    ),
    "validation": """
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in loader:
            criterion(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            for x, y in val_loader:
                features = model.backbone(x)
                out = model.head(features)
        """,
    "class that freezes": CLASS.format(
        forward="with torch.no_grad():\n            features = self.backbone(x)",
    ).replace("        self.head =", "        self.backbone.requires_grad_(False)\n        self.head ="),
    "class, frozen from outside": CLASS.format(
        forward="with torch.no_grad():\n            features = self.backbone(x)",
    ).replace("    optimizer =", "    model.backbone.requires_grad_(False)\n    optimizer ="),
    "class, only sometimes": CLASS.format(
        forward="if self.fixed:\n            with torch.no_grad():\n                features = self.backbone(x)\n"
        "        else:\n            features = self.backbone(x)",
    ),
    "class, head only": CLASS.format(
        forward="with torch.no_grad():\n            features = self.backbone(x)",
    ).replace("model.parameters()", "model.head.parameters()"),
    "both ways": CLASS.format(
        forward="features = self.backbone(x)\n        aside = self.probe(features.detach())",
    ),
    "its weights are used": CLASS.format(
        forward="with torch.no_grad():\n            features = self.backbone(x)\n        cost(self.backbone.weight)",
    ),
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_it_says_who_has_it_and_who_cuts_it_off(check):
    (found,) = check(TRUE["script"], CODE)
    assert found.finding.message == (
        "model.backbone looks as if it trained, and cannot: it only runs with gradients switched off"
    )
    assert found.finding.evidence == (
        "line 3 gives its parameters to optimizer\nnothing freezes it, and no other pass lets a gradient in"
    )
    assert (found.finding.severity.value, found.finding.inferred, found.fix) == ("warning", True, None)


def test_given_to_the_optimizer_by_name_it_is_an_error(check):
    (found,) = check(TRUE["given by name"], CODE)
    assert (found.finding.severity.value, found.finding.inferred) == ("error", False)
