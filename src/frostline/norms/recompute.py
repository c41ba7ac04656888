"""Tells a forward pass from the repetition of one that activation checkpointing makes in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch

# Internal to torch, and there since 2.0; where it is missing, no repetition is recognized.
_current_task: Callable[[], int] | None = getattr(torch._C, "_current_graph_task_id", None)


def recomputing() -> bool:
    """Whether the code that asks runs inside a backward pass, as activation checkpointing runs forward passes again.

    True for both of its variants, reentrant or not. Always false in code that ``torch.compile`` traces, which cannot
    ask; a checkpoint within a compiled region updates buffers once by itself.

    Example:
        >>> from torch.utils.checkpoint import checkpoint
        >>> seen = []
        >>> def double(x):
        ...     seen.append(recomputing())
        ...     return 2 * x
        >>> checkpoint(double, torch.ones(1, requires_grad=True), use_reentrant=True).backward()
        >>> seen
        [False, True]
    """
    return not torch.compiler.is_compiling() and _current_task is not None and _current_task() != -1
