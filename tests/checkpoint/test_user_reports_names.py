"""What users of other libraries reported, where names were at fault: prefixes, wrappers, containers, other words.

Each test rebuilds the situation, shows what the usual way does there, and then what a plan says and does. Reports that
are about values are in ``test_user_reports_values.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.checkpoint import LoadPlan, LoadReport, plan_load
from frostline.errors import CheckpointError


def conv_norm(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, 4, 3, bias=False), nn.BatchNorm2d(4))


class Net(nn.Module):
    """20 tensors: a stem, two blocks, a classifier."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = conv_norm(3)
        self.blocks = nn.ModuleList(conv_norm(4) for _ in range(2))
        self.fc = nn.Linear(4, classes)


def filled(model: nn.Module, seed: int) -> Any:
    """The same model with values that no other seed and no initialization gives; variances are positive."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5 if tensor.is_floating_point() else seed)
    return model


def trained(seed: int = 1) -> dict[str, Tensor]:
    return dict(filled(Net(), seed).state_dict())


def fresh() -> Net:
    return filled(Net(), 9)


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def holds(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    live = model.state_dict()
    return all(torch.equal(live[name], value) for name, value in state.items())


def strict_false(model: nn.Module, state: Mapping[str, Any]) -> Any:
    """The usual way, which says nothing unless its result is looked at."""
    return model.load_state_dict(dict(state), strict=False)


def unchanged_by_strict_false(state: Mapping[str, Any]) -> bool:
    """Whether the usual way silently loads nothing."""
    model = fresh()
    strict_false(model, state)
    return holds(model, fresh().state_dict())


def refusal(plan: LoadPlan) -> str:
    """The message of a refusal that left every bit of the model alone."""
    before = fl.snapshot(plan.model)
    with pytest.raises(CheckpointError) as caught:
        plan.apply()
    assert not before.diff(plan.model)
    return str(caught.value)


def fully(report: LoadReport) -> bool:
    return report.coverage == 1 and report.norms[0] == report.norms[1]


# Prefixes


def test_one_more_level_of_nesting_is_seen_through():
    """1, pytorch#9530: completely missing loading all the weights, and there is no sign."""
    state = trained()
    assert unchanged_by_strict_false(under("net.", state))
    model = fresh()
    plan = plan_load(model, under("net.", state))
    assert {(row.verdict, row.confidence) for row in plan.rows} == {("renamed", "prefix")}
    assert {row.why for row in plan.rows} == {"'net.' in front of names in the checkpoint"}
    assert "20 renamed by prefix" in plan.apply().summary
    assert holds(model, state)
    # And the other way round.
    outer = nn.ModuleDict({"net": fresh()})
    assert fully(plan_load(outer, state).apply())
    assert holds(outer, under("net.", state))


def test_a_lightning_file_loads_into_the_bare_model():
    """2, pytorch/examples#1029: ``model.`` in front of every name, and nonsense at the output."""
    state = trained()
    file: dict[str, Any] = {"state_dict": under("model.", state), "epoch": 3, "hyper_parameters": {"lr": 0.1}}
    assert unchanged_by_strict_false(file["state_dict"])
    model = fresh()
    assert "container 'state_dict'; 20 renamed by prefix" in plan_load(model, file).apply().summary
    assert holds(model, state)
    # Such files hold tensors of the loss too.
    file["state_dict"] |= {"loss.weight": torch.ones(5)}
    model = fresh()
    said = refusal(plan_load(model, file))
    assert "+ loss.weight (5,)" in said
    assert "fix: take='model', which leaves the rest out" in said
    assert fully(plan_load(model, file, take="model").apply())
    assert holds(model, state)


def test_a_part_of_a_segmentation_net_is_found_by_its_prefix():
    """27, mmdetection#8400, #4304, #1316: needs ``prefix='backbone.'``."""
    state = trained()
    file = under("backbone.", state) | {"decode_head.weight": torch.ones(7, 4, 1, 1)}
    assert unchanged_by_strict_false(file)
    model = fresh()
    plan = plan_load(model, file)
    assert {row.confidence for row in plan.loaded} == {"prefix"}
    assert "fix: take='backbone', which leaves the rest out" in refusal(plan)
    report = plan_load(model, file, take="backbone").apply()
    assert "took 'backbone', left 1 tensors beside it" in report.summary
    assert fully(report)
    assert holds(model, state)


