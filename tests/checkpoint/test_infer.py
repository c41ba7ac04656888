"""Which module is which where names differ: the table of a real checkpoint, and each kind of evidence by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from renamed_resnet20 import Renamed, true_name

from frostline.checkpoint import open_checkpoint, plan_load
from frostline.checkpoint.infer import infer
from frostline.checkpoint.units import units_of
from frostline.errors import CheckpointError

NORMS_FIRST = ("norm_a", "norm_b", "conv_a", "conv_b")
SWAPPED = ("conv_a", "norm_b", "conv_b", "norm_a")


def shapes(*modules: str | tuple[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of modules: ``bn`` and ``norm`` are batch norms of 4, others what is given or 4x4 linear."""
    found: dict[str, tuple[int, ...]] = {}
    for module in modules:
        path, shape = (module, (4, 4)) if isinstance(module, str) else module
        if "bn" in path or "norm" in path:
            found |= {f"{path}.{leaf}": (4,) for leaf in ("weight", "bias", "running_mean", "running_var")}
        else:
            found[f"{path}.weight"] = shape
    return found


def matched(source: Any, target: Any, **options: Any) -> dict[str, tuple[str, bool]]:
    return {m.target: (m.source, m.tied) for m in infer(units_of(source), units_of(target), **options)}


# The table


@pytest.mark.real_data
@pytest.mark.parametrize("sorted_file", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"order": NORMS_FIRST}, {"head_first": True}],
    ids=["A renamed", "B norms registered before convs", "C head registered first"],
)
def test_all_97_of_a_renamed_net(options: Any, sorted_file: bool, resnet20_file: Path):
    values = open_checkpoint(resnet20_file).read_all()
    source: Any = dict(sorted(values.items())) if sorted_file else resnet20_file
    model = Renamed(**options)
    report = plan_load(model, source).apply()
    assert report.coverage == 1
    live = model.state_dict()
    right = [
        name for name in live if "num_batches" not in name and torch.equal(live[name], values[str(true_name(name))])
    ]
    assert len(right) == 97


@pytest.mark.real_data
@pytest.mark.parametrize("aux", ["first", "last"])
def test_d_the_head_is_excluded_and_said_and_an_unrelated_branch_steals_nothing(aux: str, resnet20_file: Path):
    model = Renamed(classes=7, aux=aux)
    plan = plan_load(model, resnet20_file)
    assert len(plan.loaded) == 95
    with pytest.raises(CheckpointError) as caught:
        plan.apply()
    message = str(caught.value)
    for said in ("- aux.0.weight", "- classifier.{weight,bias} (2)", "+ linear.{weight,bias} (2)"):
        assert said in message
    assert "fix: if that is meant: keep=['aux', 'classifier'], drop='linear'" in message
    values = open_checkpoint(resnet20_file).read_all()
    before = {name: value.clone() for name, value in model.state_dict().items() if name.startswith(("aux", "class"))}
    plan_load(model, resnet20_file, keep=["aux", "classifier"], drop="linear").apply()
    live = model.state_dict()
    assert all(torch.equal(live[name], value) for name, value in before.items())
    loaded = [name for name in live if name not in before and "num_batches" not in name]
    assert len(loaded) == 95
    assert all(torch.equal(live[name], values[str(true_name(name))]) for name in loaded)


@pytest.mark.real_data
def test_e_contradicting_evidence_is_ambiguous_and_never_silently_wrong(resnet20_file: Path):
    model = Renamed(order=SWAPPED)
    plan = plan_load(model, resnet20_file)
    assert len([row for row in plan.rows if row.verdict == "ambiguous"]) == 72
    assert all(row.source == true_name(str(row.target)) for row in plan.loaded)
    with pytest.raises(CheckpointError, match="numbers in names and the order of registration contradict each other"):
        plan.apply()
    plan_load(model, resnet20_file, accept_ambiguous=True).apply()
    values = open_checkpoint(resnet20_file).read_all()
    live = model.state_dict()
    assert all(torch.equal(live[name], values[str(true_name(name))]) for name in live if "num_batches" not in name)
    # The narrow way: say which is which.
    rules = ["layer{n}.{m}.bn1 -> stages.{n-1}.{m}.norm_a", "layer{n}.{m}.bn2 -> stages.{n-1}.{m}.norm_b"]
    assert plan_load(Renamed(order=SWAPPED), resnet20_file, rename=rules).complete


@pytest.mark.real_data
def test_the_order_of_registration_alone_gets_e_wrong(resnet20_file: Path):
    """The twin: what timm's ``remap`` does, without a word."""
    values = open_checkpoint(resnet20_file).read_all()
    model = Renamed(order=SWAPPED)
    names = [name for name in model.state_dict() if "num_batches" not in name]
    assert [values[name].shape for name in values] == [model.state_dict()[name].shape for name in names]
    wrong = [target for target, source in zip(names, values, strict=True) if source != true_name(target)]
    assert len(wrong) == 72


