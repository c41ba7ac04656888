"""The momentum that keeps the memory of running statistics, in steps, where a step makes several forward passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from frostline.attach.ledger import holds_mode
from frostline.errors import NormsError, NoStatistics
from frostline.norms.observe import tracked_layers
from frostline.norms.policy import EMA
from frostline.norms.read_policy import policy_of
from frostline.state import names
from frostline.state.selection import Selector
from frostline.tables import html_text


@dataclass(frozen=True)
class MomentumHandle:
    """The layers whose momentum was rescaled; as a context manager it restores them at the end of the block.

    Attributes:
        layers: path to layer.
        before: path to the momentum that was there.
        after: path to the momentum that is there now.
        skipped: path to the reason, for the layers with running statistics that were left as they are.
    """

    layers: dict[str, nn.Module]
    before: dict[str, float]
    after: dict[str, float]
    skipped: dict[str, str]

    def remove(self) -> None:
        """Restore each momentum, unless someone else has set another since; a second time does nothing."""
        for path, layer in self.layers.items():
            if layer.momentum == self.after[path]:
                layer.momentum = self.before[path]  # pyright: ignore[reportArgumentType] - torch declares tensors

    def __enter__(self) -> MomentumHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __str__(self) -> str:
        pairs = sorted({(self.before[path], self.after[path]) for path in self.layers})
        changes = ", ".join(f"{before:g} -> {after:.4g}" for before, after in pairs)
        return f"momentum of {len(self.layers)} layers: {changes}"

    def _repr_html_(self) -> str:
        return html_text(self)


def momentum_for(steps_momentum: float, forwards_per_step: int) -> float:
    """The momentum ``1 - (1 - m) ** (1 / k)``, with which k updates keep of the old value what one with m does.

    Args:
        steps_momentum: m, the weight of the new values of a whole step.
        forwards_per_step: k, the number of forward passes in a step.

    Returns:
        The momentum of each forward pass.

    Raises:
        NormsError: k is less than one.
        ValueError: m is not between 0 and 1.

    Example:
        >>> round(momentum_for(0.1, 8), 5)
        0.01308
    """
    EMA(steps_momentum)
    if forwards_per_step < 1:
        raise NormsError(f"a step makes one forward pass at least, not {forwards_per_step!r}")
    if steps_momentum == 1.0:
        return 1.0
    return -math.expm1(math.log1p(-steps_momentum) / forwards_per_step)


def rescale_momentum(model: nn.Module, forwards_per_step: int, *selectors: Selector) -> MomentumHandle:
    """Make running statistics remember as many steps as they did, where each step makes several forward passes.

    The cheap alternative to :func:`~frostline.norms.step_commit.step_commit`: only the momentum of the layers changes.
    It keeps memory and noise at the level of one update per step. The batches stay small, and what is normalized with
    their statistics, too; and the variance between the micro-batches of a step stays uncounted. For activation
    checkpointing, which runs each batch twice, it is exact (k = 2: ``1 - sqrt(1 - m)``).

    Args:
        model: any module; wrappers are looked through.
        forwards_per_step: how many forward passes of each layer a step of the optimizer makes.
        *selectors: only this part; the whole model by default. Held layers, and layers that follow a policy or a
            commit per step, are left as they are.

    Returns:
        The :class:`MomentumHandle`, which is a context manager too.

    Raises:
        NormsError: a layer has momentum None.
        NoStatistics: no layer is left.
        NothingSelected: a selector matches nothing.

    Example:
        >>> layer = nn.BatchNorm1d(2, momentum=0.1)
        >>> with rescale_momentum(layer, 8) as handle:
        ...     print(handle)
        momentum of 1 layers: 0.1 -> 0.01308
        >>> layer.momentum
        0.1

    Source: ``pytorch_pfn_extras/utils/checkpoint.py:_patch_bn_momentum`` has the case k = 2.
    """
    tracked = tracked_layers(model, *selectors)
    without = [path for path, layer in tracked.items() if not holds_mode(layer) and _momentum(layer) is None]
    if without:
        raise NormsError(
            f"rescale_momentum: momentum=None in {names.name_folded(without, root='(the model)')}: "
            "a batch norm then averages over all batches alike, an instance norm never updates, and neither has a "
            "memory that could be rescaled\n  fix: leave them out, or set a momentum first"
        )
    skipped = {path: why for path, layer in tracked.items() if (why := _why_left(layer))}
    layers = {path: layer for path, layer in tracked.items() if path not in skipped}
    if not layers:
        raise NoStatistics(
            f"rescale_momentum: no layer updates statistics by its momentum ({len(skipped)} left as they are)"
        )
    before = {path: float(layer.momentum) for path, layer in layers.items()}  # type: ignore[arg-type]
    after = {path: momentum_for(momentum, forwards_per_step) for path, momentum in before.items()}
    for path, layer in layers.items():
        layer.momentum = after[path]  # pyright: ignore[reportArgumentType]
    return MomentumHandle(layers, before, after, skipped)


def _momentum(layer: nn.Module) -> float | None:
    return getattr(layer, "momentum", None)


def _why_left(layer: nn.Module) -> str | None:
    if holds_mode(layer):
        return "held"
    said = policy_of(layer, training=True)
    by_momentum = said is not None and said.update == EMA(_momentum(layer) or 0.0)
    return None if by_momentum else f"in train mode it {said}"
