"""What was held, as a checkpoint keeps it: the digest of each tensor, to be compared with what a later run holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from frostline.errors import FrozenStateMoved, name_some
from frostline.freezing import Hold
from frostline.state import Snapshot

# Modes and flags are the hold's own, and the layer's configuration is the code's: a checkpoint has tensors.
_TENSORS = frozenset({"parameter", "buffer"})


def held_marks(holds: Iterable[Hold]) -> dict[str, str]:
    """Path to digest of every tensor that the holds have, as they were when they were last taken down.

    Example:
        >>> import torch
        >>> import frostline as fl
        >>> layer = torch.nn.BatchNorm1d(2, affine=False)
        >>> list(held_marks([fl.freeze(layer, "*")]))
        ['running_mean', 'running_var', 'num_batches_tracked']
    """
    return {
        path: str(record.mark) for hold in holds for path, record in hold.reference.items() if record.kind in _TENSORS
    }


def check_marks(saved: Mapping[str, Any], holds: Iterable[Hold]) -> None:
    """Compare what a checkpoint says was held with what is held now, for the entries that both have.

    Args:
        saved: of :func:`held_marks`.
        holds: the holds, refreshed after the checkpoint was loaded.

    Raises:
        FrozenStateMoved: they differ; its ``diff`` names each entry.
    """
    now = Snapshot({path: record for hold in holds for path, record in hold.reference.items() if path in saved})
    then = Snapshot({path: replace(record, mark=saved[path], value=None) for path, record in now.items()})
    then.partial = now.partial = True
    diff = then.diff(now)
    if diff:
        raise FrozenStateMoved(
            f"{len(diff.moved)} of {len(now)} held entries are not what the checkpoint's run held: "
            f"{name_some(diff.paths, rest='error.diff')}\n"
            "  the checkpoint does not have them, has been changed, or was loaded into a model of other origin\n"
            "  fix: begin with the model that the run began with; or begin a new run from the checkpoint's weights",
            diff,
        )
