"""What is asked of modules beside their tensors: kinds, settings, what is hidden in them, spectral estimates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from frostline.audit.containers import walk
from frostline.state import names
from frostline.state.roles import is_norm

_SETTINGS = ("p", "drop_prob", "dropout", "dropout_p", "momentum")
# The largest matrix whose singular values are computed.
_MOST_SINGULAR = 1_000_000


def kinds_of(module: nn.Module) -> frozenset[str]:
    """What rules ask of a module."""
    found: set[str] = set()
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        found.add("batchnorm")
    if is_norm(module):
        found.add("norm")
    if module._buffers.get("running_mean") is not None:
        found.add("stats")
    name = type(module).__name__.lower()
    rate = next((v for k in ("p", "drop_prob", "dropout") if isinstance(v := module.__dict__.get(k), (int, float))), 0)
    if rate and (
        "drop" in name or "stochasticdepth" in name or isinstance(module, (nn.RNNBase, nn.MultiheadAttention))
    ):
        found.add("dropout")
    if type(module).__name__ == "AveragedModel":
        own = module.__dict__
        found.add("averaged")
        found |= {"averaged_buffers"} if own.get("use_buffers") else set()
        found |= {"averaged_weighted"} if own.get("avg_fn") or own.get("multi_avg_fn") else set()
    if (
        "weight_u" in module._buffers
        or "SpectralNorm" in type(module).__name__
        or "WeightNorm" in type(module).__name__
    ):
        found.add("spectral")
    if "merged" in module.__dict__:
        found.add("adapter")
    return frozenset(found)


def settings_now(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Rates of dropout and momentum, by path: what a switch of modes must not change."""
    found: dict[str, Any] = {}
    for path, module in modules.items():
        for name in _SETTINGS:
            value = module.__dict__.get(name)
            if isinstance(value, (int, float)):
                found[names.join(path, name)] = value
    return found


def hidden_in(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, nn.Module]]:
    """Modules with parameters that a plain list or dict keeps: path of the owner, attribute, module."""
    known = {id(module) for module in model.modules()}
    for path, module in modules.items():
        for name, value in module.__dict__.items():
            if name.startswith("_") or not isinstance(value, (list, tuple, dict)) or not value:
                continue
            for item in walk(value, depth=3):
                if issubclass(type(item), nn.Module) and id(item) not in known and any(True for _ in item.parameters()):
                    yield path, name, item


@torch.no_grad()
def spectral_gaps(modules: Mapping[str, nn.Module]) -> dict[str, float]:
    """How far the estimates of spectral normalization are off, as a share of the largest singular value."""
    found: dict[str, float] = {}
    for path, module in modules.items():
        if "weight_u" in module._buffers and "weight_orig" in module._parameters:
            weight, u, v = module._parameters["weight_orig"], module._buffers["weight_u"], module._buffers["weight_v"]
        elif "_u" in module._buffers and "_v" in module._buffers:
            holder = modules.get(names.parent(path))
            weight = None if holder is None else holder._parameters.get("original")
            u, v = module._buffers["_u"], module._buffers["_v"]
        else:
            continue
        if weight is None or u is None or v is None or weight.numel() > _MOST_SINGULAR:
            continue
        dim = 1 if weight.numel() and weight.shape[0] != u.numel() and weight.shape[1] == u.numel() else 0
        matrix = weight.detach().transpose(0, dim).reshape(u.numel(), -1).double()
        top = float(torch.linalg.svdvals(matrix).max())
        if top > 0 and matrix.shape[1] == v.numel():
            found[path] = abs(float(u.double() @ matrix @ v.double()) / top - 1)
    return found


def depends_on_mode(module: nn.Module) -> bool:
    """Whether a module has state of its own, or drops."""
    own = any(True for _ in module._parameters) or bool(module._buffers)
    return own or "drop" in type(module).__name__.lower()
