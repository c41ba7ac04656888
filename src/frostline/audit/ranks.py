"""What every process of a distributed run holds: digests, exchanged through the run's own store, never tensors."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from frostline.audit.seen import RankDigest, Seen
from frostline.errors import CannotDigest
from frostline.norms.processes import store, world_size
from frostline.state.digest import digest_all

# A process that ended before the others, or crashed, must not keep them waiting for long.
_PATIENCE = timedelta(seconds=30)
_NUMBERS = itertools.count()


def gather(seen: Seen) -> None:
    """Fill ``seen.ranks``; no collective is called, so that a process which is missing cannot hang the others.

    Every process writes its digests into the store that the processes met at, and reads those of the others.
    """
    if world_size() < 2:
        return
    seen.rank = dist.get_rank()
    own = _own(seen)
    try:
        meeting = store()
        # Processes that run the same loop watch it the same number of times.
        number = next(_NUMBERS)
        meeting.set(f"frostline/{number}/{seen.rank}", json.dumps(_to_json(own)))
        keys = [f"frostline/{number}/{rank}" for rank in range(dist.get_world_size())]
        meeting.wait(keys, _PATIENCE)
        seen.ranks = [_from_json(json.loads(meeting.get(key))) for key in keys]
    except (RuntimeError, ValueError) as error:
        seen.ranks = []
        seen.missed.append(f"the other processes could not be compared: {str(error).splitlines()[0]}")


def _own(seen: Seen) -> RankDigest:
    tensors: dict[str, dict[str, str]] = {}
    trainable: dict[str, tuple[str, ...]] = {}
    for model in seen.models:
        if model.live is None:
            continue
        found = dict(model.live.named_parameters()) | dict(model.live.named_buffers())
        try:
            tensors[model.name] = digest_all(found)
        except CannotDigest:
            continue
        trainable[model.name] = tuple(t.path for t in model.parameters if t.trainable_now)
    return RankDigest(seen.rank, tensors, trainable, len(seen.steps))


def _to_json(own: RankDigest) -> dict[str, Any]:
    return {"rank": own.rank, "tensors": own.tensors, "trainable": own.trainable, "steps": own.steps}


def _from_json(data: dict[str, Any]) -> RankDigest:
    return RankDigest(data["rank"], data["tensors"], {k: tuple(v) for k, v in data["trainable"].items()}, data["steps"])
