"""Measures why an inner loop blew up, on the very task: growth, gains, curvature, stable rates, other policies.

Everything is measured on copies; the task, the learner and its statistics stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from frostline.errors import MetaError, PolicyError
from frostline.meta.adaptation import FIXED, Walk, walk
from frostline.meta.blow_up import BlowUp, Grown, Steepest, Tried
from frostline.meta.curvature import largest_curvature
from frostline.meta.functional_model import governed_layers
from frostline.meta.inner_optimizers import SGD
from frostline.meta.passes import Passes, check_policy
from frostline.meta.policy import Policy
from frostline.meta.task import Examples

if TYPE_CHECKING:
    from frostline.meta.gradient_learner import GradientLearner

Judge = Callable[[Sequence[float], Sequence[Mapping[str, float]]], Any]
_Grads = tuple[Tensor | None, ...]
# A norm that grew by this much has grown.
_GREW = 1.25
_INSTEAD = ("support", "batch", "task_norm_i", "task_norm_l", "instance", "layer")


def explain_blow_up(
    learner: GradientLearner,
    passes: Passes,
    support: Examples,
    start: Mapping[str, Tensor],
    losses: Sequence[float],
    norms: Sequence[Mapping[str, float]],
    *,
    steps: int,
    reason: str,
    judge: Judge,
    measure: bool = True,
) -> BlowUp:
    """Explain a blow-up by what was seen, and by what can be measured on the same task.

    Args:
        learner: how it adapts. Steps that take a part of the support set are measured with all of it.
        passes: of the task.
        support: its support set.
        start: the adapted weights before the first step.
        losses: before each step that was taken.
        norms: by layer, at the start and after each step.
        steps: how many were to be taken.
        reason: what was wrong.
        judge: what is wrong with losses and norms, or ``None``; see :meth:`Guard.why`.
        measure: whether to measure; otherwise only what was seen is told.
    """
    modules = dict(learner.model.named_modules())
    values = {path: value.detach() for path, value in {**learner.values(), **start}.items()}
    known = BlowUp(
        str(passes.policy),
        learner.rates.start,
        steps,
        len(losses),
        reason,
        tuple(losses),
        {layer: tuple(state[layer] for state in norms) for layer in norms[0]},
        _grown(norms, {path: type(module).__name__ for path, module in modules.items()}),
        tuple(dict.fromkeys(s for s in map(passes.policy.inner_source, range(steps)) if s in FIXED)),
    )
    if not measure:
        return known
    curvature = _curvature(learner, passes, values, support.labels)
    plain = isinstance(learner.inner_optimizer, SGD) and learner.inner_optimizer == SGD()
    limit = 2 / curvature if curvature and curvature > 0 and plain and learner.rates.learn == "no" else None

    def tried(policy: Policy, scale: float = 1.0) -> Walk:
        settings = replace(passes, policy=policy)
        return walk(learner, settings, values, support.labels, steps, scale=scale)

    return replace(
        known,
        steepest=_steepest(learner, passes, values, support.labels),
        curvature=curvature,
        limit=limit,
        stable=_stable(learner, lambda scale: tried(passes.policy, scale), str(passes.policy), limit),
        instead=_instead(learner, passes, support, tried, judge),
    )


def _grown(norms: Sequence[Mapping[str, float]], kinds: Mapping[str, str]) -> Grown:
    """The layer that had grown the most after the first step by which one had grown by a quarter, or after the last."""
    start = norms[0]

    def growth(layer: str, state: Mapping[str, float]) -> float:
        # What is NaN has grown the most; what began at zero has only grown if nothing else has.
        after = state[layer]
        return float("inf") if after != after else after / start[layer] if start[layer] else 0.0

    grew = (i for i, state in enumerate(norms) if max(growth(layer, state) for layer in state) > _GREW)
    step = next(grew, len(norms) - 1)
    layer = max(norms[step], key=lambda layer: growth(layer, norms[step]))
    return Grown(layer, kinds[layer], step, start[layer], norms[step][layer])


def _curvature(learner: GradientLearner, passes: Passes, values: Mapping[str, Tensor], labels: Tensor) -> float | None:
    def loss(params: list[Tensor]) -> Tensor:
        everything = {**values, **dict(zip(learner.adapted, params, strict=True))}
        result = passes.inner(everything, 0, passes.run.buffers, observe=False)
        return learner.loss(result.output, labels)

    try:
        found = largest_curvature(loss, [values[path] for path in learner.adapted])
    except (RuntimeError, NotImplementedError):  # an operator of the model that has no second derivative
        return None
    return found if abs(found) < float("inf") else None


def _steepest(
    learner: GradientLearner, passes: Passes, values: Mapping[str, Tensor], labels: Tensor
) -> Steepest | None:
    gains = walk(learner, passes, values, labels, 0, gains=True).gains[0]
    if not gains:
        return None
    path = max(gains, key=lambda path: gains[path].largest)
    gain = gains[path]
    behind = _feeding(learner, passes, values).get(path)
    return Steepest(path, behind, gain.largest, gain.sigma, gain.own)


def _feeding(learner: GradientLearner, passes: Passes, values: Mapping[str, Tensor]) -> dict[str, str]:
    """For each norm layer the adapted layer in front of it: its input depends on it, and no earlier one's does."""
    params = {path: values[path].detach().requires_grad_() for path in learner.adapted}
    own = set(governed_layers(learner.model))
    with torch.enable_grad():
        settings = replace(passes.settings(passes.policy.inner_source(0), 0), observe="graph")
        all_values = {**values, **params, **passes.norms.affine_of(0)}
        observed = passes.run(all_values, settings, passes.support, passes.run.buffers).observed
    left = [path for path in params if path.rpartition(".")[0] not in own]
    found: dict[str, str] = {}
    for norm, seen in observed.items():
        if not left or not seen.mean.requires_grad:
            continue
        inputs = [params[path] for path in left]
        grads = cast("_Grads", torch.autograd.grad(seen.mean.sum(), inputs, retain_graph=True, allow_unused=True))
        reached = [path for path, grad in zip(left, grads, strict=True) if grad is not None]
        left = [path for path in left if path not in reached]
        if reached:
            found[norm] = reached[-1].rpartition(".")[0]
    return found


