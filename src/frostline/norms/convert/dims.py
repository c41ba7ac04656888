"""How many dimensions the input of a layer has, for layers that do not say."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from frostline.norms.convert.families import kind_of
from frostline.state import names

# Where a layer that is no longer a batch norm keeps what it was.
PLAIN_TYPE = "plain_type"
BY_DIMS: dict[int, type[_BatchNorm]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_CONVOLUTIONS: dict[type[nn.Module], int] = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}


def dims_of_convolution(module: nn.Module) -> int | None:
    """The spatial dimensions of a convolution; ``None`` for anything else.

    Example:
        >>> dims_of_convolution(nn.ConvTranspose2d(1, 1, 1)), dims_of_convolution(nn.Linear(1, 1))
        (2, None)
    """
    return next((dims for cls, dims in _CONVOLUTIONS.items() if isinstance(module, cls)), None)


def said_by_class(layer: nn.Module) -> int | None:
    """1, 2 or 3 where the layer's class, or what it was before, checks that; else ``None``.

    Example:
        >>> said_by_class(nn.BatchNorm2d(3)), said_by_class(nn.SyncBatchNorm(3))
        (2, None)
    """
    was = getattr(layer, PLAIN_TYPE, None) or type(layer)
    kind = kind_of(layer)
    if kind is not None and kind.foreign:
        return 2
    return next((dims for dims, cls in BY_DIMS.items() if issubclass(was, cls)), None)


def input_range(dims: int | None) -> tuple[int, int | None]:
    """The fewest and the most dimensions that batch norm of so many spatial dimensions takes.

    Example:
        >>> input_range(1), input_range(2), input_range(None)
        ((2, 3), (4, 4), (2, None))
    """
    return (2, None) if dims is None else (2, 3) if dims == 1 else (dims + 2, dims + 2)


def neighbour(root: nn.Module, path: str) -> nn.Module | None:
    """What was registered directly before this layer in the same module, if it gives as many channels as that takes.

    Example:
        >>> neighbour(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), "1")
        Linear(in_features=2, out_features=3, bias=True)
    """
    parent = root.get_submodule(names.parent(path)) if path else root
    layer = root.get_submodule(path)
    before: nn.Module | None = None
    for child in parent._modules.values():
        if child is layer:
            break
        before = child
    width = getattr(layer, "num_features", None)
    return before if before is not None and width is not None and _gives(before) == width else None


def said_by_neighbours(root: nn.Module, path: str) -> Literal[1, 2, 3] | None:
    """What the layers around a layer say of its input; ``None`` where they leave doubt.

    The one directly before it decides, if it gives as many channels. Else every convolution and linear layer of the
    model that gives as many is asked, and they have to agree. A wrong answer cannot go unnoticed: batch norm of other
    dimensions refuses the input.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), nn.Flatten(), nn.Linear(4, 5))
        >>> said_by_neighbours(model, "1")
        2
    """
    before = neighbour(root, path)
    width = getattr(root.get_submodule(path), "num_features", None)
    givers = [before] if before is not None else [m for m in root.modules() if _gives(m) == width]
    found = {_dims_behind(module) for module in givers}
    only = found.pop() if len(found) == 1 else None
    return only if only in (1, 2, 3) else None


def _gives(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if dims_of_convolution(module) else None  # type: ignore[return-value]


def _dims_behind(module: nn.Module) -> int | None:
    return 1 if isinstance(module, nn.Linear) else dims_of_convolution(module)
