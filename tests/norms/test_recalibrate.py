"""Recalibration: right by float64 references, also where fvcore and update_bn are not; kept where it does no harm."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl
from frostline.errors import NonFiniteStatistics, NormsError, NoStatistics, NothingSelected
from frostline.norms import domain, split_domains
from frostline.norms.recalibrate import plan_recalibrate, recalibrate
from frostline.state.digest import digest_all

HERE = Path(__file__).resolve()
DATA = HERE.parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def update_bn_stats():
    precise_bn = pytest.importorskip(
        "fvcore.nn.precise_bn", reason="NOT COMPARED: fvcore is not installed (pip install fvcore)"
    )
    return precise_bn.update_bn_stats


def net(width=8, classes=3):
    return nn.Sequential(
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes),
    )  # fmt: skip


def data(n=120, width=8, shift=2.0):
    return shift + torch.randn(n, width)


def state(model):
    return digest_all(dict(model.state_dict()))


def modes(model):
    return [(module.training, getattr(module, "momentum", None)) for module in model.modules()]


def pooled(x):
    """Mean and unbiased variance of (N, C, ...) values, by two passes in float64."""
    values = x.double().transpose(0, 1).flatten(1)
    mean = values.mean(1)
    return mean, (values - mean[:, None]).square().sum(1) / (values.shape[1] - 1)


# --- what is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[120], [30] * 4, [50, 40, 30], [1] * 5 + [115]])
def test_the_first_layer_gets_the_moments_of_all_values_whatever_the_batches(sizes):
    model, x = nn.Sequential(nn.BatchNorm2d(3)), 5 + 2 * torch.randn(120, 3, 4, 4)
    result = recalibrate(model, list(x.split(sizes)))
    mean, var = pooled(x)
    # What `sample_statistics` promises for float32 values.
    torch.testing.assert_close(model[0].running_mean.double(), mean, rtol=0, atol=2e-6)
    torch.testing.assert_close(model[0].running_var.double(), var, rtol=1e-5, atol=0)
    assert result.rows[0].count == 120 * 16
    assert result.accepted


def test_one_batch_gives_what_train_mode_with_momentum_one_gives():
    model, x = net().double(), data().double()
    reference = deepcopy(model)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
    reference.train()
    reference[3].eval()  # recalibration runs dropout as in eval mode
    reference(x)
    recalibrate(model, [x])
    for path in ("1", "5"):
        ours, theirs = model.get_submodule(path), reference.get_submodule(path)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-12, atol=1e-12)
        # In between, ours normalizes the batch by its biased variance as train mode does.
        torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-12, atol=1e-12)


def test_eval_consistent_has_no_residual_and_all_at_once_has_one():
    model, x = net(), data()
    batches = list(x.split(8))
    exact = plan_recalibrate(model, batches, method="eval-consistent")
    at_once = plan_recalibrate(model, batches)
    larger = plan_recalibrate(model, batches, batch_size=60)
    # The new statistics are rounded to float32, which is all that an eval-mode pass finds them off by.
    assert max(row.residual_var for row in exact.rows) < 2**-23
    assert max(row.residual_mean for row in exact.rows) < 2**-21
    # The first layer lies behind no other: it is exact either way.
    assert at_once.rows[0].residual_var < 2**-23
    assert at_once.rows[1].residual_var > 1e-3
    assert larger.rows[1].residual_var < at_once.rows[1].residual_var / 3
    assert "(exact but for rounding)" in str(exact)


def test_the_residual_is_what_a_pass_in_eval_mode_finds_by_hand():
    model, x = net(), data()
    plan = plan_recalibrate(model, list(x.split(8)))
    plan.apply()
    with torch.no_grad():
        reached = model[:5].eval()(x).double()
    mean, var = pooled(reached)
    written = model[5].running_var.double()
    by_hand = ((var + 1e-5) / (written + 1e-5)).log().abs().median().item()
    assert plan.rows[1].residual_var == pytest.approx(by_hand, rel=1e-4)
    shift = ((mean - model[5].running_mean).abs() / (written + 1e-5).sqrt()).max().item()
    assert plan.rows[1].residual_mean == pytest.approx(shift, rel=1e-4)


def test_nothing_else_moves():
    model, x = net().train(), data()
    model[3].eval()
    wanted = {f"{p}.{b}" for p in ("1", "5") for b in ("running_mean", "running_var", "num_batches_tracked")}
    before, tensors = state(model), {k: v.data_ptr() for k, v in model.state_dict().items()}
    mode, rng = modes(model), torch.random.get_rng_state()
    recalibrate(model, list(x.split(30)))
    after = state(model)
    assert {key for key in after if after[key] != before[key]} == wanted
    assert {k: v.data_ptr() for k, v in model.state_dict().items()} == tensors
    assert modes(model) == mode
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_plan_changes_nothing_and_applies_what_it_says():
    model, x = net(), data()
    before = state(model)
    plan = plan_recalibrate(model, list(x.split(30)))
    assert state(model) == before
    applied = plan.apply()
    assert all(torch.equal(model.get_submodule(p).running_var, c.new.var) for p, c in plan.changes.items())
    applied.undo()
    assert state(model) == before


def test_undo_brings_back_what_was_there_to_the_bit_also_after_training():
    model, x = net(), data()
    model[1].running_mean[0] = float("nan")
    model[1].running_var[1] = -0.0
    before = state(model)
    result = recalibrate(model, list(x.split(30)))
    model.train()(x)
    result.undo()
    assert state(model) == before


@pytest.mark.parametrize(("momentum", "start", "expected"), [(0.1, 1000, 1000), (0.1, 0, 4), (None, 1000, 4)])
def test_the_counter_lets_later_updates_weigh_as_they_should(momentum, start, expected):
    model, x = nn.Sequential(nn.BatchNorm1d(8, momentum=momentum)), data()
    model[0].num_batches_tracked.fill_(start)
    recalibrate(model, list(x.split(30)))
    assert model[0].num_batches_tracked.item() == expected
    old = model[0].running_mean.clone()
    later = data(30, shift=7.0)
    model.train()(later)
    # A cumulative average over four batches takes in a fifth with the weight of one of five.
    weight = 1 / 5 if momentum is None else momentum
    torch.testing.assert_close(model[0].running_mean, (1 - weight) * old + weight * later.mean(0))


def test_instance_norm_gets_what_it_would_keep_itself():
    model = nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True, momentum=1.0), nn.ReLU(), nn.BatchNorm2d(2))
    x = torch.randn(12, 2, 4, 4) * (1 + torch.rand(12, 2, 1, 1)) + 3 * torch.randn(12, 2, 1, 1)
    reference = deepcopy(model).train()
    reference[2].momentum = 1.0
    reference(x)
    recalibrate(model, [x])
    for path in ("0", "2"):
        for name in ("running_mean", "running_var"):
            ours, theirs = getattr(model.get_submodule(path), name), getattr(reference.get_submodule(path), name)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert pooled(x)[1][0] > 2 * model[0].running_var[0]  # the variance between the samples is not in it


def test_the_change_is_in_units_of_the_output():
    model = nn.Sequential(nn.BatchNorm1d(2, eps=0.0))
    model[0].weight.data = torch.tensor([0.0, 2.0])  # the first channel is not felt by anyone
    x = torch.randn(4000, 2, dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0)
    plan = plan_recalibrate(model.double(), [x * torch.tensor([9.0, 1.0]) + torch.tensor([50.0, 3.0])])
    assert plan.rows[0].change == pytest.approx(3.0, rel=1e-6)
    assert plan.rows[0].mean_shift == pytest.approx(50.0, rel=1e-6)


# --- which layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["state", "stats"])
@pytest.mark.parametrize("method", ["all-at-once", "eval-consistent"])
def test_held_layers_are_left_alone_and_named(level, method):
    model, x = net(), data()
    model.train()(x)
    hold = fl.freeze(model, "1", level=level)
    result = recalibrate(model, list(x.split(30)), method=method)
    hold.verify()
    assert result.skipped == {"1": "held (frostline.freeze)"}
    assert list(result.plan.changes) == ["5"]
    # The twin that goes by the class alone resets what is held.
    twin = deepcopy(model)
    update_bn(DataLoader(TensorDataset(x), 30), twin)
    assert not torch.equal(twin[1].running_mean, model[1].running_mean)
    hold.thaw()
    assert not recalibrate(model, list(x.split(30))).skipped


def test_what_lies_behind_a_held_layer_is_measured_through_its_running_statistics():
    model, x = net(), data().double()
    model.double()
    fl.freeze(model, "1", level="stats")
    recalibrate(model, list(x.split(30)))
    with torch.no_grad():
        reached = model[:5].eval()(x)
    torch.testing.assert_close(model[5].running_mean, pooled(reached)[0], rtol=1e-12, atol=1e-12)


def test_a_layer_held_after_the_plan_is_refused():
    model, x = net(), data()
    plan = plan_recalibrate(model, [x])
    applied = plan.apply()
    hold = fl.freeze(model, "1", level="stats")
    before = state(model)
    with pytest.raises(NormsError, match="undo: layers are held by now: 1"):
        applied.undo()
    with pytest.raises(NormsError, match="apply: layers are held by now: 1"):
        plan.apply()
    assert state(model) == before
    hold.thaw()
    applied.undo()


def test_layers_frozen_by_hand_are_left_alone_unless_selected():
    model, x = net().train(), data()
    model[1].eval()
    before = state(model)
    result = recalibrate(model, [x])
    assert "in eval mode while others train" in result.skipped["1"]
    assert state(model)["1.running_mean"] == before["1.running_mean"]
    assert recalibrate(model, [x], "1").plan.changes.keys() == {"1"}
    # In eval mode as a whole nobody froze anything.
    assert recalibrate(model.eval(), [x]).plan.changes.keys() == {"1", "5"}


def test_selectors_say_which_part():
    model, x = net(), data()
    before = state(model)
    result = recalibrate(model, [x], "5")
    assert {key for key, value in state(model).items() if value != before[key]} == {
        "5.running_mean", "5.running_var", "5.num_batches_tracked"
    }  # fmt: skip
    assert list(result.plan.changes) == ["5"]
    with pytest.raises(NothingSelected):
        recalibrate(model, [x], "bn9")


def test_frozen_batch_norms_are_left_alone():
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = import_torchvision("ops").FrozenBatchNorm2d
    model = nn.Sequential(frozen(3), nn.BatchNorm2d(3))
    before = state(model)
    result = recalibrate(model, [torch.randn(8, 3, 4, 4)])
    assert "constants" in result.skipped["0"]
    assert state(model)["0.running_mean"] == before["0.running_mean"]


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        nn.init.constant_(self.unused.running_mean, 3.0)

    def forward(self, x):
        return self.used(x)


def test_layers_that_no_batch_reaches_stay_as_they_are():
    model, x = Unused(), data()
    before = state(model)
    result = recalibrate(model, [x])
    assert result.skipped == {"unused": "no batch came through it"}
    assert {k: v for k, v in state(model).items() if "unused" in k} == {
        k: v for k, v in before.items() if "unused" in k
    }


def test_a_model_without_statistics_is_no_error():
    model = nn.Sequential(nn.Linear(8, 3), nn.LayerNorm(3))
    result = recalibrate(model, [data()], metric="accuracy", held_out=[(data(), torch.zeros(120, dtype=torch.long))])
    assert not result.accepted
    assert "no layer of Sequential keeps running statistics" in str(result)
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize("method", ["all-at-once", "eval-consistent"])
def test_one_domain_of_a_split_model_is_recalibrated_where_its_statistics_lie(method):
    from frostline.norms import domain, split_domains

    model, x = net(), data()
    split_domains(model, ["ground", "aerial"])
    before = state(model)
    with domain(model, "aerial"):
        plan = plan_recalibrate(model, list(x.split(30)), method=method)
    applied = plan.apply()  # outside of the domain
    after = state(model)
    assert {key for key in after if after[key] != before[key]} == {
        f"{path}.{name}_aerial"
        for path in ("1", "5")
        for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    torch.testing.assert_close(model[1].running_mean_aerial, model[0](x).mean(0).detach(), rtol=1e-5, atol=1e-5)
    applied.undo()
    assert state(model) == before


# --- where the others go wrong -----------------------------------------------------------------------------------


def test_fvcore_agrees_where_it_is_right(update_bn_stats):
    model, x = net().train(), data(240)
    model[3].p = 0.0
    twin = deepcopy(model)
    batches = list(x.split(60))
    update_bn_stats(twin, batches, num_iters=4)
    recalibrate(model, batches)
    for path in ("1", "5"):
        ours, theirs = model.get_submodule(path), twin.get_submodule(path)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-4, atol=1e-5)
        # fvcore stores the biased variance of all values; PyTorch's running_var is unbiased.
        torch.testing.assert_close(ours.running_var, theirs.running_var * 240 / 239, rtol=1e-4, atol=1e-5)


def test_fvcore_cancels_where_the_mean_is_far_from_zero(update_bn_stats):
    x = 1e4 + torch.randn(400, 1)
    model = nn.Sequential(nn.BatchNorm1d(1)).train()
    twin = deepcopy(model)
    update_bn_stats(twin, list(x.split(50)), num_iters=8)
    recalibrate(model, list(x.split(50)))
    true = pooled(x)[1]
    torch.testing.assert_close(model[0].running_var.double(), true, rtol=1e-6, atol=0)
    assert abs(twin[0].running_var.item() - true.item()) > 0.5


def test_fvcore_leaves_the_momentum_behind_when_the_loader_is_short(update_bn_stats):
    model = net().train()
    twin = deepcopy(model)
    with pytest.raises(AssertionError):
        update_bn_stats(twin, list(data().split(30)))
    assert twin[1].momentum == 1.0
    assert twin[1]._forward_pre_hooks
    recalibrate(model, list(data().split(30)))
    assert model[1].momentum == 0.1
    assert not model[1]._forward_pre_hooks


def test_fvcore_zeroes_layers_that_are_not_used(update_bn_stats):
    model = Unused().train()
    twin = deepcopy(model)
    update_bn_stats(twin, [data()] * 2, num_iters=2)
    assert twin.unused.running_var.unique().tolist() == [0.0]
    recalibrate(model, [data()] * 2)
    assert model.unused.running_var.unique().tolist() == [1.0]
    assert model.unused.running_mean.unique().tolist() == [3.0]


def test_update_bn_destroys_mixed_modes():
    model, x = net().train(), data()
    model[1].eval()
    twin = deepcopy(model)
    update_bn(DataLoader(TensorDataset(x), 30), twin)
    assert twin[1].training
    assert not torch.equal(twin[1].running_mean, model[1].running_mean)
    mean = model[1].running_mean.clone()
    recalibrate(model, DataLoader(TensorDataset(x), 30))
    assert not model[1].training
    assert torch.equal(model[1].running_mean, mean)


def test_update_bn_weighs_unequal_batches_alike_and_drops_the_variance_between_them():
    sizes, shifts = [300, 300, 300, 100], [0.0, 0.0, 0.0, 9.8]
    batches = [shift + torch.randn(n, 1) for n, shift in zip(sizes, shifts, strict=True)]
    model = nn.Sequential(nn.BatchNorm1d(1))
    twin = deepcopy(model)
    update_bn(batches, twin)
    recalibrate(model, batches)
    mean, var = pooled(torch.cat(batches))
    torch.testing.assert_close(model[0].running_mean.double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(model[0].running_var.double(), var, rtol=1e-6, atol=0)
    assert twin[0].running_mean.item() > 2 * mean.item()
    assert twin[0].running_var.item() < var.item() / 5


def test_update_bn_sees_no_variance_between_batches_that_are_sorted_by_class():
    batches = [10.0 * k + torch.randn(50, 1) for k in range(6)]
    model = nn.Sequential(nn.BatchNorm1d(1))
    twin = deepcopy(model)
    update_bn(batches, twin)
    recalibrate(model, batches)
    torch.testing.assert_close(model[0].running_var.double(), pooled(torch.cat(batches))[1], rtol=1e-6, atol=0)
    assert model[0].running_var > 250
    assert twin[0].running_var < 2


def test_update_bn_is_left_half_done_by_a_batch_of_one_row():
    batches = [*data(60).split(30), data(1)]
    model = net().eval()
    twin = deepcopy(model)
    with pytest.raises(ValueError, match="more than 1 value"):
        update_bn(batches, twin)
    assert twin.training
    assert twin[1].momentum is None
    before, mode = state(model), modes(model)
    with pytest.raises(NormsError, match=r"batch 2 gives layer '1' \(BatchNorm1d\) one value per channel"):
        recalibrate(model, batches)
    assert (state(model), modes(model)) == (before, mode)
    # Ours can take it in: with the batch before, or in lockstep, where the batch does not count.
    assert recalibrate(model, batches, batch_size=30).rows[0].count == 61
    assert recalibrate(model, batches, method="eval-consistent").rows[0].count == 61


def test_update_bn_resets_layers_that_are_not_used():
    model = Unused()
    twin = deepcopy(model)
    update_bn([data()], twin)
    assert twin.unused.running_mean.unique().tolist() == [0.0]
    recalibrate(model, [data()])
    assert model.unused.running_mean.unique().tolist() == [3.0]


# --- kept or rolled back -----------------------------------------------------------------------------------------


def labelled(model, x, size=40):
    with torch.no_grad():
        return list(zip(x.split(size), model.eval()(x).argmax(1).split(size), strict=True))


def test_a_repair_that_helps_is_kept_and_the_report_says_by_how_much():
    model = net()
    recalibrate(model, [data(600)])
    held_out = labelled(model, data(200))
    good = deepcopy(model)
    model[1].reset_running_stats()
    result = recalibrate(model, [data(600)], metric="accuracy", held_out=held_out)
    assert result.accepted
    assert result.before.value < 0.8 < result.after.value
    assert result.difference.low > 0
    assert result.difference.value == pytest.approx(result.after.value - result.before.value)
    assert str(result).startswith("kept: the metric on held-out data did not get worse")
    torch.testing.assert_close(model[1].running_mean, good[1].running_mean, rtol=0.2, atol=0.2)


@pytest.mark.parametrize("method", ["all-at-once", "eval-consistent"])
def test_a_repair_that_harms_is_rolled_back_to_the_bit(method):
    model = net()
    recalibrate(model, [data(600)])
    held_out = labelled(model, data(200))
    before = state(model)
    other = [data(600, shift=-4.0)]
    result = recalibrate(model, other, metric="accuracy", held_out=held_out, method=method)
    assert not result.accepted
    assert result.before.value == 1.0 > result.after.value
    assert state(model) == before
    assert str(result).startswith("rolled back: the metric on held-out data got worse")
    result.undo()
    assert state(model) == before
    # The naive twin keeps it.
    assert recalibrate(model, other).accepted
    assert state(model) != before


def test_the_tolerance_is_how_much_worse_it_may_get():
    model = net()
    recalibrate(model, [data(600)])
    held_out, other = labelled(model, data(200)), [data(600, shift=1.5)]
    worse = recalibrate(model, other, metric="accuracy", held_out=held_out)
    loss = -worse.difference.value
    assert 0 < loss < 0.9
    assert not worse.accepted
    assert not recalibrate(model, other, metric="accuracy", held_out=held_out, tolerance=loss / 2).accepted
    assert recalibrate(model, other, metric="accuracy", held_out=held_out, tolerance=loss).accepted


def test_an_equal_score_is_kept():
    model = net()
    held_out = [(data(40), torch.zeros(40, dtype=torch.long))]
    result = recalibrate(model, [data()], metric=lambda output, labels: 1.0, held_out=held_out)
    assert result.accepted
    assert (result.difference.value, result.difference.low, result.difference.high) == (0.0, 0.0, 0.0)
    assert "(no more than chance)" in result.verdict()


def test_without_a_metric_the_report_says_that_nothing_was_checked():
    result = recalibrate(net(), [data()])
    assert result.accepted
    assert not result.checked
    assert (result.before, result.after, result.difference) == (None, None, None)
    assert "nothing has checked whether the model is better" in str(result)


def test_statistics_that_are_nan_are_worse_than_any():
    model = net()
    recalibrate(model, [data(600)])
    held_out = labelled(model, data(200))
    model[1].running_mean.fill_(float("nan"))

    def loss(output, labels):
        return -nn.functional.cross_entropy(output, labels, reduction="none")

    result = recalibrate(model, [data(600)], metric=loss, held_out=held_out)
    assert result.accepted
    assert result.before is None
    assert "not finite before" in result.verdict()
    assert result.rows[0].change == math.inf
    assert model[1].running_mean.isfinite().all()
    json.dumps(result.to_json(), allow_nan=False)
    bad = [(torch.full((40, 8), float("nan")), torch.zeros(40, dtype=torch.long))]
    with pytest.raises(NonFiniteStatistics, match="with the old statistics and with the new"):
        recalibrate(model, [data(600)], metric=loss, held_out=bad)


def test_augmentation_is_drawn_alike_for_all_passes():
    class Noisy(torch.utils.data.Dataset):
        def __init__(self, x):
            self.x = x

        def __len__(self):
            return len(self.x)

        def __getitem__(self, i):
            return self.x[i] + 3 * torch.randn(8)

    loader = DataLoader(Noisy(data()), batch_size=30, shuffle=True)
    plan = plan_recalibrate(net(), loader)
    # Were the second pass over other noise, the first layer would be off by it: 3 / sqrt(120) = 0.27.
    assert plan.rows[0].residual_mean < 1e-5
    assert plan.rows[0].residual_var < 1e-6


def test_three_of_ten_classes_are_refused_unless_something_checks_them():
    model, n = net(classes=10), 600
    y = torch.arange(n) % 10
    batches = [(data(n), y)]
    some = [(data(n)[y < 3], y[y < 3])]
    before = state(model)
    for held_out in (None, batches):
        with pytest.raises(NormsError, match="7 of 10 classes are missing") as raised:
            recalibrate(model, some, held_out=held_out)
        assert "allow_imbalance=True" in str(raised.value)
    assert state(model) == before
    plan = plan_recalibrate(model, some)
    assert [finding.code for finding in plan.findings] == ["N309"]
    with pytest.raises(NormsError, match="N309"):
        plan.apply()
    checked = recalibrate(model, some, metric=lambda output, labels: 1.0, held_out=batches)
    assert checked.accepted
    assert "N309 error" in str(checked)
    checked.undo()
    assert recalibrate(model, some, allow_imbalance=True).accepted
    assert not recalibrate(model, batches, held_out=batches).findings


def test_max_samples_stops_early_and_says_how_many_were_seen():
    model = net()
    plan = plan_recalibrate(model, list(data(600).split(30)), max_samples=100)
    assert plan.samples == 120
    assert plan.rows[0].count == 120
    assert "from 120 samples" in str(plan)
    assert plan_recalibrate(model, list(data(600).split(30)), method="eval-consistent", max_samples=60).samples == 60


def test_the_report_is_a_table_and_json():
    result = recalibrate(net(), list(data().split(30)))
    assert "residual against what the layers meet in eval mode" in str(result)
    told = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert told["schema_version"] == 1
    assert [layer["path"] for layer in told["layers"]] == ["1", "5"]
    assert told["accepted"] is True
    assert "<table>" in result._repr_html_()


def test_progress_names_the_passes():
    seen = []
    held_out = [(data(40), torch.zeros(40, dtype=torch.long))]
    model = net()
    options = {"metric": "accuracy", "held_out": held_out, "progress": lambda name, batch: seen.append((name, batch))}
    recalibrate(model, list(data(60).split(30)), **options)
    assert seen == [
        ("held-out data, before", 1), ("calibration", 1), ("calibration", 2),
        ("check of the result", 1), ("check of the result", 2), ("held-out data, after", 1),
    ]  # fmt: skip


# --- bad input ---------------------------------------------------------------------------------------------------


class Breaks:
    """A loader that raises in the middle of its second pass, or of its first."""

    def __init__(self, batches, error, on_pass):
        self.batches, self.error, self.on_pass, self.passes = batches, error, on_pass, 0

    def __iter__(self):
        self.passes += 1
        yield self.batches[0]
        if self.passes == self.on_pass:
            raise self.error
        yield from self.batches[1:]


@pytest.mark.parametrize("method", ["all-at-once", "eval-consistent"])
@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
@pytest.mark.parametrize("on_pass", [1, 2])
def test_a_loader_that_raises_leaves_everything_as_it_was(method, error, on_pass):
    model = net().train()
    loader = Breaks(list(data().split(30)), error, on_pass)
    before, mode, rng = state(model), modes(model), torch.random.get_rng_state()
    if (method, on_pass) == ("eval-consistent", 2):  # it needs one pass only
        recalibrate(model, loader, method=method)
        return
    with pytest.raises(type(error)):
        recalibrate(model, loader, method=method)
    assert (state(model), modes(model)) == (before, mode)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("when", [1, 2, 4])
def test_an_error_while_scoring_leaves_everything_as_it_was(when):
    model = net()
    held_out = list(zip(data(80).split(40), torch.zeros(80, dtype=torch.long).split(40), strict=True))
    before, calls = state(model), []

    def metric(output, labels):
        calls.append(1)
        if len(calls) == when:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, [data()], metric=metric, held_out=held_out)
    assert state(model) == before


@pytest.mark.parametrize("method", ["all-at-once", "eval-consistent"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_name_the_first_layer_and_write_nothing(method, value):
    model, batches = net(), list(data().split(30))
    batches[1][3, 2] = value
    before = state(model)
    with pytest.raises(NonFiniteStatistics, match=r"batch 1: the input of layer '1' \(BatchNorm1d\)"):
        recalibrate(model, batches, method=method)
    assert state(model) == before


def test_one_sample_per_batch():
    model, batches = net(), list(data().split(1))
    before = state(model)
    with pytest.raises(NormsError, match=r"batch 0 gives layer '1'.*one value per channel"):
        recalibrate(model, batches)
    assert state(model) == before
    mean, var = pooled(torch.cat([model[0](x).detach() for x in batches]))
    for options in ({"batch_size": 64}, {"method": "eval-consistent"}):
        plan = plan_recalibrate(model, batches, **options)
        torch.testing.assert_close(plan.changes["1"].new.mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(plan.changes["1"].new.var.double(), var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["all-at-once", "eval-consistent"])
@pytest.mark.parametrize("n", [1, 64])
def test_samples_that_are_all_equal_are_refused(method, n):
    # One of many filters is enough to keep it from being seen in the variance: an image varies within itself.
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.BatchNorm1d(2 * 36))
    batches = torch.randn(1, 1, 8, 8).expand(n, 1, 8, 8).split(32)
    before = state(model)
    with pytest.raises(NormsError, match=rf"all samples are equal \({n} of them\)|one value per channel"):
        recalibrate(model, batches, method=method)
    assert state(model) == before


def test_constant_channels_are_told():
    x = data()
    x[:, 3] = 0.1
    model = nn.Sequential(nn.BatchNorm1d(8))
    result = recalibrate(model, list(x.split(30)))
    assert result.rows[0].constant == 1
    assert "constant on this data" in str(result)
    assert model(x).isfinite().all()


def test_an_empty_loader_and_an_iterator():
    model = net()
    for method in ("all-at-once", "eval-consistent"):
        with pytest.raises(NoStatistics, match="yields no batch"):
            recalibrate(model, [], method=method)
    with pytest.raises(NormsError, match="goes over the data several times"):
        recalibrate(model, iter([data()]))
    assert recalibrate(model, iter([data()]), method="eval-consistent").accepted


def test_missing_labels_a_missing_loader_and_an_unknown_method():
    model = net()
    before = state(model)
    with pytest.raises(NormsError, match="has no labels to score the model by"):
        recalibrate(model, [data()], metric="accuracy", held_out=[data()])
    with pytest.raises(NormsError, match="no data to measure it on"):
        recalibrate(model, [data()], metric="accuracy")
    with pytest.raises(NormsError, match="there is no such method"):
        recalibrate(model, [data()], method="exact")
    with pytest.raises(NoStatistics, match="no batch came through any"):
        recalibrate(model, [data()], forward=lambda model, batch: batch)
    assert state(model) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_nets(dtype):
    model, x = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8)).to(dtype), data().to(dtype)
    result = recalibrate(model, list(x.split(30)))
    mean, var = pooled(x)
    assert model[0].running_mean.dtype == dtype
    assert torch.equal(model[0].running_mean, mean.to(dtype))  # rounded once, from float64
    assert torch.equal(model[0].running_var, var.to(dtype))
    assert result.rows[0].residual_var < torch.finfo(dtype).eps
    assert plan_recalibrate(model, list(x.split(30)), method="eval-consistent").rows[1].residual_var < 0.02


def test_a_variance_that_half_precision_cannot_hold_is_refused():
    model = nn.Sequential(nn.BatchNorm1d(8)).half()
    before = state(model)
    with pytest.raises(NonFiniteStatistics, match=r"layer '0' \(BatchNorm1d\) do not fit into torch.float16"):
        recalibrate(model, [(1000 * torch.randn(64, 8)).half()])
    assert state(model) == before


def test_a_plan_that_is_out_of_date_is_refused():
    model, x = net(), data()
    plan = plan_recalibrate(model, [x])
    model.train()(x)
    before = state(model)
    with pytest.raises(NormsError, match="not what it was when this was planned: 1, 5"):
        plan.apply()
    assert state(model) == before


def test_two_layers_on_one_buffer_are_refused_whole():
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
    model[2]._buffers["running_mean"] = model[0]._buffers["running_mean"]
    before = state(model)
    plan = plan_recalibrate(model, [data()])
    with pytest.raises(NormsError, match="two layers share one tensor"):
        plan.apply()
    assert state(model) == before


def test_a_forward_pass_that_remembers_across_layers_is_caught():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(8), nn.BatchNorm1d(8)

        def forward(self, x):
            self.seen = x
            x = self.a(x)
            return self.b(self.seen[: len(x)])

    model, batches = Remembers(), [data(30), data(30, shift=9.0)]
    before = state(model)
    with pytest.raises(NormsError, match="keeps something from one layer to the next"):
        recalibrate(model, batches, method="eval-consistent")
    assert state(model) == before
    assert recalibrate(model, batches).accepted


# --- real data ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.real_data
def test_recalibrating_resnet20_on_jpeg_images_is_rolled_back():
    """81 % in place of 91.8 %, and recalibration makes it worse: the shift is in the images, not in the statistics."""
    checkpoint = DATA / "checkpoints" / "resnet20-12fca82f.th"
    if not checkpoint.is_file():
        pytest.skip(f"REAL DATA ABSENT: {checkpoint} is not there, so a repair that harms goes untested on a real net")
    spec = importlib.util.spec_from_file_location("resnet20", HERE.parents[1] / "checkpoint" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.ResNet20()
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({key.removeprefix("module."): value for key, value in saved.items()}, strict=False)
    model.train()
    train, test = jpegs("train", every=3), jpegs("test", every=2)
    before = state(model)
    result = recalibrate(model, train, metric="accuracy", held_out=test)
    assert not result.accepted
    assert state(model) == before
    assert result.before.value == pytest.approx(0.81, abs=0.01)
    assert result.after.value == pytest.approx(0.795, abs=0.01)
    assert result.difference.value < 0
    # The naive twin applies it.
    result.plan.apply()
    assert state(model) != before


def jpegs(part, every=1):
    import numpy as np
    from PIL import Image

    files = sorted((DATA / "cifar10" / part).glob("*/*"))[::every]
    names = sorted({file.parent.name for file in files})
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    y = torch.tensor([names.index(file.parent.name) for file in files])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return list(zip(x[order].split(250), y[order].split(250), strict=True))


def test_recalibrating_a_domain_is_recalibrating_a_plain_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6))
    plain = {name: deepcopy(model) for name in ("ground", "aerial")}
    split_domains(model, list(plain))
    for name, other in plain.items():
        data = [torch.randn(64, 4) + (name == "aerial") for _ in range(3)]
        with domain(model, name):
            recalibrate(model, data)
        recalibrate(other, data)
        for i in (1, 4):
            assert torch.equal(getattr(model[i], f"running_mean_{name}"), other[i].running_mean)
            assert torch.equal(getattr(model[i], f"running_var_{name}"), other[i].running_var)
    assert model[1].running_mean.abs().max() == 0
