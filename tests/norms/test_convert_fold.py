"""Folding: the weights of both layers in one, only where it is right (norm-facts 6.11 and 2)."""

from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import fusion, parametrize

import frostline as fl
from frostline.errors import CannotConvert
from frostline.norms import tracked_layers
from frostline.norms.convert import FrozenNorm, SyncNorm, convert, fold, plan_fold
from frostline.norms.convert.fold_step import FoldStep


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def trained(layer):
    """Statistics and affine parameters that are not the ones that layers are built with."""
    layer.running_mean.uniform_(-1, 1)
    layer.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                tensor.uniform_(-1.5, 1.5)
    return layer.eval()


def pair(conv=None, **settings):
    return nn.Sequential(conv or nn.Conv2d(3, 4, 3, bias=False), trained(nn.BatchNorm2d(4, **settings))).eval()


def reason(model, inputs=None):
    """Why the one batch norm of a model is left alone."""
    with pytest.raises(CannotConvert) as caught:
        plan_fold(model, inputs=inputs)
    return str(caught.value)


def allowed(model, x):
    """How far folding may move the output of a convolution or linear layer behind which a batch norm stood.

    The sum of K products in float32 is off by at most K + 2 half eps of the sum of their sizes, whatever the order;
    folded weights are each off by one more, and batch norm itself by at most seven of its three terms.
    """
    before, norm = model[0].double(), model[1].double()
    scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    channels = (1, -1, *[1] * (x.ndim - 2))
    absolute = copy.deepcopy(before)
    for tensor in absolute.parameters():
        tensor.data.abs_()
    sizes = absolute(x.double().abs()) * scale.abs().view(channels)
    shift = 0 if norm.bias is None else norm.bias.abs().view(channels)
    sizes = sizes + (norm.running_mean * scale).abs().view(channels) + shift
    terms = before.weight[0].numel() if not getattr(before, "transposed", False) else before.weight.numel()
    return (2 * (terms + 2) + 1 + 7) * torch.finfo(torch.float32).eps / 2 * sizes


CONVOLUTIONS = {
    "1d": (lambda **k: nn.Conv1d(4, 6, 3, **k), nn.BatchNorm1d, (2, 4, 9)),
    "2d": (lambda **k: nn.Conv2d(4, 6, 3, **k), nn.BatchNorm2d, (2, 4, 7, 8)),
    "3d": (lambda **k: nn.Conv3d(4, 6, 2, **k), nn.BatchNorm3d, (2, 4, 4, 5, 4)),
    "transposed 1d": (lambda **k: nn.ConvTranspose1d(4, 6, 3, stride=2, **k), nn.BatchNorm1d, (2, 4, 5)),
    "transposed 2d": (lambda **k: nn.ConvTranspose2d(4, 6, 3, stride=2, **k), nn.BatchNorm2d, (2, 4, 5, 4)),
    "transposed 3d": (lambda **k: nn.ConvTranspose3d(4, 6, 2, **k), nn.BatchNorm3d, (2, 4, 3, 3, 3)),
}


