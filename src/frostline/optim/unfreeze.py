"""When which part of a model begins to train, as values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from frostline.errors import ModelError
from frostline.optim.depth import By, Depths, depth_of
from frostline.state import names
from frostline.state.selection import Selector, exactly
from frostline.tables import html_text


@dataclass(frozen=True)
class Epoch:
    """After so many epochs."""

    number: int

    def __post_init__(self) -> None:
        _check_positive("Epoch", self.number)

    def __str__(self) -> str:
        return f"after epoch {self.number}"


@dataclass(frozen=True)
class Step:
    """After so many steps of the optimizer; steps that a gradient scaler skips do not count."""

    number: int

    def __post_init__(self) -> None:
        _check_positive("Step", self.number)

    def __str__(self) -> str:
        return f"after step {self.number}"


@dataclass(frozen=True)
class Plateau:
    """When a metric has not become better for so many epochs, counted anew after each part that was unfrozen.

    Attributes:
        patience: epochs without an improvement.
        mode: whether more is better.
        min_delta: what counts as an improvement.
    """

    patience: int
    mode: Literal["max", "min"] = "max"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        _check_positive("Plateau", self.patience)
        if not 0 <= self.min_delta < math.inf:
            raise ModelError(f"Plateau(min_delta={self.min_delta}): expected zero or more\n  fix: min_delta=0.0")
        if self.mode not in {"max", "min"}:
            raise ModelError(f"Plateau(mode={self.mode!r}): expected 'max' or 'min'\n  fix: mode='max' for an accuracy")

    def __str__(self) -> str:
        return f"after {self.patience} epochs without improvement"


When: TypeAlias = "Epoch | Step | Plateau"


@dataclass(frozen=True)
class Stage:
    """A part that begins to train.

    Attributes:
        parts: selectors of it.
        at: when.
        warmup: over so many steps its rate rises in a line to what its groups say.
    """

    parts: tuple[Selector, ...]
    at: When
    warmup: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.parts, (tuple, list)):  # pyright: ignore[reportUnnecessaryIsInstance] - "layer4" has parts too: letters
            raise ModelError(f"Stage(parts={self.parts!r}): expected a tuple of selectors\n  fix: ({self.parts!r},)")
        if not self.parts:
            raise ModelError("Stage: no part was named\n  fix: parts=('layer4',), for example")
        if not self.warmup >= 0:
            raise ModelError(f"Stage(warmup={self.warmup}): expected zero or more steps\n  fix: warmup=0")


@dataclass(frozen=True)
class Unfreeze:
    """A schedule: what its stages name is held until their time comes; everything else trains from the start.

    Attributes:
        stages: in the order in which they come.

    Example:
        >>> schedule = Unfreeze((Stage(("layer4",), Epoch(2)), Stage(("layer3",), Epoch(4), warmup=100)))
        >>> print(schedule)
        layer4: after epoch 2
        layer3: after epoch 4, warmed up over 100 steps
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        for kind in (Epoch, Step):
            numbers = [stage.at.number for stage in self.stages if isinstance(stage.at, kind)]
            if numbers != sorted(numbers):
                raise ModelError(f"Unfreeze: the stages are not in order: {numbers}\n  fix: the earliest first")

    def __str__(self) -> str:
        lines: list[str] = []
        for stage in self.stages:
            warmup = f", warmed up over {stage.warmup} steps" if stage.warmup else ""
            lines.append(f"{', '.join(map(_shown, stage.parts))}: {stage.at}{warmup}")
        return "\n".join(lines) or "nothing is held"

    def _repr_html_(self) -> str:
        return html_text(self)


