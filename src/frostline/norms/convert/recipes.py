"""What becomes of one layer under each target: the new class, what changes in its state, what is exact."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from frostline.norms.convert.dims import (
    BY_DIMS,
    PLAIN_TYPE,
    dims_of_convolution,
    input_range,
    neighbour,
    said_by_class,
    said_by_neighbours,
)
from frostline.norms.convert.families import AFFINE, Kind
from frostline.norms.convert.frozen import COUNT, FrozenBatchNorm, FrozenBatchNormAct
from frostline.norms.convert.group import choose_groups, why_not_groups
from frostline.norms.convert.targets import FrozenNorm, GroupNorm, NoTracking, PlainNorm, SyncNorm, Target
from frostline.norms.layers import has_running_statistics

STATISTICS = ("running_mean", "running_var", COUNT)
Check = Literal["equal", "rounding", "none"]
# Attributes that a class sets on its layers, and that say something untrue on those of another.
_OF_BATCH_NORM = ("num_features", "momentum", "track_running_stats")
_OF_SYNC = ("process_group",)
_OF_FROZEN = ("lowest", "highest")


@dataclass(frozen=True)
class Recipe:
    """How a layer becomes another.

    Attributes:
        cls: the class of the new layer.
        exact: whether its output in eval mode is equal to the bit.
        note: what is to be known.
        check: how far its output can be compared with the old one's.
        attributes: what is set on it.
        without: attributes that it does not take over.
        buffers: ``keep`` takes the running statistics over, ``none`` leaves them off, ``clear`` sets them to ``None``.
        affine_from_buffers: whether weight and bias are buffers and become parameters.
    """

    cls: type[nn.Module]
    exact: bool
    note: str
    check: Check
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    without: tuple[str, ...] = ()
    buffers: Literal["keep", "none", "clear"] = "keep"
    affine_from_buffers: bool = False


class Already(Exception):
    """The layer is what it would become."""


class Refused(Exception):
    """It cannot become that; the message says why."""


@dataclass(frozen=True)
class Site:
    """A layer and where it stands.

    Attributes:
        root: the model.
        path: its first path in it.
        layer: the layer.
        kind: what it is.
    """

    root: nn.Module
    path: str
    layer: nn.Module
    kind: Kind

    @property
    def tracks(self) -> bool:
        """Whether it has running statistics."""
        return has_running_statistics(self.layer)

    @property
    def channels(self) -> int:
        """How many it has; those that do not say have a mean of each."""
        known = getattr(self.layer, "num_features", None)
        return int(known if known is not None else self.layer._buffers["running_mean"].shape[0])  # type: ignore[union-attr]


def recipe_for(site: Site, to: Target) -> Recipe:
    """What becomes of a layer.

    Raises:
        Already: nothing, it is what it would become.
        Refused: it cannot become that.
    """
    if site.kind.family == "instance" and not isinstance(to, NoTracking):
        raise Refused(f"{type(site.layer).__name__} does not normalize with the batch")
    makers: dict[type[Any], Callable[[Site, Any], Recipe]] = {
        FrozenNorm: _frozen,
        GroupNorm: _group,
        SyncNorm: _sync,
        PlainNorm: _plain,
        NoTracking: _no_tracking,
    }
    return makers[type(to)](site, to)


def _frozen(site: Site, _to: FrozenNorm) -> Recipe:
    if site.kind.family == "frozen" and not site.kind.foreign:
        raise Already
    if not site.tracks:
        raise Refused("it keeps no running statistics that could be frozen")
    plain_type = _plain_type(site)
    lowest, highest = input_range(said_by_class(site.layer))
    dropping = {"num_features": site.channels, "lowest": lowest, "highest": highest, PLAIN_TYPE: plain_type}
    cls = FrozenBatchNormAct if site.kind.acts else FrozenBatchNorm
    if site.kind.foreign:
        return Recipe(cls, False, _FOREIGN, "rounding", {**dropping, **_LOST}, affine_from_buffers=True)
    note = "in train mode too: running statistics in place of the batch's, and no updates"
    return Recipe(cls, True, note, "equal", dropping, _OF_SYNC)


def _sync(site: Site, to: SyncNorm) -> Recipe:
    if site.kind.family == "frozen":
        raise Refused("frozen: it does not look at the batch, so there is nothing to synchronize; PlainNorm() thaws it")
    if site.kind.family == "sync" and getattr(site.layer, "process_group", None) is to.process_group:
        raise Already
    if not site.tracks and getattr(site.layer, "track_running_stats", False):
        raise Refused("track_running_stats=True without running statistics, which SyncBatchNorm refuses in train mode")
    cls = _timm("SyncBatchNormAct") if site.kind.acts else nn.SyncBatchNorm
    note = "in train mode: the batches of all processes together, which torch does on GPUs only"
    if not site.tracks:
        note += "; in eval mode the local batch of each, because there are no running statistics"
    attributes = {"process_group": to.process_group, PLAIN_TYPE: _plain_type(site)}
    return Recipe(cls, True, note, "equal", attributes)


def _plain(site: Site, to: PlainNorm) -> Recipe:
    if site.kind.family == "batch":
        raise Already
    guessed = ""
    if (known := _plain_type(site)) is not None:
        cls = known
    elif (dims := to.dims or said_by_neighbours(site.root, site.path)) is not None:
        cls = BY_DIMS[dims]
        guessed = "" if to.dims else f"; {dims}d as the layers around it"
    else:
        raise Refused("it does not say what it was, nor do the layers around it; PlainNorm(dims=2) does")
    without = (*_OF_SYNC, *_OF_FROZEN, PLAIN_TYPE)
    if site.kind.foreign:
        note = f"{_FOREIGN}; in train mode: the batch"
        attributes = {"num_features": site.channels, **_LOST}
        return Recipe(cls, False, note, "rounding", attributes, without, affine_from_buffers=True)
    what = "its own batch" if site.kind.family == "sync" else "the batch again, and updates"
    return Recipe(cls, True, f"in train mode: {what}{guessed}", "equal", {}, without)


def _group(site: Site, to: GroupNorm) -> Recipe:
    before = neighbour(site.root, site.path)
    flat = said_by_class(site.layer) == 1 or (said_by_class(site.layer) is None and isinstance(before, nn.Linear))
    positions_unknown = flat and (before is None or dims_of_convolution(before) is None)
    groups = to.groups
    if groups is None:
        groups = choose_groups(site.channels, positions_unknown=positions_unknown)
    if why := why_not_groups(site.channels, groups, positions_unknown=positions_unknown):
        raise Refused(why)
    attributes: dict[str, Any] = {"num_groups": groups, "num_channels": site.channels}
    if site.kind.acts:
        attributes["_fast_norm"] = False
    attributes["affine"] = any(_own(site, name) is not None for name in AFFINE)
    cls = _timm("GroupNormAct") if site.kind.acts else nn.GroupNorm
    note = f"another function, needs training: {groups} groups of {site.channels // groups} channels, each sample alone"
    if site.kind.foreign:
        note += "; weight and bias become Parameters with requires_grad=False, unknown to any optimizer"
    without = (*_OF_BATCH_NORM, *_OF_SYNC, *_OF_FROZEN, PLAIN_TYPE)
    return Recipe(cls, False, note, "none", attributes, without, "none", affine_from_buffers=site.kind.foreign)


def _no_tracking(site: Site, _to: NoTracking) -> Recipe:
    if site.kind.family == "frozen":
        raise Refused("frozen: it is nothing but its running statistics; PlainNorm() thaws it")
    if not site.tracks:
        raise Already
    note = "no running statistics: the output of a sample depends on the rest of its batch in eval mode too"
    if site.kind.family == "sync":
        note += ", on that of its own process"
    if site.kind.family == "instance":
        note = "no running statistics: each sample and channel by itself in eval mode too"
    attributes = {"track_running_stats": False}
    return Recipe(type(site.layer), False, note, "none", attributes, (), "clear")


_FOREIGN = (
    "equal up to rounding; weight and bias become Parameters with requires_grad=False, unknown to any optimizer; "
    "momentum was lost, 0.1 now"
)
_LOST: Mapping[str, Any] = {"momentum": 0.1, "affine": True, "track_running_stats": True}


def _own(site: Site, name: str) -> torch.Tensor | None:
    return (site.layer._buffers if site.kind.foreign else site.layer._parameters).get(name)


def _plain_type(site: Site) -> type[_BatchNorm] | None:
    """The class of batch norm that a layer is or was, as far as it says so."""
    if site.kind.family == "batch":
        return type(site.layer)  # type: ignore[return-value]
    was = getattr(site.layer, PLAIN_TYPE, None)
    if was is None and site.kind.acts:
        return _timm("BatchNormAct2d")  # type: ignore[return-value]
    if was is None and (dims := said_by_class(site.layer)) is not None:
        return BY_DIMS[dims]
    return was


def _timm(name: str) -> type[nn.Module]:
    # Only reached with one of its layers at hand, so it is there.
    return getattr(importlib.import_module("timm.layers.norm_act"), name)
