"""A schedule at work: holds what has not come yet, counts, thaws, warms up, and can be saved in the middle.

What is held stays registered in the optimizer, so that no group is ever added: schedulers, momentum and the state of
everything else do not notice. The rate of a group that warms up is scaled for the length of a step and put back behind
it, so that a scheduler that computes from the rate it finds goes on right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from frostline.errors import ModelError, SelectionError, name_some
from frostline.freezing.hold import Hold
from frostline.freezing.step_guard import as_optimizers
from frostline.freezing.verbs import freeze
from frostline.optim.groups import title_of
from frostline.optim.unfreeze import Epoch, Plateau, Stage, Step, Unfreeze
from frostline.state import names
from frostline.state.selection import Selection, select

SCHEMA_VERSION = 1


@dataclass
class _Begun:
    """A stage that has come.

    Attributes:
        step: after how many steps.
        epoch: after how many epochs.
    """

    step: int
    epoch: int


@dataclass
class _Counts:
    """What is counted, and what was best so far; all of it is saved."""

    steps: int = 0
    epochs: int = 0
    best: float | None = None
    bad: int = 0
    begun: list[_Begun] = field(default_factory=list[_Begun])


class Unfreezing:
    """A schedule on a model and its optimizer.

    Steps are counted by hooks on the optimizer; epochs are told by :meth:`epoch_end`. Make it before the first step, in
    the same order on every start, and with it the state can be loaded in the middle.

    Args:
        schedule: what comes when.
        model: the model; what the schedule names is held from now on.
        optimizer: what trains it, or a wrapper of it. It has to hold every parameter that will be unfrozen.

    Attributes:
        hold: the hold on what has not come yet.

    Raises:
        NothingSelected: the schedule names what does not exist.
        SelectionError: two stages name the same part.
        ModelError: the optimizer lacks a parameter of a stage; a part that warms up shares a group with others; or the
            model is wrapped for training on several devices, which do not exchange gradients of what is unfrozen later.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> unfreezing = Unfreezing(Unfreeze((Stage(("0",), Epoch(1)),)), model, optimizer)
        >>> model[0].weight.requires_grad, unfreezing.epoch_end(), model[0].weight.requires_grad
        (False, ['0'], True)
    """

    def __init__(self, schedule: Unfreeze, model: nn.Module, optimizer: Optimizer) -> None:
        _refuse_wrapped(model)
        self.schedule = schedule
        self._model = names.unwrap(model)
        self._optimizer = as_optimizers(optimizer)[0]
        self._parts = [select(self._model, *stage.parts) for stage in schedule.stages]
        _check_apart(schedule.stages, self._parts)
        self._groups = [
            _groups_of(stage, part, self._optimizer) for stage, part in zip(schedule.stages, self._parts, strict=True)
        ]
        self._counts = _Counts()
        self._scaled: list[tuple[dict[str, Any], Any]] = []  # within a step
        every = [selector for stage in schedule.stages for selector in stage.parts]
        self.hold: Hold | None = freeze(self._model, *every, optimizer=self._optimizer) if every else None
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def held(self) -> list[str]:
        """What has not come yet, as the schedule names it."""
        return [name for stage in self.schedule.stages[len(self._counts.begun) :] for name in _names(stage)]

    def epoch_end(self, metric: float | None = None) -> list[str]:
        """Count an epoch, and unfreeze what comes after it.

        Args:
            metric: what a :class:`~frostline.optim.unfreeze.Plateau` looks at.

        Returns:
            What was unfrozen, as the schedule names it.

        Raises:
            ModelError: a plateau is waited for, and no metric was given.
        """
        counts = self._counts
        counts.epochs += 1
        waiting = self._next()
        if waiting is not None and isinstance(waiting.at, Plateau):
            self._look(waiting.at, metric)
        return self._advance()

    def detach(self) -> None:
        """Take the hooks off the optimizer. What is still held stays held; ``hold.thaw()`` releases it."""
        self._put_back()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def factor_of(self, group: Mapping[str, Any]) -> float:
        """What the rate of a group is multiplied with at the next step: 0 while it is held, 1 once it is warm."""
        for number, groups in enumerate(self._groups):
            if any(self._optimizer.param_groups[index] is group for index in groups):
                if number >= len(self._counts.begun):
                    return 0.0
                return self._warmth(number)
        return 1.0 if any(parameter.requires_grad for parameter in group["params"]) else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, as plain values."""
        counts = self._counts
        return {
            "schema_version": SCHEMA_VERSION,
            "stages": len(self.schedule.stages),
            "steps": counts.steps,
            "epochs": counts.epochs,
            "best": counts.best,
            "bad": counts.bad,
            "begun": [{"step": each.step, "epoch": each.epoch} for each in counts.begun],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one stood: thaws what had been unfrozen.

        Raises:
            ModelError: the state is of another schedule, or of an earlier time than this one has reached.
        """
        if state.get("schema_version") != SCHEMA_VERSION or state.get("stages") != len(self.schedule.stages):
            raise ModelError(
                f"the state is of a schedule of {state.get('stages')} stages\n"
                f"  found: {len(self.schedule.stages)} stages here\n  fix: the schedule that the run began with"
            )
        begun = [_Begun(**each) for each in state["begun"]]
        if len(begun) < len(self._counts.begun):
            raise ModelError(
                f"the state is from before {name_some(_names(self.schedule.stages[len(begun)]))} was unfrozen\n"
                "  fix: load it into a schedule that has just been attached"
            )
        for stage in self.schedule.stages[len(self._counts.begun) : len(begun)]:
            self._thaw(stage)
        self._counts = _Counts(state["steps"], state["epochs"], state["best"], state["bad"], begun)

    def _next(self) -> Stage | None:
        stages, done = self.schedule.stages, len(self._counts.begun)
        return stages[done] if done < len(stages) else None

    def _advance(self) -> list[str]:
        """Unfreeze every stage whose time has come."""
        unfrozen: list[str] = []
        counts = self._counts
        while (stage := self._next()) is not None:
            at = stage.at
            if isinstance(at, Epoch):
                due = counts.epochs >= at.number
            elif isinstance(at, Step):
                due = counts.steps >= at.number
            else:
                due = counts.bad >= at.patience
            if not due:
                break
            self._thaw(stage)
            counts.begun.append(_Begun(counts.steps, counts.epochs))
            counts.best, counts.bad = None, 0
            unfrozen += _names(stage)
        return unfrozen

    def _thaw(self, stage: Stage) -> None:
        assert self.hold is not None, "there is a stage"
        self.hold.thaw(*stage.parts)
        # It joins the mode that the model is in; what other holds keep in eval mode stays there.
        for module in select(self._model, *stage.parts).tops.values():
            module.train(self._model.training)

    def _look(self, plateau: Plateau, metric: float | None) -> None:
        if metric is None or math.isnan(metric):
            raise ModelError(
                f"epoch_end({metric}): a plateau is waited for, and there is no metric to look at\n"
                "  fix: epoch_end(accuracy)"
            )
        counts = self._counts
        sign = 1 if plateau.mode == "max" else -1
        if counts.best is None or sign * (metric - counts.best) > plateau.min_delta:
            counts.best, counts.bad = metric, 0
        else:
            counts.bad += 1

    def _before_step(self, *_: Any) -> None:
        self._put_back()
        for number in range(len(self._counts.begun)):
            factor = self._warmth(number)
            if factor < 1:
                # Loading the optimizer's state makes new dictionaries of its groups; their numbers stay.
                for group in (self._optimizer.param_groups[index] for index in self._groups[number]):
                    self._scaled.append((group, group["lr"]))
                    # A tensor, which compiled and capturable optimizers have, is replaced too, not written to.
                    group["lr"] = group["lr"] * factor

    def _after_step(self, *_: Any) -> None:
        self._put_back()
        self._counts.steps += 1
        if isinstance(getattr(self._next(), "at", None), Step):
            self._advance()

    def _put_back(self) -> None:
        for group, rate in self._scaled:
            group["lr"] = rate
        self._scaled = []

    def _warmth(self, number: int) -> float:
        warmup = self.schedule.stages[number].warmup
        since = self._counts.steps - self._counts.begun[number].step
        return min(1.0, (since + 1) / warmup) if warmup else 1.0


def _names(stage: Stage) -> list[str]:
    return [part if isinstance(part, str) else repr(part) for part in stage.parts]


def _refuse_wrapped(model: nn.Module) -> None:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ModelError(
            "Unfreezing: DistributedDataParallel exchanges gradients of what required them when it was made, and says "
            "nothing of others\n  fix: unfreeze on the module inside, and wrap it anew after each stage"
        )


def _check_apart(stages: Iterable[Stage], parts: Iterable[Selection]) -> None:
    seen: dict[str, str] = {}
    for stage, part in zip(stages, parts, strict=True):
        title = ", ".join(_names(stage))
        for path in [*part.parameters, *part.buffers]:
            if path in seen:
                raise SelectionError(
                    f"Unfreeze: {path} is in two stages, {seen[path]} and {title}\n  fix: stages that do not overlap"
                )
            seen[path] = title


def _groups_of(stage: Stage, part: Selection, optimizer: Optimizer) -> list[int]:
    """The numbers of the optimizer's groups that hold a stage's parameters and nothing else, if all are there."""
    members = {id(parameter): path for path, parameter in part.parameters.items()}
    registered = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [path for key, path in members.items() if key not in registered]
    if missing:
        raise ModelError(
            f"Unfreeze: the optimizer does not hold what will be unfrozen: {name_some(missing)}\n"
            "  fix: make it from fl.param_groups(model, ...), frozen parts included; nothing is added later"
        )
    own: list[int] = []
    mixed: list[str] = []
    for index, group in enumerate(optimizer.param_groups):
        inside = [id(parameter) in members for parameter in group["params"]]
        if any(inside) and not all(inside):
            mixed.append(title_of(group, index))
        elif any(inside):
            own.append(index)
    # A group of several parts has no warmth of its own.
    if mixed and stage.warmup:
        raise ModelError(
            f"Unfreeze: {', '.join(_names(stage))} is to be warmed up, and shares {name_some(mixed)} with other parts\n"
            "  fix: fl.param_groups(model, lr, layer_decay=1.0), which gives each layer its own groups"
        )
    return own
