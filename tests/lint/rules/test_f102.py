"""F102: requires_grad was set on a module, which does nothing."""

from __future__ import annotations

import pytest

from frostline.findings import Severity

CODE = "F102"
NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(1))
        self.stack = nn.ParameterList([self.scale])
"""
TRUE = {
    "a part": f"{NET}\nmodel = Net()\nmodel.backbone.requires_grad = False  # <- F102\n",
    "the whole": f"{NET}\nmodel = Net()\nmodel.requires_grad = False  # <- F102\n",
    "by index": f"{NET}\nmodel = Net()\nmodel.backbone[0].requires_grad = False  # <- F102\n",
    "in a method": f"{NET}    def freeze(self):\n        self.backbone.requires_grad = False  # <- F102\n",
    "on itself": f"{NET}    def freeze(self):\n        self.requires_grad = False  # <- F102\n",
    "torchvision": "model = torchvision.models.resnet18()\nmodel.fc.requires_grad=False  # <- F102\n",
    "setattr": f"{NET}\nmodel = Net()\nsetattr(model.backbone, 'requires_grad', False)  # <- F102\n",
    "a list of parts": f"{NET}\nm = Net()\nfor x in [m.backbone, m.head]:\n    x.requires_grad = False  # <- F102\n",
    "Lightning": """
        import lightning.pytorch as pl
        from transformers import AutoModel
        class Lit(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.encoder = AutoModel.from_pretrained("bert-base-uncased")
                self.encoder.requires_grad = False  # <- F102
        """,
    "by name only": "def freeze(teacher):\n    teacher.requires_grad = False  # <- F102\n",
    "asked for its parameters": """
        def build(thing):
            thing.requires_grad = False  # <- F102
            return torch.optim.SGD(thing.parameters(), lr=0.1)
        """,
    "a trainer's": """
        class Trainer:
            def __init__(self, discriminator):
                self.discriminator = discriminator
            def step(self):
                self.discriminator.requires_grad = False  # <- F102
        """,
}
SILENT = {
    "the method": f"{NET}\nmodel = Net()\nmodel.backbone.requires_grad_(False)\n",
    "a parameter": f"{NET}\nm = Net()\nm.scale.requires_grad = False\nm.head.weight.requires_grad = False\n",
    "a list of parameters": f"{NET}\nmodel = Net()\nmodel.stack[0].requires_grad = False\n",
    "a loop over parameters": f"{NET}\nfor p in Net().parameters():\n    p.requires_grad = False\n",
    "unknown": "model.pos_embed.requires_grad = False\nmodel.logit_scale.requires_grad = False\n",
    "by name": "getattr(model, 'pos_embed').requires_grad = False\n",
    "a tensor": "x = torch.rand(2)\nx.requires_grad = True\n",
    "an option": """
        from torch import nn
        class Perceptual(nn.Module):
            def __init__(self, requires_grad=False):
                super().__init__()
                self.requires_grad = requires_grad
        """,
    "an option that is read": """
        from torch import nn
        class Perceptual(nn.Module):
            def freeze(self):
                self.requires_grad = False
            def forward(self, x):
                return x if self.requires_grad else x.detach()
        net = Perceptual()
        net.requires_grad = True
        """,
    "a property": """
        from torch import nn
        class Net(nn.Module):
            @property
            def requires_grad(self):
                return self._on
        net = Net()
        net.requires_grad = False
        """,
    "children are F105's": "for m in model.children():\n    m.requires_grad = False\n",
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_is_said(find):
    (found,) = find(f"{NET}\nmodel = Net()\nmodel.backbone.requires_grad = False\n", CODE)
    assert found.finding.severity is Severity.ERROR
    assert found.finding.message == (
        "requires_grad was set on model.backbone, a module, which has no such flag: its parameters stay as they were"
    )
    assert found.finding.remedy == "model.backbone.requires_grad_(False)"


@pytest.mark.parametrize("line", ["model.backbone.requires_grad = {}", "setattr(model.backbone, 'requires_grad', {})"])
@pytest.mark.parametrize("value", ["False", "not args.freeze", "(  True )"])
def test_the_fix_calls_the_method(line, value, fixed):
    text = f"{NET}\nmodel = Net()\n{line.format(value)}  # why\n"
    given = "True" if "True" in value else value
    assert fixed(text, CODE) == f"{NET}\nmodel = Net()\nmodel.backbone.requires_grad_({given})  # why\n"


def test_a_guess_is_a_warning_with_an_unsafe_fix(find, fixed):
    text = "def freeze(teacher):\n    teacher.requires_grad = False\n"
    (found,) = find(text, CODE)
    assert (found.finding.severity, found.finding.inferred) == (Severity.WARNING, True)
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == "def freeze(teacher):\n    teacher.requires_grad_(False)\n"


def test_a_usual_part_of_a_library_s_net_is_no_guess(find):
    (found,) = find("model = torchvision.models.resnet18()\nmodel.fc.requires_grad = False\n", CODE)
    assert found.finding.severity is Severity.ERROR


def test_assignments_in_a_row_have_no_fix(find):
    found = find(f"{NET}\nm = Net()\nm.backbone.requires_grad = m.head.requires_grad = False\n", CODE)
    assert [each.fix for each in found] == [None, None]
    assert found[1].finding.remedy == "m.head.requires_grad_(False)"


def test_a_net_of_another_file(check):
    text = "from nets import Net\nmodel = Net()\nmodel.backbone.requires_grad = False  # <- F102\n"
    assert check(text, CODE, {"nets.py": NET})