def _stable(learner: GradientLearner, tried: Callable[[float], Walk], policy: str, limit: float | None) -> Tried | None:
    """The largest rate that can be found at which no step leads above the loss of the start.

    Each rate is rounded to two digits before it is tried, so that the one that is told was tried itself.
    """
    rate = learner.rates.start
    good: tuple[float, Walk] | None = None
    bad = rate
    aim = rate / 2 if limit is None else min(limit, rate / 2)
    for _ in range(24):
        aim = float(f"{aim:.2g}")
        if good is not None and not good[0] < aim < bad:
            break
        seen = tried(aim / rate)
        if seen.never_above_the_start:
            good = (aim, seen)
        else:
            bad = aim
        # Halve until one is stable, then close in; a quarter is close enough.
        if good is not None and bad / good[0] < 1.25:
            break
        aim = aim / 2 if good is None else min((good[0] * bad) ** 0.5, good[0] * 2)
    return None if good is None else Tried(policy, good[0], good[1].losses[0], good[1].losses[-1])


def _instead(
    learner: GradientLearner,
    passes: Passes,
    support: Examples,
    tried: Callable[[Policy], Walk],
    judge: Judge,
) -> tuple[Tried, ...]:
    """The policies under which the same task goes well at the same rate, by the support loss of their query pass."""
    layers = governed_layers(learner.model)
    if not layers:
        return ()
    fixed = [source for source in (*passes.policy.inner, passes.policy.query) if source in FIXED]
    names = [*_INSTEAD, *(f"batch/{source}" for source in dict.fromkeys(fixed))]
    walks: dict[tuple[str, ...], Walk | None] = {}
    found: list[Tried] = []
    for policy in map(Policy.of, names):
        if policy.inner == passes.policy.inner:
            continue
        try:
            check_policy(policy, layers, passes.kept, type(learner.model).__name__)
            if policy.inner not in walks:
                walks[policy.inner] = None
                walks[policy.inner] = _good(tried(policy), judge)
            seen = walks[policy.inner]
            if seen is None:
                continue
            with torch.no_grad():
                settings = replace(passes, policy=policy)
                query = settings.query(seen.values, support.inputs, policy.query, seen.buffers, graph=False)
                last = float(learner.loss(query.output, support.labels))
        except (PolicyError, MetaError):  # such as 'instance' behind a linear layer
            continue
        if last < seen.losses[0]:
            found.append(Tried(str(policy), learner.rates.start, seen.losses[0], last))
    # Fixed statistics that are too small flatter the loss of a query pass, so those come last. Among equals in two
    # digits the order of `_INSTEAD` decides.
    return tuple(sorted(found, key=lambda one: (Policy.of(one.policy).query in FIXED, float(f"{one.last:.1e}"))))


def _good(seen: Walk, judge: Judge) -> Walk | None:
    prefixes = range(1, len(seen.losses))
    grew = any(judge(seen.losses[:n], seen.norms[: n + 1]) is not None for n in prefixes)
    return seen if seen.falls and not grew else None
