"""The statistics of meta-training's tasks, measured: for each inner step by itself, and how much tasks differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from frostline.errors import MetaError, PolicyError
from frostline.meta.functional_model import FunctionalModel, governed_layers
from frostline.meta.learner import Learner
from frostline.meta.meta_batch import Met
from frostline.meta.normalizing import LayerStatistics
from frostline.meta.statistics import KeptStatistics
from frostline.meta.task import Task
from frostline.tables import html_text, text_table


def measure_population(learner: Learner, tasks: Sequence[Task], *, threads: int | None = None) -> KeptStatistics:
    """Measure mean and variance over tasks, for each inner step and the query pass by itself, with the present weights.

    Tasks are adapted to under the learner's own policy, with random layers off. By the law of total variance, what
    tasks differ by in their means is counted. Memory does not grow with the number of tasks.

    Guaranteed: the learner and its model stay as they are.

    Args:
        learner: any learner with batch norm.
        tasks: of meta-training; a hundred are plenty where a layer sees many values a task.
        threads: see :meth:`Learner.backward`.

    Returns:
        The learner's statistics with these as ``population``; set ``learner.statistics`` to use them.

    Raises:
        PolicyError: the model has no batch norm.
        MetaError: no tasks.

    Example:
        >>> from frostline.meta import MAML, Examples
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        >>> maml = MAML(net, inner_lr=0.1, steps=1)
        >>> examples = Examples(torch.eye(2), torch.tensor([0, 1]))
        >>> kept = measure_population(maml, [Task(examples, examples, way=2)])
        >>> len(kept.population), kept.updates
        (2, 0)
    """
    _check(learner, tasks)

    def merged(found: Iterator[list[Met]]) -> list[Met]:
        return reduce(_merged, found)

    def observe(run: FunctionalModel, task: Task) -> list[Met]:
        return learner.observed_on(run, task, [task.query.inputs])

    population = learner.over_tasks(observe, tasks, merged, threads=threads, training=False)
    return learner.statistics.with_population(population)


@dataclass(frozen=True)
class LayerVariation:
    """How much the statistics of one layer differ between tasks, and within one.

    Attributes:
        layer: its path.
        between: standard deviation of the channels' means over tasks, in standard deviations of the layer's values.
        within: the same between two halves of the query set of one task.
        between_scale: standard deviation over tasks of the logarithm of the channels' standard deviations.
        within_scale: the same between two halves.
    """

    layer: str
    between: float
    within: float
    between_scale: float
    within_scale: float


@dataclass(frozen=True)
class Variation:
    """How much normalization statistics differ between tasks against within one.

    Attributes:
        layers: in the order of the model.
        tasks: how many tasks were measured.
    """

    layers: tuple[LayerVariation, ...]
    tasks: int

    def to_json(self) -> dict[str, Any]:
        """The values as JSON has them."""
        return {"schema_version": 1, "tasks": self.tasks, "layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        head = ["layer", "mean between", "within", "log sd between", "within"]
        rows = [
            [v.layer, f"{v.between:.3f}", f"{v.within:.3f}", f"{v.between_scale:.3f}", f"{v.within_scale:.3f}"]
            for v in self.layers
        ]
        return text_table(head, rows)

    def _repr_html_(self) -> str:
        return html_text(self)


def variation(learner: Learner, tasks: Sequence[Task], *, threads: int | None = None) -> Variation:
    """Measure how much the statistics of the query pass differ between tasks, and between halves of one task's queries.

    Every figure is a root mean square over channels. Halves are of the same classes and were normalized with the same
    adapted weights, so what they differ by is the chance of which images were drawn; ``between`` has that chance in it
    too.

    Guaranteed: the learner and its model stay as they are.

    Args:
        learner: any learner with batch norm.
        tasks: two or more, each with two or more queries a class.
        threads: see :meth:`Learner.backward`.
    """
    _check(learner, tasks)
    if len(tasks) < 2:
        raise MetaError("how tasks differ was asked of one task\n  fix: two or more")

    def observe(run: FunctionalModel, task: Task) -> tuple[Met, Met]:
        inputs = task.query.inputs
        if len(inputs) < 2 * task.way:
            raise MetaError(
                f"task {task.index} has {len(inputs)} queries of {task.way} classes, which cannot be halved\n"
                "  fix: two or more queries a class"
            )
        # Class after class, every other query: each half has the same classes.
        found = learner.observed_on(run, task, [inputs[0::2], inputs[1::2]])
        return found[-2], found[-1]

    halves = learner.over_tasks(observe, tasks, list, threads=threads, training=False)
    layers: list[LayerVariation] = []
    for path in halves[0][0]:
        first, second = (
            (torch.stack([half[side][path].mean for half in halves]), _log_sd(half[side][path] for half in halves))
            for side in (0, 1)
        )
        scale = torch.stack([half[0][path].var for half in halves]).mean(0).add(1e-12).sqrt()
        layers.append(
            LayerVariation(
                path,
                between=_rms(first[0].std(0) / scale),
                within=_rms((first[0] - second[0]) / scale / 2**0.5),
                between_scale=_rms(first[1].std(0)),
                within_scale=_rms((first[1] - second[1]) / 2**0.5),
            )
        )
    return Variation(tuple(layers), len(tasks))


def _log_sd(layers: Iterator[LayerStatistics]) -> Tensor:
    # A channel that is dead in a task has no logarithm; one millionth is below any that is not.
    return torch.stack([layer.var.clamp_min(1e-12).log() / 2 for layer in layers])


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def _merged(one: list[Met], other: list[Met]) -> list[Met]:
    return [
        {path: seen.merged(theirs[path]) if path in theirs else seen for path, seen in {**theirs, **own}.items()}
        for own, theirs in zip(one, other, strict=True)
    ]


def _check(learner: Learner, tasks: Sequence[Task]) -> None:
    if not governed_layers(learner.model):
        raise PolicyError(
            f"{type(learner.model).__name__} has no batch norm that is not held, so there are no statistics to measure"
        )
    if not tasks:
        raise MetaError("no tasks to measure statistics on\n  fix: a hundred of meta-training")
