"""O412: trainable parameters are in no optimizer."""

from __future__ import annotations

import pytest

CODE = "O412"
NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 3)
    def forward(self, x):
        return self.fc(self.pool(self.layer2(self.layer1(self.conv1(x)))).flatten(1))
model = Net()
"""
TRAIN = "\ntrain(model, optimizer, loader)\n"
GROUPS = "optimizer = torch.optim.SGD([{{'params': {trunk}}}, {{'params': {head}, 'lr': 0.1}}], lr=0.01)"
BY_NAME = "[p for n, p in model.named_parameters() if {test}]"


def groups(trunk: str, head: str = "model.fc.parameters()", mark: bool = True) -> str:
    return GROUPS.format(trunk=trunk, head=head) + ("  # <- O412" if mark else "") + TRAIN


TRUE = {
    "parts": NET + groups("[*model.layer1.parameters(), *model.layer2.parameters()]"),
    "a filter by name": NET + groups(BY_NAME.format(test="n.startswith('layer')")),
    "two filters": NET + groups(BY_NAME.format(test="'layer' in n"), BY_NAME.format(test="'fc' in n")),
    "any of several": NET + groups(BY_NAME.format(test="any(k in n for k in ('layer1', 'layer2'))")),
    "a loop": NET
    + "trunk, head = [], []\nfor name, p in model.named_parameters():\n    if name.startswith('layer'):\n"
    + "        trunk.append(p)\n    elif 'fc' in name:\n        head.append(p)\n"
    + groups("trunk", "head"),
    "two optimizers": NET
    + "one = torch.optim.SGD(model.fc.parameters(), lr=0.1)  # <- O412\n"
    + "two = torch.optim.SGD([p for m in (model.layer1, model.layer2) for p in m.parameters()], lr=0.1)\n",
    "lightning": """
        import lightning as L
        import torch
        from torch import nn
        class Net(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.encoder = nn.Linear(4, 4)
                self.pooler = nn.Linear(4, 4)
                self.decoder = nn.Linear(4, 4)
                self.loss = nn.MSELoss()
            def training_step(self, batch, index):
                return self.loss(self.decoder(self.pooler(self.encoder(batch))), batch)
            def configure_optimizers(self):
                params = list(self.encoder.parameters()) + list(self.decoder.parameters())
                return torch.optim.Adam(params, lr=1e-3)  # <- O412
        """,
    "resnet": """
        import torch
        import torchvision
        model = torchvision.models.resnet50(weights="DEFAULT")
        optimizer = torch.optim.SGD(  # <- O412
            [{"params": [p for n, p in model.named_parameters() if "layer" in n]}, {"params": model.fc.parameters()}],
            lr=0.1,
        )
        """,
    "given twice": NET + groups(BY_NAME.format(test="'fc' not in n"), BY_NAME.format(test="'layer' not in n")),
    "a class that is not known": """
        import torch
        trunk = [p for n, p in net.named_parameters() if "backbone" in n]
        head = [p for n, p in net.named_parameters() if "head" in n]
        optimizer = torch.optim.AdamW([{"params": trunk, "lr": 1e-5}, {"params": head}], lr=1e-3)  # <- O412
        """,
}
SILENT = {
    "twin": NET + groups(BY_NAME.format(test="not n.startswith('fc.')"), mark=False),
    "the opposite": NET + groups(BY_NAME.format(test="'fc' not in n"), BY_NAME.format(test="'fc' in n"), mark=False),
    "all parts": NET
    + groups("[*model.conv1.parameters(), *model.layer1.parameters(), *model.layer2.parameters()]", mark=False),
    "all": NET + "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n",
    "one part": NET + "optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)\n",
    "one filter": NET + "optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if 'fc' in n], lr=0.1)\n",
    "frozen": NET + "model.conv1.requires_grad_(False)\n" + groups(BY_NAME.format(test="'layer' in n"), mark=False),
    "by identity": NET
    + "ids = [id(p) for p in model.fc.parameters()]\n"
    + groups("filter(lambda p: id(p) not in ids, model.parameters())", mark=False),
    "added later": NET
    + groups("[*model.layer1.parameters(), *model.layer2.parameters()]", mark=False).replace(
        TRAIN, "\noptimizer.add_param_group({'params': model.conv1.parameters()})" + TRAIN
    ),
    "another optimizer": NET
    + groups("[*model.layer1.parameters(), *model.layer2.parameters()]", mark=False)
    + "other = torch.optim.Adam(model.conv1.parameters())\n",
    "weight decay": """
        decay = [p for n, p in net.named_parameters() if "bias" not in n and "norm" not in n]
        plain = [p for n, p in net.named_parameters() if "bias" in n or "norm" in n]
        optimizer = torch.optim.AdamW([{"params": decay}, {"params": plain, "weight_decay": 0}], lr=1e-3)
        """,
    "weight decay in a loop": """
        decay, plain = [], []
        for name, p in net.named_parameters():
            if not p.requires_grad:
                continue
            if p.ndim <= 1 or name.endswith(".bias"):
                plain.append(p)
            else:
                decay.append(p)
        optimizer = torch.optim.AdamW([{"params": decay}, {"params": plain, "weight_decay": 0}], lr=1e-3)
        """,
    "weights and biases": """
        weights = [p for n, p in net.named_parameters() if "weight" in n]
        biases = [p for n, p in net.named_parameters() if "bias" in n]
        optimizer = torch.optim.SGD([{"params": weights}, {"params": biases, "lr": 0.2}], lr=0.1)
        """,
    "a teacher": """
        import torch
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.student = nn.Linear(4, 4)
                self.head = nn.Linear(4, 4)
                self.teacher = nn.Linear(4, 4)
            def forward(self, x):
                return self.head(self.student(x)), self.teacher(x)
        net = Net()
        optimizer = torch.optim.Adam([*net.student.parameters(), *net.head.parameters()])
        """,
    "not known": """
        import torch
        net = build()
        optimizer = torch.optim.Adam([{"params": net.body.parameters()}, {"params": net.head.parameters()}])
        """,
    "some that nobody knows": NET
    + "optimizer = torch.optim.SGD([{'params': model.layer1.parameters()}, {'params': others(model)}], lr=0.1)\n",
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("parts", "warning", "model.conv1 is in no group of optimizer and in no other optimizer"),
        ("resnet", "warning", "model.conv1, model.bn1 are in no group of optimizer and in no other optimizer"),
        (
            "given twice",
            "warning",
            "model.conv1 is given to optimizer twice: 'fc' not in name and 'layer' not in name are both true of it",
        ),
        (
            "a class that is not known",
            "info",
            "a parameter of net with neither 'backbone' nor 'head' in its name is in no group of optimizer",
        ),
    ],
)
def test_what_is_said(name, severity, message, find):
    (found,) = find(TRUE[name], CODE)
    assert (found.finding.severity.value, found.finding.message) == (severity, message)
    assert found.finding.inferred
    assert found.fix is None


def test_the_class_and_the_groups_may_be_in_other_files(check):
    files = {
        "nets.py": NET.rpartition("model = ")[0],
        "groups.py": """
def groups(net):
    return [{"params": net.layer1.parameters()}, {"params": net.fc.parameters()}]
""",
    }
    text = """
        import torch
        from groups import groups
        from nets import Net
        model = Net()
        optimizer = torch.optim.SGD(groups(model), lr=0.1)  # <- O412
        """
    (found,) = check(text, CODE, files)
    assert found.finding.message == "model.conv1, model.layer2 are in no group of optimizer and in no other optimizer"
