"""Which statistics a layer normalizes with, and which it would update, exactly as PyTorch decides it.

Three switches decide for a batch norm, ``training``, ``track_running_stats`` and whether the buffers exist
(``torch/nn/modules/batchnorm.py:_BatchNorm.forward``); instance norm reads the same three differently
(``torch/nn/modules/instancenorm.py:_InstanceNorm._apply_instance_norm``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Literal, TypeAlias, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

Source: TypeAlias = Literal["batch", "running", "instance", "sample"]
M = TypeVar("M", bound=nn.Module)
_PER_SAMPLE = (nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class StatisticsUse:
    """What a normalization layer does with statistics in its present state.

    Attributes:
        uses: ``batch`` (this batch), ``running`` (its buffers), ``instance`` (each sample and channel by itself) or
            ``sample`` (each sample or group of channels by itself).
        updates: whether a forward pass would write its running statistics now.
        batch_dependent_in_eval: whether the output for one sample depends on the others even in eval mode.
    """

    uses: Source
    updates: bool
    batch_dependent_in_eval: bool = False


def statistics_of(module: nn.Module) -> StatisticsUse | None:
    """What a layer normalizes with and would update now; ``None`` if it is no normalization layer that we know.

    The layer is only read.

    Args:
        module: BatchNorm 1d, 2d, 3d, Sync and lazy with all their subclasses, InstanceNorm, GroupNorm, LayerNorm,
            RMSNorm, LocalResponseNorm, the frozen batch norms of torchvision, timm and detectron2, and what
            :func:`register` has made known.

    Example:
        >>> layer = nn.BatchNorm2d(3)
        >>> statistics_of(layer)
        StatisticsUse(uses='batch', updates=True, batch_dependent_in_eval=False)
        >>> statistics_of(layer.eval()).uses
        'running'
    """
    return _read(module)


@dataclass(frozen=True)
class Layout:
    """Where a layer keeps its running statistics, and which dimension of its input they run along.

    Attributes:
        mean: name of the buffer of means.
        var: name of the buffer of variances.
        channel_dim: dimension of the input that the statistics are kept per.
        instances: whether the variance is the mean of those of the single samples, without the variance between them,
            as instance norm keeps it.
    """

    mean: str = "running_mean"
    var: str = "running_var"
    channel_dim: int = 1
    instances: bool = False


def register(
    layer_type: type[M], *, mean: str = "running_mean", var: str = "running_var", channel_dim: int = 1
) -> Callable[[Callable[[M], StatisticsUse]], Callable[[M], StatisticsUse]]:
    """Make a normalization layer of your own known; a decorator for the function that reads it.

    Everything that estimates, checks or repairs statistics then takes it in. In eval mode the layer has to normalize
    with the two buffers that are named here.

    Args:
        layer_type: the class; its subclasses are read in the same way.
        mean: name of its buffer of running means.
        var: name of its buffer of running variances.
        channel_dim: dimension of its input that they are kept per.

    Example:
        >>> import torch
        >>> class ChannelsLastNorm(nn.Module):
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.register_buffer("running_mean", torch.zeros(width))
        ...         self.register_buffer("running_var", torch.ones(width))
        >>> @register(ChannelsLastNorm, channel_dim=-1)
        ... def read(layer):
        ...     return StatisticsUse("batch" if layer.training else "running", updates=layer.training)
        >>> statistics_of(ChannelsLastNorm(3).eval()).uses
        'running'
    """

    def keep(reader: Callable[[M], StatisticsUse]) -> Callable[[M], StatisticsUse]:
        _read.register(layer_type, reader)
        _layout.register(layer_type, lambda _module: Layout(mean, var, channel_dim))
        return reader

    return keep


def layout_of(module: nn.Module) -> Layout:
    """Where this layer keeps its running statistics.

    Example:
        >>> layout_of(nn.BatchNorm2d(3)).channel_dim, layout_of(nn.InstanceNorm2d(3)).instances
        (1, True)
    """
    # A layer that is split into domains says where those of the current one lie.
    replaced = getattr(module.__dict__.get("forward"), "layout", None)
    return _layout(module) if replaced is None else replaced()


def running_statistics(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The buffers of mean and variance themselves; ``None`` if the layer keeps none now.

    Example:
        >>> [buffer.tolist() for buffer in running_statistics(nn.BatchNorm1d(2))]
        [[0.0, 0.0], [1.0, 1.0]]
    """
    layout = layout_of(module)
    mean, var = module._buffers.get(layout.mean), module._buffers.get(layout.var)
    return None if mean is None or var is None else (mean, var)


@singledispatch
def _read(module: nn.Module) -> StatisticsUse | None:
    # RMSNorm is RmsNorm in timm, LlamaRMSNorm in transformers.
    if isinstance(module, _PER_SAMPLE) or any(
        word in type(module).__name__.lower() for word in ("rmsnorm", "layernorm")
    ):
        return StatisticsUse("sample", updates=False)
    if any("FrozenBatchNorm" in cls.__name__ for cls in type(module).__mro__):
        return StatisticsUse("running", updates=False)
    return None


@singledispatch
def _layout(_module: Any) -> Layout:
    return Layout()


@_layout.register
def _layout_of_instance_norm(_module: _InstanceNorm) -> Layout:
    return Layout(instances=True)


def has_running_statistics(module: nn.Module) -> bool:
    """Whether the layer keeps running statistics now, flag or no flag.

    Example:
        >>> has_running_statistics(nn.BatchNorm1d(2)), has_running_statistics(nn.InstanceNorm1d(2))
        (True, False)
    """
    return running_statistics(module) is not None


@_read.register
def _batch_norm(module: _BatchNorm) -> StatisticsUse:
    buffers = has_running_statistics(module)
    if module.training:
        # momentum=0.0 leaves mean and variance alone but still counts the batch, so it updates.
        return StatisticsUse("batch", module.track_running_stats and buffers, not buffers)
    # In eval mode the flag is not consulted: only whether the buffers exist.
    return StatisticsUse("running" if buffers else "batch", updates=False, batch_dependent_in_eval=not buffers)


@_read.register
def _instance_norm(module: _InstanceNorm) -> StatisticsUse:
    own = module.training or not module.track_running_stats
    # The buffers are always passed on, so instance norm with a flag flipped to False updates them in eval mode too.
    # momentum=None becomes 0.0, which does not keep them either: the kernel writes the mean over as many copies of
    # them as the batch has samples, and that rounds.
    writes = own and has_running_statistics(module)
    return StatisticsUse("instance" if own else "running", updates=writes)
