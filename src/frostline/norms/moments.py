"""Population mean and variance per channel: exact, streaming, and mergeable across batches and processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from frostline.errors import NormsError, NoStatistics
from frostline.norms.feed import Feed, Forward
from frostline.norms.observe import Seen, Upstream, one_pass, tracked_layers
from frostline.norms.processes import gathered
from frostline.norms.untouched import untouched
from frostline.state.selection import Selector


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of the values of each channel, in float64.

    Attributes:
        count: values per channel.
        mean: ``(C,)``.
        m2: ``(C,)``, sum of squared deviations from the mean; for instance norm, from each sample's own mean.
        instances: the number of samples whose own means those are; 0 for all other layers.

    Example:
        >>> whole = Moments.of(torch.tensor([[1.0], [2.0], [6.0]]))
        >>> parts = Moments.of(torch.tensor([[1.0]])).merged(Moments.of(torch.tensor([[2.0], [6.0]])))
        >>> whole.mean.item(), whole.var().item(), parts.var().item() == whole.var().item()
        (3.0, 4.666666666666667, True)
    """

    count: int
    mean: Tensor
    m2: Tensor
    instances: int = 0

    @staticmethod
    def of(x: Tensor) -> Moments:
        """The moments of ``(N, C)`` values, by two passes in float64."""
        values = x.detach().double()
        mean = values.mean(0)
        return Moments(values.shape[0], mean, (values - mean).square().sum(0))

    @staticmethod
    def of_seen(seen: Seen) -> Moments:
        """The moments of all values of one call of a layer."""
        mean, var = seen.pooled()
        return Moments(seen.count, mean, var * seen.count, seen.mean.shape[0] if seen.instances else 0)

    def merged(self, other: Moments) -> Moments:
        """The moments of the union of two disjoint sets of values.

        Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", equation 2.1.
        """
        if not other.count or not self.count:
            return self if self.count else other
        count, instances = self.count + other.count, self.instances + other.instances
        delta, share = other.mean - self.mean, other.count / (self.count + other.count)
        m2 = self.m2 + other.m2
        if not instances:
            m2 = m2 + delta.square() * (self.count * share)
        return Moments(count, self.mean + delta * share, m2, instances)

    def var(self, *, unbiased: bool = False) -> Tensor:
        """The variance: by ``n``, or without the bias of the means that were subtracted, as ``running_var`` has it."""
        return self.m2 / max(self.count - unbiased * (self.instances or 1), 1)


def population_moments(
    model: nn.Module,
    loader: Iterable[Any],
    *selectors: Selector,
    upstream: Upstream = "batch",
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    process_group: Any = None,
) -> dict[str, Moments]:
    """Measure the mean and variance of what each normalization layer is given, over a whole loader.

    By the law of total variance: what the batches' own variances miss, the variance between their means, is counted.
    Each value weighs the same, whatever the size of its batch, and with ``upstream="running"`` neither the batch size
    nor the order of the samples matters beyond the rounding of float64. Dropout and everything else runs as in eval
    mode.

    An instance norm's figures are what its running statistics stand for: the mean over all values, and the mean of the
    samples' own variances. The variance between samples is no part of it, because in training each sample is normalized
    by itself, and the layers behind it are used to that contrast.

    Nothing of the model is changed: modes, buffers (to the bit), momenta, counters, hooks and random generators are
    afterwards as before, if the loader or the model raises too. Works on one pass over the data, and its memory does
    not grow with the number of batches.

    Args:
        model: any module; ``torch.compile``, DDP and DataParallel are looked through.
        loader: yields batches; see :class:`~frostline.norms.feed.Feed` for how they go into the model.
        selectors: measure only this part.
        upstream: what layers, measured or not, normalize with while those behind them are measured: ``"batch"``, as
            in training, the statistics of each batch (held and frozen layers their buffers, instance norm each
            sample's), or ``"running"``, their buffers as in eval mode.
        forward: ``forward(model, batch)`` where the first element of a batch is not what goes in.
        device: where batches are moved to; by default to the model.
        process_group: if given, or if ``torch.distributed`` is initialized, the moments of all its processes are
            merged, each weighted by its count; each process has to call this, and if one fails, all do.

    Returns:
        Moments by path of the layer, for those that a batch came through.

    Raises:
        NoStatistics: the loader is empty, or a part of the model is lazy.
        NormsError: with ``"batch"``, a batch gives a layer one value per channel, of which there is no variance; or
            another process failed.
        NonFiniteStatistics: a layer saw NaN or infinite values; the first one is named.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> found = population_moments(model, [torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [6.0], [3.0]])])
        >>> found["0"].count, found["0"].mean.item(), found["0"].var().item()
        (5, 3.0, 5.2)

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3; all at once, by the law of total variance.
    """
    layers, everywhere = tracked_layers(model, *selectors), tracked_layers(model)
    total: dict[str, Moments] = {}

    def receive(seen: Seen) -> None:
        new = Moments.of_seen(seen)
        total[seen.path] = total[seen.path].merged(new) if seen.path in total else new

    with untouched(model) as root:
        try:
            one_pass(root, Feed(loader, forward, device), layers, receive, upstream=upstream, beside=everywhere)
        except Exception as failure:
            gathered(f"{type(failure).__name__}: {failure}", process_group)
            raise
    return merged_over_processes(total, process_group)


def merged_over_processes(moments: dict[str, Moments], process_group: Any = None) -> dict[str, Moments]:
    """The moments of all processes of a group, merged by count; each process gets the same result.

    Without an initialized ``torch.distributed`` they are returned as they are. A layer that only some of the processes
    came through counts with those.

    Raises:
        NormsError: another process failed while it measured.

    Example:
        >>> alone = {"bn": Moments(2, torch.zeros(1), torch.ones(1))}
        >>> merged_over_processes(alone) == alone
        True
    """
    if not (dist.is_available() and dist.is_initialized()):
        return moments
    # Small tensors of float64; gathered as objects, because a process may have met other layers than the rest.
    mine = {path: replace(m, mean=m.mean.cpu(), m2=m.m2.cpu()) for path, m in moments.items()}
    merged: dict[str, Moments] = {}
    for rank, theirs in enumerate(gathered(cast("dict[str, Moments] | str", mine), process_group)):
        if isinstance(theirs, str):
            raise NormsError(f"process {rank} could not measure its part of the data\n  {theirs}")
        for path, new in theirs.items():
            merged[path] = merged[path].merged(new) if path in merged else new
    devices = {path: m.mean.device for path, m in moments.items()}
    return {
        path: replace(m, mean=m.mean.to(devices.get(path, "cpu")), m2=m.m2.to(devices.get(path, "cpu")))
        for path, m in merged.items()
    }


def check_any(moments: dict[str, Moments], layers: Iterable[str]) -> None:
    """Raise if no batch came through any of the layers.

    Raises:
        NoStatistics: none was reached.
    """
    if not moments:
        raise NoStatistics(
            f"no batch came through any of the {len(list(layers))} normalization layers\n"
            "  fix: check that `forward` runs this part of the model"
        )
