"""Group norm and no tracking: other functions, said to be so, with the parameters kept (norm-facts 1.4, 6.12)."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from frostline.errors import CannotConvert
from frostline.norms import statistics_of
from frostline.norms.convert import FrozenNorm, GroupNorm, NoTracking, convert, plan_convert


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def affine_set(layer):
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.uniform_(-1, 1)
    return layer


class TestGroupNorm:
    @pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 24), (7, 7), (37, 1), (96, 32), (320, 32)])
    def test_the_largest_divisor_up_to_32(self, channels, groups):
        layer = convert(nn.BatchNorm2d(channels), GroupNorm()).model
        assert (layer.num_groups, layer.num_channels) == (groups, channels)

    @pytest.mark.parametrize("source", ["plain", "sync", "frozen"])
    def test_is_group_norm_with_the_same_parameters(self, source):
        layer = affine_set(nn.BatchNorm2d(6, eps=1e-3))
        if source == "sync":
            layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
        elif source == "frozen":
            layer = convert(layer, FrozenNorm()).model
        layer.bias.requires_grad_(False)
        weight, bias = layer.weight, layer.bias
        model = nn.Sequential(layer)
        result = convert(model, GroupNorm(3))
        x = torch.randn(4, 6, 5, 5) * 3
        expected = functional.group_norm(x, 3, weight, bias, 1e-3)
        assert torch.equal(model(x), expected)
        assert model[0].weight is weight
        assert model[0].bias is bias
        assert not bias.requires_grad
        assert list(model.state_dict()) == ["0.weight", "0.bias"]
        assert repr(model[0]) == repr(nn.GroupNorm(3, 6, eps=1e-3))
        assert set(vars(model[0])) == set(vars(nn.GroupNorm(3, 6)))
        (row,) = result.plan.rows
        assert not row.exact
        assert "needs training" in row.note

    def test_opacus_way_forgets_weight_and_bias(self):
        """validators/batch_norm.py builds a new layer: its affine parameters start anew, and no optimizer has them."""
        layer = affine_set(nn.BatchNorm2d(6))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        naive = nn.GroupNorm(3, 6)
        mine = convert(layer, GroupNorm(3)).model
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert not {id(p) for p in naive.parameters()} & known
        assert {id(p) for p in mine.parameters()} == known
        assert torch.equal(mine.weight, layer.weight)
        assert not torch.equal(naive.weight, layer.weight)

    def test_without_affine(self):
        layer = convert(nn.BatchNorm2d(6, affine=False), GroupNorm(2)).model
        assert repr(layer) == repr(nn.GroupNorm(2, 6, affine=False))
        layer(torch.randn(1, 6, 2, 2))

    def test_timms_activation_stays(self):
        from frostline.compat import import_torchvision

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_torchvision()
            from timm.layers import BatchNormAct2d, GroupNormAct
        layer = BatchNormAct2d(8, act_layer=nn.SiLU, eps=1e-3)
        affine_set(layer)
        new = convert(layer, GroupNorm(4)).model
        x = torch.randn(2, 8, 3, 3)
        twin = GroupNormAct(8, 4, eps=1e-3, act_layer=nn.SiLU)
        twin.load_state_dict(new.state_dict())
        assert torch.equal(new(x), twin(x))
        assert torch.equal(new(x), functional.silu(functional.group_norm(x, 4, layer.weight, layer.bias, 1e-3)))
        assert set(vars(new)) == set(vars(twin))


class TestDeadGroups:
    """PyTorch counts the batch into the size of a group, so groups of one value pass, and give 0 always."""

    def test_the_trap(self):
        x = torch.randn(2, 3) * 10
        # What is left is the rounding of values below 30, times 1 / sqrt(eps).
        assert nn.GroupNorm(3, 3)(x).abs().max() < 30 * 1.2e-7 / 1e-5**0.5

    def test_groups_of_two_are_hardly_better(self):
        """Every output is +1 or -1, whatever goes in."""
        out = nn.GroupNorm(8, 16, eps=1e-12)(torch.randn(32, 16)).abs()
        assert torch.allclose(out, torch.ones_like(out), atol=1e-3)

    @pytest.mark.parametrize("before", [nn.Linear(2, 6), nn.ReLU(), None])
    def test_is_refused_for_1d(self, before):
        model = nn.Sequential(*([before] if before else []), nn.BatchNorm1d(6))
        with pytest.raises(CannotConvert, match="one value in a group"):
            convert(model, GroupNorm(6))
        convert(model, GroupNorm(3))

    def test_one_channel_is_dead_in_any_number_of_groups(self):
        with pytest.raises(CannotConvert, match="one value in a group"):
            convert(nn.BatchNorm1d(1), GroupNorm())

    def test_behind_a_convolution_there_are_positions(self):
        model = nn.Sequential(nn.Conv1d(2, 6, 1), nn.BatchNorm1d(6))
        convert(model, GroupNorm(6))
        assert model(torch.randn(2, 2, 9)).std() > 0.5

    @pytest.mark.parametrize("channels", [2, 6, 16, 24, 32, 64, 512])
    def test_the_default_leaves_more_than_signs_for_1d(self, channels):
        model = nn.Sequential(nn.Linear(channels, channels), nn.BatchNorm1d(channels))
        convert(model, GroupNorm())
        assert channels // model[1].num_groups >= min(channels, 16)

    def test_a_synchronized_layer_behind_a_linear_one_is_1d(self):
        model = nn.Sequential(nn.Linear(2, 6), nn.SyncBatchNorm(6))
        with pytest.raises(CannotConvert, match="one value in a group"):
            convert(model, GroupNorm(6))

    @pytest.mark.parametrize("groups", [0, 4, -1])
    def test_groups_that_do_not_divide(self, groups):
        with pytest.raises(CannotConvert, match="do not divide 6 channels"):
            convert(nn.BatchNorm2d(6), GroupNorm(groups))

    def test_those_that_fit_are_converted_and_the_others_named(self):
        model = nn.Sequential(nn.BatchNorm2d(6), nn.BatchNorm2d(8))
        plan = plan_convert(model, GroupNorm(4))
        assert [row.path for row in plan.rows] == ["1"]
        assert dict(plan.skipped) == {"0": "4 groups do not divide 6 channels"}


class TestNoTracking:
    @pytest.mark.parametrize("name", ["BatchNorm1d", "SyncBatchNorm"])
    def test_depends_on_the_batch_in_eval_mode_and_says_so(self, name):
        model = nn.Sequential(affine_set(getattr(nn, name)(3))).eval()
        built = copy.deepcopy(model)
        built[0] = getattr(nn, name)(3, track_running_stats=False)
        built[0].load_state_dict({"weight": model[0].weight, "bias": model[0].bias})
        weight = model[0].weight
        (row,) = convert(model, NoTracking()).plan.rows
        x = torch.randn(8, 3) + 2
        assert torch.equal(model.eval()(x), built.eval()(x))
        assert not torch.allclose(model(x)[:4], model(x[:4]), atol=1e-2)
        assert statistics_of(model[0]).batch_dependent_in_eval
        assert not row.exact
        assert "depends on the rest of its batch in eval mode too" in row.note
        assert ("own process" in row.note) == (name == "SyncBatchNorm")
        assert model[0].weight is weight
        assert list(model.state_dict()) == ["0.weight", "0.bias"]
        assert repr(model[0]) == repr(built[0])

    def test_flag_alone_does_not_do_it(self):
        """The naive way: the flag is not consulted in eval mode while there are buffers."""
        layer = nn.BatchNorm1d(3).eval()
        layer.track_running_stats = False
        x = torch.randn(8, 3) + 2
        assert torch.equal(layer(x)[:4], layer(x[:4]))

    def test_the_statistics_come_back(self):
        model = nn.Sequential(nn.BatchNorm1d(3))
        model(torch.randn(8, 3))
        before = {key: value.clone() for key, value in model.state_dict().items()}
        buffer = model[0].running_mean
        result = convert(model, NoTracking())
        model(torch.randn(8, 3))
        result.undo()
        assert model[0].running_mean is buffer
        assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())

    def test_instance_norm(self):
        model = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True))
        model(torch.randn(2, 3, 4, 4))
        (row,) = convert(model, NoTracking()).plan.rows
        assert "each sample and channel by itself" in row.note
        x = torch.randn(2, 3, 4, 4) + 3
        assert torch.equal(model.eval()(x), nn.InstanceNorm2d(3)(x))
        assert not statistics_of(model[0]).updates

    def test_instance_norm_is_nothing_else(self):
        with pytest.raises(CannotConvert, match="does not normalize with the batch"):
            convert(nn.InstanceNorm2d(3), FrozenNorm())

    def test_a_subclass_is_kept(self):
        class Named(nn.BatchNorm1d):
            pass

        assert type(convert(Named(3), NoTracking()).model) is Named

    def test_twice_is_once(self):
        model = nn.Sequential(nn.BatchNorm1d(3))
        convert(model, NoTracking())
        assert convert(model, NoTracking()).plan.rows == ()
