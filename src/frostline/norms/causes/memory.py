"""Causes that lie in how much the moving average remembers: too little, too long, or batches too small for anything."""

from __future__ import annotations

import torch

from frostline.norms.evidence import Evidence, off_layers, typical
from frostline.norms.norm_report import CauseRow
from frostline.norms.shift_test import Memory

# What the noise of one batch does to the output of the worst layer, in its standard deviations. A net without spatial
# positions has 0.22 at 32 samples a batch, and 0.31 at 16. Of a handful of samples less is asked: no one takes so few
# unless for want of memory.
NOISY_BATCH = 0.38
HANDFUL = 8
NOISY_HANDFUL = 0.28
USUAL_MOMENTUM = 0.1
LONG_MEMORY = 0.05


def memory_too_long(evidence: Evidence) -> CauseRow | None:
    """What the statistics were before the first update still weighs in them."""
    off = off_layers(evidence.train)
    weights: dict[str, float] = {}
    explained: list[float] = []
    for path in off:
        layer = evidence.facts[path]
        updates = layer.updates if layer.updates is not None else evidence.steps
        if layer.momentum in (None, 0) or not updates:
            continue
        weight = Memory(layer.momentum, updates, 1).initial_weight
        if weight < LONG_MEMORY:
            continue
        weights[path] = weight
        population = evidence.train.layers[path]
        # Where they began as a new layer's, the mixture can be told; taken out, what is left should fit.
        mean = layer.mean / (1 - weight)
        var = ((layer.var - weight) / (1 - weight)).clamp(min=0)
        before = population.fit_alone.effect
        after = layer.distance(population.mean, population.var, to=(mean, var))
        explained.append(max(0.0, 1 - after / before))
    if not weights:
        return None
    share = typical(explained)
    worst = max(weights, key=lambda path: weights[path])
    layer = evidence.facts[worst]
    return CauseRow(
        "memory-too-long",
        min(0.95, 0.55 + 0.4 * share + 0.2 * (max(weights.values()) - LONG_MEMORY)),
        f"momentum {layer.momentum} and {layer.updates or evidence.steps} updates leave the statistics from before a "
        f"weight of {weights[worst]:.0%}; without it {share:.0%} of the deviation of {len(weights)} layers is gone",
        tuple(weights),
    )


def memory_too_short(evidence: Evidence) -> CauseRow | None:
    """A moving average over so few batches that it scatters nearly as they do."""
    found = {
        path: layer
        for path, layer in evidence.train.layers.items()
        if (momentum := evidence.facts[path].momentum) is not None and momentum > 2 * USUAL_MOMENTUM
    }
    if not found:
        return None
    noise = typical([layer.fit_alone.noise for layer in found.values()])
    worst = max(layer.fit_alone.noise for layer in found.values())
    if worst < 0.05:
        return None
    first = next(iter(found))
    momentum = evidence.facts[first].momentum
    batch = evidence.batch_size
    return CauseRow(
        "memory-too-short",
        min(0.94, 0.6 + 2 * noise),
        f"momentum {momentum} rests on {Memory(momentum, None, batch).samples:.0f} samples (batches of {batch}), by "
        f"which the output of {len(found)} layers scatters by {noise:.3f} to {worst:.3f} sd; momentum "
        f"{USUAL_MOMENTUM} would rest on {Memory(USUAL_MOMENTUM, None, batch).samples:.0f}",
        tuple(found),
    )


def batch_too_small(evidence: Evidence) -> CauseRow | None:
    """Batches whose own statistics scatter so much that train mode is another function than eval mode."""
    layers = evidence.train.layers
    noise = {path: layer.fit_alone.batch_noise for path, layer in layers.items()}
    if not noise:
        return None
    worst = max(noise, key=lambda path: noise[path])
    least = NOISY_HANDFUL if evidence.batch_size <= HANDFUL else NOISY_BATCH
    if noise[worst] < least:
        return None
    mean = float(torch.tensor(list(noise.values()), dtype=torch.float64).mean())
    values = evidence.batch_size * layers[worst].batch.positions
    return CauseRow(
        "batch-too-small",
        min(0.93, 0.5 + noise[worst]),
        f"batches of {evidence.batch_size}: the noise of one batch moves the output by {mean:.2f} sd on average over "
        f"{len(noise)} layers, by {noise[worst]:.2f} in {worst}, which sees {values} values a channel",
        tuple(path for path in noise if noise[path] >= least),
    )
