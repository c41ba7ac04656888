"""Reads off a layer which statistics policy it follows now, how PyTorch's switches encode that, and what set them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from frostline.attach.instance_method import InstanceMethod
from frostline.attach.ledger import holds_mode, ledger_of
from frostline.norms.layers import has_running_statistics, statistics_of
from frostline.norms.policy import EMA, Cumulative, Domain, StatsPolicy, Update

DEFAULT = "the user or the default"


def policy_of(layer: nn.Module, training: bool | None = None) -> StatsPolicy | None:
    """What a layer does with statistics now, or would do in another mode, as a value. The layer is only read.

    Where a policy, domains or a commit per step were set on the layer, it is that; else it is what PyTorch decides by
    mode, flag and buffers.

    Args:
        layer: any module.
        training: the mode to ask for; by default the one it is in. A layer that a hold keeps in eval mode is not
            brought into another by ``model.train()``, and does then what it does now.

    Returns:
        The policy; ``None`` if it is no normalization layer that we know.

    Example:
        >>> layer = nn.BatchNorm2d(3)
        >>> print(policy_of(layer))
        uses batch, updates ema(0.1)
        >>> print(policy_of(layer, training=False))
        uses running, updates nothing

    Source: ``torch/nn/modules/batchnorm.py:_BatchNorm.forward``,
        ``torch/nn/modules/instancenorm.py:_InstanceNorm._apply_instance_norm``.
    """
    if training is None or training == layer.training or holds_mode(layer):
        return _policy_now(layer)
    try:
        layer.training = training
        return _policy_now(layer)
    finally:
        layer.training = not training


def stock_policy(layer: nn.Module) -> StatsPolicy | None:
    """What the forward of the layer's class does in its present mode, whatever has been put in its place.

    Example:
        >>> print(stock_policy(nn.BatchNorm1d(2, momentum=None)))
        uses batch, updates cumulative
    """
    use = statistics_of(layer)
    return None if use is None else StatsPolicy(use.uses, _update(layer) if use.updates else None)


def encoding_of(layer: nn.Module) -> str:
    """How PyTorch's switches stand on a normalization layer, and what stands in for its forward, if anything does.

    Example:
        >>> layer = nn.BatchNorm1d(2)
        >>> layer.track_running_stats = False
        >>> encoding_of(layer)
        'training=True, track_running_stats=False, buffers kept'
        >>> encoding_of(nn.LayerNorm(2))
        'class LayerNorm'
    """
    if isinstance(layer, (_BatchNorm, _InstanceNorm)):
        flag = f"track_running_stats={layer.track_running_stats}"
        words = [f"training={layer.training}", flag, f"buffers {_buffers(layer)}"]
        stock = stock_policy(layer)
        if stock is not None and stock.update is not None:
            words.append(f"momentum={layer.momentum}")
    else:
        words = [f"class {type(layer).__name__}"]
    replaced = layer.__dict__.get("forward")
    if replaced is not None:
        words.append(f"forward replaced by {describe(replaced)}")
    return ", ".join(words)


def set_by(layer: nn.Module, *, inside_training: bool = False) -> str:
    """What brought a normalization layer to the policy that it follows now, as far as its state shows it.

    Other tools leave fingerprints, of which one cannot know that nobody else made them: *looks like*.

    Args:
        layer: a normalization layer.
        inside_training: whether a module above it is in train mode.

    Example:
        >>> layer = nn.BatchNorm1d(2)
        >>> set_by(layer)
        'the user or the default'
        >>> layer.track_running_stats = False
        >>> set_by(layer)
        "looks like Lightning's BaseFinetuning.freeze_module"

    Source: ``lightning/pytorch/callbacks/finetuning.py:BaseFinetuning.freeze_module``, ``tent.py:configure_model``,
        ``torch/_functorch/batch_norm_replacement.py``, ``torch/optim/swa_utils.py:update_bn``,
        ``fvcore/nn/precise_bn.py:update_bn_stats``, ``fairscale/nn/checkpoint/checkpoint_utils.py:patch_batchnorm``.
    """
    ledger = ledger_of(layer)
    if ledger is not None and ledger.of_module:
        levels = {level for grip in ledger.of_module for level in grip.tokens.values()}
        return f"a hold (level {', '.join(sorted(levels))})"
    replaced = layer.__dict__.get("forward")
    if replaced is not None:
        ours = _ours(layer)
        if ours is None:
            return f"another tool, which replaced its forward by {describe(replaced)}"
        said = _policy_now(layer)
        by_domain = said is not None and isinstance(said.use, Domain)
        return "frostline domains" if by_domain else getattr(replaced, "set_by", type(replaced).__name__)
    if isinstance(layer, _BatchNorm) and (tool := _fingerprint(layer)) is not None:
        return tool
    switched = isinstance(layer, (_BatchNorm, _InstanceNorm)) and has_running_statistics(layer)
    if switched and inside_training and not layer.training:
        return "looks like eval() by the user"
    return DEFAULT


def describe(replaced: object) -> str:
    """What stands in for a forward, in a word or two.

    Example:
        >>> describe(len)
        'len'
    """
    return getattr(replaced, "__qualname__", type(replaced).__name__)


def _policy_now(layer: nn.Module) -> StatsPolicy | None:
    said = _ours(layer)
    return stock_policy(layer) if said is None else said()


def _ours(layer: nn.Module) -> Callable[[], StatsPolicy | None] | None:
    """The method that says what a replaced forward does; ``None`` if it is not replaced, or by someone else."""
    replaced: Any = layer.__dict__.get("forward")
    # What came along with a shallow copy acts on another module.
    if isinstance(replaced, InstanceMethod) and replaced.guards(layer):
        return getattr(replaced, "policy", None)
    return None


def _update(layer: nn.Module) -> Update:
    momentum = getattr(layer, "momentum", None)
    if momentum is not None:
        return EMA(momentum)
    # Instance norm takes None for 0.0, and so does a batch norm that has no count to divide by.
    without_count = isinstance(layer, _BatchNorm) and layer.num_batches_tracked is None
    return EMA(0.0) if isinstance(layer, _InstanceNorm) or without_count else Cumulative()


def _buffers(layer: _BatchNorm | _InstanceNorm) -> str:
    if has_running_statistics(layer):
        return "kept"
    return "None" if layer._buffers.get("num_batches_tracked") is None else "None but num_batches_tracked"


def _fingerprint(layer: _BatchNorm) -> str | None:
    """The tool whose traces a batch norm bears."""
    hooks = [*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()]
    if any(getattr(hook, "__qualname__", "").startswith("patch_batchnorm.") for hook in hooks):
        return "looks like fairscale's patch_batchnorm"
    if not has_running_statistics(layer):
        if layer._buffers.get("num_batches_tracked") is not None:
            return "looks like Tent's configure_model"
        return "built with track_running_stats=False, or torch.func.replace_all_batch_norm_modules_"
    if not layer.track_running_stats:
        return "looks like Lightning's BaseFinetuning.freeze_module"
    if layer.momentum is None:
        return "looks like momentum=None by the user, or an aborted torch.optim.swa_utils.update_bn"
    if layer.momentum == 1.0:
        return "looks like momentum=1.0 by the user, or an aborted fvcore update_bn_stats"
    return None
