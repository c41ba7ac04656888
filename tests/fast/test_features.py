"""What crosses the boundary."""

from __future__ import annotations

import pytest
import torch

from frostline.fast import Place


@pytest.mark.parametrize(("shape", "dtype", "nbytes"), [((), torch.int64, 8), ((3,), torch.float16, 6)])
def test_the_bytes_of_a_place_are_those_of_one_sample(shape, dtype, nbytes) -> None:
    assert Place("fc", shape, dtype).nbytes == nbytes == torch.zeros(shape, dtype=dtype).nbytes


def test_a_place_says_what_it_is() -> None:
    assert str(Place("layer3[0]", (4, 2), torch.float32)) == "layer3[0] (4, 2) float32"