def test_a_wrong_prefix_that_makes_all_weights_missing_is_an_error():
    """32, transformers#48722, #48862: all 502 weights "missing" from a wrong ``base_model_prefix``; it goes on."""
    state = trained()
    assert unchanged_by_strict_false(under("rt_detr.", state))
    model = fresh()
    plan = plan_load(model, state, rename={"": "rt_detr."})
    assert plan.coverage == 0
    said = refusal(plan)
    assert "0 % of the model's tensors would come from the checkpoint" in said
    assert "+ stem.0.weight (4, 3, 3, 3): renamed to rt_detr.stem.0.weight, which the model does not have" in said
    # Left alone, the prefix is found.
    assert fully(plan_load(model, under("rt_detr.", state)).apply())
    assert holds(model, state)
    # And a checkpoint of another kind of model has none.
    assert "0 % of the model's tensors" in refusal(plan_load(model, {"encoder.weight": torch.ones(9, 9)}))


def test_one_stage_for_two_places_is_not_guessed():
    """29, MaskFormer#72, Mask2Former#229, OneFormer#52, CrossRectify#6: res5 in the backbone *and* in the heads."""
    res5 = {"res5.weight": torch.rand(4, 4), "res5.bias": torch.rand(4)}

    def detector() -> nn.Module:
        parts = {name: nn.ModuleDict({"res5": nn.Linear(4, 4)}) for name in ("backbone", "roi_heads")}
        return filled(nn.ModuleDict(parts), 9)

    model = detector()
    plan = plan_load(model, res5)
    assert not plan.loaded
    said = refusal(plan)
    assert "'backbone.' and 'roi_heads.' in front of names in the model fit alike" in said
    assert "fix: rename= for what is ambiguous" in said
    plan_load(model, res5, rename="res5 -> backbone.res5", keep="roi_heads").apply()
    assert holds(model, under("backbone.", res5))
    assert not holds(model, under("roi_heads.", res5))
    # Both, if that is meant.
    model = detector()
    plan = plan_load(model, res5, rename={"res5": ["backbone.res5", "roi_heads.res5"]})
    assert "2 tensors of the checkpoint go to several places of the model" in plan.notes
    assert fully(plan.apply())
    assert holds(model, under("backbone.", res5) | under("roi_heads.", res5))


# Wrappers


def test_nested_wrappers_are_stripped_to_the_last():
    """8, train-llm-from-scratch#36: the stripper ran once on ``_orig_mod.module.``, and training began at random."""
    state = trained()
    file = under("_orig_mod.module.", state)
    once = {name.removeprefix("_orig_mod."): value for name, value in file.items()}
    assert unchanged_by_strict_false(once)
    model = fresh()
    assert "prefix '_orig_mod.module.' stripped" in plan_load(model, file).apply().summary
    assert holds(model, state)


@pytest.mark.parametrize("prefix", ["_orig_mod.module.", "module._orig_mod.", "module._orig_mod.module."])
def test_it_does_not_matter_which_wrapper_is_outside(prefix: str):
    """10, timm PR#2003: resume fails, and which of the two is it?"""
    state = trained()
    known = {name.removeprefix("module._orig_mod."): value for name, value in under(prefix, state).items()}
    assert unchanged_by_strict_false(known) is (prefix != "module._orig_mod.")
    model = fresh()
    plan = plan_load(model, under(prefix, state))
    assert {(row.verdict, row.confidence) for row in plan.rows} == {("same", "exact")}
    assert fully(plan.apply())
    assert holds(model, state)


def test_names_of_a_compiled_model_are_repaired_one_to_one():
    """9, pytorch#101107: ``_orig_mod.``; the repair script in the thread asserts that no two names become one."""
    state = trained()
    compiled: Any = torch.compile(filled(Net(), 1), backend="eager")
    wrapped = dict(compiled.state_dict())
    assert set(wrapped) == set(under("_orig_mod.", state))
    assert unchanged_by_strict_false(wrapped)
    model = fresh()
    assert fully(plan_load(model, wrapped).apply())
    assert holds(model, state)
    # Where stripping would make two names one, both stay as they are, and one of them is in the way.
    both = under("_orig_mod.", state) | trained(2)
    model = fresh()
    said = refusal(plan_load(model, both))
    assert "+ _orig_mod.stem.0.weight (4, 3, 3, 3)" in said
    assert "fix: if that is meant: drop='_orig_mod'" in said
    plan_load(model, both, drop="_orig_mod").apply()
    assert holds(model, trained(2))


