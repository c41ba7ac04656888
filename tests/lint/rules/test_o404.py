"""O404: loading replaced the parameters that the optimizer holds."""

from __future__ import annotations

import pytest

CODE = "O404"
SCRIPT = """
import torch
from torch import nn, optim
model = nn.Linear(4, 2)
{first}
{then}
for x, y in loader:
    optimizer.zero_grad()
    criterion(model(x), y).backward()
    optimizer.step()
"""
SGD = "optimizer = optim.SGD(model.parameters(), lr=0.1)"
LOAD = "model.load_state_dict(torch.load('a.pt'), assign=True)"
TRUE = {
    "script": SCRIPT.format(first=SGD, then=LOAD + "  # <- O404"),
    "used": SCRIPT.format(first=SGD, then="missing = " + LOAD + "  # <- O404"),
    "a part": SCRIPT.format(first=SGD, then="model.trunk.load_state_dict(state, assign=True)  # <- O404"),
    "to_empty": SCRIPT.format(first=SGD, then="model.to_empty(device='cuda')  # <- O404"),
    "to_empty, named anew": SCRIPT.format(first=SGD, then="model = model.to_empty(device='cuda')  # <- O404"),
    "filter": SCRIPT.format(
        first="optimizer = optim.Adam(p for p in model.parameters() if p.requires_grad)", then=LOAD + "  # <- O404"
    ),
    "resume": """
        import torch
        def main(args):
            model = make(args)
            optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
            if args.resume:
                checkpoint = torch.load(args.resume)
                model.load_state_dict(checkpoint["model"], strict=True, assign=True)  # <- O404
                optimizer.load_state_dict(checkpoint["optimizer"])
            for epoch in range(args.epochs):
                train_one_epoch(model, optimizer)
        """,
    "class": """
        import torch
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.optimizer = torch.optim.Adam(self.model.parameters())
            def resume(self, path):
                self.model.load_state_dict(torch.load(path), assign=True)  # <- O404
        """,
}
SILENT = {
    "twin": SCRIPT.format(first=LOAD, then=SGD),
    "without assign": SCRIPT.format(first=SGD, then="model.load_state_dict(state)"),
    "assign=False": SCRIPT.format(first=SGD, then="model.load_state_dict(state, assign=False)"),
    "another model": SCRIPT.format(first=SGD, then="teacher.load_state_dict(state, assign=True)"),
    "made anew": SCRIPT.format(first=SGD + "\n" + LOAD, then=SGD),
    "cuda": SCRIPT.format(first=SGD, then="model.cuda()"),
    "the best one, behind training": SCRIPT.format(first=SGD, then="") + LOAD + "\nevaluate(model)\n",
    "no optimizer": "model.load_state_dict(state, assign=True)\nmodel.eval()\n",
    "other branch": "if args.eval:\n    " + LOAD + "\nelse:\n    " + SGD + "\n    train(model, optimizer)\n",
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_is_said(find):
    (found,) = find(TRUE["resume"], CODE)
    assert found.finding.message == (
        "load_state_dict(assign=True) puts new parameters into model: optimizer, which was made before, "
        "steps on the old ones"
    )
    assert found.finding.evidence == "line 5 makes optimizer from model"
    assert found.finding.severity.value == "error"


def test_the_fix_takes_assign_out(fixed):
    text = SCRIPT.format(first=SGD, then=LOAD)
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == text.replace(", assign=True", "")
    text = SCRIPT.format(first=SGD, then="model.load_state_dict(state, assign=True, strict=False)")
    assert fixed(text, CODE, unsafe=True) == text.replace(" assign=True,", "")
