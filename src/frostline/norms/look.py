"""Three passes over one loader, and what they show of each layer.

1. Every layer normalizes with its own batch, as in training: the population, and how it scatters from batch to batch.
2. Every layer normalizes with the population of the first pass: is a layer right by itself, whatever lies before it?
3. Every layer normalizes with its running statistics, as in eval mode: what reaches it now?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import NonFiniteStatistics
from frostline.norms.feed import Feed
from frostline.norms.laid_in import statistics_in_place
from frostline.norms.layers import running_statistics
from frostline.norms.observe import Seen, one_pass, tracked_layers
from frostline.norms.shift_test import Fit, Memory, Population, fit
from frostline.norms.tally import Scatter, Tally
from frostline.norms.untouched import random_state_kept, untouched

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class LayerLook:
    """One layer over one loader.

    Attributes:
        path: its dotted path.
        batch: what it saw when every layer normalized with its batch.
        alone: what it saw when the layers before it had the statistics of this data.
        fit_alone: how well its running statistics describe that.
        fit_in_eval: how well they describe what reaches it in eval mode; ``None`` where nothing finite did.
    """

    path: str
    batch: Tally
    alone: Tally
    fit_alone: Fit
    fit_in_eval: Fit | None

    @property
    def mean(self) -> Tensor:
        """Mean of the population, ``(C,)``."""
        assert self.batch.moments is not None
        return self.batch.moments.mean

    @property
    def var(self) -> Tensor:
        """Biased variance of the population, ``(C,)``."""
        assert self.batch.moments is not None
        return self.batch.moments.var()


@dataclass(frozen=True)
class Look:
    """One loader, by layer in the order of the forward pass.

    Attributes:
        layers: by path.
        batches: how many the loader gave.
        batch_samples: samples of the largest one.
    """

    layers: dict[str, LayerLook]
    batches: int
    batch_samples: int


def look(
    model: nn.Module,
    feed: Feed,
    *,
    batch_size: int | None = None,
    updates: Mapping[str, int | None] | None = None,
    progress: Progress | None = None,
) -> Look:
    """Run the three passes. Nothing of the model is changed.

    Args:
        model: the model.
        feed: the data.
        batch_size: samples a batch in training; by default those of the loader's batches.
        updates: updates that the running statistics have seen, by layer.
        progress: called with the name of the pass and the number of the batch.

    Raises:
        NoStatistics: the loader is empty.
        NonFiniteStatistics: a layer saw NaN or infinite values in the first or second pass.
    """
    feed = feed.several_passes("the diagnosis")
    with untouched(model) as root:
        layers = tracked_layers(root)
        first, batches = _pass(root, feed, layers, "batch statistics", progress, upstream="batch")
        population: dict[str, tuple[Tensor, Tensor]] = {}
        for path, tally in first.items():
            assert tally.moments is not None
            population[path] = (tally.moments.mean, tally.moments.var())
        with statistics_in_place(root, population):
            alone, _ = _pass(root, feed, layers, "statistics of this data", progress)
        try:
            in_eval, _ = _pass(root, feed, layers, "running statistics", progress)
        except NonFiniteStatistics:
            in_eval = {}
        found: dict[str, LayerLook] = {}
        samples = max(tally.batch_samples for tally in first.values())
        for path, tally in first.items():
            if path not in alone:
                continue
            layer = layers[path]
            memory = Memory(
                getattr(layer, "momentum", 0.1), (updates or {}).get(path), batch_size or tally.batch_samples
            )
            found[path] = LayerLook(
                path,
                tally,
                alone[path],
                _fit(layer, population_of(alone[path], tally), memory),
                # Here the layers before it add the noise of their own running statistics.
                _fit(layer, replace(population_of(in_eval[path], tally), dependence=(1.0, 1.0)), memory)
                if path in in_eval
                else None,
            )
        return Look(found, batches, samples)


def _pass(
    root: nn.Module,
    feed: Feed,
    layers: Mapping[str, nn.Module],
    name: str,
    progress: Progress | None,
    upstream: Any = "running",
) -> tuple[dict[str, Tally], int]:
    tallies: dict[str, Tally] = {}
    batch = 0

    def receive(seen: Seen) -> None:
        tallies.setdefault(seen.path, Tally()).add(seen)

    def count(_batch: Any, _output: Any) -> None:
        nonlocal batch
        batch += 1
        if progress is not None:
            progress(name, batch)

    # Each pass begins with the same random state, so that a loader that augments gives the same data again.
    with random_state_kept():
        batches = one_pass(root, feed, layers, receive, upstream=upstream, each_batch=count)
    return tallies, batches


def population_of(tally: Tally, in_batches: Tally) -> Population:
    """The population behind a tally, with what the moving average of batch variances would make of it.

    Below another normalization the samples of a batch are not independent, their mean was forced to zero; so the share
    of the variance that batch variances show is taken from the pass in which it was so.
    """
    assert tally.moments is not None
    assert in_batches.moments is not None
    total = in_batches.moments.var()
    share = torch.where(total > 0, in_batches.batch_vars.mean / total, torch.ones_like(total))
    return Population(
        mean=tally.moments.mean,
        var=tally.moments.var(),
        expected_var=tally.moments.var() * share,
        sample_var=tally.sample_var,
        square_var=tally.square_var,
        dependence=(
            _dependence(in_batches.batch_means, tally.sample_var / max(in_batches.batch_samples, 1)),
            _dependence(in_batches.batch_vars, tally.square_var / max(in_batches.batch_samples, 1)),
        ),
        samples=tally.samples,
        rows=tally.sample_rows(),
    )


def _dependence(batches: Scatter, independent: Tensor) -> float:
    """Pooled over the channels; at most one, since batches sorted by class scatter more, and in training were not."""
    expected = float(independent.sum())
    if batches.n < 4 or expected <= 0:
        return 1.0
    return min(1.0, float(batches.var.sum()) / expected)


def _fit(layer: nn.Module, population: Population, memory: Memory) -> Fit:
    running = running_statistics(layer)
    assert running is not None
    weight = getattr(layer, "weight", None)
    return fit(
        population,
        *running,
        eps=float(getattr(layer, "eps", 0.0)),
        weight=weight if isinstance(weight, Tensor) and weight.shape == running[0].shape else None,
        memory=memory,
    )
