"""Which sample lies in which slot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frostline.fast.sample_table import SampleTable, digests, expanded, ranges


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8), min_size=1, max_size=4))
def test_a_slot_is_for_good(datasets: list[list[str]]) -> None:
    table, held = SampleTable.empty(), dict[str, int]()
    for dataset in datasets:
        table = table.placed(digests(dataset))
        for sample, slot in zip(dataset, table.order.tolist(), strict=True):
            assert held.setdefault(sample, slot) == slot
        assert sorted(held.values()) == list(range(len(table.keys)))
    again = SampleTable.of({name: entry.read() for name, entry in table.tensors().items()})
    assert again.order.tolist() == table.order.tolist()
    assert again.placed(digests(datasets[0])).order.tolist() == [held[sample] for sample in datasets[0]]


def test_samples_that_moved() -> None:
    table = SampleTable.empty().placed(digests("abd")).placed(digests("abcd"))
    assert table.moved.tolist() == [3]
    assert table.indices.tolist() == [0, 1, 2, 2]


def test_a_table_that_does_not_fit_together_is_refused() -> None:
    tensors = {name: entry.read() for name, entry in SampleTable.empty().placed(digests("ab")).tensors().items()}
    for name, value in (("order", torch.tensor([0, 2])), ("order", torch.tensor([-1])), ("indices", torch.tensor([0]))):
        with pytest.raises(ValueError, match="does not fit together"):
            SampleTable.of({**tensors, name: value})


@given(st.lists(st.integers(0, 40), unique=True))
def test_ranges_are_the_numbers(numbers: list[int]) -> None:
    assert expanded(ranges(np.array(numbers, np.int64))).tolist() == numbers
