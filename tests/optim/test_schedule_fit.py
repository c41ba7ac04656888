"""What a schedule refuses: models, optimizers and other schedules that it does not fit. Nothing is changed then."""

from __future__ import annotations

import copy
import os
import re
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD

import frostline as fl
from frostline.compat import import_torchvision
from frostline.errors import FreezeError, ModelError, NothingSelected, SelectionError
from frostline.optim import Epoch, Stage, Step, Unfreeze, Unfreezing, param_groups

ONE = Unfreeze((Stage(("stem",), Step(1)),))


def net():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.stem = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    model.body = nn.Linear(4, 4)
    model.fc = nn.Linear(4, 2)
    return model


def step(model, optimizer):
    model.train()
    optimizer.zero_grad()
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()


def refused(error, match, schedule, model, optimizer):
    """Refused with this message, and neither model nor optimizer know of it."""
    before = fl.snapshot(model)
    with pytest.raises(error, match=match):
        Unfreezing(schedule, model, optimizer)
    assert not before.diff(model)
    if isinstance(optimizer, torch.optim.Optimizer):
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks


class TestParts:
    def test_what_does_not_exist(self):
        model = net()
        schedule = Unfreeze((Stage(("body",), Epoch(1)), Stage(("stemm",), Epoch(2))))
        refused(NothingSelected, r"(?s)'stemm'.*nearest.*stem", schedule, model, SGD(model.parameters()))

    @pytest.mark.parametrize(
        ("first", "second", "path"),
        [
            ("stem", "stem.0", "stem.0.weight"),
            ("stem.0.bias", "stem*", "stem.0.bias"),
            ("stem.1", "*.running_mean", "stem.1.running_mean"),
            ("body", "body", "body.weight"),
            ("stem.2", "stem.2", "stem.2"),  # nothing in it but a mode
        ],
    )
    def test_stages_that_overlap(self, first, second, path):
        model = net()
        schedule = Unfreeze((Stage((first,), Epoch(1)), Stage((second,), Epoch(2))))
        said = re.escape(f"{path} is in two stages, {first} and {second}\n  fix: stages that do not overlap")
        refused(SelectionError, said, schedule, model, SGD(model.parameters()))

    def test_one_tensor_under_two_names(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        model[1].weight = model[0].weight
        schedule = Unfreeze((Stage(("1",), Epoch(1)), Stage(("0",), Epoch(2))))
        refused(SelectionError, r"0\.weight is in two stages, 1 and 0", schedule, model, SGD(model.parameters()))
        Unfreezing(Unfreeze((Stage(("0", "1"), Epoch(1)),)), model, SGD(model.parameters()))

    @pytest.mark.filterwarnings("ignore::frostline.errors.TiedAcrossBoundary")
    def test_an_activation_that_several_layers_share_is_no_overlap(self):
        act = nn.ReLU()
        model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), act) for _ in range(3)))
        stages = Unfreeze((Stage(("1",), Epoch(1)), Stage(("0",), Epoch(2))))
        unfreezing = Unfreezing(stages, model, SGD(model.parameters()))
        assert [unfreezing.epoch_end(), unfreezing.epoch_end()] == [["1"], ["0"]]
        assert all(p.requires_grad for p in model.parameters())
        assert all(m.training for m in model.modules())


