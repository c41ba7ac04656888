"""What a strategy of Lightning does to a model of which a part is held, and which ones a schedule can be had with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch.nn.parallel import DistributedDataParallel

from frostline.errors import CannotThaw, RanksDiffer
from frostline.freezing import rewrap
from frostline.integrations.lightning.packages import kinds
from frostline.optim import Step, Unfreeze

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def refuse_schedule(trainer: Trainer, schedule: Unfreeze) -> None:
    """Refuse a schedule that this trainer's strategy cannot carry out; asked before anything is wrapped.

    Raises:
        CannotThaw: it cannot.
    """
    strategy = trainer.strategy
    name = type(strategy).__name__
    if not isinstance(strategy, kinds("strategies", "SingleDeviceStrategy", "DDPStrategy")):
        raise CannotThaw(
            f"Freeze(schedule=...): {name} lays parameters together when it wraps the model, so that none of them can "
            "begin to train later\n"
            "  fix: strategy='ddp', which is wrapped anew after each stage; or Freeze(...) without a schedule, and a "
            "second fit for what trains later"
        )
    by_step = [stage for stage in schedule.stages if isinstance(stage.at, Step)]
    if by_step and trainer.world_size > 1:
        raise CannotThaw(
            f"Freeze(schedule=...): {by_step[0].at} comes within a step, and {name} has to wrap the model anew, which "
            "it can do between steps only\n"
            "  fix: Epoch(...) or Plateau(...)"
        )


def change(trainer: Trainer, what: Callable[[], object]) -> None:
    """Do what thaws or freezes; under DDP the model is wrapped anew, so that all gradients are averaged.

    Every process has to call it, between steps.

    Raises:
        CannotThaw: the wrapper cannot be made again as it is (it has a communication hook); nothing was done.
        RanksDiffer: processes hold other parts.
    """
    wrapper = trainer.strategy.model
    if isinstance(wrapper, DistributedDataParallel):
        trainer.strategy.model = rewrap(wrapper, what)
    else:
        what()


def in_all(trainer: Trainer, check: Callable[[], object]) -> None:
    """Check in every process; if it raises in one, all of them raise, so that none waits for one that has ended.

    Raises:
        RanksDiffer: another process failed, and this one did not.
    """
    error: Exception | None = None
    try:
        check()
    except Exception as raised:
        error = raised
    fine = trainer.strategy.reduce_boolean_decision(error is None, all=True)
    if error is not None:
        raise error
    if not fine:
        raise RanksDiffer(
            f"Freeze: held state is as it was in process {trainer.global_rank}, and not in another one\n"
            "  fix: look at the error of that process, which names the entries"
        )
