"""F103: the method requires_grad_ was overwritten, or the flag was compared instead of set."""

from __future__ import annotations

import json

import pytest

from frostline.findings import Severity
from frostline.lint.engine import lint
from frostline.lint.source import source_from_bytes

CODE = "F103"
TRUE = {
    "overwritten": "for p in model.backbone.parameters():\n    p.requires_grad_ = False  # <- F103\n",
    "on a module": "net = torch.nn.Linear(2, 2)\nnet.requires_grad_ = False  # <- F103\n",
    "on something": "layer.requires_grad_ = False  # <- F103\n",
    "by a comparison": """
        for name, p in model.named_parameters():
            p.requires_grad_ = name == "head"  # <- F103
        """,
    "setattr": "for p in model.parameters():\n    setattr(p, 'requires_grad_', False)  # <- F103\n",
    "compared": """
        class Trainer:
            def freeze(self):
                for p in self.net.backbone.parameters():
                    p.requires_grad == False  # <- F103
        """,
    "compared by identity": "for p in model.parameters():\n    p.requires_grad is False  # <- F103\n",
    "compared on a part": """
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(2, 2)
                self.fc.weight.requires_grad == True  # <- F103
        """,
    "annotated": "for p in model.parameters():\n    p.requires_grad: False  # <- F103\n",
    "Lightning": """
        import lightning as L
        class Lit(L.LightningModule):
            def on_fit_start(self):
                for p in self.encoder.parameters():
                    p.requires_grad_ = False  # <- F103
        """,
}
SILENT = {
    "set": "for p in model.parameters():\n    p.requires_grad = False\n",
    "called": "for p in model.parameters():\n    p.requires_grad_(False)\n",
    "compared and used": "frozen = [p for p in model.parameters() if p.requires_grad == False]\n",
    "asserted": "for p in model.parameters():\n    assert p.requires_grad == False\n",
    "a condition": "if p.requires_grad == False:\n    print(p)\n",
    "a function": "import types\nmodel.requires_grad_ = types.MethodType(freeze, model)\n",
    "a function by name": "def off(self):\n    pass\nfor p in net.parameters():\n    p.requires_grad_ = off\n",
    "a class's annotation": "class Options:\n    requires_grad: bool\n    lr: float\n",
    "another comparison": "p.requires_grad == other.requires_grad\n",
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_is_said(find):
    overwritten, compared = find(
        "for p in model.parameters():\n    p.requires_grad_ = False\n    p.requires_grad == False\n", CODE
    )
    assert overwritten.finding.message == "the method requires_grad_ of p is overwritten, not called: no flag is set"
    assert overwritten.finding.remedy == "p.requires_grad_(False)"
    assert compared.finding.message == (
        "requires_grad of p is compared, not set: p.requires_grad == False does nothing"
    )
    assert compared.finding.severity is Severity.ERROR


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("p.requires_grad_ = False", "p.requires_grad_(False)"),
        ("setattr(p, 'requires_grad_', False)", "p.requires_grad_(False)"),
        ("p.requires_grad == False", "p.requires_grad = False"),
        ("p.requires_grad is True", "p.requires_grad = True"),
        ("p.requires_grad_ == False", "p.requires_grad_(False)"),
        ("p.requires_grad_ = q.requires_grad_ = False", "p.requires_grad = q.requires_grad = False"),
    ],
)
def test_the_fix(before, after, fixed):
    text = f"for p, q in zip(model.parameters(), net.parameters()):\n    {before}  # why\n"
    assert fixed(text, CODE) == f"for p, q in zip(model.parameters(), net.parameters()):\n    {after}  # why\n"


def test_an_annotation_is_mended_when_asked_for(fixed):
    text = "for p in model.parameters():\n    p.requires_grad: False\n"
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == "for p in model.parameters():\n    p.requires_grad = False\n"


def test_a_module_is_called(fixed):
    text = "net = torch.nn.Linear(2, 2)\nnet.requires_grad == False\n"
    assert fixed(text, CODE) == "net = torch.nn.Linear(2, 2)\nnet.requires_grad_(False)\n"


def test_on_something_unknown_it_is_unsafe(find, fixed):
    text = "layer.requires_grad_ = False\n"
    (found,) = find(text, CODE)
    assert (found.finding.severity, found.finding.inferred) == (Severity.WARNING, True)
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == "layer.requires_grad_(False)\n"


@pytest.mark.parametrize(
    ("lines", "count"), [(["w.requires_grad == False"], 0), (["w.requires_grad == False\n", "w"], 1)]
)
def test_the_last_line_of_a_notebook_s_cell_is_shown(lines, count):
    cells = [{"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": lines}]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    source = source_from_bytes(json.dumps(notebook).encode(), "train.ipynb")
    found, _ = lint(source)
    assert [each.finding.code for each in found] == [CODE] * count
