"""Conversions on a GPU, where other kernels run than on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.norms.convert import FrozenNorm, GroupNorm, PlainNorm, SyncNorm, convert, fold

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO CUDA DEVICE: conversions on a GPU are not tested"),
]


def net(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1))
    model.add_module("bn", nn.BatchNorm2d(8, affine=False))
    for layer in (model[1], model.bn):
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
    return model.to("cuda", dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [True, False])
@torch.no_grad()
def test_frozen_and_sync_are_equal_to_the_bit(dtype, channels_last, monkeypatch):
    # Which algorithm a convolution takes is not ours to test.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    model = net(dtype)
    x = torch.randn(4, 3, 16, 16, device="cuda", dtype=dtype)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    expected = model(x)
    for to in (FrozenNorm(), PlainNorm(), SyncNorm()):
        convert(model, to)
        assert torch.equal(model(x), expected)
    convert(model, FrozenNorm())
    assert torch.equal(model.train()(x), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@torch.no_grad()
def test_fold_is_verified_and_undone(dtype):
    model = net(dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(4, 3, 16, 16, device="cuda", dtype=dtype)
    expected = model.double()(x.double())
    model.to(dtype)
    result = fold(model, inputs=x)
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    off = (model.double()(x.double()) - expected).abs().max()
    # 27 and 16 products with biases, below 10 each, whose weights are off by half an eps.
    assert off <= (28 + 17) * 10 * torch.finfo(dtype).eps / 2
    model.to(dtype)
    result.undo()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_undo_moves_statistics_that_were_away():
    model = net().cpu()
    result = convert(model, GroupNorm())
    model.cuda()
    result.undo()
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"cuda"}