class TestRight:
    @pytest.mark.parametrize("name", CONVOLUTIONS)
    @pytest.mark.parametrize(
        ("groups", "bias", "affine"), list(itertools.product([1, 2], [True, False], [True, False]))
    )
    def test_convolutions(self, name, groups, bias, affine):
        make, norm, shape = CONVOLUTIONS[name]
        model = nn.Sequential(make(groups=groups, bias=bias, padding=1), trained(norm(6, affine=affine))).eval()
        x = torch.randn(shape) * 3
        expected, twin = model(x), copy.deepcopy(model)
        result = fold(model, inputs=x)
        assert isinstance(model[1], nn.Identity)
        assert [row.exact for row in result.plan.rows] == [False]
        assert ((model(x) - expected).abs() <= allowed(twin, x)).all()
        result.undo()
        assert torch.equal(model(x), expected)

    @pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular", "replicate"])
    def test_padding_before_the_convolution_does_not_matter(self, padding_mode):
        model = pair(nn.Conv2d(3, 4, 3, padding=2, dilation=2, stride=2, padding_mode=padding_mode))
        x = torch.randn(2, 3, 9, 9)
        expected, twin = model(x), copy.deepcopy(model)
        fold(model)
        assert ((model(x) - expected).abs() <= allowed(twin, x)).all()

    @pytest.mark.parametrize(("bias", "affine"), list(itertools.product([True, False], repeat=2)))
    def test_linear(self, bias, affine):
        model = nn.Sequential(nn.Linear(5, 6, bias=bias), trained(nn.BatchNorm1d(6, affine=affine)))
        x = torch.randn(7, 5)
        expected, twin = model(x), copy.deepcopy(model)
        fold(model, inputs=x)
        assert ((model(x) - expected).abs() <= allowed(twin, x)).all()

    @pytest.mark.parametrize("kind", ["sync", "frozen", "torchvision"])
    def test_other_batch_norms(self, kind):
        model = pair()
        x = torch.randn(2, 3, 6, 6)
        expected, twin = model(x), copy.deepcopy(model)
        if kind == "torchvision":
            from frostline.compat import import_torchvision

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ops = import_torchvision("ops")
            theirs = ops.FrozenBatchNorm2d(4)
            theirs.load_state_dict(model[1].state_dict())
            model[1] = theirs
        else:
            convert(model, FrozenNorm() if kind == "frozen" else SyncNorm())
        fold(model, inputs=x)
        assert ((model(x) - expected).abs() <= allowed(twin, x)).all()

    def test_a_frozen_one_in_train_mode_too(self):
        model = pair()
        x = torch.randn(2, 3, 6, 6)
        expected, twin = model(x), copy.deepcopy(model)
        convert(model, FrozenNorm())
        fold(model.train(), inputs=x)
        assert ((model(x) - expected).abs() <= allowed(twin, x)).all()

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_types(self, dtype):
        model = pair().to(dtype)
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
        wide = copy.deepcopy(model).double()(x)
        fold(model)
        assert {p.dtype for p in model.parameters()} == {dtype}
        # 27 products and a bias below 6 each, their weights off by half an eps.
        off = (model.double()(x) - wide).abs().max()
        assert off <= 28 * 6 * torch.finfo(dtype).eps / 2

    def test_as_near_as_torchs_own(self):
        """Both against float64; ours rounds once, from float64."""
        model = pair(nn.Conv2d(64, 4, 3, bias=False))
        x = torch.randn(4, 64, 6, 6)
        exact = copy.deepcopy(model).double()
        with torch.no_grad():
            weight, bias = fusion.fuse_conv_bn_weights(
                model[0].weight,
                None,
                *(getattr(model[1], n) for n in ("running_mean", "running_var", "eps", "weight", "bias")),
            )
            scale = (exact[1].running_var + 1e-5).rsqrt() * exact[1].weight
            true = exact[0].weight * scale.view(-1, 1, 1, 1)
            fold(model)
            assert (model[0].weight.double() - true).abs().max() <= (weight.double() - true).abs().max()
            # Rounded once: half an eps of each weight.
            assert ((model[0].weight.double() - true).abs() <= true.abs() * 2**-24 * (1 + 1e-6)).all()
        assert torch.allclose(model(x).double(), exact(x.double()), rtol=0, atol=1e-4)
        assert torch.allclose(bias, model[0].bias, atol=1e-6)


class TestWhatTorchGetsWrong:
    @pytest.mark.parametrize(("weight", "bias"), [(True, True), (True, False), (False, True)])
    def test_a_new_bias_trains_where_the_batch_norm_did(self, weight, bias):
        model = pair()
        model[1].bias.requires_grad_(bias)
        model[0].weight.requires_grad_(weight)
        assert not fusion.fuse_conv_bn_eval(model[0], model[1]).bias.requires_grad
        (row,) = fold(model).plan.rows
        assert model[0].bias.requires_grad is bias
        assert model[0].weight.requires_grad is weight
        assert f"requires_grad={bias}" in row.note

    def test_a_new_bias_without_affine_trains_as_the_weight(self):
        model = pair(affine=False)
        model[0].weight.requires_grad_(False)
        fold(model)
        assert not model[0].bias.requires_grad

    def test_linear_without_affine_crashes_there(self):
        linear, norm = nn.Linear(2, 4).eval(), nn.BatchNorm1d(4, affine=False).eval()
        with pytest.raises(TypeError):
            fusion.fuse_linear_bn_eval(linear, norm)
        fold(nn.Sequential(linear, norm), inputs=torch.zeros(2, 2))

    def test_transposed_with_groups_is_wrong_there(self):
        model = pair(nn.ConvTranspose2d(4, 4, 3, groups=2))
        x = torch.randn(1, 4, 5, 5)
        expected = model(x)
        with pytest.raises(RuntimeError):
            fusion.fuse_conv_bn_eval(model[0], model[1], transpose=True)
        fold(model)
        assert torch.allclose(model(x), expected, atol=1e-5)

    def test_batch_norm_before_a_zero_padded_convolution(self):
        """Folding forwards would be off by what the padding does not shift."""
        norm, conv = trained(nn.BatchNorm2d(3)), nn.Conv2d(3, 4, 3, padding=1)
        x = torch.randn(2, 3, 5, 5)
        scale = ((norm.running_var + norm.eps).rsqrt() * norm.weight).detach()
        naive = copy.deepcopy(conv)
        naive.weight.data *= scale.view(1, 3, 1, 1)
        shift = norm.bias - norm.running_mean * scale
        naive.bias.data += (conv.weight.sum((2, 3)) @ shift).detach()
        assert (naive(x) - conv(norm(x))).abs().max() > 0.1
        model = nn.Sequential(norm, conv)
        assert "0: it follows placeholder" in reason(model)
        assert "does not follow a convolution or linear layer" in reason(model, x)

    def test_a_linear_layer_whose_channels_are_positions(self):
        """BatchNorm1d behind a linear layer on sequences normalizes positions; torch folds it all the same."""
        model = nn.Sequential(nn.Linear(3, 4), trained(nn.BatchNorm1d(4))).eval()
        x = torch.randn(2, 4, 3)
        wrong = fusion.fuse_linear_bn_eval(model[0], model[1])
        assert not torch.allclose(wrong(x), model(x), atol=0.1)
        assert "not known without inputs=" in reason(model)
        assert "whose output has 3 dimensions" in reason(model, x)


