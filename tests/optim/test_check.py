"""What an optimizer holds of a model: each kind of mistake by name, and that torch says nothing about it."""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from frostline.errors import ModelError
from frostline.optim import check_groups, param_groups


@pytest.fixture
def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


NAMES = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]


def adam_of(net: nn.Module, **settings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(param_groups(net, 0.1, head="2", layer_decay=0.5, weight_decay=0.05, **settings))


def train(net: nn.Module, optimizer, batch: torch.Tensor) -> None:
    optimizer.zero_grad()
    net(batch).square().sum().backward()
    optimizer.step()


def test_the_optimizer_of_this_model_is_right(net):
    found = check_groups(net, adam_of(net))
    assert found.right
    assert found.rows == ()
    assert found.parameters == 6
    assert str(found) == "6 parameters are in exactly one group; nothing is missing, gone or doubled"
    assert found.to_json() == {"schema_version": 1, "right": True, "parameters": 6, "rows": []}
    found.raise_if_wrong()


def test_missing_is_what_trains_and_is_in_no_group(net):
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
    found = check_groups(net, optimizer)
    assert found.of("missing") == NAMES[2:]
    assert not found.right
    net[1].requires_grad_(False)
    assert check_groups(net, optimizer).of("missing") == NAMES[4:], "what is held may be left out"


def assert_orphaned_by_name(found) -> None:
    assert found.of("orphaned") == NAMES
    assert found.of("missing") == NAMES
    assert found.parameters == 0
    assert not found.right


def test_a_copied_model_is_another_model(net):
    found = check_groups(copy.deepcopy(net), adam_of(net))
    assert_orphaned_by_name(found)
    row = next(row for row in found.rows if row.what == "orphaned")
    assert (row.group, row.why) == ("layer 0", "the model has another tensor of this name: it was re-created")


def re_create_by_to_empty(net):
    net.to(device="meta")
    return net.to_empty(device="cpu")


def re_create_by_assign(net):
    net.load_state_dict({key: value.clone() for key, value in net.state_dict().items()}, assign=True)
    return net


@pytest.mark.parametrize("re_create", [re_create_by_to_empty, re_create_by_assign])
def test_parameters_that_were_created_anew_are_found_by_name(net, re_create):
    optimizer = adam_of(net)
    assert_orphaned_by_name(check_groups(re_create(net), optimizer))


@pytest.mark.parametrize("re_create", [copy.deepcopy, re_create_by_assign])
def test_torch_says_nothing_when_a_step_moves_parameters_of_nobody(net, batch, re_create):
    optimizer = adam_of(net)
    live = re_create(net)
    before = [parameter.detach().clone() for parameter in live.parameters()]
    train(live, optimizer, batch)  # warnings are errors here, and there is none
    after = list(live.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "it did not train, and nobody said so"
    with pytest.raises(ModelError, match="orphaned: 6"):
        check_groups(live, optimizer).raise_if_wrong()


def test_the_same_step_trains_the_model_that_the_optimizer_was_made_from(net, batch):
    optimizer = adam_of(net)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    train(net, optimizer, batch)
    # The bias before a batch norm has no gradient but rounding.
    assert not any(torch.equal(a, b) for a, b in zip(before[::2], list(net.parameters())[::2], strict=True))


def named(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.named_parameters(), lr=0.1)


def test_an_optimizer_of_named_parameters_names_its_orphans(net):
    try:
        optimizer = named(net)
    except (TypeError, ValueError):
        pytest.skip("this torch makes no optimizer from named parameters")
    assert_orphaned_by_name(check_groups(re_create_by_assign(net), optimizer))


def test_without_names_an_orphan_is_told_by_its_place_and_shape(net):
    optimizer = torch.optim.SGD([{"params": net[0].parameters()}, {"params": net[2].parameters()}], lr=0.1)
    net[2] = nn.Linear(4, 5)
    found = check_groups(net, optimizer)
    assert found.of("orphaned") == ["group 1, number 0, shape (2, 4)", "group 1, number 1, shape (2,)"]
    assert found.of("missing") == NAMES[2:]
    assert {row.why for row in found.rows if row.what == "orphaned"} == {"not in the model"}


def test_a_part_that_was_taken_off_is_gone(net):
    optimizer = adam_of(net)
    net[2] = nn.Identity()
    found = check_groups(net, optimizer)
    assert [(row.path, row.why) for row in found.rows] == [("2.weight", "gone"), ("2.bias", "gone")]
    assert found.parameters == 4


def test_a_parameter_in_two_groups(net, batch):
    optimizer = adam_of(net)
    with pytest.raises((ValueError, Warning), match="more than one parameter group"):
        optimizer.add_param_group({"params": [net[0].weight], "param_names": ["0.weight"]})
    optimizer.param_groups[-1]["params"].append(net[0].weight)  # past torch's check
    found = check_groups(net, optimizer)
    row = next(row for row in found.rows if row.what == "duplicate")
    assert (row.path, row.why) == ("0.weight", "2 times")
    assert row.group == "layer 0, head, no decay"
    assert found.parameters == 5
    assert not found.right
    train(net, optimizer, batch)  # torch steps it twice without a word


def test_twice_in_one_group(net):
    optimizer = adam_of(net)
    optimizer.param_groups[0]["params"].append(net[0].weight)
    found = check_groups(net, optimizer)
    assert found.of("duplicate") == ["0.weight"]
    assert found.rows[0].group == "layer 0"


def test_what_is_frozen_in_a_group_is_told_and_right(net):
    net[0].requires_grad_(False)
    found = check_groups(net, adam_of(net))
    assert found.of("frozen") == ["0.weight", "0.bias"]
    assert found.right
    assert "frozen" in str(found)
    found.raise_if_wrong()


def test_a_tied_tensor_is_one_parameter():
    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "out": nn.Linear(2, 3, bias=False)})
    model["out"].weight = model["embed"].weight
    found = check_groups(model, torch.optim.SGD([model["out"].weight], lr=0.1))
    assert (found.right, found.parameters, found.rows) == (True, 1, ())


