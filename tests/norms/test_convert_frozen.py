"""Frozen batch norm: equal to batch norm's eval mode to the bit, in every mode, and back again (norm-facts 6.10)."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import CannotConvert
from frostline.norms import StatisticsUse, statistics_of, tracked_layers
from frostline.norms.convert import FrozenBatchNorm, FrozenNorm, GroupNorm, PlainNorm, convert, plan_convert

SHAPES = {
    "BatchNorm1d": [(6, 3), (6, 3, 5)],
    "BatchNorm2d": [(6, 3, 4, 5)],
    "BatchNorm3d": [(4, 3, 2, 3, 2)],
    "SyncBatchNorm": [(6, 3), (6, 3, 4, 4)],
}
CASES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def torchvision_ops():
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_torchvision("ops")


@pytest.fixture(scope="module")
def norm_act(torchvision_ops):
    import timm.layers.norm_act

    return timm.layers.norm_act


def trained(layer):
    """Statistics and affine parameters that are not the ones that layers are built with."""
    layer.running_mean.uniform_(-1, 1)
    layer.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                tensor.uniform_(-1.5, 1.5)
    return layer


@pytest.mark.parametrize(("name", "shape"), CASES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_to_eval_mode_to_the_bit_in_either_mode_with_gradients(name, shape, affine, dtype):
    model = nn.Sequential(trained(getattr(nn, name)(3, eps=1e-3, affine=affine))).to(dtype).eval()
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    y = torch.randn(shape, dtype=dtype)

    def run():
        out = model(x)
        wanted = [x, *model.parameters()]
        return [out, *torch.autograd.grad((out * y).sum(), wanted)]

    expected = run()
    convert(model, FrozenNorm())
    for training in (False, True):
        model.train(training)
        buffers = {key: value.clone() for key, value in model.state_dict().items()}
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
        assert all(torch.equal(value, buffers[key]) for key, value in model.state_dict().items())


def test_against_the_formula_in_float64():
    layer = trained(nn.BatchNorm2d(3, eps=1e-3)).double()
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64) * 3 + 2
    out = convert(layer, FrozenNorm()).model.train()(x)
    mean, var, weight, bias = (
        t.detach().view(1, 3, 1, 1) for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    by_hand = (x - mean) / torch.sqrt(var + 1e-3) * weight + bias
    # A handful of roundings of 1.1e-16 on values below 100.
    assert torch.allclose(out, by_hand, rtol=0, atol=1e-13)


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format_is_kept(channels_last):
    x = torch.randn(2, 8, 4, 4)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    layer = trained(nn.BatchNorm2d(8)).eval()
    expected = layer(x)
    out = convert(layer, FrozenNorm()).model(x)
    assert torch.equal(out, expected)
    assert out.stride() == expected.stride()


def test_flag_flipped_as_lightning_does_is_no_freezing():
    """track_running_stats=False later on: train mode normalizes with the batch."""
    x = torch.randn(16, 3) * 5 + 7
    layer = trained(nn.BatchNorm1d(3)).eval()
    expected = layer(x)
    flipped = copy.deepcopy(layer).train()
    flipped.track_running_stats = False
    assert not torch.allclose(flipped(x), expected, atol=0.5)
    assert torch.equal(convert(layer, FrozenNorm()).model.train()(x), expected)


def test_eval_by_hand_does_not_survive_train():
    """The naive way: layer.eval() is undone by the next model.train()."""
    naive = nn.Sequential(trained(nn.BatchNorm1d(3)))
    frozen = copy.deepcopy(naive)
    naive[0].eval()
    convert(frozen, FrozenNorm())
    x = torch.randn(8, 3) + 4
    before = naive[0].running_mean.clone()
    for model in (naive, frozen):
        model.train()(x)
    assert not torch.equal(naive[0].running_mean, before)
    assert torch.equal(frozen[0].running_mean, before)


class TestState:
    def test_parameters_buffers_and_settings_are_the_same(self):
        layer = trained(nn.BatchNorm2d(3, eps=0.1, momentum=0.37))
        layer.bias.requires_grad_(False)
        old = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        model = nn.Sequential(layer)
        convert(model, FrozenNorm())
        new = {**dict(model[0].named_parameters()), **dict(model[0].named_buffers())}
        assert list(new) == list(old)
        assert all(new[key] is old[key] for key in old)
        assert (model[0].weight.requires_grad, model[0].bias.requires_grad) == (True, False)
        assert (model[0].eps, model[0].momentum) == (0.1, 0.37)

    def test_timm_and_torchvision_lose_what_is_kept_here(self, norm_act):
        """freeze_batch_norm_2d: parameters become buffers, requires_grad and momentum are gone, so is the way back."""
        model = nn.Sequential(trained(nn.BatchNorm2d(3, eps=0.1, momentum=0.37)))
        theirs = norm_act.freeze_batch_norm_2d(copy.deepcopy(model))
        assert list(theirs.parameters()) == []
        assert not hasattr(theirs[0], "momentum")
        assert norm_act.unfreeze_batch_norm_2d(theirs)[0].momentum != 0.37
        convert(model, FrozenNorm())
        assert len(list(model.parameters())) == 2
        convert(model, PlainNorm())
        assert (type(model[0]), model[0].momentum, model[0].eps) == (nn.BatchNorm2d, 0.37, 0.1)

    def test_weights_train_where_requires_grad_says_so(self):
        model = nn.Sequential(trained(nn.BatchNorm1d(3)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model[0].bias.requires_grad_(False)
        convert(model, FrozenNorm())
        weight, bias = model[0].weight.clone(), model[0].bias.clone()
        model.train()(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(model[0].weight, weight)
        assert torch.equal(model[0].bias, bias)

    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.parametrize("name", SHAPES)
    def test_state_dict_goes_both_ways(self, name, affine):
        make = getattr(nn, name)
        source = trained(make(3, affine=affine))
        source.num_batches_tracked.fill_(7)
        saved = {key: value.clone() for key, value in source.state_dict().items()}
        frozen = convert(make(3, affine=affine), FrozenNorm()).model
        assert list(frozen.state_dict()) == list(saved)
        assert str(frozen.load_state_dict(source.state_dict())) == "<All keys matched successfully>"
        plain = make(3, affine=affine)
        assert str(plain.load_state_dict(frozen.state_dict())) == "<All keys matched successfully>"
        assert all(torch.equal(value, saved[key]) for key, value in plain.state_dict().items())

    def test_loads_torchvisions_without_a_count(self, torchvision_ops):
        theirs = torchvision_ops.FrozenBatchNorm2d(3)
        theirs.running_mean.fill_(2)
        frozen = convert(nn.BatchNorm2d(3), FrozenNorm()).model
        frozen.num_batches_tracked.fill_(5)
        assert str(frozen.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
        assert frozen.running_mean.tolist() == [2, 2, 2]
        assert frozen.num_batches_tracked == 5

    def test_a_missing_mean_is_still_an_error(self):
        state = nn.BatchNorm2d(3).state_dict()
        del state["running_mean"]
        with pytest.raises(RuntimeError, match="running_mean"):
            convert(nn.BatchNorm2d(3), FrozenNorm()).model.load_state_dict(state)

    def test_a_layer_without_a_count_takes_a_state_dict_with_one(self):
        source = nn.BatchNorm2d(3)
        source.num_batches_tracked = None
        frozen = convert(source, FrozenNorm()).model
        assert "num_batches_tracked" not in frozen.state_dict()
        frozen.load_state_dict(nn.BatchNorm2d(3).state_dict())

    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    def test_copies(self, how):
        model = nn.Sequential(trained(nn.BatchNorm2d(3)))
        convert(model, FrozenNorm())
        other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
        x = torch.randn(2, 3, 4, 4)
        assert torch.equal(other.train()(x), model.train()(x))
        convert(other, PlainNorm())
        assert type(other[0]) is nn.BatchNorm2d
        assert type(model[0]) is FrozenBatchNorm


class TestToOthers:
    def test_is_known_as_frozen(self):
        model = nn.Sequential(nn.BatchNorm2d(3))
        convert(model, FrozenNorm())
        for training in (True, False):
            assert statistics_of(model.train(training)[0]) == StatisticsUse("running", updates=False)
        (row,) = fl.explain(model)
        assert (row.uses, row.updates, row.trainable) == ("running", False, "yes")
        assert fl.snapshot(model)["0.running_mean"].role == "norm.mean"
        assert list(tracked_layers(model)) == ["0"]

    def test_is_no_batch_norm_to_what_re_estimates_batch_norms(self):
        """update_bn resets every batch norm, a subclass that overrides forward too."""
        model = nn.Sequential(trained(nn.BatchNorm1d(3)))
        plain = copy.deepcopy(model)
        convert(model, FrozenNorm())
        before = model[0].running_mean.clone()
        batches = [torch.randn(8, 3) + 5]
        for each in (plain, model):
            torch.optim.swa_utils.update_bn(batches, each)
        assert not torch.equal(plain[0].running_mean, before)
        assert torch.equal(model[0].running_mean, before)

    def test_can_be_frozen_whole(self):
        model = nn.Sequential(trained(nn.BatchNorm1d(3)))
        convert(model, FrozenNorm())
        hold = fl.freeze(model, "*")
        model.train()(torch.randn(4, 3))
        hold.verify()

    def test_traced_by_fx_and_compiled_and_scripted(self):
        model = nn.Sequential(trained(nn.BatchNorm2d(3)), nn.ReLU())
        convert(model, FrozenNorm())
        x = torch.randn(2, 3, 4, 4)
        expected = model.train()(x)
        assert torch.equal(torch.fx.symbolic_trace(model)(x), expected)
        assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
        exported = torch.export.export(model.eval(), (x,)).module()
        assert torch.equal(exported(x), expected)

    @pytest.mark.parametrize(
        ("name", "good", "bad"), [("BatchNorm2d", (1, 3, 2, 2), (3, 2, 2)), ("BatchNorm1d", (2, 3), (1, 3, 2, 2))]
    )
    def test_inputs_that_batch_norm_refuses_are_refused(self, name, good, bad):
        layer = getattr(nn, name)(3).eval()
        with pytest.raises(ValueError, match="expected"):
            layer(torch.zeros(bad))
        frozen = convert(layer, FrozenNorm()).model
        frozen(torch.zeros(good))
        with pytest.raises(AssertionError, match="dimensions"):
            frozen(torch.zeros(bad))

    def test_built_by_hand(self):
        layer = FrozenBatchNorm(3, eps=0.5, affine=False, dtype=torch.float64)
        assert layer.weight is None
        assert torch.equal(
            layer(torch.ones(2, 3, dtype=torch.float64)),
            nn.BatchNorm1d(3, eps=0.5, affine=False).double().eval()(torch.ones(2, 3).double()),
        )
        with pytest.raises(CannotConvert, match=r"PlainNorm\(dims=2\)"):
            convert(layer, PlainNorm())
        assert type(convert(layer, PlainNorm(dims=1)).model) is nn.BatchNorm1d


class TestWhatCannotBe:
    def test_no_running_statistics(self):
        with pytest.raises(CannotConvert, match="keeps no running statistics"):
            plan_convert(nn.BatchNorm1d(3, track_running_stats=False), FrozenNorm())

    def test_twice_is_once(self):
        model = nn.Sequential(nn.BatchNorm1d(3))
        convert(model, FrozenNorm())
        frozen = model[0]
        result = convert(model, FrozenNorm())
        assert result.plan.rows == ()
        assert dict(result.plan.skipped) == {"0": "it is one already"}
        assert model[0] is frozen


class TestFromOthers:
    """Frozen batch norms of torchvision and timm, whose weight and bias are buffers."""

    @pytest.fixture(params=["torchvision", "timm"])
    def theirs(self, request, torchvision_ops, norm_act):
        layer = torchvision_ops.FrozenBatchNorm2d(8, eps=1e-3)
        if request.param == "timm":
            layer = norm_act.FrozenBatchNormAct2d(8, eps=1e-3, act_layer=nn.SiLU)
        layer.weight.uniform_(-1.5, 1.5)
        layer.bias.uniform_(-1, 1)
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
        return layer

    @pytest.mark.parametrize("to", [PlainNorm(), FrozenNorm()])
    def test_become_ours_up_to_rounding(self, theirs, to):
        model = nn.Sequential(theirs).eval()
        x = torch.randn(4, 8, 5, 5) * 2
        expected = model(x)
        saved = {key: value.clone() for key, value in model.state_dict().items()}
        result = convert(model, to)
        (row,) = result.plan.rows
        assert not row.exact
        assert "rounding" in row.note
        assert "requires_grad=False" in row.note
        # 16 roundings of half an eps on three terms below 10 each; SiLU stretches by up to 1.1.
        assert torch.allclose(model(x), expected, rtol=0, atol=8 * 1.2e-7 * 30 * 1.1)
        assert type(model[0]).__name__ in {"BatchNorm2d", "BatchNormAct2d", "FrozenBatchNorm", "FrozenBatchNormAct"}
        assert [p.requires_grad for p in model.parameters()] == [False, False]
        assert model[0].eps == 1e-3
        assert all(torch.equal(model.state_dict()[key], value) for key, value in saved.items())
        assert model[0].running_mean is theirs.running_mean
        model.train()(x)
        assert model[0].num_batches_tracked == (1 if isinstance(to, PlainNorm) else 0)

    def test_become_group_norm(self, theirs):
        weight = theirs.weight.clone()
        (row,) = convert(model := nn.Sequential(theirs), GroupNorm(2)).plan.rows
        assert "requires_grad=False" in row.note
        assert torch.equal(model[0].weight, weight)
        assert list(model.state_dict()) == ["0.weight", "0.bias"]
        model(torch.randn(2, 8, 3, 3))

    def test_come_back(self, theirs):
        model = nn.Sequential(theirs)
        expected = model(torch.ones(1, 8, 2, 2))
        convert(model, PlainNorm()).undo()
        assert model[0] is theirs
        assert torch.equal(model(torch.ones(1, 8, 2, 2)), expected)

    def test_a_forward_of_ones_own_under_that_name_is_left_alone(self, torchvision_ops):
        class FrozenBatchNorm2d(torchvision_ops.FrozenBatchNorm2d):
            def forward(self, x):
                return 2 * super().forward(x)

        # The class itself is taken for one of the kind; that it computes something else is seen by value.
        model = nn.Sequential(FrozenBatchNorm2d(3))
        layer = model[0]
        with pytest.raises(CannotConvert, match="output in eval mode is another"):
            convert(model, PlainNorm())
        assert model[0] is layer

    def test_one_without_its_eps_is_not_known(self):
        class FrozenBatchNorm2d(nn.Module):
            """DETR's keeps eps in its forward."""

            def __init__(self):
                super().__init__()
                for name in ("weight", "bias", "running_mean", "running_var"):
                    self.register_buffer(name, torch.ones(3))

        with pytest.raises(CannotConvert, match="not known"):
            plan_convert(nn.Sequential(FrozenBatchNorm2d()), PlainNorm())
