"""Several tasks at a time: threads of one intra-op thread each, with results in the order of the tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch

from frostline.meta.functional_model import FunctionalModel

T = TypeVar("T")
R = TypeVar("R")


def in_threads(
    work: Callable[[FunctionalModel, T], R], items: Sequence[T], models: Sequence[FunctionalModel]
) -> Iterator[R]:
    """Do the work for each item, as many at a time as there are models, and yield what came of it in their order.

    PyTorch's operators release the interpreter's lock, so that threads over tasks use all cores where the operators
    themselves are too small to. Each thread works with one intra-op thread; the number of the process is afterwards as
    it was. With a single model everything runs in the calling thread, with all intra-op threads.

    At most two results for each thread wait for their turn, so that memory does not grow with the number of items.

    Args:
        work: is given a model that no other thread uses, and an item. Autocast is as in the calling thread.
        items: what to work on.
        models: one for each thread.
    """
    if len(models) == 1:
        for item in items:
            yield work(models[0], item)
        return
    free: SimpleQueue[FunctionalModel] = SimpleQueue()
    for model in models:
        free.put(model)
    intra_op = torch.get_num_threads()
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def one(item: T) -> R:
        model = free.get()
        try:
            # Modes of autograd and autocast are each thread's own.
            with torch.enable_grad(), torch.autocast("cpu", dtype=dtype, enabled=autocast):
                return work(model, item)
        finally:
            free.put(model)

    pool = ThreadPoolExecutor(len(models), initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(one, item))
            if len(waiting) == 2 * len(models):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=True)
        torch.set_num_threads(intra_op)
