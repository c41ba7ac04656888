"""D804: `broadcast_buffers=False`, and each process keeps the running statistics of its own data.

Two processes are played one after the other; ``tests/doctor/rules/test_d804.py`` runs two real ones as well.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import frostline as fl
from frostline.audit.seen import Seen
from planted_loops.single_process import process_group
from planted_loops.two_ranks import side_by_side


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
    torch.manual_seed(rank)
    for _ in range(3):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing():
    seens: list[Seen] = []
    for rank in range(2):
        with process_group(), fl.watch() as seen:
            net = make()
            with warnings.catch_warnings():  # it has a new name since torch 2.13
                warnings.simplefilter("ignore", FutureWarning)
                model = DistributedDataParallel(net, broadcast_buffers=False)  # <- D804
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            train(model, optimizer, rank)
        seens.append(seen)
    return side_by_side(*seens, averaged=True)


def twin():
    seens: list[Seen] = []
    for rank in range(2):
        with process_group(), fl.watch() as seen:
            net = make()
            model = DistributedDataParallel(net)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            train(model, optimizer, rank)
        seens.append(seen)
    return side_by_side(*seens, averaged=True)
