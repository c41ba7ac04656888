"""Which layers there are to convert, and what of a layer no other class would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.attach.ledger import ledger_of
from frostline.norms.layers import statistics_of

Family: TypeAlias = Literal["batch", "sync", "frozen", "instance"]
AFFINE = ("weight", "bias")
_TORCH = "torch.nn.modules.batchnorm"
_TIMM = "timm.layers.norm_act"
_OURS = "frostline.norms.convert.frozen"
# By name, so that neither timm nor torchvision need be imported. Behind the family: whether drop and act layers follow.
_KNOWN: Mapping[tuple[str, str], tuple[Family, bool]] = {
    **{(_TORCH, name): ("batch", False) for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "_BatchNorm")},
    (_TORCH, "SyncBatchNorm"): ("sync", False),
    (_TIMM, "BatchNormAct2d"): ("batch", True),
    (_TIMM, "SyncBatchNormAct"): ("sync", True),
    (_TIMM, "FrozenBatchNormAct2d"): ("frozen", True),
    (_OURS, "FrozenBatchNorm"): ("frozen", False),
    (_OURS, "FrozenBatchNormAct"): ("frozen", True),
    **{("torch.nn.modules.instancenorm", f"InstanceNorm{n}d"): ("instance", False) for n in (1, 2, 3)},
}
# What a subclass may define without doing anything else in training or inference.
_HARMLESS = {
    "__annotations__",
    "__constants__",
    "__dict__",
    "__doc__",
    "__init__",
    "__module__",
    "__parameters__",
    "__repr__",
    "__weakref__",
    "_check_input_dim",
    "_version",
    "extra_repr",
    "reset_parameters",
    "reset_running_stats",
}


@dataclass(frozen=True)
class Kind:
    """What a layer is.

    Attributes:
        family: by what it normalizes with.
        acts: whether a drop layer and an activation follow within it.
        known: the class whose forward it is taken to run.
    """

    family: Family
    acts: bool
    known: type[nn.Module]

    @property
    def foreign(self) -> bool:
        """Whether it is a frozen batch norm of torchvision, timm or detectron2, whose weight and bias are buffers."""
        return self.family == "frozen" and self.known.__module__ != _OURS


def kind_of(layer: nn.Module) -> Kind | None:
    """What a layer is; ``None`` if it is nothing that we can convert.

    Example:
        >>> kind_of(nn.SyncBatchNorm(3)).family, kind_of(nn.LayerNorm(3))
        ('sync', None)
    """
    for cls in type(layer).__mro__:
        if (found := _KNOWN.get((cls.__module__, cls.__name__))) is not None:
            return Kind(*found, cls)
        # Everyone has a copy of torchvision's; those that keep another layout do not normalize with these four.
        if cls.__name__ == "FrozenBatchNorm2d" and hasattr(layer, "eps"):
            return (
                Kind("frozen", False, cls) if {*AFFINE, "running_mean", "running_var"} <= set(layer._buffers) else None
            )
    return None


def is_unmaterialized(layer: nn.Module) -> bool:
    """Whether a normalization layer does not know its width yet.

    Example:
        >>> is_unmaterialized(nn.LazyBatchNorm1d())
        True
    """
    return statistics_of(layer) is not None and any(map(is_lazy, own_tensors(layer)))


def own_tensors(layer: nn.Module) -> list[Tensor]:
    """The parameters and buffers that a module has itself.

    Example:
        >>> len(own_tensors(nn.BatchNorm1d(2, affine=False)))
        3
    """
    return [tensor for tensor in (*layer._parameters.values(), *layer._buffers.values()) if tensor is not None]


def why_untouchable(layer: nn.Module) -> str | None:
    """Why no verb may change this layer, if none may: it is held, or something has been put in place of its parts.

    Example:
        >>> layer = nn.BatchNorm1d(2)
        >>> why_untouchable(layer) is None
        True
        >>> layer.forward = lambda x: x
        >>> why_untouchable(layer)
        'its forward has been replaced by a function'
    """
    ledger = ledger_of(layer)
    if ledger is not None and ledger.tokens:
        return f"held (level {', '.join(sorted(set(ledger.tokens.values())))})"
    for name, value in vars(layer).items():
        if name == "_compiled_call_impl" and value is not None:
            return "compiled by itself: convert first, and compile afterwards"
        if callable(getattr(type(layer), name, None)) and callable(value):
            return f"its {name} has been replaced by a {type(value).__name__}"
    return None


def own_doing(layer: nn.Module, known: type[nn.Module]) -> str | None:
    """What a subclass does that a class of its does not, in words; ``None`` if nothing. Another class would lose it.

    Example:
        >>> class Scaled(nn.BatchNorm1d):
        ...     def forward(self, x):
        ...         return 2 * super().forward(x)
        >>> own_doing(Scaled(3), nn.BatchNorm1d)
        'Scaled has a forward of its own'
    """
    for cls in type(layer).__mro__:
        if cls is known:
            return None
        own = [name for name, value in vars(cls).items() if name not in _HARMLESS and _overrides(known, name, value)]
        if own:
            return f"{cls.__name__} has a {' and a '.join(own[:3])} of its own"
    return None


def _overrides(known: type[nn.Module], name: str, value: Any) -> bool:
    return hasattr(known, name) and (callable(value) or isinstance(value, (property, classmethod, staticmethod)))


def missing_parts(layer: nn.Module, kind: Kind) -> str | None:
    """What is not where its class keeps it, in words; ``None`` if nothing."""
    if kind.acts and not {"drop", "act"} <= layer._modules.keys():
        return "it lacks its drop layer or its activation"
    table = layer._buffers if kind.foreign else layer._parameters
    gone = [name for name in AFFINE if name not in table]
    return f"its {gone[0]} is computed from other tensors (parametrized or pruned)" if gone else None
