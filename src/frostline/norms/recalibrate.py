"""Estimating running statistics anew, and keeping them only where a check on held-out data does not get worse.

Better statistics do not always make a better model: the weights may have come to rely on the old ones, or the data may
be of another kind than the training data's. So a repair is measured, and what does harm is not kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import torch
from torch import nn

from frostline.errors import NonFiniteStatistics, NormsError
from frostline.findings import Finding
from frostline.norms.batch_counts import Progress
from frostline.norms.calibration_passes import CalibrationPasses
from frostline.norms.class_balance import ClassCounts
from frostline.norms.feed import Feed, Forward
from frostline.norms.norm_report import Interval
from frostline.norms.recalibration_plan import Method, RecalibrationPlan, RecalibrationRow
from frostline.norms.scores import Metric, Scores, paired_difference
from frostline.norms.written_statistics import Applied
from frostline.state import names
from frostline.state.selection import Selector


@dataclass(frozen=True)
class Recalibration:
    """What became of a recalibration; prints itself, also in a notebook.

    Attributes:
        plan: the new statistics, layer by layer.
        accepted: whether they are in the model now. If not, the model is as it was, to the bit.
        before: the metric on held-out data with the old statistics; ``None`` without a metric, and where it could not
            be measured because an output was not finite.
        after: the same with the new ones.
        difference: how much better the new ones are on the same samples.
        applied: what was written; ``None`` if nothing was.
        checked: whether a metric on held-out data has decided.
    """

    plan: RecalibrationPlan
    accepted: bool
    before: Interval | None = None
    after: Interval | None = None
    difference: Interval | None = None
    applied: Applied | None = None
    checked: bool = False

    @property
    def rows(self) -> list[RecalibrationRow]:
        """The figures of each layer."""
        return self.plan.rows

    @property
    def skipped(self) -> dict[str, str]:
        """Path to the reason, for each layer that was left as it was."""
        return self.plan.skipped

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is to be said about the data."""
        return self.plan.findings

    def undo(self) -> None:
        """Bring back the statistics of before, to the bit; without effect if none were written.

        Raises:
            NormsError: a layer has been held since.
        """
        if self.applied is not None:
            self.applied.undo()

    def verdict(self) -> str:
        """What was done and why, in a line."""
        if not self.plan.changes:
            return "nothing was recalibrated"
        if not self.checked:
            return "applied; no metric was given, so nothing has checked whether the model is better"
        figures = f"{self.before or 'not finite'} before, {self.after or 'not finite'} after"
        if self.difference is not None:
            figures += f", difference {self.difference}"
            if self.difference.low <= 0 <= self.difference.high:
                figures += " (no more than chance)"
        if self.accepted:
            return f"kept: the metric on held-out data did not get worse: {figures}"
        return f"rolled back: the metric on held-out data got worse: {figures}; the model is as it was, to the bit"

    def to_json(self) -> dict[str, Any]:
        """The result as JSON-ready values with a schema version."""
        told = {
            name: None if value is None else asdict(value)
            for name, value in (("before", self.before), ("after", self.after), ("difference", self.difference))
        }
        return {
            **self.plan.to_json(),
            "accepted": self.accepted,
            "checked": self.checked,
            **told,
            "verdict": self.verdict(),
        }

    def __str__(self) -> str:
        return f"{self.verdict()}\n{self.plan}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.verdict())}</p>{self.plan._repr_html_()}"


