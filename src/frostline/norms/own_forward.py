"""Runs the forward of a batch norm's own class under other switches than those it shows.

PyTorch's three switches (mode, ``track_running_stats``, the buffers) are set for the time of one call. So a class with
a forward of its own, timm's batch norm with an activation for example, does what it always does beside normalizing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

COUNT = "num_batches_tracked"
_STOCK = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_NO_BUFFERS: Mapping[str, Tensor] = {}


def own_forward(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    training: bool,
    tracks: bool = True,
    momentum: float | None = None,
    buffers: Mapping[str, Tensor] = _NO_BUFFERS,
) -> Any:
    """Call the forward of the module's class with these switches and buffers; all are back afterwards.

    Args:
        module: a batch norm.
        args: what its forward is given.
        kwargs: likewise.
        training: its mode for the time of the call; its children keep theirs.
        tracks: its flag, of no effect in eval mode.
        momentum: the weight of the new value; by default the module's own.
        buffers: what lies in its buffers instead of its own, by name.

    Example:
        >>> layer = nn.BatchNorm1d(1).eval()
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> own_forward(layer, (x,), {}, training=True, tracks=False).round().flatten().tolist()
        [-1.0, 1.0]
        >>> layer.training, layer.track_running_stats, layer.running_mean.item()
        (False, True, 0.0)
    """
    wanted: dict[str, Any] = {"training": training}
    if training:
        wanted["track_running_stats"] = tracks
    if momentum is not None:
        wanted["momentum"] = momentum
    # What is so already is not set: a policy that means what the switches say costs nothing.
    changed = {name: old for name, value in wanted.items() if (old := getattr(module, name)) != value}
    own = {name: module._buffers[name] for name in buffers}
    try:
        for name in changed:
            setattr(module, name, wanted[name])
        module._buffers.update(buffers)
        return type(module).forward(module, *args, **kwargs)
    finally:
        module._buffers.update(own)
        for name, value in changed.items():
            setattr(module, name, value)


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The tensor that is normalized, by whatever name the class calls it.

    Example:
        >>> first_argument((), {"input": torch.ones(1)}).item()
        1.0
    """
    return args[0] if args else next(iter(kwargs.values()))


def why_unruly(layer: nn.Module) -> str | None:
    """Why a batch norm's forward does not follow the switches, if it does not.

    A class that took over PyTorch's forward does. Any other is tried, on a copy in float64 and an input of a few
    values; the layer itself is only read.

    Example:
        >>> why_unruly(nn.BatchNorm2d(3)) is None
        True
    """
    if not isinstance(layer, _BatchNorm):
        return f"{type(layer).__name__} is no batch norm"
    if type(layer).forward in _STOCK:
        return None
    name = type(layer).__name__
    try:
        trial = copy.deepcopy(layer).to("cpu", torch.float64).eval()
        for module in trial.modules():
            # Hooks are the user's, who does not expect a call.
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        with torch.no_grad():
            fault = _fault(trial)
    except Exception as error:
        return f"{name} has a forward of its own, which cannot be tried ({type(error).__name__}: {error})"
    return fault and f"{name} has a forward of its own, which {fault}"


def _fault(layer: _BatchNorm) -> str | None:
    layer.__dict__.pop("forward", None)
    x = _sample(layer)
    over = [d for d in range(x.ndim) if d != 1]
    var, mean = torch.var_mean(x, over, correction=0)
    n = x.numel() // x.shape[1]
    for buffer, value in (("running_mean", mean + 0.5), ("running_var", var * 3)):
        layer._buffers[buffer] = value
    before = {key: value.clone() for key, value in layer.named_buffers()}

    def run(x: Tensor, **switches: Any) -> Tensor:
        # Cloned, because an activation may work in place.
        return own_forward(layer, (x.clone(),), {}, **switches).clone()

    def moved(momentum: float) -> bool:
        expected = {
            "running_mean": before["running_mean"].lerp(mean, momentum),
            "running_var": before["running_var"].lerp(var * (n / (n - 1)), momentum),
            COUNT: before[COUNT] + (momentum > 0),
        }
        now = dict(layer.named_buffers())
        return now.keys() == before.keys() and all(
            torch.allclose(now[key], expected.get(key, before[key])) for key in now
        )

    with_batch = run(x, training=False, buffers={"running_mean": mean, "running_var": var})
    constant = {"running_mean": torch.zeros_like(mean), "running_var": torch.full_like(var, 1 - layer.eps)}
    shape = [1, -1, *[1] * (x.ndim - 2)]
    standard = (x - mean.view(shape)) * (var + layer.eps).rsqrt().view(shape)
    if not torch.allclose(run(standard, training=False, buffers=constant), with_batch):
        return "does not normalize with its buffers alone in eval mode"
    if not torch.allclose(run(x, training=True, tracks=False), with_batch) or not moved(0.0):
        return "does not normalize with the batch alone in train mode, or moves statistics with the flag off"
    if not torch.allclose(run(x, training=True, momentum=0.25), with_batch) or not moved(0.25):
        return "does not update its statistics by its momentum in train mode"
    return None


def _sample(layer: _BatchNorm) -> Tensor:
    """Six samples, so that classes which divide a batch can; no values drawn at random."""
    beyond = 0 if isinstance(layer, nn.BatchNorm1d) else 3 if isinstance(layer, nn.BatchNorm3d) else 2
    width = layer.num_features
    values = torch.arange(6 * width * 2**beyond, dtype=torch.float64)
    return values.square().sin().view(6, width, *[2] * beyond) * 2 + 0.3
