"""Which statistics a layer normalizes with, and which it would update, exactly as PyTorch decides it.

Three switches decide for a batch norm, ``training``, ``track_running_stats`` and whether the buffers exist
(``torch/nn/modules/batchnorm.py:_BatchNorm.forward``); instance norm reads the same three differently
(``torch/nn/modules/instancenorm.py:_InstanceNorm._apply_instance_norm``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

Source: TypeAlias = Literal["batch", "running", "instance", "sample"]
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
            RMSNorm, LocalResponseNorm, and the frozen batch norms of torchvision, timm and detectron2.

    Example:
        >>> layer = nn.BatchNorm2d(3)
        >>> statistics_of(layer)
        StatisticsUse(uses='batch', updates=True, batch_dependent_in_eval=False)
        >>> statistics_of(layer.eval()).uses
        'running'
    """
    if isinstance(module, _BatchNorm):
        return _batch_norm(module)
    if isinstance(module, _InstanceNorm):
        return _instance_norm(module)
    # RMSNorm is RmsNorm in timm, LlamaRMSNorm in transformers.
    if isinstance(module, _PER_SAMPLE) or any(
        word in type(module).__name__.lower() for word in ("rmsnorm", "layernorm")
    ):
        return StatisticsUse("sample", updates=False)
    if any("FrozenBatchNorm" in cls.__name__ for cls in type(module).__mro__):
        return StatisticsUse("running", updates=False)
    return None


def has_running_statistics(module: nn.Module) -> bool:
    """Whether the layer keeps running statistics now, flag or no flag.

    Example:
        >>> has_running_statistics(nn.BatchNorm1d(2)), has_running_statistics(nn.InstanceNorm1d(2))
        (True, False)
    """
    return module._buffers.get("running_mean") is not None and module._buffers.get("running_var") is not None


def _batch_norm(module: _BatchNorm) -> StatisticsUse:
    buffers = has_running_statistics(module)
    if module.training:
        # momentum=0.0 leaves mean and variance alone but still counts the batch, so it updates.
        return StatisticsUse("batch", module.track_running_stats and buffers, not buffers)
    # In eval mode the flag is not consulted: only whether the buffers exist.
    return StatisticsUse("running" if buffers else "batch", updates=False, batch_dependent_in_eval=not buffers)


def _instance_norm(module: _InstanceNorm) -> StatisticsUse:
    own = module.training or not module.track_running_stats
    # The buffers are always passed on, so instance norm with a flag flipped to False updates them in eval mode too.
    # momentum=None becomes 0.0, which does not keep them either: the kernel writes the mean over as many copies of
    # them as the batch has samples, and that rounds.
    writes = own and has_running_statistics(module)
    return StatisticsUse("instance" if own else "running", updates=writes)
