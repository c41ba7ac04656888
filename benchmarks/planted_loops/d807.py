"""D807: gradients are averaged by hand, but each process drew its own initial weights.

Two processes are played one after the other; ``tests/doctor/rules/test_d807.py`` runs two real ones as well.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

import frostline as fl
from frostline.audit.seen import Seen
from planted_loops.single_process import process_group
from planted_loops.two_ranks import side_by_side


def make() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return net, torch.optim.SGD(net.parameters(), lr=0.1)


def average(net: nn.Module) -> None:
    for p in net.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


def failing(steps: int = 3):
    seens: list[Seen] = []
    for rank in range(2):
        torch.manual_seed(rank)
        with process_group(), fl.watch() as seen:
            net, optimizer = make()
            for _ in range(steps):
                x, y = torch.randn(16, 4), torch.randint(3, (16,))
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()  # <- D807
                average(net)
                optimizer.step()
        seens.append(seen)
    return side_by_side(*seens, averaged=False)


def twin(steps: int = 3):
    seens: list[Seen] = []
    for rank in range(2):
        torch.manual_seed(rank)
        with process_group(), fl.watch() as seen:
            net, optimizer = make()
            for p in net.parameters():
                dist.broadcast(p.detach(), src=0)
            for _ in range(steps):
                x, y = torch.randn(16, 4), torch.randint(3, (16,))
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                average(net)
                optimizer.step()
        seens.append(seen)
    return side_by_side(*seens, averaged=True)
