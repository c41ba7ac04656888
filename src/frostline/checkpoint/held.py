"""Which entries of a model a hold holds, as far as checkpoints ask: the grips that it has left in the modules."""

from __future__ import annotations

from torch import nn

from frostline.attach.ledger import holds_statistics, ledger_of
from frostline.state.inventory import Entry


def is_held(module: nn.Module, entry: Entry) -> bool:
    """Whether a parameter or buffer is held.

    Args:
        module: its owner.
        entry: it.

    Example:
        >>> from frostline import freeze, inventory
        >>> model = nn.BatchNorm1d(2)
        >>> hold = freeze(model, "", level="grad")
        >>> entries = inventory(model)
        >>> is_held(model, entries["weight"]), is_held(model, entries["running_mean"])
        (True, False)
    """
    ledger = ledger_of(module)
    if ledger is None:
        return False
    if entry.kind == "parameter":
        return entry.path.rpartition(".")[2] in ledger.gradients
    return holds_statistics(module)
