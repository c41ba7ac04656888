"""Tasks in threads: results in order, few of them waiting, and settings of the process as they were."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn

from frostline.meta.functional_model import FunctionalModel
from frostline.meta.task_threads import in_threads


def models(count: int) -> list[FunctionalModel]:
    return [FunctionalModel(nn.Linear(1, 1)) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(count: int):
    def work(_run: FunctionalModel, item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(in_threads(work, range(12), models(count))) == [item * item for item in range(12)]


def test_no_model_is_used_by_two_threads_at_a_time():
    used: set[int] = set()
    lock = threading.Lock()
    most = 0

    def work(run: FunctionalModel, _item: int) -> None:
        nonlocal most
        with lock:
            assert id(run) not in used
            used.add(id(run))
            most = max(most, len(used))
        time.sleep(0.005)
        with lock:
            used.remove(id(run))

    list(in_threads(work, range(8), models(2)))
    assert most == 2


def test_threads_work_with_one_intra_op_thread_and_modes_of_the_caller():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            found = list(
                in_threads(
                    lambda _run, _item: (
                        torch.get_num_threads(),
                        torch.is_grad_enabled(),
                        torch.is_autocast_enabled("cpu"),
                        torch.get_autocast_dtype("cpu"),
                    ),
                    range(4),
                    models(2),
                )
            )
        assert set(found) == {(1, True, True, torch.bfloat16)}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_error_comes_through_and_what_has_not_begun_does_not_begin():
    before, begun = torch.get_num_threads(), []

    def work(_run: FunctionalModel, item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("item 1")
        time.sleep(0.01)
        return item

    found: list[int] = []
    with pytest.raises(ValueError, match="item 1"):
        found.extend(in_threads(work, range(100), models(2)))
    assert len(begun) < 8
    assert torch.get_num_threads() == before


def test_few_results_wait_for_a_slow_consumer():
    done: list[int] = []
    results = in_threads(lambda _run, item: done.append(item), range(50), models(2))
    next(results)
    time.sleep(0.05)
    assert len(done) <= 2 * 2
    results.close()
    assert len(done) <= 2 * 2
