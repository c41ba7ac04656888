"""Batches of views, as the extractor gets them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frostline.errors import CacheError, CorruptData
from frostline.fast.sample_parts import form_of
from frostline.fast.view_batches import ViewBatches
from frostline.fast.views import ViewedSamples


class Pairs:
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> object:
        if index == 5:
            raise CorruptData("image 5 cannot be read")
        size = 3 if index == 4 else 2
        return {"a": torch.full((size,), float(index)), "b": (torch.tensor(index), index)}, torch.ones(2) * index


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_inputs_keep_their_structure_and_errors_their_type(workers) -> None:
    samples = ViewedSamples(Pairs())
    first = samples.dataset[0]
    begun: list[int] = []
    batches = ViewBatches(samples, form_of(first[0]), form_of(first[1]), workers)

    def read(*wanted: list[int]) -> list[object]:
        return list(batches.read([(0, np.array(each)) for each in wanted], lambda: begun.append(1)))

    before = torch.get_rng_state()
    one, two = read([2, 0], [3])
    assert torch.get_rng_state().equal(before)
    assert one.inputs["a"].tolist() == [[2, 2], [0, 0]]
    assert (type(one.inputs["b"]), one.inputs["b"][1].tolist()) == (tuple, [2, 0])
    assert (one.targets[0].tolist(), two.indices.tolist(), tuple(two.digests.shape)) == ([[2, 2], [0, 0]], [3], (1, 16))
    with pytest.raises(CacheError, match="the input of sample 4 is of another form"):
        read([1], [3, 4])
    with pytest.raises(CorruptData, match=r"^image 5 cannot be read$"):
        read([5])
