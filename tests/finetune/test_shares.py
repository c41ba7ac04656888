"""Processes share batches so that a step means what it means on one process."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from frostline.finetune.shares import Shares


def shares(size: int, batch: int, processes: int, *, drop_last: bool = False) -> list[Shares]:
    return [
        Shares(range(size), batch, drop_last=drop_last, process=process, processes=processes)  # type: ignore[arg-type]
        for process in range(processes)
    ]


@given(st.integers(1, 50), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_each_sample_counts_once_and_as_much_as_on_one_process(size: int, per: int, processes: int, drop_last: bool):
    batch = per * processes
    parts = shares(size, batch, processes, drop_last=drop_last)
    alone = list(shares(size, batch, 1, drop_last=drop_last)[0])
    steps = [list(part) for part in parts]
    assert {len(each) for each in steps} == {len(alone)}
    values = torch.arange(size, dtype=torch.float64)
    for step, whole in enumerate(alone):
        used = [index for part, own in zip(parts, steps, strict=True) if part.weight(step) for index in own[step]]
        assert sorted(used) == sorted(whole)
        assert all(part.count(step) == len(whole) for part in parts)
        # What DistributedDataParallel makes of it: the mean over processes of the weighted means of each.
        means = [part.weight(step) * values[own[step]].mean() for part, own in zip(parts, steps, strict=True)]
        torch.testing.assert_close(sum(means) / processes, values[whole].mean(), rtol=1e-12, atol=0)


def test_filling_up_as_accelerate_does_would_count_some_twice():
    """The failing twin: the last batch of 3 out of 35, filled up to 32 from the first."""
    values = torch.arange(35, dtype=torch.float64)
    filled = torch.cat([values[32:], values[:29]])
    assert (filled.mean() - values[32:].mean()).abs() > 10


def test_a_process_without_a_sample_still_takes_part():
    one, two, three = (list(each) for each in shares(4, 3, 3))
    assert (one[1], two[1], three[1]) == ([3], [3], [3])
    assert [each.weight(1) for each in shares(4, 3, 3)] == [3.0, 0.0, 0.0]
    loader = DataLoader(TensorDataset(torch.arange(4)), batch_sampler=shares(4, 3, 3)[2])
    assert [batch.tolist() for (batch,) in loader] == [[2], [3]]
