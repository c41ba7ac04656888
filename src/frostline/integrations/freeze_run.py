"""One freeze over one training run, whoever runs the loop: begun, guarded, scheduled, verified and told of.

A callback of a framework calls the methods at its own points of time; what they mean is the same everywhere.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from torch import nn
from torch.optim import Optimizer

import frostline as fl
from frostline.errors import CannotFreeze, HeldAnew, ModelError, NothingSelected, name_some
from frostline.freezing import Handler, Hold
from frostline.integrations.freeze_report import FreezeReport, Unfrozen
from frostline.integrations.held_marks import check_marks, held_marks
from frostline.optim import Plateau, Unfreeze, Unfreezing
from frostline.state import Selector, Snapshot, exactly, held_rows, select

SCHEMA_VERSION = 1
Schedule: TypeAlias = "Unfreeze | Callable[[nn.Module], Unfreeze]"
# What a framework does to a held part when it converts a model: other dtypes, or layers that replace others.
_REBUILT = ("retyped", "unlocked")
Ahead: TypeAlias = Literal["everything", "lasting"]
# When a callback proves that nothing has moved: after each epoch and at the end, at the end, or never.
Verify: TypeAlias = Literal["epoch", "end", "never"]


class FreezeRun:
    """What is held over a run, and when which part of it begins to train.

    The order is :meth:`begin`, before the framework makes optimizers and wrappers; :meth:`join`, when it has;
    :meth:`epoch_end` and :meth:`verify` as often as wanted; :meth:`end`. A run may begin again after its end.

    Args:
        selectors: what is held to the end; what the schedule names is left to it.
        schedule: what begins to train when; or a function that makes the schedule of a model, as
            :func:`frostline.optim.gradual` does.
        level: as in :func:`frostline.freeze`, for ``selectors``.
        lock: likewise.
        handlers: likewise.

    Raises:
        CannotFreeze: neither selectors nor a schedule were given.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> run = FreezeRun(("0",))
        >>> run.begin(model)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> run.join(model, [optimizer])
        >>> model.train()(torch.randn(4, 2)).sum().backward()
        >>> optimizer.step()
        >>> print(run.end())
        12 of 12 held state entries are equal to the bit
    """

    def __init__(
        self,
        selectors: Sequence[Selector] = (),
        *,
        schedule: Schedule | None = None,
        level: Any = "state",
        lock: Any = "soft",
        handlers: Mapping[type[nn.Module], Handler] | None = None,
    ) -> None:
        if not selectors and schedule is None:
            raise CannotFreeze(
                "Freeze(): nothing was named that should be held\n"
                '  fix: Freeze("backbone") for a part, Freeze(schedule=...) for one that begins to train later'
            )
        self._selectors = tuple(selectors)
        self._schedule = schedule
        self._level, self._lock, self._handlers = level, lock, handlers
        self._forget()

    def _forget(self) -> None:
        self._model: Callable[[], nn.Module | None] = _nothing
        # What is held to the end; what waits for the schedule to be made; the schedule at work.
        self._base: Hold | None = None
        self._waiting: Hold | None = None
        self._unfreezing: Unfreezing | None = None
        self._made: Unfreeze | None = None
        self._parameters: dict[str, weakref.ref[nn.Parameter]] = {}
        self._pending: Mapping[str, Any] | None = None
        self._anew: list[str] = []
        self._verified = 0
        self._epochs = 0
        self._joined = False
        self._marked: list[tuple[Snapshot, dict[str, str]]] = []

    @property
    def running(self) -> bool:
        """Whether it has begun and not ended."""
        return self._model is not _nothing

    @property
    def model(self) -> nn.Module | None:
        """The model that it has begun with, if that still exists; it is not kept alive by the run."""
        return self._model()

    @property
    def joined(self) -> bool:
        """Whether the optimizers are known and the schedule has begun."""
        return self._joined

    @property
    def holds(self) -> list[Hold]:
        """The holds in force."""
        scheduled = None if self._unfreezing is None else self._unfreezing.hold
        return [hold for hold in (self._base, self._waiting, scheduled) if hold is not None and not hold.released]

    @property
    def paths(self) -> list[str]:
        """The state entries that are held now."""
        return list(dict.fromkeys(path for hold in self.holds for path in hold.paths))

    @property
    def has_schedule(self) -> bool:
        """Whether anything begins to train later."""
        return self._schedule is not None

    @property
    def schedule(self) -> Unfreeze | None:
        """The schedule, made for the model where it was given as a function; ``None`` without one or before `begin`."""
        return self._made

    @property
    def epochs(self) -> int:
        """How many epochs were counted."""
        return self._epochs

    @property
    def needs_metric(self) -> bool:
        """Whether something of the schedule comes by a metric, sooner or later."""
        return self._made is not None and any(isinstance(stage.at, Plateau) for stage in self._made.stages)

    @property
    def waits_for_metric(self) -> bool:
        """Whether what comes next comes by a metric, which :meth:`epoch_end` has to be given then."""
        stages = () if self._made is None else self._made.stages
        done = len(self.unfrozen)
        return done < len(stages) and isinstance(stages[done].at, Plateau)

    def begin(self, model: nn.Module, *, ahead: Ahead = "everything") -> None:
        """Hold everything: also what the schedule will let train, because wrappers and optimizers are made after this.

        Either all of it is held, or, on an error, nothing.

        Args:
            model: the model, without the framework's wrappers.
            ahead: ``"lasting"`` leaves what the schedule has to :meth:`join`, for a framework that makes its optimizer
                of what requires gradients, and whose wrappers do not mind.

        Raises:
            NothingSelected: a selector or a stage names what the model does not have; nearest paths are named.
            CannotFreeze: as for :func:`frostline.freeze`; or it has begun before.
        """
        if self.running:
            raise CannotFreeze("Freeze: this run has begun already\n  fix: a Freeze of its own for each model")
        self._forget()
        schedule = self._schedule
        self._made = schedule(model) if schedule is not None and not isinstance(schedule, Unfreeze) else schedule
        staged = [part for stage in self._made.stages for part in stage.parts] if self._made is not None else []
        later = _exact(model, staged)
        try:
            if self._selectors:
                self._base = self._hold_rest(model, later)
            if later and ahead == "everything":
                self._waiting = fl.freeze(model, *later)
        except BaseException:
            self._release()
            self._forget()
            raise
        self._model = weakref.ref(model)
        self._remember(model)

    def _hold_rest(self, model: nn.Module, later: list[str]) -> Hold | None:
        # Asked without the schedule's parts too, so that a selector which matches nothing is an error.
        select(model, *self._selectors)
        try:
            rest = (*self._selectors, *(f"!{path}" for path in later))
            return fl.freeze(model, *rest, level=self._level, lock=self._lock, handlers=self._handlers)
        except NothingSelected:
            return None  # the schedule has all of it

    def _remember(self, model: nn.Module) -> None:
        held = set(self.paths)
        self._parameters = {p: weakref.ref(t) for p, t in model.named_parameters() if p in held}

    def join(self, model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        """Take in what the framework has made since :meth:`begin`: optimizers, parameters and layers that it made anew.

        What a strategy has re-created (sharding, tensor parallelism, another precision, synchronized batch norms) is
        held again, whatever its flag came to be; that is said. The optimizers drop gradients of what is held before
        each step. The schedule begins.

        Args:
            model: the model, without the framework's wrappers.
            optimizers: those that train it; exactly one where there is a schedule.

        Where a state was loaded before this, the model's weights were too: then held state is compared with what that
        state says of it, not with what it was when the run began.

        Raises:
            FrozenStateMoved: held state is not what it was.
            ModelError: the optimizer lacks what the schedule will let train; or a state that was loaded is of another
                schedule.

        Warns:
            HeldAnew: parameters were re-created, and are held again.
        """
        self._take_in_anew(model)
        if self._pending is None:
            self.verify()
        optimizers = list(optimizers)
        for hold in self.holds:
            hold.guard(*optimizers)
        if self._made is not None and self._made.stages:
            self._begin_schedule(self._made, model, optimizers)
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._go_on(pending)
        self._joined = True

    def _begin_schedule(self, schedule: Unfreeze, model: nn.Module, optimizers: list[Optimizer]) -> None:
        self._unfreezing = Unfreezing(schedule, model, optimizers if len(optimizers) != 1 else optimizers[0])  # type: ignore[arg-type]
        if self._waiting is not None:
            # The schedule holds the same parts by itself by now.
            self._waiting.thaw()
            self._waiting = None

    def _take_in_anew(self, model: nn.Module) -> None:
        now = dict(model.named_parameters())
        anew = [p for p, old in self._parameters.items() if p in now and now[p] is not old()]
        rebuilt = [row for hold in self.holds for row in hold.diff().moved if row.change in _REBUILT]
        anew += [row.path for row in rebuilt if row.path not in anew]
        if not anew:
            return
        thawed = [path for path in anew if path in now and now[path].requires_grad]
        thawed += [row.path for row in rebuilt if row.change == "unlocked"]
        rows = [row for hold in self.holds for row in hold.diff().moved if row.kind == "parameter"]
        others = sorted({row.path for row in rows} & set(anew))
        for hold in self.holds:
            hold.refresh()
        self._model = weakref.ref(model)
        self._remember(model)
        self._anew += anew
        lost = f"; {len(thawed)} of them would have trained" if thawed else ""
        values = (
            f"  {len(others)} of them hold other values than before, or a shard of them: {name_some(others)}"
            if others
            else "  their values are equal to the bit"
        )
        what = "state entries" if rebuilt else "parameters"
        warnings.warn(
            f"{len(anew)} held {what} were re-created after they were frozen, and are held again{lost}: "
            f"{name_some(thawed or anew)}\n{values}",
            HeldAnew,
            stacklevel=4,
        )

    def renew(self) -> None:
        """Hold what is there now: a checkpoint was loaded into the model since :meth:`begin`."""
        for hold in self.holds:
            hold.refresh()

    def epoch_end(self, metric: float | None = None) -> list[str]:
        """Count an epoch, and let begin to train what comes after it.

        Args:
            metric: what a plateau looks at.

        Returns:
            What was unfrozen, as the schedule names it.

        Raises:
            CannotThaw: a wrapper would not exchange its gradients; see :func:`frostline.freezing.rewrap`.
            ModelError: a plateau is waited for, and there is no metric.
        """
        unfrozen = [] if self._unfreezing is None else self._unfreezing.epoch_end(metric)
        self._epochs += 1
        return unfrozen

    @property
    def unfrozen(self) -> list[Unfrozen]:
        """What has begun to train: also by a count of steps, which the optimizer's own hooks see."""
        if self._unfreezing is None:
            return []
        begun = self._unfreezing.state_dict()["begun"]
        stages = self._unfreezing.schedule.stages[: len(begun)]
        return [
            Unfrozen(each["epoch"], each["step"], tuple(p if isinstance(p, str) else repr(p) for p in stage.parts))
            for each, stage in zip(begun, stages, strict=True)
        ]

    def verify(self, what: Any = "everything") -> None:
        """Prove that what is held has not moved.

        Raises:
            FrozenStateMoved: it has; its ``diff`` names each entry.
        """
        for hold in self.holds:
            hold.verify(what)
        self._verified += 1

    def report(self) -> FreezeReport:
        """What has come of it so far. What has moved is in the report, and raises nothing."""
        model = self._model()
        rows: dict[str, dict[str, Any]] = {}
        moved: list[str] = []
        for hold in self.holds if model is not None else []:
            rows |= held_rows(hold.reference, model)  # type: ignore[arg-type]
            moved += [path for path in hold.diff().paths if path not in moved]
        return FreezeReport(rows, tuple(moved), tuple(self.unfrozen), tuple(self._anew), self._verified)

    def end(self) -> FreezeReport:
        """Report, and release: modes and ``requires_grad`` become what they were before the run."""
        try:
            return self.report()
        finally:
            self._release()
            self._forget()

    def abandon(self) -> None:
        """Release without looking: the run has failed, and its own error is the one to be seen."""
        self._release()
        self._forget()

    def _release(self) -> None:
        if self._unfreezing is not None:
            self._unfreezing.detach()
        for hold in self.holds:
            # The run is over: nobody trains what becomes free, whatever wrapper there still is.
            hold.close()

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands and what it holds, as plain values that JSON can hold."""
        return {
            "schema_version": SCHEMA_VERSION,
            "epochs": self._epochs,
            "held": self._marks(),
            "schedule": None if self._unfreezing is None else self._unfreezing.state_dict(),
        }

    def _marks(self) -> dict[str, str]:
        # A framework may ask at every step; a hold that was changed has another reference.
        references = [hold.reference for hold in self.holds]
        known = [reference for reference, _ in self._marked]
        if len(known) != len(references) or any(a is not b for a, b in zip(known, references, strict=True)):
            self._marked = [(hold.reference, held_marks([hold])) for hold in self.holds]
        return {path: mark for _, marks in self._marked for path, mark in marks.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood, after the model's weights were loaded; before :meth:`join` it is kept for it.

        Raises:
            ModelError: the state is of another schedule or version.
            FrozenStateMoved: what is held now is not what the state says was held.
        """
        if state.get("schema_version") != SCHEMA_VERSION:
            raise ModelError(
                f"Freeze: the state is of version {state.get('schema_version')!r}, this one reads {SCHEMA_VERSION}\n"
                "  fix: the version of Frostline that wrote it"
            )
        if self._joined:
            self._go_on(state)
        else:
            self._pending = state

    def _go_on(self, state: Mapping[str, Any]) -> None:
        if self._unfreezing is not None and state["schedule"] is not None:
            self._unfreezing.load_state_dict(state["schedule"])
        elif state["schedule"] is not None:
            raise ModelError(
                "Freeze: the state is of a run with a schedule, and this one has none\n"
                "  fix: the schedule that the run began with"
            )
        for hold in self.holds:
            hold.refresh()
        check_marks(state["held"], self.holds)
        self._epochs = int(state["epochs"])
        self._verified += 1


def _exact(model: nn.Module, parts: Sequence[Selector]) -> list[str]:
    """Selectors for exactly these parts."""
    if not parts:
        return []
    found = select(model, *parts)
    return [exactly(path) for path in [*found.tops, *found.alone]]


def _nothing() -> None:
    """What is asked for the model of a run that has none."""
