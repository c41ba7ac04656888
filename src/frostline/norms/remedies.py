"""Remedies: which ones to try for which cause, and what each did on data that it did not see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from frostline.norms.counterfactuals import Bench, gain, interval
from frostline.norms.norm_report import Cause, Interval, RemedyRow

# What to do where nothing can be measured by exchanging statistics: it takes training, or a change of the user's code.
ADVICE: Mapping[Cause, tuple[tuple[str, str], ...]] = {
    "batch-too-small": (
        ("train on with frozen statistics", "frostline.freeze(model, torch.nn.BatchNorm2d, level='stats')"),
        ("merge micro-batches", "norms.step_commit(model, optimizer)"),
        ("normalize without the batch", "norms.plan_convert(model, norms.GroupNorm()).apply()"),
    ),
    "memory-too-short": (("lower the momentum", "layer.momentum = 0.1, then recalibrate"),),
    "memory-too-long": (("raise the momentum", "layer.momentum = 0.1, or reset_running_stats() before training"),),
    "never-updated": (("let the layers update", "layer.momentum = 0.1 and train mode, then recalibrate"),),
    "double-update": (
        ("update once a step", "norms.step_commit(model, optimizer)"),
        ("rescale the momentum", "norms.rescale_momentum(model, forwards_per_step)"),
    ),
    "low-precision-buffers": (("keep statistics in float32", "layer.running_mean.float(), layer.running_var.float()"),),
    "ranks-differ": (("merge the processes' statistics", "norms.merge_statistics(model) before eval and save"),),
    "wrong-input-scale": (("normalize the input as in training", "check ToTensor and Normalize of the transform"),),
    "mixed-domains": (("split by domain", "norms.split_domains(model, [...])"),),
    "layers-swapped": (("load the statistics under the right names", "check the renaming of the checkpoint"),),
}


@dataclass(frozen=True)
class Trial:
    """Statistics to try, and the call that would put them in place.

    Attributes:
        name: what to do.
        statistics: by layer.
        how: the call.
    """

    name: str
    statistics: Mapping[str, tuple[Tensor, Tensor]]
    how: str


def measured(bench: Bench, trials: list[Trial]) -> list[RemedyRow]:
    """Try each on the bench; the best first. Leaving the model as it is stands among them."""
    base = bench.as_it_is()
    rows = [RemedyRow("leave it as it is", interval(base), None, "keep", "")]
    for trial in trials:
        scores = bench.under(trial.statistics)
        by = gain(scores, base)
        rows.append(RemedyRow(trial.name, interval(scores), by, _verdict(by), trial.how))
    if any(row.advice == "apply" for row in rows):
        rows[0] = replace(rows[0], advice="no better")
    return sorted(rows, key=lambda row: -row.measured.value if row.measured else 0.0)


def unmeasured(causes: list[Cause], trials: list[Trial]) -> list[RemedyRow]:
    """What remains to be advised, cause by cause."""
    rows = [RemedyRow(trial.name, None, None, "not measured", trial.how) for trial in trials]
    rows += [
        RemedyRow(name, None, None, "not measured", how) for cause in causes for name, how in ADVICE.get(cause, ())
    ]
    return list({row.name: row for row in rows}.values())


def _verdict(by: Interval) -> Literal["apply", "no better", "worse"]:
    """A remedy is advised only where the gain is more than chance."""
    if by.low > 0:
        return "apply"
    return "worse" if by.high < 0 or by.value < 0 else "no better"