def test_a_module_whose_name_ends_like_a_wrapper_keeps_it():
    """11, nanoGPT#325: ``replace`` on names at resume."""

    def build() -> nn.Module:
        return nn.ModuleDict({"my_module": nn.Linear(2, 3)})

    state = dict(filled(build(), 1).state_dict())
    file = under("module.", state)
    assert list(file) == ["module.my_module.weight", "module.my_module.bias"]
    naive = {name.replace("module.", ""): value for name, value in file.items()}
    assert list(naive) == ["my_weight", "my_bias"]
    model = filled(build(), 9)
    plan = plan_load(model, file)
    assert [row.source for row in plan.rows] == ["my_module.weight", "my_module.bias"]
    assert fully(plan.apply())
    assert holds(model, state)


def test_what_a_wrapped_model_is_saved_as_has_its_own_names(tmp_path: Path):
    """12, open_clip PR#639, eole#179, flood-forecasting PR#263: save unwrapped."""
    wrapped: Any = torch.compile(filled(Net(), 1), backend="eager")
    torch.save(wrapped.state_dict(), tmp_path / "naive.pt")
    assert unchanged_by_strict_false(torch.load(tmp_path / "naive.pt", weights_only=True))
    plan_load(wrapped, tmp_path / "naive.pt").write(tmp_path / "clean.safetensors")
    from safetensors.torch import load_file

    model = fresh()
    model.load_state_dict(load_file(tmp_path / "clean.safetensors"), strict=True)
    assert holds(model, trained())


def test_wrapped_names_are_renamed_and_never_deleted():
    """13, timm#1566: the user deleted the ``_orig_mod`` keys instead of renaming them, and loaded an empty dict."""
    file = under("_orig_mod.", trained())
    deleted = {name: value for name, value in file.items() if not name.startswith("_orig_mod.")}
    assert unchanged_by_strict_false(deleted)
    with pytest.raises(CheckpointError, match="the state dict holds no tensors of a model"):
        plan_load(fresh(), deleted)
    model = fresh()
    report = plan_load(model, file).apply()
    assert {row.verdict for row in report.rows} == {"same"}
    assert {row.key for row in report.rows} == set(file)
    assert holds(model, trained())


def test_wrappers_between_the_parts_of_names_are_stripped():
    """14, pytorch#117446, torchsnapshot#141: ``_fsdp_wrapped_module.`` in names and in errors."""
    state = trained()
    inner = {
        re.sub(r"^(blocks\.\d)\.", r"\1._checkpoint_wrapped_module.", name): value for name, value in state.items()
    }
    inner = {re.sub(r"^stem\.", "stem._fsdp_wrapped_module.", name): value for name, value in inner.items()}
    file = under("_fsdp_wrapped_module.", inner)
    assert unchanged_by_strict_false(file)
    model = fresh()
    assert fully(plan_load(model, file).apply())
    assert holds(model, state)
    # Errors name paths of the model.
    del file["_fsdp_wrapped_module.stem._fsdp_wrapped_module.0.weight"]
    said = refusal(plan_load(model, file))
    assert "- stem.0.weight (4, 3, 3, 3)" in said
    assert "fix: if that is meant: keep='stem.0'" in said


def test_a_wrapper_is_stripped_only_where_it_is():
    """15, ray#43594: len(``_forward_module.``) was cut off *every* name: ``der.embed_tokens``."""
    state = trained()
    file = {f"_forward_module.{name}" if name.startswith("stem") else name: value for name, value in state.items()}
    sliced = {name[len("_forward_module.") :]: value for name, value in file.items()}
    assert "ng_mean" in sliced  # of blocks.0.1.running_mean
    model = fresh()
    plan = plan_load(model, file)
    assert {(row.verdict, row.target == row.source) for row in plan.rows} == {("same", True)}
    assert "'_forward_module' stripped from names" in plan.apply().summary
    assert holds(model, state)


# Containers


