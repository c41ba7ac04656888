"""Holds and schedules in the checkpoints of accelerate.

``accelerator.prepare`` keeps holds, whatever comes first: it wraps the model and the optimizer, and makes neither anew.
Freeze before it where there are several processes, so that the wrapper does not wait for gradients of what is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from torch import nn

from frostline.errors import CannotFreeze, ModelError, name_some
from frostline.freezing import Hold, verify_ranks
from frostline.integrations.held_marks import check_marks, held_marks
from frostline.integrations.versions import supported
from frostline.norms import merge_statistics
from frostline.optim import Unfreezing

supported("accelerate", oldest="1.0", tested="1.15", extra="train", purpose="frostline.integrations.accelerate")

if TYPE_CHECKING:
    from accelerate import Accelerator

SCHEMA_VERSION = 1
Statistics: TypeAlias = Literal["merged", "own"]


class _InCheckpoints:
    """What accelerate asks for a state, and gives it back after it has loaded models and optimizers."""

    def __init__(self, held: Hold | Unfreezing) -> None:
        self._unfreezing = held if isinstance(held, Unfreezing) else None
        self._hold = held.hold if isinstance(held, Unfreezing) else held

    @property
    def holds(self) -> list[Hold]:
        """The hold, while there is something that it holds."""
        return [] if self._hold is None or self._hold.released else [self._hold]

    def state_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "held": held_marks(self.holds),
            "schedule": None if self._unfreezing is None else self._unfreezing.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.get("schema_version") != SCHEMA_VERSION or (state["schedule"] is None) != (self._unfreezing is None):
            raise ModelError(
                "load_state: the checkpoint's state is not one of what was registered here\n"
                "  fix: register the same holds and schedules in the same order as the run that wrote it"
            )
        if self._unfreezing is not None:
            self._unfreezing.load_state_dict(state["schedule"])
        for hold in self.holds:
            # The models were loaded by now: what the hold knew is what was there before.
            hold.refresh()
        check_marks(state["held"], self.holds)


def register_for_checkpointing(
    accelerator: Accelerator, *held: Hold | Unfreezing, statistics: Statistics = "merged"
) -> None:
    """Let ``save_state`` and ``load_state`` of an accelerator carry schedules, and prove what is held.

    ``save_state`` first verifies every hold, and that all processes hold the same; if not, nothing is written.
    ``load_state`` lets the schedules go on where they stood, and compares what was loaded into held parts with what the
    run that wrote the checkpoint held there. From then on the holds verify against what was loaded.

    Running statistics that each process has of its own data are merged before they are saved, because the checkpoint
    has those of one process alone. Under FSDP accelerate writes models before it calls hooks: call
    :func:`frostline.norms.merge_statistics` yourself there.

    Args:
        accelerator: the accelerator.
        *held: what :func:`frostline.freeze` returned, and schedules at work; in the same order in every run.
        statistics: ``"own"`` leaves the statistics of each process as they are.

    Raises:
        CannotFreeze: something else was passed.
        FrozenStateMoved: from ``save_state``, held state moved; from ``load_state``, the checkpoint has other values
            than its run held. Its ``diff`` names each entry.
        RanksDiffer: from ``save_state``, processes do not hold the same.
        ModelError: from ``load_state``, the checkpoint is of other holds or of another schedule.

    Example:
        >>> import tempfile, torch
        >>> import frostline as fl
        >>> from accelerate import Accelerator
        >>> accelerator = Accelerator(cpu=True)
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> hold = fl.freeze(model, "0")
        >>> model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> register_for_checkpointing(accelerator, hold)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = accelerator.save_state(folder)
        ...     accelerator.load_state(folder)
        >>> hold.verify().still
        12
    """
    wrong = [type(each).__name__ for each in held if not isinstance(each, (Hold, Unfreezing))]  # pyright: ignore[reportUnnecessaryIsInstance]
    if wrong or not held:
        raise CannotFreeze(
            f"register_for_checkpointing: expected holds or schedules, got {name_some(wrong) or 'none'}\n"
            "  fix: register_for_checkpointing(accelerator, fl.freeze(model, ...))"
        )
    if statistics not in get_args(Statistics):
        raise CannotFreeze(
            f"register_for_checkpointing(statistics={statistics!r}): no such choice\n"
            f"  fix: one of {name_some(get_args(Statistics))}"
        )
    kept = [_InCheckpoints(each) for each in held]

    def before_saving(models: list[nn.Module], weights: list[Any], folder: str) -> None:  # noqa: ARG001 - accelerate's
        for model in models:
            # The state dicts that accelerate has collected refer to these very tensors.
            if statistics == "merged":
                merge_statistics(model)
            verify_ranks(model)
        for hold in (hold for each in kept for hold in each.holds):
            hold.verify()

    accelerator.register_save_state_pre_hook(before_saving)
    accelerator.register_for_checkpointing(*kept)
