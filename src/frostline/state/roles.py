"""What a state entry is for, told from the module that owns it and its name.

A role is a dotted word, ``norm.mean`` or ``weight``. Reports group by it: "38 entries moved, all norm.mean and
norm.var" says more than 38 paths.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

# Names that normalization layers give their state, wherever they come from (torch, torchvision, timm, hand-written).
_STATISTICS = {
    "running_mean": "norm.mean",
    "running_var": "norm.var",
    "num_batches_tracked": "norm.count",
}
# Buffers by which torch.ao's fake quantizers and observers steer themselves and keep what they saw.
_QUANT_BUFFERS = {
    "observer_enabled": "quant.switch",
    "fake_quant_enabled": "quant.switch",
    "scale": "quant.scale",
    "zero_point": "quant.zero_point",
    "min_val": "quant.range",
    "max_val": "quant.range",
    "histogram": "quant.range",
}


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalization layer, told by its name or its statistics.

    Example:
        >>> is_norm(nn.BatchNorm1d(2)), is_norm(nn.LayerNorm(2)), is_norm(nn.Linear(2, 2))
        (True, True, False)
    """
    return "norm" in type(module).__name__.lower() or {"running_mean", "running_var"} <= module._buffers.keys()


def is_observer(module: nn.Module) -> bool:
    """Whether a module watches activations for quantization, told by its class names and its buffers."""
    return any("FakeQuantize" in cls.__name__ or cls.__name__ == "ObserverBase" for cls in type(module).__mro__)


def role_of(owner: nn.Module, name: str, *, kind: str) -> str:
    """The role of one entry.

    Args:
        owner: the module that owns it.
        name: its name there, without dots.
        kind: ``parameter``, ``buffer``, ``mode``, ``requires_grad``, ``config`` or ``extra``.

    Example:
        >>> role_of(nn.BatchNorm2d(3), "running_var", kind="buffer")
        'norm.var'
        >>> role_of(nn.Linear(3, 3), "weight", kind="parameter")
        'weight'
        >>> role_of(nn.Dropout(0.5), "p", kind="config")
        'dropout.p'
    """
    if kind in {"mode", "requires_grad", "extra"}:
        return kind
    if kind == "config":
        return f"{_config_owner(owner)}.{name}"
    if kind == "buffer":
        return _buffer_role(owner, name)
    return _parameter_role(owner, name)


def _config_owner(owner: nn.Module) -> str:
    if is_norm(owner):
        return "norm"
    return "rnn" if isinstance(owner, nn.RNNBase) else "dropout"


def _buffer_role(owner: nn.Module, name: str) -> str:
    if name in _STATISTICS:
        return _STATISTICS[name]
    if name in _QUANT_BUFFERS and is_observer(owner):
        return _QUANT_BUFFERS[name]
    if name in {"_u", "_v"} and "SpectralNorm" in type(owner).__name__:
        return f"spectral.{name[1:]}"
    # The older API keeps `weight_u` beside `weight_orig`.
    if name.endswith(("_u", "_v")) and f"{name[:-2]}_orig" in owner._parameters:
        return f"spectral.{name[-1]}"
    if is_norm(owner) and name in {"weight", "bias"}:
        return f"norm.{name}"
    return "buffer"


def _is_original(owner: nn.Module, name: str) -> bool:
    """The older API keeps `weight_g` beside `weight_v`; alone, such a name is just a name (`bias_v` in attention)."""
    return name.endswith("_orig") or (
        name.endswith(("_g", "_v")) and {f"{name[:-2]}_g", f"{name[:-2]}_v"} <= owner._parameters.keys()
    )


def _parameter_role(owner: nn.Module, name: str) -> str:
    if isinstance(owner, parametrize.ParametrizationList) or _is_original(owner, name):
        return "parametrization.original"
    if is_norm(owner) and name in {"weight", "bias"}:
        return f"norm.{name}"
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if isinstance(owner, nn.RNNBase):
        return "rnn.bias" if name.startswith("bias") else "rnn.weight"
    if name == "bias" or name.endswith("_bias"):
        return "bias"
    if name == "weight" or name.endswith("_weight"):
        return "weight"
    return "parameter"
