"""Which holds a module's own entries are under, and what was there before the first of them.

The ledger lives in the module's ``__dict__``, so that copies, pickles and re-created parameters keep their account, and
there is no registry on the side. Holds nest: an entry is free again when the last token is gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

KEY = "_frostline_ledger"


@dataclass
class Grip:
    """The holds on one entry, and what it was before the first.

    Attributes:
        before: what has to come back.
        tokens: token of each hold to its level.
    """

    before: Any
    tokens: dict[str, str] = field(default_factory=dict[str, str])


@dataclass
class Ledger:
    """The account of one module.

    Attributes:
        mode: the grip on its mode.
        gradients: local parameter name to the grip on ``requires_grad``.
        handlers: handler to the grip on what it has set.
    """

    mode: Grip | None = None
    gradients: dict[str, Grip] = field(default_factory=dict[str, Grip])
    handlers: dict[Any, Grip] = field(default_factory=dict[Any, Grip])

    @property
    def of_module(self) -> list[Grip]:
        """The grips on the module itself, not on its parameters."""
        return [*self.handlers.values(), *([self.mode] if self.mode else [])]

    @property
    def tokens(self) -> dict[str, str]:
        """The holds that touch this module, token to level, in the order in which they came."""
        grips = [*self.gradients.values(), *self.of_module]
        return {token: level for grip in grips for token, level in grip.tokens.items()}


def ledger_of(module: nn.Module) -> Ledger | None:
    """The module's ledger; ``None`` where nothing of it was ever held or all is released.

    Example:
        >>> ledger_of(nn.Linear(1, 1)) is None
        True
    """
    return module.__dict__.get(KEY)


def open_ledger(module: nn.Module) -> Ledger:
    """The module's ledger, made if there is none."""
    return module.__dict__.setdefault(KEY, Ledger())


def close_ledger(module: nn.Module) -> None:
    """Remove a ledger in which nothing is held any more."""
    ledger = ledger_of(module)
    if ledger is not None and not ledger.tokens:
        del module.__dict__[KEY]


def holds_statistics(module: nn.Module) -> bool:
    """Whether a hold keeps the running statistics of this module: any but one on its parameters alone.

    Example:
        >>> holds_statistics(nn.BatchNorm1d(2))
        False
    """
    ledger = ledger_of(module)
    return holds_mode(module) or (ledger is not None and not {"state", "stats"}.isdisjoint(ledger.tokens.values()))


def holds_mode(module: nn.Module) -> bool:
    """Whether a hold keeps this module in eval mode."""
    ledger = ledger_of(module)
    return ledger is not None and ledger.mode is not None
