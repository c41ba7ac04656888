"""The passes over data that a recalibration takes: estimating, measuring the residual, scoring on held-out data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from frostline.errors import NonFiniteStatistics, NormsError
from frostline.norms.batch_counts import BatchCounts, Progress, merged_classes, merged_counts
from frostline.norms.class_balance import ClassCounts, check_class_balance
from frostline.norms.estimates import as_stored, measured, moved
from frostline.norms.feed import Feed
from frostline.norms.layers import running_statistics
from frostline.norms.lockstep import eval_consistent
from frostline.norms.moments import Moments, check_any
from frostline.norms.observe import tracked_layers
from frostline.norms.processes import in_all
from frostline.norms.recalibration_plan import (
    LayerChange,
    Method,
    RecalibrationPlan,
    change_of,
    with_residual,
)
from frostline.norms.regroup import Regrouped, first_tensor
from frostline.norms.scores import Metric, Scores, joined, score
from frostline.norms.untouched import random_state_kept, untouched
from frostline.norms.written_statistics import statistics_in, why_held
from frostline.state.selection import Selector


class CalibrationPasses:
    """One recalibration: what it is asked for, and the passes over data that it takes. Changes nothing.

    Attributes:
        layers: the layers that would be recalibrated, by path.
        skipped: path to the reason, for those that would not.
    """

    def __init__(
        self,
        root: nn.Module,
        selectors: tuple[Selector, ...],
        method: str,
        batch_size: int | None,
        max_samples: int | None,
        process_group: Any,
        progress: Progress | None,
    ) -> None:
        if method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise NormsError(f"recalibrate(method={method!r}): there is no such method\n  fix: one of {known}")
        self.root = root
        self.method: Method = cast("Method", method)
        self.batch_size, self.max_samples = batch_size, max_samples
        self.group, self.progress = process_group, progress
        self.layers, self.skipped = _wanted(root, selectors)

    def plan(self, feed: Feed, held_out: ClassCounts | None) -> RecalibrationPlan:
        """Estimate the statistics and their residual."""
        if not self.layers:
            return RecalibrationPlan(self.root, self.method, {}, self.skipped, samples=0)
        old = {path: statistics_in(layer) for path, layer in self.layers.items()}
        with untouched(self.root) as root:
            seen, estimates, again = (self._lockstep if self.method == "eval-consistent" else self._at_once)(root, feed)
            seen.require_variation()
            check_any(estimates, self.layers)
            changes: dict[str, LayerChange] = {}
            for path, moments in estimates.items():
                layer = self.layers[path]
                mean, var = as_stored(path, layer, moments)
                new = replace(old[path], mean=mean, var=var, batches=_batches(layer, old[path].batches, seen.batches))
                changes[path] = change_of(path, layer, old[path], new, moments.count)
            changes = self._with_residuals(root, again, changes)
        left = [path for path in self.layers if path not in changes]
        skipped = {**self.skipped, **dict.fromkeys(left, "no batch came through it")}
        finding = check_class_balance(seen.classes, held_out)
        return RecalibrationPlan(
            self.root, self.method, changes, skipped, seen.samples, () if finding is None else (finding,)
        )

    def check(
        self, feed: Feed, metric: Metric, changes: Mapping[str, LayerChange], name: str
    ) -> tuple[Scores | None, ClassCounts]:
        """Score the model on held-out data with other statistics in some layers; ``None`` where that is not finite."""
        counts = BatchCounts(feed, name, self.progress)

        def local() -> tuple[Scores | None, ClassCounts]:
            if metric is None:
                return None, counts.to_its_end().classes
            try:
                return score(root, replace(feed, loader=counts), metric), counts.classes
            except NonFiniteStatistics:
                return None, BatchCounts(feed, name, None).to_its_end().classes

        with untouched(self.root) as root:
            _lay_in(changes)
            told = in_all(local, self.group)
        scores = [each for each, _ in told if each is not None]
        return joined(scores) if len(scores) == len(told) else None, merged_classes([classes for _, classes in told])

    def _at_once(self, root: nn.Module, feed: Feed) -> tuple[BatchCounts, dict[str, Moments], Feed]:
        feed = feed.several_passes("a recalibration, which measures its residual,")
        counts = BatchCounts(feed, "calibration", self.progress)
        source = replace(feed, loader=Regrouped(replace(feed, loader=counts), self.batch_size, self.max_samples))

        def local() -> tuple[dict[str, Moments], BatchCounts]:
            # The second pass begins with the same random state, and so sees the same augmented images.
            with random_state_kept():
                found = measured(root, source, self.layers, "batch", counts.look_at)
            return {path: moved(moments, "cpu") for path, moments in found.items()}, counts.told()

        told = in_all(local, self.group)
        again = replace(feed, loader=BatchCounts(feed, "check of the result", self.progress))
        again = replace(feed, loader=Regrouped(again, self.batch_size, self.max_samples))
        return merged_counts([theirs for _, theirs in told]), self._merged([found for found, _ in told]), again

    def _lockstep(self, root: nn.Module, feed: Feed) -> tuple[BatchCounts, dict[str, Moments], Feed]:
        counts = BatchCounts(feed, "loading", self.progress)
        source = Regrouped(replace(feed, loader=counts), self.batch_size, self.max_samples)
        batches: list[Any] = []

        def load() -> None:
            batches.extend(batch for batch in source if (x := first_tensor(batch)) is None or len(x))

        in_all(load, self.group)
        found = eval_consistent(root, feed, batches, self.layers, each_batch=counts.look_at, process_group=self.group)
        told = in_all(counts.told, self.group)
        return merged_counts(told), found, replace(feed, loader=batches)

    def _with_residuals(self, root: nn.Module, feed: Feed, changes: dict[str, LayerChange]) -> dict[str, LayerChange]:
        """Measure what the layers meet in eval mode once the new statistics are in place."""
        _lay_in(changes)
        layers = {path: change.layer for path, change in changes.items()}

        def local() -> dict[str, Moments]:
            found = measured(root, feed, layers, "running")
            return {path: moved(moments, "cpu") for path, moments in found.items()}

        met = self._merged(in_all(local, self.group))
        # A layer that this pass happens not to come through keeps a residual of NaN.
        changes.update(
            {path: with_residual(changes[path], found.mean, found.var(unbiased=True)) for path, found in met.items()}
        )
        if self.method == "eval-consistent":
            for change in changes.values():
                _require_exact(change)
        return changes

    def _merged(self, parts: Sequence[Mapping[str, Moments]]) -> dict[str, Moments]:
        total: dict[str, Moments] = {}
        for part in parts:
            for path, moments in part.items():
                total[path] = total[path].merged(moments) if path in total else moments
        return {path: moved(moments, _device(self.layers[path])) for path, moments in total.items()}


def _wanted(root: nn.Module, selectors: tuple[Selector, ...]) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers to recalibrate, and why the others are not."""
    layers = tracked_layers(root, *selectors)
    skipped = {path: why for path, layer in layers.items() if (why := why_held(layer) or _why_constant(layer))}
    layers = {path: layer for path, layer in layers.items() if path not in skipped}
    if not selectors and any(layer.training for layer in layers.values()):
        by_hand = "in eval mode while others train, so frozen by hand; select it by name to recalibrate it"
        skipped.update({path: by_hand for path, layer in layers.items() if not layer.training})
        layers = {path: layer for path, layer in layers.items() if layer.training}
    return layers, skipped