def test_a_nested_dictionary_is_unwrapped_and_nothing_found_is_an_error():
    """28, PoseAnything#4: "unexpected key: model" and all missing; the run continues."""
    state = trained()
    file: dict[str, Any] = {"model": state, "optimizer": {"state": {}}, "epoch": 7}
    assert unchanged_by_strict_false(file)
    model = fresh()
    assert "container 'model'" in plan_load(model, file).apply().summary
    assert holds(model, state)
    with pytest.raises(CheckpointError, match="holds no tensors of a model"):
        plan_load(model, {"epoch": 7, "optimizer": {"state": {}}})


def test_teacher_and_student_are_for_the_user_to_choose():
    """30, dino#30, #65, #66, #217: teacher and student, ``module.``, ``backbone.``, another head."""

    def half(seed: int, prefix: str) -> dict[str, Tensor]:
        body = {name: value for name, value in trained(seed).items() if not name.startswith("fc")}
        return under(prefix, under("backbone.", body) | {"head.mlp.0.weight": torch.ones(8, 4)})

    file: dict[str, Any] = {"student": half(1, "module."), "teacher": half(2, ""), "epoch": 100}
    assert unchanged_by_strict_false(file)
    assert unchanged_by_strict_false(file["teacher"])
    model = fresh()
    with pytest.raises(CheckpointError, match="take='teacher' or take='student'"):
        plan_load(model, file)
    assert "fix: if that is meant: keep='fc', drop='head'" in refusal(plan_load(model, file, take="teacher"))
    report = plan_load(model, file, take="teacher", keep="fc", drop="head").apply()
    assert report.coverage == 18 / 20
    assert report.norms == (3, 3)
    assert holds(model, {name: value for name, value in trained(2).items() if not name.startswith("fc")})
    assert holds(model, {name: value for name, value in fresh().state_dict().items() if name.startswith("fc")})
    plan_load(model, file, take="student.backbone", keep="fc").apply()
    assert holds(model, {name: value for name, value in trained(1).items() if not name.startswith("fc")})


def test_two_encoders_side_by_side_are_told_apart_by_the_user():
    """30, moco-v3#30: base and momentum encoder under one prefix each, and the head under another name."""
    encoders = [
        {f"module.{prefix}.{name.replace('fc', 'head')}": value for name, value in trained(seed).items()}
        for seed, prefix in enumerate(("base_encoder", "momentum_encoder"), 1)
    ]
    file: dict[str, Any] = {"state_dict": encoders[0] | encoders[1], "arch": "net"}
    assert unchanged_by_strict_false(file["state_dict"])
    model = fresh()
    plan = plan_load(model, file)
    assert not plan.loaded
    assert "'base_encoder.' and 'momentum_encoder.' in front of names in the checkpoint fit alike" in refusal(plan)
    assert fully(plan_load(model, file, take="base_encoder", rename="head -> fc").apply())
    assert holds(model, trained(1))


# Other words, and other numbers


def test_a_second_pass_matches_by_structure_and_ties_are_said():
    """4, pytorch#6584: wants a second pass by shape, and "closest in graph" on ties."""
    words = {"stem.0": "conv1", "stem.1": "bn1", "blocks.": "layer", "fc": "classifier"}
    state = trained()
    file: dict[str, Tensor] = {}
    for name, value in state.items():
        old = next(word for word in words if name.startswith(word))
        file[name.replace(old, words[old])] = value
    assert unchanged_by_strict_false(file)
    model = fresh()
    plan = plan_load(model, file)
    assert {row.confidence for row in plan.rows} == {"inferred"}
    assert fully(plan.apply())
    assert holds(model, state)
    # A tie: by shape alone, either could be the other.
    towers = filled(nn.ModuleDict({"left": nn.Linear(3, 3), "right": nn.Linear(3, 3)}), 9)
    file = dict(filled(nn.ModuleDict({"upper": nn.Linear(3, 3), "lower": nn.Linear(3, 3)}), 1).state_dict())
    plan = plan_load(towers, file)
    assert {row.verdict for row in plan.rows} == {"ambiguous"}
    said = refusal(plan)
    assert "! left.{weight,bias} (2) <- upper.{weight,bias} (2): 2 modules of these shapes at this place" in said
    assert "fix: rename= for what is ambiguous, or accept_ambiguous=True for the assignment shown" in said
    plan_load(towers, file, rename=["upper -> right", "lower -> left"]).apply()
    assert torch.equal(towers["right"].weight, file["upper.weight"])
    assert torch.equal(towers["left"].bias, file["lower.bias"])


