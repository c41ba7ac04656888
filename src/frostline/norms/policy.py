"""What a normalization layer does with statistics, as a value on two axes: which it uses, and how it updates its own.

The axes stand apart from ``training`` and from ``requires_grad``. PyTorch encodes them in three switches (mode,
``track_running_stats``, whether the buffers exist), by which some pairs cannot be expressed at all, *running and
updated* among them; as values they all can (:mod:`frostline.norms.policed` carries them out).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Blend:
    """Use a mixture of the running statistics and those of the batch.

    Mean and variance are blended linearly, ``(1 - batch_weight) * running + batch_weight * batch``, as published code
    for adaptation to a new domain does (Schneider et al. 2020, section 3, with ``batch_weight = n / (N + n)``).

    Attributes:
        batch_weight: between 0 (running) and 1 (batch).
    """

    batch_weight: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.batch_weight <= 1.0:
            raise ValueError(f"Blend: batch_weight is a share between 0 and 1, not {self.batch_weight!r}")

    def __str__(self) -> str:
        return f"blend({self.batch_weight:g} batch)"


@dataclass(frozen=True)
class Domain:
    """Use the statistics of the domain that is current, or of each sample's own domain.

    Attributes:
        names: the domains that the layer keeps statistics of.
    """

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"domain({', '.join(self.names)})"


@dataclass(frozen=True)
class EMA:
    """Update by an exponential moving average, once in each forward pass.

    Attributes:
        momentum: the weight of the new value, as in PyTorch; TensorFlow and Keras count the other way round.
    """

    momentum: float

    def __post_init__(self) -> None:
        _check_momentum("EMA", self.momentum)

    def __str__(self) -> str:
        return f"ema({self.momentum:g})"


@dataclass(frozen=True)
class Cumulative:
    """Update by the plain average over all batches since the counter was zero (``momentum=None`` in PyTorch)."""

    def __str__(self) -> str:
        return "cumulative"


@dataclass(frozen=True)
class OncePerStep:
    """Stage the statistics of each forward pass, merge them, and update once in each step of the optimizer.

    Attributes:
        momentum: the weight of the new value in that one update.
    """

    momentum: float

    def __post_init__(self) -> None:
        _check_momentum("OncePerStep", self.momentum)

    def __str__(self) -> str:
        return f"once per step({self.momentum:g})"


Use: TypeAlias = "Literal['batch', 'running', 'instance', 'sample'] | Blend | Domain"
Update: TypeAlias = "EMA | Cumulative | OncePerStep | None"


@dataclass(frozen=True)
class StatsPolicy:
    """What a layer does with statistics.

    Attributes:
        use: which statistics it normalizes with: ``"batch"`` (this batch's), ``"running"`` (its buffers), a
            :class:`Blend` of the two or those of a :class:`Domain`; ``"instance"`` and ``"sample"`` are read off layers
            that never look at the batch, and cannot be set.
        update: how a forward pass updates the running statistics: :class:`EMA`, :class:`Cumulative`,
            :class:`OncePerStep`, or ``None`` for not at all.

    Example:
        >>> print(StatsPolicy("running", EMA(0.1)))
        uses running, updates ema(0.1)
        >>> print(StatsPolicy("batch"))
        uses batch, updates nothing
    """

    use: Use
    update: Update = None

    def __str__(self) -> str:
        return f"uses {self.use}, updates {self.update or 'nothing'}"


def _check_momentum(name: str, momentum: float) -> None:
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(
            f"{name}: momentum is the weight of the new value, between 0 and 1, not {momentum!r}\n"
            "  (a momentum of TensorFlow or Keras is one minus that of PyTorch)"
        )