def test_settings_that_are_not_what_was_asked(net):
    asked = param_groups(net, 0.1, head="2", layer_decay=0.5, weight_decay=0.05)
    optimizer = torch.optim.AdamW(asked)
    assert check_groups(net, optimizer, asked).right
    optimizer.param_groups[0]["weight_decay"] = 0.3
    optimizer.param_groups[2]["initial_lr"] = 7.0
    found = check_groups(net, optimizer, asked)
    assert [(row.path, row.what, row.why) for row in found.rows] == [
        ("layer 0", "differs", "weight_decay is 0.3, asked was 0.05"),
        ("head", "differs", "lr is 7.0, asked was 0.1"),
    ]
    assert not found.right
    assert found.parameters == 6
    assert check_groups(net, optimizer).right, "nothing was asked, nothing is compared"


def test_a_rate_changed_by_hand_is_seen_where_no_scheduler_could_have(net):
    asked = [{"params": list(net.parameters()), "lr": 0.1}]
    optimizer = torch.optim.SGD([{**asked[0]}], lr=9.0)
    assert check_groups(net, optimizer, asked).right
    optimizer.param_groups[0]["lr"] = 0.2
    found = check_groups(net, optimizer, asked)
    assert [(row.path, row.why) for row in found.rows] == [("group 0", "lr is 0.2, asked was 0.1")]


def test_where_there_is_an_initial_rate_the_present_one_is_the_business_of_schedulers(net):
    asked = param_groups(net, 0.1, head="2", layer_decay=0.5)
    optimizer = torch.optim.SGD(asked)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.01])
    assert [group["lr"] for group in asked.made] == [0.05, 0.1]
    assert check_groups(net, optimizer, asked).right


def test_an_option_of_the_optimizer_that_was_asked(net):
    asked = [{**group, "momentum": 0.9} for group in param_groups(net, 0.1)]
    optimizer = torch.optim.SGD([dict(group) for group in asked])
    assert check_groups(net, optimizer, asked).right
    optimizer.param_groups[0]["momentum"] = 0.0
    assert check_groups(net, optimizer, asked).rows[0].why == "momentum is 0.0, asked was 0.9"


def test_an_optimizer_keeps_the_dictionaries_so_they_are_no_record_of_what_was_asked(net):
    asked = [{"params": list(net.parameters()), "lr": 0.1}]
    optimizer = torch.optim.SGD(asked)
    optimizer.param_groups[0]["lr"] = 9.0
    assert asked[0]["lr"] == 9.0
    with pytest.raises(ModelError, match=r"the optimizer's own dictionaries.*\n  fix: asked=\[dict\(group\)"):
        check_groups(net, optimizer, asked)


def test_groups_that_were_asked_of_another_model_are_not_compared(net):
    asked = param_groups(copy.deepcopy(net), 123.0)
    assert check_groups(net, adam_of(net), asked).right


def test_settings_of_a_loaded_state_are_compared(net):
    asked = param_groups(net, 0.1, head="2", layer_decay=0.5, weight_decay=0.05)
    optimizer = torch.optim.AdamW(asked)
    other = torch.optim.AdamW(param_groups(net, 0.1, head="2", layer_decay=0.5, weight_decay=0.01))
    optimizer.load_state_dict(other.state_dict())
    assert check_groups(net, optimizer, asked).of("differs") == ["layer 0", "head"]


def test_what_is_told_when_it_is_wrong(net):
    optimizer = adam_of(net)
    net[2] = nn.Linear(4, 5)
    optimizer.param_groups[0]["params"].append(net[0].weight)
    with pytest.raises(ModelError) as caught:
        check_groups(net, optimizer).raise_if_wrong()
    assert str(caught.value) == (
        "the optimizer does not hold what the model trains\n"
        "  missing: 2: 2.weight, 2.bias\n"
        "  orphaned: 2: 2.weight, 2.bias\n"
        "  duplicate: 1: 0.weight\n"
        "  fix: make the optimizer after the model is as it should be, from fl.param_groups(model, ...)"
    )


