"""Causes that the state of the layers gives away: counters, types, values, ranks."""

from __future__ import annotations

import torch

from frostline.norms.evidence import MATERIAL, Evidence, LayerFacts, off_layers
from frostline.norms.norm_report import CauseRow
from frostline.state import names


def _some(paths: list[str]) -> str:
    folded = [str(f) for f in names.fold(paths)]
    return ", ".join(folded[:3]) + (f" and {len(folded) - 3} more" if len(folded) > 3 else "")


def non_finite(facts: dict[str, LayerFacts]) -> CauseRow | None:
    """NaN, infinite or negative statistics. A moving average never forgets a NaN."""
    bad = [path for path, layer in facts.items() if not layer.finite]
    if not bad:
        return None
    first = facts[bad[0]]
    kinds = [
        f"{int(count)} {kind}"
        for kind, count in (
            ("NaN", (first.mean.isnan() | first.var.isnan()).sum()),
            ("infinite", (first.mean.isinf() | first.var.isinf()).sum()),
            ("negative variances", (first.var < 0).sum()),
        )
        if count
    ]
    return CauseRow(
        "non-finite",
        1.0,
        f"{len(bad)} of {len(facts)} layers, the first is {bad[0]}: {', '.join(kinds)} in {len(first.mean)} channels",
        tuple(bad),
    )


def never_updated(evidence: Evidence) -> CauseRow | None:
    """Statistics as a new layer has them, or a momentum of 0, that do not fit the data."""
    found = [
        path
        for path, layer in evidence.facts.items()
        if path in evidence.train.layers
        and (layer.as_built or layer.momentum == 0)
        and evidence.train.layers[path].fit_alone.effect >= MATERIAL
    ]
    if not found:
        return None
    first = evidence.facts[found[0]]
    state = "mean 0 and variance 1 as built" if first.as_built else "statistics of another time"
    return CauseRow(
        "never-updated",
        0.98,
        f"{len(found)} of {len(evidence.facts)} layers ({_some(found)}): {state}, "
        f"counter {first.count}, momentum {first.momentum}; off by "
        f"{max(evidence.train.layers[p].fit_alone.effect for p in found):.2f} sd",
        tuple(found),
    )


def low_precision(evidence: Evidence) -> CauseRow | None:
    """Updates that a 16-bit buffer rounds away: ``momentum * |deviation|`` is below half a unit in the last place."""
    off = set(off_layers(evidence.train))
    found: list[str] = []
    lost: list[float] = []
    for path, layer in evidence.facts.items():
        if path not in off or layer.dtype not in {torch.float16, torch.bfloat16}:
            continue
        population = evidence.train.layers[path]
        momentum = layer.momentum if layer.momentum is not None else 1 / max(layer.count or 1, 1)
        # Between two powers of two the values of a format with this eps lie eps * 2 ** exponent apart.
        share = [
            (momentum * (new - old).abs() < _half_unit(old, layer.dtype)).double().mean()
            for old, new in ((layer.mean, population.mean), (layer.var, population.var))
        ]
        found.append(path)
        lost.append(float(sum(share)) / 2)
    if not found:
        return None
    share_lost = max(lost)
    return CauseRow(
        "low-precision-buffers",
        0.75 + 0.24 * min(1.0, 2 * share_lost),
        f"{len(found)} layers keep their statistics in {str(evidence.facts[found[0]].dtype).removeprefix('torch.')} "
        f"and are off by up to {max(evidence.train.layers[p].fit_alone.effect for p in found):.2f} sd; in "
        f"{share_lost:.0%} of the channels of the worst an update at momentum {evidence.facts[found[0]].momentum} "
        "would be rounded away",
        tuple(found),
    )


def _half_unit(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.finfo(dtype).eps * torch.exp2(value.abs().clamp(min=1e-30).log2().floor()) / 2


def double_update(evidence: Evidence) -> CauseRow | None:
    """More updates than steps: recomputation by a checkpoint, a second forward pass, or accumulation."""
    calls = {path: max(len(look.batch.calls), 1) for path, look in evidence.train.layers.items()}
    counted = {
        path: layer.count / calls[path]
        for path, layer in evidence.facts.items()
        if layer.count and path in calls and not layer.as_built
    }
    if not counted:
        return None
    base = float(evidence.steps) if evidence.steps else min(counted.values())
    factors = {path: count / base for path, count in counted.items() if base > 0}
    found = [path for path, factor in factors.items() if _is_multiple(factor)]
    if not found:
        return None
    factor = round(max(factors[path] for path in found))
    against = (
        f"{evidence.steps} steps of the optimizer"
        if evidence.steps
        else f"{round(base)} updates of the other {len(counted) - len(found)} layers"
    )
    return CauseRow(
        "double-update",
        0.96,
        f"{len(found)} of {len(evidence.facts)} layers ({_some(found)}) counted {round(counted[found[0]])} updates "
        f"against {against}: {factor} in each step, so their memory is {factor} times as short",
        tuple(found),
    )


def _is_multiple(factor: float) -> bool:
    """Whole multiples from 2 on; a last batch or a warm-up may be missing."""
    return factor >= 1.7 and abs(factor - round(factor)) <= 0.06 * factor


def ranks_differ(evidence: Evidence) -> CauseRow | None:
    """Processes whose statistics lie further apart than noise would put them."""
    found = [
        path
        for path, distance in evidence.ranks.items()
        if path in evidence.train.layers
        and distance >= max(MATERIAL / 2, 2 * evidence.train.layers[path].fit_alone.noise)
    ]
    if not found:
        return None
    worst = max(found, key=lambda path: evidence.ranks[path])
    return CauseRow(
        "ranks-differ",
        0.97,
        f"the processes' statistics differ in {len(found)} of {len(evidence.facts)} layers, most in {worst}: "
        f"{evidence.ranks[worst]:.2f} sd, where its moving average scatters by "
        f"{evidence.train.layers[worst].fit_alone.noise:.2f}; a checkpoint holds those of rank 0 alone",
        tuple(found),
    )
