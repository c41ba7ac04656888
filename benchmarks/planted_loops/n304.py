"""N304: stochastic weight averaging without `update_bn`."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def fit(net: nn.Module, swa: AveragedModel, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.train()
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        swa.update_parameters(net)


def data():
    return [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(4)]


def failing():
    with fl.watch() as seen:
        net = make()
        swa = AveragedModel(net)
        batches = data()
        fit(net, swa, batches)
        swa.eval()
        with torch.no_grad():
            swa(torch.randn(16, 4)).argmax(1)  # <- N304
    return seen


def twin():
    with fl.watch() as seen:
        net = make()
        swa = AveragedModel(net)
        batches = data()
        fit(net, swa, batches)
        update_bn(batches, swa)
        swa.eval()
        with torch.no_grad():
            swa(torch.randn(16, 4)).argmax(1)
    return seen
