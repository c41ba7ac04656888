"""Few-shot accuracy with its interval, transductive and inductive side by side, and with what it depends on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from frostline.errors import InnerLoopDiverged, MetaError
from frostline.json_values import finite
from frostline.meta.functional_model import FunctionalModel, governed_layers
from frostline.meta.guard import brief
from frostline.meta.learner import Learner
from frostline.meta.policy import Policy
from frostline.meta.scores import share_right
from frostline.meta.task import Examples, Task
from frostline.meta.tasks import Tasks
from frostline.tables import html_text, text_table

# Two-sided 95 % of the normal distribution; a t distribution of 599 degrees of freedom has 1.964.
_TWO_SIDED_95 = 1.96
LEAST_TASKS = 600


@dataclass(frozen=True)
class EvaluationRow:
    """The accuracy under one policy, for one size of task.

    Attributes:
        policy: which statistics were used.
        kind: ``transductive``: what is said of one query depends on the others of its pass; ``inductive``: it does not.
        way: classes of a task.
        shot: support examples of each.
        queries: query examples of each that were asked in one pass.
        accuracy: mean over tasks, a share; NaN if no task was finished.
        interval: half width of its 95 % interval, 1.96 standard errors over tasks.
        tasks: tasks that count.
        skipped: tasks that do not, because adapting to them blew up.
        why: the first reason for that.
    """

    policy: str
    kind: Literal["transductive", "inductive"]
    way: int
    shot: int
    queries: int
    accuracy: float
    interval: float
    tasks: int
    skipped: int
    why: str = ""

    @property
    def shown(self) -> str:
        """The accuracy as it is quoted."""
        if not self.tasks:
            return "blew up"
        text = f"{100 * self.accuracy:.1f} ± {100 * self.interval:.1f} %"
        return text + (f" (of {self.tasks}; {self.skipped} blew up)" if self.skipped else "")


@dataclass(frozen=True)
class Evaluation:
    """Accuracies, and everything that they depend on.

    Attributes:
        rows: by size of task, policy and number of queries.
        conditions: what changes the numbers, as values of JSON.
    """

    rows: tuple[EvaluationRow, ...]
    conditions: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The values as JSON has them, NaN as a text."""
        rows = [asdict(row) for row in self.rows]
        return finite({"schema_version": 1, "rows": rows, "conditions": self.conditions})

    def __str__(self) -> str:
        head = ["policy", "kind", "task", "queries", "accuracy"]
        rows = [[r.policy, r.kind, f"{r.way}-way {r.shot}-shot", r.queries, r.shown] for r in self.rows]
        told = "\n".join(f"  {name}: {value}" for name, value in _flat(self.conditions))
        return f"{text_table(head, rows)}\n\n{told}"

    def _repr_html_(self) -> str:
        return html_text(self)


def evaluate(
    learner: Learner,
    tasks: Tasks | Sequence[Tasks],
    *,
    split: str = "test",
    count: int = LEAST_TASKS,
    policies: Sequence[str | Policy] | None = None,
    queries: Sequence[int] | None = None,
    steps: int | None = None,
    start: int = 0,
    threads: int | None = None,
) -> Evaluation:
    """Measure the accuracy of a learner on tasks of classes that it has not seen.

    Random layers are off, and each task is adapted to by itself: no order of the tasks changes a number. All policies
    see the same tasks, with the same classes and support sets for every number of queries.

    Guaranteed: the learner and its model stay as they are.

    Args:
        learner: any learner.
        tasks: what to draw tasks from; several for several numbers of classes or shots.
        split: the split to draw from.
        count: tasks; below 600 the interval is wide, and the conditions say so.
        policies: names, ``"INNER/QUERY"`` or policies; by default the learner's own, and with its inner steps the query
            pass by ``batch`` (transductive) and by ``support`` (inductive).
        queries: query examples of a class in one pass, none above what the tasks have; by default that number.
        steps: inner steps, by default those of training.
        start: index of the first task.
        threads: see :meth:`Learner.backward`.

    Raises:
        MetaError: fewer queries in a task than asked for, or no tasks.
        PolicyError: a policy that the model cannot have.

    Example:
        >>> import torch
        >>> from frostline.meta import MAML, Tasks, digits
        >>> maml = MAML(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5)), inner_lr=0.5, steps=3)
        >>> found = evaluate(maml, Tasks(digits(), way=5, shot=1, queries=5), split="all", count=20)
        >>> row = found.rows[0]
        >>> (row.kind, row.tasks, 0.2 < row.accuracy <= 1, found.conditions["split"])
        ('inductive', 20, True, 'all')
    """
    if count < 2:
        raise MetaError(f"count={count} tasks have no interval\n  fix: at least 2; {LEAST_TASKS} are usual")
    sources = [tasks] if isinstance(tasks, Tasks) else list(tasks)
    chosen = _policies(learner, policies)
    quick = brief(learner)
    rows: list[EvaluationRow] = []
    for source in sources:
        sizes = [source.queries] if queries is None else list(queries)
        if not sizes or min(sizes) < 1 or max(sizes) > source.queries:
            raise MetaError(
                f"queries={sizes} a class were asked for, and the tasks have {source.queries}\n"
                "  fix: Tasks(..., queries=) with the largest of them"
            )
        rows += _rows(quick, source, split, range(start, start + count), chosen, sizes, steps, threads)
    conditions = {
        "split": split,
        "count": count,
        "start": start,
        "enough_tasks": count >= LEAST_TASKS,
        "steps_at_test": learner.steps_for(steps),
        "statistics_updates": learner.statistics.updates,
        "tasks": [source.describe() for source in sources],
        "learner": learner.describe(),
    }
    return Evaluation(tuple(rows), conditions)