class TestState:
    def test_objects_are_kept_and_come_back(self):
        model = pair(nn.Conv2d(3, 4, 3))
        conv, norm, parameters = model[0], model[1], dict(model[0].named_parameters())
        values = {name: p.detach().clone() for name, p in parameters.items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        result = fold(model)
        assert model[0] is conv
        assert dict(model[0].named_parameters()) == parameters
        assert not torch.equal(conv.weight, values["weight"])
        model(torch.randn(1, 3, 4, 4)).sum().backward()
        before = conv.weight.detach().clone()
        optimizer.step()
        assert not torch.equal(conv.weight, before)
        result.undo()
        assert model[1] is norm
        assert all(torch.equal(p, values[name]) for name, p in conv.named_parameters())

    def test_a_new_bias_goes_again(self):
        model = pair()
        keys = list(model.state_dict())
        result = fold(model)
        assert list(model.state_dict()) == ["0.weight", "0.bias"]
        result.undo()
        assert model[0].bias is None
        assert list(model.state_dict()) == keys

    def test_mode_is_kept(self):
        model = pair()
        result = fold(model)
        assert not model[1].training
        model.train()
        result.undo()
        assert model[1].training

    def test_there_is_nothing_left_to_recalibrate(self):
        model = pair()
        fold(model)
        assert tracked_layers(model) == {}

    def test_an_activation_within_stays(self):
        from frostline.compat import import_torchvision

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_torchvision()
            from timm.layers import BatchNormAct2d
        model = nn.Sequential(nn.Conv2d(3, 4, 3), trained(BatchNormAct2d(4, act_layer=nn.SiLU)))
        x = torch.randn(2, 3, 5, 5)
        expected, act = model(x), model[1].act
        fold(model)
        assert [type(child).__name__ for child in model[1]] == ["Identity", "SiLU"]
        assert model[1].act is act
        assert torch.allclose(model(x), expected, atol=1e-5)

    def test_copies_and_compile(self):
        model = pair()
        fold(model)
        x = torch.randn(1, 3, 5, 5)
        assert torch.equal(copy.deepcopy(model)(x), model(x))
        assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


class TestRefused:
    def test_train_mode(self):
        assert "1: it normalizes with the batch: set eval mode" in reason(pair().train())

    def test_no_statistics(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
        assert "it keeps no statistics" in reason(model)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5])
    @pytest.mark.parametrize("buffer", ["running_mean", "running_var"])
    def test_statistics_that_are_not_finite(self, buffer, value):
        model = pair()
        getattr(model[1], buffer)[2] = value
        if (buffer, value) == ("running_mean", -0.5):
            fold(model)
        else:
            assert "not finite, or a variance is negative" in reason(model)

    def test_division_by_zero(self):
        model = pair(eps=0.0)
        model[1].running_var[1] = 0
        assert "it divides by 0" in reason(model)

    def test_weights_that_would_overflow(self):
        model = pair().half()
        model[1].running_var.zero_()
        model[1].weight.data.fill_(1000)
        assert "would overflow in float16" in reason(model)

    def test_other_channels(self):
        model = nn.Sequential(nn.Conv1d(2, 4, 1), trained(nn.BatchNorm1d(3)))
        assert "gives 4 channels, which are not its own" in reason(model)

    @pytest.mark.parametrize("place", [0, 1])
    @pytest.mark.parametrize("level", ["state", "grad"])
    def test_held(self, place, level):
        model = pair()
        fl.freeze(model, str(place), level=level)
        assert "held" in reason(model)

    @pytest.mark.parametrize("place", [0, 1])
    def test_hooked(self, place):
        model = pair()
        model[place].register_forward_hook(lambda *args: None)
        assert "has hooks, which would see other values" in reason(model)

    def test_tied_weights(self):
        model = pair()
        model.add_module("other", nn.Conv2d(3, 4, 3, bias=False))
        model.other.weight = model[0].weight
        model.forward = lambda x: model[1](model[0](x))
        assert "the weights of '0' (Conv2d) are tied to others" in reason(model, torch.zeros(1, 3, 7, 7))

    def test_a_parametrized_convolution(self):
        model = pair()
        parametrize.register_parametrization(model[0], "weight", nn.Tanh())
        assert "computed from other tensors" in reason(model)

    def test_a_convolution_with_a_forward_of_its_own(self):
        class Standardized(nn.Conv2d):
            def forward(self, x):
                return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

        class Hidden(nn.Conv2d):
            """Whose forward is the class' own, and calls this."""

            def _conv_forward(self, x, weight, bias):
                return super()._conv_forward(x, weight / weight.norm(), bias)

        assert "Standardized has a forward of its own" in reason(pair(Standardized(3, 4, 3)))
        assert "Hidden has a _conv_forward of its own" in reason(pair(Hidden(3, 4, 3)))

    def test_a_batch_norm_compiled_by_itself(self):
        model = pair()
        model[1] = torch.compile(model[1], backend="eager")
        x = torch.zeros(1, 3, 5, 5)
        assert "compiled by itself" in reason(model, x)
        # Nor has dynamo learnt to leave such layers alone.
        torch.compile(pair(), backend="eager", fullgraph=True)(x)

    def test_a_batch_norm_with_a_forward_of_its_own(self):
        class Doubling(nn.BatchNorm2d):
            def forward(self, x):
                return 2 * super().forward(x)

        model = nn.Sequential(nn.Conv2d(3, 4, 1), trained(Doubling(4)))
        assert "Doubling has a forward of its own" in reason(model)

    def test_lazy(self):
        with pytest.raises(CannotConvert, match="does not know its width"):
            fold(nn.Sequential(nn.Conv2d(3, 4, 1), nn.LazyBatchNorm2d()).eval())
        model = nn.Sequential(nn.LazyConv2d(4, 1), nn.BatchNorm2d(4)).eval()
        assert "has no values" in reason(model)

    def test_no_values(self):
        assert "has no values" in reason(pair().to("meta"))

    def test_a_model_that_is_the_layer(self):
        assert "there is nothing before it" in reason(nn.BatchNorm2d(3).eval())
        assert "no normalization layer" in reason(nn.Linear(1, 1))


