"""The doctor over the first steps of the Trainer."""

# ruff: noqa: ARG002 - the Trainer passes the same to every event

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from frostline.audit import Contract
from frostline.doctor import Examination
from frostline.integrations.doctor_run import STEPS, DoctorRun, FailOn

_LOGGER: Any = logging.get_logger(__name__)


class Doctor(TrainerCallback):
    """Watches the first optimizer steps of :meth:`transformers.Trainer.train`, and says what went wrong in them.

    Guaranteed unchanged: results to the bit; see :func:`frostline.watch`. After its steps it costs nothing.

    ``on_train_end`` is not called when training raises within these steps, and torch is listened to until then: within
    ``with doctor:``, or by :meth:`close`, the watch is taken off all the same, and the examination has the crash.

    Args:
        steps: how many optimizer steps are watched.
        contract: what must stay; the rest is inferred.
        fail_on: the least severity that ends training; ``"never"`` only logs.
        report: a path for the examination as JSON; ``True`` for ``doctor.json`` in the Trainer's ``output_dir``.

    Attributes:
        examination: what was found, an :class:`~frostline.doctor.Examination`; ``None`` before the last of its steps.

    Raises:
        NothingSelected: when training begins, if the contract names what the model does not have.
        FindingsFound: after its steps, if something at least as bad as ``fail_on`` was found.

    Example:
        >>> doctor = Doctor(steps=5, fail_on="error")
        >>> print(doctor.examination)
        None
    """

    def __init__(
        self,
        steps: int = STEPS,
        contract: Contract | None = None,
        *,
        fail_on: FailOn = "never",
        report: str | os.PathLike[str] | bool = False,
    ) -> None:
        self._run = DoctorRun(steps=steps, contract=contract, fail_on=fail_on)
        self._to = report

    @property
    def examination(self) -> Examination | None:
        """What was found; ``None`` before the last of its steps."""
        return self._run.examination

    def close(self, error: BaseException | None = None) -> None:
        """Take the watch off, if it is on; for a training that was ended by an error."""
        if self._run.watching:
            self._run.end(error)

    def __enter__(self) -> Doctor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close(error)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to watch."""
        self.close()
        self._run.begin(kwargs["model"], [_inner(kwargs["optimizer"])])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count a step of the optimizer; after the last one, examine."""
        if self._run.watching and self._run.step():
            self._examine(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Examine a training that was shorter than the steps."""
        if self._run.watching:
            self._examine(args, state)

    def _examine(self, args: TrainingArguments, state: TrainerState) -> None:
        examination = self._run.end()
        if state.is_world_process_zero:
            if examination:
                _LOGGER.warning("\n".join(["Doctor:", *map(str, examination)]))
            else:
                _LOGGER.info(f"Doctor: {str(examination).splitlines()[0]}")
            if self._to:
                self._run.write(Path(args.output_dir or "", "doctor.json") if self._to is True else self._to)
        self._run.judge()


def _inner(optimizer: Any) -> Optimizer:
    """The torch optimizer inside of accelerate's."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer
