"""Causes that lie between the statistics and the data: another domain, another scale, or weights that went on."""

from __future__ import annotations

import math

import torch

from frostline.norms.evidence import MATERIAL, Evidence, off_layers, typical
from frostline.norms.look import Look
from frostline.norms.norm_report import CauseRow
from frostline.norms.shift_test import Fit

# Images that are brighter or flatter do not differ by more; a forgotten normalization or division does.
SCALE = 1.9
# One factor for all channels: the logarithms of their standard deviations change alike, up to what a moving average
# scatters by and what the zeros of the padding do where the mean went along. Blur, noise and a flat contrast change
# some channels more than others.
ALIKE = 0.06
# Where the sign of :func:`_lean` changes: between old statistics and other data.
BALANCE = 0.03


def wrong_input_scale(evidence: Evidence) -> CauseRow | None:
    """The first layer sees everything larger or smaller by one factor, and the layers behind it fit."""
    layers = list(evidence.data.layers.values())
    if not layers:
        return None
    first, rest = layers[0], layers[1:]
    if evidence.facts[first.path].as_built:
        return None
    facts = evidence.facts[first.path]
    # Without eps: what is divided by 255 twice has less variance than that.
    alive = (facts.var > 0) & (first.var > 0)
    if not bool(alive.any()):
        return None
    assert first.alone.moments is not None
    gains = (first.alone.moments.var()[alive] / facts.var[alive]).log() / 2
    factor = float(gains.median())
    spread = float((gains - factor).abs().median())
    behind = typical([layer.fit_alone.effect for layer in rest])
    outliers = float((gains - factor).square().mean().sqrt())
    alike = spread <= max(ALIKE, 0.07 * abs(factor)) and outliers <= max(1.5 * ALIKE, 0.12 * abs(factor))
    if abs(factor) < math.log(SCALE) or not alike or behind > 0.6 * first.fit_alone.effect:
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
    worse = _worse_than_in_training(evidence, off)
    if worse is not None:
        return worse
    fall = _fall(evidence.data)
    if fall is None:
        return None
    first, behind = fall
    return CauseRow(
        "domain-shift",
        0.35 + 0.5 * _lean(evidence.data),
        f"{len(off)} of {len(evidence.facts)} layers are off; the first by {first:.2f} sd and those behind it, were "
        f"it right, by {behind:.2f}: the data itself differs "
        + ("(the training data, too)" if evidence.compared else "(pass train_loader to be sure)"),
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
    fall = _fall(evidence.train)
    lean = 0.0 if fall is None else _lean(evidence.train)
    return CauseRow("stale", 0.35 + 0.5 * (1 - lean), evidence_text, tuple(off))


def _worse_than_in_training(evidence: Evidence, off: list[str]) -> CauseRow | None:
    if not evidence.compared:
        return None
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


def _lean(look: Look) -> float:
    """Near 1 where deviations look like those of other data, near 0 where they look like those of other weights.

    Other data shows most in the first layer: those behind it are given normalized inputs, whose means are as they
    were, so that only their variances differ. Other weights show in every layer, in the means as well.
    """
    layers = list(look.layers.values())
    first, behind = layers[0].fit_alone, [layer.fit_alone for layer in layers[1:]]
    fall = math.log(max(first.effect, 1e-6) / max(typical([fit.effect for fit in behind]), 1e-6))
    # Right behind the first layer the argument is strongest. A depthwise convolution keeps the means of its input, so
    # that some layers have none to move whatever happened: hence not the smallest share, nor any one layer's.
    in_means = [_mean_share(fit) for fit in behind]
    moved = max(in_means[0], sorted(in_means)[len(in_means) // 4])
    return float(torch.sigmoid(torch.tensor(4.0 * (fall - 2 * moved - BALANCE))))


def _mean_share(fit: Fit) -> float:
    of_means = fit.mean_shift.square()
    return float(of_means.sum() / (of_means + (fit.gain - 1).square()).sum().clamp(min=1e-300))
