"""Plans: what a freeze would do, as a value that changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from frostline.errors import CannotFreeze, NothingSelected
from frostline.freezing import KeepTensors, plan_freeze


def test_a_plan_changes_nothing(two_heads, bytes_of):
    model = two_heads
    dicts = [dict(m.__dict__) for m in model.modules()]
    tensors, flags = bytes_of(model), [p.requires_grad for p in model.parameters()]
    plan = plan_freeze(model, "trunk")
    assert [dict(m.__dict__) for m in model.modules()] == dicts
    assert (bytes_of(model), [p.requires_grad for p in model.parameters()]) == (tensors, flags)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.level = "grad"


def test_what_each_level_covers(two_heads):
    state, stats, grad = (plan_freeze(two_heads, "trunk", level=level) for level in ("state", "stats", "grad"))
    assert list(state.locked) == ["trunk", *(f"trunk.{i}" for i in range(5))]
    assert list(stats.locked) == ["trunk.1"]
    assert grad.locked == {}
    assert list(state.parameters) == list(grad.parameters)
    assert list(state.parameters) == ["trunk.0.weight", "trunk.0.bias", "trunk.1.weight", "trunk.1.bias"]
    assert stats.parameters == {}
    assert set(stats.paths) | set(grad.paths) < set(state.paths)
    assert {"trunk.1.eps", "trunk.3.p", "trunk.training"} <= set(state.paths)
    assert list(state.held_entries()) == list(state.paths)
    assert list(state.tops) == ["trunk"]


def test_a_recurrent_layer_is_handled_but_its_mode_is_free(old_spectral_norm):
    class Noisy(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0] + self.training

    plan = plan_freeze(nn.Sequential(nn.LSTM(2, 2)), "*")
    assert list(plan.locked) == [""]
    assert "0.training" not in plan.paths
    assert "0.dropout" in plan.paths
    # A forward of one's own may go by the mode, and so does what was hung onto the layer.
    for layer in (Noisy(2, 2), old_spectral_norm(nn.LSTM(2, 2), name="weight_hh_l0")):
        plan = plan_freeze(nn.Sequential(layer), "*")
        assert list(plan.locked) == ["", "0"]
        assert plan.handled == {}
        assert "0.training" in plan.paths


def test_printed(two_heads):
    model = nn.ModuleDict(
        {"a": nn.Embedding(3, 2, max_norm=1.0), "b": nn.Linear(2, 3, bias=False), "c": nn.Linear(2, 2)}
    )
    model["b"].weight = model["a"].weight
    assert str(plan_freeze(model, "a")) == (
        "freeze ModuleDict, level 'state': 3 state entries, 1 parameters, 1 modules kept in eval mode\n"
        "  a\n"
        "  a: KeepTensors\n"
        "F113 warning: parameter 'a.weight' is held, and with it 'b.weight', the same parameter\n"
        "  seen: one object under several names\n"
        "  fix:  select 'b.weight' too if that is meant, or untie the two (a copy of the parameter) before freezing"
    )
    assert str(plan_freeze(two_heads, "trunk", level="grad")) == (
        "freeze TwoHeads, level 'grad': 8 state entries, 4 parameters, 0 modules kept in eval mode\n  trunk"
    )


def test_handlers_given_by_type(gated_codebook):
    model = nn.Sequential(gated_codebook(), nn.Embedding(3, 2, max_norm=1.0))
    plan = plan_freeze(model, "*", handlers={gated_codebook: KeepTensors()})
    assert {path: handlers for path, (_, handlers) in plan.handled.items()} == {
        "0": (KeepTensors(),),
        "1": (KeepTensors(),),
    }


class TestRefused:
    def test_level_without_anything_to_hold(self):
        model = nn.Sequential(nn.Dropout(), nn.Linear(1, 1))
        with pytest.raises(CannotFreeze, match="the 1 selected modules have no parameters to hold"):
            plan_freeze(model, "0", level="grad")
        with pytest.raises(CannotFreeze, match="have no running statistics to hold"):
            plan_freeze(model, "1", level="stats")

    @pytest.mark.parametrize("name", ["running_mean", "running_var", "num_batches_tracked"])
    def test_a_single_statistics_buffer(self, name):
        model = nn.Sequential(nn.BatchNorm1d(2))
        with pytest.raises(CannotFreeze) as caught:
            plan_freeze(model, f"0.{name}")
        assert str(caught.value) == (
            "freeze: a single buffer of a BatchNorm1d cannot be held by itself, its layer decides over all of them by "
            f"its mode.\n  where: 0.{name}\n"
            "  fix: freeze(model, '0'), or freeze(model, '0', level=\"stats\") to let weight and bias train"
        )

    def test_a_weight_left_out_of_its_batch_norm(self):
        with pytest.raises(CannotFreeze, match="single buffer"):
            plan_freeze(nn.Sequential(nn.BatchNorm1d(2)), "*", "!0.weight")

    def test_a_single_vector_of_a_spectral_norm(self, old_spectral_norm):
        model = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), old_spectral_norm(nn.Linear(3, 3))
        )
        for path in ("0.parametrizations.weight.0._u", "1.weight_u"):
            with pytest.raises(CannotFreeze, match="single buffer") as caught:
                plan_freeze(model, path)
            assert "stats" not in str(caught.value)

    def test_a_single_switch_of_a_fake_quantizer(self):
        from torch.ao.quantization import FakeQuantize

        with pytest.raises(CannotFreeze, match="single buffer of a FakeQuantize"):
            plan_freeze(nn.Sequential(FakeQuantize()), "0.scale")

    def test_a_constant_buffer_by_itself_is_fine(self):
        model = nn.Linear(2, 2)
        model.register_buffer("grid", torch.zeros(2))
        assert plan_freeze(model, "grid").paths == ("grid",)

    def test_nothing_selected(self, two_heads):
        with pytest.raises(NothingSelected, match="nearest names: trunk"):
            plan_freeze(two_heads, "trunks")


def test_parameters_beside_the_held_part():
    class Vit(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(2))
            self.fixed = nn.Parameter(torch.zeros(2), requires_grad=False)
            self.blocks = nn.Sequential(nn.Linear(2, 2))
            self.head = nn.Linear(2, 2)

    plan = plan_freeze(Vit(), "blocks")
    assert [(f.code, f.paths) for f in plan.findings] == [("F121", ("cls_token",))]
    assert plan_freeze(Vit(), "blocks", "cls_token").findings == ()
    assert plan_freeze(Vit(), "cls_token").findings == ()
