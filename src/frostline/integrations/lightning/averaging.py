"""Lightning's own averaging callbacks beside a hold: what they do to held state is undone.

``StochasticWeightAveraging`` sets the statistics of every batch norm to 0 and 1 before its last pass over the data, and
one that is held in eval mode would be left so. ``WeightAveraging`` lays its averages into the model for validation, at
the end and into checkpoints; an average by decay of a value that never moves is not that value to the bit
(``0.999 * x + 0.001 * x``), and of a counter it may be one less.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from frostline.integrations.freeze_run import FreezeRun
from frostline.integrations.lightning.packages import kinds
from frostline.state import Snapshot

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class Averaging:
    """Keeps copies of held values while an averaging callback is there, and puts them back behind it.

    Without such a callback it does nothing and costs nothing. The copies are in the host's memory.

    Example:
        >>> Averaging().is_there
        False
    """

    def __init__(self) -> None:
        self.is_there = False
        self._kept = Snapshot()

    def find(self, trainer: Trainer, own: Any) -> None:
        """Look for averaging callbacks, and go behind the last of them in the trainer's list.

        Args:
            trainer: its list of callbacks is replaced by one in another order, if need be.
            own: the callback that puts values back.
        """
        averaging = kinds("callbacks", "StochasticWeightAveraging", "WeightAveraging")
        callbacks = callbacks_of(trainer)
        places = [place for place, callback in enumerate(callbacks) if isinstance(callback, averaging)]
        self.is_there, self._kept = bool(places), Snapshot()
        if places and callbacks.index(own) < places[-1]:
            before = [callback for callback in callbacks[: places[-1] + 1] if callback is not own]
            # Another list: the trainer is going through this one now.
            _set_callbacks(trainer, [*before, own, *callbacks[places[-1] + 1 :]])

    def keep(self, run: FreezeRun, model: nn.Module) -> None:
        """Copy what is held, as it is now."""
        if not self.is_there:
            return
        live = _tensors(model)
        self._kept = Snapshot(
            {
                path: record if record.value is not None else replace(record, value=_copied(live[path]))
                for hold in run.holds
                for path, record in hold.reference.items()
                if path in live
            }
        )
        self._kept.partial = True

    def put_back(self, run: FreezeRun, model: nn.Module) -> None:
        """Write the values of what is still held into the model."""
        if not self.is_there:
            return
        self._held(run).restore(model)
        # The last pass of StochasticWeightAveraging has another momentum in every batch norm.
        for hold in run.holds:
            for record in hold.reference.values():
                if record.role == "norm.momentum":
                    setattr(model.get_submodule(record.module), "momentum", record.mark)  # noqa: B010 - no attribute of Module

    def put_into(self, run: FreezeRun, state: dict[str, Any]) -> None:
        """Lay the values of what is still held into a state dict; tensors of the model are not written to."""
        for path, record in self._held(run).items() if self.is_there else ():
            if isinstance(averaged := state.get(path), Tensor) and record.value is not None:
                state[path] = record.value.to(averaged.device)

    def forget(self) -> None:
        """Drop the copies."""
        self.is_there, self._kept = False, Snapshot()

    def _held(self, run: FreezeRun) -> Snapshot:
        held = set(run.paths)
        kept = Snapshot({path: record for path, record in self._kept.items() if path in held})
        kept.partial = True
        return kept


def callbacks_of(trainer: Any) -> list[Any]:
    """The callbacks of a trainer, in the order in which it calls them."""
    return trainer.callbacks


def _set_callbacks(trainer: Any, callbacks: list[Any]) -> None:
    trainer.callbacks = callbacks


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
