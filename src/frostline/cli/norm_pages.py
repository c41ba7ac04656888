"""A diagnosis and a recalibration as the values that an HTML page is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import frostline
from frostline.report import CauseLine, ChangeLine, LayerLine, NormPage, Range, RemedyLine, ScoreLine

if TYPE_CHECKING:  # importing them would import torch, and `--help` should not wait for that
    from frostline.norms.norm_report import Cause, Interval, NormReport
    from frostline.norms.recalibrate import Recalibration

Facts = tuple[tuple[str, str], ...]

SENTENCES: Mapping[Cause, str] = {
    "healthy": "The running statistics describe this data.",
    "batch-too-small": "The model was trained in batches too small for running statistics to stand in for them.",
    "memory-too-short": "The running statistics follow the last few batches, and scatter as they do.",
    "memory-too-long": "What the running statistics began with still weighs in them.",
    "never-updated": "The running statistics were never updated.",
    "stale": "The running statistics are those of other weights.",
    "domain-shift": "This data is of another kind than the data that the running statistics were taken from.",
    "mixed-domains": "Inputs of different kinds share one set of running statistics.",
    "wrong-input-scale": "The inputs arrive on another scale than in training.",
    "double-update": "Every step of training updated the running statistics more than once.",
    "non-finite": "Running statistics are not finite.",
    "low-precision-buffers": "The running statistics are kept in a type that is too coarse for them.",
    "ranks-differ": "The processes of training ended with different running statistics.",
    "layers-swapped": "Layers have each other's running statistics.",
}


def diagnosis_page(report: NormReport, model: str, facts: Facts, notes: Sequence[str] = ()) -> NormPage:
    """What the page of a diagnosis says.

    Args:
        report: what was found.
        model: what the model was asked for by.
        facts: names and values.
        notes: what is to be said beside the report's own notes.
    """
    causes = tuple(
        CauseLine(row.name, SENTENCES[row.name], row.confidence, row.evidence, len(row.layers)) for row in report.causes
    )
    return NormPage(
        kind="diagnosis of normalization statistics",
        title=model,
        good=report.cause == "healthy",
        claim=causes[0].sentence if report.layers else "There are no running statistics.",
        evidence=causes[0].evidence,
        facts=facts,
        causes=causes,
        layers=tuple(
            LayerLine(
                path=row.path,
                type=row.type,
                policy=row.policy,
                channels=row.channels,
                effect=row.effect,
                in_eval=row.effect_in_eval,
                noise=row.noise,
                p_value=row.p_value,
                off=row.off,
            )
            for row in report.layers
        ),
        scores=tuple(
            ScoreLine(row.name, row.statistics, _needed(row.metric), _range(row.gain)) for row in report.counterfactuals
        ),
        remedies=tuple(
            RemedyLine(row.name, row.how, row.advice, _range(row.measured), _range(row.gain)) for row in report.remedies
        ),
        worst=tuple((path, tuple(channels)) for path, channels in report.worst.items()),
        notes=(*notes, *report.notes),
        generator=f"frostline {frostline.__version__}",
    )


def recalibration_page(result: Recalibration, model: str, facts: Facts, written: str) -> NormPage:
    """What the page of a recalibration says.

    Args:
        result: what became of it.
        model: what the model was asked for by.
        facts: names and values.
        written: where the new model is, or why it is nowhere.
    """
    scores: list[ScoreLine] = []
    if result.before is not None:
        scores.append(ScoreLine("before", "running, as they were", _needed(result.before)))
    if result.after is not None:
        scores.append(
            ScoreLine(
                "after", f"estimated anew, {result.plan.method}", _needed(result.after), _range(result.difference)
            )
        )
    left = [f"{path} was left as it is: {reason}" for path, reason in result.skipped.items()]
    return NormPage(
        kind="recalibration of normalization statistics",
        title=model,
        good=result.accepted or not result.plan.changes,
        claim=_claim(result),
        evidence=f"{result.verdict()}.",
        facts=(*facts, ("written", written)),
        scores=tuple(scores),
        changes=tuple(
            ChangeLine(row.path, row.count, row.change, row.mean_shift, row.var_ratio, row.residual_var)
            for row in result.rows
        ),
        notes=(*(finding.message for finding in result.findings), *left),
        generator=f"frostline {frostline.__version__}",
    )


def _claim(result: Recalibration) -> str:
    if not result.plan.changes:
        return "There was nothing to recalibrate."
    return "The new statistics were kept." if result.accepted else "The new statistics were not kept."


def _needed(interval: Interval) -> Range:
    return Range(interval.value, interval.low, interval.high)


def _range(interval: Interval | None) -> Range | None:
    return None if interval is None else _needed(interval)
