"""What every test begins with."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Loops with mistakes, as users wrote them: they are run, not imported.
collect_ignore_glob = ["doctor/scripts/*"]
# The same examples on every machine, and no limit on the time of one: machines are shared, and what fails has to fail
# again. To look for new examples: --hypothesis-profile=default.
settings.register_profile("frostline", derandomize=True, deadline=None)
settings.load_profile("frostline")


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
