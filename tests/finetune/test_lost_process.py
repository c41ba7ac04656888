"""A process that is gone is told of once, with what is kept. With real processes: `test_several_processes`."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
import torch.distributed as dist

from frostline.errors import CorruptData, ProcessLost
from frostline.finetune import lost_process
from frostline.finetune.lost_process import lost_process_told, termination_told

CLOSED = "[pair.cc:547] Connection closed by peer [127.0.0.1]:50217"


@pytest.fixture
def first_of_two(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    """As if this were the first of two processes."""
    store = dist.HashStore()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(lost_process, "store", lambda: store)
    return store


def told(error: BaseException) -> ProcessLost:
    with pytest.raises(ProcessLost) as caught, lost_process_told(lambda: "kept: checkpoint 3"):
        raise error
    return caught.value


@pytest.mark.parametrize("error", [RuntimeError(CLOSED), dist.DistBackendError("NCCL: remote process exited")])
def test_what_a_backend_says_becomes_one_error(first_of_two: Any, error: RuntimeError):
    lost = told(error)
    assert str(lost).splitlines() == [
        "another process of this run has ended, and the run with it",
        f"  found: {error}",
        "  kept: checkpoint 3",
        "  fix: look at what ended it (its log, memory, a signal), then go on with --resume",
    ]
    assert lost.speaks
    assert lost.exit_code == 1


def test_what_the_other_one_said_before_it_ended_is_passed_on(first_of_two: dist.Store):
    first_of_two.set("frostline/failed/1", "CorruptData: b.png is cut short")
    assert "found: process 1 failed: CorruptData: b.png is cut short" in str(told(RuntimeError(CLOSED)))


def test_an_error_of_this_process_is_its_own_and_left_for_the_others(first_of_two: dist.Store):
    for error in (CorruptData("a.png is cut short\n  fix: another"), RuntimeError("shapes do not fit"), KeyError("x")):
        with pytest.raises(type(error)) as caught, lost_process_told(lambda: ""):
            raise error
        assert caught.value is error
    assert first_of_two.get("frostline/failed/0") == b"KeyError: 'x'"


def test_the_first_to_notice_speaks(first_of_two: Any):
    assert [told(RuntimeError(CLOSED)).speaks for _ in range(3)] == [True, False, False]


def test_a_store_that_is_gone_too_is_no_second_error(first_of_two: Any, monkeypatch: pytest.MonkeyPatch):
    def gone() -> Any:
        raise dist.DistNetworkError("the server is gone")

    monkeypatch.setattr(lost_process, "store", gone)
    assert told(RuntimeError(CLOSED)).speaks
    with pytest.raises(KeyError), lost_process_told(lambda: ""):
        raise KeyError


def test_one_process_has_its_errors_for_itself():
    with pytest.raises(RuntimeError, match="closed by peer"), lost_process_told(lambda: ""):
        raise RuntimeError(CLOSED)


class TestTermination:
    def test_within_a_launcher_the_signal_is_an_error_like_others(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(ProcessLost, match="SIGTERM"), termination_told():
            os.kill(os.getpid(), signal.SIGTERM)
            # The second one ends the process, as it would have.
            raise AssertionError("the signal came too late")
        assert signal.getsignal(signal.SIGTERM) == before

    def test_outside_of_a_launcher_nothing_is_done(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        before = signal.getsignal(signal.SIGTERM)
        with termination_told():
            assert signal.getsignal(signal.SIGTERM) == before

    def test_in_another_thread_nothing_is_done(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        errors: list[BaseException] = []

        def work() -> None:
            try:
                with termination_told():
                    pass
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert errors == []