class TestOptimizers:
    def test_made_after_a_filter(self):
        model = net()
        model.stem.requires_grad_(False)
        optimizer = SGD(filter(lambda p: p.requires_grad, model.parameters()))
        refused(ModelError, r"does not hold what will be unfrozen: stem\.0\.weight, ", ONE, model, optimizer)
        refused(ModelError, "frozen parts included", ONE, model, SGD(param_groups(model, 0.1, frozen="out")))

    def test_of_a_copy(self):
        model = net()
        optimizer = SGD(copy.deepcopy(model).parameters())
        refused(ModelError, r"does not hold what will be unfrozen: stem\.0\.weight, ", ONE, model, optimizer)

    @pytest.mark.parametrize("way", ["assign", "to_empty"])
    def test_of_parameters_that_were_re_created(self, way):
        model = net()
        optimizer = SGD(model.parameters())
        if way == "assign":
            model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
        else:
            model = net().to("meta").to_empty(device="cpu")
        refused(ModelError, "does not hold what will be unfrozen", ONE, model, optimizer)

    def test_a_warm_up_in_a_group_of_others(self):
        model = net()
        schedule = Unfreeze((Stage(("stem",), Step(1), warmup=5),))
        said = r"(?s)stem is to be warmed up, and shares groups with other parts: group 0.*layer_decay=1\.0"
        refused(ModelError, said, schedule, model, SGD(model.parameters()))
        refused(ModelError, "shares groups with other parts: trunk", schedule, model, SGD(param_groups(model, 0.1)))
        Unfreezing(schedule, model, SGD(param_groups(model, 0.1, layer_decay=1.0)))

    def test_two_stages_that_share_a_group_and_warm_up(self):
        model = net()
        optimizer = SGD([{"params": [*model.stem.parameters(), *model.body.parameters()]}], lr=0.1)
        schedule = Unfreeze((Stage(("body",), Step(1)), Stage(("stem",), Step(2), warmup=5)))
        refused(ModelError, "shares groups with other parts: group 0", schedule, model, optimizer)

    @pytest.mark.parametrize(("several", "count"), [(None, 0), ([], 0), ("two", 2)])
    def test_not_exactly_one(self, several, count):
        model = net()
        optimizer = [SGD(model.parameters()), SGD(model.parameters())] if several == "two" else several
        refused(ModelError, f"expected one optimizer, got {count}", ONE, model, optimizer)

    def test_something_else(self):
        model = net()
        optimizer = SGD(model.parameters())
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        assert scheduler.optimizer is optimizer
        refused(FreezeError, "expected a torch.optim.Optimizer, got str", ONE, model, "SGD")

    def test_lbfgs(self):
        model = net()
        refused(
            ModelError, r"(?s)LBFGS moves all.*a new LBFGS after", ONE, model, torch.optim.LBFGS(model.parameters())
        )

    def test_one_without_hooks(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_torchvision("models")
            pytest.importorskip("timm")
            from timm.optim import create_optimizer_v2
        model = net()
        optimizer = create_optimizer_v2(model.parameters(), opt="lookahead_adamw", lr=0.1)
        for _ in range(2):
            refused(ModelError, r"(?s)Lookahead does not call.*pass the optimizer inside", ONE, model, optimizer)
            optimizer.zero_grad()  # by which torch makes good that its step calls hooks, though not its state_dict
        # What it says helps.
        unfreezing = Unfreezing(ONE, model, optimizer._base_optimizer)
        before = fl.snapshot(model, "stem")
        step(model, optimizer)
        assert {row.kind for row in before.diff(model).moved} <= {"requires_grad", "mode"}
        step(model, optimizer)
        assert "stem.0.weight" in before.diff(model).paths
        assert unfreezing.state_dict()["steps"] == 2


class TestSecondSchedules:
    def test_for_the_same_part(self):
        model = net()
        optimizer = SGD(model.parameters(), lr=0.1)
        first = Unfreezing(ONE, model, optimizer)
        with pytest.raises(ModelError, match=r"there is a schedule for stem\.\S+, .* already\n  fix: detach\(\)"):
            Unfreezing(Unfreeze((Stage(("*", "!fc*"), Epoch(1)),)), model, optimizer)
        assert len(optimizer._optimizer_step_post_hooks) == 1
        first.detach()
        first.hold.thaw()
        Unfreezing(ONE, model, optimizer)

    def test_both_would_scale(self):
        # The failing twin: two that scale the same group put back what the other one laid in.
        optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        kept = []
        for _ in range(2):

            def before(optimizer, *_, rates=[]):  # noqa: B006
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.param_groups[0]["lr"] *= 0.5
                kept.append(rates)

            optimizer.register_step_pre_hook(before)
        for number in range(2):
            optimizer.register_step_post_hook(
                lambda o, *_, number=number: o.param_groups[0].__setitem__("lr", kept[number][0])
            )
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] != 1.0

    def test_for_other_parts_beside_it(self):
        model = net()
        optimizer = SGD(param_groups(model, 0.1, layer_decay=1.0))
        one = Unfreezing(Unfreeze((Stage(("stem",), Step(1), warmup=2),)), model, optimizer)
        other = Unfreezing(Unfreeze((Stage(("body",), Step(2), warmup=4),)), model, optimizer)
        seen = []
        optimizer.register_step_pre_hook(lambda o, *_: seen.append({g["name"]: g["lr"] for g in o.param_groups}))
        for _ in range(4):
            step(model, optimizer)
        assert (one.held, other.held) == ([], [])
        assert [each["layer 0"] / 0.1 for each in seen] == [1, 0.5, 1, 1]
        assert [each["layer 1"] / 0.1 for each in seen] == [1, 1, 0.25, 0.5]
        assert [group["lr"] for group in optimizer.param_groups] == [0.1] * len(optimizer.param_groups)


class TestWrappedModels:
    @pytest.fixture
    def _alone(self, tmp_path):
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()

    @pytest.mark.skipif(not torch.distributed.is_available() or os.name != "posix", reason="needs gloo")
    @pytest.mark.usefixtures("_alone")
    @pytest.mark.parametrize("compiled", [False, True])
    def test_distributed_data_parallel(self, compiled):
        model = net()
        optimizer = SGD(model.parameters())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = nn.parallel.DistributedDataParallel(model)
        wrapped = torch.compile(wrapped, backend="eager") if compiled else wrapped
        refused(ModelError, "(?s)DistributedDataParallel.*wrap it anew after each stage", ONE, wrapped, optimizer)

    @pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
    def test_others_are_looked_through(self, wrap):
        model = net()
        optimizer = SGD(model.parameters(), lr=0.1)
        unfreezing = Unfreezing(ONE, wrap(model), optimizer)
        assert not model.stem[0].weight.requires_grad
        step(model, optimizer)
        assert model.stem[0].weight.requires_grad
        assert unfreezing.held == []