# Evidence, one at a time


def test_numbers_count_from_anything_and_with_any_gap():
    source = shapes("features.0", "features.3", "features.6")
    assert matched(source, shapes("conv1", "conv2", "conv3")) == {
        "conv1": ("features.0", False),
        "conv2": ("features.3", False),
        "conv3": ("features.6", False),
    }
    assert matched(source, shapes("net.a", "net.b", "net.c"))["net.b"] == ("features.3", False)


def test_ten_comes_after_nine():
    source = shapes(*(f"layer{n}" for n in range(12)))
    target = shapes(*(f"blocks.{n}" for n in range(12)))
    assert all(s == t.replace("blocks.", "layer") and not tied for t, (s, tied) in matched(source, target).items())
    by_name = dict(sorted(source.items()))
    assert matched(by_name, target, ordered=False)["blocks.10"] == ("layer10", False)


def test_words_tell_modules_of_one_place_apart():
    source = shapes("attn.query", "attn.key", "attn.value")
    target = shapes("attention.v_proj", "attention.k_proj", "attention.q_proj")
    assert matched(source, target) == {
        "attention.q_proj": ("attn.query", False),
        "attention.k_proj": ("attn.key", False),
        "attention.v_proj": ("attn.value", False),
    }


def test_the_shortcut_is_told_from_the_third_convolution():
    """torchvision's bottleneck against transformers', which registers the shortcut first."""
    source = shapes("layer1.0.conv1", "layer1.0.conv2", "layer1.0.conv3", "layer1.0.downsample.0")
    target = shapes("s.0.layers.0.shortcut.convolution", *(f"s.0.layers.0.layer.{n}.convolution" for n in range(3)))
    found = matched(source, target)
    assert found["s.0.layers.0.shortcut.convolution"] == ("layer1.0.downsample.0", False)
    assert found["s.0.layers.0.layer.2.convolution"] == ("layer1.0.conv3", False)


def test_the_order_of_registration_alone_is_not_evidence():
    assert matched(shapes("left", "right"), shapes("spam", "ham")) == {"spam": ("left", True), "ham": ("right", True)}


def test_two_branches_that_could_be_exchanged_are_tied():
    source = shapes("net_x.fc1", "net_x.fc2", "net_y.fc1", "net_y.fc2")
    target = shapes("ground.0", "ground.1", "aerial.0", "aerial.1")
    assert all(tied for _, tied in matched(source, target).values())


def test_words_that_are_replaced_throughout_are_followed():
    source = shapes(*(f"spam.{n}.{part}" for n in range(3) for part in ("fc1", "bn1", "fc2", "bn2")))
    target = shapes(*(f"eggs.{n}.{part}" for n in range(3) for part in ("fc_a", "norm_a", "fc_b", "norm_b")))
    found = matched(source, target)
    assert len(found) == 12
    assert not any(tied for _, tied in found.values())
    assert found["eggs.2.norm_b"] == ("spam.2.bn2", False)


def test_one_more_of_a_kind_makes_all_of_them_uncertain():
    """Three of four: the first three, or the last?"""
    found = matched(shapes("conv1", "conv2", "conv3"), shapes("c.0", "c.1", "c.2", "c.3"))
    assert found == {} or all(tied for _, tied in found.values())


def test_two_modules_of_one_shape_with_nothing_in_common_are_not_taken_for_each_other():
    body = [("body.0", (9, 4)), ("body.1", (4, 9))]
    found = matched(
        shapes("projector", *body), shapes(*((f"net.{n}", shape) for n, (_, shape) in enumerate(body)), "gate")
    )
    assert found["gate"] == ("projector", True)
    assert found["net.0"] == ("body.0", False)


def test_a_batch_norm_goes_whole_or_not_at_all():
    source = shapes("bn1") | {"ln.weight": (4,), "ln.bias": (4,)}
    target = {"first.weight": (4,), "first.bias": (4,)} | shapes("second_norm")
    found = matched(source, target)
    assert found["second_norm"][0] == "bn1"
    assert found["first"][0] == "ln"


def test_counters_may_be_missing_on_either_side():
    with_counter = shapes("bn1") | {"bn1.num_batches_tracked": ()}
    assert matched(shapes("bn1"), {k.replace("bn1", "norm"): v for k, v in with_counter.items()}) == {
        "norm": ("bn1", False)
    }


def test_each_module_is_used_once():
    source, target = shapes(*(f"a.{n}" for n in range(9))), shapes(*(f"b.{n}" for n in range(9)))
    found = matched(source, target)
    assert len({s for s, _ in found.values()}) == len(found) == 9
