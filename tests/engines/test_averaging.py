"""Holds on averaged copies: SWA and EMA of torch, EMA of timm, and re-estimating batch norms afterwards.

The average of equal values is equal to the bit where it is computed as a step towards the new value (``lerp``), and is
not where it is computed as a sum of two products. What each of them does to a held part stands below.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

import frostline as fl
from frostline.freezing import holds_on, safe_update_bn

EXACT = {
    "swa": {},
    "swa multi": {"multi_avg_fn": get_swa_multi_avg_fn()},
    "ema multi 0.999": {"multi_avg_fn": get_ema_multi_avg_fn(0.999)},
    "ema multi 0.3": {"multi_avg_fn": get_ema_multi_avg_fn(0.3)},
}


@pytest.fixture
def train(batches):
    """Trains the net and averages after each step."""

    def loop(net, average, epochs=3):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        for number in range(epochs * len(batches)):
            net.train()
            optimizer.zero_grad()
            torch.manual_seed(number)
            net(batches[number % len(batches)]).square().mean().backward()
            optimizer.step()
            average(net)

    return loop


@pytest.fixture(scope="module")
def model_ema():
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision("ops")
        from timm.utils import ModelEmaV3
    return ModelEmaV3


class TestTorch:
    # The fourth with buffers is refused by torch, which cannot divide the counter.
    @pytest.mark.parametrize(
        ("name", "use_buffers"), [(n, u) for n in EXACT for u in (False, True) if (n, u) != ("swa multi", True)]
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_held_entries_of_the_copy_are_those_of_the_original(
        self, make_net, train, batches, bytes_of, moved, name, use_buffers, dtype
    ):
        batches[:] = [x.to(dtype) for x in batches]
        net = make_net().to(dtype)
        hold = fl.freeze(net, "stem")
        before, head = bytes_of(net.stem), bytes_of(net.head)
        averaged = AveragedModel(net, use_buffers=use_buffers, **EXACT[name])
        (copied,) = holds_on(averaged)
        train(net, averaged.update_parameters)
        hold.verify()
        copied.verify()
        assert moved(before, bytes_of(averaged.module.stem)) == set()
        assert not averaged.train().module.stem.training
        assert averaged.module.body.training
        # The rest is an average, and not a copy.
        assert moved(head, bytes_of(averaged.module.head)) == head.keys()
        assert moved(bytes_of(net.head), bytes_of(averaged.module.head)) == head.keys()

    def test_a_sum_of_two_products_rounds_and_verify_names_it(self, make_net, train, bytes_of, moved):
        """``get_ema_avg_fn``: decay * x + (1 - decay) * x is not x."""
        net = make_net()
        fl.freeze(net, "stem")
        averaged = AveragedModel(net, avg_fn=get_ema_avg_fn(0.999))
        (copied,) = holds_on(averaged)
        train(net, averaged.update_parameters)
        assert torch.allclose(averaged.module.stem[0].weight, net.stem[0].weight, rtol=1e-5, atol=0)
        with pytest.raises(fl.errors.FrozenStateMoved, match=r"module\.stem\.0\.weight"):
            copied.verify()

    def test_what_to_do_where_an_average_rounds(self, make_net, train, bytes_of, moved):
        net = make_net()
        fl.freeze(net, "stem")
        averaged = AveragedModel(net, avg_fn=get_ema_avg_fn(0.999), use_buffers=True)
        kept = fl.snapshot(averaged.module, "stem", values=True)
        train(net, averaged.update_parameters)
        assert moved(bytes_of(net.stem), bytes_of(averaged.module.stem)) >= {"0.weight", "1.running_mean"}
        kept.restore(averaged.module)
        assert moved(bytes_of(net.stem), bytes_of(averaged.module.stem)) == set()

    def test_a_counter_is_cut_off_at_decays_whose_parts_do_not_sum_to_one(self, make_net, train):
        """``use_buffers=True`` averages ``num_batches_tracked`` in floating point, and drops the fraction."""
        net = make_net()
        fl.freeze(net, "stem")
        averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        (copied,) = holds_on(averaged)
        train(net, averaged.update_parameters)
        assert copied.diff().paths == ["module.stem.1.num_batches_tracked"]
        assert net.stem[1].num_batches_tracked == 3

    def test_negative_zeros_become_positive_ones(self, make_net, train):
        """Equal in value, not in bits: -0.0 + w * 0.0 is 0.0. Weights that were pruned by a product have them."""
        net = make_net()
        with torch.no_grad():
            net.stem[0].weight[0] = -0.0
        hold = fl.freeze(net, "stem")
        averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        (copied,) = holds_on(averaged)
        train(net, averaged.update_parameters)
        hold.verify()
        (row,) = copied.diff().moved
        assert row.path == "module.stem.0.weight"
        assert torch.equal(averaged.module.stem[0].weight, net.stem[0].weight)

    def test_a_part_frozen_by_hand_drifts_in_original_and_copy(self, make_net, train, bytes_of, moved):
        net = make_net()
        net.stem.requires_grad_(False)
        averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
        before = bytes_of(net.stem)
        train(net, averaged.update_parameters)
        assert moved(before, bytes_of(net.stem)) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
        assert "1.running_mean" in moved(before, bytes_of(averaged.module.stem))

    def test_a_hold_that_comes_after_the_copy_is_on_the_original_alone(self, make_net, train):
        net = make_net()
        averaged = AveragedModel(net)
        fl.freeze(net, "stem")
        assert holds_on(averaged) == []
        hold = fl.freeze(averaged.module, "stem")
        train(net, averaged.update_parameters)
        hold.verify()

    def test_thawing_either_leaves_the_other_held(self, make_net):
        net = make_net()
        hold = fl.freeze(net, "stem")
        averaged = AveragedModel(net)
        hold.thaw()
        assert net.train().stem.training
        assert not averaged.train().module.stem.training
        (copied,) = holds_on(averaged)
        copied.thaw()
        assert averaged.train().module.stem.training


class TestUpdateBn:
    def averaged(self, make_net, train):
        net = make_net()
        fl.freeze(net, "stem")
        averaged = AveragedModel(net)
        train(net, averaged.update_parameters)
        return averaged

    def test_torchs_destroys_held_statistics(self, make_net, train, batches):
        """Row F7 of the table of facts: it resets every batch norm before it sets train mode."""
        averaged = self.averaged(make_net, train)
        (hold,) = holds_on(averaged)
        update_bn(batches, averaged)
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        assert hold.diff().paths == [f"module.stem.1.{name}" for name in statistics]
        layer = averaged.module.stem[1]
        assert torch.equal(layer.running_mean, torch.zeros(8))
        assert torch.equal(layer.running_var, torch.ones(8))

    def test_ours_estimates_the_rest_as_torchs_does(self, make_net, train, batches):
        ours, theirs = self.averaged(make_net, train), self.averaged(make_net, train)
        (hold,) = holds_on(ours)
        safe_update_bn(batches, ours)
        hold.verify()
        # Theirs, given the stem that it destroys back before each batch: both read the same features then.
        for module in theirs.module.stem.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.reset_running_stats = lambda: None
        update_bn(batches, theirs)
        assert torch.equal(ours.module.body[1].running_mean, theirs.module.body[1].running_mean)
        assert torch.equal(ours.module.body[1].running_var, theirs.module.body[1].running_var)
        assert ours.module.body[1].num_batches_tracked == len(batches)


class TestTimm:
    @pytest.mark.parametrize(
        "settings",
        [
            {"decay": 0.999},
            {"decay": 0.999, "foreach": False},
            {"decay": 0.3, "exclude_buffers": True},
            {"decay": 0.9999, "use_warmup": True},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_held_entries_are_equal(self, make_net, train, batches, bytes_of, moved, model_ema, settings, dtype):
        batches[:] = [x.to(dtype) for x in batches]
        net = make_net().to(dtype)
        hold = fl.freeze(net, "stem")
        before, head = bytes_of(net.stem), bytes_of(net.head)
        ema = model_ema(net, **settings)
        (copied,) = holds_on(ema)
        steps = iter(range(1, 100))
        train(net, lambda net: ema.update(net, step=next(steps)))
        hold.verify()
        copied.verify()
        assert moved(before, bytes_of(ema.module.stem)) == set()
        assert moved(head, bytes_of(ema.module.head)) == head.keys()
        assert not ema.train().module.stem.training

    def test_an_average_in_a_narrower_type_is_another_value_from_the_start(self, make_net, train, model_ema):
        """``ModelEmaV3(dtype=torch.bfloat16)`` of a float32 model: rounded when it is made, and at each update."""
        net = make_net()
        fl.freeze(net, "stem")
        ema = model_ema(net, decay=0.999, dtype=torch.bfloat16)
        assert not torch.equal(ema.module.stem[0].weight.float(), net.stem[0].weight)
        (copied,) = holds_on(ema)
        train(net, ema.update)
        assert "module.stem.0.weight" in copied.diff().paths

    def test_set_copies_to_the_bit(self, make_net, model_ema):
        net = make_net()
        hold = fl.freeze(net, "stem")
        ema = model_ema(net)
        (copied,) = holds_on(ema)
        ema.set(net)
        hold.verify()
        copied.verify()
