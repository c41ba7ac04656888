"""Training that each process of a run does by itself, so that its result does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from frostline.extras import require
from frostline.norms.processes import world_size


class Alone:
    """What :func:`~frostline.finetune.loop.fit` asks of an accelerator, for one process that trains beside others.

    A start that is trained in the run stands for weights that would be downloaded: it has to be the same on one process
    and on four. So each of them trains it whole, on all of the data, and exchanges nothing.

    Attributes:
        device: where it trains.
        num_processes: 1.
        process_index: 0.
        is_main_process: whether this is the process that writes.
    """

    num_processes = 1
    process_index = 0

    def __init__(self, accelerator: Any) -> None:
        self.device: torch.device = accelerator.device
        self.is_main_process: bool = accelerator.is_main_process

    def prepare(self, model: nn.Module, optimizer: Any, *loaders: Any) -> tuple[Any, ...]:
        """The model on its device, the optimizer as it is, and loaders that move their batches there."""
        return (model.to(self.device), optimizer, *(moving(each, self.device) for each in loaders))

    def reduce(self, value: Tensor, reduction: str = "mean") -> Tensor:
        """The value of this process, which is that of all."""
        del reduction
        return value

    def backward(self, loss: Tensor) -> None:
        """A plain backward pass."""
        loss.backward()

    def gather_for_metrics(self, values: Any) -> Any:
        """The values of this process, which has seen every sample once."""
        return values

    def wait_for_everyone(self) -> None:
        """Does not wait."""

    def free_memory(self) -> None:
        """Keeps nothing that could be freed."""


def moving(loader: Any, device: torch.device) -> Any:
    """The same batches on the device, all of them: nothing is shared between processes."""
    loading: Any = require("accelerate.data_loader", extra="train", purpose="Training")
    return loading.prepare_data_loader(loader, device, num_processes=1, process_index=0, put_on_device=True)


@contextmanager
def one_thread(device: torch.device) -> Generator[None, None, None]:
    """On the CPU, compute on one thread meanwhile: sums on several threads have other bits than on one.

    Example:
        >>> with one_thread(torch.device("cpu")):
        ...     torch.get_num_threads()
        1
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def same_on_all(model: nn.Module) -> None:
    """Give every process the tensors of the first one: machines of one run may round differently."""
    if world_size() > 1:
        with torch.no_grad():
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)
