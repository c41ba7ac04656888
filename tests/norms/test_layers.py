"""Which statistics a layer uses: every row of the truth tables, by running the layer (scenario S3)."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.norms import StatisticsUse, statistics_of
from frostline.norms.layers import has_running_statistics

SHAPES = {
    "BatchNorm1d": (6, 3),
    "BatchNorm2d": (6, 3, 4, 4),
    "BatchNorm3d": (6, 3, 2, 2, 2),
    "SyncBatchNorm": (6, 3, 4, 4),
    "InstanceNorm1d": (6, 3, 5),
    "InstanceNorm2d": (6, 3, 4, 4),
    "InstanceNorm3d": (6, 3, 2, 2, 2),
}
BATCH = [name for name in SHAPES if "Batch" in name]
INSTANCE = [name for name in SHAPES if "Instance" in name]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def timm_layers():
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import timm.layers
    return timm.layers


@pytest.fixture(scope="module")
def torchvision_ops():
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_torchvision("ops")


def inputs(name):
    return torch.randn(SHAPES[name], dtype=torch.float64) * 2 + 3


def normalized(x, mean, var, layer):
    """By the book, with the statistics given per channel or per sample and channel."""
    shape = (*mean.shape, *[1] * (x.ndim - mean.ndim)) if mean.ndim == 2 else (1, -1, *[1] * (x.ndim - 2))
    out = (x - mean.view(shape)) / (var.view(shape) + layer.eps).sqrt()
    if getattr(layer, "weight", None) is not None:
        channels = (1, -1, *[1] * (x.ndim - 2))
        out = out * layer.weight.view(channels) + layer.bias.view(channels)
    return out


def candidates(x, layer):
    """What the output would be with each kind of statistics."""
    over_batch = [d for d in range(x.ndim) if d != 1]
    over_sample = list(range(2, x.ndim))
    found = {"batch": normalized(x, x.mean(over_batch), x.var(over_batch, unbiased=False), layer)}
    if over_sample:
        found["instance"] = normalized(x, x.mean(over_sample), x.var(over_sample, unbiased=False), layer)
    if layer._buffers.get("running_mean") is not None:
        found["running"] = normalized(x, layer.running_mean.clone(), layer.running_var.clone(), layer)
    return found


def observed(layer, x):
    """Which statistics a forward pass used, and whether it wrote any buffer."""
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    expected = candidates(x, layer)
    out = layer(x)
    # float64: rounding is of the order of 1e-15, the candidates differ by more than 0.1.
    used = [kind for kind, value in expected.items() if torch.allclose(out, value, rtol=0, atol=1e-9)]
    assert len(used) == 1, used
    return used[0], any(not torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


def build(name, **settings):
    layer = getattr(nn, name)(3, **settings).double()
    if has_running_statistics(layer):
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
    if layer.weight is not None:
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.uniform_(layer.bias)
    return layer


# training, built with tracking, flag now, normalizes with, updates
S3 = {
    "train, tracks": (True, True, True, "batch", True),
    "train, does not track": (True, False, False, "batch", False),
    "eval, tracks": (False, True, True, "running", False),
    "eval, built without": (False, False, False, "batch", False),
    "eval, flag off later": (False, True, False, "running", False),
    "train, flag off later": (True, True, False, "batch", False),
}


@pytest.mark.parametrize("name", BATCH)
@pytest.mark.parametrize("affine", [True, False])
class TestBatchNorm:
    @pytest.mark.parametrize("row", S3)
    def test_rows_of_s3(self, name, affine, row):
        training, built, flag, uses, updates = S3[row]
        layer = build(name, affine=affine, track_running_stats=built)
        layer.train(training).track_running_stats = flag
        said = statistics_of(layer)
        assert (said.uses, said.updates) == (uses, updates)
        assert observed(layer, inputs(name)) == (uses, updates)
        (explained,) = fl.explain(layer)
        assert (explained.uses, explained.updates) == (uses, updates)

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("momentum", [0.1, None, 0.0, 1.0])
    def test_momenta(self, name, affine, training, momentum):
        layer = build(name, affine=affine, momentum=momentum).train(training)
        said = statistics_of(layer)
        assert observed(layer, inputs(name)) == (said.uses, said.updates)

    def test_flag_on_later_without_buffers(self, name, affine):
        for training in (True, False):
            layer = build(name, affine=affine, track_running_stats=False).train(training)
            layer.track_running_stats = True
            said = statistics_of(layer)
            assert (said.uses, said.updates) == ("batch", False)
            if name == "SyncBatchNorm" and training:
                with pytest.raises(AssertionError):
                    layer(inputs(name))
            elif name != "SyncBatchNorm":
                assert observed(layer, inputs(name)) == ("batch", False)

    @pytest.mark.parametrize("row", S3)
    def test_batch_dependence_in_eval(self, name, affine, row):
        _, built, flag, _, _ = S3[row]
        layer = build(name, affine=affine, track_running_stats=built)
        layer.track_running_stats = flag
        x = inputs(name)
        layer.eval()
        depends = not torch.equal(layer(x)[:2], layer(x[:2]))
        assert statistics_of(layer).batch_dependent_in_eval == depends
        assert statistics_of(layer.train()).batch_dependent_in_eval == depends


# 1.3: not the rules of batch norm.
INSTANCE_ROWS = {
    "train, tracks": (True, True, True, "instance", True),
    "train, flag off later": (True, True, False, "instance", True),
    "eval, tracks": (False, True, True, "running", False),
    "eval, flag off later": (False, True, False, "instance", True),
    "train, built without": (True, False, False, "instance", False),
    "eval, built without": (False, False, False, "instance", False),
}


@pytest.mark.parametrize("name", INSTANCE)
class TestInstanceNorm:
    @pytest.mark.parametrize("row", INSTANCE_ROWS)
    @pytest.mark.parametrize("affine", [True, False])
    def test_rows(self, name, row, affine):
        training, built, flag, uses, updates = INSTANCE_ROWS[row]
        layer = build(name, affine=affine, track_running_stats=built)
        layer.train(training).track_running_stats = flag
        said = statistics_of(layer)
        assert (said.uses, said.updates) == (uses, updates)
        assert not said.batch_dependent_in_eval
        assert observed(layer, inputs(name)) == (uses, updates)

    @pytest.mark.parametrize("momentum", [0.1, None, 0.0, 1.0])
    def test_momenta(self, name, momentum):
        """With None or 0.0 nothing is learnt, yet the buffers are written: as a mean over copies, which rounds."""
        layer = build(name, track_running_stats=True, momentum=momentum)
        mean, var = layer.running_mean.clone(), layer.running_var.clone()
        assert statistics_of(layer).updates
        assert observed(layer, inputs(name)) == ("instance", True)
        assert layer.num_batches_tracked == 0
        if not momentum:
            # A mean over six equal float64 values of size up to 2: a unit or two in the last place.
            assert torch.allclose(layer.running_mean, mean, rtol=0, atol=1e-15)
            assert torch.allclose(layer.running_var, var, rtol=0, atol=1e-15)

    def test_eval_without_buffers_but_with_the_flag_fails_in_torch(self, name):
        layer = build(name, track_running_stats=False).eval()
        layer.track_running_stats = True
        with pytest.raises(RuntimeError, match="running_mean and running_var"):
            layer(inputs(name))


SAMPLE = {
    "GroupNorm": lambda: nn.GroupNorm(3, 6),
    "GroupNorm, one group": lambda: nn.GroupNorm(1, 6),
    "LayerNorm": lambda: nn.LayerNorm([6, 4]),
    "RMSNorm": lambda: nn.RMSNorm([6, 4]),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(2),
}


@pytest.mark.parametrize("name", SAMPLE)
def test_norms_of_one_sample_do_not_know_the_batch_nor_the_mode(name):
    layer = SAMPLE[name]()
    x = torch.randn(5, 6, 4) * 2 + 3
    assert list(layer.buffers()) == []
    for training in (True, False):
        assert statistics_of(layer.train(training)) == StatisticsUse("sample", updates=False)
    assert torch.equal(layer.train()(x), layer.eval()(x))
    assert torch.equal(layer(x)[:2], layer(x[:2]))


def test_group_norm_normalizes_over_its_group():
    layer, x = nn.GroupNorm(3, 6).double(), torch.randn(5, 6, 4, dtype=torch.float64)
    groups = layer(x).view(5, 3, 8)
    assert torch.allclose(groups.mean(2), torch.zeros(5, 3, dtype=torch.float64), atol=1e-12)


class TestFrozenBatchNorms:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("which", ["torchvision", "timm"])
    def test_running_always(self, which, training, timm_layers, torchvision_ops):
        layer = {
            "torchvision": lambda: torchvision_ops.FrozenBatchNorm2d(3),
            "timm": lambda: timm_layers.norm_act.FrozenBatchNormAct2d(3, apply_act=False),
        }[which]()
        layer = layer.double().train(training)
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
        assert statistics_of(layer) == StatisticsUse("running", updates=False)
        assert observed(layer, inputs("BatchNorm2d")) == ("running", False)

    @pytest.mark.parametrize("row", S3)
    def test_timm_batch_norm_act(self, row, timm_layers):
        training, built, flag, uses, updates = S3[row]
        layer = timm_layers.BatchNormAct2d(3, apply_act=False, track_running_stats=built).double()
        if built:
            layer.running_mean.uniform_(-1, 1)
        layer.train(training).track_running_stats = flag
        said = statistics_of(layer)
        assert (said.uses, said.updates) == (uses, updates)
        assert observed(layer, inputs("BatchNorm2d")) == (uses, updates)

    def test_timm_layer_norms(self, timm_layers):
        assert statistics_of(timm_layers.LayerNorm2d(4)).uses == "sample"
        assert statistics_of(timm_layers.RmsNorm(4)) == StatisticsUse("sample", updates=False)
        assert statistics_of(timm_layers.GroupNormAct(4, 2)).uses == "sample"


@pytest.mark.parametrize("kind", ["subclass", "lazy, materialized", "compiled statistics"])
def test_relatives_of_batch_norm(kind):
    class Mine(nn.BatchNorm2d):
        pass

    layer = Mine(3) if kind == "subclass" else nn.LazyBatchNorm2d() if kind.startswith("lazy") else nn.BatchNorm2d(3)
    layer = layer.double()
    layer(inputs("BatchNorm2d"))
    for training, uses in ((True, "batch"), (False, "running")):
        said = statistics_of(layer.train(training))
        assert (said.uses, said.updates) == (uses, training)
        assert observed(layer, inputs("BatchNorm2d")) == (uses, training)


def test_lazy_before_its_first_forward():
    assert statistics_of(nn.LazyBatchNorm1d()) == StatisticsUse("batch", updates=True)
    assert statistics_of(nn.LazyBatchNorm1d(track_running_stats=False)).batch_dependent_in_eval


@pytest.mark.parametrize("layer", [nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)), nn.Conv2d(1, 1, 1)])
def test_what_is_no_norm(layer):
    assert statistics_of(layer) is None
    assert not has_running_statistics(layer)


@pytest.mark.parametrize(("name", "mode"), list(itertools.product(BATCH, [True, False])))
def test_no_grad_and_inference_mode_do_not_stop_updates(name, mode):
    for context in (torch.no_grad, torch.inference_mode):
        layer = build(name).train(mode)
        with context():
            layer(inputs(name))
        assert bool(layer.num_batches_tracked) == mode == statistics_of(layer).updates


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("flag", [True, False])
def test_a_held_layer_neither_updates_nor_looks_at_the_batch(name, flag):
    settings = {"track_running_stats": True, "affine": True}
    layer = build(name, **settings)
    layer.track_running_stats = flag
    model = nn.Sequential(layer)
    hold = fl.freeze(model, "0")
    x = inputs(name)
    model.train()
    assert torch.equal(model(x)[:2], model(x[:2]))
    assert not fl.explain(model)[0].updates
    hold.verify()
