"""Statistics that belong to another layer of the same width."""

from __future__ import annotations

from frostline.norms.evidence import Evidence, off_layers
from frostline.norms.norm_report import CauseRow

# Another layer's statistics have to fit so much better, and without a chain so exactly.
BETTER = 0.6
EXACT = 0.1


def layers_swapped(evidence: Evidence) -> CauseRow | None:
    """Layers that are off, and that the statistics of others fit."""
    off = off_layers(evidence.train)
    better: dict[str, tuple[str, float, float]] = {}
    for path in off:
        facts, population = evidence.facts[path], evidence.train.layers[path]
        own = population.fit_alone.effect
        rivals = {
            other: facts.distance(population.mean, population.var, to=(layer.mean, layer.var))
            for other, layer in evidence.facts.items()
            if other != path and layer.mean.shape == facts.mean.shape
        }
        if not rivals:
            continue
        best = min(rivals, key=lambda other: rivals[other])
        if rivals[best] < BETTER * own:
            better[path] = (best, own, rivals[best])
    # Each has to take the place of another that is off too: a chain that closes. Where the scales were exchanged along
    # with the statistics, the layers behind see other inputs and fit nobody's; then one that fits exactly is enough.
    closed = {path: found for path, found in better.items() if found[0] in better}
    if len(closed) < 2 or len({found[0] for found in closed.values()}) != len(closed):
        closed = {path: found for path, found in better.items() if found[0] in off and found[2] < EXACT * found[1]}
    if not closed:
        return None
    gain = sum(1 - after / before for _, before, after in closed.values()) / len(closed)
    shown = "; ".join(
        f"{path} fits {best} ({after:.2f} sd, its own {before:.2f})"
        for path, (best, before, after) in list(closed.items())[:3]
    )
    return CauseRow(
        "layers-swapped", min(0.97, 0.55 + 0.42 * gain), f"the statistics of other layers fit: {shown}", tuple(closed)
    )
