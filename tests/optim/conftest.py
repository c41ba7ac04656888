"""Whether depths rise along a forward pass, seen by hooks of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn


def first_calls(model: nn.Module, *inputs: Any, **named: Any) -> dict[str, int]:
    """The path of each module that ran, to its place in the order of first calls; in eval mode."""
    order: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: order.setdefault(path))
        for path, module in model.named_modules()
        if path
    ]
    model.eval()
    with torch.no_grad():
        model(*inputs, **named)
    for handle in handles:
        handle.remove()
    return {path: place for place, path in enumerate(order)}


def falls_of(model: nn.Module, depths: Mapping[str, int], ran: Mapping[str, int]) -> list[str]:
    """The parameters that lie less deep than one that ran before them.

    A module that is never called, because its weight is used by hand, runs when the nearest module above it does.
    """
    rows: list[tuple[int, str]] = []
    for name, _ in model.named_parameters():
        above = name
        while above and above not in ran:
            above = above.rpartition(".")[0]
        if above:
            rows.append((ran[above], name))
    found: list[str] = []
    deepest = 0
    for _, name in sorted(rows, key=lambda row: row[0]):
        if depths[name] < deepest:
            found.append(name)
        deepest = max(deepest, depths[name])
    return found


@pytest.fixture
def falls() -> Callable[..., list[str]]:
    """``falls(model, depths, *inputs)``: empty where depths rise along the forward pass."""

    def of(model: nn.Module, depths: Mapping[str, int], *inputs: Any, **named: Any) -> list[str]:
        return falls_of(model, depths, first_calls(model, *inputs, **named))

    return of
