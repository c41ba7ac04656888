"""Schedules as values: what they refuse, and which part of a model comes when."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from frostline.compat import import_torchvision
from frostline.errors import ModelError, NothingSelected
from frostline.optim import Epoch, Plateau, Stage, Step, Unfreeze, Unfreezing, gradual, param_groups, probe_then_tune
from frostline.state.selection import select


@pytest.fixture(scope="module")
def resnet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_torchvision("models").resnet18(num_classes=3)


@pytest.fixture(scope="module")
def vit():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision("models")
        timm = pytest.importorskip("timm")
        return timm.create_model("vit_tiny_patch16_224", num_classes=3)


def parts_of(schedule):
    return [list(stage.parts) for stage in schedule.stages]


def coming(model, schedule):
    """Each parameter and buffer with the numbers of the stages that bring it, by the rule of prefixes alone."""
    found = {}
    for name in [n for n, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]]:
        found[name] = [
            number
            for number, parts in enumerate(parts_of(schedule))
            if any(name == part or name.startswith(f"{part}.") for part in parts)
        ]
    return found


class TestValues:
    @pytest.mark.parametrize("number", [0, -1, -(10**9), math.nan, -math.inf])
    @pytest.mark.parametrize("kind", [Epoch, Step, Plateau])
    def test_a_time_has_a_positive_number(self, kind, number):
        with pytest.raises(ModelError, match=rf"{kind.__name__}: {number} is too small\n  fix: 1 or more"):
            kind(number)

    @pytest.mark.parametrize("mode", ["maximum", "", None])
    def test_a_plateau_has_one_of_two_modes(self, mode):
        with pytest.raises(ModelError, match="expected 'max' or 'min'"):
            Plateau(1, mode=mode)

    @pytest.mark.parametrize("min_delta", [-1e-9, math.nan, math.inf])
    def test_a_plateau_asks_for_no_negative_improvement(self, min_delta):
        with pytest.raises(ModelError, match=r"min_delta=.*expected zero or more"):
            Plateau(1, min_delta=min_delta)

    @pytest.mark.parametrize("warmup", [-1, math.nan])
    def test_a_warm_up_is_no_negative_number(self, warmup):
        with pytest.raises(ModelError, match="expected zero or more steps"):
            Stage(("a",), Epoch(1), warmup=warmup)

    def test_a_stage_has_parts(self):
        with pytest.raises(ModelError, match="no part was named"):
            Stage((), Epoch(1))

    def test_a_path_by_itself_is_no_tuple_of_letters(self):
        # ("layer4") is a string, whose letters would be taken for selectors one by one.
        with pytest.raises(ModelError, match=re.escape("fix: ('layer4',)")):
            Stage("layer4", Epoch(1))

    @pytest.mark.parametrize("kind", [Epoch, Step])
    def test_stages_are_in_order(self, kind):
        with pytest.raises(ModelError, match=re.escape("not in order: [2, 1]")):
            Unfreeze((Stage(("a",), kind(2)), Stage(("b",), kind(1))))

    def test_equal_times_and_times_of_other_kinds_are_in_order(self):
        Unfreeze((Stage(("a",), Epoch(2)), Stage(("b",), Epoch(2)), Stage(("c",), Step(1)), Stage(("d",), Plateau(1))))

    def test_it_prints_what_comes_when(self):
        schedule = Unfreeze(
            (
                Stage(("b", "c*"), Step(5)),
                Stage((nn.BatchNorm2d,), Epoch(1), warmup=3),
                Stage(("a",), Plateau(2, mode="min")),
            )
        )
        assert str(schedule).splitlines() == [
            "b, c*: after step 5",
            "<class 'torch.nn.modules.batchnorm.BatchNorm2d'>: after epoch 1, warmed up over 3 steps",
            "a: after 2 epochs without improvement",
        ]
        assert str(Unfreeze(())) == "nothing is held"

    def test_values_compare_and_hash(self):
        one, other = (Unfreeze((Stage(("a",), Epoch(1), warmup=2),)) for _ in range(2))
        assert one == other
        assert hash(one) == hash(other)
        assert one != Unfreeze((Stage(("a",), Epoch(1), warmup=3),))


class TestGradual:
    def test_resnet18_from_the_head_down(self, resnet):
        schedule = gradual(resnet, every=Epoch(1))
        assert parts_of(schedule) == [
            ["layer4.1"],
            ["layer4.0"],
            ["layer3.1"],
            ["layer3.0"],
            ["layer2.1"],
            ["layer2.0"],
            ["layer1.1"],
            ["layer1.0"],
            ["conv1", "bn1"],
        ]
        assert [stage.at for stage in schedule.stages] == [Epoch(n) for n in range(1, 10)]

    def test_each_tensor_of_a_resnet_comes_once_and_the_head_never(self, resnet):
        for name, stages in coming(resnet, gradual(resnet, every=Epoch(1), layers=2)).items():
            assert len(stages) == (0 if name.startswith("fc.") else 1), name

    def test_several_layers_at_a_time(self, resnet):
        schedule = gradual(resnet, every=Step(100), layers=2, warmup=7)
        assert parts_of(schedule) == [["layer4"], ["layer3"], ["layer2"], ["layer1"], ["conv1", "bn1"]]
        assert [stage.at for stage in schedule.stages] == [Step(100 * n) for n in range(1, 6)]
        assert {stage.warmup for stage in schedule.stages} == {7}
        assert len(gradual(resnet, every=Epoch(1), layers=100).stages) == 1

    def test_a_vit_with_its_root_parameters_in_the_last_stage(self, vit):
        schedule = gradual(vit, every=Epoch(1))
        assert parts_of(schedule) == [
            ["blocks.11", "norm"],
            *[[f"blocks.{n}"] for n in range(10, -1, -1)],
            ["cls_token", "pos_embed", "patch_embed"],
        ]
        for name, stages in coming(vit, schedule).items():
            assert len(stages) == (0 if name.startswith("head.") else 1), name

    def test_children_by_themselves_forget_the_root_parameters(self, vit):
        # The usual way: the children of the model, from the last to the first.
        naive = Unfreeze(
            tuple(
                Stage((name,), Epoch(n + 1))
                for n, (name, child) in enumerate(reversed(list(vit.named_children())))
                if name != "head" and any(True for _ in child.parameters())
            )
        )
        assert [name for name, stages in coming(vit, naive).items() if not stages and not name.startswith("head.")] == [
            "cls_token",
            "pos_embed",
        ]

    def test_first_sets_the_first_and_the_others_follow(self):
        model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
        times = [stage.at for stage in gradual(model, every=Epoch(2), first=Epoch(5), head="3").stages]
        assert times == [Epoch(5), Epoch(7), Epoch(9)]
        times = [stage.at for stage in gradual(model, every=Step(10), first=Step(1), head="3").stages]
        assert times == [Step(1), Step(11), Step(21)]

    def test_first_may_be_of_another_kind(self):
        model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
        plateau = Plateau(2, mode="min", min_delta=0.1)
        times = [stage.at for stage in gradual(model, every=plateau, first=Epoch(3), head="3").stages]
        assert times == [Epoch(3), plateau, plateau]
        times = [stage.at for stage in gradual(model, every=Epoch(3), first=plateau, head="3").stages]
        assert times == [plateau, Epoch(6), Epoch(9)]

    @pytest.mark.parametrize(
        "by",
        [
            ["0", "1", "2"],
            {"0": 0, "1": 1, "2": 2},
            lambda path: int(path[0]),
            "blocks",
        ],
        ids=["list", "mapping", "function", "word"],
    )
    def test_depth_told_in_each_way(self, by):
        model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
        assert parts_of(gradual(model, every=Epoch(1), head="3", by=by)) == [["2"], ["1"], ["0"]]

    def test_depth_told_by_a_run(self):
        class Backwards(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc, self.c, self.b, self.a = (nn.Linear(2, 2) for _ in range(4))

            def forward(self, x):
                return self.fc(self.c(self.b(self.a(x))))

        model = Backwards()
        by_run = gradual(model, every=Epoch(1), by="run", example=torch.ones(1, 2))
        assert parts_of(by_run) == [["c"], ["b"], ["a"]]
        assert parts_of(gradual(model, every=Epoch(1), by="blocks")) == [["a"], ["b"], ["c"]]

    def test_the_head_may_be_several_parts(self):
        model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
        assert parts_of(gradual(model, every=Epoch(1), head=["2", "3"])) == [["1"], ["0"]]

    def test_a_model_that_is_all_head_holds_nothing(self):
        assert gradual(nn.Sequential(nn.Linear(1, 1)), every=Epoch(1), head="0") == Unfreeze(())

    def test_no_head_no_schedule(self):
        model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        with pytest.raises(ModelError, match="does not say which part is its head\n  fix: head="):
            gradual(model, every=Epoch(1))
        with pytest.raises(ModelError, match="does not say which part is its head\n  fix: head="):
            probe_then_tune(model, at=Epoch(1))
        with pytest.raises(NothingSelected, match="nearest"):
            gradual(model, every=Epoch(1), head="head")

    @pytest.mark.parametrize("layers", [0, -2])
    def test_layers_is_positive(self, layers):
        with pytest.raises(ModelError, match=rf"layers=.*{layers} is too small"):
            gradual(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), every=Epoch(1), head="1", layers=layers)

    def test_the_model_is_only_read(self, resnet):
        before = {name: (p.requires_grad, p._version, p.data_ptr()) for name, p in resnet.named_parameters()}
        modes = {name: module.training for name, module in resnet.named_modules()}
        gradual(resnet, every=Epoch(1))
        probe_then_tune(resnet, at=Epoch(1))
        assert before == {name: (p.requires_grad, p._version, p.data_ptr()) for name, p in resnet.named_parameters()}
        assert modes == {name: module.training for name, module in resnet.named_modules()}


class TestWhatNoParameterBrings:
    def test_a_norm_without_parameters_comes_with_what_is_before_it(self):
        model = nn.Sequential(
            nn.BatchNorm1d(2, affine=False),
            nn.Linear(2, 2),
            nn.BatchNorm1d(2, affine=False),
            nn.ReLU(),
            nn.Linear(2, 2),
            nn.Sequential(nn.BatchNorm1d(2, affine=False)),
            nn.Linear(2, 2),
            nn.BatchNorm1d(2, affine=False),
        )
        assert parts_of(gradual(model, every=Epoch(1), head="6")) == [["4", "5"], ["0", "1", "2"]]
        assert parts_of(probe_then_tune(model, at=Epoch(1), head="6")) == [["0", "1", "2", "4", "5"]]

    def test_a_tensor_shared_with_the_head_trains_with_it(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.a, self.b = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 4)
                self.head = nn.Linear(4, 5, bias=False)
                self.head.weight = self.embed.weight

        model = Tied()
        assert parts_of(gradual(model, every=Epoch(1))) == [["b"], ["a"]]
        assert parts_of(probe_then_tune(model, at=Epoch(1))) == [["a", "b"]]

    def test_layers_that_share_a_tensor_come_together_with_the_last(self):
        model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(4)))
        model[2].weight = model[0].weight
        assert parts_of(gradual(model, every=Epoch(1), head="3")) == [["1"], ["0", "2"]]


class TestProbeThenTune:
    def test_one_stage_with_the_whole_trunk(self, resnet, vit):
        schedule = probe_then_tune(resnet, at=Plateau(2), warmup=5)
        assert schedule == Unfreeze(
            (Stage(("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), Plateau(2), warmup=5),)
        )
        assert parts_of(probe_then_tune(vit, at=Epoch(1))) == [
            ["cls_token", "pos_embed", "patch_embed", "blocks", "norm"]
        ]

    def test_first_the_head_alone_then_all_of_it(self):
        torch.manual_seed(0)
        model = nn.ModuleDict({"trunk": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "fc": nn.Linear(2, 1)})
        optimizer = torch.optim.AdamW(param_groups(model, 1e-2, layer_decay=1.0))
        unfreezing = Unfreezing(probe_then_tune(model, at=Epoch(1)), model, optimizer)
        moved = []
        for _ in range(2):
            before = {name: value.clone() for name, value in model.state_dict().items()}
            model.train()
            optimizer.zero_grad()
            model["fc"](model["trunk"](torch.randn(8, 2))).square().mean().backward()
            optimizer.step()
            unfreezing.epoch_end()
            moved.append({name for name, value in model.state_dict().items() if not torch.equal(value, before[name])})
        assert moved == [{"fc.weight", "fc.bias"}, set(model.state_dict())]


LEAVES = st.sampled_from(["linear", "norm", "bare norm", "relu", "root parameter"])
TREES = st.recursive(LEAVES, lambda children: st.lists(children, min_size=1, max_size=3), max_leaves=10)


class Grown(nn.Module):
    """A module with whatever below it, and perhaps parameters of its own."""

    def __init__(self, tree):
        super().__init__()
        for number, branch in enumerate(tree):
            if isinstance(branch, list):
                made = nn.Sequential(*(Grown([b]) for b in branch)) if number % 2 else Grown(branch)
                self.add_module(f"part{number}", made)
            elif branch == "root parameter":
                self.register_parameter(f"token{number}", nn.Parameter(torch.zeros(2)))
            else:
                kinds = {
                    "linear": lambda: nn.Linear(2, 2),
                    "norm": lambda: nn.BatchNorm1d(2),
                    "bare norm": lambda: nn.BatchNorm1d(2, affine=False),
                    "relu": nn.ReLU,
                }
                self.add_module(f"leaf{number}", kinds[branch]())


@settings(max_examples=80, deadline=None)
@given(
    tree=st.lists(TREES, min_size=1, max_size=5),
    layers=st.integers(1, 3),
    by=st.sampled_from(["auto", "blocks"]),
    tie=st.integers(0, 3),
)
def test_every_tensor_of_any_model_comes_once(tree, layers, by, tie):
    model = nn.Module()
    model.trunk = Grown(tree)
    model.head = nn.Linear(2, 2)
    weights = [m for m in model.trunk.modules() if isinstance(m, nn.Linear)]
    if len(weights) > tie > 0:
        weights[tie].weight = weights[0].weight
    schedule = gradual(model, every=Epoch(1), layers=layers, by=by)
    trunk = dict(model.trunk.named_parameters(prefix="trunk", remove_duplicate=False))
    stages = coming(model, schedule)
    assert all(len(stages[name]) == 1 for name in trunk)
    assert not any(stages[name] for name in stages if name.startswith("head."))
    # A tensor with two names comes at one time.
    at = {}
    for name, parameter in trunk.items():
        assert at.setdefault(id(parameter), stages[name]) == stages[name]
    # Buffers: those of each module come with its parameters; those of a module without any come too, in a model that
    # has a trunk to speak of.
    for name, _ in model.named_buffers():
        assert len(stages[name]) == (1 if trunk else 0), name
    # The stages are what selecting finds, and nothing is left for a second one.
    counted = Counter()
    for stage in schedule.stages:
        counted.update(list(select(model, *stage.parts).parameters))
    assert counted == Counter(dict.fromkeys(trunk, 1))
    optimizer = torch.optim.SGD(param_groups(model, 0.1, layer_decay=1.0, by=by))
    unfreezing = Unfreezing(schedule, model, optimizer)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    modes = {n: m.training for n, m in model.named_modules() if m._buffers}
    assert not any(modes.values()) or not trunk
    for stage in schedule.stages:
        assert unfreezing.epoch_end() == list(stage.parts)
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())
