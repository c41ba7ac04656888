"""Replaced heads, in models and in their optimizers."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.compat import import_torchvision
from frostline.errors import ModelError
from frostline.heads import HeadChange, plan_replace_head, replace_head
from frostline.heads.initial import new_head


def groups_of(model):
    return [
        {"params": [model.fc.bias, model.norm.weight], "lr": 0.5},
        {"params": [model.stem.weight, model.fc.weight, model.stem.bias], "lr": 0.1, "weight_decay": 0.3},
        {"params": [model.neck[0].weight, model.neck[0].bias, model.norm.bias], "lr": 0.0},
    ]


# The model


def test_what_is_kept_and_what_is_new(net):
    net.fc = nn.Linear(8, 3, bias=False, dtype=torch.bfloat16).eval()
    net.fc.rate = [0.1]
    before, old = fl.snapshot(net), net.fc
    old.weight.requires_grad_(False)
    change = replace_head(net, "fc", 7)
    assert change.module is net.fc
    assert (net.fc.weight.dtype, net.fc.bias, net.fc.training, net.fc.rate) == (torch.bfloat16, None, False, [0.1])
    assert net.fc.rate is not old.rate
    assert net.fc.weight.requires_grad
    assert net.training
    assert net.num_classes == 7
    moved = before.diff(net).paths
    assert moved == ["fc.weight"]  # the snapshot, too, was taken while it required gradients
    expected = new_head(old, 7, torch.Generator().manual_seed(0))
    assert torch.equal(net.fc.weight, expected.weight)


def test_the_values_come_from_the_generator_alone(net):
    state = torch.random.get_rng_state()
    other = copy.deepcopy(net)
    replace_head(net, "fc", 4, generator=torch.Generator().manual_seed(5))
    replace_head(other, "fc", 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(5)
        expected = nn.Linear(8, 4)
    assert torch.equal(net.fc.weight, expected.weight)
    assert torch.equal(net.fc.bias, expected.bias)
    assert not torch.equal(other.fc.weight, expected.weight)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_head_that_is_made_without_gradients_can_be_trained(net, images, train, mode):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with mode():
        replace_head(net, "fc", 4, optimizer=optimizer)
    before = net.fc.weight.detach().clone()
    train(net, optimizer, images)
    assert not torch.equal(net.fc.weight, before)


def test_a_segmentation_head():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 21, 1).to(memory_format=torch.channels_last))
    replace_head(model, "1", ["sky", "road"])
    assert model(torch.zeros(2, 3, 9, 9)).shape == (2, 2, 7, 7)
    assert model[1].weight.stride() == (8, 1, 8, 8)


def test_convolutions_in_groups(refused):
    model = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2))
    message = refused(lambda: replace_head(model, "0", 3), model)
    assert "a convolution with groups=2 cannot have 3 outputs\n  fix: a multiple of 2" in message
    replace_head(model, "0", 8)
    assert model(torch.zeros(1, 4, 2, 2)).shape == (1, 8, 2, 2)


class Cosine(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))


def test_a_subclass_goes_on_computing_in_its_own_way(net):
    net.fc = Cosine(8, 3, bias=False)
    replace_head(net, "fc", 4)
    assert type(net.fc) is Cosine
    assert net.fc(torch.randn(2, 8, generator=torch.Generator().manual_seed(0))).abs().max() <= 1 + 1e-6  # a cosine


def test_one_module_under_several_paths(net, images):
    model = nn.ModuleDict({"one": net, "again": net, "other": nn.Sequential(net.fc)})
    change = replace_head(model, "one.fc", 6)
    assert net.fc is model["other"][0] is change.module
    assert "one module under 3 paths, and stays one: one.fc, again.fc, other.0" in str(change)


def test_numbers_of_classes_follow_where_they_said_the_old_one(net, everything):
    class Config(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.num_labels, self.beside = net, 3, nn.Module()
            self.beside.num_classes = 3

    model = Config()
    replace_head(model, "net.fc", 9)
    assert (model.num_labels, net.num_classes, model.beside.num_classes) == (9, 9, 3)
    net.num_classes = True
    model.num_labels = 4
    assert str(replace_head(model, "net.fc", 1)) == "net.fc: 9 -> 1 outputs, 9 parameters"
    assert (model.num_labels, net.num_classes) == (4, True)


@pytest.mark.parametrize("compile_first", [True, False])
def test_compiled_models_use_the_new_head(net, images, compile_first: bool):
    net.eval()
    compiled = torch.compile(net, backend="aot_eager")
    with torch.no_grad():
        if compile_first:
            compiled(images)
        replace_head(compiled, "fc", 5)
        assert torch.allclose(compiled(images), net(images))
        assert compiled(images).shape == (5, 5)


def test_data_parallel_models_use_the_new_head(net, images):
    model = nn.DataParallel(net)
    replace_head(model, "fc", 5)
    assert model(images).shape == (5, 5)


# The optimizer


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}
if hasattr(torch.optim, "Adafactor"):  # since torch 2.5
    OPTIMIZERS["adafactor"] = lambda p: torch.optim.Adafactor(p, lr=0.01)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_new_parameters_sit_where_the_old_ones_sat(net, images, train, make):
    optimizer = make(groups_of(net))
    train(net, optimizer, images)
    old = {"weight": net.fc.weight, "bias": net.fc.bias}
    others = {p: dict(state) for p, state in optimizer.state.items() if p is not old["weight"] and p is not old["bias"]}
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    seats = [list(group["params"]) for group in optimizer.param_groups]
    change = replace_head(net, "fc", 6, optimizer=optimizer)
    stand_in = {id(old["weight"]): net.fc.weight, id(old["bias"]): net.fc.bias}
    for group, before, kept in zip(optimizer.param_groups, seats, options, strict=True):
        expected = [stand_in.get(id(p), p) for p in before]
        assert all(a is b for a, b in zip(group["params"], expected, strict=True))
        assert {k: v for k, v in group.items() if k != "params"} == kept
    assert all(optimizer.state[p] == state for p, state in others.items())
    assert old["weight"] not in optimizer.state
    assert change.group == 1
    name = type(optimizer).__name__
    assert change.notes[-2:] == (f"bias in group 0 of {name}", f"weight in group 1 of {name}")
    # The head learns from now on as it does with a fresh optimizer, and the rest goes on as it did.
    before = net.fc.weight.detach().clone()
    train(net, optimizer, images)
    assert not torch.equal(net.fc.weight, before)
    assert len(optimizer.state) == len(list(net.parameters()))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def test_the_naive_way_trains_the_old_head(net, images, train):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.fc = nn.Linear(8, 6)
    before = net.fc.weight.detach().clone()
    train(net, optimizer, images)
    assert torch.equal(net.fc.weight, before)


def test_training_goes_on_as_if_the_optimizer_had_been_made_for_the_new_head(net, images, train):
    """SGD without momentum has no memory, so a fresh one over the same groups is the reference, to the bit."""
    optimizer = torch.optim.SGD(groups_of(net), lr=0.1)
    train(net, optimizer, images)
    replace_head(net, "fc", 6, optimizer=optimizer)
    twin = copy.deepcopy(net)
    train(twin, torch.optim.SGD(groups_of(twin), lr=0.1), images)
    train(net, optimizer, images)
    assert not fl.snapshot(twin).diff(net)


def test_schedulers_and_names_of_parameters_stay(net, images, train):
    paths, parameters = zip(*net.named_parameters(), strict=True)
    optimizer = torch.optim.SGD([{"params": list(parameters), "param_names": list(paths)}], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    replace_head(net, "fc", 6, optimizer=optimizer)
    assert optimizer.param_groups[0]["param_names"] == list(paths)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in net.parameters()]
    assert scheduler.base_lrs == [0.1]
    train(net, optimizer, images)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_head_that_the_optimizer_does_not_train(net):
    optimizer = torch.optim.SGD([*net.stem.parameters(), net.fc.bias], lr=0.1)
    change = replace_head(net, "fc", 6, optimizer=optimizer)
    assert change.group is None
    assert change.notes[-2:] == (
        "bias in group 0 of SGD",
        "weight in no group of SGD, as before: optimizer.add_param_group(...) trains them",
    )
    assert len(optimizer.param_groups[0]["params"]) == 3


def test_optimizers_that_cannot_exchange_parameters(net, refused):
    message = refused(lambda: replace_head(net, "fc", 2, optimizer=torch.optim.LBFGS(net.parameters())), net)
    assert "LBFGS" in message


# All or nothing


class Full(list):
    """A group that takes the weight, and no bias."""

    def __setitem__(self, index, value):
        if getattr(value, "ndim", 0) == 1 and value.shape[0] == 6:
            raise MemoryError("no more")
        super().__setitem__(index, value)


def test_a_failure_on_the_way_leaves_all_as_it_was(net, images, train, everything):
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    train(net, optimizer, images)
    optimizer.param_groups[0]["params"] = Full(optimizer.param_groups[0]["params"])
    before = everything(net, optimizer)
    with pytest.raises(MemoryError):
        replace_head(net, "fc", 6, optimizer=optimizer)
    assert before.is_as_it_was()
    replace_head(net, "fc", 4, optimizer=optimizer)
    assert not before.is_as_it_was()


def test_planning_changes_nothing(net, images, train, everything):
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    train(net, optimizer, images)
    generator = torch.Generator().manual_seed(1)
    state, before = generator.get_state(), everything(net, optimizer)
    plan = plan_replace_head(net, "fc", ["a", "b"], optimizer=optimizer, generator=generator)
    assert str(plan) == ("plan: fc: 3 -> 2 outputs (a, b)\n  num_classes: 3 -> 2\n  weight and bias in group 0 of Adam")
    assert before.is_as_it_was()
    assert torch.equal(generator.get_state(), state)
    assert plan.apply().classes == ("a", "b")


def test_a_plan_that_is_overtaken_is_refused(net, refused):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    plan = plan_replace_head(net, "fc", 2, optimizer=optimizer)
    optimizer.param_groups[0]["params"].reverse()
    assert "has changed since this was planned\n  fix: plan it anew" in refused(plan.apply, net, optimizer)
    optimizer.param_groups[0]["params"].reverse()
    weight, net.fc.weight = net.fc.weight, nn.Parameter(torch.zeros(4, 8))
    assert "has changed since this was planned" in refused(plan.apply, net, optimizer)
    net.fc.weight = weight
    hold = fl.freeze(net, "fc")
    assert "is held" in refused(plan.apply, net, optimizer)
    hold.thaw()
    plan.apply()
    assert "has changed since" in refused(plan.apply, net, optimizer)


# The result


def test_the_change_prints_itself_and_is_json(net):
    classes = ["cat\x1b[31m", *"bcdef"]
    change = replace_head(net, "fc", classes)
    assert isinstance(change, HeadChange)
    assert str(change) == ("fc: 3 -> 6 outputs (cat\\x1b[31m, b, c, d (+2 more)), 54 parameters\n  num_classes: 3 -> 6")
    assert json.loads(json.dumps(change.to_json())) == {
        "schema_version": 1,
        "path": "fc",
        "old": 3,
        "new": 6,
        "kept": 0,
        "classes": classes,
        "group": None,
        "parameters": 54,
        "notes": ["num_classes: 3 -> 6"],
    }
    with pytest.raises(AttributeError):
        change.old = 5


@pytest.mark.parametrize("classes", [0, "cat", ["a", "a"]])
def test_classes_that_are_none(net, refused, classes):
    assert "replace_head(Net, 'fc'): classes" in refused(lambda: replace_head(net, "fc", classes), net)


@pytest.mark.filterwarnings("ignore::frostline.errors.TorchvisionWithoutOperators")
@pytest.mark.parametrize(("name", "path"), [("resnet18", "fc"), ("mobilenetv3_small_050", "classifier")])
def test_models_of_timm(name: str, path: str):
    import_torchvision()
    timm = pytest.importorskip("timm")
    model = timm.create_model(name).eval()
    kind = type(model.get_classifier())
    replace_head(model, path, 4)
    assert model.num_classes == 4
    assert type(model.get_classifier()) is kind
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


def test_errors_are_of_one_kind(net):
    with pytest.raises(ModelError):
        replace_head(net, "", 2)
