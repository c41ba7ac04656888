"""What one head is to learn, and how; a sweep is one task at several rates and decays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from decimal import Decimal
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from frostline.errors import DataError, ModelError, name_some

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
# What torch's generators take.
_SEEDS = 2**64


@dataclass(frozen=True, eq=False)
class HeadTask:
    """What one head is to learn. Nothing that is given is changed: a ``head`` is copied before it trains.

    Attributes:
        targets: what is to be learned, one for each of ``samples``; classes as integers, or whatever ``loss`` takes.
        val_targets: likewise for validation; without them there is no accuracy.
        out_features: the outputs of a new ``nn.Linear`` on the features, which starts as torch's own does, drawn from
            ``seed``.
        head: the module to train instead; it is called with every tensor of the features.
        lr: the rate of AdamW.
        weight_decay: its decay.
        epochs: how often the samples are gone through, at most.
        batch_size: samples a step.
        patience: stop after so many epochs without a better validation, and give back the best state; ``None`` trains
            all epochs and gives back the last.
        loss: of the outputs and the targets; a mean over the samples.
        seed: of a new head, the order, and whatever the head draws.
        samples: which samples of the features it trains on; all of them by default.
        val_samples: likewise of those to validate on.

    Raises:
        ModelError: a setting is out of its range, or there is not just one of ``out_features`` and ``head``.
        DataError: the targets do not belong to the samples.

    Example:
        >>> HeadTask([0, 1, 1], out_features=2).targets
        tensor([0, 1, 1])
    """

    targets: Tensor | Sequence[Any]
    val_targets: Tensor | Sequence[Any] | None = None
    _: KW_ONLY
    out_features: int | None = None
    head: nn.Module | None = None
    lr: float = 2e-3
    weight_decay: float = 0.01
    epochs: int = 10
    batch_size: int = 32
    patience: int | None = None
    loss: Loss = nn.functional.cross_entropy
    seed: int = 0
    samples: Tensor | Sequence[int] | None = None
    val_samples: Tensor | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if (self.out_features is None) == (self.head is None):
            both = "neither is given" if self.head is None else "both are given"
            raise ModelError(
                f"HeadTask: out_features or head, and {both}\n  fix: out_features=2, or head=nn.Linear(...)"
            )
        for name, low in (("out_features", 1), ("epochs", 1), ("batch_size", 1), ("patience", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ModelError(f"HeadTask: {name}={value} is too small\n  fix: {low} or more")
        if self.seed >= _SEEDS:
            raise ModelError(f"HeadTask: seed={self.seed} is too large\n  fix: less than 2**64")
        for name, above in (("lr", "above 0"), ("weight_decay", "0 or more")):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (name == "lr" and value == 0):
                raise ModelError(f"HeadTask: {name}={value} cannot be used\n  fix: a number, {above}")
        for targets, samples in (("targets", "samples"), ("val_targets", "val_samples")):
            self._read(targets, samples)
        if self.patience is not None and self.val_targets is None:
            raise DataError(
                f"HeadTask: patience={self.patience} has nothing to judge by\n  fix: val_targets=..., or no patience"
            )

    def _read(self, targets: str, samples: str) -> None:
        """Make tensors of what was given, and check that the two belong together."""
        values, places = getattr(self, targets), getattr(self, samples)
        if values is not None:
            values = _tensor(values, targets)
            # Classes as bytes or flags are what losses refuse with a message about types.
            whole = not values.is_floating_point() and not values.is_complex()
            object.__setattr__(self, targets, values.long() if whole else values)
        if places is None:
            return
        places = _tensor(places, samples).cpu()
        if places.dtype is torch.bool or places.is_floating_point() or places.ndim != 1:
            raise DataError(
                f"HeadTask: {samples} is of shape {tuple(places.shape)} and {places.dtype}\n"
                "  expected: the numbers of the samples, in one dimension\n"
                "  fix: for a mask, mask.nonzero().flatten()"
            )
        object.__setattr__(self, samples, places.long())
        if values is None:
            raise DataError(f"HeadTask: {samples} without {targets}\n  fix: {targets}=..., one for each of them")
        if len(values) != len(places):
            raise DataError(
                f"HeadTask: {len(values)} {targets} for {len(places)} {samples}\n  fix: one target for each sample"
            )


def sweep(task: HeadTask, *, lr: Sequence[float] = (), weight_decay: Sequence[float] = ()) -> dict[str, HeadTask]:
    """The same task at several rates and decays, in all combinations.

    Args:
        task: what the values are put in; what is not swept stays as it is there.
        lr: the rates.
        weight_decay: the decays.

    Returns:
        Name to task. A name says the values, without a dot, so that it makes a path: ``lr=25e-4``.

    Raises:
        ModelError: there is nothing to sweep over, or a value occurs twice.

    Example:
        >>> list(sweep(HeadTask([0, 1], out_features=2), lr=(1e-3, 2.5e-3), weight_decay=(0.0, 0.01)))
        ['lr=1e-3 wd=0', 'lr=1e-3 wd=1e-2', 'lr=25e-4 wd=0', 'lr=25e-4 wd=1e-2']
    """
    values = {"lr": tuple(map(float, lr)), "weight_decay": tuple(map(float, weight_decay))}
    for name, each in values.items():
        if len(set(each)) < len(each):
            raise ModelError(f"sweep: a value of {name} occurs twice in {each}\n  fix: leave one of them out")
    swept = {name: each for name, each in values.items() if each}
    if not swept:
        raise ModelError("sweep: there is nothing to sweep over\n  fix: lr=(1e-3, 2e-3), for example")
    tasks: dict[str, HeadTask] = {}
    for chosen in itertools.product(*swept.values()):
        settings = dict(zip(swept, chosen, strict=True))
        title = " ".join(f"{_SHORT[name]}={_spelled(value)}" for name, value in settings.items())
        tasks[title] = replace(task, **settings)
    return tasks


def check_names(tasks: Mapping[str, HeadTask]) -> None:
    """Refuse names that make no path in ``nn.ModuleDict``, where heads end up.

    Raises:
        ModelError: there is no task, or the names that cannot be used.
    """
    if not tasks:
        raise ModelError("there is no head to train\n  fix: at least one task, {'name': HeadTask(...)}")
    bad = [name for name in tasks if not makes_path(name)]
    if bad:
        raise ModelError(
            f"a head cannot be named {name_some([repr(name) for name in bad])}: that makes no path\n"
            "  fix: a name without dots that nn.ModuleDict has no meaning for"
        )


def makes_path(name: str) -> bool:
    """Whether a head can have this name.

    Example:
        >>> [makes_path(name) for name in ("bees", "bees.v2", "keys", "")]
        [True, False, False, False]
    """
    return bool(name.strip()) and "." not in name and name.isprintable() and not hasattr(nn.ModuleDict(), name)


_SHORT = {"lr": "lr", "weight_decay": "wd"}


def _spelled(value: float) -> str:
    """A number without a dot, exact: its digits and a power of ten."""
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    text = ("-" if sign else "") + "".join(map(str, digits))
    return text if exponent == 0 else f"{text}e{exponent}"


def _tensor(values: Any, name: str) -> Tensor:
    try:
        tensor = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"HeadTask: {name} cannot be read as numbers: {error}\n"
            "  fix: the class of each sample as an integer, for example classes.index(label)"
        ) from error
    if tensor.ndim == 0 or not len(tensor):
        raise DataError(f"HeadTask: {name} is empty\n  fix: one for each sample")
    return tensor
