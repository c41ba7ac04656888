"""Reptile: weights move towards where adapting leads, without a gradient through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from frostline.errors import MetaError
from frostline.meta.functional_model import FunctionalModel
from frostline.meta.gradient_learner import GradientLearner
from frostline.meta.guard import Guard
from frostline.meta.inner_loop import Loss
from frostline.meta.inner_optimizers import Adam
from frostline.meta.meta_batch import TaskGradient
from frostline.meta.policy import Policy
from frostline.meta.scores import share_right
from frostline.meta.task import Task
from frostline.state.selection import Selector


class Reptile(GradientLearner):
    """Learns weights near which many tasks have their solution.

    :meth:`backward` gives the trained parameters the gradient ``weights - adapted weights``, averaged over tasks: with
    ``torch.optim.SGD`` of rate epsilon an outer step is the published update. The query set is looked at for the loss
    and accuracy that are reported, and for nothing else.

    Args:
        model: any module, unmodified.
        inner_lr: rate of the inner steps.
        steps: inner steps of training.
        batch: examples of the support set in each step, in an order drawn from the task's seed; by default all.
        adapt: selectors of what moves; the rest is not trained at all.
        policy: as in :class:`~frostline.meta.MAML`; ``reptile`` is the published way to evaluate.
        loss: of output and labels.
        inner_optimizer: by default Adam without momentum, as published.
        guard: stops an inner loop that blows up; ``None`` lets it.

    Example:
        >>> from frostline.meta.task import Examples
        >>> x, y = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> reptile = Reptile(nn.Linear(4, 2), inner_lr=0.1, steps=3)
        >>> reptile.backward([Task(Examples(x, y), Examples(x, y), way=2)]).skipped
        {}
        >>> reptile.model.weight.grad.abs().sum().item() > 0
        True

    Source: Nichol, Achiam, Schulman 2018, "On First-Order Meta-Learning Algorithms", algorithm 2 and appendix A.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 1e-3,
        steps: int = 5,
        batch: int | None = None,
        adapt: Selector | Sequence[Selector] = "*",
        policy: str | Policy | Sequence[str] | None = None,
        loss: Loss = functional.cross_entropy,
        inner_optimizer: Any = Adam(betas=(0.0, 0.999)),  # noqa: B008 - a frozen value
        guard: Guard | None = Guard(),  # noqa: B008 - a frozen value
    ) -> None:
        if batch is not None and batch < 1:
            raise MetaError(f"batch={batch} examples in an inner step\n  fix: 1 or more")
        super().__init__(
            model,
            inner_lr=inner_lr,
            steps=steps,
            adapt=adapt,
            policy=policy,
            loss=loss,
            inner_optimizer=inner_optimizer,
            learn_rates="no",
            guard=guard,
        )
        learned = [source for source in self.policy.sources if source == "per_step" or source.startswith("task_norm")]
        if learned:
            raise MetaError(
                f"policy {str(self.policy)!r} has parameters of its own, and Reptile has no gradient to learn them by\n"
                "  fix: MAML, or another policy"
            )
        self.batch = batch

    def gradient_on(self, run: FunctionalModel, task: Task) -> TaskGradient:
        """The weights less the adapted weights of one task."""
        passes = self.passes(run, self.policy, task.support.inputs)
        done = self.without_graph(passes, task.support, self.steps, task.seed, observe=True)
        with torch.no_grad():
            query = passes.query(
                done.values, task.query.inputs, self.policy.query, done.buffers, graph=False, observe=True
            )
            loss = self.loss(query.output, task.query.labels).item()
            path_of = {id(value): path for path, value in self.values().items()}
            grads = [
                value - done.values[path_of[id(value)]] if path_of.get(id(value)) in self.adapted else None
                for value in self.parameters()
                if value.requires_grad
            ]
        right = share_right(query.output, task.query.labels)
        return TaskGradient(loss, right, grads, [*done.observed, query.observed])

    def describe(self) -> dict[str, Any]:
        """What changes the results, as values of JSON."""
        return {**super().describe(), "batch": self.batch}
