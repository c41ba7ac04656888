"""How deep parameters lie: what tells it, what the head is, and that asking changes nothing."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline.compat import import_torchvision
from frostline.errors import NothingSelected, SelectionError
from frostline.optim import depth_of, find_head


class Backwards(nn.Module):
    """The head is registered first, and the blocks in reverse."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.third = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.second = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.first = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.last(self.third(self.second(self.first(x) * scale)))


@pytest.fixture
def backwards() -> Backwards:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return Backwards()


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def row_of(depths, *names: str) -> list[int]:
    return [depths.of[name] for name in names]


WEIGHTS = ("first.weight", "second.0.weight", "third.0.weight", "third.1.weight", "last.weight")


def test_a_run_tells_the_order_that_registration_hides(backwards, batch, falls):
    by_run = depth_of(backwards, by="run", head="last", example=batch)
    assert row_of(by_run, *WEIGHTS) == [0, 1, 2, 2, 3]
    assert by_run.told_by == "the order of a run"
    assert falls(backwards, by_run.of, batch) == []
    by_blocks = depth_of(backwards, by="blocks", head="last")
    assert row_of(by_blocks, *WEIGHTS) == [2, 1, 0, 0, 3]
    assert falls(backwards, by_blocks.of, batch) != [], "the order of registration is wrong here"


def test_auto_runs_where_there_is_an_example_and_blocks_does_not(backwards, batch):
    assert (
        depth_of(backwards, head="last", example=batch).of
        == depth_of(backwards, by="run", head="last", example=batch).of
    )
    assert depth_of(backwards, by="blocks", head="last", example=batch) == depth_of(backwards, by="blocks", head="last")


@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "mapping"])
def test_examples_of_every_kind(backwards, batch, kind):
    example = {"tensor": batch, "tuple": (batch, 2.0), "list": [batch], "mapping": {"x": batch, "scale": 2.0}}[kind]
    assert row_of(depth_of(backwards, by="run", head="last", example=example), *WEIGHTS) == [0, 1, 2, 2, 3]


def hooks_of(model: nn.Module) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]


@pytest.mark.parametrize("training", [True, False])
def test_a_run_leaves_the_model_as_it_was(backwards, batch, training):
    backwards.train(training)
    backwards.third.eval()
    modes = [module.training for module in backwards.modules()]
    before, hooks = fl.snapshot(backwards), hooks_of(backwards)
    drawn = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    gradients = torch.is_grad_enabled()
    depth_of(backwards, by="run", head="last", example=batch)
    assert not before.diff(backwards)
    assert [module.training for module in backwards.modules()] == modes
    assert hooks_of(backwards) == hooks
    assert torch.equal(drawn[0], torch.random.get_rng_state())
    assert drawn[1] == random.getstate()
    assert np.array_equal(drawn[2], np.random.get_state()[1])
    assert torch.is_grad_enabled() == gradients
    assert all(parameter.grad is None for parameter in backwards.parameters())


def test_the_naive_run_moves_statistics(backwards, batch):
    before = fl.snapshot(backwards)
    backwards(batch)
    assert before.diff(backwards), "the check above sees a run in train mode"


def test_a_run_that_raises_leaves_the_model_as_it_was(backwards):
    before, hooks = fl.snapshot(backwards), hooks_of(backwards)
    with pytest.raises(RuntimeError, match="shapes"):
        depth_of(backwards, by="run", head="last", example=torch.zeros(2, 7))
    assert not before.diff(backwards)
    assert hooks_of(backwards) == hooks
    assert backwards.training


def test_layers_as_selectors(backwards):
    found = depth_of(backwards, by=["first", backwards.second, nn.BatchNorm1d, "third.0"], head="last")
    assert row_of(found, *WEIGHTS) == [0, 1, 3, 2, 4]
    assert found.told_by == "the layers given"


def test_a_mapping_and_numbers_with_gaps(backwards):
    found = depth_of(backwards, by={"first": -5, "second": 10, "third": 100}, head="last")
    assert row_of(found, *WEIGHTS) == [0, 1, 2, 2, 3], "a rate decays once for each layer that there is"
    assert depth_of(backwards, by={"first": 1, "second": 1, "third": 0}, head="last").of["first.bias"] == 1
    assert found.told_by == "the mapping given"


def test_a_function(backwards):
    found = depth_of(backwards, by=lambda path: {"f": 0, "s": 7, "t": 8, "l": 0}[path[0]], head="last")
    assert row_of(found, *WEIGHTS) == [0, 1, 2, 2, 3], "the head is the head, whatever the function says"
    assert found.told_by == "the function given"


def test_layers_that_overlap_are_named(backwards):
    with pytest.raises(SelectionError) as caught:
        depth_of(backwards, by=["first", "*.0", "third"], head="last")
    assert str(caught.value) == (
        "depth: third.0.bias, third.0.weight in two layers, 'layer 1' and 'layer 2'\n"
        "  fix: selectors that do not overlap"
    )
    with pytest.raises(SelectionError, match=r"in two layers, 'third' and '\*'"):
        depth_of(backwards, by={"third": 0, "*": 1}, head="last")


def test_parameters_in_no_layer_are_named(backwards):
    with pytest.raises(SelectionError) as caught:
        depth_of(backwards, by=["first", "second"], head="last")
    assert "depth by the layers given: parameters are in no layer: third.0.weight, third.0.bias" in str(caught.value)
    assert "fix: add the layer they belong to, or name them as head=" in str(caught.value)


