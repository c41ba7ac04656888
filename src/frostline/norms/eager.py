"""Runs that have to see every layer, though parts of the model are compiled."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import torch


def eagerly() -> Any:
    """Within, code that ``torch.compile`` made is not used, and nothing is compiled.

    Compiled code does not call hooks that came after it, and under a dispatch mode dynamo would refuse, and remember
    that for the rest of the process.

    Example:
        >>> with eagerly():
        ...     torch.nn.Identity()(1)
        1
    """
    # Without dynamo nothing is compiled, and importing it takes a second.
    stance = getattr(torch.compiler, "set_stance", None) if "torch._dynamo" in sys.modules else None
    return nullcontext() if stance is None else stance("force_eager")
