"""Which layers a split takes, what it adds to them, and what it leaves alone."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import frostline as fl
from frostline.errors import DomainError, NoStatistics, NothingSelected
from frostline.norms import StatisticsUse
from frostline.norms.domain_forward import domain_buffers, forward_of
from frostline.norms.domain_split import plan_split_domains, split_domains
from frostline.norms.domains import domain
from frostline.norms.layers import register

NAMES = ["ground", "aerial"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model(torch.randn(8, 4))
    return model


def facts(model):
    """Everything that a split may not change in a layer that it leaves alone."""
    return {
        "classes": [type(m) for m in model.modules()],
        "modes": [m.training for m in model.modules()],
        "objects": [id(t) for t in (*model.parameters(), *model.buffers())],
        "values": [t.tolist() for t in model.state_dict().values()],
        "keys": list(model.state_dict()),
        "forwards": [type(m.__dict__.get("forward")) for m in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
    }


def test_a_plan_changes_nothing_and_a_split_does_what_it_said(model):
    before, old = facts(model), dict(model.named_buffers())
    plan = plan_split_domains(model, NAMES)
    assert facts(model) == before
    domains = plan.apply()
    new = [key for key in model.state_dict() if key not in before["keys"]]
    assert sorted(new) == sorted(plan.buffers)
    assert len(new) == 2 * 2 * 3
    assert (domains.names, domains.paths) == (("ground", "aerial"), ("1", "4"))
    after = dict(model.named_buffers())
    for key in new:
        source = key.rpartition("_")[0]
        assert torch.equal(after[key], after[source])
        assert after[key] is not after[source]
        assert after[source] is old[source]
    assert facts(model)["classes"] == before["classes"]
    assert [id(p) for p in model.parameters()] == before["objects"][: len(list(model.parameters()))]


def test_the_plan_prints_what_it_would_do():
    model = nn.Sequential(
        nn.BatchNorm1d(2),
        nn.BatchNorm1d(2),
        nn.GroupNorm(1, 2),
        nn.BatchNorm1d(2, track_running_stats=False),
        nn.InstanceNorm1d(2),
        nn.InstanceNorm1d(2, track_running_stats=True),
        nn.BatchNorm1d(2),
    )
    model[5].track_running_stats = False
    fl.freeze(model, "6")
    plan = plan_split_domains(model, NAMES, share_affine=False)
    assert str(plan) == (
        "split 2 layers of Sequential into ground, aerial; weight and bias of their own\n"
        "  [0-1] (x2)\n"
        "  + buffer [0-1].running_mean_ground (x2)\n"
        "  + buffer [0-1].running_mean_aerial (x2)\n"
        "  + buffer [0-1].running_var_ground (x2)\n"
        "  + buffer [0-1].running_var_aerial (x2)\n"
        "  + buffer [0-1].num_batches_tracked_ground (x2)\n"
        "  + buffer [0-1].num_batches_tracked_aerial (x2)\n"
        "  + parameter [0-1].weight_ground (x2), to be added to the optimizer\n"
        "  + parameter [0-1].weight_aerial (x2), to be added to the optimizer\n"
        "  + parameter [0-1].bias_ground (x2), to be added to the optimizer\n"
        "  + parameter [0-1].bias_aerial (x2), to be added to the optimizer\n"
        "  left as it is: 2: GroupNorm keeps no running statistics\n"
        "  left as it is: 3: BatchNorm1d keeps no running statistics\n"
        "  left as it is: 4: InstanceNorm1d keeps no running statistics\n"
        "  left as it is: 5: InstanceNorm1d with track_running_stats=False never uses its statistics\n"
        "  left as it is: 6: held"
    )
    before = facts(model[2:])
    plan.apply()
    assert facts(model[2:]) == before


def test_only_what_is_selected_is_split(model):
    assert split_domains(model, NAMES, "4").paths == ("4",)
    assert forward_of(model[1]) is None
    with pytest.raises(NothingSelected):
        split_domains(model, NAMES, "encoder")


def test_the_rest_can_be_split_later_but_nothing_twice(model):
    split_domains(model, NAMES, "1")
    plan = plan_split_domains(model, NAMES)
    assert plan.skipped == {"1": "already split into ground, aerial"}
    plan.apply()
    with pytest.raises(NoStatistics, match="no layer of Sequential can be split\n  1: already split into"):
        split_domains(model, ["day", "night"])


@pytest.mark.parametrize("names", [["a"], [], "ab", ["a", "a"], ["a", ""], ["a", "b.c"], ["a", "mixture"], ["a", 1]])
def test_names_that_do_not_fit(model, names):
    before = facts(model)
    with pytest.raises(DomainError, match="split_domains: "):
        split_domains(model, names)
    assert facts(model) == before


def test_models_without_statistics():
    with pytest.raises(NoStatistics, match="there is no normalization layer in what was selected"):
        split_domains(nn.Linear(2, 2), NAMES)
    with pytest.raises(NoStatistics, match="0: LayerNorm keeps no running statistics"):
        split_domains(nn.Sequential(nn.LayerNorm(2)), NAMES)
    with pytest.raises(NoStatistics, match="is lazy and has no statistics yet"):
        split_domains(nn.Sequential(nn.LazyBatchNorm1d()), NAMES)


def test_a_plan_that_is_out_of_date_is_refused(model):
    plan = plan_split_domains(model, NAMES)
    hold = fl.freeze(model, "4")
    before = facts(model)
    with pytest.raises(DomainError, match="the model is not what it was when this was planned: 4\n  fix: plan again"):
        plan.apply()
    assert facts(model) == before
    hold.thaw()
    model[4] = nn.BatchNorm1d(3)
    with pytest.raises(DomainError, match="planned: 4\n"):
        plan.apply()


def test_a_split_that_fails_halfway_leaves_nothing(model, monkeypatch):
    before = facts(model)
    plan = plan_split_domains(model, NAMES, share_affine=False)
    register_parameter = nn.Module.register_parameter

    def full(self, name, value):
        if self is model[4] and name == "bias_aerial":
            raise MemoryError
        register_parameter(self, name, value)

    monkeypatch.setattr(nn.Module, "register_parameter", full)
    with pytest.raises(MemoryError):
        plan.apply()
    assert facts(model) == before


def test_a_forward_that_something_else_has_replaced_is_left_alone(model):
    model[1].forward = replaced = lambda x: x
    assert plan_split_domains(model, NAMES).skipped == {"1": "its forward has been replaced by a function"}
    split_domains(model, NAMES)
    assert model[1].forward is replaced


def test_a_name_that_is_taken_is_left_alone(model):
    model[1].register_buffer("running_var_aerial", torch.tensor(3.0))
    plan = plan_split_domains(model, NAMES)
    assert plan.skipped == {"1": "it has a 'running_var_aerial' already"}
    plan.apply().undo()
    assert model[1].running_var_aerial.item() == 3


def test_optimizers_stay_valid(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    split_domains(model, NAMES)
    weight = model[1].weight.clone()
    with domain(model, "aerial"):
        model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[1].weight, weight)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}


def test_weights_of_their_own_train_apart_once_the_optimizer_knows_them(model):
    model[1].bias.requires_grad_(False)
    originals = list(model.parameters())
    optimizer = torch.optim.SGD(originals, lr=0.1, weight_decay=0.1)
    plan = plan_split_domains(model, NAMES, share_affine=False)
    domains = plan.apply()
    assert [id(p) for p in model.parameters() if any(p is o for o in originals)] == [id(p) for p in originals]
    assert {path for path, _ in model.named_parameters()} >= set(plan.parameters)
    assert len(domains.parameters()) == len(plan.parameters) == 8
    assert not model[1].bias_aerial.requires_grad
    optimizer.add_param_group({"params": domains.parameters()})
    norm_weight = model[1].weight.clone()
    with domain(model, "aerial"):
        model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[1].weight_aerial, norm_weight)
    assert torch.equal(model[1].weight_ground, norm_weight)
    assert model[1].weight.grad is None
    assert torch.equal(model[1].weight, norm_weight)


def test_an_affine_of_its_own_is_what_the_forward_uses(model):
    split_domains(model, NAMES, share_affine=False)
    with torch.no_grad():
        model[4].weight_aerial.zero_()
        model[4].bias_aerial.fill_(3)
    x = torch.randn(8, 4)
    with domain(model, "aerial"):
        assert torch.equal(model(x), torch.full((8, 3), 3.0))
    with domain(model, tags=["aerial", "ground", "ground", "aerial", *["ground"] * 4]):
        out = model(x)
    assert torch.equal(out[[0, 3]], torch.full((2, 3), 3.0))
    assert not (out[[1, 2, 4, 5, 6, 7]] == 3).any()


def test_a_parametrized_weight_is_shared_or_left_alone(model):
    parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    plain = copy.deepcopy(model)
    assert plan_split_domains(model, NAMES, share_affine=False).skipped.keys() == {"1"}
    split_domains(model, NAMES)
    x = torch.randn(8, 4)
    with domain(model, "ground"):
        assert torch.equal(model(x), plain(x))


def test_frozen_batch_norms_of_torchvision_can_have_domains():
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ops = import_torchvision("ops")
    model = nn.Sequential(ops.FrozenBatchNorm2d(3))
    x = torch.randn(2, 3, 4, 4)
    plain = model(x)
    split_domains(model, NAMES)
    model[0].running_mean_aerial.fill_(2)
    with domain(model, "ground"):
        assert torch.equal(model(x), plain)
    with domain(model, "aerial"):
        torch.testing.assert_close(model(x), plain - 2)


def test_layers_that_users_registered_are_split_by_their_own_names():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("moving_mean", torch.zeros(2), persistent=False)
            self.register_buffer("moving_var", torch.ones(2))

        def forward(self, x):
            return (x - self.moving_mean) * self.moving_var.rsqrt()

    @register(Own, mean="moving_mean", var="moving_var", channel_dim=-1)
    def read(layer):
        return StatisticsUse("running", updates=False)

    model = nn.Sequential(Own())
    split_domains(model, NAMES)
    model[0].moving_mean_aerial.fill_(1)
    with domain(model, tags=["ground", "aerial"]):
        assert model(torch.ones(2, 2)).tolist() == [[1, 1], [0, 0]]
    assert domain_buffers(model[0], "aerial") == (model[0].moving_mean_aerial, model[0].moving_var_aerial, None)
    assert list(model.state_dict()) == ["0.moving_var", "0.moving_var_ground", "0.moving_var_aerial"]


def test_a_layer_shared_under_two_names_is_split_once():
    layer = nn.BatchNorm1d(2)
    model = nn.ModuleDict({"a": layer, "b": layer})
    assert split_domains(model, NAMES).paths == ("a",)


def test_splitting_a_lone_layer_and_a_double_precision_one():
    layer = nn.BatchNorm1d(2).double()
    domains = split_domains(layer, NAMES)
    assert domains.paths == ("",)
    assert layer.running_mean_aerial.dtype == torch.float64
    layer.float()
    assert layer.running_mean_aerial.dtype == torch.float32