def _why_constant(layer: nn.Module) -> str | None:
    if any("FrozenBatchNorm" in cls.__name__ for cls in type(layer).__mro__):
        return f"{type(layer).__name__}: its statistics are constants"
    return None


def _batches(layer: nn.Module, before: Tensor | None, seen: int) -> Tensor | None:
    """What the counter is set to; with ``momentum=None`` it weighs the statistics against later batches."""
    if before is None:
        return None
    cumulative = getattr(layer, "momentum", 0.1) is None
    return torch.full_like(before, seen if cumulative else max(seen, int(before)))


def _lay_in(changes: Mapping[str, LayerChange]) -> None:
    """Put new statistics into the layers' buffers; ``untouched`` takes them out again."""
    for change in changes.values():
        running = running_statistics(change.layer)
        assert running is not None
        for buffer, value in zip(running, (change.new.mean, change.new.var), strict=True):
            buffer.copy_(value)


def _require_exact(change: LayerChange) -> None:
    # The same kernels run on the same values as in lockstep, so only the buffers' type rounds; the rest of the room is
    # for kernels that add in no fixed order.
    limit = max(1e-3, 4 * torch.finfo(change.new.var.dtype).eps)
    if max(change.row.residual_var, change.row.residual_mean) > limit:
        raise NormsError(
            f"layer {change.row.path!r} ({change.row.type}) does not meet in a plain pass what it met in lockstep: "
            f"off by {change.row.residual_mean:.3g} sd\n"
            "  seen: the forward pass keeps something from one layer to the next outside its own variables, or draws "
            'random numbers\n  fix: method="all-at-once"'
        )


def _device(layer: nn.Module) -> torch.device:
    running = running_statistics(layer)
    assert running is not None
    return running[0].device
