"""The doctor's callback: watches the first steps of a fit, and says what is wrong in them."""

# ruff: noqa: ARG002 - hooks have the arguments that Lightning calls them with
from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.audit import Contract
from frostline.doctor import Examination
from frostline.integrations.doctor_run import STEPS, DoctorRun, FailOn
from frostline.integrations.lightning.packages import callback_class
from frostline.integrations.lightning.report_file import said, target_of

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    Callback = callback_class()


class Doctor(Callback):
    """Watches the first steps of ``Trainer.fit``, then says what moved that should have stayed, and by which line.

    Guaranteed unchanged: everything that :func:`frostline.watch` leaves as it is; results are equal to the bit. After
    its steps the watch is taken off.

    Args:
        steps: how many steps of the optimizers are watched; the end of the fit ends the watch too.
        contract: what must stay; what it is silent about is inferred.
        fail_on: the least severity that ends the fit; ``"never"`` only tells.
        report: where the examination is written as JSON; a relative path is below the trainer's log folder.

    Attributes:
        examination: the findings, once the steps are over.

    Raises:
        FindingsFound: during the fit, where something at least as bad as ``fail_on`` was found.
        ModelError: no steps, or no such severity.

    Example:
        >>> Doctor(steps=5, fail_on="error").examination is None
        True
    """

    def __init__(
        self,
        steps: int = STEPS,
        contract: Contract | None = None,
        fail_on: FailOn = "never",
        report: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self._run = DoctorRun(steps=steps, contract=contract, fail_on=fail_on)
        self._report = report
        self._target: Path | None = None
        self._stepped = 0

    @property
    def examination(self) -> Examination | None:
        """What was found; ``None`` before."""
        return self._run.examination

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch: optimizers are there by now."""
        self._target = target_of(trainer, self._report)
        self._stepped = trainer.global_step
        self._run.begin(pl_module, trainer.optimizers)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the steps that the batch has made: none while gradients are accumulated."""
        if not self._run.watching or trainer.global_step <= self._stepped:
            return
        self._stepped = trainer.global_step
        if self._run.step():
            self._end(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the watch of a fit that was shorter."""
        if self._run.watching:
            self._end(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the watch, and say what was seen until then; the exception goes on."""
        if self._run.watching:
            self._tell(trainer, self._run.end(exception))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the watch off, if a fit ended without a word."""
        if self._run.watching:
            self._run.end()

    def _end(self, trainer: Trainer) -> None:
        self._tell(trainer, self._run.end())
        self._run.judge()

    def _tell(self, trainer: Trainer, examination: Examination) -> None:
        said(str(examination))
        if self._target is not None and trainer.is_global_zero:
            self._run.write(self._target)