def test_the_table_and_the_json(net):
    optimizer = adam_of(net)
    net[2] = nn.Identity()
    found = check_groups(net, optimizer)
    assert [line.split() for line in str(found).splitlines()] == [
        ["4", "parameters", "are", "in", "exactly", "one", "group"],
        ["parameter", "group", "why"],
        [*(str(found).splitlines()[2].split())],
        ["2.weight", "orphaned", "head", "gone"],
        ["2.bias", "orphaned", "head,", "no", "decay", "gone"],
    ]
    data = json.loads(json.dumps(found.to_json()))
    assert data["right"] is False
    assert data["rows"][0] == {"path": "2.weight", "what": "orphaned", "group": "head", "why": "gone"}
    assert "<table" in found._repr_html_()


def test_names_that_hold_control_characters_are_printed_plainly(net):
    optimizer = adam_of(net)
    optimizer.param_groups[0]["name"] = "a\x1b[31m"
    optimizer.param_groups[0]["params"].append(net[0].weight)
    assert "\x1b" not in str(check_groups(net, optimizer))


class Wrapped:
    """As accelerate's: a thing of its own around an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups


def test_wrappers_of_models_and_optimizers(net):
    optimizer = Wrapped(adam_of(net))
    assert check_groups(nn.DataParallel(net), optimizer).right
    assert check_groups(torch.compile(net, backend="eager"), optimizer).right
    assert_orphaned_by_name(check_groups(nn.DataParallel(copy.deepcopy(net)), optimizer))


def test_accelerate(net):
    accelerate = pytest.importorskip("accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared, optimizer = accelerate.Accelerator(cpu=True).prepare(net, adam_of(net))
    assert not isinstance(optimizer, torch.optim.AdamW)
    assert check_groups(prepared, optimizer).right
    assert_orphaned_by_name(check_groups(copy.deepcopy(net), optimizer))


def test_nothing_is_changed(net, batch):
    optimizer = adam_of(net)
    train(net, optimizer, batch)
    before = copy.deepcopy(optimizer.state_dict())
    values = [parameter.detach().clone() for parameter in net.parameters()]
    check_groups(net, optimizer, param_groups(net, 0.2))
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for number, state in before["state"].items():
        assert all(torch.equal(value, after["state"][number][key]) for key, value in state.items())
    assert all(torch.equal(a, b) for a, b in zip(values, net.parameters(), strict=True))


def with_a_scheduler_made_too_early(net: nn.Module, kind):
    """The head first, then a scheduler, then the groups of the trunk."""
    groups = param_groups(net, 0.1, head="2", head_lr=1.0)
    optimizer = torch.optim.SGD([groups[-1]])
    schedule = kind(optimizer)
    optimizer.add_param_group(groups[0])
    return optimizer, schedule, groups


def test_a_scheduler_that_was_made_before_the_groups_is_not_seen_in_them(net):
    optimizer, schedule, groups = with_a_scheduler_made_too_early(
        net, lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.5**step)
    )
    # The optimizer holds each parameter once with what was asked: nothing in its groups tells of the scheduler,
    assert check_groups(net, optimizer, groups).right
    assert len(schedule.base_lrs) == 1 < len(optimizer.param_groups)
    # which breaks at its first step,
    optimizer.step()
    with pytest.raises((ValueError, RuntimeError)):
        schedule.step()
    # or, in older versions, leaves the new group alone. Groups that are all there before the scheduler do neither.
    optimizer = torch.optim.SGD(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5]


def test_a_group_added_in_a_warm_up_overshoots_and_its_initial_rate_does_not_tell(net):
    optimizer, schedule, groups = with_a_scheduler_made_too_early(
        net, lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=0.5, total_iters=2)
    )
    for _ in range(3):
        optimizer.step()
        schedule.step()
    late = optimizer.param_groups[1]
    assert late["lr"] == 0.2, "twice what was asked, for good"
    assert late["initial_lr"] == 0.1
    assert check_groups(net, optimizer, groups).right


@pytest.mark.parametrize("kind", ["StepLR", "SequentialLR", "ChainedScheduler"])
def test_a_group_that_came_after_the_scheduler_is_late(kind: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    schedulers = torch.optim.lr_scheduler
    one, two = (schedulers.StepLR(optimizer, 1) for _ in range(2))
    scheduler: Any = {
        "StepLR": lambda: one,
        "SequentialLR": lambda: schedulers.SequentialLR(optimizer, [one, two], [5]),
        "ChainedScheduler": lambda: schedulers.ChainedScheduler([one, two], optimizer),
    }[kind]()
    assert check_groups(model[0], optimizer, scheduler=scheduler).right
    optimizer.add_param_group({"params": list(model[1].parameters()), "name": "head"})
    found = check_groups(model, optimizer, scheduler=scheduler)
    assert found.of("late") == ["head"]
    assert not found.right
    assert check_groups(model, optimizer).right  # without it, nothing tells
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    assert check_groups(model, other, scheduler=scheduler).of("late") == ["(scheduler)"]


def test_its_repr_is_its_first_line():
    model = nn.Linear(2, 1).requires_grad_(False)
    found = check_groups(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert repr(found) == "2 parameters are in exactly one group" == str(found).splitlines()[0]
