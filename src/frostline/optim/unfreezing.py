"""A schedule at work: holds what has not come yet, counts, thaws, warms up, and can be saved in the middle.

What is held stays registered in the optimizer, so that no group is ever added: schedulers, momentum and the state of
everything else do not notice. The rate of a group that warms up is scaled for the length of a step and put back behind
it, so that a scheduler that computes from the rate it finds goes on right. Where a step raises, torch calls no hook
behind it: the rate is put back when it is next looked for, by a step or by the optimizer's ``state_dict``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from frostline.errors import CannotThaw, ModelError, name_some
from frostline.freezing.hold import Hold
from frostline.freezing.verbs import freeze
from frostline.optim.schedule_fit import (
    check_apart,
    check_same,
    groups_of,
    names_in,
    refuse_inside_steps,
    refuse_wrapped,
    the_scheduled_one,
)
from frostline.optim.unfreeze import Epoch, Plateau, Stage, Step, Unfreeze
from frostline.state import names
from frostline.state.selection import exactly, select

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

    On several processes, attach it to the module that DistributedDataParallel wraps, before wrapping, and unfreeze by
    ``ddp = frostline.freezing.rewrap(ddp, unfreezing.epoch_end)``. A stage that comes after a number of steps begins
    within a step, where nothing can be wrapped anew: wrap with ``find_unused_parameters=True`` before the schedule is
    attached, and the wrapper exchanges whatever trains; then ``epoch_end`` needs no ``rewrap`` either.

    Args:
        schedule: what comes when.
        model: the model; what the schedule names is held from now on.
        optimizer: what trains it, or a wrapper of it. It has to hold every parameter that will be unfrozen. It may not
            be LBFGS, which moves all of its parameters as one vector and remembers where they went.

    Attributes:
        hold: the hold on what has not come yet.

    Raises:
        NothingSelected: the schedule names what does not exist.
        SelectionError: two stages name the same part, or the same tensor under two names.
        ModelError: the optimizer lacks a parameter of a stage, calls no hooks, or has another schedule for the same
            part; a part that warms up shares a group with others; or the model is wrapped for training on several
            devices, which do not exchange gradients of what is unfrozen later.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> unfreezing = Unfreezing(Unfreeze((Stage(("0",), Epoch(1)),)), model, optimizer)
        >>> model[0].weight.requires_grad, unfreezing.epoch_end(), model[0].weight.requires_grad
        (False, ['0'], True)
    """

    def __init__(self, schedule: Unfreeze, model: nn.Module, optimizer: Optimizer) -> None:
        refuse_wrapped(model)
        self.schedule = schedule
        self._model = names.unwrap(model)
        self._optimizer = the_scheduled_one(optimizer)
        parts = [select(self._model, *stage.parts) for stage in schedule.stages]
        check_apart(schedule.stages, parts)
        self._groups = [
            groups_of(stage, part, self._optimizer) for stage, part in zip(schedule.stages, parts, strict=True)
        ]
        self._members = {id(parameter): path for part in parts for path, parameter in part.parameters.items()}
        self._refuse_second()
        # By path from now on: a pattern that leaves something out would do so for the other stages too.
        self._paths = [[exactly(path) for path in [*part.tops, *part.alone]] for part in parts]
        self._counts = _Counts()
        self._in_step = False
        self._stepped = False  # ever
        self._scaled: list[tuple[dict[str, Any], Any]] = []  # within a step
        every = [path for paths in self._paths for path in paths]
        self.hold: Hold | None = freeze(self._model, *every, optimizer=self._optimizer) if every else None
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
            self._optimizer.register_state_dict_pre_hook(self._put_back),
        ]

    @property
    def held(self) -> list[str]:
        """What has not come yet, as the schedule names it."""
        return [name for stage in self.schedule.stages[len(self._counts.begun) :] for name in names_in(stage)]

    def epoch_end(self, metric: float | None = None) -> list[str]:
        """Count an epoch, and unfreeze what comes after it.

        Args:
            metric: what a :class:`~frostline.optim.unfreeze.Plateau` looks at.

        Returns:
            What was unfrozen, as the schedule names it.

        Raises:
            ModelError: a plateau is waited for, and no metric was given; then the epoch is not counted.
            CannotThaw: on several processes, a live DistributedDataParallel would exchange no gradients of what is
                unfrozen; then the epoch is not counted.
        """
        before = replace(self._counts, begun=list(self._counts.begun))
        waiting = self._next()
        if waiting is not None and isinstance(waiting.at, Plateau):
            self._look(waiting.at, metric)
        self._counts.epochs += 1
        try:
            return self._advance()
        except CannotThaw:
            if len(self._counts.begun) == len(before.begun):
                self._counts = before
            raise

    def detach(self) -> None:
        """Take the hooks off the optimizer. What is still held stays held; ``hold.thaw()`` releases it."""
        self._put_back()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Unfreezing:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the schedule: what is still held is verified and thawed, and the hooks are taken off.

        On an exception nothing is verified, so that it is the one that is seen.

        Raises:
            FrozenStateMoved: something moved before its time.
        """
        self.detach()
        if self.hold is not None and not self.hold.released:
            try:
                if kind is None:
                    self.hold.verify()
            finally:
                self.hold.close()

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
            "schedule": self._described(),
            "steps": counts.steps,
            "epochs": counts.epochs,
            "best": counts.best,
            "bad": counts.bad,
            "begun": [{"step": each.step, "epoch": each.epoch} for each in counts.begun],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one stood: thaws what had been unfrozen.

        Load the model first: what is still held is verified from now on against what it is now. The optimizer's state
        may be loaded before or after.

        Raises:
            ModelError: the state is of another schedule, or of an earlier time than this one has reached.
        """
        if state.get("schema_version") != SCHEMA_VERSION:
            raise ModelError(
                f"the state is of version {state.get('schema_version')!r}, this one reads {SCHEMA_VERSION}\n"
                "  fix: the version of Frostline that wrote it"
            )
        check_same(state["schedule"], self._described())
        begun = [_Begun(**each) for each in state["begun"]]
        counts = _Counts(state["steps"], state["epochs"], state["best"], state["bad"], begun)
        if len(begun) < len(self._counts.begun):
            raise ModelError(
                f"the state is from before {name_some(names_in(self.schedule.stages[len(begun)]))} was unfrozen\n"
                "  fix: load it into a schedule that has just been attached"
            )
        for number in range(len(self._counts.begun), len(begun)):
            self._thaw(number)
        self._counts = counts
        if self.hold is not None and not self.hold.released:
            self.hold.refresh()

    def _described(self) -> list[dict[str, Any]]:
        """What a state has to agree in with the schedule that it is loaded into."""
        return [
            {"parts": paths, "at": repr(stage.at), "warmup": stage.warmup}
            for stage, paths in zip(self.schedule.stages, self._paths, strict=True)
        ]

    def _refuse_second(self) -> None:
        """Two schedules would both scale, and each put back what the other one laid in."""
        for hook in self._optimizer._optimizer_step_pre_hooks.values():
            other = getattr(hook, "__self__", None)
            if isinstance(other, Unfreezing) and (both := self._members.keys() & other._members.keys()):
                raise ModelError(
                    f"Unfreezing: there is a schedule for {name_some([self._members[key] for key in both])} already\n"
                    "  fix: detach() the other one, and thaw its hold"
                )

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
            self._thaw(len(counts.begun))
            counts.begun.append(_Begun(counts.steps, counts.epochs))
            counts.best, counts.bad = None, 0
            unfrozen += names_in(stage)
        return unfrozen

    def _thaw(self, number: int) -> None:
        assert self.hold is not None, "there is a stage"
        self.hold.thaw(*self._paths[number])
        # It joins the mode that the model is in; what other holds keep in eval mode stays there.
        for module in select(self._model, *self._paths[number]).tops.values():
            module.train(self._model.training)

    def _look(self, plateau: Plateau, metric: float | None) -> None:
        if metric is None or math.isnan(metric):
            raise ModelError(
                f"epoch_end({metric}): a plateau is waited for, and there is no metric to look at\n"
                "  fix: epoch_end(accuracy)"
            )
        metric = float(metric)  # a tensor of one element is saved as a number
        counts = self._counts
        sign = 1 if plateau.mode == "max" else -1
        if counts.best is None or sign * (metric - counts.best) > plateau.min_delta:
            counts.best, counts.bad = metric, 0
        else:
            counts.bad += 1

    # As in the step guard: a compiled step would trace these, and anew with each count.
    @_disable_dynamo
    def _before_step(self, *_: Any) -> None:
        self._put_back()
        if not self._stepped:
            # Once, before anything has moved, and not at the step that would thaw.
            self._refuse_inside_steps()
            self._stepped = True
        self._in_step = True
        for number in range(len(self._counts.begun)):
            factor = self._warmth(number)
            if factor < 1:
                # Loading the optimizer's state makes new dictionaries of its groups; their numbers stay.
                for group in (self._optimizer.param_groups[index] for index in self._groups[number]):
                    self._scaled.append((group, group["lr"]))
                    # A tensor, which compiled and capturable optimizers have, is replaced too, not written to.
                    group["lr"] = group["lr"] * factor

    def _refuse_inside_steps(self) -> None:
        done = len(self._counts.begun)
        for stage, paths in zip(self.schedule.stages[done:], self._paths[done:], strict=True):
            if isinstance(stage.at, Step):
                refuse_inside_steps(stage, self._model, select(self._model, *paths))

    @_disable_dynamo
    def _after_step(self, *_: Any) -> None:
        self._put_back()
        # A class that calls the step of the class it is made from calls the hooks for each of them: it is one step.
        if not self._in_step:
            return
        self._in_step = False
        # Fused optimizers are called for a step that the gradient scaler skips, and skip it by themselves.
        infinite: Tensor | int | None = getattr(self._optimizer, "found_inf", None)
        if infinite is not None and infinite != 0:
            return
        self._counts.steps += 1
        if isinstance(getattr(self._next(), "at", None), Step):
            self._advance()

    def _put_back(self, *_: Any) -> None:
        for group, rate in self._scaled:
            group["lr"] = rate
        self._scaled = []

    def _warmth(self, number: int) -> float:
        warmup = self.schedule.stages[number].warmup
        since = self._counts.steps - self._counts.begun[number].step
        return min(1.0, (since + 1) / warmup) if warmup else 1.0
