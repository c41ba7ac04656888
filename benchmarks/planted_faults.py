"""Faults as data: a cause, how strong it is, and how it comes about in a net.

A fault is planted the way it happens: the net is trained on with it, or its checkpoint or data is damaged by the same
act. What ends up in the running statistics is left to that.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from planted_nets import EVERYWHERE, Batch, Net
from torch import nn

# How it can be measured, without the library, that something is wrong:
#   statistics  the running statistics are further from the population than those of the healthy net
#   data        the same, against the healthy net on held-out data
#   domains     the same, on each domain by itself
#   batch       a batch's own statistics are so noisy that train mode is another function than eval mode
#   counter     the counters disagree with the steps of the optimizer, or with one another
#   ranks       the processes' statistics lie apart
#   nothing     nothing is wrong
Proof: TypeAlias = Literal["statistics", "data", "domains", "batch", "counter", "ranks", "nothing"]


@dataclass(frozen=True)
class Case:
    """A model with a fault in it, and what a user would give to the diagnosis.

    Attributes:
        model: in eval mode.
        loader: a list of batches ``(x, labels)``, grouped as in training.
        options: further keyword arguments for ``diagnose``: ``train_loader``, ``domains``, ``steps``, ``ranks``.
        proof: by what it can be measured that the fault is real.
        domains: the data of each domain, whether or not the user names them.
        never: a remedy that must not be recommended; part of its name.
    """

    model: nn.Module
    loader: list[Batch]
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    proof: Proof = "statistics"
    domains: dict[str, list[Batch]] = field(default_factory=dict[str, "list[Batch]"])
    never: str | None = None


@dataclass(frozen=True)
class Fault:
    """How one cause comes about.

    Attributes:
        cause: what a diagnosis has to name; ``healthy`` for the controls.
        variant: by what it comes about, in a word or two.
        strength: 1 (just worth a repair) to 3; 0 for the controls.
        plant: makes the case from a net; the seed is that of the data's order and of what is drawn.
        nets: names of the nets in which it makes sense.
    """

    cause: str
    variant: str
    strength: int
    plant: Callable[[Net, int], Case]
    nets: tuple[str, ...]

    @property
    def name(self) -> str:
        """One line that names it."""
        return f"{self.cause}/{self.variant}/{self.strength}"


CIFAR = ("resnet20", "timm")
SIAMESE = ("siamese", "siamese_digits")
ALL = (*EVERYWHERE, "siamese", *CIFAR)
_FAULTS: list[Fault] = []


def planted(
    cause: str, variant: str, nets: tuple[str, ...] = ALL, strengths: tuple[int, ...] = (1, 2, 3)
) -> Callable[[Callable[[Net, int, int], Case]], Callable[[Net, int, int], Case]]:
    """A decorator for functions of net, strength and seed that plant a fault."""

    def keep(plant: Callable[[Net, int, int], Case]) -> Callable[[Net, int, int], Case]:
        for strength in strengths:

            def at(net: Net, seed: int, strength: int = strength) -> Case:
                return plant(net, strength, seed)

            _FAULTS.append(Fault(cause, variant, strength, at, nets))
        return plant

    return keep


def faults_for(net: str) -> list[Fault]:
    """Everything that can be planted in a net of this name, the healthy controls first."""
    # Each registers its faults when it is imported.
    for module in ("planted_controls", "planted_by_data", "planted_by_edit", "planted_by_training"):
        importlib.import_module(module)
    found = [fault for fault in _FAULTS if net in fault.nets]
    return sorted(found, key=lambda fault: fault.cause != "healthy")
