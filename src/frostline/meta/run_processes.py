"""The processes of a launcher: one of them speaks and writes, and all take their share of each meta-batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from frostline.extras import require
from frostline.norms.processes import in_all
from frostline.runs.device import pick_device

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        device: where it works.
        rank: its number, from 0.
        count: how many there are.
    """

    device: torch.device
    rank: int
    count: int

    @property
    def main(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for all of them."""
        if self.count > 1:
            dist.barrier()

    def told(self, find: Callable[[], T]) -> T:
        """What the main process finds, in all of them; if it raises there, it raises everywhere."""
        return in_all(lambda: find() if self.main else None)[0]  # type: ignore[return-value]


def join(device: str) -> Processes:
    """Join the processes of the launcher that started this one, ``torchrun`` or ``accelerate launch``; else be alone.

    ``torch.distributed`` is initialized by accelerate if several were started and nobody has done so.

    Args:
        device: what was asked for.

    Raises:
        ModelError: there is no such device.
        MissingExtra: there are several processes, and accelerate is not installed.

    Example:
        >>> join("cpu")
        Processes(device=device(type='cpu'), rank=0, count=1)
    """
    chosen = pick_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 and not (dist.is_available() and dist.is_initialized()):
        return Processes(chosen, 0, 1)
    accelerate: Any = require("accelerate", extra="train", purpose="Training on several processes")
    state = accelerate.PartialState(cpu=chosen.type == "cpu")
    return Processes(state.device, state.process_index, state.num_processes)
