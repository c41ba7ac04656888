"""What learners have in common that adapt by gradient steps on the support set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from frostline.errors import MetaError, name_some
from frostline.meta.adapted import Adapted
from frostline.meta.functional_model import FunctionalModel
from frostline.meta.guard import Guard
from frostline.meta.inner_loop import Graph, InnerLoop, Loss, Trajectory, adapted_by
from frostline.meta.inner_optimizers import InnerOptimizer, functional_form
from frostline.meta.learner import Learner, seeded_by
from frostline.meta.meta_batch import Met
from frostline.meta.passes import Passes
from frostline.meta.policy import Policy
from frostline.meta.rates import LearnRates, Rates
from frostline.meta.task import Examples, Task
from frostline.state.selection import Selector, select


class GradientLearner(Learner):
    """A learner that adapts by gradient steps.

    Attributes:
        loss: of output and labels.
        inner_optimizer: what a step does.
        rates: the rates of the steps.
        guard: stops an inner loop that blows up.
        batch: examples of the support set in each step; ``None`` is all.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float,
        steps: int,
        adapt: Selector | Sequence[Selector],
        policy: str | Policy | Sequence[str] | None,
        loss: Loss,
        inner_optimizer: Any,
        learn_rates: LearnRates,
        guard: Guard | None,
    ) -> None:
        if steps < 1:
            raise MetaError(f"steps={steps} inner steps to train with\n  fix: 1 or more")
        super().__init__(model, policy=policy, steps=steps)
        self.loss = loss
        self.inner_optimizer: InnerOptimizer = functional_form(inner_optimizer)
        self.guard = guard
        self.batch: int | None = None
        selectors = adapt if isinstance(adapt, (list, tuple)) else (adapt,)
        self._selected = self._chosen(cast("Sequence[Selector]", selectors))
        values = self.values()
        selected = {path: values[path] for path in self._selected}
        self.rates = Rates(selected, start=inner_lr, steps=steps, learn=learn_rates)

    @property
    def adapted(self) -> tuple[str, ...]:
        """Paths of the parameters that move in the inner loop: of those selected, those that are not frozen now.

        Raises:
            MetaError: all are.
        """
        values = self.values()
        found = tuple(path for path in self._selected if values[path].requires_grad)
        if not found:
            raise MetaError(
                f"nothing is left to adapt in the inner loop\n  found: {name_some(self._selected)}, all frozen "
                "(requires_grad=False)\n  fix: thaw them, or a learner with another adapt="
            )
        return found

    @property
    def inner_lr(self) -> float:
        """The rate that all inner steps began with."""
        return self.rates.start

    def adapted_on(self, run: FunctionalModel, support: Examples, policy: Policy, steps: int, seed: int) -> Adapted:
        """Adapt without building a graph; the caller has seeded what is drawn at random."""
        passes = self.passes(run, policy, support.inputs)
        done = self.without_graph(passes, support, steps, seed)
        final = {path: value.detach() for path, value in done.values.items()}

        def scores(inputs: Any, source: str) -> Tensor:
            with torch.no_grad():
                return passes.query(final, inputs, source, done.buffers, graph=False).output

        losses = torch.stack(done.losses).tolist() if done.losses else []
        return Adapted(scores, policy.query, final, losses, lambda: seeded_by(seed, run))

    def observed_on(self, run: FunctionalModel, task: Task, queries: Sequence[Any]) -> list[Met]:
        """Adapt without building a graph, and return the statistics that the passes met."""
        passes = self.passes(run, self.policy, task.support.inputs)
        done = self.without_graph(passes, task.support, self.steps, task.seed, observe=True)
        with torch.no_grad():
            results = [
                passes.query(done.values, inputs, self.policy.query, done.buffers, graph=False, observe=True)
                for inputs in queries
            ]
        return [*done.observed, *(result.observed for result in results)]

    def without_graph(
        self, passes: Passes, support: Examples, steps: int, seed: int, *, observe: bool = False
    ) -> Trajectory:
        """Take the inner steps from the learner's weights, with no graph for an outer gradient."""
        values = {path: value.detach() for path, value in self.values().items()}
        loop = self.loop("no", steps, passes, support, seed, observe=observe)
        return adapted_by(loop, passes, values, self.adapted, support.labels)

    def loop(
        self, graph: Graph, steps: int, passes: Passes, support: Examples, seed: int, *, observe: bool
    ) -> InnerLoop:
        """How this learner adapts to one task."""
        return InnerLoop(
            steps,
            self.loss if passes.vmapped else self._checked_loss(support.labels),
            self.inner_optimizer,
            partial(self.rates.at, only=self.adapted),
            graph,
            batch_of=self.batch_of(len(support.labels), seed),
            observe=observe,
            watch=None if self.guard is None else self.guard.watching(self, passes, support, steps=steps),
        )

    def _checked_loss(self, labels: Tensor) -> Loss:
        """The loss, which says so where a classifier has fewer outputs than a task has classes."""
        if not len(labels):
            raise MetaError("the support set is empty\n  fix: at least one example of each class")
        classes = int(labels.max()) + 1

        def checked(output: Any, targets: Tensor) -> Tensor:
            if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] < classes:
                raise MetaError(
                    f"the model has {output.shape[1]} outputs, and the task {classes} classes\n"
                    f"  fix: a classifier of {classes} outputs (fl.replace_head), or tasks of {output.shape[1]} ways"
                )
            return self.loss(output, targets)

        return checked

    def batch_of(self, examples: int, seed: int) -> Callable[[int], Tensor] | None:
        """Which examples of the support set a step takes; ``None`` is all of them in every step."""
        if self.batch is None:
            return None
        size = min(self.batch, examples)
        generator = torch.Generator().manual_seed(seed)
        rounds = -(-self.steps * size // examples)
        order = torch.cat([torch.randperm(examples, generator=generator) for _ in range(rounds)])
        # More steps than in training go round again.
        return lambda step: order.roll(-step * size)[:size]

    def describe(self) -> dict[str, Any]:
        """What changes the results, as values of JSON."""
        everything = tuple(self.values()) == self.adapted
        return {
            "algorithm": type(self).__name__.lower(),
            "policy": str(self.policy),
            "inner_lr": self.inner_lr,
            "steps": self.steps,
            "adapted": "all" if everything else list(self.adapted),
            "inner_optimizer": repr(self.inner_optimizer),
            "learn_rates": self.rates.learn,
        }

    def _chosen(self, selectors: Sequence[Selector]) -> tuple[str, ...]:
        values = self.values()
        path_of = {id(value): path for path, value in values.items()}
        wanted = {path_of[id(value)] for value in select(self.model, *selectors).parameters.values()}
        found = tuple(
            path
            for path, value in values.items()
            if path in wanted and value.requires_grad and path not in self.norms.replaced
        )
        if not found:
            raise MetaError(
                f"nothing is left to adapt in the inner loop\n  found: {name_some(sorted(wanted)) or 'no parameter'}, "
                "frozen (requires_grad=False) or replaced by weights for each step (policy 'per_step')\n"
                "  fix: adapt= with something that trains"
            )
        return found
