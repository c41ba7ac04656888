"""One writer at a time."""

from __future__ import annotations

import os
import pickle

import pytest

from frostline.errors import CacheBusy, CannotWrite
from frostline.fast.writer_lock import writing


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path) -> None:
    with writing(tmp_path):
        found = rf"{tmp_path} is being written to by (process {os.getpid()} on|another)"
        with pytest.raises(CacheBusy, match=found), writing(tmp_path):
            pass
        with pytest.raises(CacheBusy), writing(tmp_path):  # the failed try has not released it
            pass
    with writing(tmp_path):
        pass


def test_an_error_releases_it(tmp_path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        raise ZeroDivisionError
    with writing(tmp_path):
        pass


def test_a_copy_in_another_process_closes_nothing(tmp_path) -> None:
    with writing(tmp_path) as lock:
        pickle.loads(pickle.dumps(lock)).forget()
        with pytest.raises(CacheBusy), writing(tmp_path):
            pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_keep_it(tmp_path) -> None:
    reader, writer = os.pipe()
    with writing(tmp_path) as lock:
        child = os.fork()
        if child == 0:
            lock.forget()
            os.write(writer, b"x")
            os.read(os.pipe()[0], 1)
        os.read(reader, 1)
        with pytest.raises(CacheBusy), writing(tmp_path):  # closing the child's end has not released it
            pass
    try:
        with writing(tmp_path):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


def test_a_folder_that_is_not_there(tmp_path) -> None:
    with pytest.raises(CannotWrite), writing(tmp_path / "none"):
        pass
