"""D804: each process keeps the running statistics of its own data."""

from __future__ import annotations

import pytest

from frostline.findings import Severity

CODE = "D804"
RUN = """
import torch, torchvision
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
def main(loader, optimizer):
    net = {net}
    {between}
    model = DDP(net, {options}){mark}
    for x in loader:
        model(x).sum().backward()
        optimizer.step()
    {behind}
"""
MARK = "  # <- D804"
RESNET = "torchvision.models.resnet18()"
SAVE = "torch.save(model.module.state_dict(), 'x.pt')"
OFF = "broadcast_buffers=False"
CLASSES = """
from torch import nn
from torch.nn.parallel import DistributedDataParallel
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm = nn.{norm}(2)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
class Trainer:
    def __init__(self):
        self.net = Net()
        self.model = DistributedDataParallel(self.net, broadcast_buffers=False){mark}
    def validate(self, loader):
        self.model.eval()
"""
TRUE = {
    "saved": RUN.format(net=RESNET, between="", options=OFF, mark=MARK, behind=SAVE),
    "evaluated": RUN.format(net=RESNET, between="", options=OFF, mark=MARK, behind="model.eval()"),
    "the newer name": RUN.format(net=RESNET, between="", options="forward_sync_buffers=False", mark=MARK, behind=SAVE),
    "layers in a row": RUN.format(
        net="nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))", between="", options=OFF, mark=MARK, behind=SAVE
    ),
    "classes": CLASSES.format(norm="BatchNorm1d", mark=MARK),
    "neither saved nor evaluated here": RUN.format(net=RESNET, between="", options=OFF, mark=MARK, behind="return"),
    "layers that cannot be seen": RUN.format(net="build()", between="", options=OFF, mark=MARK, behind=SAVE),
}
SILENT = {
    "on": RUN.format(net=RESNET, between="", options="broadcast_buffers=True", mark="", behind=SAVE),
    "by default": RUN.format(net=RESNET, between="", options="device_ids=[0]", mark="", behind=SAVE),
    "synchronized": RUN.format(
        net=RESNET,
        between="net = nn.SyncBatchNorm.convert_sync_batchnorm(net)",
        options=OFF,
        mark="",
        behind=SAVE,
    ),
    "layer norm": RUN.format(
        net="nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8))", between="", options=OFF, mark="", behind=SAVE
    ),
    "classes without": CLASSES.format(norm="LayerNorm", mark=""),
    "a transformer": RUN.format(net="torchvision.models.vit_b_16()", between="", options=OFF, mark="", behind=SAVE),
    "averaged by hand": RUN.format(
        net=RESNET,
        between="",
        options=OFF,
        mark="",
        behind="for b in net.buffers():\n        torch.distributed.all_reduce(b)",
    ),
    "layers that cannot be seen, not used": RUN.format(
        net="build()", between="", options=OFF, mark="", behind="return"
    ),
    "an option of something else": "reader = Reader(broadcast_buffers=False)",
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_the_fix_leaves_broadcasting_on(fixed):
    text = RUN.format(net=RESNET, between="net.cuda()", options=OFF, mark="", behind=SAVE)
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == text.replace("buffers=False", "buffers=True")


def test_what_is_said(find):
    (found,) = find(TRUE["saved"], CODE)
    assert found.finding.message == "broadcast_buffers=False: each process keeps running statistics of its own data"
    assert found.finding.evidence == "net has batch normalization\nline 12 saves those of one process"
    assert found.finding.severity is Severity.WARNING
    assert find(TRUE["layers that cannot be seen"], CODE)[0].finding.severity is Severity.INFO
