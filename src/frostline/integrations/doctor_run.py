"""The doctor over the first steps of a training run, whoever runs the loop."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from torch import nn
from torch.optim import Optimizer

import frostline as fl
from frostline.audit import Contract
from frostline.doctor import Examination
from frostline.errors import FindingsFound, ModelError
from frostline.findings import Severity
from frostline.integrations.json_file import write_json

FailOn: TypeAlias = Literal["error", "warning", "info", "never"]
# Enough for momentum, schedulers and an accumulation or two to show; a watch costs a few percent of a step.
STEPS = 20


class DoctorRun:
    """Watches so many optimizer steps of a run, and says what went wrong in them.

    Guaranteed unchanged: what :func:`frostline.watch` guarantees; results are equal to the bit.

    Args:
        steps: how many steps are watched; then the watch is taken off and costs nothing any more.
        contract: what must stay; the rest is inferred.
        fail_on: the least severity that raises; ``"never"`` only tells.

    Raises:
        ModelError: no steps, or no such severity.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> model.require_grad = False
        >>> run = DoctorRun(steps=1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> run.begin(model, [optimizer])
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> run.step()
        True
        >>> [finding.code for finding in run.end()]
        ['F101']
    """

    def __init__(self, *, steps: int = STEPS, contract: Contract | None = None, fail_on: FailOn = "never") -> None:
        if steps < 1:
            raise ModelError(f"Doctor(steps={steps}): expected one or more\n  fix: steps={STEPS}")
        if fail_on not in get_args(FailOn):
            raise ModelError(f"Doctor(fail_on={fail_on!r}): expected one of {', '.join(get_args(FailOn))}")
        self.steps = steps
        self.examination: Examination | None = None
        self._contract, self._fail_on = contract, fail_on
        self._watch: Any = None
        self._seen: Any = None
        self._done = 0

    @property
    def watching(self) -> bool:
        """Whether the watch is on."""
        return self._watch is not None

    def begin(self, model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        """Begin to watch.

        Raises:
            NothingSelected: the contract names what the model does not have.
        """
        self._done, self.examination = 0, None
        watch = fl.watch(model, list(optimizers), self._contract)
        self._seen = watch.__enter__()
        self._watch = watch

    def step(self) -> bool:
        """Count a step.

        Returns:
            Whether enough has been seen, so that :meth:`end` is due.
        """
        self._done += 1
        return self.watching and self._done >= self.steps

    def end(self, error: BaseException | None = None) -> Examination:
        """Take the watch off and ask the rules. A second time gives the same.

        Args:
            error: what ended the run, if something did.
        """
        if self._watch is not None:
            watch, self._watch = self._watch, None
            watch.__exit__(None if error is None else type(error), error, None)
            self.examination = fl.examine(self._seen)
            self._seen = None
        if self.examination is None:
            raise ModelError("the doctor has seen nothing: the run did not begin\n  fix: begin() first")
        return self.examination

    def judge(self) -> None:
        """Fail where something at least as bad as ``fail_on`` was found.

        Raises:
            FindingsFound: it was; the message has the findings.
        """
        if self.examination is None or self._fail_on == "never":
            return
        bad = self.examination.worse_than(Severity(self._fail_on))
        if bad:
            lines = "\n".join(f"  {finding}" for finding in bad)
            raise FindingsFound(f"the doctor found {len(bad)} mistakes in {self._done} steps\n{lines}", bad)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the examination as JSON, whole or not at all; missing folders are made.

        Raises:
            StorageFull: the disk is full.
            CannotWrite: the place cannot be written to.
        """
        return write_json(path, self.end().to_json())
