"""The metric under other statistics, the weights being the same: what would be gained, and by which repair.

Every score is taken in eval mode; only the tensors that lie in the layers' buffers differ. Differences are taken on the
same samples, with bootstrapped intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from frostline.attach.ledger import holds_mode
from frostline.norms.feed import Feed
from frostline.norms.laid_in import Statistics, statistics_in_place
from frostline.norms.look import Look
from frostline.norms.moments import Moments
from frostline.norms.norm_report import Counterfactual, Interval
from frostline.norms.observe import Seen, one_pass, tracked_layers
from frostline.norms.scores import Metric, Scores, paired_difference, score
from frostline.norms.untouched import random_state_kept, untouched


@dataclass(frozen=True)
class Slice:
    """Part of a loader, batch by batch; it can be gone over again as the loader can.

    Attributes:
        loader: the whole.
        start: first batch.
        stop: the batch behind the last one; ``None`` for all.
    """

    loader: Any
    start: int = 0
    stop: int | None = None

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.loader), self.start, self.stop)


def statistics_from(look: Look) -> dict[str, tuple[Tensor, Tensor]]:
    """Population mean and unbiased variance of every layer of a look."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for path, layer in look.layers.items():
        assert layer.batch.moments is not None
        found[path] = (layer.mean, layer.batch.moments.var(unbiased=True))
    return found


def measure_statistics(root: nn.Module, feed: Feed) -> dict[str, tuple[Tensor, Tensor]]:
    """Population statistics over some batches; to be called inside ``untouched``."""
    total: dict[str, Moments] = {}

    def receive(seen: Seen) -> None:
        new = Moments.of_seen(seen)
        total[seen.path] = total[seen.path].merged(new) if seen.path in total else new

    with random_state_kept():
        one_pass(root, feed, tracked_layers(root), receive, upstream="batch")
    return {path: (moments.mean, moments.var(unbiased=True)) for path, moments in total.items()}


class Bench:
    """Scores one model on the same held-out batches under different statistics.

    Args:
        model: the model; it is not changed.
        feed: where the held-out batches come from.
        metric: see :mod:`~frostline.norms.scores`.
    """

    def __init__(self, model: nn.Module, feed: Feed, metric: Metric) -> None:
        self._model, self._feed = model, feed
        self._metric: Metric = metric
        self._as_it_is: Scores | None = None

    def as_it_is(self) -> Scores:
        """The scores with the statistics that the model has."""
        if self._as_it_is is None:
            self._as_it_is = self._score({})
        return self._as_it_is

    def under(self, statistics: Statistics) -> Scores:
        """The scores with other statistics in some layers."""
        return self._score(statistics)

    def with_batch_statistics(self) -> Scores:
        """The scores where every layer normalizes with the batch, as in train mode, and nothing else is as there."""
        with untouched(self._model) as root:
            layers = tracked_layers(root)
            outputs = replace(self._feed, forward=_BatchStatistics(self._feed, layers))
            with random_state_kept():
                return score(root, outputs, self._metric)

    def with_the_rest_in_train_mode(self) -> Scores | None:
        """The scores with dropout and its like active, while every normalization layer is as in eval mode.

        ``None`` if the model has nothing else that depends on the mode. Random draws are the same each time.
        """
        with untouched(self._model) as root:
            others = [module for module in root.modules() if _draws(module)]
            if not others:
                return None
            for module in others:
                module.training = True
            with random_state_kept():
                torch.manual_seed(0)
                return score(root, self._feed, self._metric)

    def _score(self, statistics: Statistics) -> Scores:
        with untouched(self._model) as root, statistics_in_place(root, statistics), random_state_kept():
            return score(root, self._feed, self._metric)


def _draws(module: nn.Module) -> bool:
    """Dropout and stochastic depth, wherever they come from; a hold that keeps them in eval mode wins."""
    name = type(module).__name__.lower()
    return ("drop" in name or "stochasticdepth" in name) and not holds_mode(module)


class _BatchStatistics:
    """A forward pass in which layers use their batch; in the shape that a feed takes."""

    def __init__(self, feed: Feed, layers: Mapping[str, nn.Module]) -> None:
        self._feed, self._layers = feed, layers

    def __call__(self, root: nn.Module, batch: Any) -> Any:
        outputs: list[Any] = []
        one_pass(
            root,
            replace(self._feed, loader=[batch]),
            self._layers,
            lambda _seen: None,
            upstream="batch",
            each_batch=lambda _batch, output: outputs.append(output),
        )
        return outputs[0]


def row(name: str, statistics: str, scores: Scores, against: Scores | None) -> Counterfactual:
    """One line of the table."""
    return Counterfactual(name, statistics, interval(scores), None if against is None else gain(scores, against))


def interval(scores: Scores) -> Interval:
    """The mean score with its bootstrapped interval."""
    low, high = scores.interval()
    return Interval(scores.mean, low, high)


def gain(scores: Scores, against: Scores) -> Interval:
    """The mean difference on the same samples, with its bootstrapped interval."""
    return Interval(*paired_difference(scores, against))
