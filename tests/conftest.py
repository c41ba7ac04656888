"""What every test begins with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

# Several processes that each take all cores hold each other up; torch reads this when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# Loops with mistakes, as users wrote them: they are run, not imported.
collect_ignore_glob = ["doctor/scripts/*"]
# The same examples on every machine, and no limit on the time of one: machines are shared, and what fails has to fail
# again. To look for new examples: --hypothesis-profile=default.
settings.register_profile("frostline", derandomize=True, deadline=None)
settings.load_profile("frostline")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """The whole suite takes all cores; a few tests that were named run in this process, where a debugger works."""
    return None if config.args_source is config.ArgsSource.TESTPATHS else 0


@pytest.fixture(autouse=True)
def _compiler_forgets() -> Iterator[None]:
    """What one test compiled counts against the limit of recompilations of the next, which then runs eagerly.

    It also keeps a watch from looking at operators: compiled code must not run under a dispatch mode.
    """
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.utils.counters["frames"]:
        torch.compiler.reset()
        dynamo.utils.counters.clear()
