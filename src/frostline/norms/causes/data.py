"""Causes that lie between the statistics and the data: another domain, another scale, or weights that went on."""

from __future__ import annotations

import math

import torch

from frostline.norms.evidence import MATERIAL, Evidence, off_layers, typical
from frostline.norms.look import Look
from frostline.norms.norm_report import CauseRow

# Images that are brighter or flatter do not differ by more; a forgotten normalization or division does.
SCALE = 1.6


def wrong_input_scale(evidence: Evidence) -> CauseRow | None:
    """The first layer sees everything larger or smaller by one factor, and the layers behind it fit."""
    layers = list(evidence.data.layers.values())
    if not layers:
        return None
    first, rest = layers[0], layers[1:]
    if evidence.facts[first.path].as_built:
        return None
    gains = first.fit_alone.gain.clamp(min=1e-12).log()
    factor = float(gains.median())
    spread = float((gains - factor).abs().median())
    behind = typical([layer.fit_alone.effect for layer in rest])
    if abs(factor) < math.log(SCALE) or spread > 0.25 * abs(factor) or behind > 0.6 * first.fit_alone.effect:
        return None
    return CauseRow(
        "wrong-input-scale",
        0.96,
        f"{first.path}, the first layer, sees {math.exp(factor):.3g} times the spread it was trained on, alike in all "
        f"channels (within {math.exp(spread) - 1:.0%}); the layers behind it are off by {behind:.2f} sd only",
        (first.path,),
    )


def domain_shift(evidence: Evidence) -> CauseRow | None:
    """Statistics that fit the training data, and not the data at hand."""
    off = off_layers(evidence.data)
    if not off:
        return None
    if evidence.compared:
        return _compared(evidence, off)
    fall = _fall(evidence.data)
    if fall is None:
        return None
    first, behind = fall
    return CauseRow(
        "domain-shift",
        0.35 + 0.5 * _share(first, behind),
        f"{len(off)} of {len(evidence.facts)} layers are off; the first by {first:.2f} sd and those behind it, were "
        f"it right, by {behind:.2f}: the data itself differs (pass train_loader to be sure)",
        tuple(off),
    )


def stale(evidence: Evidence) -> CauseRow | None:
    """Statistics of other weights: of an average, of before the last steps, or of another epoch."""
    off = off_layers(evidence.train)
    if not off:
        return None
    effects = [evidence.train.layers[path].fit_alone.effect for path in off]
    evidence_text = (
        f"{len(off)} of {len(evidence.facts)} layers are off on "
        f"{'the training data' if evidence.compared else 'this data'} by {typical(effects):.2f} sd "
        f"(up to {max(effects):.2f}), whatever lies before them: the statistics are not those of these weights"
    )
    if evidence.compared:
        return CauseRow("stale", 0.85, evidence_text, tuple(off))
    fall = _fall(evidence.data)
    share = 0.0 if fall is None else _share(*fall)
    return CauseRow("stale", 0.35 + 0.5 * (1 - share), evidence_text, tuple(off))


def _compared(evidence: Evidence, off: list[str]) -> CauseRow | None:
    on_train = {path: layer.fit_alone.effect for path, layer in evidence.train.layers.items()}
    worse = [path for path in off if evidence.data.layers[path].fit_alone.effect > 1.5 * on_train.get(path, 0.0)]
    if not worse:
        return None
    here = max(evidence.data.layers[path].fit_alone.effect for path in worse)
    there = typical([on_train.get(path, 0.0) for path in worse])
    return CauseRow(
        "domain-shift",
        0.9 if there < MATERIAL else 0.6,
        f"{len(worse)} of {len(evidence.facts)} layers are off on this data (up to {here:.2f} sd), by {there:.2f} sd "
        "on the training data: the statistics are right, the data is another",
        tuple(worse),
    )


def _fall(look: Look) -> tuple[float, float] | None:
    """The effect in the first layer, and the median of those behind it."""
    effects = [layer.fit_alone.effect for layer in look.layers.values()]
    return (effects[0], typical(effects[1:])) if len(effects) > 1 else None


def _share(first: float, behind: float) -> float:
    """Near 1 where the first layer is off most, as by other data; near 0 where those behind it are."""
    ratio = math.log(max(first, 1e-6) / max(behind, 1e-6))
    return float(torch.sigmoid(torch.tensor(2.0 * ratio)))
