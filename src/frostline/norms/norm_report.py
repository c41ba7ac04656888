"""What a diagnosis found, as values: the layers, the causes with their evidence, the remedies with what they did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from frostline.json_values import finite
from frostline.state import names
from frostline.state.inventory import SCHEMA_VERSION
from frostline.tables import html_table, text_table

Cause: TypeAlias = Literal[
    "healthy",
    "batch-too-small",
    "memory-too-short",
    "memory-too-long",
    "never-updated",
    "stale",
    "domain-shift",
    "mixed-domains",
    "wrong-input-scale",
    "double-update",
    "non-finite",
    "low-precision-buffers",
    "ranks-differ",
    "layers-swapped",
]

Channel: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class CauseRow:
    """One cause.

    Attributes:
        name: which.
        confidence: between 0 and 1.
        evidence: the figures behind it, in one line.
        layers: the layers that show it.
    """

    name: Cause
    confidence: float
    evidence: str
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class NormLayerRow:
    """One layer.

    Attributes:
        path: its dotted path.
        type: its class name.
        channels: how many it has.
        momentum: weight of the new value; ``None`` for cumulative averages.
        updates: what its counter says; ``None`` if it has none.
        policy: what it does with statistics now.
        effect: how far its output is off by its own statistics, in standard deviations of that output.
        effect_in_eval: the same for what reaches it in eval mode, through the layers before it as they are; ``None`` if
            that is not finite.
        noise: what the noise of its moving average alone would do to the output.
        batch_noise: what the noise of one batch does to it, in train mode.
        p_value: chance of a deviation as large, were the statistics estimated from this data.
        off: whether it is off by more than noise and by enough to matter.
    """

    path: str
    type: str
    channels: int
    momentum: float | None
    updates: int | None
    policy: str
    effect: float
    effect_in_eval: float | None
    noise: float
    batch_noise: float
    p_value: float
    off: bool


@dataclass(frozen=True)
class Interval:
    """A figure, and the range in which it lies with 95 % confidence."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Counterfactual:
    """What the metric would be if the layers used other statistics, the weights being the same.

    Attributes:
        name: ``E0`` ... as in the docstring of :func:`~frostline.norms.diagnose.diagnose`.
        statistics: which statistics those are.
        metric: what was measured.
        gain: difference to ``E0`` on the same samples.
    """

    name: str
    statistics: str
    metric: Interval
    gain: Interval | None = None


@dataclass(frozen=True)
class RemedyRow:
    """One remedy.

    Attributes:
        name: what to do.
        measured: the metric on data that the remedy did not see; ``None`` where it was not measured.
        gain: difference to leaving the model as it is, on the same samples.
        advice: ``apply``, ``keep``, ``no better``, ``worse`` or ``not measured``.
        how: the call that does it.
    """

    name: str
    measured: Interval | None
    gain: Interval | None
    advice: Literal["apply", "keep", "no better", "worse", "not measured"]
    how: str


@dataclass(frozen=True)
class NormReport:
    """The result of :func:`~frostline.norms.diagnose.diagnose`; prints as a table, also in a notebook.

    Attributes:
        cause: the name of the first cause.
        causes: all of them, the most likely first.
        layers: every layer with running statistics, in the order of the forward pass.
        remedies: those that were measured first, the best first.
        counterfactuals: the metric under other statistics, empty without a metric.
        worst: for the layers that are off most, ``(running mean, running sd, population mean, population sd)`` of each
            channel.
        notes: what else the reader should know.
        model_type: class name of the model.
    """

    causes: tuple[CauseRow, ...]
    layers: tuple[NormLayerRow, ...]
    remedies: tuple[RemedyRow, ...] = ()
    counterfactuals: tuple[Counterfactual, ...] = ()
    worst: dict[str, list[Channel]] = field(default_factory=dict[str, list[Channel]])
    notes: tuple[str, ...] = ()
    model_type: str = ""

    @property
    def cause(self) -> Cause:
        """The name of the first cause."""
        return self.causes[0].name

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready values with a schema version."""
        return {"schema_version": SCHEMA_VERSION, "model": self.model_type, "cause": self.cause, **finite(_plain(self))}

    def __str__(self) -> str:
        lines = [f"{row.name} ({row.confidence:.0%}): {row.evidence}" for row in self.causes]
        if self.layers:
            lines += ["", text_table(_LAYER_COLUMNS, self._layer_cells())]
        if self.counterfactuals:
            cells: list[list[object]] = [[c.name, c.statistics, c.metric, c.gain] for c in self.counterfactuals]
            lines += ["", text_table(["", "statistics", "metric [95 %]", "against E0"], cells)]
        if self.remedies:
            cells = [[r.name, r.measured, r.gain, r.advice, r.how] for r in self.remedies]
            lines += ["", text_table(["remedy", "measured [95 %]", "against as it is", "advice", "how"], cells)]
        return "\n".join([*lines, *(["", *self.notes] if self.notes else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(_LAYER_COLUMNS, self._layer_cells(), caption=f"{self.model_type}: {self.cause}")

    def _layer_cells(self) -> list[list[object]]:
        """Neighbours that are all right share a row."""
        fine = names.fold([row.path for row in self.layers if not row.off])
        heads = {folded.paths[0]: folded for folded in fine}
        hidden = {path for folded in fine for path in folded.paths[1:]}
        known = {row.path: row for row in self.layers}
        cells: list[list[object]] = []
        for row in self.layers:
            if row.path in hidden:
                continue
            folded = heads.get(row.path)
            rows = [known[path] for path in folded.paths] if folded else [row]
            cells.append(
                [
                    str(folded) if folded else row.path,
                    row.type,
                    row.policy,
                    _range([r.effect for r in rows]),
                    _range([r.noise for r in rows]),
                    _range([r.effect_in_eval for r in rows if r.effect_in_eval is not None]),
                    "OFF" if row.off else "fits",
                ]
            )
        return cells


_LAYER_COLUMNS = ["layer", "type", "policy", "off by (sd)", "noise (sd)", "off in eval (sd)", ""]


def _range(values: list[float]) -> str | None:
    if not values:
        return None
    low, high = min(values), max(values)
    return f"{low:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:.3f} to {high:.3f}"


def _plain(report: NormReport) -> dict[str, Any]:
    found = asdict(report)
    del found["model_type"]
    return found