def gradual(
    model: nn.Module,
    *,
    every: When,
    first: When | None = None,
    head: Selector | Sequence[Selector] | None = None,
    by: By = "auto",
    example: Any = None,
    layers: int = 1,
    warmup: int = 0,
) -> Unfreeze:
    """A schedule that unfreezes a model from the head down, some layers at a time. The model is only read.

    Each parameter that is not the head's is in one stage. A tensor that the head shares trains with the head; one that
    several layers share comes with the last of them. Layers without parameters that keep tensors (a batch norm without
    weight and bias) come with what was registered before them.

    Args:
        model: any module.
        every: how long to wait for the next layers: so many epochs or steps each, or a plateau.
        first: when the first ones come; by default as long as between the others.
        head: selectors of the head, which trains from the start; by default the model's classifier.
        by: how depth is told, see :func:`~frostline.optim.depth.depth_of`.
        example: inputs for one run, likewise.
        layers: how many at a time.
        warmup: steps over which the rate of what was unfrozen rises.

    Returns:
        The :class:`Unfreeze`.

    Raises:
        ModelError: there is no head, or a number is too small.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
        >>> print(gradual(model, every=Epoch(1), head="2"))
        1: after epoch 1
        0: after epoch 2

    Source: Howard & Ruder 2018 (ULMFiT, arXiv 1801.06146), section 3.3.
    """
    _check_positive("gradual(layers=...)", layers)
    depths = depth_of(model, by=by, head=head, example=example)
    if not depths.head:
        raise ModelError("gradual: the model does not say which part is its head\n  fix: head= with its path")
    trunk, rest = _trunk_of(model, depths)
    by_depth: dict[int, list[str]] = {}
    for name, depth in trunk.items():
        by_depth.setdefault(depth, []).append(name)
    order = sorted(by_depth, reverse=True)
    stages: list[Stage] = []
    for number, start in enumerate(range(0, len(order), layers)):
        members = [name for depth in order[start : start + layers] for name in by_depth[depth]]
        at: When = every
        if not isinstance(every, Plateau):
            begin = first.number if isinstance(first, type(every)) else every.number
            at = type(every)(begin + number * every.number)
        if number == 0 and first is not None:
            at = first
        stages.append(Stage(_tops(model, members, rest | (trunk.keys() - set(members))), at, warmup))
    return Unfreeze(tuple(stages))


def probe_then_tune(
    model: nn.Module,
    *,
    at: When,
    head: Selector | Sequence[Selector] | None = None,
    warmup: int = 0,
) -> Unfreeze:
    """A linear probe first, then everything: the head trains alone, and from some time on the trunk with it.

    A head that starts from random values tears at a trunk that is trained with it from the first step; one that is
    trained does so much less.

    Args:
        model: any module; it is only read.
        at: when the trunk joins.
        head: selectors of the head; by default the model's classifier.
        warmup: steps over which the trunk's rate rises.

    Raises:
        ModelError: there is no head.

    Example:
        >>> model = nn.ModuleDict({"trunk": nn.Linear(2, 2), "fc": nn.Linear(2, 1)})
        >>> print(probe_then_tune(model, at=Epoch(3)))
        trunk: after epoch 3

    Source: Kumar et al. 2022 (LP-FT, arXiv 2202.10054).
    """
    depths = depth_of(model, by="blocks", head=head)
    if not depths.head:
        raise ModelError("probe_then_tune: the model does not say which part is its head\n  fix: head= with its path")
    trunk, rest = _trunk_of(model, depths)
    return Unfreeze((Stage(_tops(model, list(trunk), rest), at, warmup),))


def _trunk_of(model: nn.Module, depths: Depths) -> tuple[dict[str, int], set[str]]:
    """Paths of tensors that are not the head's, with their depths, and those of the rest.

    They are the parameters, and the buffers of modules without any, which no parameter would bring along.
    """
    depth_at: dict[str, int | None] = {}
    tensors: dict[str, Tensor] = {}
    last: int | None = min((depth for name, depth in depths.of.items() if name not in depths.head), default=None)
    for path, module in names.unwrap(model).named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(prefix=path, recurse=False, remove_duplicate=False):
            depth_at[name] = last = None if name in depths.head else depths.of[name]
            tensors[name] = parameter
        if next(module.parameters(), None) is None:
            for name, buffer in module.named_buffers(prefix=path, recurse=False, remove_duplicate=False):
                depth_at[name], tensors[name] = last, buffer
    # One tensor comes at one time, whatever its names.
    shared: dict[int, set[int | None]] = {}
    for name, depth in depth_at.items():
        shared.setdefault(id(tensors[name]), set()).add(depth)
    trunk: dict[str, int] = {}
    for name in depth_at:
        found = shared[id(tensors[name])]
        if None not in found:
            trunk[name] = min(depth for depth in found if depth is not None)
    return trunk, set(depth_at) - set(trunk)


def _tops(model: nn.Module, members: Sequence[str], others: set[str]) -> tuple[Selector, ...]:
    """The fewest modules that hold these tensors and none of the others, and what is left of them one by one."""
    root = names.unwrap(model)
    modules = dict(root.named_modules(remove_duplicate=False))
    foreign = {".".join(name.split(".")[:n]) for name in others for n in range(1, name.count(".") + 1)}
    found: dict[str, None] = {}
    for name in members:
        parts = name.split(".")
        tops = (".".join(parts[:n]) for n in range(1, len(parts)))
        found[next((top for top in tops if top in modules and top not in foreign), name)] = None
    return tuple(exactly(path) for path in found)


def _check_positive(name: str, number: int) -> None:
    if not number >= 1:
        raise ModelError(f"{name}: {number} is too small\n  fix: 1 or more")


def _shown(selector: Selector) -> str:
    return selector if isinstance(selector, str) else repr(selector)
