"""Prototypical networks: the class whose support examples are nearest on average, without an inner loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.errors import MetaError
from frostline.meta.adapted import Adapted
from frostline.meta.functional_model import FunctionalModel
from frostline.meta.learner import Learner, seeded_by
from frostline.meta.meta_batch import Met, TaskGradient
from frostline.meta.passes import Passes, Values
from frostline.meta.policy import Policy
from frostline.meta.scores import share_right
from frostline.meta.task import Examples, Task


class Prototypes(Learner):
    """Learns an embedding in which each class lies around the mean of its examples.

    Args:
        model: any module, unmodified; its output, flattened, is the embedding.
        distance: ``euclidean``, squared, as published, or ``cosine``, 1 less the cosine.
        scale: what negative distances are multiplied by to become scores.
        policy: as in :class:`~frostline.meta.MAML`, with one inner step: the pass of the support set.

    Example:
        >>> from frostline.meta.task import Examples
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
        >>> learner = Prototypes(nn.Linear(1, 3))
        >>> learner.adapt(Examples(x, y)).predict(x).argmax(1).tolist()
        [0, 1]

    Source: Snell, Swersky, Zemel 2017, "Prototypical Networks for Few-shot Learning", equations 1 and 2.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        distance: Literal["euclidean", "cosine"] = "euclidean",
        scale: float = 1.0,
        policy: str | Policy | Sequence[str] | None = None,
    ) -> None:
        if distance not in ("euclidean", "cosine"):
            raise MetaError(f"distance={distance!r} is unknown\n  fix: 'euclidean' or 'cosine'")
        super().__init__(model, policy=policy, steps=1)
        self.distance = distance
        self.scale = scale

    def adapted_on(self, run: FunctionalModel, support: Examples, policy: Policy, steps: int, seed: int) -> Adapted:
        """Take the mean of each class; there are no steps to take."""
        del steps
        passes = self.passes(run, policy, support.inputs)
        values = {path: value.detach() for path, value in self.values().items()}
        with torch.no_grad():
            prototypes, _ = self._prototypes(passes, values, support.labels, observe=False)

        def scores(inputs: Any, source: str) -> Tensor:
            with torch.no_grad():
                output = passes.query(values, inputs, source, run.buffers, graph=False).output
                return self._scores(output, prototypes)

        return Adapted(scores, policy.query, values, [], lambda: seeded_by(seed, run))

    def observed_on(self, run: FunctionalModel, task: Task, queries: Sequence[Any]) -> list[Met]:
        """The statistics that the support pass and the query passes met."""
        passes = self.passes(run, self.policy, task.support.inputs)
        values = self.values()
        with torch.no_grad():
            _, met = self._prototypes(passes, values, task.support.labels, observe=True)
            results = [
                passes.query(values, inputs, self.policy.query, run.buffers, graph=False, observe=True)
                for inputs in queries
            ]
        return [met, *(result.observed for result in results)]

    def gradient_on(self, run: FunctionalModel, task: Task) -> TaskGradient:
        """The gradient of one task."""
        passes = self.passes(run, self.policy, task.support.inputs)
        values = self.values()
        prototypes, met = self._prototypes(passes, values, task.support.labels, observe=True)
        query = passes.query(values, task.query.inputs, self.policy.query, run.buffers, graph=True, observe=True)
        scores = self._scores(query.output, prototypes)
        loss = functional.cross_entropy(scores, task.query.labels)
        trained = [p for p in self.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, trained, allow_unused=True)
        return TaskGradient(loss.item(), share_right(scores, task.query.labels), list(grads), [met, query.observed])

    def describe(self) -> dict[str, Any]:
        """What changes the results, as values of JSON."""
        own = {"algorithm": "prototypes", "policy": str(self.policy), "distance": self.distance, "scale": self.scale}
        return {**own, "steps": 0}

    def _prototypes(self, passes: Passes, values: Values, labels: Tensor, *, observe: bool) -> tuple[Tensor, Met]:
        result = passes.inner(values, 0, passes.run.buffers, observe=observe)
        members = functional.one_hot(labels).to(result.output.dtype)
        empty = (members.sum(0) == 0).nonzero().flatten().tolist()
        if empty:
            raise MetaError(f"class {empty[0]} has no example in the support set, so it has no prototype")
        return (members / members.sum(0)).T @ result.output.flatten(1), result.observed

    def _scores(self, output: Tensor, prototypes: Tensor) -> Tensor:
        embedding = output.flatten(1)
        if self.distance == "cosine":
            return self.scale * functional.cosine_similarity(embedding[:, None], prototypes[None], dim=2)
        return -self.scale * (embedding[:, None] - prototypes[None]).square().sum(2)
