"""Compares two states of a model, or two models."""

from __future__ import annotations

from torch import nn

from frostline.state.changes import StateDiff
from frostline.state.selection import Selector
from frostline.state.snapshot import Snapshot, snapshot


def diff(before: nn.Module | Snapshot, after: nn.Module | Snapshot, *selectors: Selector) -> StateDiff:
    """Say what differs between two snapshots, two models, or one of each. Neither is changed.

    Paths are compared as they are; the values by digest. Rows say by how much where both values are at hand: for two
    models, and for a snapshot that was taken with ``values``.

    Args:
        before: a model or a snapshot.
        after: another one.
        *selectors: the part of a model ``before`` that is looked at; none means all of it.

    Returns:
        The :class:`~frostline.state.changes.StateDiff`.

    Raises:
        NothingSelected: a selector matches nothing.
        TypeError: selectors were given with a snapshot, which covers what it covers.

    Example:
        >>> import torch
        >>> a, b = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> _ = b.load_state_dict(a.state_dict())
        >>> print(diff(a, b))
        nothing moved: 5 entries equal to the bit
    """
    if isinstance(before, Snapshot):
        if selectors:
            raise TypeError("diff: selectors go with a model; a snapshot covers the part that it was taken of")
        return before.diff(after)
    return snapshot(before, *selectors, values=True).diff(after)
