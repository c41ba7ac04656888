"""One freeze over one training run, whoever runs the loop: begun, guarded, scheduled, verified and told of.

A callback of a framework calls the methods at its own points of time; what they mean is the same everywhere.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import nn
from torch.optim import Optimizer

import frostline as fl
from frostline.errors import CannotFreeze, HeldAnew, NothingSelected, name_some
from frostline.freezing import Handler, Hold
from frostline.integrations.freeze_report import FreezeReport, Unfrozen
from frostline.optim import Unfreeze, Unfreezing
from frostline.state import Selector, exactly, held_rows, select

Schedule: TypeAlias = "Unfreeze | Callable[[nn.Module], Unfreeze]"


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
        self._unfrozen: list[Unfrozen] = []
        self._anew: list[str] = []
        self._verified = 0
        self._epochs = 0

    @property
    def running(self) -> bool:
        """Whether it has begun and not ended."""
        return self._base is not None or self._waiting is not None or self._unfreezing is not None

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

    def begin(self, model: nn.Module) -> None:
        """Hold everything: also what the schedule will let train, because wrappers and optimizers are made after this.

        Either all of it is held, or, on an error, nothing.

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
            if later:
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
        """Take in what the framework has made since :meth:`begin`: optimizers, and parameters that it made anew.

        A parameter that a strategy has re-created (sharding, tensor parallelism) is held again, whatever its flag came
        to be; that is said. The optimizers drop gradients of what is held before each step. The schedule begins.

        Args:
            model: the model, without the framework's wrappers.
            optimizers: those that train it; exactly one where there is a schedule.

        Raises:
            FrozenStateMoved: held state is not what it was when the run began.
            ModelError: the optimizer lacks what the schedule will let train.

        Warns:
            HeldAnew: parameters were re-created, and are held again.
        """
        self._take_in_anew(model)
        self.verify()
        optimizers = list(optimizers)
        for hold in self.holds:
            hold.guard(*optimizers)
        if self._made is None or not self._made.stages:
            return
        self._unfreezing = Unfreezing(self._made, model, optimizers if len(optimizers) != 1 else optimizers[0])  # type: ignore[arg-type]
        if self._waiting is not None:
            # The schedule holds the same parts by itself by now.
            self._waiting.thaw()
            self._waiting = None
        if self._pending is not None:
            self._unfreezing.load_state_dict(self._pending)
            self._pending = None

    def _take_in_anew(self, model: nn.Module) -> None:
        now = dict(model.named_parameters())
        anew = [p for p, old in self._parameters.items() if p in now and now[p] is not old()]
        if not anew:
            return
        thawed = [path for path in anew if now[path].requires_grad]
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
        warnings.warn(
            f"{len(anew)} held parameters were re-created after they were frozen, and are held again{lost}: "
            f"{name_some(thawed or anew)}\n{values}",
            HeldAnew,
            stacklevel=4,
        )

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
        if unfrozen:
            self._unfrozen.append(Unfrozen(self._epochs, tuple(unfrozen)))
        return unfrozen

    def verify(self, what: Any = "everything") -> None:
        """Prove that what is held has not moved.

        Raises:
            FrozenStateMoved: it has; its ``diff`` names each entry.
        """
        for hold in self.holds:
            hold.verify(what)
        self._verified += 1

    def end(self) -> FreezeReport:
        """Verify, report, and release: modes and ``requires_grad`` become what they were before the run.

        What has moved is in the report, and raises nothing.
        """
        model = self._model()
        rows: dict[str, dict[str, Any]] = {}
        moved: list[str] = []
        try:
            for hold in self.holds if model is not None else []:
                rows |= held_rows(hold.reference, model)  # type: ignore[arg-type]
                moved += [path for path in hold.diff().paths if path not in moved]
        finally:
            report = FreezeReport(rows, tuple(moved), tuple(self._unfrozen), tuple(self._anew), self._verified)
            self._release()
            self._forget()
        return report

    def abandon(self) -> None:
        """Release without looking: the run has failed, and its own error is the one to be seen."""
        self._release()
        self._forget()

    def _release(self) -> None:
        if self._unfreezing is not None:
            self._unfreezing.detach()
        for hold in self.holds:
            hold.thaw()

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands, as plain values that JSON can hold."""
        return {
            "epochs": self._epochs,
            "unfrozen": [{"epoch": each.epoch, "parts": list(each.parts)} for each in self._unfrozen],
            "schedule": None if self._unfreezing is None else self._unfreezing.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood; before :meth:`join` it is kept until then.

        Raises:
            ModelError: the state is of another schedule.
        """
        self._epochs = int(state["epochs"])
        self._unfrozen = [Unfrozen(each["epoch"], tuple(each["parts"])) for each in state["unfrozen"]]
        if state["schedule"] is None:
            return
        if self._unfreezing is None:
            self._pending = state["schedule"]
        else:
            self._unfreezing.load_state_dict(state["schedule"])


def _exact(model: nn.Module, parts: Sequence[Selector]) -> list[str]:
    """Selectors for exactly these parts."""
    if not parts:
        return []
    found = select(model, *parts)
    return [exactly(path) for path in [*found.tops, *found.alone]]


def _nothing() -> None:
    """What is asked for the model of a run that has none."""
