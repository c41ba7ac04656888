"""What each way to run a prefix would save, estimated by timing it beside a plain step.

All ways are timed in turn, several times, and the median counts, because machines are shared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from frostline.errors import FastError
from frostline.fast.features import Features
from frostline.fast.prefix import Prefix
from frostline.norms.untouched import untouched
from frostline.state.inventory import inventory

_ROUNDS = 3


@dataclass(frozen=True)
class Saving:
    """What one way costs.

    Attributes:
        name: ``plain``, the words of a variant, or ``cached``.
        prefix_seconds: of the prefix, for one sample.
        step_seconds: of the prefix and the rest, forward and backward, for one sample.
        difference: from the plain prefix, relative to the largest feature; 0 is equal to the bit.
        note: why it is not to be had, if it is not.
    """

    name: str
    prefix_seconds: float | None
    step_seconds: float | None
    difference: float | None
    note: str = ""

    def times_as_fast(self, plain: Saving) -> float | None:
        """The plain step's time as a multiple of this one's."""
        if not self.step_seconds or not plain.step_seconds:
            return None
        return plain.step_seconds / self.step_seconds


def time_savings(root: nn.Module, make: Callable[..., Prefix], args: Any, kwargs: Any) -> tuple[Saving, ...]:
    """Time the plain step, the variants that need no compiler, and features that are read instead of computed.

    Args:
        root: the model; it is as before afterwards, and its gradients are not touched.
        make: makes the prefix of a variant.
        args: positional arguments of a batch.
        kwargs: keyword arguments.
    """
    samples = next(len(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim)
    plain = make(rows=samples)
    features = plain(*args, **kwargs)
    ways: dict[str, Prefix] = {"plain": plain}
    differences: dict[str, float] = {"plain": 0.0}
    notes: dict[str, str] = {}
    for words in variants_for(root, plain):
        name = ", ".join(words)
        try:
            ways[name] = make(*words, rows=samples)
            differences[name] = max(ways[name].check(*args, **kwargs))
        except FastError as error:
            ways.pop(name, None)
            notes[name] = str(error).splitlines()[0]
    clocks: dict[str, list[float]] = {name: [] for name in [*ways, "rest", "cached"]}
    for _ in range(_ROUNDS):
        for name, prefix in ways.items():
            clocks[name].append(_timed(lambda prefix=prefix: prefix(*args, **kwargs)))
        clocks["rest"].append(_rest(root, plain, features))
        clocks["cached"].append(_timed(lambda: [each.clone() for each in features]))
    medians = {name: statistics.median(times) / samples for name, times in clocks.items()}
    rows = [Saving(name, medians[name], medians[name] + medians["rest"], differences[name]) for name in ways]
    rows += [Saving(name, None, None, None, note) for name, note in notes.items()]
    rows.append(Saving("cached", medians["cached"], medians["cached"] + medians["rest"], 0.0))
    return tuple(rows)


def variants_for(root: nn.Module, prefix: Prefix) -> list[tuple[str, ...]]:
    """The variants that could bring something, by the layers that a prefix has.

    Example:
        >>> import frostline as fl
        >>> model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(4, 1))
        >>> hold = fl.freeze(model, "0")
        >>> variants_for(model, fl.fast.plan(model, torch.ones(2, 1, 2, 2), timing=False).prefix())
        [('channels_last',)]
    """
    read = inventory(root).tensors
    folds = any(path.endswith("running_var") for path in prefix.entries)
    images = any(read[path].ndim == 4 for path in prefix.entries)
    words: list[tuple[str, ...]] = [("folded",)] if folds else []
    words += [("channels_last",)] if images else []
    return [*words, ("folded", "channels_last")] if folds and images else words


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _rest(root: nn.Module, prefix: Prefix, features: Features) -> float:
    """The seconds of the rest, forward and backward, as it is trained; no gradient is kept, no statistic moves."""
    trains = [parameter for parameter in root.parameters() if parameter.requires_grad]

    def step() -> None:
        outputs = [leaf for leaf in tree_leaves(prefix.rest(features)) if isinstance(leaf, Tensor)]
        loss = sum((out.float().sum() for out in outputs if out.requires_grad), torch.zeros(()))
        if trains and loss.requires_grad:
            torch.autograd.grad(loss, trains, allow_unused=True)

    with untouched(root), torch.enable_grad():
        root.train()
        return _timed(step)
