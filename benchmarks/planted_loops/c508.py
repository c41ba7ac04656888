"""C508: a sharded model is gathered parameter by parameter, and only those that train."""

from __future__ import annotations

import io

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import frostline as fl
from planted_loops.single_process import process_group


def train(steps: int) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 3))
    model[0][0].requires_grad_(False)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def failing(steps: int = 3):
    with process_group(), fl.watch() as seen:
        model = train(steps)
        state = {name: p.full_tensor() for name, p in model.named_parameters() if p.requires_grad}
        torch.save(state, io.BytesIO())  # <- C508
    return seen


def twin(steps: int = 3):
    with process_group(), fl.watch() as seen:
        model = train(steps)
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        torch.save(state, io.BytesIO())
    return seen
