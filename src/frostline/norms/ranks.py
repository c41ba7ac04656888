"""Running statistics of several processes: how far they differ, and merging them on demand.

DistributedDataParallel broadcasts the buffers of rank 0 before each forward pass in train mode, so what the other ranks
see reaches no checkpoint, and in eval mode every rank normalizes with statistics of its own
(``torch/nn/parallel/distributed.py:_sync_buffers``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from frostline.attach.ledger import holds_statistics
from frostline.errors import NonFiniteStatistics, NormsError, NoStatistics, name_some
from frostline.norms.layers import layout_of, running_statistics
from frostline.norms.observe import tracked_layers
from frostline.norms.processes import gathered, world_size
from frostline.norms.shift_test import output_distance
from frostline.state import names
from frostline.state.selection import Selector
from frostline.state.shards import is_distributed, whole
from frostline.tables import html_table, text_table

_COUNT = "num_batches_tracked"


@dataclass(frozen=True)
class RankDifference:
    """How far the ranks are apart in one layer.

    Attributes:
        mean: largest distance between the means of two ranks in a channel, in standard deviations of the merged
            statistics.
        var: largest ratio between the variances of two ranks in a channel; 1 if they agree.
        effect: how far the output of the rank that is farthest off lies from what it is with the merged statistics, in
            its own spread (:func:`~frostline.norms.shift_test.output_distance`).
    """

    mean: float
    var: float
    effect: float


@dataclass(frozen=True)
class _Statistics:
    """Those of one layer on one rank, in float64 on the CPU."""

    mean: Tensor
    var: Tensor
    count: int | None


def rank_differences(
    layers: Mapping[str, nn.Module], states: Sequence[Mapping[str, Tensor]]
) -> dict[str, RankDifference]:
    """How far the running statistics in several state dicts differ, per layer.

    Only reads. A layer with NaN or infinite statistics in any of the states differs by infinity.

    Args:
        layers: the layers, by their path in the states; as :func:`~frostline.norms.observe.tracked_layers` gives them.
        states: a state dict for each rank; ``module.`` and other tokens of wrappers in their keys are looked through.

    Raises:
        NoStatistics: a state lacks the statistics of a layer.
        NormsError: their shapes differ.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1, eps=0))
        >>> states = [{"0.running_mean": torch.tensor([m]), "0.running_var": torch.ones(1)} for m in (0.0, 2.0)]
        >>> found = rank_differences(dict(model.named_children()), states)["0"]
        >>> round(found.mean, 12)  # 2 / sqrt(1 + 1): the last bit depends on the processor
        1.414213562373
    """
    canonical = [_canonical(state) for state in states]
    found: dict[str, RankDifference] = {}
    for path, layer in layers.items():
        ranks = [_in_state(path, layer, state, rank) for rank, state in enumerate(canonical)]
        _check_shapes(path, ranks)
        weight = _weight_of(layer)
        # A sharded one cannot be had without the other processes, which need not be here.
        found[path] = _difference(layer, ranks, None if weight is None or is_distributed(weight) else weight)
    return found


def _canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    keys = {key: names.canonical(key) for key in state}
    wrapped = bool(keys) and all(key.startswith("module.") for key in keys.values())
    return {key.removeprefix("module.") if wrapped else key: state[given] for given, key in keys.items()}


def _in_state(path: str, layer: nn.Module, state: Mapping[str, Tensor], rank: int) -> _Statistics:
    layout, path = layout_of(layer), names.canonical(path)
    mean, var = (state.get(names.join(path, name)) for name in (layout.mean, layout.var))
    if mean is None or var is None:
        raise NoStatistics(
            f"the state of rank {rank} has no {layout.mean} and {layout.var} of layer {path!r}\n"
            "  fix: pass state dicts of this model, one for each rank"
        )
    return _statistics(mean, var, state.get(names.join(path, _COUNT)))


def _statistics(mean: Tensor, var: Tensor, count: Tensor | None) -> _Statistics:
    mean, var = (each.detach().to("cpu", torch.float64) for each in (mean, var))
    return _Statistics(mean, var, None if count is None else int(count))


def _check_shapes(path: str, ranks: Sequence[_Statistics]) -> None:
    shapes = [tuple(each.mean.shape) for each in ranks]
    if len(set(shapes)) > 1:
        raise NormsError(
            f"layer {path!r} has another width on other ranks: {shapes}\n  fix: every rank has to hold the same model"
        )


def _merged(layer: nn.Module, ranks: Sequence[_Statistics]) -> _Statistics:
    """By the law of total variance, in the order of the ranks, so that each rank comes to the same bits."""
    counts = [each.count or 0 for each in ranks]
    # Ranks whose counters differ have seen different amounts of data; one that has seen none counts for nothing.
    weights = counts if len(set(counts)) > 1 else [1] * len(ranks)
    shares = torch.tensor(weights, dtype=torch.float64)[:, None] / sum(weights)
    means, variances = torch.stack([r.mean for r in ranks]), torch.stack([r.var for r in ranks])
    mean = (shares * means).sum(0)
    between = 0 if layout_of(layer).instances else (means - mean).square()
    return _Statistics(mean, (shares * (variances + between)).sum(0), max(counts))


def _weight_of(layer: nn.Module) -> Tensor | None:
    weight = getattr(layer, "weight", None)
    return weight.detach() if isinstance(weight, Tensor) else None


def _difference(layer: nn.Module, ranks: Sequence[_Statistics], weight: Tensor | None) -> RankDifference:
    merged = _merged(layer, ranks)
    if not (merged.mean.isfinite().all() and merged.var.isfinite().all()):
        return RankDifference(float("inf"), float("inf"), float("inf"))
    eps = float(getattr(layer, "eps", 0.0))
    weight = weight.cpu() if weight is not None and weight.shape == merged.mean.shape else None
    means, variances = torch.stack([r.mean for r in ranks]), torch.stack([r.var for r in ranks])
    smallest = 1e-300
    spread = (merged.var + eps).clamp(min=smallest).sqrt()
    ratio = (variances.amax(0) + eps).clamp(min=smallest) / (variances.amin(0) + eps).clamp(min=smallest)
    return RankDifference(
        mean=float(((means.amax(0) - means.amin(0)) / spread).max()),
        var=float(ratio.max()),
        effect=max(output_distance(merged.mean, merged.var, r.mean, r.var, eps, weight) for r in ranks),
    )


@dataclass
class RankReport:
    """What :func:`merge_statistics` found and did on this rank; prints as a table, also in a notebook.

    Attributes:
        world: number of processes.
        layers: how far the ranks were apart before, by path of each layer that was merged.
        held: layers that were left alone because they are held.
    """

    world: int
    layers: dict[str, RankDifference]
    held: tuple[str, ...] = ()
    _before: list[tuple[Tensor, Tensor]] = field(default_factory=list[tuple[Tensor, Tensor]], repr=False)

    @property
    def effect(self) -> float:
        """The largest effect of all layers."""
        return max((layer.effect for layer in self.layers.values()), default=0.0)

    def undo(self) -> None:
        """Give this rank the statistics back that it had before; a second time does nothing."""
        _write(self._before)
        self._before = []

    def __str__(self) -> str:
        if self.world == 1:
            return "one process: there is nothing to merge"
        held = [f"held, left alone: {names.name_folded(self.held)}"] if self.held else []
        return "\n".join([f"merged over {self.world} processes", text_table(_COLUMNS, self._rows(), width=100), *held])

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows(), caption=f"merged over {self.world} processes")

    def _rows(self) -> list[list[object]]:
        rows = sorted(self.layers.items(), key=lambda item: -item[1].effect)
        return [[path or "(root)", f"{d.mean:.3g}", f"{d.var:.3g}", f"{d.effect:.3g}"] for path, d in rows]


_COLUMNS = ["layer", "means apart (sd)", "variances (ratio)", "effect"]


def merge_statistics(model: nn.Module, *selectors: Selector, process_group: Any = None) -> RankReport:
    """Give every process the running statistics of the data of all of them.

    Merged by the law of total variance, so that the variance between the ranks counts, which averaging their variances
    drops. Each rank weighs the same, or by its ``num_batches_tracked`` where those differ; the counter becomes the
    largest of them. An instance norm's variance is that within samples, and is averaged. All ranks hold the same bits
    afterwards, in the same buffers as before. Layers that are held on any rank are left alone.

    To be called before evaluating and before saving. During training ``DistributedDataParallel`` overwrites the
    statistics of all ranks with those of rank 0 before each forward pass, and then there is only what the last batch
    left to merge: pass it ``broadcast_buffers=False``. Without an initialized ``torch.distributed``, or with one
    process, nothing is done, so that a script runs in both ways.

    Args:
        model: any module; ``torch.compile``, DDP and DataParallel are looked through. Each process has to call this.
        selectors: merge only this part.
        process_group: the processes; by default all.

    Returns:
        A report with ``undo()``.

    Raises:
        NormsError: the processes hold other layers, or of other widths.
        NonFiniteStatistics: statistics of a rank are NaN or infinite. On errors nothing is written on any rank.

    Example:
        >>> print(merge_statistics(nn.Sequential(nn.BatchNorm1d(2))))
        one process: there is nothing to merge

    Source: ``norms.moments`` for the formula; ``timm.utils.distribute_bn`` averages means and variances.
    """
    layers = tracked_layers(model, *selectors)
    world = world_size(process_group)
    if world == 1:
        return RankReport(1, {})
    mine = {path: (_of_layer(layer), holds_statistics(layer)) for path, layer in layers.items()}
    ranks = gathered(mine, process_group)
    merged, differences, held = _planned(layers, ranks)
    before: list[tuple[Tensor, Tensor]] = []
    writes: list[tuple[Tensor, Tensor]] = []
    for path, value in merged.items():
        for buffer, new in _buffers_of(layers[path], value):
            before.append((buffer, buffer.detach().clone()))
            writes.append((buffer, new.to(buffer.device, buffer.dtype)))
    try:
        _write(writes)
    except BaseException:
        _write(before)
        raise
    return RankReport(world, differences, held, before)


def _planned(
    layers: Mapping[str, nn.Module], ranks: Sequence[Mapping[str, tuple[_Statistics, bool]]]
) -> tuple[dict[str, _Statistics], dict[str, RankDifference], tuple[str, ...]]:
    """What each layer will hold, and how far the ranks are apart now; each rank comes to the same, errors too."""
    for rank, theirs in enumerate(ranks):
        other = set(theirs) ^ set(ranks[0])
        if other:
            raise NormsError(
                f"rank {rank} and rank 0 do not have the same layers: {name_some(sorted(other))}\n"
                "  fix: every rank has to hold the same model and pass the same selectors"
            )
    held = tuple(path for path in layers if any(theirs[path][1] for theirs in ranks))
    merged: dict[str, _Statistics] = {}
    differences: dict[str, RankDifference] = {}
    for path, layer in layers.items():
        if path in held:
            continue
        found = [theirs[path][0] for theirs in ranks]
        _check_shapes(path, found)
        for rank, each in enumerate(found):
            if not (each.mean.isfinite().all() and each.var.isfinite().all()):
                raise NonFiniteStatistics(
                    f"layer {path!r} ({type(layer).__name__}): its running statistics on rank {rank} are NaN or "
                    "infinite, and would be so on all\n  fix: recalibrate that layer first"
                )
        weight = _weight_of(layer)  # of a sharded one each process asks for all, in the order of the layers
        merged[path] = _merged(layer, found)
        differences[path] = _difference(layer, found, None if weight is None else whole(weight))
    return merged, differences, held


def _of_layer(layer: nn.Module) -> _Statistics:
    running = running_statistics(layer)
    assert running is not None
    return _statistics(*running, layer._buffers.get(_COUNT))


def _buffers_of(layer: nn.Module, value: _Statistics) -> list[tuple[Tensor, Tensor]]:
    running, count = running_statistics(layer), layer._buffers.get(_COUNT)
    assert running is not None
    pairs = [(running[0], value.mean), (running[1], value.var)]
    return pairs if count is None or value.count is None else [*pairs, (count, torch.tensor(value.count))]


def _write(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, value in pairs:
            buffer.copy_(value)
