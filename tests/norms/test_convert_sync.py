"""To SyncBatchNorm and back, and what torch's own converter loses on the way (norm-facts 1.4 and 2)."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from frostline.errors import CannotConvert, NotConverted
from frostline.norms.convert import FrozenNorm, NoTracking, PlainNorm, SyncNorm, convert, plan_convert

theirs = nn.SyncBatchNorm.convert_sync_batchnorm


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def norm_act():
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import timm.layers.norm_act
    return timm.layers.norm_act


class Doubling(nn.BatchNorm1d):
    def forward(self, x):
        return 2 * super().forward(x)


class Named(nn.BatchNorm1d):
    """A subclass that does nothing else."""


@pytest.mark.parametrize(
    ("name", "shape"), [("BatchNorm1d", (6, 3)), ("BatchNorm2d", (6, 3, 4, 4)), ("BatchNorm3d", (4, 3, 2, 2, 2))]
)
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
@pytest.mark.parametrize("training", [True, False])
def test_equal_to_the_bit_without_processes_and_back(name, shape, settings, training):
    model = nn.Sequential(getattr(nn, name)(3, **settings)).train(training)
    twin = copy.deepcopy(model)
    x = torch.randn(shape) * 2 + 1
    convert(model, SyncNorm())
    assert type(model[0]) is nn.SyncBatchNorm
    assert model[0].training is training
    assert torch.equal(model(x), twin(x))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    convert(model, PlainNorm())
    assert type(model[0]) is getattr(nn, name)
    assert torch.equal(model(x), twin(x))
    assert repr(model) == repr(twin)
    assert set(vars(model[0])) == set(vars(twin[0]))


class TestWhatTorchLoses:
    def test_hooks(self):
        """convert_sync_batchnorm drops them; here their handles go on working."""
        seen = []
        model = nn.Sequential(nn.BatchNorm1d(3))
        handles = [
            model[0].register_forward_pre_hook(lambda module, args: seen.append("before")),
            model[0].register_forward_hook(lambda module, args, out: seen.append(type(module).__name__)),
            model[0].register_full_backward_hook(lambda module, grad_in, grad_out: seen.append("backward")),
        ]
        x = torch.randn(4, 3, requires_grad=True)
        theirs(copy.deepcopy(model))(x).sum().backward()
        assert seen == []
        convert(model, SyncNorm())
        model(x).sum().backward()
        assert seen == ["before", "SyncBatchNorm", "backward"]
        for handle in handles:
            handle.remove()
        model(x)
        assert len(seen) == 3

    def test_a_forward_of_its_own(self):
        x = torch.randn(4, 3)
        model = nn.Sequential(Doubling(3), nn.BatchNorm1d(3)).eval()
        lossy = theirs(copy.deepcopy(model))
        assert torch.allclose(lossy[0](x) * 2, model[0](x))
        doubling, expected = model[0], model(x)
        with pytest.warns(NotConverted, match="Doubling has a forward of its own"):
            result = convert(model, SyncNorm())
        assert model[0] is doubling
        assert type(model[1]) is nn.SyncBatchNorm
        assert torch.equal(model(x), expected)
        assert dict(result.plan.skipped) == {"0": "Doubling has a forward of its own"}

    @pytest.mark.parametrize("method", ["train", "_load_from_state_dict", "__call__"])
    def test_any_other_method_of_its_own(self, method):
        cls = type("Mine", (nn.BatchNorm1d,), {method: getattr(nn.BatchNorm1d, method)})
        assert vars(cls)[method] is not vars(nn.BatchNorm1d).get(method)
        with pytest.raises(CannotConvert, match=f"Mine has a {method} of its own"):
            plan_convert(cls(3), FrozenNorm())

    def test_a_property_of_its_own(self):
        class Gated(nn.BatchNorm1d):
            @property
            def forward(self):
                return super().forward

        with pytest.raises(CannotConvert, match="Gated has a forward of its own"):
            plan_convert(Gated(3), SyncNorm())

    def test_a_subclass_that_does_nothing_else_comes_back_as_itself(self):
        model = nn.Sequential(Named(3))
        model[0].note = "mine"
        convert(model, SyncNorm())
        assert (type(model[0]), model[0].note) == (nn.SyncBatchNorm, "mine")
        convert(model, FrozenNorm())
        convert(model, PlainNorm())
        assert (type(model[0]), model[0].note) == (Named, "mine")

    def test_one_module_under_two_names(self):
        shared = nn.BatchNorm1d(3)
        model = nn.Sequential(shared, nn.ReLU(), shared)
        split = theirs(copy.deepcopy(model))
        assert split[0] is not split[2]
        (row,) = convert(model, SyncNorm()).plan.rows
        assert row.path == "0"
        assert "one module in 2 places" in row.note
        assert model[0] is model[2]

    def test_a_lazy_layer_gets_no_channels(self):
        assert theirs(nn.LazyBatchNorm1d()).num_features == 0
        model = nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d())
        with pytest.raises(CannotConvert, match=r"1 \(LazyBatchNorm1d\)"):
            convert(model, SyncNorm())
        model(torch.randn(4, 2))
        convert(model, SyncNorm())
        assert model[1].num_features == 2

    def test_its_inverse_does_not_exist(self):
        assert not hasattr(nn.SyncBatchNorm, "revert_sync_batchnorm")
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3))
        model = theirs(model)
        convert(model, PlainNorm())
        assert repr(model[1]) == repr(nn.BatchNorm2d(4, momentum=0.3))

    def test_timms_activation(self, norm_act):
        """torch's converter drops the activation (timm#1254), timm's keeps it; here too, and back."""
        model = nn.Sequential(norm_act.BatchNormAct2d(4, act_layer=nn.SiLU)).eval()
        x = torch.randn(2, 4, 3, 3)
        expected = model(x)
        assert not torch.allclose(theirs(copy.deepcopy(model))(x), expected)
        for to, name in (
            (SyncNorm(), "SyncBatchNormAct"),
            (PlainNorm(), "BatchNormAct2d"),
            (FrozenNorm(), "FrozenBatchNormAct"),
            (PlainNorm(), "BatchNormAct2d"),
        ):
            convert(model, to)
            assert type(model[0]).__name__ == name
            assert torch.equal(model.eval()(x), expected)

    def test_a_subclass_of_timms_that_does_nothing_else_comes_back_as_itself(self, norm_act):
        named = type("Mine", (norm_act.BatchNormAct2d,), {})
        model = nn.Sequential(named(4))
        for to in (SyncNorm(), FrozenNorm(), PlainNorm()):
            convert(model, to)
        assert type(model[0]) is named


class TestSharp:
    def test_eval_without_statistics_is_local_and_said_to_be(self):
        (row,) = convert(nn.BatchNorm1d(3, track_running_stats=False), SyncNorm()).plan.rows
        assert "in eval mode the local batch of each" in row.note

    def test_flag_without_statistics_would_fail_in_train_mode(self):
        layer = nn.BatchNorm1d(3, track_running_stats=False)
        layer.track_running_stats = True
        layer(torch.randn(4, 3))
        with pytest.raises(AssertionError):
            theirs(layer)(torch.randn(4, 3))
        with pytest.raises(CannotConvert, match="SyncBatchNorm refuses in train mode"):
            convert(layer, SyncNorm())

    def test_with_processes_running_torch_wants_a_gpu(self, tmp_path):
        model = nn.Sequential(nn.BatchNorm1d(3))
        (row,) = convert(model, SyncNorm()).plan.rows
        assert "on GPUs only" in row.note
        x = torch.randn(4, 3)
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            with pytest.raises(ValueError, match="expected input tensor to be on GPU"):
                model(x)
            model.eval()(x)
        finally:
            torch.distributed.destroy_process_group()

    def test_another_process_group(self):
        group = object()
        model = nn.Sequential(nn.BatchNorm1d(3))
        convert(model, SyncNorm())
        convert(model, SyncNorm(group))
        assert model[0].process_group is group
        assert convert(model, SyncNorm(group)).plan.rows == ()
        convert(model, PlainNorm())
        assert type(model[0]) is nn.BatchNorm1d

    def test_frozen_has_nothing_to_synchronize(self):
        layer = convert(nn.BatchNorm1d(3), FrozenNorm()).model
        for to in (SyncNorm(), NoTracking()):
            with pytest.raises(CannotConvert, match="frozen"):
                plan_convert(layer, to)


class TestDimensions:
    """SyncBatchNorm forgets whether it was 1d, 2d or 3d; what is around it may tell."""

    @pytest.mark.parametrize(
        ("before", "expected"),
        [
            (nn.Linear(2, 4), "BatchNorm1d"),
            (nn.Conv1d(2, 4, 1), "BatchNorm1d"),
            (nn.ConvTranspose3d(2, 4, 1), "BatchNorm3d"),
        ],
    )
    def test_the_layer_before(self, before, expected):
        model = nn.Sequential(before, nn.SyncBatchNorm(4), nn.Conv2d(4, 4, 1))
        (row,) = convert(model, PlainNorm()).plan.rows
        assert type(model[1]).__name__ == row.to_type == expected
        assert "as the layers around it" in row.note

    def test_all_layers_of_that_width_agree(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.SyncBatchNorm(4), nn.Linear(4, 5))
        convert(model, PlainNorm())
        assert type(model[2]) is nn.BatchNorm2d

    def test_in_doubt_it_is_left_alone(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.SyncBatchNorm(4), nn.Linear(4, 4), nn.SyncBatchNorm(4))
        plan = plan_convert(model, PlainNorm())
        assert [row.path for row in plan.rows] == ["4"]
        assert "PlainNorm(dims=2)" in plan.skipped["2"]
        convert(model, PlainNorm(dims=2), "2")
        assert type(model[2]) is nn.BatchNorm2d

    def test_what_it_was_wins_over_what_stands_before(self):
        model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm3d(4))
        convert(model, SyncNorm())
        convert(model, PlainNorm(dims=1))
        assert type(model[1]) is nn.BatchNorm3d

    def test_there_are_three(self):
        with pytest.raises(ValueError, match="1, 2 or 3"):
            PlainNorm(dims=4)

    def test_a_wrong_guess_is_loud(self):
        layer = convert(nn.SyncBatchNorm(3), PlainNorm(dims=2)).model
        with pytest.raises(ValueError, match="expected 4D"):
            layer(torch.zeros(2, 3))
