"""Model-agnostic meta-learning: second and first order, with a statistics policy, on any module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.errors import MetaError
from frostline.meta.functional_model import FunctionalModel, Result
from frostline.meta.gradient_learner import GradientLearner
from frostline.meta.guard import Guard
from frostline.meta.inner_loop import Loss, Trajectory, adapted_by
from frostline.meta.meta_batch import MetaBatch, TaskGradient
from frostline.meta.passes import Passes
from frostline.meta.policy import Policy
from frostline.meta.rates import LearnRates
from frostline.meta.scores import share_right
from frostline.meta.task import Task
from frostline.state.selection import Selector


@dataclass(frozen=True)
class MultiStep:
    """The query loss after each inner step, weighted, instead of after the last one alone.

    All steps weigh the same at first; over the first iterations the weight moves to the last.

    Attributes:
        iterations: meta-steps after which the last step has all but a rest of the weight.

    Source: Antoniou et al. 2019, "How to train your MAML", section 4, "Multi-step loss optimization"; the schedule is
    that of its published code (``few_shot_learning_system.py``).

    Example:
        >>> [round(w, 3) for w in MultiStep(iterations=100).weights(steps=5, iteration=0)]
        [0.2, 0.2, 0.2, 0.2, 0.2]
        >>> [round(w, 3) for w in MultiStep(iterations=100).weights(steps=5, iteration=100)]
        [0.006, 0.006, 0.006, 0.006, 0.976]
    """

    iterations: int

    def weights(self, steps: int, iteration: int) -> list[float]:
        """The weight of the query loss after each step, the sum being 1."""
        least = 0.03 / steps
        early = max(1 / steps - iteration / (steps * self.iterations), least)
        return [early] * (steps - 1) + [1 - early * (steps - 1)]


class MAML(GradientLearner):
    """Learns weights from which a few gradient steps on a support set lead to a good classifier.

    Guaranteed: the model, its buffers, modes, hooks and the learner's statistics are the same before and after
    :meth:`adapt`, and after :meth:`backward` all but :attr:`statistics` and the trained parameters' ``.grad``.

    Args:
        model: any module, unmodified. Parameters with ``requires_grad=False`` do not move, held layers keep their
            statistics.
        inner_lr: rate of the inner steps.
        steps: inner steps of training.
        order: 2: the outer gradient goes through the inner ones (MAML). 1: it does not (first-order MAML).
        adapt: selectors of what moves in the inner loop; the rest is trained by the outer loop alone. The classifier
            alone is ANIL: ``adapt="head"``.
        policy: which statistics each pass normalizes with, a name of :data:`~frostline.meta.SOURCES`, ``"INNER/QUERY"``
            or a :class:`~frostline.meta.Policy`; by default ``batch`` where there is batch norm.
        loss: of output and labels, averaged over examples.
        inner_optimizer: see :func:`~frostline.meta.functional_form`.
        learn_rates: see :class:`~frostline.meta.Rates`.
        multi_step: see :class:`MultiStep`.
        checkpoint_steps: compute each inner step's graph a second time instead of keeping it, and take one task after
            the other: less memory, more time, the same gradient to the bit. Statistics are taken in once.
        guard: stops an inner loop that blows up and says why; ``None`` lets it.

    Raises:
        MetaError: a setting makes no sense.
        PolicyError: the model cannot have the policy.
        NothingSelected: ``adapt`` selects nothing.

    Example:
        >>> from frostline.meta.task import Examples
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> maml = MAML(net, inner_lr=0.1, steps=2, policy="support")
        >>> x, y = torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])
        >>> batch = maml.backward([Task(Examples(x, y), Examples(x + 0.1, y), way=2)])
        >>> batch.skipped, net[1].num_batches_tracked.item(), net[0].weight.grad is None
        ({}, 0, False)
        >>> tuple(maml.adapt(Examples(x, y)).predict(x).shape)
        (6, 2)

    Source: Finn et al. 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", algorithm 2; ANIL:
    Raghu et al. 2020, "Rapid Learning or Feature Reuse?".
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float,
        steps: int = 1,
        order: Literal[1, 2] = 2,
        adapt: Selector | Sequence[Selector] = "*",
        policy: str | Policy | Sequence[str] | None = None,
        loss: Loss = functional.cross_entropy,
        inner_optimizer: Any = "sgd",
        learn_rates: LearnRates = "no",
        multi_step: MultiStep | None = None,
        checkpoint_steps: bool = False,
        guard: Guard | None = Guard(),  # noqa: B008 - a frozen value
    ) -> None:
        if order not in (1, 2):
            raise MetaError(f"order={order!r}\n  fix: 2, or 1 for first-order MAML")
        super().__init__(
            model,
            inner_lr=inner_lr,
            steps=steps,
            adapt=adapt,
            policy=policy,
            loss=loss,
            inner_optimizer=inner_optimizer,
            learn_rates=learn_rates,
            guard=guard,
        )
        self.order = order
        self.multi_step = multi_step
        self.checkpoint_steps = checkpoint_steps
        # How many meta-steps were taken; the weights of a multi-step loss depend on it.
        self.iteration = 0
        # Which trained parameters the loss depends on; known once batched gradients were compared with the loop's.
        self._depends: list[bool] | None = None
        self._batches = True

    def backward(self, tasks: Sequence[Task], **options: Any) -> MetaBatch:
        """See :meth:`frostline.meta.Learner.backward`; with ``checkpoint_steps`` one task at a time by default."""
        if self.checkpoint_steps and options.get("threads") is None:
            # Each thread has the memory of a task, and less memory is what was asked for.
            options["threads"] = 1
        batch = super().backward(tasks, **options)
        self.iteration += 1
        return batch

    def gradient_on(self, run: FunctionalModel, task: Task) -> TaskGradient:
        """The outer gradient of one task."""
        passes = self.passes(run, self.policy, task.support.inputs)
        graph = "second" if self.order == 2 else "first"
        loop = self.loop(graph, self.steps, passes, task.support, task.seed, observe=True)
        loop = replace(loop, checkpointed=self.checkpoint_steps)
        several = self.multi_step is not None
        done = adapted_by(loop, passes, self.values(), self.adapted, task.support.labels, keep_path=several)
        total, query = self.query_loss(done, passes, task.query.inputs, task.query.labels)
        trained = [p for p in self.parameters() if p.requires_grad]
        grads = torch.autograd.grad(total, trained, allow_unused=True)
        loss = self.loss(query.output.detach(), task.query.labels).item()
        right = share_right(query.output, task.query.labels)
        return TaskGradient(loss, right, list(grads), [*done.observed, query.observed])

    def query_loss(self, done: Trajectory, passes: Passes, inputs: Any, labels: Tensor) -> tuple[Tensor, Result]:
        """What the outer gradient is taken of, and what came of the last query pass."""
        if self.multi_step is None:
            query = passes.query(done.values, inputs, self.policy.query, done.buffers, graph=True, observe=True)
            return self.loss(query.output, labels), query
        total: Tensor | None = None
        query: Result | None = None
        weights = self.multi_step.weights(self.steps, self.iteration)
        for values, weight in zip(done.path, weights, strict=True):
            everything = {**done.values, **values}
            query = passes.query(everything, inputs, self.policy.query, done.buffers, graph=True, observe=True)
            loss = weight * self.loss(query.output, labels)
            total = loss if total is None else total + loss
        assert total is not None
        assert query is not None
        return total, query

    def describe(self) -> dict[str, Any]:
        """What changes the results, as values of JSON."""
        first = {"algorithm": "maml" if self.order == 2 else "fomaml"}
        last = {"multi_step": None if self.multi_step is None else self.multi_step.iterations}
        return {**super().describe(), **first, **last}

    def can_batch(self, tasks: Sequence[Task]) -> bool:
        """Whether these tasks can run in one batched pass with the gradients of the loop."""
        from frostline.meta.vmapped import check_batched

        if self._depends is None and self._batches:
            try:
                self._depends = check_batched(self, tasks)
            except MetaError:
                self._batches = False
        shapes = {(task.support.inputs.shape, task.query.inputs.shape) for task in tasks}
        return self._batches and len(shapes) == 1

    def batched(self, tasks: Sequence[Task]) -> Iterator[TaskGradient]:
        """The outer gradients of all tasks in one batched pass."""
        # It needs this class.
        from frostline.meta.vmapped import batched_gradients, check_batched

        if self._depends is None:
            self._depends = check_batched(self, tasks)
        for one in batched_gradients(self, tasks):
            grads = [grad if used else None for grad, used in zip(one.grads, self._depends, strict=True)]
            yield replace(one, grads=grads)

    def get_extra_state(self) -> dict[str, Tensor]:
        """The kept statistics and the number of meta-steps, for ``state_dict``."""
        return {**super().get_extra_state(), "iteration": torch.tensor(self.iteration)}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the kept statistics and the number of meta-steps of a ``state_dict``."""
        rest = dict(state)
        self.iteration = int(rest.pop("iteration"))
        super().set_extra_state(rest)