class TestWhole:
    def test_a_failure_in_the_middle(self, monkeypatch):
        model = nn.Sequential(*pair(), *pair(nn.Conv2d(4, 4, 1))).eval()
        x, real = torch.randn(1, 3, 5, 5), FoldStep.carry_out
        before = {key: value.clone() for key, value in model.state_dict().items()}
        modules, expected = dict(model.named_modules()), model(x)

        def carry_out(self):
            real(self)
            if self.path == "3":
                raise MemoryError

        monkeypatch.setattr(FoldStep, "carry_out", carry_out)
        with pytest.raises(MemoryError):
            fold(model)
        assert dict(model.named_modules()) == modules
        assert list(model.state_dict()) == list(before)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert torch.equal(model(x), expected)

    @pytest.mark.parametrize("what", ["weight", "bias"])
    def test_weights_that_come_out_wrong_are_seen_by_value(self, what, monkeypatch):
        """By three units in the last place of one weight."""
        model, real = pair(), FoldStep.carry_out
        before = {key: value.clone() for key, value in model.state_dict().items()}

        def carry_out(self):
            real(self)
            with torch.no_grad():
                getattr(self.before, what).mul_(1 + 4e-7)

        monkeypatch.setattr(FoldStep, "carry_out", carry_out)
        with pytest.raises(CannotConvert, match="times what rounding explains"):
            fold(model)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def test_a_plan_that_is_out_of_date(self):
        model = pair()
        plan = plan_fold(model)
        model.train()
        with pytest.raises(CannotConvert, match="no longer normalizes with its running statistics"):
            plan.apply()
        model.eval()
        plan.apply()
        with pytest.raises(CannotConvert, match="something else stands in its place"):
            plan.apply()

    def test_selectors(self):
        model = nn.Sequential(*pair(), *pair(nn.Conv2d(4, 4, 1))).eval()
        assert [row.path for row in fold(model, "3").plan.rows] == ["3"]
        assert isinstance(model[1], nn.BatchNorm2d)
