"""What every test begins with."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _compiler_forgets() -> Iterator[None]:
    """What one test compiled counts against the limit of recompilations of the next, which then runs eagerly."""
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.utils.counters["frames"]:
        torch.compiler.reset()
