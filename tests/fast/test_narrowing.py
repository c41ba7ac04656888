"""Features in fewer bits."""

from __future__ import annotations

import pytest
import torch

from frostline.errors import CacheError
from frostline.fast.features import Place
from frostline.fast.narrowing import Losses, NarrowingCost, Storage


def kept(shape: tuple[int, ...], dtype: torch.dtype | None, own: torch.dtype = torch.float32) -> Storage:
    return Storage.of(Place("x", shape, own), dtype)


@pytest.mark.parametrize("own", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32,), (4, 5, 6), (7, 2, 1), (16, 3)])
def test_eight_bits_are_off_by_half_a_step_at_most(shape, own) -> None:
    storage = kept(shape, torch.uint8, own)
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0)).to(own) * 10
    parts = storage.narrow(x)
    assert [(tuple(part.shape[1:]), part.dtype) for part in parts] == list(storage.parts)
    back = storage.widen(parts)
    assert back.dtype == own
    wide = x.double()
    inner = tuple(range(2 if shape == (4, 5, 6) else 1, wide.dim()))
    step = (wide.amax(inner, keepdim=True) - wide.amin(inner, keepdim=True)) / 255
    # Half a step, the rounding of float32 on the way, and that of the type itself.
    slack = 30 * 2**-22 + wide.abs() * (2**-8 if own is torch.bfloat16 else 0)
    assert ((back.double() - wide).abs() <= step / 2 + slack).all()


def test_each_sample_has_its_own_range_and_each_channel_of_a_map_where_that_is_worth_it() -> None:
    assert [kept(shape, torch.uint8).ranges for shape in ((512,), (8, 4, 4), (2048, 1, 1), (197, 768))] == [
        (1,),
        (8, 1, 1),
        (1, 1, 1),
        (197, 1),
    ]
    x = torch.stack([torch.arange(16.0), 1000 * torch.arange(16.0)])
    # Multiples of a step come back exactly, whatever the other sample holds.
    assert kept((16,), torch.uint8).widen(kept((16,), torch.uint8).narrow(x * 17))[0].equal(x[0] * 17)


@pytest.mark.parametrize("value", [0.0, -0.125, 3e38, 1e-45])
def test_constant_features_come_back_as_they_were(value) -> None:
    x = torch.full((2, 20), value)
    storage = kept((20,), torch.uint8)
    assert storage.widen(storage.narrow(x)).equal(x)


def test_what_is_no_wider_or_too_short_or_no_float_stays() -> None:
    assert not kept((512,), torch.float16, torch.bfloat16).narrowed
    assert not kept((512,), torch.uint8, torch.int64).narrowed
    assert not kept((8,), torch.uint8).narrowed
    assert not kept((), torch.uint8).narrowed
    assert not kept((512,), None).narrowed
    assert kept((), torch.float16).nbytes == 2


@pytest.mark.parametrize(
    ("dtype", "bad"), [(torch.uint8, float("nan")), (torch.uint8, float("inf")), (torch.float16, 7e4)]
)
def test_what_cannot_be_kept_is_refused_with_the_place(dtype, bad) -> None:
    x = torch.zeros(2, 32)
    x[1, 5] = bad
    with pytest.raises(CacheError, match=r"^x: .*[^$]*fix: dtype="):
        kept((32,), dtype).narrow(x)


def test_infinite_features_stay_so_in_half_precision() -> None:
    x = torch.tensor([[float("inf"), float("nan"), 1.0]])
    assert kept((3,), torch.float16).narrow(x)[0].isfinite().tolist() == [[False, False, True]]


def test_losses_of_parts_are_those_of_the_whole() -> None:
    x, y = torch.arange(8.0).view(2, 4), torch.arange(8.0).view(2, 4) + torch.tensor([0.5, 0, 0, -0.25])
    whole, one, two = Losses(), Losses(), Losses()
    whole.add(x, y)
    one.add(x[:1], y[:1])
    two.add(x[1:], y[1:])
    assert one.merged(two) == whole
    cost = NarrowingCost.of("uint8", {"a": whole, "b": Losses()})
    assert (cost.max_abs, cost.rms) == (0.5, (2 * (0.25 + 0.0625) / 140) ** 0.5)
    assert cost.to_json()["places"]["b"] == {"max_abs": 0.0, "rms": 0.0}
    assert str(NarrowingCost("float16")) == "float16: nothing was narrowed"