@pytest.mark.parametrize("by", [["first", "nowhere"], {"nowhere": 0}])
def test_a_layer_that_matches_nothing(backwards, by):
    with pytest.raises(NothingSelected, match="'nowhere' matched nothing"):
        depth_of(backwards, by=by, head="last")


def test_a_head_that_matches_nothing(backwards):
    with pytest.raises(NothingSelected, match=r"'lost' matched nothing .*\n  nearest names: .*last"):
        depth_of(backwards, head="lost")


def test_words_that_do_not_fit(backwards):
    with pytest.raises(SelectionError, match=r"'depth': no such way\n  fix: one of auto, model, blocks, run"):
        depth_of(backwards, by="depth")
    with pytest.raises(SelectionError, match=r"on which inputs\?\n  fix: example=a batch"):
        depth_of(backwards, by="run")
    with pytest.raises(SelectionError, match="Backwards does not tell"):
        depth_of(backwards, by="model")


@pytest.mark.parametrize("head", ["last", ["last"], ("last.*",), nn.Module, None])
def test_the_head_by_any_selector(backwards, head):
    if head is nn.Module:
        head = backwards.last
    found = depth_of(backwards, head=head)
    expected = frozenset() if head is None else {"last.weight", "last.bias"}
    assert found.head == expected
    assert {path for path, depth in found.of.items() if depth == found.deepest} >= expected


def test_without_a_head_the_deepest_is_a_layer_of_the_trunk(backwards):
    found = depth_of(backwards)
    assert find_head(backwards) is None
    assert found.head == frozenset()
    assert set(found.of.values()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "name", ["head", "fc", "classifier", "last_linear", "heads", "score", "lm_head", "qa_outputs", "cls"]
)
def test_the_usual_names_of_heads(name):
    model = nn.ModuleDict({"trunk": nn.Linear(2, 2), name: nn.Linear(2, 2)})
    assert find_head(model) == name
    assert depth_of(model).head == {f"{name}.weight", f"{name}.bias"}
    assert find_head(nn.ModuleDict({"trunk": nn.Linear(2, 2), name: nn.Identity()})) is None
    assert find_head(nn.ModuleDict({f"{name}2": nn.Linear(2, 2)})) is None, "whole names only"


def told(cfg, **attribute) -> nn.Module:
    model = nn.ModuleDict(
        {name: nn.Linear(2, 2) for name in ("trunk", "fc")}
        | {"out": nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})}
    )
    model.pretrained_cfg = cfg
    return model


def test_the_model_says_what_its_head_is():
    class Cfg:
        classifier = "out.b"

    assert find_head(told({"classifier": "out.a"})) == "out.a", "wins over fc, a usual name"
    assert find_head(told(Cfg())) == "out.b"
    assert find_head(told({"classifier": "trunk.nowhere"})) is None, "it says so, and it was removed"
    assert find_head(told({})) == "fc"
    model = told({})
    model.default_cfg = {"classifier": "out.a"}
    assert find_head(model) == "out.a"


def test_all_the_classifiers_that_a_model_says_are_the_head():
    model = told({"classifier": ("out.a", "out.b")})
    found = depth_of(model)
    assert find_head(model) == "out.a"
    assert found.head == {"out.a.weight", "out.a.bias", "out.b.weight", "out.b.bias"}
    assert {found.of[path] for path in found.head} == {found.deepest}


@pytest.mark.slow
def test_a_net_of_timm_whose_classifier_was_taken_off():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        timm = pytest.importorskip("timm")
        with torch.device("meta"):
            model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    assert model.default_cfg["classifier"] == "head"
    assert find_head(model) is None
    found = depth_of(model)
    assert (found.head, found.deepest) == (frozenset(), 12)


def test_wrappers_are_looked_through(backwards):
    plain = depth_of(backwards, head="last")
    assert depth_of(nn.DataParallel(backwards), head="last") == plain
    assert depth_of(torch.compile(backwards, backend="eager"), head="last") == plain


def test_tied_parameters_have_a_depth_under_each_name():
    model = nn.ModuleDict({"embed": nn.Embedding(4, 2), "mid": nn.Linear(2, 2), "lm_head": nn.Linear(2, 4, bias=False)})
    model["lm_head"].weight = model["embed"].weight
    found = depth_of(model)
    assert row_of(found, "embed.weight", "mid.weight", "lm_head.weight") == [0, 1, 2]


@settings(max_examples=80, deadline=None)
@given(numbers=st.lists(st.integers(-50, 50), min_size=1, max_size=8), head=st.booleans())
def test_any_numbers_become_depths_without_gaps_in_their_order(numbers, head):
    model = nn.ModuleDict({f"m{index}": nn.Linear(1, 1) for index in range(len(numbers))})
    if head:
        model["fc"] = nn.Linear(1, 1)
    found = depth_of(model, by={f"m{index}": number for index, number in enumerate(numbers)})
    of = [found.of[f"m{index}.weight"] for index in range(len(numbers))]
    ranks = {number: rank for rank, number in enumerate(sorted(set(numbers)))}
    assert of == [ranks[number] for number in numbers]
    assert found.deepest == len(ranks) - (not head)
    assert set(found.of.values()) == set(range(found.deepest + 1))
    if head:
        assert found.of["fc.weight"] == found.deepest > max(of)
