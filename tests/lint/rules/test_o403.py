"""O403: frozen parameters are kept in the optimizer."""

from __future__ import annotations

import pytest

CODE = "O403"
START = """
import torch
from torch import nn, optim
from torchvision.models import resnet18
model = resnet18(weights="DEFAULT")
"""
FREEZE = "for p in model.layer1.parameters():\n    p.requires_grad = False\n"
FREEZE_ALL = "for p in model.parameters():\n    p.requires_grad = False\nmodel.fc = nn.Linear(512, 10)\n"
ALL = "optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)"
FILTER = "optimizer = optim.SGD(filter(lambda p: p.requires_grad, model.parameters()), lr=0.1)"
LOOP = """
for x, y in loader:
    optimizer.zero_grad()
    criterion(model(x), y).backward()
    optimizer.step()
"""
TRUE = {
    "frozen before": START + FREEZE + ALL + "  # <- O403\n" + LOOP,
    "by method": START + "model.layer1.requires_grad_(False)\n" + ALL + "  # <- O403\n" + LOOP,
    "all but the new head": START + FREEZE_ALL + ALL + "  # <- O403\n" + LOOP,
    "by name": START
    + "for n, p in model.named_parameters():\n    if 'fc' not in n:\n        p.requires_grad = False\n"
    + ALL
    + "  # <- O403\n"
    + LOOP,
    "the filter comes first": START + FILTER + "  # <- O403\n" + FREEZE + LOOP,
    "the filter comes first, by method": START
    + FILTER
    + "  # <- O403\nmodel.layer1.requires_grad_(False)\ntrain(model, optimizer)\n",
    "frozen behind it": START + ALL + "  # <- O403\n" + FREEZE + LOOP,
    "lightning": """
        import lightning as L
        import torch
        from torch import nn
        class Net(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.backbone = nn.Linear(4, 4)
                self.head = nn.Linear(4, 2)
                self.backbone.requires_grad_(False)
            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters(), lr=1e-3)  # <- O403
        """,
    "trainer": """
        import torch
        class Trainer:
            def __init__(self, model):
                self.model = model
                for p in self.model.encoder.parameters():
                    p.requires_grad = False
                self.optimizer = torch.optim.AdamW(self.model.parameters())  # <- O403
        """,
}
SILENT = {
    "filter behind it": START + FREEZE + FILTER + LOOP,
    "list behind it": START
    + FREEZE
    + "optimizer = optim.SGD([p for p in model.parameters() if p.requires_grad])\n"
    + LOOP,
    "the head alone": START + FREEZE_ALL + "optimizer = optim.SGD(model.fc.parameters(), lr=0.1)\n" + LOOP,
    "nothing frozen": START + ALL + LOOP,
    "another model": START + "teacher.requires_grad_(False)\n" + ALL + LOOP,
    "thawed later": START
    + FREEZE
    + ALL
    + "\nfor epoch in range(3):\n    if epoch == 1:\n        model.layer1.requires_grad_(True)\n"
    + "    train(model, optimizer)\n",
    "all of it": START + "model.requires_grad_(False)\n" + ALL + LOOP,
    "a function that thaws": "def unfreeze(m):\n    for p in m.parameters():\n        p.requires_grad = True\n"
    + START
    + FREEZE
    + ALL
    + LOOP,
    "zeros are another rule's": START
    + FREEZE
    + ALL
    + "\nfor x, y in loader:\n    optimizer.zero_grad(set_to_none=False)\n"
    + "    model(x).sum().backward()\n    optimizer.step()\n",
    "other branch": START + "if args.probe:\n    model.layer1.requires_grad_(False)\nelse:\n    " + ALL + "\n",
    "turns": """
        opt_d = torch.optim.Adam(critic.parameters())
        for x in loader:
            critic.requires_grad_(True)
            critic(x).mean().backward()
            opt_d.step()
            critic.requires_grad_(False)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


@pytest.mark.parametrize(
    ("text", "severity", "message"),
    [
        (TRUE["frozen before"], "info", "optimizer is given the frozen parameters of model.layer1 as well"),
        (
            TRUE["the filter comes first"],
            "warning",
            "what optimizer is given is filtered before model.layer1 is frozen, and leaves nothing out",
        ),
        (TRUE["frozen behind it"], "info", "model.layer1 is frozen behind optimizer, which keeps its parameters"),
        (
            START
            + ALL
            + "\nfor x in loader:\n    model(x).sum().backward()\n    optimizer.step()\n"
            + FREEZE
            + "train(model)\n",
            "warning",
            "model.layer1 is frozen behind optimizer, which keeps its parameters",
        ),
    ],
)
def test_how_bad_it_is(text, severity, message, find):
    (found,) = find(text, CODE)
    assert (found.finding.severity.value, found.finding.message) == (severity, message)


def test_the_fix_filters(fixed):
    text = START + FREEZE + ALL + "\n" + LOOP
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == text.replace(
        "SGD(model.parameters()", "SGD((p for p in model.parameters() if p.requires_grad)"
    )


def test_where_the_filter_came_first_a_person_has_to_move_it(find):
    (found,) = find(TRUE["the filter comes first"], CODE)
    assert found.fix is None
    assert found.finding.remedy == (
        "[p for p in model.parameters() if p.requires_grad], behind the line that freezes model.layer1"
    )
