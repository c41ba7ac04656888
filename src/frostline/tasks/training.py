"""Training one task at a time, with the trunk and the other heads held."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from frostline.errors import FreezeError
from frostline.freezing.hold import Hold
from frostline.freezing.verbs import freeze
from frostline.state import names
from frostline.state.selection import Selector, exactly, select
from frostline.tasks.isolation import Isolation, IsolationReport
from frostline.tasks.task_model import TaskModel

Loss = Callable[[Tensor, Tensor], Tensor]


class TaskTraining:
    """What :func:`train_task` gives to its block.

    Attributes:
        task: the task that is trained.
        hold: what is held meanwhile.
    """

    def __init__(self, task: str, hold: Hold, isolation: Isolation | None, *, whole_trunk: bool) -> None:
        self.task = task
        self.hold = hold
        self._isolation = isolation
        self._whole_trunk = whole_trunk
        self._report: IsolationReport | None = None

    @property
    def report(self) -> IsolationReport:
        """The isolation report; within the block as of now, after it as of its end.

        Raises:
            FreezeError: no probe batch was given.
        """
        if self._report is not None:
            return self._report
        if self._isolation is None:
            raise FreezeError(
                "report: without a probe batch there is nothing to compare.\n  fix: train_task(..., probe=x)"
            )
        return self._isolation.report(self.hold.diff(), whole_trunk=self._whole_trunk)

    def _finish(self) -> None:
        if self._isolation is not None:
            self._report = self.report


@contextmanager
def train_task(
    model: TaskModel,
    task: str,
    *,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    probe: Tensor | Iterable[Tensor] | None = None,
    labels: Mapping[str, Tensor] | None = None,
    trunk: tuple[Selector, ...] = ("*",),
) -> Generator[TaskTraining, None, None]:
    """Hold the trunk and all other heads while the block trains one task.

    At the end of the block the hold is verified and released, and what was there before comes back. On an exception it
    is released all the same.

    Args:
        model: the trunk with its heads.
        task: the head that trains.
        optimizer: as for :func:`frostline.freeze`.
        probe: a batch, or several, on which the other heads' logits are compared before and after, to the bit.
        labels: head to the true classes of the probe, for accuracies in the report.
        trunk: what of the trunk is held, as selectors on the trunk; all of it by default, nothing when empty.

    Yields:
        A :class:`TaskTraining`, whose ``report`` can be read after the block.

    Raises:
        FreezeError: there is nothing to hold, neither of the trunk nor another head.
        FrozenStateMoved: at the end, if something that was held moved.

    Example:
        >>> from torch import nn
        >>> model = TaskModel(nn.BatchNorm1d(4), {"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})
        >>> with train_task(model, "b", probe=torch.ones(3, 4)) as training:
        ...     loss = model.train()(torch.randn(8, 4), "b").sum()
        >>> training.report.isolated
        True
    """
    part = select(model.trunk, *trunk) if trunk else None
    of_trunk = [] if part is None else [names.join("trunk", path) for path in [*part.tops, *part.alone]]
    of_heads = [names.join("heads", name) for name in model.others(task)]
    if not of_trunk and not of_heads:
        raise FreezeError(
            f"train_task({task!r}, trunk=()): nothing would be held, for there is no other head.\n"
            "  fix: train the model as it is, or hold a part of its trunk"
        )
    hold = freeze(model, *map(exactly, [*of_trunk, *of_heads]), optimizer=optimizer)
    try:
        # Within the hold, because a trunk that writes its own state in forward would be moved by the probe itself.
        isolation = None if probe is None else Isolation(model, task, probe, labels)
        training = TaskTraining(task, hold, isolation, whole_trunk="trunk" in of_trunk)
        yield training
        training._finish()
        hold.verify()
    finally:
        hold.close()


def fit_task(
    model: TaskModel,
    task: str,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    optimizer: Optimizer,
    epochs: int = 1,
    loss: Loss = torch.nn.functional.cross_entropy,
    probe: Tensor | Iterable[Tensor] | None = None,
    labels: Mapping[str, Tensor] | None = None,
) -> IsolationReport | None:
    """Train one task in a plain loop, with the trunk and the other heads held.

    Args:
        model: the trunk with its heads; left in train mode.
        task: the head that trains.
        batches: inputs and classes; iterated once an epoch.
        optimizer: steps once a batch. It may own all parameters; what is held does not move.
        epochs: how often.
        loss: of the logits and the classes.
        probe: as for :func:`train_task`.
        labels: likewise.

    Returns:
        The isolation report, where a probe was given.

    Raises:
        FrozenStateMoved: something that was held moved.
    """
    with train_task(model, task, optimizer=optimizer, probe=probe, labels=labels) as training:
        for _ in range(epochs):
            model.train()
            for inputs, classes in batches:
                optimizer.zero_grad()
                value = loss(model(inputs, task), classes)
                value.backward()
                optimizer.step()
    return None if probe is None else training.report
