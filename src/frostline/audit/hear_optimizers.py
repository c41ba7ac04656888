"""Listens to optimizers and schedulers: how they are made, what they own, what they load, how rates change."""

from __future__ import annotations

import weakref
from typing import Any

from torch.optim import Optimizer

from frostline.audit.events import GroupAdded, OptimizerLoad, SchedulerLoad, SchedulerMade, SchedulerStep
from frostline.audit.optimizer_watch import OptimizerWatch
from frostline.audit.recorder import Recorder, free_name
from frostline.audit.seen import settings_of
from frostline.state import names


class OptimizerListener:
    """Hears constructors, groups, ``load_state_dict`` and ``scheduler.step``."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._constructing: Optimizer | None = None
        self._making_scheduler = 0
        self._schedulers: list[tuple[weakref.ref[Any], str]] = []
        self._scheduler_steps: dict[str, int] = {}

    def around_made(self, original: Any, args: Any, kwargs: Any) -> Any:
        """An optimizer is constructed."""
        recorder = self._recorder
        self._constructing = args[0]
        try:
            result = original(*args, **kwargs)
        finally:
            self._constructing = None
        with recorder.work():
            watch = recorder.optimizer(args[0])
            watch.made, watch.made_at = recorder.place(), recorder.count - 1
        return result

    def around_group_added(self, original: Any, args: Any, kwargs: Any) -> Any:
        """A group comes into an optimizer."""
        result = original(*args, **kwargs)
        recorder = self._recorder
        with recorder.work():
            optimizer: Optimizer = args[0]
            watch = recorder.optimizer(optimizer)
            recorder.owners_changed()
            group = optimizer.param_groups[-1]
            recorder.add_pending(
                GroupAdded,
                optimizer,
                {"paths": list(group["params"])},
                optimizer=watch.name,
                group=len(optimizer.param_groups) - 1,
                rate=float(group.get("lr", 0.0)),
                constructed=self._constructing is optimizer,
                trainable=sum(p.requires_grad for p in group["params"]),
            )
        return result

    def around_load(self, original: Any, args: Any, kwargs: Any) -> Any:
        """``load_state_dict`` of an optimizer."""
        optimizer: Optimizer = args[0]
        recorder = self._recorder
        before = tuple(settings_of(group) for group in optimizer.param_groups)
        old_names = [group.get("param_names") for group in optimizer.param_groups]
        given = args[1] if len(args) > 1 else kwargs.get("state_dict", {})
        error = ""
        try:
            return original(*args, **kwargs)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
            raise
        finally:
            with recorder.work():
                recorder.owners_changed()
                watch = recorder.optimizer(optimizer)
                recorder.discover_owners(watch.parameters)
                groups = [dict(group) for group in given.get("param_groups", [])]
                misfits = tuple(recorder.place_of(parameter) for parameter in watch.misfitting())
                recorder.add(
                    OptimizerLoad,
                    optimizer=watch.name,
                    before=before,
                    after=tuple(settings_of(group) for group in optimizer.param_groups),
                    misfits=misfits,
                    renamed=any(
                        bool(a) and bool(b) and _plain(a) != _plain(b)
                        for a, b in zip(old_names, [g.get("param_names") for g in groups], strict=False)
                    ),
                    given=tuple(len(group.get("params", ())) for group in groups),
                    error=error,
                )

    def around_scheduler_made(self, original: Any, args: Any, kwargs: Any) -> Any:
        """A scheduler is constructed; the step that its constructor does is not counted."""
        self._making_scheduler += 1
        try:
            result = original(*args, **kwargs)
        finally:
            self._making_scheduler -= 1
        recorder = self._recorder
        with recorder.work():
            optimizer = getattr(args[0], "optimizer", None)
            # A scheduler that others are chained in makes them first, or gets them; it alone is the user's.
            if isinstance(optimizer, Optimizer) and not self._making_scheduler:
                watch = recorder.optimizer(optimizer)
                recorder.add(
                    SchedulerMade,
                    scheduler=self._name(args[0], watch),
                    optimizer=watch.name,
                    groups=len(optimizer.param_groups),
                    last_epoch=_last_epoch(kwargs),
                )
        return result

    def around_scheduler_step(self, original: Any, args: Any, kwargs: Any) -> Any:
        """A scheduler steps."""
        recorder = self._recorder
        optimizer = getattr(args[0], "optimizer", None)
        if self._making_scheduler or not isinstance(optimizer, Optimizer):
            return original(*args, **kwargs)
        before = tuple(float(group.get("lr", 0.0)) for group in optimizer.param_groups)
        result = original(*args, **kwargs)
        with recorder.work():
            watch = recorder.optimizer(optimizer)
            name = self._name(args[0], watch)
            self._scheduler_steps[name] = own = self._scheduler_steps.get(name, 0) + 1
            recorder.add(
                SchedulerStep,
                scheduler=name,
                optimizer=watch.name,
                groups=len(getattr(args[0], "base_lrs", optimizer.param_groups)),
                before=before,
                after=tuple(float(group.get("lr", 0.0)) for group in optimizer.param_groups),
                steps_done=watch.steps,
                own=own,
            )
        return result

    def around_scheduler_load(self, original: Any, args: Any, kwargs: Any) -> Any:
        """``load_state_dict`` of a scheduler or a gradient scaler."""
        result = original(*args, **kwargs)
        recorder = self._recorder
        with recorder.work():
            optimizer = getattr(args[0], "optimizer", None)
            of = type(args[0]).__name__
            if isinstance(optimizer, Optimizer):
                of = self._name(args[0], recorder.optimizer(optimizer))
            recorder.add(SchedulerLoad, of=of)
        return result

    def _name(self, scheduler: Any, optimizer: OptimizerWatch) -> str:
        for ref, name in self._schedulers:
            if ref() is scheduler:
                return name
        name = free_name(type(scheduler).__name__, {name for _, name in self._schedulers})
        self._schedulers.append((weakref.ref(scheduler), name))
        optimizer.schedulers.append(name)
        return name


def _plain(found: Any) -> list[str]:
    """Names of parameters without the tokens of wrappers: a checkpoint made under one is no other checkpoint."""
    return [names.canonical(str(name)).removeprefix("module.") for name in found]


def _last_epoch(kwargs: Any) -> int:
    given = kwargs.get("last_epoch", -1)
    return given if isinstance(given, int) else -1