def test_blocks_in_chunks_need_a_rule_for_their_numbers():
    """31, dinov2#235: ``blocks.0.x`` against ``blocks.0.0.x`` of a model whose blocks come in chunks."""

    def body(blocks: nn.Module) -> Any:
        return nn.ModuleDict({"blocks": blocks, "norm": nn.LayerNorm(4)})

    chunks = [[nn.Linear(4, 4) for _ in range(2)] for _ in range(2)]
    # Empty places keep the number of a block what it is without chunks.
    empty = [[nn.Identity()] * (2 * index) for index in range(2)]
    chunked = body(nn.ModuleList(nn.ModuleList([*e, *c]) for e, c in zip(empty, chunks, strict=True)))
    file = dict(filled(chunked, 1).state_dict())
    assert "blocks.1.3.weight" in file
    model = filled(body(nn.ModuleList(nn.Linear(4, 4) for _ in range(4))), 9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    strict_false(model, file)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before if name.startswith("blocks"))
    assert not holds(model, before)  # "norm" came: loaded in part, without a word
    said = refusal(plan_load(model, file))
    assert "- blocks.[0-3].{weight,bias} (8)" in said
    assert "+ blocks.[0-1].[0-3].{weight,bias} (8)" in said
    assert plan_load(model, file, rename="blocks.{chunk}.{n} -> blocks.{n}").apply().coverage == 1
    for number in range(4):
        assert torch.equal(model["blocks"][number].weight, file[f"blocks.{number // 2}.{number}.weight"])


# What is said


def test_every_tensor_of_either_side_is_accounted_for():
    """3, pytorch#141256: developers using strict=False are left in the dark, and each writes a script."""
    state = trained()
    file = under("", state) | {"aux.weight": torch.ones(3, 4)}
    del file["blocks.1.1.running_mean"]
    strict_false(fresh(), file)  # no error, no warning
    plan = plan_load(fresh(), file)
    assert sorted(row.target for row in plan.rows if row.target) == sorted(state)
    assert sorted(row.source for row in plan.rows if row.source) == sorted(file)
    assert {row.target or row.source: row.verdict for row in plan.problems} == {
        "blocks.1.1.running_mean": "missing",
        "aux.weight": "unexpected",
    }
    said = refusal(plan)
    assert "- blocks.1.1.running_mean (4,)" in said
    assert "+ aux.weight (3, 4)" in said


def test_a_refusal_suggests_what_is_narrow_and_that_works():
    """5, pytorch#6086: errors must not suggest strict=False, because it hides other issues."""
    file = trained() | {"aux.weight": torch.ones(3, 4)}
    del file["fc.weight"], file["fc.bias"]
    model = fresh()
    said = refusal(plan_load(model, file))
    assert "strict" not in said
    assert said.endswith("fix: if that is meant: keep='fc', drop='aux'")
    assert plan_load(model, file, keep="fc", drop="aux").apply().coverage == 18 / 20
    assert holds(model, {name: value for name, value in file.items() if name != "aux.weight"})
    # What it does not name, it does not allow.
    del file["stem.0.weight"]
    assert "- stem.0.weight (4, 3, 3, 3)" in refusal(plan_load(model, file, keep="fc", drop="aux"))


def test_one_can_tell_how_much_was_loaded():
    """7, simple-HRNet#79: cannot tell whether loading pretrained weights is actually working."""
    state = trained()
    file = {name: value for name, value in state.items() if name.startswith("stem")}
    strict_false(fresh(), file)
    plan = plan_load(fresh(), file, keep=["blocks", "fc"])
    assert plan.coverage == 6 / 20
    report = plan.apply()
    assert {tree.path: tree.tensors for tree in report.subtrees} == {"stem": (6, 6), "blocks": (0, 12), "fc": (0, 2)}
    assert report.norms == (1, 3)
    assert "6/20 tensors" in report.summary
    assert "1/3 BatchNorm with statistics" in report.summary


def test_success_is_one_positive_line():
    """26, mmdetection#9521: is every weight loaded? "If you have not seen messages, it means loaded"."""
    elements = sum(value.numel() for value in trained().values())
    report = plan_load(fresh(), trained()).apply()
    assert report.summary == (
        f"the state dict -> Net: 20/20 tensors, {elements}/{elements} elements (100 %), 3/3 BatchNorm with statistics"
    )
