"""Does anything of one task reach the next? Results to the bit, and the digests of the model, for any few-shot code."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.errors import InnerLoopDiverged, MetaError, PolicyError
from frostline.meta.functional_model import governed_layers
from frostline.meta.guard import unguarded
from frostline.meta.kept_state import TABLES, KeptState, gap, same
from frostline.meta.leak_report import Leak, LeakReport
from frostline.meta.learner import Learner
from frostline.meta.policy import SOURCES, Policy
from frostline.meta.task import Task
from frostline.norms.untouched import random_state_kept

Adapt: TypeAlias = Callable[[Any, Task], Any]
Results: TypeAlias = "dict[str, Tensor]"

_BUFFERS = (
    "give each task buffers of its own: functional_call(model, {**weights, **{n: b.clone() for n, b in "
    "model.named_buffers()}}, x); a clone has to clone buffers too"
)
_CAUSES: dict[str, tuple[str, str]] = {
    "parameter": ("the weights of the model itself were written", "adapt copies, and pass them as values"),
    "buffer": ("a forward pass wrote a buffer of the model itself", _BUFFERS),
    "mode": ("the mode was changed and not put back", "keep the mode that was, and set it again"),
    "requires_grad": ("the flag was changed and not put back", "keep the flag that was, and set it again"),
    "attribute": (
        "a module keeps a tensor of the last task as an attribute",
        "pass it as an argument, or return it as a value",
    ),
}
_OTHER = ("it was changed and not put back", "put it back after each task")


def check_leaks(
    learner_or_adapt: Learner | Adapt,
    task_a: Task,
    task_b: Task,
    *,
    model: nn.Module | None = None,
    policies: Sequence[Any] | None = None,
    seed: int = 0,
) -> LeakReport:
    """Check that what is said of one task does not depend on another, and that tasks leave the model as it was.

    Task A is run by itself, and again from the same state: only what repeats to the bit can be compared. Then it is run
    after B was adapted to and judged, after B's backward pass, and B after A. Before each run the global generators are
    seeded alike. The model is compared by digest after each: parameters, buffers, modes, ``requires_grad``, and tensors
    that modules keep as attributes.

    Guaranteed: the model, gradients and the global generators of PyTorch, NumPy and Python are afterwards as before;
    what the code keeps elsewhere is not known and stays as the code leaves it.

    Args:
        learner_or_adapt: a :class:`~frostline.meta.Learner`; or any function ``adapt(model, task)`` that adapts to the
            support set and returns the logits of the query set, or a mapping or sequence of tensors.
        task_a: a task.
        task_b: another one.
        model: what the function is given.
        policies: for a learner; by default every policy of :data:`~frostline.meta.SOURCES` that it can have.
        seed: any number.

    Returns:
        The :class:`LeakReport`.

    Raises:
        MetaError: a function without its model, or one that returns no tensors.

    Example:
        >>> from frostline.meta.task import Examples
        >>> data = [Examples(torch.randn(4, 2) + place, torch.tensor([0, 0, 1, 1])) for place in range(4)]
        >>> a, b = Task(data[0], data[1], way=2), Task(data[2], data[3], way=2)
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
        >>> report = check_leaks(lambda model, task: model(task.query.inputs), a, b, model=net)
        >>> [leak.where for leak in report.leaks]
        ['0.running_mean', '0.running_var', '0.num_batches_tracked']
    """
    if isinstance(learner_or_adapt, Learner):
        return _check_learner(learner_or_adapt, task_a, task_b, policies, seed)
    if model is None:
        raise MetaError(
            "check_leaks was given a function and no model\n  fix: model=, which the function is called with"
        )
    adapt = learner_or_adapt

    def run(task: Task) -> Results:
        return _tensors(adapt(model, task))

    def backward(task: Task) -> None:
        logits = adapt(model, task)
        if isinstance(logits, Tensor) and logits.requires_grad:
            functional.cross_entropy(logits, task.query.labels).backward()

    check = _Check(model, seed)
    check.run(run, backward, task_a, task_b)
    return check.report(getattr(adapt, "__name__", type(adapt).__name__))


def _check_learner(
    learner: Learner, task_a: Task, task_b: Task, policies: Sequence[Any] | None, seed: int
) -> LeakReport:
    # Results are compared whatever they are, NaN too; a guard would stop some policies.
    learner = unguarded(learner)
    check = _Check(learner, seed)
    has_norms = bool(governed_layers(learner.model))
    wanted = (policies if policies is not None else list(SOURCES)) if has_norms else [None]
    for asked in wanted:
        try:
            policy = learner.policy_for(asked)
        except PolicyError as error:
            check.skipped.append(f"policy {str(asked)!r}: {str(error).splitlines()[0]}")
            continue

        def run(task: Task, policy: Policy = policy) -> Results:
            adapted = learner.adapt(task.support, policy=policy if has_norms else None, seed=task.seed)
            weights = {f"weights.{path}": value for path, value in adapted.values.items()}
            losses = torch.tensor(adapted.losses, dtype=torch.float64)
            return {"logits": adapted.predict(task.query.inputs), "losses": losses, **weights}

        def backward(task: Task) -> None:
            # What a learner keeps of meta-training is meant to move, and is no part of the model.
            plain = {name: value for name, value in vars(learner).items() if name not in TABLES}
            learner.backward([task], threads=1)
            vars(learner).update(plain)

        prefix = f"policy {str(policy)!r}: " if has_norms else ""
        own = policy == learner.policy or not has_norms
        check.run(run, backward if own else None, task_a, task_b, prefix=prefix)
    return check.report(type(learner).__name__)


@dataclass
class _Check:
    """Runs tasks in several orders and gathers what moved."""

    model: nn.Module
    seed: int
    leaks: dict[tuple[str, str], Leak] = field(default_factory=dict[tuple[str, str], Leak])
    compared: list[str] = field(default_factory=list[str])
    not_repeatable: list[str] = field(default_factory=list[str])
    skipped: list[str] = field(default_factory=list[str])
    entries: int = 0

    def run(
        self,
        run: Callable[[Task], Results],
        backward: Callable[[Task], None] | None,
        task_a: Task,
        task_b: Task,
        *,
        prefix: str = "",
    ) -> None:
        """Check one way of adapting, and put everything back."""
        kept = KeptState(self.model)
        self.entries = len(kept.snapshot) + len(kept.attributes)

        def fresh(task: Task) -> Results:
            kept.put_back()
            return self._seeded(run, task)

        try:
            with random_state_kept():
                try:
                    alone: dict[str, Results] = {}
                    for name, task in (("A", task_a), ("B", task_b)):
                        alone[name] = fresh(task)
                        self._moved(kept, f"{prefix}adapting to {name}")
                    comparable = self._comparable(alone, {"A": fresh(task_a), "B": fresh(task_b)}, prefix)
                    # B's second run has just ended, and left behind what it leaves behind.
                    self._compare("A", comparable, self._seeded(run, task_a), f"{prefix}B before A")
                    fresh(task_a)
                    self._compare("B", comparable, self._seeded(run, task_b), f"{prefix}A before B")
                    if backward is not None:
                        kept.put_back()
                        self._seeded(backward, task_b)
                        self._moved(kept, f"{prefix}B's backward pass")
                        self._compare("A", comparable, self._seeded(run, task_a), f"{prefix}B's backward before A")
                except (InnerLoopDiverged, PolicyError) as error:
                    self._moved(kept, f"{prefix}adapting")
                    self.skipped.append(f"{prefix}{str(error).splitlines()[0]}")
        finally:
            kept.put_back()

    def report(self, subject: str) -> LeakReport:
        """What was found."""
        leaks = sorted(self.leaks.values(), key=lambda leak: leak.kind == "result")
        return LeakReport(
            subject,
            tuple(leaks),
            tuple(self.compared),
            self.entries,
            tuple(self.not_repeatable),
            tuple(self.skipped),
        )

    def _seeded(self, work: Callable[[Task], Any], task: Task) -> Any:
        torch.manual_seed(self.seed)
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        with torch.enable_grad():
            return work(task)

    def _comparable(
        self, alone: Mapping[str, Results], again: Mapping[str, Results], prefix: str
    ) -> dict[str, Results]:
        """The results that are the same twice."""
        found: dict[str, Results] = {}
        for task, results in alone.items():
            repeated = {name for name in results if name in again[task] and same(results[name], again[task][name])}
            found[task] = {name: results[name] for name in results if name in repeated}
            self.not_repeatable += [f"{prefix}{name} of {task}" for name in results if name not in repeated]
        return found

    def _compare(self, task: str, before: Mapping[str, Results], after: Results, when: str) -> None:
        for name, value in before[task].items():
            where = f"{name} of {task}"
            self.compared.append(f"{when}: {where}")
            found = after.get(name)
            if found is not None and same(value, found):
                continue
            if self.state_moved:
                cause, fix = "the result depends on what another task left in the model", "repair the entries above"
            else:
                cause, fix = (
                    "the result depends on another task, and the model does not: state outside of it",
                    "look at what the function closes over",
                )
            self.leaks.setdefault((where, when), Leak(where, "result", "", gap(value, found), when, cause, fix))

    @property
    def state_moved(self) -> bool:
        """Whether an entry of the model has moved so far."""
        return any(leak.kind != "result" for leak in self.leaks.values())

    def _moved(self, kept: KeptState, when: str) -> None:
        rows = kept.moved()
        counts = {row.module: row.max_abs for row in rows if row.role == "norm.count"}
        for row in rows:
            cause, fix = _CAUSES.get(row.kind, _OTHER)
            if row.role in ("norm.mean", "norm.var", "norm.count") and counts.get(row.module):
                times = int(counts[row.module] or 0)
                cause = (
                    f"{times} forward {'pass' if times == 1 else 'passes'} in train mode wrote the model's own buffers"
                )
            shared = kept.sharing(row.path)
            if shared:
                cause = f"its backup shares its memory ({shared}), so that restoring from it does nothing"
                fix = "make the backup with .clone(); copy.copy(), .data and .detach() share memory"
            self.leaks.setdefault(
                (row.path, row.kind), Leak(row.path, row.kind, row.role, row.max_abs, when, cause, fix)
            )


def _tensors(found: Any) -> Results:
    """What a function returned, as named tensors that nothing changes any more."""
    if isinstance(found, Tensor):
        return {"logits": found.detach().clone()}
    named = found if isinstance(found, Mapping) else dict(enumerate(found)) if isinstance(found, (list, tuple)) else {}
    items = cast("Mapping[Any, Any]", named).items()
    tensors = {str(name): value.detach().clone() for name, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise MetaError(
            f"check_leaks compares tensors, and the function returned a {type(found).__name__} without any\n"
            "  fix: return the logits of the query set, or a mapping or sequence of tensors"
        )
    return tensors
