"""Two verbs of torch, made to leave alone what is held."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

import frostline as fl
from frostline.errors import NotConverted
from frostline.freezing import safe_convert_sync_batchnorm, safe_update_bn


@pytest.fixture
def model():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.BatchNorm1d(3))
    model(torch.randn(32, 3) * 3 + 4)
    return model


@pytest.fixture
def loader():
    return [torch.randn(16, 3) for _ in range(4)]


@pytest.fixture
def settings():
    """What torch's own may leave changed."""
    return lambda model: [(m.training, getattr(m, "momentum", None)) for m in model.modules()]


class TestUpdateBn:
    def test_is_torchs_where_nothing_is_held(self, model, loader, bytes_of):
        import copy

        other = copy.deepcopy(model)
        torch.manual_seed(1)
        update_bn(loader, other)
        torch.manual_seed(1)
        safe_update_bn(loader, model)
        assert bytes_of(model) == bytes_of(other)

    @pytest.mark.parametrize("verb", [update_bn, safe_update_bn])
    def test_what_is_held_stays(self, model, loader, verb):
        hold = fl.freeze(model, "0")
        verb(loader, model)
        assert bool(hold.diff()) == (verb is update_bn)
        assert model[2].num_batches_tracked == 4

    @pytest.mark.parametrize("verb", [update_bn, safe_update_bn])
    def test_what_was_frozen_by_hand_stays(self, model, loader, verb, bytes_of, settings):
        model.insert(1, nn.InstanceNorm1d(1, track_running_stats=True).eval())
        model[0].eval()
        model[2].eval()
        before, modes = bytes_of(model), settings(model)

        class Shaped(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = model

            def forward(self, x):
                return model[3](model[2](model[1](model[0](x)[:, None])[:, 0]))

        verb(loader, Shaped())
        kept = {name for name, value in bytes_of(model).items() if before[name] == value and "running" in name}
        hand_frozen = {"0.running_mean", "0.running_var", "1.running_mean", "1.running_var"}
        assert (hand_frozen <= kept) == (verb is safe_update_bn)
        assert (settings(model) == modes) == (verb is safe_update_bn)

    def test_a_model_in_eval_mode_is_estimated_and_stays_in_eval_mode(self, model, loader, settings):
        model.eval()
        before = settings(model)
        safe_update_bn(loader, model)
        assert model[0].num_batches_tracked == 4
        assert settings(model) == before

    @pytest.mark.parametrize("verb", [update_bn, safe_update_bn])
    def test_an_exception_brings_everything_back(self, model, loader, verb, bytes_of, settings):
        model.eval()
        model[0].momentum = 0.3
        before, modes = bytes_of(model), settings(model)
        with pytest.raises(RuntimeError):
            verb([*loader, torch.randn(4, 9)], model)
        assert ((bytes_of(model), settings(model)) == (before, modes)) == (verb is safe_update_bn)

    @pytest.mark.parametrize("verb", [update_bn, safe_update_bn])
    def test_a_layer_that_no_batch_came_through_keeps_its_statistics(self, model, verb, bytes_of):
        before = bytes_of(model)
        verb([], model)
        assert (bytes_of(model) == before) == (verb is safe_update_bn)

    def test_tuples_and_devices(self, model, loader):
        hold = fl.freeze(model, "0")
        safe_update_bn([(x, "label") for x in loader], model, device="cpu")
        hold.verify()
        assert model[2].num_batches_tracked == 4

    def test_everything_held_is_no_work_at_all(self, model):
        hold = fl.freeze(model, "*")
        safe_update_bn(iter(["not a batch"]), model)
        hold.verify()

    def test_an_averaged_copy_of_a_held_model(self, model, loader):
        fl.freeze(model, "0")
        averaged = AveragedModel(model)
        averaged.update_parameters(model)
        (hold,) = fl.freezing.holds_on(averaged)
        safe_update_bn(loader, averaged)
        hold.verify()
        assert averaged.module[2].num_batches_tracked == 4
        assert model[2].num_batches_tracked == 1


class TestConvert:
    def test_held_layers_stay_the_objects_they_are(self, model):
        hold = fl.freeze(model, "0")
        first, parameters, buffers = model[0], list(model.parameters()), list(model.buffers())
        assert safe_convert_sync_batchnorm(model) is model
        assert model[0] is first
        assert isinstance(model[2], nn.SyncBatchNorm)
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))
        hold.verify()
        assert not model.train()[0].training

    def test_a_shared_layer_is_converted_once(self):
        norm = nn.BatchNorm1d(2)
        ours = safe_convert_sync_batchnorm(nn.Sequential(norm, nn.ReLU(), norm))
        assert ours[0] is ours[2]
        theirs = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(norm, nn.ReLU(), norm))
        assert theirs[0] is not theirs[2]

    def test_a_model_that_is_a_batch_norm(self):
        layer = nn.BatchNorm1d(2)
        assert isinstance(safe_convert_sync_batchnorm(layer), nn.SyncBatchNorm)
        fl.freeze(layer, "")
        assert safe_convert_sync_batchnorm(layer) is layer

    def test_after_thaw_it_is_converted(self, model):
        fl.freeze(model, "0").thaw()
        safe_convert_sync_batchnorm(model)
        assert isinstance(model[0], nn.SyncBatchNorm)
        assert model[0].training

    def test_sync_and_other_norms_are_left(self):
        model = nn.Sequential(nn.SyncBatchNorm(2), nn.InstanceNorm1d(2), nn.GroupNorm(1, 2))
        before = list(model)
        assert list(safe_convert_sync_batchnorm(model)) == before


def test_a_layer_with_a_forward_of_its_own_is_left_alone_with_a_warning():
    class Activated(nn.BatchNorm2d):
        def forward(self, images):
            return super().forward(images).relu()

    def build():
        return nn.Sequential(nn.Conv2d(1, 2, 1), Activated(2), nn.BatchNorm2d(2)).eval()

    images = torch.randn(4, 1, 3, 3)
    naive = nn.SyncBatchNorm.convert_sync_batchnorm(build())
    assert (naive[:2](images) < 0).any()
    model = build()
    with pytest.warns(NotConverted, match="1"):
        safe_convert_sync_batchnorm(model)
    assert [type(layer) for layer in model][1:] == [Activated, nn.SyncBatchNorm]
    assert not (model[:2](images) < 0).any()
