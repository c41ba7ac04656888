"""Finds, in a model as it is, where batch norm, ReLU and max pooling follow each other, and runs them in one step.

That is the block of nearly every network for few-shot learning, and where its time goes. Found are plain
``nn.Sequential`` with PyTorch's own modules in them; whatever else a model does is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from frostline.meta.normalizing import LayerStatistics
from frostline.meta.pooled_norm import Pool, can_pool_first, normalized_and_pooled

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Below so many channels a processor's registers are not filled by one place of an image, and nothing is gained.
_LEAST_CHANNELS = 16


@dataclass(frozen=True, eq=False)
class Block:
    """Batch norm, ReLU and max pooling, one after the other.

    Attributes:
        path: of the batch norm.
        norm: the batch norm, which has a weight and a bias.
        pool: the settings of the pooling.
    """

    path: str
    norm: nn.BatchNorm2d
    pool: Pool

    def run(self, x: Any, *, consume: bool) -> tuple[Tensor, LayerStatistics] | None:
        """The three in one step with the statistics of the batch; ``None`` where they have to run one by one.

        That is where an input is not an image batch of float32 or float64 on a CPU, has one value per channel, or few
        channels, where a weight is not larger than zero, under autocast, and under global hooks. With ``consume``, the
        gradient is written where ``x`` is.
        """
        norm = self.norm
        fits = (
            isinstance(x, Tensor)
            and x.ndim == 4
            and x.device.type == "cpu"
            and x.dtype in (torch.float32, torch.float64)
            and x.dtype == norm.weight.dtype
            and x.shape[1] == norm.num_features >= _LEAST_CHANNELS
            and x.numel() > x.shape[1]
            and not torch.is_autocast_enabled("cpu")
            and not _has_any_global_hook()
        )
        if not fits or not can_pool_first(norm.weight):
            return None
        return normalized_and_pooled(x, norm.weight, norm.bias, norm.eps, self.pool, consume=consume)


class BlockSequence:
    """The forward of an ``nn.Sequential`` with blocks in it.

    Args:
        modules: the sequence.
        blocks: by the place of the batch norm.
        run: runs a block, given whether nothing else has its input, or returns ``None`` where its modules have to run
            one by one.
    """

    def __init__(
        self, modules: nn.Sequential, blocks: Mapping[int, Block], run: Callable[[Block, Any, bool], Any]
    ) -> None:
        self._parts = modules
        self._blocks = blocks
        self._run = run

    def __call__(self, input: Any) -> Any:  # noqa: A002 - PyTorch's own name for it
        """Run all modules in their order."""
        modules = list(self._parts)
        place, own = 0, False
        while place < len(modules):
            block = self._blocks.get(place)
            found = None if block is None else self._run(block, input, own)
            if found is not None:
                input, place = found, place + 3  # noqa: A001
                own = False
                continue
            module = modules[place]
            conv = place + 1 in self._blocks and type(module) is nn.Conv2d
            if conv:
                input = _pixels_first(input)  # noqa: A001
            input = module(input)  # noqa: A001
            # A convolution does not keep what it returns, and only a hook could.
            own = conv and _is_stock(module, nn.Conv2d.forward) and not _has_hooks(module)
            place += 1
        return input


def sequences_of(model: nn.Module, norms: Mapping[str, nn.Module]) -> Iterator[tuple[nn.Sequential, dict[int, Block]]]:
    """The sequences of a model that have blocks in them, with those.

    Args:
        model: the model.
        norms: the batch norms that may be taken, by path.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        >>> [list(blocks) for _, blocks in sequences_of(model, {"1": model[1]})]
        [[1]]
    """
    path_of = {id(norm): path for path, norm in norms.items()}
    for module in model.modules():
        # A subclass may have its own way of calling its parts, and an instance its own forward.
        if not isinstance(module, nn.Sequential) or not _is_stock(module, nn.Sequential.forward):
            continue
        parts = list(module)
        blocks: dict[int, Block] = {}
        for place, (norm, relu, pool) in enumerate(zip(parts, parts[1:], parts[2:], strict=False)):
            if id(norm) in path_of and _is_block(norm, relu, pool):
                stock = cast("nn.BatchNorm2d", norm)
                blocks[place] = Block(path_of[id(norm)], stock, _settings(cast("nn.MaxPool2d", pool)))
        if blocks:
            yield module, blocks


def _is_block(norm: nn.Module, relu: nn.Module, pool: nn.Module) -> bool:
    kinds = (type(norm), type(relu), type(pool)) == (nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)
    if not kinds or not isinstance(norm, nn.BatchNorm2d) or not norm.affine:
        return False
    alone = all(_is_stock(part, type(part).forward) for part in (norm, relu, pool))
    return alone and not any(map(_has_hooks, (norm, relu, pool))) and not cast("nn.MaxPool2d", pool).return_indices


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, hooks) for hooks in _HOOKS)


def _is_stock(module: nn.Module, forward: Any) -> bool:
    return type(module).forward is forward and "forward" not in module.__dict__


def _settings(pool: nn.MaxPool2d) -> Pool:
    kernel, stride, padding, dilation = (
        list(value) if isinstance(value, tuple) else [value, value]
        for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    return Pool(kernel, stride, padding, dilation, pool.ceil_mode)


def _pixels_first(x: Any) -> Any:
    """An image batch in the layout ``channels_last``, also where one channel leaves that open; convolutions keep it."""
    if not isinstance(x, Tensor) or x.ndim != 4 or x.device.type != "cpu" or x.stride(1) == 1:
        return x
    return x.clone(memory_format=torch.channels_last)
