"""F119: frozen values were written by hand."""

from __future__ import annotations

import pytest

CODE = "F119"
LOOP = """
import torch
{freeze}
for x, y in loader:
    optimizer.zero_grad()
    criterion(model(x), y).backward()
    optimizer.step()
    {write}
"""
CLIP = "for p in model.parameters():\n        p.data.clamp_(-0.01, 0.01)"
TRUE = {
    "clipping": LOOP.format(freeze="model.trunk.requires_grad_(False)", write=CLIP + "  # <- F119"),
    "hold": LOOP.format(freeze="import frostline as fl\nfl.freeze(model, 'trunk')", write=CLIP + "  # <- F119"),
    "freeze loop": LOOP.format(
        freeze="for p in model.encoder.parameters():\n    p.requires_grad = False", write=CLIP + "  # <- F119"
    ),
    "one weight": LOOP.format(
        freeze="model.fc.requires_grad_(False)", write="model.fc.weight.data.mul_(0.99)  # <- F119"
    ),
    "decay by hand": LOOP.format(
        freeze="model.trunk.requires_grad_(False)",
        write="with torch.no_grad():\n        for p in model.parameters():\n            p.mul_(0.99)  # <- F119",
    ),
    "function": """
        import torch
        def clip(net):
            for p in net.parameters():
                p.data.clamp_(-1, 1)  # <- F119
        def train(critic, loader, optimizer):
            critic.features.requires_grad_(False)
            for x in loader:
                critic(x).mean().backward()
                optimizer.step()
                clip(critic)
        """,
    "class": """
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.model.trunk.requires_grad_(False)
            def fit(self):
                for x in self.loader:
                    self.model(x).mean().backward()
                    self.optimizer.step()
                    for p in self.model.trunk.parameters():
                        p.data.add_(0.1)  # <- F119
        """,
}
SILENT = {
    "twin": LOOP.format(
        freeze="model.trunk.requires_grad_(False)",
        write="for p in model.parameters():\n        if p.requires_grad:\n            p.data.clamp_(-1, 1)",
    ),
    "another part": LOOP.format(
        freeze="model.trunk.requires_grad_(False)",
        write="for p in model.head.parameters():\n        p.data.clamp_(-1, 1)",
    ),
    "teacher that follows": LOOP.format(
        freeze="teacher.requires_grad_(False)",
        write="for t, s in zip(teacher.parameters(), model.parameters()):\n        t.data.mul_(0.9).add_(0.1 * s.data)",
    ),
    "copy of another": LOOP.format(
        freeze="copy_model.requires_grad_(False)",
        write="for a, b in zip(copy_model.parameters(), model.parameters()):\n        a.data.copy_(b.data)",
    ),
    "initialised before training": LOOP.format(
        freeze="model.trunk.requires_grad_(False)\nfor p in model.trunk.parameters():\n    p.data.normal_()",
        write="pass",
    ),
    "thawed in between": LOOP.format(
        freeze="model.trunk.requires_grad_(False)\nmodel.requires_grad_(True)",
        write=CLIP,
    ),
    "nothing frozen": LOOP.format(freeze="", write=CLIP),
    "codebook": """
        class VQ(nn.Module):
            def __init__(self):
                self.embedding = nn.Embedding(10, 4)
                self.embedding.weight.requires_grad = False
            def forward(self, x):
                self.embedding.weight.data.mul_(0.9)
                return x
        """,
    "picked by name": LOOP.format(
        freeze="model.trunk.requires_grad_(False)",
        write="for name, p in model.named_parameters():\n        if 'head' in name:\n            p.data.clamp_(-1, 1)",
    ),
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_it_says_what_is_frozen_and_where(check):
    (found,) = check(TRUE["clipping"], CODE)
    assert found.finding.message == "model.trunk is frozen, and this line writes into it: it goes over all of model"
    assert found.finding.evidence == (
        "line 3 freezes model.trunk\n"
        "p.data.clamp_(-0.01, 0.01) runs in the training loop: neither the flag nor the optimizer stops it"
    )
    assert (found.finding.severity.value, found.fix) == ("error", None)