def plan_recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *selectors: Selector,
    method: Method = "all-at-once",
    batch_size: int | None = None,
    max_samples: int | None = None,
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    process_group: Any = None,
    progress: Progress | None = None,
) -> RecalibrationPlan:
    """Estimate new running statistics, and say what they would change. Nothing of the model is changed.

    Arguments and errors as for :func:`recalibrate`; ``plan.apply()`` writes the statistics.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> plan = plan_recalibrate(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
        >>> plan.changes["0"].new.mean.item(), plan.rows[0].mean_shift > 3, model[0].running_mean.item()
        (4.0, True, 0.0)
    """
    job = CalibrationPasses(names.unwrap(model), selectors, method, batch_size, max_samples, process_group, progress)
    return job.plan(Feed(loader, forward, device), None)


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *selectors: Selector,
    metric: Metric = None,
    held_out: Iterable[Any] | None = None,
    tolerance: float = 0.0,
    method: Method = "all-at-once",
    batch_size: int | None = None,
    max_samples: int | None = None,
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    process_group: Any = None,
    progress: Progress | None = None,
    allow_imbalance: bool = False,
) -> Recalibration:
    """Estimate the running statistics of normalization layers anew, and keep them if the model does not get worse.

    **Pass the training data, with its augmentation.** The weights were trained behind layers that normalized augmented
    images; statistics of clean ones fit them less well (ImageNet, ResNet-50: 23.4 % error with the augmentation of
    training, 23.8 % without; Wu & Johnson 2021, table 4).

    *Kept or not.* With ``metric`` and ``held_out`` the model is scored on the same held-out samples under the old and
    the new statistics. The new ones are kept if the mean score is at most ``tolerance`` below the old one, whether or
    not the difference is more than chance; its interval is reported. Old statistics under which the metric cannot be
    measured, because they are NaN, count as worse than any. Otherwise the model stays as it was, to the bit. Without a
    metric the statistics are written, and the result says that nothing has checked them.

    *Which method.* ``"all-at-once"`` measures every layer in one pass in which each normalizes with its batch, as in
    training. What it describes is not quite the network in eval mode; how far off it is, is measured by a second pass
    and reported as the residual, which shrinks with the batch (64 and more are advised). ``"eval-consistent"`` sets
    layer after layer from all of the data, in one pass, with all activations in memory, and has a residual of 0 but for
    rounding. Exact is not always most accurate: check either on held-out data.

    *Which layers.* All that normalize with running statistics in eval mode, but those that are held
    (:func:`frostline.freeze`), frozen batch norms, those that no batch reaches, and, unless selectors say what to do,
    those in eval mode in a model of which other such layers are in train mode: someone froze them. They are listed in
    ``skipped``. What is left as it is, skipped or not selected, works with the statistics that it has while the others
    are measured.

    *What is written.* ``running_mean``; ``running_var``, the unbiased variance of all values (in instance norm the mean
    of those of the samples, as it keeps it itself); ``num_batches_tracked``: with ``momentum=None`` the number of
    batches that were seen, so that later ones join the average with the weight of one more batch, else at least that
    number, as it only counts there. Everything else, modes, momenta, parameters, random generators, tensor identities,
    stays as it was, and on any error, Ctrl-C too, the statistics do as well.

    *Class balance.* Where labels can be read, the classes of the data are compared with those of ``held_out``, or with
    equal shares of the classes that the model tells apart; N309 tells of a difference. If whole classes are missing and
    no metric checks the result, nothing is written, unless ``allow_imbalance``: statistics of three classes out of ten
    turned 1.5 % error into 18.2 %.

    Under ``torch.distributed`` every process calls this with its share of the data; counts, moments and scores of all
    are merged, and all write the same statistics or none.

    Args:
        model: any module; wrappers are looked through.
        loader: the training data, in batches of which the model takes the first element (see
            :class:`~frostline.norms.feed.Feed`).
        selectors: recalibrate only this part.
        metric: ``"accuracy"``, or ``metric(output, labels)`` giving a score for each sample or one for the batch;
            higher is better, so a loss is passed as its negative.
        held_out: labelled data that is not in ``loader``, as the model will meet it, without augmentation.
        tolerance: how much lower the mean score may get.
        method: ``"all-at-once"`` or ``"eval-consistent"``.
        batch_size: put batches of the loader together until they have as many samples.
        max_samples: take no further batch after so many samples; 1,000 to 10,000 are enough for ImageNet.
        forward: ``forward(model, batch)`` where the first element of a batch is not what goes in.
        device: where batches are moved to; by default to the model.
        process_group: the processes, by default all of ``torch.distributed`` where it is initialized.
        progress: called with the name of the pass and the number of the batch.
        allow_imbalance: write statistics of data that lacks whole classes, unchecked.

    Returns:
        The result. A model without running statistics gives one that says so.

    Raises:
        NoStatistics: the loader is empty, or no batch reached any of the layers.
        NonFiniteStatistics: a layer saw NaN or infinite values; the first one is named.
        NormsError: the loader is an iterator, a batch gives a layer one value per channel, all samples are equal, the
            metric has no held-out data or no labels, classes are missing, or batches cannot be taken in lockstep.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> x = 3 + torch.randn(96, 4)
        >>> labelled = list(zip(x.split(32), model.eval()(x - 3).argmax(1).split(32)))
        >>> result = recalibrate(model, labelled[:2], metric="accuracy", held_out=labelled[2:])
        >>> result.accepted, result.after.value > result.before.value
        (True, True)
        >>> result.undo()
        >>> model[0].running_mean.tolist()
        [0.0, 0.0, 0.0, 0.0]

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", sections 3 and 5.
    """
    if metric is not None and held_out is None:
        raise NormsError(
            "recalibrate: a metric was given, and no data to measure it on\n"
            "  fix: held_out=..., labelled data that is not in the loader"
        )
    job = CalibrationPasses(names.unwrap(model), selectors, method, batch_size, max_samples, process_group, progress)
    classes: ClassCounts | None = None
    before: Scores | None = None
    check: Feed | None = None
    if held_out is not None and job.layers:
        check = Feed(held_out, forward, device).several_passes("the check on held-out data")
        before, classes = job.check(check, metric, {}, "held-out data, before")
    plan = job.plan(Feed(loader, forward, device), classes)
    if not plan.changes:
        return Recalibration(plan, accepted=False)
    if metric is None or check is None:
        return Recalibration(plan, accepted=True, applied=plan.apply(allow_imbalance=allow_imbalance))
    after, _ = job.check(check, metric, plan.changes, "held-out data, after")
    if before is None and after is None:
        raise NonFiniteStatistics(
            "the metric on held-out data is NaN or infinite with the old statistics and with the new ones\n"
            "  fix: check the held-out data and the weights of the model"
        )
    difference = None if before is None or after is None else Interval(*paired_difference(after, before))
    kept = after is not None and (difference is None or difference.value >= -tolerance)
    return Recalibration(
        plan,
        accepted=kept,
        before=_interval(before),
        after=_interval(after),
        difference=difference,
        # The check has been made, which is what an imbalance calls for.
        applied=plan.apply(allow_imbalance=True) if kept else None,
        checked=True,
    )


def _interval(scores: Scores | None) -> Interval | None:
    return None if scores is None else Interval(scores.mean, *scores.interval())
