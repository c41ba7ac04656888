"""Which parts of a model have parameters of their own."""

from __future__ import annotations

import pytest

from frostline.lint.model_parts import has_parameters, names_of, parts_of
from frostline.lint.values import Value

NET = """
import torch
import torchvision
from torch import nn
from nowhere import Layer
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
    def forward(self, x):
        return self.conv(x)
class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(2, 2)
    def embed(self, x):
        return self.stem(x)
class Net(Base):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.body = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
        self.act = nn.Sequential(nn.ReLU(), nn.Dropout())
        self.layer = Layer()
        self.scale = nn.Parameter(torch.ones(1))
        self.unused = nn.Linear(2, 2)
        self.loss = nn.CrossEntropyLoss()
        self.net = torchvision.models.resnet18()
    def forward(self, x):
        return self.scale * self.net(self.layer(self.act(self.body(self.block(self.embed(x))))))
class Open(Layer):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
    def forward(self, x):
        return self.fc(x)
"""


def test_parts_of_a_class_with_those_it_inherits(view):
    parts = parts_of(Value("module", "train.Net"), view(NET).walk)
    assert parts is not None
    assert sorted(parts) == ["block", "body", "net", "scale", "stem"]


def test_a_class_with_a_base_that_nobody_knows_may_have_more(view):
    assert parts_of(Value("module", "train.Open"), view(NET).walk) is None


@pytest.mark.parametrize(
    ("maker", "parts"),
    [
        ("torchvision.models.resnet18", ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]),
        ("torchvision.models.vgg16", ["features", "classifier"]),
        ("torchvision.models.nobody_knows", None),
        ("timm.create_model:resnet18", None),
    ],
)
def test_parts_of_well_known_nets(maker, parts, view):
    found = parts_of(Value("module", maker=maker), view("").walk)
    assert (list(found) if found is not None else None) == parts


@pytest.mark.parametrize(
    ("cls", "wanted"),
    [
        ("torch.nn.Linear", True),
        ("torch.nn.BatchNorm2d", True),
        ("torch.nn.MultiheadAttention", True),
        ("torch.nn.ReLU", False),
        ("torch.nn.Identity", False),
        ("torch.nn.AdaptiveAvgPool2d", False),
        ("torch.nn.CrossEntropyLoss", False),
        ("torch.nn.Module", None),
        ("torch.nn.ModuleList", None),
        ("train.Net", True),
        ("somewhere.Layer", None),
    ],
)
def test_whether_a_module_has_parameters(cls, wanted, view):
    assert has_parameters(Value("module", cls), view(NET).walk) is wanted


def test_names(view):
    walk = view(NET).walk
    parts = parts_of(Value("module", "train.Net"), walk)
    assert parts is not None
    assert names_of("body", parts["body"], walk) == ("body.1.weight", "body.1.bias")
    assert names_of("block", parts["block"], walk) == ("block.conv.weight", "block.conv.bias")
    assert names_of("scale", parts["scale"], walk) == ("scale",)
    assert names_of("net", parts["net"], walk)[0] == "net.conv1.weight"
