"""A model, a part of one, or the result of a plan, as a folder of ``torch.distributed.checkpoint``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast

from torch import Tensor, nn

from frostline.checkpoint.convert import plan_entries
from frostline.checkpoint.delta import Selectors
from frostline.checkpoint.distributed_writer import write_distributed
from frostline.checkpoint.held import is_held
from frostline.checkpoint.norm_settings import HEADER, norm_settings
from frostline.checkpoint.plan import LoadPlan
from frostline.checkpoint.readers.distributed import OWN
from frostline.errors import CheckpointError
from frostline.state import names
from frostline.state.inventory import Entry, inventory
from frostline.state.selection import Selector, select

What: TypeAlias = Literal["everything", "held", "trainable"]


def save_distributed(
    source: nn.Module | LoadPlan | Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    take: Selectors = (),
    what: What = "everything",
) -> int:
    """Write a folder of ``torch.distributed.checkpoint``, whole or not at all; the values of ``source`` stay.

    Without an initialized ``torch.distributed`` this process writes alone. With one, every process has to call this;
    each writes its own shards, and one of them what all have; values that are no tensors are those of the first
    process. Torch's ``load`` reads the folder, and so does everything here that reads checkpoints, in one process too.
    Names are those of the model without wrappers.

    What was written is read again and compared by value. Then the folder gets its name: until then it lies beside it,
    and goes away if anything fails.

    Args:
        source: a model, sharded or not; a plan, whose result is written, and the plan beside it; or tensors and other
            values under their names, nested or not.
        folder: where to; it does not exist or is empty. Its parent exists, and is the same for all processes.
        take: the part of the model, as in :func:`~frostline.state.selection.select`; several in a list.
        what: ``"held"`` only what a hold holds, ``"trainable"`` only parameters that train; of ``take`` where given.

    Returns:
        How many tensors were written, by all processes together.

    Raises:
        CheckpointError: there is something already, or nothing to write; the plan is incomplete; another process
            failed; or torch was built without ``torch.distributed``.
        RanksDiffer: a tensor that is not sharded has other values in another process: running statistics, for example.
        NothingSelected: a selector matches nothing.
        StorageFull: there is no space left.
        CannotWrite: it cannot be written for another reason.

    Example:
        >>> import tempfile
        >>> from frostline.checkpoint import open_checkpoint
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> with tempfile.TemporaryDirectory() as at:
        ...     print(save_distributed(model, f"{at}/step-1", take="1"))
        ...     print(dict(open_checkpoint(f"{at}/step-1").shapes))
        2
        {'1.weight': (1, 2), '1.bias': (1,)}
    """
    return write_distributed(folder, lambda: _collected(source, take, what))


def _collected(source: nn.Module | LoadPlan | Mapping[str, Any], take: Selectors, what: What) -> dict[str, Any]:
    """What this process has to write; texts of ours are values beside the tensors."""
    if isinstance(source, nn.Module):
        return _of_model(source, take, what)
    if what != "everything" or (take != () and take != []):
        raise CheckpointError(
            f"save_distributed: take= and what= choose among the entries of a model, and not of a "
            f"{type(source).__name__}\n  fix: the model, or fewer tensors"
        )
    if isinstance(source, LoadPlan):
        entries, metadata = plan_entries(source)
        own = {name: text for name, text in metadata.items() if name.startswith(OWN)}
        return {**{name: entry.read() for name, entry in entries.items()}, **own}
    return dict(source)


def _of_model(model: nn.Module, take: Selectors, what: What) -> dict[str, Any]:
    root = names.unwrap(model)
    entries = inventory(root)
    several = isinstance(take, (list, tuple))
    selectors = list(cast("Sequence[Selector]", take)) if several else [cast("Selector", take)]
    selection = select(root, *selectors) if selectors else None
    modules = dict(root.named_modules(remove_duplicate=False))

    def is_wanted(name: str, value: object) -> bool:
        entry = entries.get(name)
        if not isinstance(value, Tensor) or entry is None:  # what `get_extra_state` gives
            return what == "everything" and (selection is None or names.parent(name) in selection.modules)
        if selection is not None and name not in selection.parameters and name not in selection.buffers:
            return False
        return what == "everything" or _is_of(what, entry, modules)

    state = {names.canonical(key): value for key, value in root.state_dict().items()}
    wanted = {name: value for name, value in state.items() if is_wanted(name, value)}
    return {**wanted, HEADER: json.dumps(norm_settings(root))} if wanted else {}


def _is_of(what: What, entry: Entry, modules: Mapping[str, nn.Module]) -> bool:
    if what == "held":
        return is_held(modules[entry.module], entry)
    return entry.kind == "parameter" and bool(entry.value.requires_grad)
