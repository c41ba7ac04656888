"""Two kinds of input through one layer, one after the other: the running statistics describe neither."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from frostline.norms.evidence import MATERIAL, Evidence, LayerFacts
from frostline.norms.moments import Moments
from frostline.norms.norm_report import CauseRow


def mixed_domains(evidence: Evidence) -> CauseRow | None:
    """By the domains that were named, by the calls of a forward pass, or by batches that fall into two kinds."""
    rows = [_by_domain(evidence), _by_call(evidence), _by_batch(evidence)]
    return max((row for row in rows if row is not None), key=lambda row: row.confidence, default=None)


def _by_domain(evidence: Evidence) -> CauseRow | None:
    if len(evidence.domains) < 2:
        return None
    groups = {
        path: {
            name: look.layers[path].batch.moments
            for name, look in evidence.domains.items()
            if path in look.layers and look.layers[path].batch.moments is not None
        }
        for path in evidence.facts
    }
    return _from_groups(evidence, groups, "the domains " + " and ".join(evidence.domains))


def _by_call(evidence: Evidence) -> CauseRow | None:
    groups = {
        path: {f"call {call}": moments for call, moments in layer.batch.calls.items()}
        for path, layer in evidence.train.layers.items()
        if len(layer.batch.calls) > 1
    }
    return _from_groups(evidence, groups, "the calls of one forward pass")


def _by_batch(evidence: Evidence) -> CauseRow | None:
    """Batches that fall into two kinds, where batches drawn at random would not."""
    if not evidence.train.layers:
        return None
    first = next(iter(evidence.train.layers.values()))
    if len(first.batch.means) < 6 or first.batch.within.n < 2:
        return None
    kinds = _two_kinds(torch.stack(first.batch.means), first.batch.within.mean, first.batch.batch_samples)
    if kinds is None:
        return None
    labels, excess, separation = kinds
    groups: dict[str, Mapping[str, Moments | None]] = {}
    for path, layer in evidence.train.layers.items():
        means = torch.stack(layer.batch.means)
        if len(means) != len(labels):
            continue
        within = layer.batch.batch_vars.mean
        chosen = {kind: means[labels == kind] for kind in (0, 1)}
        groups[path] = {
            str(kind): Moments(len(rows), rows.mean(0), within * len(rows)) for kind, rows in chosen.items()
        }
    changes = sum(a != b for a, b in pairwise(labels.tolist()))
    return _from_groups(
        evidence,
        groups,
        f"two kinds of batches (their means scatter {excess:.0f} times as much as random batches would, "
        f"{separation:.0%} of it between the two kinds, {changes} changes in {len(labels)} batches)",
    )


def _from_groups(evidence: Evidence, groups: Mapping[str, Mapping[str, Moments | None]], what: str) -> CauseRow | None:
    """Whether the groups differ, and whether the running statistics were made by one after the other."""
    apart: dict[str, float] = {}
    neither: list[str] = []
    separate: list[float] = []
    for path, members in groups.items():
        facts = evidence.facts[path]
        found = [moments for moments in members.values() if moments is not None]
        if len(found) < 2:
            continue
        off = [facts.distance(moments.mean, moments.var()) for moments in found]
        between, share = _between(facts, found)
        if between < MATERIAL or min(off) < MATERIAL:
            continue
        apart[path] = between
        neither.append(path)
        separate.append(share)
    if not apart:
        return None
    worst = max(apart, key=lambda path: apart[path])
    typical_share = float(torch.tensor(separate).median())
    if typical_share < 0.35:
        return None  # the running variance holds the variance between them: they were mixed in each batch
    return CauseRow(
        "mixed-domains",
        min(0.97, 0.7 + 0.3 * min(1.0, apart[worst])),
        f"{what} lie apart by up to {apart[worst]:.2f} sd ({worst}), and the running statistics of {len(apart)} layers "
        f"fit none of them; {typical_share:.0%} of the variance between them is missing in the running variance, so "
        "each went through by itself",
        tuple(neither),
    )


def _between(facts: LayerFacts, groups: list[Moments]) -> tuple[float, float]:
    """How far the groups' means lie apart in units of their spread, and the share of that variance that is missing."""
    means = torch.stack([moments.mean for moments in groups])
    within = torch.stack([moments.var() for moments in groups]).mean(0)
    between = means.var(0, unbiased=False)
    weight = _importance(facts)
    apart = float(((between / (within + facts.eps)) * weight).sum().div(weight.sum()).sqrt())
    scale = within + facts.eps
    missing = ((within + between - facts.var) / scale * weight).sum()
    return 2 * apart, float((missing / (between / scale * weight).sum().clamp(min=1e-12)).clamp(0, 1))


def _importance(facts: LayerFacts) -> Tensor:
    if facts.weight is None or not bool((facts.weight != 0).any()):
        return torch.ones_like(facts.mean)
    return facts.weight.double().square()


def _two_kinds(means: Tensor, within: Tensor, samples: int) -> tuple[Tensor, float, float] | None:
    """Split batches in two along the direction in which their means differ most.

    Returns:
        The kind of each batch, how many times the means scatter more than those of random batches, and the share of
        that scatter that lies between the two kinds; ``None`` where the batches are of one kind.
    """
    scale = (within / max(samples, 1)).clamp(min=1e-30).sqrt()
    z = (means - means.mean(0)) / scale
    excess = float(z.square().sum() / (len(means) - 1) / z.shape[1])
    if excess < 4:
        return None
    direction = torch.linalg.svd(z, full_matrices=False).Vh[0]
    along = z @ direction
    labels = _split(along)
    total = along.square().sum()
    between = sum(float((labels == k).sum() * along[labels == k].mean().square()) for k in (0, 1))
    separation = between / float(total)
    smaller = int(torch.bincount(labels, minlength=2).min())
    if separation < 0.8 or smaller < max(2, 0.15 * len(labels)):
        return None
    return labels, excess, separation


def _split(values: Tensor) -> Tensor:
    """The best cut of numbers into a lower and an upper group: least squares."""
    order = values.argsort()
    ranked = values[order]
    n = torch.arange(1, len(ranked), dtype=torch.float64)
    left = ranked.cumsum(0)[:-1]
    gain = left.square() / n + (ranked.sum() - left).square() / (len(ranked) - n)
    labels = torch.ones(len(ranked), dtype=torch.long)
    labels[order[: int(gain.argmax()) + 1]] = 0
    return labels
