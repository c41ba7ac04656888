"""Which layers a module has that run differently in train mode."""

from __future__ import annotations

import textwrap

import pytest

from frostline.lint.engine import open_walk
from frostline.lint.file_view import FileView
from frostline.lint.layers import LayerBook, Layers
from frostline.lint.project import Project
from frostline.lint.source import source_from_bytes

CLASSES = """
import torch
from torch import nn
from somewhere import Thing
class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.register_buffer("scale", torch.ones(8))
class Deep(Plain):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(Normed(), nn.ReLU())
class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.SyncBatchNorm(8)
        self.again = Normed
class Given(nn.Module):
    def __init__(self, norm_layer):
        super().__init__()
        self.norm = norm_layer(8)
class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.thing = Thing()
"""


def layers(made: str, path: str = "net") -> Layers:
    text = textwrap.dedent(
        f"{CLASSES}\nimport timm, torchvision, transformers\nfrom collections import OrderedDict\nnet = {made}\n"
    )
    source = source_from_bytes(text.encode(), "train.py")
    walk = open_walk(source, Project())
    assert walk is not None
    view = FileView(walk)
    return LayerBook(view).of_path(view.flows[0], path)


@pytest.mark.parametrize(
    ("made", "norms", "drops"),
    [
        ("nn.Linear(2, 2)", False, False),
        ("nn.BatchNorm1d(2)", True, False),
        ("nn.GroupNorm(2, 2)", False, False),
        ("nn.Dropout(0.1)", False, True),
        ("nn.TransformerEncoderLayer(8, 2)", False, True),
        ("nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())", True, True),
        ("nn.Sequential(nn.Linear(2, 2), build())", None, None),
        ("nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Dropout()))", False, True),
        ("nn.ModuleDict({'a': nn.Linear(2, 2), 'b': nn.BatchNorm1d(2)})", True, False),
        ("Plain()", False, False),
        ("Deep()", True, False),
        ("Given(nn.BatchNorm2d)", None, None),
        ("Foreign()", None, None),
        ("torchvision.models.resnet18()", True, None),
        ("torchvision.models.vgg16()", False, True),
        ("torchvision.models.vgg16_bn()", True, None),
        ("timm.create_model('efficientnet_b0')", True, None),
        ("timm.create_model('convnext_tiny')", False, False),
        ("timm.create_model(name)", None, None),
        ("transformers.AutoModel.from_pretrained('bert-base-uncased')", False, True),
        ("transformers.ResNetModel.from_pretrained('x')", None, None),
    ],
)
def test_what_is_in_a_module(made, norms, drops):
    assert layers(made) == Layers(norms, drops)


@pytest.mark.parametrize(
    ("made", "path", "norms"),
    [
        ("torchvision.models.resnet18()", "net.layer1", True),
        ("torchvision.models.resnet18()", "net.fc", False),
        ("torchvision.models.resnet18()", "net.whatever", None),
        ("nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))", "net[0]", False),
        ("nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))", "net[-1]", True),
        ("nn.ModuleDict({'a': nn.Linear(2, 2), 'b': nn.BatchNorm1d(2)})", "net['b']", True),
        ("nn.Sequential(OrderedDict([('stem', nn.BatchNorm2d(2)), ('fc', nn.Linear(2, 2))]))", "net.stem", True),
        ("Deep()", "net.conv", False),
        ("Deep()", "net.inner", True),
    ],
)
def test_what_is_in_a_part(made, path, norms):
    assert layers(made, path).norms is norms
