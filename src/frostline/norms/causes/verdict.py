"""Asks every rule, and puts what they found in order."""

from __future__ import annotations

from frostline.norms.causes.data import domain_shift, stale, wrong_input_scale
from frostline.norms.causes.from_state import double_update, low_precision, never_updated, non_finite, ranks_differ
from frostline.norms.causes.memory import batch_too_small, memory_too_long, memory_too_short
from frostline.norms.causes.mixed import mixed_domains
from frostline.norms.causes.swapped import layers_swapped
from frostline.norms.evidence import Evidence, off_layers
from frostline.norms.norm_report import CauseRow

RULES = (
    never_updated,
    low_precision,
    double_update,
    ranks_differ,
    layers_swapped,
    wrong_input_scale,
    mixed_domains,
    memory_too_long,
    memory_too_short,
    batch_too_small,
    domain_shift,
    stale,
)
# Say only that the statistics do not fit; whoever says why comes first.
_GENERAL = {"stale", "domain-shift"}


def judge(evidence: Evidence) -> tuple[CauseRow, ...]:
    """The causes, the most likely first; ``healthy`` alone where there is none."""
    found = [row for rule in RULES if (row := rule(evidence)) is not None]
    if not found:
        return (_healthy(evidence),)
    specific = max((row.confidence for row in found if row.name not in _GENERAL), default=0.0)
    rows = [_lowered(row, specific) if row.name in _GENERAL else row for row in found]
    return tuple(sorted(rows, key=lambda row: -row.confidence))


def _lowered(row: CauseRow, specific: float) -> CauseRow:
    return CauseRow(row.name, round(row.confidence * (1 - 0.8 * specific), 3), row.evidence, row.layers)


def _healthy(evidence: Evidence) -> CauseRow:
    layers = evidence.data.layers
    if layers and not any(layer.fit_alone.tested for layer in layers.values()):
        return CauseRow("healthy", 0.0, "nothing could be tested: the samples are all equal, or fewer than eight")
    worst = max(layers, key=lambda path: layers[path].fit_alone.effect, default=None)
    said = (
        "no layer with running statistics saw data"
        if worst is None
        else f"the statistics of all {len(layers)} layers describe this data: the worst, {worst}, is off by "
        f"{layers[worst].fit_alone.effect:.3f} sd, where noise alone gives {layers[worst].fit_alone.noise:.3f}"
    )
    return CauseRow("healthy", 0.95 if not off_layers(evidence.data) else 0.5, said)


__all__ = ["judge", "non_finite"]
