"""Reads the graph behind a loss: the leaves it reaches, and whether it is a mean, and over how many elements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

_MOST_NODES = 20_000
_LOSSES = (
    "MseLossBackward0",
    "SmoothL1LossBackward0",
    "HuberLossBackward0",
    "L1LossBackward0",
    "BinaryCrossEntropyBackward0",
    "BinaryCrossEntropyWithLogitsBackward0",
)
_MEAN = 1  # at::Reduction::Mean


def leaves_of(roots: Iterable[Any]) -> Iterator[Tensor]:
    """The leaves that a backward pass from these tensors would reach.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> [leaf is weight for leaf in leaves_of([(weight * 2).sum()])]
        [True]
    """
    level: list[Any] = [t.grad_fn for t in roots if isinstance(t, Tensor) and t.grad_fn is not None]
    known: set[Any] = set()
    while level and len(known) < _MOST_NODES:
        node = level.pop()
        if node in known:
            continue
        known.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            yield leaf
        level += [following for following, _ in node.next_functions if following is not None]


def reduction_of(roots: list[Any]) -> tuple[bool | None, int, float | None]:
    """Whether a loss is a mean, over how many elements, and what that mean was multiplied by afterwards.

    Returns:
        Whether it is a mean (``None`` where the graph does not say), the count (0 where it is not known) and the
        factor (``None`` likewise).

    Example:
        >>> logits = torch.zeros(6, 3, requires_grad=True)
        >>> loss = torch.nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
        >>> reduction_of([loss / 2])
        (True, 6, 0.5)
    """
    if len(roots) != 1 or not isinstance(roots[0], Tensor):
        return None, 0, None
    try:
        return _reduction(roots[0].grad_fn)
    except (AttributeError, RuntimeError):  # another torch keeps other names, or the graph was freed
        return None, 0, None


def _reduction(node: Any) -> tuple[bool | None, int, float | None]:
    scale = 1.0
    while node is not None and node.name() in {"DivBackward0", "MulBackward0"}:
        other = node._saved_other
        if isinstance(other, Tensor):
            if other.dim() or other.requires_grad or other.device.type != "cpu":
                return None, 0, None
            other = float(other)
        if other is None:
            return None, 0, None
        scale = scale / float(other) if node.name() == "DivBackward0" else scale * float(other)
        node = node.next_functions[0][0]
    if node is None:
        return None, 0, None
    name = node.name()
    if name in {"NllLossBackward0", "NllLoss2DBackward0"}:
        mean = node._saved_reduction == _MEAN
        weight = node._saved_total_weight
        return mean, int(weight) if mean and weight.device.type == "cpu" else 0, scale
    if name in _LOSSES:
        return node._saved_reduction == _MEAN, node._saved_self.numel(), scale
    if name == "MeanBackward0":
        sizes = node._saved_self_sym_sizes
        return True, int(torch.Size(sizes).numel()), scale
    return (False, 0, scale) if name == "SumBackward0" else (None, 0, None)
