"""F105: another framework's way of freezing was used, which means nothing to PyTorch."""

from __future__ import annotations

import pytest

from frostline.findings import Severity

CODE = "F105"
TRUE = {
    "Keras on children": "for layer in model.backbone.children():\n    layer.trainable = False  # <- F105\n",
    "Keras on a part": """
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.features = nn.Linear(2, 2)
                self.features.trainable = False  # <- F105
        """,
    "Keras on parameters": "import torch\nfor p in net.parameters():\n    p.trainable = False  # <- F105\n",
    "Keras on layers": "import torch\nfor layer in bert.encoder.layer[:6]:\n    layer.trainable = False  # <- F105\n",
    "Paddle": "import torch\nfor p in net.parameters():\n    p.stop_gradient = True  # <- F105\n",
    "MXNet": "import torch\nfor p in net.parameters():\n    p.grad_req = 'null'  # <- F105\n",
    "children": "for child in model.children():\n    child.requires_grad = False  # <- F105\n",
    "counted children": """
        import torchvision
        model = torchvision.models.resnet50()
        ct = 0
        for child in model.children():
            ct += 1
            if ct < 7:
                child.requires_grad = False  # <- F105
        """,
    "named modules": """
        import lightning as L
        class Lit(L.LightningModule):
            def on_fit_start(self):
                for name, module in self.backbone.named_modules():
                    if "bn" in name:
                        module.requires_grad = False  # <- F105
        """,
    "a list of layers": """
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.blocks = nn.ModuleList([nn.Linear(2, 2) for _ in range(4)])
            def freeze(self):
                for block in self.blocks:
                    block.requires_grad = False  # <- F105
        """,
    "a trainer's": """
        import torch
        class Trainer:
            def __init__(self, model):
                self.model = model
            def freeze(self):
                self.model.trainable = False  # <- F105
        """,
}
SILENT = {
    "torch": "for layer in model.backbone.children():\n    layer.requires_grad_(False)\n",
    "parameters of children": """
        for child in model.children():
            for p in child.parameters():
                p.requires_grad = False
        """,
    "Keras": "import keras\nmodel = keras.Sequential()\nmodel.trainable = False\n",
    "TensorFlow beside torch": "import torch, tensorflow\nfor layer in net.layers:\n    layer.trainable = False\n",
    "a cell of Keras": "base_model.trainable = False\nfor layer in model.layers:\n    layer.trainable = False\n",
    "an option": """
        from torch import nn
        class Block(nn.Module):
            def __init__(self, trainable=True):
                super().__init__()
                self.trainable = trainable
        """,
    "an option that is read": """
        from torch import nn
        class Block(nn.Module):
            trainable = True
        def freeze(net: nn.Module):
            for m in net.modules():
                m.trainable = False
        def groups(net: nn.Module):
            return [m for m in net.modules() if m.trainable]
        """,
    "weights of layers": """
        for m in model.modules():
            m.weight.requires_grad = False
        """,
    "something else": "import torch\nargs.trainable = False\nconfig.trainable = True\n",
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_is_said(find):
    keras, flag = find(
        "for layer in model.backbone.children():\n    layer.trainable = False\n    layer.requires_grad = False\n", CODE
    )
    assert keras.finding.message == "'trainable' is an idiom of Keras and means nothing to torch: layer is not frozen"
    assert keras.finding.remedy == "layer.requires_grad_(False)"
    assert keras.finding.severity is Severity.ERROR
    assert flag.finding.message == (
        "layer is a module, not a parameter, and has no flag requires_grad: nothing is frozen"
    )
    assert flag.finding.evidence == "the loop goes over modules of model.backbone"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("layer.trainable = False", "layer.requires_grad_(False)"),
        ("layer.trainable = on", "layer.requires_grad_(on)"),
        ("layer.stop_gradient = True", "layer.requires_grad_(False)"),
        ("layer.requires_grad = False", "layer.requires_grad_(False)"),
        ("setattr(layer, 'trainable', False)", "layer.requires_grad_(False)"),
    ],
)
def test_the_fix_is_unsafe(before, after, fixed):
    text = f"for layer in model.children():\n    {before}\n"
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == f"for layer in model.children():\n    {after}\n"


@pytest.mark.parametrize(
    ("made", "sure"),
    [("encoder = torch.nn.Sequential(torch.nn.Linear(2, 2))", True), ("encoder = make()", False)],
)
def test_what_is_only_called_like_a_net_is_a_warning(made, sure, find):
    (found,) = find(f"{made}\nfor w in encoder:\n    w.requires_grad = False\n", CODE)
    assert (found.finding.severity is Severity.ERROR, found.finding.inferred) == (sure, not sure)
