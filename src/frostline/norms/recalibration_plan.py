"""New running statistics for a model as a value: what would change, what would stay and why; applied whole or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from frostline.errors import NormsError, name_some
from frostline.findings import Finding, Severity
from frostline.json_values import finite
from frostline.norms.shift_test import output_distance
from frostline.norms.written_statistics import Applied, LayerStatistics, buffer_of, refuse_held, write
from frostline.state import names
from frostline.state.digest import digest
from frostline.state.inventory import SCHEMA_VERSION
from frostline.tables import html_table, text_table

Method: TypeAlias = Literal["all-at-once", "eval-consistent"]


@dataclass(frozen=True)
class RecalibrationRow:
    """One layer.

    Attributes:
        path: its dotted path.
        type: its class name.
        count: values per channel that the new statistics rest on.
        channels: how many it has.
        constant: in how many of them all values are equal, which leaves a variance of 0 there.
        change: how far the layer's output moves, in its standard deviations
            (:func:`~frostline.norms.shift_test.output_distance`, what a diagnosis calls off by); infinite where the old
            statistics are not finite.
        mean_shift: the largest change of a channel's mean, in its old running standard deviation.
        var_ratio: the median of new variance over old.
        residual_var: median over the channels of ``|log(v / new variance)|``, v being what the layer meets in eval mode
            once all new statistics are in place; 0 if they describe that exactly.
        residual_mean: the largest distance of a channel's mean in eval mode from its new running mean, in standard
            deviations.
    """

    path: str
    type: str
    count: int
    channels: int
    constant: int
    change: float
    mean_shift: float
    var_ratio: float
    residual_var: float
    residual_mean: float


@dataclass(frozen=True)
class LayerChange:
    """What one layer has, and what it would get.

    Attributes:
        layer: the layer.
        old: what it has.
        new: what it would get.
        row: the figures.
    """

    layer: nn.Module
    old: LayerStatistics
    new: LayerStatistics
    row: RecalibrationRow


@dataclass(frozen=True)
class RecalibrationPlan:
    """What a recalibration would do; prints as a table, also in a notebook. Nothing has been changed.

    Attributes:
        root: the model, without wrappers.
        method: how the statistics were estimated.
        changes: by path, in the order in which the layers are reached.
        skipped: path to the reason, for each layer with running statistics that stays as it is.
        samples: how many samples were seen, in all processes.
        findings: what is to be said about the data.
    """

    root: nn.Module
    method: Method
    changes: dict[str, LayerChange]
    skipped: dict[str, str]
    samples: int
    findings: tuple[Finding, ...] = ()

    @property
    def rows(self) -> list[RecalibrationRow]:
        """The figures of each layer."""
        return [change.row for change in self.changes.values()]

    def apply(self, *, allow_imbalance: bool = False) -> Applied:
        """Write the new statistics into the layers' buffers: all of them or, on an error, none; checked by value.

        Parameters, modes, momenta and every other buffer stay as they are, and no tensor is put in another's place.

        Args:
            allow_imbalance: write statistics of data that lacks whole classes.

        Raises:
            NormsError: whole classes are missing from the data, a layer is held by now, or the model's statistics are
                no longer what they were when this was planned.
        """
        errors = [finding for finding in self.findings if finding.severity is Severity.ERROR]
        if errors and not allow_imbalance:
            raise NormsError(
                f"the statistics are not written, and nothing has checked them on held-out data:\n{errors[0]}\n"
                "        or recalibrate(..., metric=..., held_out=...), which keeps them only where they do not harm;\n"
                "        allow_imbalance=True (--allow-imbalance) writes them as they are"
            )
        layers = {path: change.layer for path, change in self.changes.items()}
        refuse_held(layers, "apply")
        known = dict(self.root.named_modules())
        old = {path: change.old.by_name() for path, change in self.changes.items()}
        stale = [
            path
            for path, layer in layers.items()
            if known.get(path) is not layer
            or any(digest(buffer_of(path, layer, name)) != digest(value) for name, value in old[path].items())
        ]
        if stale:
            raise NormsError(
                f"apply: the model is not what it was when this was planned: {name_some(stale)}\n  fix: plan again"
            )
        write([(p, c.layer, c.new.by_name()) for p, c in self.changes.items()])
        return Applied(layers, old)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready values with a schema version; figures that JSON cannot write become strings."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": type(self.root).__name__,
            "method": self.method,
            "samples": self.samples,
            "layers": [finite(asdict(row)) for row in self.rows],
            "skipped": dict(self.skipped),
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        lines = [f"new statistics for {len(self.changes)} layers of {type(self.root).__name__}, {self.method}"]
        if self.changes:
            lines[0] += f", from {self.samples} samples"
            lines += [text_table(_COLUMNS, _cells(self.rows)), _residual(self)]
        elif not self.skipped:
            lines = [
                f"no layer of {type(self.root).__name__} keeps running statistics: there is nothing to recalibrate"
            ]
        constant = [row.path for row in self.rows if row.constant]
        if constant:
            some = names.name_folded(constant)
            lines.append(f"some channels are constant on this data and get a variance of 0 (rounded): {some}")
        for reason in dict.fromkeys(self.skipped.values()):
            paths = [path for path, why in self.skipped.items() if why == reason]
            lines += [f"left as it is: {folded}: {reason}" for folded in names.fold(paths)]
        return "\n".join([*lines, *map(str, self.findings)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, _cells(self.rows), caption=f"{type(self.root).__name__}, {self.method}")


_COLUMNS = [
    "layer",
    "type",
    "values",
    "output moves (sd)",
    "mean moves (sd)",
    "var x",
    "residual |log var|",
    "mean (sd)",
]


def change_of(path: str, layer: nn.Module, old: LayerStatistics, new: LayerStatistics, count: int) -> LayerChange:
    """The change of one layer with its figures, but for the residual, which is measured later.

    Example:
        >>> from frostline.norms.written_statistics import statistics_in
        >>> layer = nn.BatchNorm1d(1)
        >>> old = statistics_in(layer)
        >>> round(change_of("bn", layer, old, replace(old, mean=torch.ones(1)), 8).row.change, 3)
        1.0
    """
    eps = float(getattr(layer, "eps", 0.0))
    (old_mean, old_var), (mean, var) = ((each.mean.double(), each.var.double()) for each in (old, new))
    weight = getattr(layer, "weight", None)
    weight = weight if isinstance(weight, Tensor) and weight.shape == mean.shape else None
    finite = bool(old_mean.isfinite().all()) and bool(old_var.isfinite().all())
    row = RecalibrationRow(
        path=path,
        type=type(layer).__name__,
        count=count,
        channels=len(mean),
        constant=int((var <= _resolution(mean, new.var.dtype)).sum()),
        change=output_distance(mean, var, old_mean, old_var, eps, weight) if finite else math.inf,
        mean_shift=float(_in_deviations(mean - old_mean, old_var, eps).max()) if finite else math.inf,
        var_ratio=float(_ratio(var, old_var, eps).median()) if finite else math.nan,
        residual_var=math.nan,
        residual_mean=math.nan,
    )
    return LayerChange(layer, old, new, row)


def with_residual(change: LayerChange, mean: Tensor, var: Tensor) -> LayerChange:
    """The same change, with how far the new statistics are from those that the layer meets in eval mode.

    Args:
        change: what the layer would get.
        mean: measured in eval mode, with all new statistics in place.
        var: likewise, as PyTorch would store it.
    """
    eps = float(getattr(change.layer, "eps", 0.0))
    new = change.new
    row = replace(
        change.row,
        residual_var=float(_ratio(var, new.var.to(var), eps).log().abs().median()),
        residual_mean=float(_in_deviations(mean - new.mean.to(mean), new.var.to(mean), eps).max()),
    )
    return replace(change, row=row)


def _resolution(mean: Tensor, dtype: torch.dtype) -> Tensor:
    """The variance that equal values may seem to have, because means of them were rounded.

    That is a few units in the last place of the mean; with buffers in half precision the sums are in float32.
    """
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    return (4 * eps * mean).square()


def _in_deviations(difference: Tensor, var: Tensor, eps: float) -> Tensor:
    # A constant channel of a layer without eps has no deviation to measure in: any difference is infinite, none is 0.
    return (difference.abs() / (var + eps).sqrt()).nan_to_num(nan=0.0)


def _ratio(new: Tensor, old: Tensor, eps: float) -> Tensor:
    return ((new + eps) / (old + eps)).nan_to_num(nan=1.0)


def _residual(plan: RecalibrationPlan) -> str:
    worst = max(plan.rows, key=lambda row: row.residual_var)
    exact = " (exact but for rounding)" if plan.method == "eval-consistent" else ""
    return (
        "residual against what the layers meet in eval mode then: median |log variance ratio| up to "
        f"{worst.residual_var:.2g}, at {worst.path or 'the layer'}{exact}"
    )


def _cells(rows: Sequence[RecalibrationRow]) -> list[list[object]]:
    return [
        [r.path, r.type, r.count, r.change, r.mean_shift, r.var_ratio, r.residual_var, r.residual_mean] for r in rows
    ]
