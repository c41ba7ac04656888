"""A freeze in the Trainer, which puts the whole model into train mode at every step."""

# ruff: noqa: ARG002 - the Trainer passes the same to every event

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from frostline.errors import CannotFreeze, CannotThaw, FrozenStateMoved, ModelError, RanksDiffer, name_some
from frostline.freezing import Handler, verify_ranks
from frostline.integrations.freeze_report import FreezeReport
from frostline.integrations.freeze_run import FreezeRun, Schedule, Verify
from frostline.integrations.transformers.evaluations import latest, metric_in
from frostline.norms import merge_statistics
from frostline.state import Selector

_LOGGER: Any = logging.get_logger(__name__)
_OWN_GROUPS = (
    "  in a Trainer: Trainer(..., optimizers=(torch.optim.AdamW(fl.param_groups(model, lr, layer_decay=1.0)), None))"
)


class Freeze(TrainerCallback):
    """Holds parts of the model over :meth:`transformers.Trainer.train`, and lets them begin to train on a schedule.

    Given in ``Trainer(callbacks=[...])`` it freezes when the Trainer is made, before there are optimizers and wrappers.
    ``model.train()``, which the Trainer calls at every step, does not reach what is held: statistics stay, dropout is
    off, and the optimizer cannot move it. What the schedule names is held when training begins, so that the Trainer's
    own optimizer has it from the start. At the end everything is verified, reported and released.

    Guaranteed unchanged: the held entries, to the bit; everything else trains as without the callback.

    A checkpoint of the Trainer has the state of the schedule and the digests of what is held. A run that is resumed
    goes on with that schedule, and is refused where the checkpoint's held values are not those that the run held.

    ``on_train_end`` is not called when training raises: the part stays held then. Within ``with freeze:``, or by
    :meth:`release`, it is released all the same.

    Args:
        *selectors: what is held to the end, as in :func:`frostline.freeze`; what the schedule names is left to it.
        schedule: what begins to train when, or a function that makes that of the model, such as
            ``lambda model: gradual(model, every=Epoch(1))``.
        level: as in :func:`frostline.freeze`, for ``selectors``.
        lock: likewise.
        handlers: likewise.
        monitor: the metric that a plateau looks at, with or without ``eval_``; by default the Trainer's
            ``metric_for_best_model``.
        verify: ``"epoch"`` verifies after each epoch and at the end, ``"end"`` at the end. With ``"never"`` what has
            moved is in the report only.
        merge_statistics: whether running statistics, of which each process has its own, are merged before the Trainer
            evaluates and saves.
        report: a path for the report as JSON; ``True`` for ``freeze.json`` in the Trainer's ``output_dir``.

    Attributes:
        report: what came of the last run, a :class:`~frostline.integrations.freeze_report.FreezeReport`; ``None``
            before its end.

    Raises:
        NothingSelected: when the Trainer is made, if a selector matches nothing in its model.
        CannotThaw: likewise, if there is a schedule and more than one process.
        CannotFreeze: it was added after the Trainer was made, and there are several processes.
        ModelError: when training begins, if a part that is to be warmed up has no group of its own; or a plateau is
            waited for, and no metric is named.
        FrozenStateMoved: held state moved, or that of a checkpoint is not what was held; its ``diff`` names each entry.
        RanksDiffer: processes do not hold the same; looked at when training begins, and whenever it is verified.

    Example:
        >>> freeze = Freeze("embeddings", "encoder.layer.0")
        >>> print(freeze.report)
        None
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
        report: str | os.PathLike[str] | bool = False,
    ) -> None:
        if verify not in get_args(Verify):
            raise CannotFreeze(
                f"Freeze(verify={verify!r}): no such choice\n  fix: one of {name_some(get_args(Verify))}"
            )
        self._run = FreezeRun(selectors, schedule=schedule, level=level, lock=lock, handlers=handlers)
        self._title = ", ".join(map(_shown, selectors)) or "by schedule"
        self._monitor, self._verify, self._merges, self._to = monitor, verify, merge_statistics, report
        # An epoch has ended whose evaluation is still to come.
        self._due = False
        # Whether the first step is to be looked at.
        self._look = False
        self.report: FreezeReport | None = None

    @property
    def held(self) -> list[str]:
        """The state entries that are held now."""
        return self._run.paths

    def release(self) -> None:
        """Let go of everything now, without verifying; for a training that was ended by an error."""
        self._run.abandon()

    def __enter__(self) -> Freeze:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hold what lasts, before the Trainer makes an optimizer of what requires gradients."""
        self._refuse_schedule(args)
        self._run.begin(kwargs["model"], ahead="lasting")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take in the optimizer, begin the schedule, and go on where a checkpoint stood."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        saved = self._saved(state)
        try:
            self._begin(args, model, optimizer, resumed=state.global_step > 0)
            if saved is not None:
                self._run.load_state_dict(saved)
            self._join(model, optimizer, resumed=saved is not None)
            if self._run.needs_metric and self._metric_name(args) is None:
                raise ModelError(
                    "Freeze: a plateau is waited for, and no metric was named\n"
                    "  fix: Freeze(..., monitor='eval_accuracy'), or metric_for_best_model= of the Trainer's arguments"
                )
            self._catch_up(args, state)
            self._prove(args)
        except BaseException:
            self._run.abandon()
            raise
        self._due, self._look = False, _reenters(args)
        self._keep(state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say once which blocks torch's older way of checkpointing has cut off behind what is held."""
        if self._look:
            self._look = False
            self._warn_of_silent_blocks(kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the state where a checkpoint after this step takes it from."""
        self._merge(args, control)
        if self._run.has_schedule:
            self._keep(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Verify, and let begin to train what comes after this epoch, or after the evaluation that follows it."""
        self._merge(args, control)
        if self._verify == "epoch":
            self._prove(args)
        if self._run.waits_for_metric and control.should_evaluate:
            self._due = True
        else:
            self._end_epoch(args, state, None)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Give the metric to a plateau that waits for it."""
        metric = metric_in(kwargs.get("metrics"), self._metric_name(args))
        if self._due and metric is not None:
            self._end_epoch(args, state, metric)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the epoch before this one, if the evaluation after it did not have the metric."""
        if self._due:
            self._end_epoch(args, state, None)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Verify, report and release."""
        if not self._run.running:
            return
        moved: FrozenStateMoved | RanksDiffer | None = None
        try:
            if self._verify != "never":
                self._prove(args)
        except (FrozenStateMoved, RanksDiffer) as error:
            moved = error
        self.report = self._run.end()
        if self._to and state.is_world_process_zero:
            self.report.write(Path(args.output_dir or "", "freeze.json") if self._to is True else self._to)
        if moved is not None:
            raise moved

    def _begin(self, args: TrainingArguments, model: nn.Module, optimizer: Optimizer, *, resumed: bool) -> None:
        run = self._run
        if run.running and run.model is model and not run.joined:
            return
        again = run.joined and run.model is model
        if again and not resumed:
            # A training that ended with an error, or with a batch that was too large: what it held is held still.
            run.verify()
        run.abandon()
        if not again:
            self._refuse_late(args)
        self._refuse_schedule(args)
        run.begin(model, ahead="lasting")
        if not again:
            self._tell_late(model, optimizer)

    def _prove(self, args: TrainingArguments) -> None:
        model = self._run.model
        if args.world_size > 1 and model is not None:
            # First, so that a process in which something has moved does not leave the others waiting.
            verify_ranks(model)
        self._run.verify()

    def _merge(self, args: TrainingArguments, control: TrainerControl) -> None:
        # The Trainer's own callback, which decides what follows, comes before those that were given.
        model = self._run.model
        follows = control.should_evaluate or control.should_save
        if self._merges and follows and args.world_size > 1 and model is not None:
            merge_statistics(model)

    def _refuse_schedule(self, args: TrainingArguments) -> None:
        if self._run.has_schedule and args.world_size > 1:
            raise CannotThaw(
                f"Freeze(schedule=...): the Trainer keeps one wrapper over all of {args.world_size} processes, which "
                "exchanges gradients of what required them when it was made, and says nothing of others\n"
                "  fix: Freeze(...) without a schedule, and a Trainer for each stage; or a loop of your own, with "
                "frostline.freezing.rewrap"
            )

    def _refuse_late(self, args: TrainingArguments) -> None:
        if args.world_size > 1:
            raise CannotFreeze(
                f"Freeze({self._title}): the model is wrapped for {args.world_size} processes by now, and the wrapper "
                "would wait for gradients of what is held\n"
                "  fix: Trainer(model=..., callbacks=[Freeze(...)]), not add_callback() nor model_init=; and a Trainer "
                "of its own for each train()"
            )

    def _tell_late(self, model: nn.Module, optimizer: Optimizer) -> None:
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        held = set(self._run.paths)
        inside = [path for path, parameter in model.named_parameters() if path in held and id(parameter) in owned]
        if inside:
            _LOGGER.warning(
                f"Freeze({self._title}): the optimizer was made before, and has {len(inside)} parameters that are held "
                f"now: {name_some(inside)}. They do not move: it gets no gradients of them."
            )

    def _join(self, model: nn.Module, optimizer: Optimizer, *, resumed: bool) -> None:
        try:
            self._run.join(model, [optimizer])
        except ModelError as error:
            if resumed:
                raise
            # It is the optimizer that does not fit: without groups of its own for a part that is to be warmed up.
            raise ModelError(f"{error}\n{_OWN_GROUPS}") from None

    def _catch_up(self, args: TrainingArguments, state: TrainerState) -> None:
        """Count an epoch whose last step was saved before its end, because the Trainer goes on behind that end."""
        while state.global_step > 0 and self._run.has_schedule and self._run.epochs < int(state.epoch + 1e-6):
            metric = latest(state.log_history, self._metric_name(args), self._run.epochs)
            if self._run.waits_for_metric and metric is None:
                _LOGGER.warning(
                    f"Freeze({self._title}): the checkpoint was made before the evaluation after epoch "
                    f"{self._run.epochs + 1}, which does not count for the plateau."
                )
                return
            self._run.epoch_end(metric)

    def _end_epoch(self, args: TrainingArguments, state: TrainerState, metric: float | None) -> None:
        self._due = False
        name = self._metric_name(args)
        if self._run.waits_for_metric:
            metric = latest(state.log_history, name, self._run.epochs) if metric is None else metric
            if metric is None:
                raise ModelError(
                    f"Freeze(monitor={name!r}): no such metric in epoch {self._run.epochs + 1}\n"
                    f"  found: {name_some(sorted({key for row in state.log_history for key in row}))}\n"
                    "  fix: eval_strategy='epoch', and monitor= with one of its metrics"
                )
        unfrozen = self._run.epoch_end(metric)
        if unfrozen:
            _LOGGER.info(f"Freeze: after epoch {self._run.epochs} begins to train: {name_some(unfrozen)}")
        self._keep(state)

    def _metric_name(self, args: TrainingArguments) -> str | None:
        return self._monitor or args.metric_for_best_model

    @property
    def _key(self) -> str:
        # The Trainer logs what it does not know in a checkpoint by this name.
        return f"frostline.Freeze({self._title}), which restores itself"

    def _keep(self, state: TrainerState) -> None:
        # Not by ExportableState: the Trainer restores one by making another callback of its class, out of JSON.
        _states(state)[self._key] = self._run.state_dict()

    def _saved(self, state: TrainerState) -> Mapping[str, Any] | None:
        if not state.global_step:
            return None
        saved = _states(state).get(self._key)
        if saved is None and self._run.has_schedule:
            _LOGGER.warning(
                f"Freeze({self._title}): the checkpoint has no state of it, so that its schedule counts from here."
            )
        return saved

    def _warn_of_silent_blocks(self, model: nn.Module) -> None:
        silent = [path for path, p in model.named_parameters() if p.requires_grad and p.grad is None]
        if silent:
            _LOGGER.warning(
                f"Freeze({self._title}): {len(silent)} parameters that should train got no gradients: "
                f"{name_some(silent)}. With use_reentrant=True a checkpointed block gets none where all before it is "
                "held. Pass use_reentrant=False, or call model.enable_input_require_grads()."
            )


def _reenters(args: TrainingArguments) -> bool:
    for name in ("activation_checkpointing", "gradient_checkpointing"):  # of transformers 5 and 4
        kwargs: Any = getattr(args, f"{name}_kwargs", None)
        if getattr(args, name, False) and isinstance(kwargs, dict) and kwargs.get("use_reentrant"):
            return True
    return False


def _states(state: TrainerState) -> dict[str, Any]:
    states: Any = state.stateful_callbacks
    return states


def _shown(selector: Selector) -> str:
    if isinstance(selector, str):
        return selector
    return str(getattr(selector, "pattern", type(selector).__name__))
