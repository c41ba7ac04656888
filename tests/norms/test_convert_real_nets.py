"""Conversions of real nets: torchvision's ResNet and MobileNet, timm's EfficientNets with BatchNormAct2d."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from frostline.norms.convert import FrozenNorm, GroupNorm, PlainNorm, SyncNorm, convert, fold

NETS = {"resnet18": 20, "mobilenet_v2": 52, "efficientnet_lite0": 49, "tf_efficientnet_lite0": 49}


@pytest.fixture(scope="module")
def build():
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = import_torchvision("models")
        import timm

    def make(name):
        torch.manual_seed(0)
        net = timm.create_model(name) if "efficientnet" in name else getattr(models, name)()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.2, 0.2)
        return net.eval()

    return make


@pytest.fixture(params=NETS)
def net(request, build):
    return build(request.param)


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_to_frozen_and_sync_and_back_equal_to_the_bit(net, x, request):
    count = NETS[request.node.callspec.params["net"]]
    expected, modules = net(x), dict(net.named_modules())
    parameters = [id(p) for p in net.parameters()]
    for to in (FrozenNorm(), PlainNorm(), SyncNorm(), PlainNorm()):
        assert len(convert(net, to).plan.rows) == count
        assert torch.equal(net(x), expected)
        assert [id(p) for p in net.parameters()] == parameters
    assert [type(m) for m in net.modules()] == [type(m) for m in modules.values()]
    convert(net, FrozenNorm())
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert torch.equal(net.train()(x), expected)


def test_torchs_converter_loses_timms_activations(build, x):
    net = build("efficientnet_lite0")
    with torch.no_grad():
        expected = net(x)
        lossy = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))(x)
    assert not torch.allclose(lossy, expected, rtol=0.1)


@torch.no_grad()
def test_fold_and_undo(net, x, request):
    count = NETS[request.node.callspec.params["net"]]
    expected, wide = net(x), copy.deepcopy(net).double()(x.double())
    # How far float32 is off in the net as it is: folding is to add no more than as much again, twice.
    own = (expected.double() - wide).abs().max()
    by_tracing = fold(net)
    assert len(by_tracing.plan.rows) == count
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    traced = net(x)
    assert (traced.double() - wide).abs().max() <= 3 * own
    by_tracing.undo()
    assert torch.equal(net(x), expected)
    by_running = fold(net, inputs=x)
    assert len(by_running.plan.rows) == count
    assert torch.equal(net(x), traced)
    by_running.undo()
    assert torch.equal(net(x), expected)


def test_group_norm_trains(net, x, request):
    count = NETS[request.node.callspec.params["net"]]
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    plan = convert(net, GroupNorm()).plan
    assert len(plan.rows) == count
    assert not any(row.exact for row in plan.rows)
    before = {path: p.detach().clone() for path, p in net.named_parameters()}
    net.train()(x).square().mean().backward()
    optimizer.step()
    assert all(
        not torch.equal(p, before[path]) for path, p in net.named_parameters() if "bn" in path and "weight" in path
    )
