"""What a state dict does not carry of normalization layers, eps above all: written beside tensors, compared on loading.

A FrozenBatchNorm with eps 0 in place of a BatchNorm with 1e-5, or a synchronized layer in place of one of the user's
own, takes the same tensors and computes something else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from frostline.checkpoint.opened import Checkpoint
from frostline.errors import printable
from frostline.state.inventory import inventory
from frostline.state.names import parent

HEADER = "frostline.norms"
_COMPARED = ("type", "eps", "num_groups")


def norm_settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Type, eps and number of groups of each normalization layer, by its path.

    Example:
        >>> norm_settings(nn.Sequential(nn.BatchNorm1d(2, eps=1e-3)))
        {'0': {'type': 'BatchNorm1d', 'eps': 0.001}}
    """
    found: dict[str, dict[str, Any]] = {}
    for path, entry in inventory(model).items():
        name = path.rpartition(".")[2]
        if entry.kind == "config" and entry.role.startswith("norm.") and name in _COMPARED:
            found.setdefault(entry.module, {"type": entry.module_type})[name] = entry.value
    return found


def compare_settings(
    model: nn.Module, checkpoint: Checkpoint, source: nn.Module | None, pairs: Mapping[str, str]
) -> list[str]:
    """What differs between the layers that tensors come from and those they go to, in words; mostly nothing is known.

    Args:
        model: what the tensors go to.
        checkpoint: what they come from; a header that Frostline wrote tells the settings.
        source: the model that they come from, if it is at hand.
        pairs: names of tensors there to paths in the model.
    """
    theirs = norm_settings(source) if source is not None else _told(checkpoint)
    if not theirs:
        return []
    mine = norm_settings(model)
    differing: Counter[tuple[str, str, str]] = Counter()
    first: dict[tuple[str, str, str], str] = {}
    for there, here in {(parent(there), parent(here)) for there, here in pairs.items()}:
        for key in _COMPARED:
            before, now = theirs.get(there, {}).get(key), mine.get(here, {}).get(key)
            if before != now and before is not None and now is not None:
                case = (key, str(before), str(now))
                differing[case] += 1
                first[case] = min(first.get(case, here), here)
    return [
        printable(f"{key} is {before} in the checkpoint and {now} in the model, in {count} layers ({first[case]} ...)")
        for case, count in sorted(differing.items())
        for key, before, now in [case]
    ]


def _told(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    try:
        told = json.loads(checkpoint.metadata.get(HEADER, "{}"))
    except (ValueError, RecursionError):  # anyone can write a header
        return {}
    if not isinstance(told, dict) or not all(isinstance(each, dict) for each in told.values()):
        return {}
    plain = {"type": str, "eps": (int, float), "num_groups": int}
    return {
        path: {key: value for key, value in each.items() if key in plain and isinstance(value, plain[key])}
        for path, each in told.items()
    }
