"""The callback that holds a part of a LightningModule over a fit, and lets it train by a schedule."""

# ruff: noqa: ARG002 - hooks have the arguments that Lightning calls them with
from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from torch import nn

from frostline.errors import CannotFreeze, FrozenStateMoved, ModelError, NothingSelected, RanksDiffer, name_some
from frostline.freezing import Handler, verify_ranks
from frostline.integrations.freeze_report import FreezeReport
from frostline.integrations.freeze_run import FreezeRun, Schedule, Verify
from frostline.integrations.lightning.averaging import Averaging, callbacks_of
from frostline.integrations.lightning.packages import callback_class, kinds
from frostline.integrations.lightning.report_file import said, target_of
from frostline.integrations.lightning.strategies import change, in_all, refuse_schedule
from frostline.norms import merge_statistics
from frostline.optim import Step
from frostline.state import Selector

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    Callback = callback_class()


class Freeze(Callback):
    """Holds a part of the module from the beginning of ``Trainer.fit`` to its end, to the bit.

    It takes the place of ``BackboneFinetuning``: parameters, running statistics and modes of what is held stay, whoever
    calls ``train()``; no parameter group is ever added, so that schedulers and optimizer states fit before and after;
    under DDP the module is wrapped anew when a stage comes, so that all gradients are averaged.

    It holds before optimizers and wrappers are made: ``configure_optimizers`` has to pass what the schedule lets train
    later, though it requires no gradient yet (``self.parameters()``, not a filter of it). Epochs are the trainer's: a
    stage ``at=Epoch(3)`` comes before the epoch that Lightning counts as 3, also in a fit that was resumed. Where
    statistics of several processes differ, they are merged before validation and before a checkpoint is written;
    ``DDPStrategy(broadcast_buffers=False)`` leaves each process its own until then.

    Modes and ``requires_grad`` are what they were before when the fit has ended, by an exception too. ``validate``,
    ``test`` and ``predict`` are left alone. Lightning warns of modules in eval mode at the start: those are held.

    Args:
        *selectors: what is held to the end: as for :func:`frostline.freeze`, in paths of the LightningModule.
        schedule: what begins to train when; or a function that makes the schedule of a module.
        level: as for :func:`frostline.freeze`.
        lock: likewise.
        handlers: likewise.
        monitor: the metric that a ``Plateau`` looks at, by its name in ``trainer.callback_metrics``.
        verify: when held state is compared with what it was: at the end of each epoch, of the fit, or never.
        merge_statistics: whether running statistics are merged over the processes.
        report: where the report is written as JSON; a relative path is below the trainer's log folder.

    Attributes:
        report: the :class:`~frostline.integrations.freeze_report.FreezeReport` of the last fit, once it has ended.

    Raises:
        CannotFreeze: nothing was named.
        ModelError: no such moment to verify at.
        NothingSelected: when a fit begins, the module does not have what is selected.
        CannotThaw: likewise, the strategy cannot carry out the schedule.
        FrozenStateMoved: during the fit, held state is not what it was; each entry is named.
        RanksDiffer: processes do not hold the same.

    Example:
        >>> from frostline.optim import Epoch, Stage, Unfreeze
        >>> callback = Freeze("backbone.stem", schedule=Unfreeze((Stage(("backbone.layer4",), Epoch(2)),)))
        >>> callback.state_key
        'Freeze[backbone.stem]'
    """

    def __init__(
        self,
        *selectors: Selector,
        schedule: Schedule | None = None,
        level: Any = "state",
        lock: Any = "soft",
        handlers: Mapping[type[nn.Module], Handler] | None = None,
        monitor: str | None = None,
        verify: Verify = "epoch",
        merge_statistics: bool = True,
        report: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if verify not in get_args(Verify):
            raise ModelError(f"Freeze(verify={verify!r}): expected one of {', '.join(get_args(Verify))}")
        self.report: FreezeReport | None = None
        self._run = FreezeRun(selectors, schedule=schedule, level=level, lock=lock, handlers=handlers)
        self._key = f"{type(self).__qualname__}[{', '.join(map(_named, selectors))}]"
        self._monitor, self._when, self._merges, self._file = monitor, verify, merge_statistics, report
        self._averaging = Averaging()
        self._forget()

    def _forget(self) -> None:
        self._target: Path | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._was_loaded = False
        self._metric: float | None = None
        # The trainer's epochs that the schedule does not count: those before a plateau could be looked at.
        self._before = 0
        self._begun = 0
        self._has_steps = False
        self._merged_at = -1

    @property
    def state_key(self) -> str:
        """Under what a checkpoint keeps the state: one for each selection, so that a trainer may have several."""
        return self._key

    # -- the beginning

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hold, before optimizers and wrappers are made."""
        if stage != "fit":
            return
        if self._run.running:  # a fit that ended without a word
            self._run.abandon()
        self._forget()
        try:
            self._run.begin(pl_module)
        except NothingSelected as error:
            raise NothingSelected(f"{error}{_made_later(pl_module)}") from None
        try:
            self._check(trainer, pl_module)
        except BaseException:
            self._run.abandon()
            raise
        self._averaging.find(trainer, self)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        schedule = self._run.schedule
        if schedule is not None and schedule.stages:
            refuse_schedule(trainer, schedule)
            self._has_steps = any(isinstance(stage.at, Step) for stage in schedule.stages)
            if self._monitor is None and self._run.needs_metric:
                raise ModelError(
                    "Freeze(schedule=...): it waits for a plateau, and no metric was named\n"
                    '  fix: monitor="val_loss", or what else the module logs'
                )
        if trainer.world_size > 1:
            # Before DDP lays what the first process has over what the others have.
            verify_ranks(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Guard the optimizers, begin the schedule, and go on where a checkpoint stood."""
        if not self._run.running:
            return
        self._target = target_of(trainer, self._file)
        state = self._loaded
        if state is not None:
            self._run.load_state_dict(state["run"])
            self._metric, self._before = state["metric"], int(state["before"])
        elif self._was_loaded:
            self._run.renew()
        optimizers = trainer.optimizers
        if self._run.has_schedule:
            change(trainer, lambda: self._run.join(pl_module, optimizers))
        else:
            in_all(trainer, lambda: self._run.join(pl_module, optimizers))
        if state is None and self._run.needs_metric:
            self._before = trainer.current_epoch
        self._begun = len(self._run.unfrozen)
        self._averaging.keep(self._run, pl_module)

    # -- during the fit

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let begin to train what comes after the epochs that are over."""
        while self._run.running and self._run.epochs < trainer.current_epoch - self._before:
            self._look_at(trainer)
            # Asked in the first process, so that all of them go the same way.
            metric = trainer.strategy.broadcast(self._metric)
            if self._run.waits_for_metric and metric is None:
                raise ModelError(
                    f"Freeze(monitor={self._monitor!r}): there is no such metric\n"
                    f"  found: {name_some(sorted(trainer.callback_metrics)) or 'none'}\n"
                    f"  fix: self.log({self._monitor!r}, ...) in the module, with sync_dist=True on several processes"
                )
            if self._run.has_schedule:
                change(trainer, lambda metric=metric: self._run.epoch_end(metric))
            else:
                self._run.epoch_end(metric)
        self._say_what_begins(trainer)

    def _look_at(self, trainer: Trainer) -> None:
        if self._monitor is not None and (value := trainer.callback_metrics.get(self._monitor)) is not None:
            self._metric = float(value)

    def _say_what_begins(self, trainer: Trainer) -> None:
        unfrozen = self._run.unfrozen if self._run.has_schedule else []
        for each in unfrozen[self._begun :]:
            said(f"Freeze: in epoch {trainer.current_epoch} begins to train: {name_some(each.parts)}")
        self._begun = len(unfrozen)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Undo what an averaging callback did when the epoch began."""
        if batch_idx == 0 and self._run.running:
            self._averaging.put_back(self._run, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say what the schedule has unfrozen by its count of steps."""
        if self._has_steps and self._run.running:
            self._say_what_begins(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give every process the statistics of the data of all of them."""
        if not trainer.sanity_checking:
            self._merge(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Undo what an averaging callback did when the validation began."""
        if batch_idx == 0 and dataloader_idx == 0 and self._run.running and not trainer.sanity_checking:
            self._averaging.put_back(self._run, pl_module)

    def _merge(self, trainer: Trainer, pl_module: LightningModule) -> None:
        several = trainer.world_size > 1 and isinstance(trainer.strategy, kinds("strategies", "DDPStrategy"))
        if self._merges and several and self._run.running and self._merged_at != trainer.global_step:
            merge_statistics(pl_module)
            self._merged_at = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prove that what is held has not moved in this epoch."""
        if self._when == "epoch" and self._run.running:
            in_all(trainer, self._run.verify)

    # -- the end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Verify and report, while the module is as it was trained: before the strategy takes it apart."""
        if not self._run.running:
            return
        self._averaging.put_back(self._run, pl_module)
        try:
            if self._when != "never":
                in_all(trainer, self._run.verify)
        finally:
            self._conclude(trainer)

    def _conclude(self, trainer: Trainer) -> None:
        self.report = self._run.report()
        if self._target is not None and trainer.is_global_zero:
            self.report.write(self._target)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release; where the exception is ours, with a report of what moved."""
        if not self._run.running:
            return
        try:
            if isinstance(exception, (FrozenStateMoved, RanksDiffer)):
                self._conclude(trainer)
        finally:
            self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release: modes and ``requires_grad`` are what they were before the fit."""
        if self._run.running:
            self._release()

    def _release(self) -> None:
        self._run.abandon()
        self._averaging.forget()
        self._forget()

    # -- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands and what is held; empty outside of a fit."""
        if not self._run.running:
            return {}
        return {"run": self._run.state_dict(), "metric": self._metric, "before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the optimizers are there; a model that is only evaluated does not need it."""
        if self._run.running:
            self._loaded = state_dict

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Merge statistics over the processes, and put what is held into the checkpoint as it is.

        The tensors in a checkpoint are those of the module until they are written.
        """
        if not self._run.running:
            return
        if not _is_interrupted(trainer):
            self._merge(trainer, pl_module)
        self._averaging.put_into(self._run, checkpoint["state_dict"])
        self._look_at(trainer)
        if self.state_key in checkpoint.get("callbacks", {}):
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note that the module's weights come from a checkpoint.

        Raises:
            CannotFreeze: the checkpoint has the state of another selection, which would be passed over.
        """
        if not self._run.running:
            return
        self._was_loaded = True
        known = checkpoint.get("callbacks", {})
        others = [key for key in known if str(key).startswith(f"{type(self).__qualname__}[")]
        callbacks: list[Any] = callbacks_of(trainer)
        own = {callback.state_key for callback in callbacks}
        if self.state_key not in known and (lost := [key for key in others if key not in own]):
            raise CannotFreeze(
                f"{self.state_key}: the checkpoint is of a run with {name_some(lost)}, whose schedule would be lost\n"
                "  fix: the selectors that the run began with"
            )


def _is_interrupted(trainer: Trainer) -> bool:
    # In one process alone, perhaps: there is nobody to exchange statistics with.
    return str(trainer.state.status) == "interrupted"


def _named(selector: Selector) -> str:
    """A selector in a word that is the same in another process."""
    if isinstance(selector, str):
        return selector
    if isinstance(selector, re.Pattern):
        return f"re:{selector.pattern}"
    if isinstance(selector, type):
        return selector.__qualname__
    return getattr(selector, "__qualname__", type(selector).__qualname__)


def _made_later(module: LightningModule) -> str:
    base = kinds("core", "LightningModule")
    late = [name for name in ("setup", "configure_model") if _is_own(module, name, base)]
    if not late:
        return ""
    return (
        f"\n  note: what {type(module).__name__}.{late[0]} makes is not there yet when callbacks begin\n"
        "  fix: make in __init__ what is to be held"
    )


def _is_own(module: LightningModule, name: str, base: tuple[type[Any], ...]) -> bool:
    defined = next(kind for kind in type(module).__mro__ if name in kind.__dict__)
    # The hooks are on classes that LightningModule is made from.
    return not any(issubclass(each, defined) for each in base)