class _Drawn(Sequence[Task]):
    """Tasks that are drawn when they are asked for, because hundreds of them would fill the memory."""

    def __init__(self, source: Tasks, split: str, indices: range, device: torch.device) -> None:
        self._source = source
        self._device = device
        self._split = split
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: Any) -> Any:
        return self._source.task(self._split, self._indices[place]).to(self._device)


def _policies(learner: Learner, asked: Sequence[str | Policy] | None) -> list[Policy | None]:
    """The policies to compare; ``None`` for a model that has nothing to decide."""
    if not governed_layers(learner.model):
        return [learner.policy_for(policy) for policy in asked or ()] or [None]
    inner = learner.policy.inner
    wanted = asked or [learner.policy, Policy(inner, "batch"), Policy(inner, "support")]
    return list(dict.fromkeys(learner.policy_for(policy) for policy in wanted))


def _rows(
    learner: Learner,
    source: Tasks,
    split: str,
    indices: range,
    policies: list[Policy | None],
    sizes: list[int],
    steps: int | None,
    threads: int | None,
) -> list[EvaluationRow]:
    by_inner: dict[tuple[str, ...], list[Policy]] = {}
    for policy in policies:
        known = learner.policy if policy is None else policy
        by_inner.setdefault(known.inner, []).append(known)
    taken = learner.steps_for(steps)
    found: dict[tuple[Policy, int], list[float]] = {}
    blown: dict[Policy, list[str]] = {}
    for group in by_inner.values():

        def measure(run: FunctionalModel, task: Task, group: list[Policy] = group) -> Any:
            try:
                adapted = learner.adapted_on(run, task.support, group[0], taken, task.seed)
            except InnerLoopDiverged as error:
                return str(error).splitlines()[0]
            return {
                (policy, size): _accuracy(adapted.scores, policy.query, task, size)
                for policy in group
                for size in sizes
            }

        drawn = _Drawn(source, split, indices, next(learner.parameters()).device)
        for one in learner.over_tasks(measure, drawn, list, threads=threads, training=False):
            if isinstance(one, str):
                for policy in group:
                    blown.setdefault(policy, []).append(one)
                continue
            for key, accuracy in one.items():
                found.setdefault(key, []).append(accuracy)
    rows: list[EvaluationRow] = []
    for policy in policies:
        known = learner.policy if policy is None else policy
        reasons = blown.get(known, [])
        for size in sizes:
            values = found.get((known, size), [])
            mean = statistics.fmean(values) if values else float("nan")
            width = _TWO_SIDED_95 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            transductive = policy is not None and policy.transductive
            rows.append(
                EvaluationRow(
                    policy="none needed" if policy is None else str(policy),
                    kind="transductive" if transductive else "inductive",
                    way=source.way,
                    shot=source.shot,
                    queries=size,
                    accuracy=mean,
                    interval=width,
                    tasks=len(values),
                    skipped=len(reasons),
                    why=reasons[0] if reasons else "",
                )
            )
    return rows


def _accuracy(scores: Any, source: str, task: Task, queries: int) -> float:
    """The share of a class's first queries that are right, asked in one pass."""
    have = len(task.query.labels) // task.way
    places = [label * have + query for label in range(task.way) for query in range(queries)]
    chosen = Examples(task.query.inputs[places], task.query.labels[places])
    return share_right(scores(chosen.inputs, source), chosen.labels)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        items = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        for item in items:
            if isinstance(item, dict):
                yield from _flat(item, f"{prefix}{name}.")
            else:
                yield prefix + name, item
