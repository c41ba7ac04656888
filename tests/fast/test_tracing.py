"""One run, written down."""

from __future__ import annotations

import torch
from fast_nets import Shared, Writing
from torch import nn
from torch.nn import functional

from frostline.fast.tracing import memory_of, seeded, trace_run


def test_calls_nest_and_are_counted() -> None:
    trace = trace_run(Shared(), (torch.ones(2, 4),), {})
    assert [(call.path, call.nth, call.parent) for call in trace.calls] == [
        ("", 0, -1),
        ("layer", 0, 0),
        ("t", 0, 0),
        ("layer", 1, 0),
        ("h", 0, 0),
    ]


def test_what_a_run_writes_is_seen_although_no_version_tells() -> None:
    """`running_mean` moves without a bump of its version; digests see it."""
    model = nn.Sequential(nn.BatchNorm1d(4), Writing())
    trace = trace_run(model, (torch.randn(3, 4),), {})
    assert trace.written == {"0.running_mean": "0", "0.running_var": "0", "0.num_batches_tracked": "0", "1.seen": "1"}
    assert model[0].num_batches_tracked == 0


def test_views_share_memory_and_copies_do_not() -> None:
    x = torch.ones(2, 2)
    assert memory_of(x) == memory_of(x.t()[0])
    assert memory_of(x) != memory_of(x.clone())


def test_a_dropout_that_drops_nothing_draws_nothing() -> None:
    class Calls(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = functional.scaled_dot_product_attention(x, x, x)
            return functional.dropout(functional.dropout(q, 0.0), 0.5, training=False)

    quiet = trace_run(Calls(), (torch.ones(1, 2, 4),), {})
    assert not [event.reason for event in quiet.events if event.reason]
    loud = trace_run(nn.Dropout(0.5), (torch.ones(1, 2, 4),), {})
    assert [event.reason for event in loud.events if event.reason]


def test_without_operations_the_values_are_kept_as_they_came_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    with torch.no_grad():
        model[0].weight.copy_(-torch.eye(2))
        model[0].bias.zero_()
    trace = trace_run(model, (torch.ones(1, 2),), {}, operations=False)
    assert trace.calls[1].leaves[0].tolist() == [[-1.0, -1.0]]
    assert not trace.events


def test_seeds_reach_all_three_generators() -> None:
    import random

    import numpy as np

    def draws() -> tuple[float, float, float]:
        with seeded(3):
            return float(torch.rand(1)), float(np.random.rand()), random.random()

    assert draws() == draws()
