"""The watch around a loop: what it sees is handed out when it begins, and complete when it ends."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from itertools import dropwhile
from types import TracebackType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from frostline.audit import ranks
from frostline.audit.contract import Contract
from frostline.audit.places import NOWHERE, Place, kind_of
from frostline.audit.recorder import EVERY, Recorder
from frostline.audit.seen import Crash, Seen
from frostline.audit.summary import fill, finish
from frostline.audit.taps import Taps
from frostline.errors import SelectionError
from frostline.state.expected import expect_model


class Watch:
    """A watch, as :func:`watch` makes it; a context manager that yields a :class:`~frostline.audit.seen.Seen`."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        contract: Contract | None,
        *,
        every: int,
        trace: bool,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        self.seen = Seen()
        self._models, self._optimizers = models, optimizers
        self._recorder = Recorder(contract=contract, every=every, trace=trace)
        self._taps = Taps(self._recorder, after_step)
        self._began = 0.0
        self._is_over = False

    def __enter__(self) -> Seen:
        self._began = time.perf_counter()
        self._recorder.known(self._models, self._optimizers)
        self._taps.install()
        return self.seen

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """End the watch, if it has not ended, and write down what ended the loop."""
        if isinstance(error, SystemExit):
            self.seen.ended = "exited"
        elif isinstance(error, Stopped):
            self.seen.ended = "stopped"
        elif error is not None:
            self.seen.ended = "crashed"
            self.seen.crash = crash_of(error)
        if self._is_over:
            return
        self._is_over = True
        self._taps.remove()
        recorder = self._recorder
        with recorder.work():
            self._taps.window.close()
            finish(recorder)
            fill(self.seen, recorder, self._taps.files.kept())
        with recorder.work():
            ranks.gather(self.seen)
        self.seen.missed[:0] = recorder.missed
        self.seen.cost, self.seen.seconds = recorder.cost, time.perf_counter() - self._began

    @property
    def refused(self) -> SelectionError | None:
        """Why the declared contract does not fit the model that was found; ``None`` where it does."""
        return self._recorder.refused

    def at_next_forward(self, do: Callable[[], None]) -> None:
        """Do something when the next forward pass begins, outside of any hook; it may end this watch."""
        self._recorder.due = do


class Stopped(BaseException):
    """Ends a loop that was watched for long enough; no ``except Exception`` of the loop catches it."""


def watch(
    model: nn.Module | Iterable[nn.Module] | None = None,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    contract: Contract | None = None,
    *,
    every: int = EVERY,
    trace: bool = True,
) -> Watch:
    """Watch any training loop: what is meant to stay, what moves all the same, and which line moved it.

    While the block runs, calls of torch that matter are taken down with the user's line: modes, ``requires_grad``,
    forward and backward passes, steps, schedules, loads and saves. Every step compares identities, versions, addresses
    and flags of all tensors, and the digests of buffers that must stay; parameters that must stay are digested at
    every ``every``-th step and at the end. When something that must stay has moved, the next step is looked at
    operator by operator. Other models that run, and other optimizers that step, are seen too.

    Guaranteed unchanged: results to the bit, random states, modes, hooks, gradients, optimizer state. torch is listened
    to while the block runs, and put back at its end. Compiled code is not looked at by operators, because it would run
    uncompiled then; a process with taps in its ``requires_grad`` may compile anew.

    Args:
        model: the model, or several; none means those that run and those that an optimizer has.
        optimizer: an optimizer that was made before, or several; others are found when they step.
        contract: what must stay, of the first model. What it is silent about is inferred at the first training step:
            held entries, parameters without ``requires_grad``, statistics of parts whose parameters are frozen or in no
            optimizer, layers that are in eval mode.
        every: parameters that must stay are digested at every so many steps.
        trace: whether a step may be looked at operator by operator.

    Raises:
        UnsupportedModel: it is no module.
        NothingSelected: on entering, a selector of the contract matches nothing in the model.

    Returns:
        A context manager. It yields a :class:`~frostline.audit.seen.Seen` that is filled when the block ends, also by
        an exception, which goes on.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> _ = model[0].requires_grad_(False)
        >>> optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
        >>> with watch(model, optimizer) as seen:
        ...     for _ in range(2):
        ...         optimizer.zero_grad()
        ...         model(torch.randn(4, 2)).sum().backward()
        ...         optimizer.step()
        >>> [tensor.path for tensor in seen.models[0].tensors.values() if tensor.must_stay and tensor.moved]
        ['0.running_mean', '0.running_var', '0.num_batches_tracked']
    """
    given: Any = model
    if isinstance(given, str) or not (given is None or isinstance(given, (nn.Module, Iterable))):
        expect_model(given, "watch", "watch(model, optimizer)")
    models = [] if model is None else [model] if isinstance(model, nn.Module) else list(model)
    optimizers = [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    return Watch(models, optimizers, contract, every=every, trace=trace)


def crash_of(error: BaseException) -> Crash:
    """What a user should see of an exception: its traceback without the frames of the watch."""
    summary = traceback.TracebackException.from_exception(error)
    for part in _chain(summary):
        kept = [frame for frame in part.stack if kind_of(frame.filename) != "ours"]
        # Python's own way to a script that it runs for us is no part of the script either.
        begun = dropwhile(lambda frame: "runpy" in frame.filename, kept)
        part.stack = traceback.StackSummary.from_list(list(begun))
    place = NOWHERE
    for frame in summary.stack:
        if kind_of(frame.filename) == "user":
            place = Place(frame.filename, frame.lineno or 0, frame.name)
    return Crash(type(error).__name__, str(error), place, "".join(summary.format()))


def _chain(summary: traceback.TracebackException | None) -> Iterable[traceback.TracebackException]:
    while summary is not None:
        yield summary
        summary = summary.__cause__ or summary.__context__
