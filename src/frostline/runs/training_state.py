"""Model and optimizer as one flat table of tensors, for a checkpoint that is a single safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.checkpoint.run_parts import MODEL, OPTIMIZER
from frostline.errors import CorruptCheckpoint, name_some
from frostline.state.inventory import inventory


def pack(model: nn.Module, optimizer: Optimizer | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a model and an optimizer, and what of the optimizer is no tensor, as JSON text.

    Buffers that a ``state_dict`` leaves out are packed too: a run that resumes has to go on from all of the state.
    """
    tensors = {MODEL + path: tensor.detach() for path, tensor in inventory(model).tensors.items()}
    if optimizer is None:
        return tensors, {}
    state: dict[str, Any] = optimizer.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{index}/{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"optimizer": json.dumps({"groups": state["param_groups"], "plain": plain})}


def unpack_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write packed tensors back into a model, in place.

    Raises:
        CorruptCheckpoint: the table does not have exactly the tensors of the model, of its shapes and dtypes.
    """
    live = inventory(model).tensors
    packed = {name.removeprefix(MODEL): tensor for name, tensor in tensors.items() if name.startswith(MODEL)}
    unfit = sorted(live.keys() ^ packed.keys()) or [
        path for path, t in live.items() if (t.shape, t.dtype) != (packed[path].shape, packed[path].dtype)
    ]
    if unfit:
        raise CorruptCheckpoint(
            f"resume: the checkpoint and the model differ in {name_some(unfit)}.\n"
            "  fix: resume with the code that the run was started with"
        )
    with torch.no_grad():
        for path, tensor in live.items():
            tensor.detach().copy_(packed[path])


def unpack_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Give an optimizer over the same parameters its packed state back."""
    described: dict[str, Any] = json.loads(metadata["optimizer"])
    state: dict[int, dict[str, Any]] = {int(index): dict(plain) for index, plain in described["plain"].items()}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            index, _, key = name.removeprefix(OPTIMIZER).partition("/")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": described["groups"]})
