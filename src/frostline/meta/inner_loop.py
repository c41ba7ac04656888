"""Adapting to one task by gradient steps on its support set, with or without a graph for the outer gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from frostline.meta.inner_optimizers import InnerOptimizer, Rate, State
from frostline.meta.normalizing import LayerStatistics
from frostline.meta.passes import Passes
from frostline.meta.recomputed import recomputed

Graph = Literal["no", "first", "second"]
Loss = Callable[[Any, Tensor], Tensor]
_Grads = tuple[Tensor | None, ...]
# The buffers after a pass, and mean and variance of what each layer was given.
_Aside = tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]


class Watcher(Protocol):
    """Looks at each inner step, and raises to stop the task."""

    def __call__(self, step: int, loss: Tensor, start: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
        """Look at the loss before a step, counted from 0, and the adapted weights at the start and after it."""
        ...


@dataclass(frozen=True, eq=False)
class InnerLoop:
    """How a learner adapts.

    Attributes:
        steps: gradient steps.
        loss: loss of a model's output and labels, averaged over examples.
        optimizer: what a step does.
        rates: the rates of the adapted parameters in a step.
        graph: what the outer gradient goes through: nothing (``no``), the weights themselves (``first``), or the inner
            gradients too (``second``).
        checkpointed: forget the graph inside each step and compute it again in the outer backward pass.
        batch_of: which examples a step takes, by its number; by default all.
        observe: whether to return the statistics that the passes met.
        vmapped: whether this runs under ``torch.func`` transforms, where autograd's own functions are out of place.
        watch: looks at each step.
    """

    steps: int
    loss: Loss
    optimizer: InnerOptimizer
    rates: Callable[[int], Sequence[Rate]]
    graph: Graph = "no"
    checkpointed: bool = False
    batch_of: Callable[[int], Tensor] | None = None
    observe: bool = False
    vmapped: bool = False
    watch: Watcher | None = None


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What adapting did.

    Attributes:
        values: all parameters by path, the adapted ones in their last state.
        path: the adapted parameters after each step, if they were asked for.
        buffers: the buffers afterwards.
        losses: the loss before each step, scalars without a graph.
        observed: the statistics that each step met.
    """

    values: dict[str, Tensor]
    path: list[dict[str, Tensor]]
    buffers: dict[str, Tensor]
    losses: list[Tensor]
    observed: list[dict[str, LayerStatistics]]


@dataclass(frozen=True, eq=False)
class _Step:
    params: list[Tensor]
    state: State
    buffers: dict[str, Tensor]
    loss: Tensor
    observed: dict[str, LayerStatistics]


def adapted_by(
    loop: InnerLoop,
    passes: Passes,
    values: Mapping[str, Tensor],
    adapted: Sequence[str],
    labels: Tensor,
    *,
    keep_path: bool = False,
) -> Trajectory:
    """Take the inner steps.

    Nothing that is passed is written to.

    Args:
        loop: how.
        passes: the model and its statistics, with the support set.
        values: all parameters by path; without a graph to build, the adapted ones are used without theirs.
        adapted: paths of those that move.
        labels: of the support set.
        keep_path: return the weights after each step.
    """
    start = {path: values[path] for path in adapted}
    if loop.graph == "no":
        start = {path: value.detach().requires_grad_(not loop.vmapped) for path, value in start.items()}
    held = {path: value for path, value in values.items() if path not in start}
    # Only a second-order gradient goes through the inner passes to what does not adapt.
    constant = held if loop.graph == "second" else {path: value.detach() for path, value in held.items()}
    params = list(start.values())
    state = loop.optimizer.start(params)
    buffers = dict(passes.run.buffers)
    losses: list[Tensor] = []
    observed: list[dict[str, LayerStatistics]] = []
    path: list[dict[str, Tensor]] = []

    def step(count: int, params: list[Tensor], state: State, buffers: dict[str, Tensor]) -> _Step:
        counts: dict[str, int] = {}

        def run(current: list[Tensor]) -> tuple[Tensor, _Aside]:
            chosen, targets = passes, labels
            if loop.batch_of is not None:
                chosen, targets = _subset(passes, labels, loop.batch_of(count))
            everything = {**constant, **dict(zip(adapted, current, strict=True))}
            result = chosen.inner(everything, count, buffers, observe=loop.observe)
            counts.update({where: seen.count for where, seen in result.observed.items()})
            # torch.func lets nothing but tensors out.
            met = {where: (seen.mean, seen.var) for where, seen in result.observed.items()}
            return loop.loss(result.output, targets), (result.buffers, met)

        loss, grads, (after, met) = _gradient(run, params, loop)
        new, state = loop.optimizer.step(params, grads, state, loop.rates(count), count + 1)
        if loop.graph == "no" and not loop.vmapped:
            new = [value.detach().requires_grad_() for value in new]
        after = {name: value.detach() for name, value in after.items()}
        seen = {where: LayerStatistics(*both, counts[where]) for where, both in met.items()}
        return _Step(new, state, after, loss.detach(), seen)

    for count in range(loop.steps):
        if loop.checkpointed and loop.graph == "second" and not loop.vmapped:
            # What a step met is told by the first time that it is computed, and by that alone.
            done = recomputed(partial(step, count, params, state, buffers), passes.run.device)
        else:
            done = step(count, params, state, buffers)
        params, state, buffers = done.params, done.state, done.buffers
        losses.append(done.loss)
        observed.append(done.observed)
        now = dict(zip(adapted, params, strict=True))
        if loop.watch is not None:
            loop.watch(count, done.loss, start, now)
        if keep_path:
            path.append(now)
    return Trajectory({**held, **dict(zip(adapted, params, strict=True))}, path, buffers, losses, observed)


def _gradient(
    run: Callable[[list[Tensor]], tuple[Tensor, _Aside]], params: list[Tensor], loop: InnerLoop
) -> tuple[Tensor, list[Tensor], _Aside]:
    """Loss and gradients of one step, and what else came of it."""
    if loop.vmapped:
        grads, (loss, aside) = torch.func.grad_and_value(run, has_aux=True)(params)
        return loss, [g.detach() for g in grads] if loop.graph != "second" else list(grads), aside
    with torch.enable_grad():
        loss, aside = run(params)
        second = loop.graph == "second"
        found = cast("_Grads", torch.autograd.grad(loss, params, create_graph=second, allow_unused=True))
    # What the loss does not depend on stays where it is.
    grads = [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]
    return loss, grads, aside


def _subset(passes: Passes, labels: Tensor, chosen: Tensor) -> tuple[Passes, Tensor]:
    support = passes.support
    part = tuple(x[chosen] for x in support) if isinstance(support, tuple) else support[chosen]
    return (
        Passes(passes.run, passes.policy, passes.kept, passes.norms, part, passes.vmapped),
        labels[chosen],
    )
