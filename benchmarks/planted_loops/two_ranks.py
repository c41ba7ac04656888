"""Two processes of a distributed run, played one after the other: what both hold, side by side as the watch has it."""

from __future__ import annotations

from torch import nn

from frostline.audit.seen import RankDigest, Seen
from frostline.state.digest import digest_all


def side_by_side(first: Seen, second: Seen, *, averaged: bool) -> Seen:
    """What the first process has seen, with the digests of both.

    Args:
        first: what rank 0 has seen.
        second: what rank 1 has.
        averaged: gradients were averaged, so that rank 1 has the parameters of rank 0; a run of one process cannot do
            that by itself.
    """
    ranks = [_held(first, 0), _held(second, 1)]
    if averaged:
        for model in first.models:
            ranks[1].tensors[model.name] |= {t.path: ranks[0].tensors[model.name][t.path] for t in model.parameters}
    first.ranks = ranks
    return first


def _held(seen: Seen, rank: int) -> RankDigest:
    tensors: dict[str, dict[str, str]] = {}
    for model in seen.models:
        live = model.live
        assert isinstance(live, nn.Module)
        tensors[model.name] = digest_all(dict(live.named_parameters()) | dict(live.named_buffers()))
    trainable = {model.name: tuple(t.path for t in model.parameters if t.trainable_now) for model in seen.models}
    return RankDigest(rank, tensors, trainable, len(seen.steps))
