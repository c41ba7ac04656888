"""Stops an inner loop that blows up, before anything is NaN; why it did is told by :mod:`frostline.meta.blow_up`."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from frostline.errors import InnerLoopDiverged
from frostline.meta.adaptation import by_layer, norms_of
from frostline.meta.blow_up_measured import explain_blow_up
from frostline.meta.inner_loop import Watcher
from frostline.meta.passes import Passes
from frostline.meta.task import Examples

if TYPE_CHECKING:
    from frostline.meta.gradient_learner import GradientLearner

L = TypeVar("L")
Reason = Literal["loss", "norm", "not finite"]


@dataclass(frozen=True)
class Guard:
    """Watches the support loss and the norms of the adapted weights in each inner step, and stops a blow-up.

    What is stopped raises :class:`~frostline.errors.InnerLoopDiverged`, whose ``report`` is a
    :class:`~frostline.meta.BlowUp`: which layer grew first, the gains of batch norm, the rate that would be stable and
    the policies that would do, all measured on this very task. Watching costs one stacked norm and one transfer from
    the device for each step. Nothing is watched under ``vmap``, where values cannot be looked at.

    The defaults come from Omniglot (3 and 4 convolutions, 5 and 20 ways, 1 and 5 shots, trained and not): with the
    statistics of the batch at rates 0.1 and 0.4 the loss rose to at most 4 times its start and norms grew to at most
    2.2 times; with fixed statistics the first rise was 20 to 330 times.

    A loss is known before each step, so what the last step did is judged by the norms alone.

    Attributes:
        loss_growth: stop at a support loss of more than this times that of the first step, which counts as at least 1.
        weight_growth: stop where the norm of a layer's adapted weights is more than this times that of the start, and
            the loss is above that of the first step. A layer that starts lower than the others is measured against
            their root mean square, because a classifier may start at zero.
        weight_limit: stop at this growth whatever the loss does.
        explain: measure and explain; it takes as long as about a hundred inner steps. ``False`` tells only what was
            seen, for loops over many tasks of which some are left out.

    Example:
        >>> from torch import nn
        >>> from frostline.meta.maml import MAML
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = net[1].running_var.fill_(1e-2)
        >>> learner = MAML(net, inner_lr=1.0, steps=5, policy="frozen")
        >>> try:
        ...     _ = learner.adapt(Examples(torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])))
        ... except InnerLoopDiverged as error:
        ...     print(error.report.reason, error.report.step, all(map(math.isfinite, error.report.losses)))
        loss 3 True
    """

    loss_growth: float = 10.0
    weight_growth: float = 10.0
    weight_limit: float = 1000.0
    explain: bool = True

    def watching(
        self, learner: GradientLearner, passes: Passes, support: Examples, *, steps: int | None = None
    ) -> Watcher | None:
        """What looks at the inner steps of one task; ``None`` under ``vmap``.

        Args:
            learner: what adapts.
            passes: the passes of the task.
            support: its support set.
            steps: how many steps there are to be; by default those of training.
        """
        return None if passes.vmapped else _Watch(self, learner, passes, support, steps or learner.steps)

    def why(self, losses: Sequence[float], norms: Sequence[Mapping[str, float]]) -> Reason | None:
        """What is wrong after the last of some steps; ``None`` if nothing is.

        Args:
            losses: before each step.
            norms: of the adapted weights by layer, at the start and after each step.

        Example:
            >>> Guard().why([1.6, 2.5], [{"fc": 1.0}, {"fc": 1.1}, {"fc": 1.2}])
            >>> Guard().why([1.6, 25.0], [{"fc": 1.0}, {"fc": 1.1}, {"fc": 1.2}])
            'loss'
        """
        start, now = norms[0], norms[-1]
        if not all(map(math.isfinite, (losses[-1], *now.values()))):
            return "not finite"
        if losses[-1] > self.loss_growth * max(losses[0], 1.0):
            return "loss"
        limit = self.weight_growth if losses[-1] > losses[0] else self.weight_limit
        typical = math.sqrt(sum(norm * norm for norm in start.values()) / len(start)) or 1.0
        return "norm" if any(now[layer] > limit * max(start[layer], typical) for layer in now) else None


def brief(learner: L) -> L:
    """The same learner, sharing everything, whose guard stops a blow-up without explaining it.

    For loops over many tasks that leave some out, as :func:`frostline.meta.evaluate` does.
    """
    guard: Any = getattr(learner, "guard", None)
    return _guarded_by(learner, replace(guard, explain=False) if isinstance(guard, Guard) else guard)


def unguarded(learner: L) -> L:
    """The same learner, sharing everything, that nothing stops."""
    return _guarded_by(learner, None)


def _guarded_by(learner: L, guard: Guard | None) -> L:
    same: Any = copy.copy(learner)
    if hasattr(same, "guard"):
        same.guard = guard
    return same


class _Watch:
    """Looks at the inner steps of one task."""

    def __init__(self, guard: Guard, learner: GradientLearner, passes: Passes, support: Examples, steps: int) -> None:
        self._guard = guard
        self._learner = learner
        self._passes = passes
        self._support = support
        self._steps = steps
        self._losses: list[float] = []
        self._norms: list[dict[str, float]] = []

    def __call__(self, step: int, loss: Tensor, start: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
        """Look at one step."""
        paths = list(now)
        states = [now] if self._norms else [start, now]
        norms = norms_of([state[path] for state in states for path in paths])
        # One transfer: each waits for the device.
        last, *found = torch.cat([loss.reshape(1).to(norms.dtype), norms]).tolist()
        self._losses.append(last)
        for place in range(len(states)):
            self._norms.append(by_layer(paths, found[place * len(paths) : (place + 1) * len(paths)]))
        reason = self._guard.why(self._losses, self._norms)
        if reason is None:
            return
        if step == 0 and not math.isfinite(last):
            raise InnerLoopDiverged(self._not_finite_from_the_start(last))
        report = explain_blow_up(
            self._learner,
            self._passes,
            self._support,
            start,
            self._losses,
            self._norms,
            steps=self._steps,
            reason=reason,
            judge=self._guard.why,
            measure=self._guard.explain,
        )
        raise InnerLoopDiverged(str(report), report)

    def _not_finite_from_the_start(self, loss: float) -> str:
        """Not a blow-up: nothing has moved yet."""
        inputs = self._support.inputs if isinstance(self._support.inputs, tuple) else (self._support.inputs,)
        wrong = "the support set" if not all(bool(x.isfinite().all()) for x in inputs) else ""
        values = self._learner.values()
        wrong = wrong or next((path for path, value in values.items() if not bool(value.isfinite().all())), "")
        found = f"{wrong} has values that are NaN or infinite" if wrong else "all inputs and weights are finite"
        return (
            f"the support loss is {loss} before the first inner step\n  found: {found}\n"
            f"  fix: {'look at where it came from' if wrong else 'look at the loss and the statistics'}"
        )
