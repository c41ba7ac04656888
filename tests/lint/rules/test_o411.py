"""O411: clipping counts gradients that no optimizer uses."""

from __future__ import annotations

import pytest

CODE = "O411"
NET = """
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.neck = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)
        self.drop = nn.Dropout(0.1)
    def forward(self, x):
        return self.drop(self.head(self.neck(self.trunk(x))))
model = Net()
"""
LOOP = """
for x, y in loader:
    optimizer.zero_grad()
    criterion(model(x), y).backward()
    {clip}
    optimizer.step()
"""
CLIP = LOOP.format(clip="clip_grad_norm_(model.parameters(), 1.0)")
MARKED = LOOP.format(clip="clip_grad_norm_(model.parameters(), 1.0)  # <- O411")
HEAD = "optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)\n"
UNKNOWN = "import torch\nfrom torch.nn.utils import clip_grad_norm_\n"
TRUE = {
    "the head alone": NET + HEAD + MARKED,
    "two of three": NET
    + "optimizer = torch.optim.SGD([*model.head.parameters(), *model.neck.parameters()], lr=0.1)\n"
    + MARKED,
    "groups": NET
    + "optimizer = torch.optim.SGD([{'params': model.trunk.parameters()}, {'params': model.head.parameters()}])\n"
    + MARKED,
    "a class that is not known": UNKNOWN + HEAD + MARKED,
    "values": NET
    + HEAD
    + LOOP.format(clip="torch.nn.utils.clip_grad_value_(model.parameters(), clip_value=0.5)  # <- O411"),
    "function": UNKNOWN
    + """
def train(net, loader):
    opt = torch.optim.Adam(net.classifier.parameters())
    for x in loader:
        opt.zero_grad()
        net(x).sum().backward()
        clip_grad_norm_(net.parameters(), 1.0)  # <- O411
        opt.step()
""",
    "trainer": """
        import torch
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.optimizer = torch.optim.Adam(self.model.head.parameters())
            def step(self, x):
                self.optimizer.zero_grad()
                self.model(x).sum().backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)  # <- O411
                self.optimizer.step()
        """,
}
SILENT = {
    "what the optimizer has": NET + HEAD + LOOP.format(clip="clip_grad_norm_(model.head.parameters(), 1.0)"),
    "all": NET + "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n" + CLIP,
    "all, in parts": NET
    + "optimizer = torch.optim.SGD([{'params': m.parameters()} for m in (model.trunk, model.neck, model.head)])\n"
    + CLIP,
    "frozen": NET + "model.trunk.requires_grad_(False)\nmodel.neck.requires_grad_(False)\n" + HEAD + CLIP,
    "frozen by name": NET + "for n, p in model.named_parameters():\n    p.requires_grad = 'head' in n\n" + HEAD + CLIP,
    "frozen by somebody": NET + "freeze_trunk(model)\n" + HEAD + CLIP,
    "what is trainable": NET
    + "optimizer = torch.optim.SGD(filter(lambda p: p.requires_grad, model.parameters()))\n"
    + CLIP,
    "only measured": NET + HEAD + LOOP.format(clip="norm = clip_grad_norm_(model.parameters(), float('inf'))"),
    "two optimizers": NET
    + HEAD
    + "other = torch.optim.SGD(model.trunk.parameters())\nthird = torch.optim.SGD(model.neck.parameters())\n"
    + CLIP,
    "parts of a class that is not known": UNKNOWN
    + "optimizer = torch.optim.SGD([{'params': model.body.parameters()}, {'params': model.head.parameters()}])\n"
    + CLIP,
    "the other optimizer is made elsewhere": UNKNOWN
    + "def train(model, body_optimizer, x):\n    optimizer = torch.optim.SGD(model.head.parameters())\n"
    + "    model(x).sum().backward()\n"
    + "    clip_grad_norm_(model.parameters(), 1.0)\n    body_optimizer.step()\n    optimizer.step()\n",
    "weight decay groups": NET
    + "decay = [p for n, p in model.named_parameters() if 'bias' not in n]\n"
    + "rest = [p for n, p in model.named_parameters() if 'bias' in n]\n"
    + "optimizer = torch.optim.SGD([{'params': decay}, {'params': rest}])\n"
    + CLIP,
    "another model": NET + "optimizer = torch.optim.SGD(other.head.parameters())\n" + CLIP,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_is_said(find):
    (found,) = find(TRUE["the head alone"], CODE)
    assert found.finding.message == "clipping counts the gradients of model.trunk, model.neck, which no optimizer has"
    assert found.finding.evidence.splitlines() == [
        "line 15 makes optimizer from model.head",
        "optimizer.zero_grad() does not clear them: they pile up, and clipping gets harder from step to step",
    ]
    assert not found.finding.inferred
    (guessed,) = find(TRUE["a class that is not known"], CODE)
    assert guessed.finding.inferred


def test_the_fix_clips_the_part(fixed):
    text = NET + HEAD + CLIP
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == text.replace("(model.parameters(), 1.0)", "(model.head.parameters(), 1.0)")
