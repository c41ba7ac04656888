"""Reasons arise somewhere, and their consequences follow."""

from __future__ import annotations

import torch
from torch import nn

from frostline.fast.purity import judge
from frostline.fast.tracing import trace_run


def test_a_reason_is_told_where_it_arises_and_follows_its_result() -> None:
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    trace = trace_run(model, (torch.ones(2, 2),), {})
    purity = judge(trace, {})
    assert [trace.calls[index].path for index in purity.first] == ["1"]
    assert {trace.calls[index].path for index in purity.reasons} == {"", "1", "2"}
    assert [call.path for call in purity.tops()] == ["0"]


def test_a_call_that_is_known_not_to_be_pure_makes_all_behind_it_impure() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Tanh())
    trace = trace_run(model, (torch.ones(2, 2),), {})
    assert [call.path for call in judge(trace, {}).tops()] == [""]
    purity = judge(trace, {("1", 0): "because"})
    assert [call.path for call in purity.tops()] == ["0"]
    assert purity.first == {2: "because"}


def test_what_is_written_in_place_is_followed() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.mul_(self.scale)
            return torch.zeros(2, 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.adds, self.b = (
                nn.Linear(2, 2).requires_grad_(False),
                Adds(),
                nn.Linear(2, 2).requires_grad_(False),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            self.adds(y)
            return self.b(y)

    trace = trace_run(Net(), (torch.ones(2, 2),), {})
    assert [call.path for call in judge(trace, {}).tops()] == ["a"]


def test_a_call_that_changes_what_it_was_given_is_not_pure() -> None:
    class Changes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.add_(1)
            return torch.zeros(2, 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.changes, self.h = nn.Linear(2, 2).requires_grad_(False), Changes(), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.h(y + self.changes(y))

    trace = trace_run(Net(), (torch.ones(2, 2),), {})
    purity = judge(trace, {})
    assert [call.path for call in purity.tops()] == ["a"]
    assert "changes what it was given in place" in purity.first.values()
