"""The account of what was to stay: each entry as it was, as it is, and whether the two are equal."""

from __future__ import annotations

from typing import Any

from torch import nn

from frostline.state.inventory import entries_at
from frostline.state.snapshot import Snapshot, record_entries


def held_rows(before: Snapshot, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Path to what the entry was, what it is, and whether the two are equal; digests for tensors, values for flags.

    Example:
        >>> from frostline.state.snapshot import snapshot
        >>> layer = nn.Linear(1, 1)
        >>> held_rows(snapshot(layer), layer)["training"]
        {'before': True, 'after': True, 'equal': True}
    """
    after = record_entries(entries_at(model, before))
    rows: dict[str, dict[str, Any]] = {}
    for path, record in before.items():
        now = after.get(path)
        mark = None if now is None else now.mark
        same = now is not None and (now.mark, now.dtype, now.shape) == (record.mark, record.dtype, record.shape)
        rows[path] = {"before": record.mark, "after": mark, "equal": same}
    return rows
