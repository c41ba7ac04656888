"""Planning a load: every entry of either side gets one verdict, and what is not meant makes the plan incomplete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import frostline as fl
from frostline.checkpoint import plan_load
from frostline.checkpoint.plan import IN_THE_WAY, LOADED, ON_PURPOSE
from frostline.errors import CheckpointError, NothingSelected
from frostline.state import snapshot


def small(seed: int = 0, width: int = 3) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, width))


def verdicts(plan: Any) -> dict[str, str]:
    return {row.target or f"+{row.source}": row.verdict for row in plan.rows}


def refusal(plan: Any) -> str:
    """The message of a refusal that left every bit of the model alone."""
    before = snapshot(plan.model)
    assert not plan.complete
    with pytest.raises(CheckpointError) as caught:
        plan.apply()
    assert not before.diff(plan.model)
    return str(caught.value)


# Accounting


def test_each_entry_of_either_side_has_one_verdict():
    state = small(1, width=5).state_dict()
    del state["1.running_var"]
    state["3.weight"] = torch.ones(1)
    plan = plan_load(small(), state)
    assert verdicts(plan) == {
        "0.weight": "same",
        "0.bias": "same",
        "1.weight": "same",
        "1.bias": "same",
        "1.running_mean": "same",
        "1.running_var": "missing",
        "1.num_batches_tracked": "same",
        "2.weight": "shape-mismatch",
        "2.bias": "shape-mismatch",
        "+3.weight": "unexpected",
    }
    assert plan.coverage == 6 / 9


names = st.lists(st.sampled_from(["a", "b", "c", "weight", "bias", "running_mean"]), min_size=1, max_size=3).map(
    ".".join
)
states = st.dictionaries(names, st.sampled_from([(1,), (2,), (2, 2)]), max_size=8)


def module_of(shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """A model with buffers of these names, as far as names can stand beside each other."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part in module._buffers:
                break
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        else:
            if leaf not in module._modules:
                module.register_buffer(leaf, torch.zeros(shape))
    return root


@settings(deadline=None, max_examples=200, derandomize=True)
@given(states, states, st.booleans())
def test_nothing_is_ever_left_out_of_the_account(ours: Any, theirs: Any, accept: bool):
    model = module_of(ours)
    source = {name: torch.ones(shape) for name, shape in theirs.items()}
    if not source:
        return
    plan = plan_load(model, source, accept_ambiguous=accept)
    assert [row.target for row in plan.rows if row.target] == list(model.state_dict())
    counted = Counter(row.source for row in plan.rows if row.source)
    assert counted == Counter(dict.fromkeys(source, 1))
    assert all(row.verdict.startswith((*LOADED, *ON_PURPOSE)) or row.verdict in IN_THE_WAY for row in plan.rows)
    before = snapshot(model)
    if plan.complete:
        plan.apply()
        assert all(torch.equal(model.state_dict()[row.target], source[row.source]) for row in plan.loaded if row.target)
    else:
        refusal(plan)
        assert not before.diff(model)


def test_planning_reads_and_changes_nothing():
    model, state = small(), small(1).state_dict()
    before = snapshot(model)
    plan_load(model, state)
    assert not before.diff(model)


# The diff and its narrow fix


def test_the_refusal_is_a_diff_with_the_narrow_argument():
    state = {name: value for name, value in small(1).state_dict().items() if not name.startswith("2.")}
    state["head.weight"] = torch.ones(1)
    message = refusal(plan_load(small(), {"state_dict": state}))
    assert message == (
        "the state dict does not fit Sequential; nothing was changed\n"
        "  container 'state_dict'\n"
        "  2 not in the checkpoint:\n"
        "    - 2.{weight,bias} (2)\n"
        "  1 not in the model:\n"
        "    + head.weight (1,)\n"
        "  fix: if that is meant: keep='2', drop='head'"
    )
    model = small()
    kept = model[2].weight.clone()
    report = plan_load(model, {"state_dict": state}, keep="2", drop="head").apply()
    assert report.coverage == 7 / 9
    assert torch.equal(model[2].weight, kept)
    assert torch.equal(model[0].weight, state["0.weight"])


def test_no_message_offers_a_wider_way_out():
    for state in (small(1, width=9).state_dict(), {"x": torch.ones(1)}):
        assert "strict" not in refusal(plan_load(small(), state))


def test_at_most_eight_lines_of_each_kind():
    message = refusal(plan_load(small(), {f"x{'ab'[i % 2] * i}.w": torch.ones(1) for i in range(11)}))
    assert "  11 not in the model:\n" in message
    assert "(+3 more; plan.problems)" in message


def test_another_architecture_is_nothing_at_all():
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    message = refusal(plan_load(small(), other.state_dict(), keep="*", drop="*"))
    assert "0 % of the model's tensors would come from the checkpoint" in message


def test_one_sub_tree_of_the_checkpoint_is_offered_by_its_name():
    state = {f"backbone.{name}": value for name, value in small(1).state_dict().items()}
    state |= {"projector.weight": torch.ones(2, 2), "queue": torch.ones(7)}
    plan = plan_load(small(), {"model": state})
    assert "fix: take='backbone', which leaves the rest out" in refusal(plan)
    plan = plan_load(small(), {"model": state}, take="backbone")
    assert plan.complete
    assert verdicts(plan)["+projector.weight"] == verdicts(plan)["+queue"] == "dropped"
    assert {row.confidence for row in plan.loaded} == {"exact"}
    assert plan.apply().coverage == 1


# Patterns


def test_patterns_that_match_nothing_are_errors():
    state = small(1).state_dict()
    with pytest.raises(CheckpointError, match="drop='fc' matches none of") as caught:
        plan_load(small(), state, drop="fc")
    assert "nearest names" in str(caught.value)
    with pytest.raises(NothingSelected):
        plan_load(small(), state, keep="fc")
    with pytest.raises(CheckpointError, match="has nothing under take='encoder'"):
        plan_load(small(), state, take="encoder")
    with pytest.raises(CheckpointError, match="the rule matches none of 7 names in the checkpoint"):
        plan_load(small(), state, rename="fc -> head", drop="2")
    with pytest.raises(CheckpointError, match="InputChannels fits no tensor"):
        plan_load(small(), state, adapt="input-channels")
    with pytest.raises(CheckpointError, match="accept_suspect='x' matches none"):
        plan_load(small(), state, accept_suspect="x").apply()


def test_what_is_kept_may_be_a_module_a_type_or_a_pattern_of_whole_names():
    model = nn.ModuleDict({"2": nn.Linear(1, 1), "20": nn.Linear(1, 1)})
    state = {"20.weight": torch.ones(1, 1), "20.bias": torch.ones(1)}
    for keep in ("2", model["2"], ["2.weight", "2.bias"], lambda path, _: path == "2"):
        plan = plan_load(model, state, keep=keep)
        assert verdicts(plan) == {
            "2.weight": "kept-init",
            "2.bias": "kept-init",
            "20.weight": "same",
            "20.bias": "same",
        }


def test_what_would_go_where_values_are_kept_is_dropped_and_said():
    plan = plan_load(small(), small(1).state_dict(), keep="2")
    rows = {row.source: row for row in plan.rows if row.source}
    assert rows["2.weight"].verdict == "dropped"
    assert rows["2.weight"].why == "its place, 2.weight, keeps what it has"


def test_take_goes_through_containers_and_names():
    state = {f"module.encoder_q.{name}": value for name, value in small(1).state_dict().items()}
    state |= {f"module.encoder_k.{name}": value for name, value in small(2).state_dict().items()}
    file = {"teacher": {"state_dict": state}, "student": {"state_dict": small(3).state_dict()}}
    with pytest.raises(CheckpointError, match=r"take='student' or take='teacher'|take='teacher' or take='student'"):
        plan_load(small(), file)
    message = refusal(plan_load(small(), file, take="teacher"))
    assert "could be another" in message
    assert "encoder_k" in message
    for take, seed in (("teacher.encoder_q", 1), ("teacher.state_dict.encoder_k", 2), ("student", 3)):
        model = small()
        assert plan_load(model, file, take=take).apply().coverage == 1
        assert all(torch.equal(v, small(seed).state_dict()[k]) for k, v in model.state_dict().items())


def test_rules_rename_and_fan_out():
    state = {f"body.{name}": value for name, value in small(1)[:2].state_dict().items()}
    model = nn.ModuleDict({"left": small()[:2], "right": small()[:2]})
    plan = plan_load(model, state, rename={"body.": ["left.", "right."]})
    assert {row.confidence for row in plan.loaded} == {"rule"}
    assert plan.apply().coverage == 1
    assert torch.equal(model["left"][0].weight, model["right"][0].weight)
    assert any("go to several places" in note for note in plan.notes)
    gone = plan_load(model, state, rename={"body.": "middle."})
    assert "renamed to middle.0.weight, which the model does not have" in {row.why for row in gone.problems}


# What a model is like


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("positions", torch.arange(3), persistent=False)


def test_tied_tensors_need_one_of_their_names():
    value = torch.randn(5, 3)
    for given_names in (["embed.weight"], ["out.weight"], ["embed.weight", "out.weight"]):
        model = Tied()
        plan = plan_load(model, dict.fromkeys(given_names, value))
        assert plan.apply().coverage == 1
        assert torch.equal(model.out.weight, value)
    copies = {"embed.weight": value, "out.weight": value.clone()}
    assert plan_load(Tied(), copies).complete
    plan = plan_load(Tied(), {"embed.weight": value, "out.weight": value + 1})
    assert verdicts(plan)["out.weight"] == "conflict(tied)"
    assert "out.weight (5, 3) <- out.weight: in the model the same tensor as embed.weight" in refusal(plan)


def test_torch_lets_the_last_of_two_tied_values_win_without_a_word():
    model, value = Tied(), torch.randn(5, 3)
    model.load_state_dict({"embed.weight": value, "out.weight": value + 1})
    assert torch.equal(model.embed.weight, value + 1)


def test_recomputed_buffers_in_the_checkpoint_are_left_out_and_said():
    plan = plan_load(Tied(), {"embed.weight": torch.ones(5, 3), "positions": torch.zeros(3)})
    row = plan.rows[-1]
    assert (row.source, row.verdict, row.why) == ("positions", "dropped", "the model computes it")
    assert plan.complete


def test_a_missing_counter_is_set_to_zero_only_beside_statistics():
    state = small(1).state_dict()
    del state["1.num_batches_tracked"]
    model = small()
    model(torch.randn(8, 4))
    assert verdicts(plan_load(model, state))["1.num_batches_tracked"] == "filled:0"
    report = plan_load(model, state).apply()
    assert model[1].num_batches_tracked == 0
    assert report.coverage == 1
    del state["1.running_mean"], state["1.running_var"]
    assert verdicts(plan_load(model, state))["1.num_batches_tracked"] == "missing"


def test_a_layer_that_averages_over_everything_and_counts_from_zero_is_noted():
    model = nn.Sequential(nn.BatchNorm1d(2, momentum=None))
    state = {name: value for name, value in model.state_dict().items() if "num" not in name}
    plan = plan_load(model, state)
    assert "the first batch in train mode overwrites their statistics (0 ...)" in plan.notes[0]


@pytest.mark.parametrize(
    ("value", "model", "verdict"),
    [
        (torch.ones(2, dtype=torch.float16), torch.zeros(2), "cast"),
        (torch.ones(2, dtype=torch.float64), torch.zeros(2), "cast"),
        (torch.ones(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int64), "cast"),
        (torch.ones(2, dtype=torch.int64), torch.zeros(2), "shape-mismatch"),
        (torch.ones(2, dtype=torch.bool), torch.zeros(2), "shape-mismatch"),
        (torch.ones(2, dtype=torch.complex64), torch.zeros(2), "shape-mismatch"),
    ],
)
def test_types_of_one_kind_are_cast_others_are_not(value: Tensor, model: Tensor, verdict: str):
    module = nn.Module()
    module.register_buffer("x", model)
    assert verdicts(plan_load(module, {"x": value}))["x"] == verdict


def test_tensors_without_values():
    state = small(1).state_dict()
    with torch.device("meta"):
        empty = small()
    assert "on the meta device, which holds no values" in refusal_text(empty, state)
    assert "not materialized yet: run the model once" in refusal_text(nn.LazyLinear(3), nn.Linear(2, 3).state_dict())


def refusal_text(model: nn.Module, state: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        plan_load(model, state).apply()
    return str(caught.value)


class WithExtra(nn.Linear):
    def get_extra_state(self) -> object:
        return {"scale": 3}


def test_state_that_is_no_tensor_has_to_be_kept():
    model = WithExtra(1, 1)
    state = nn.Linear(1, 1).state_dict()
    assert "extra_state: not a tensor" in refusal(plan_load(model, state))
    assert plan_load(nn.Sequential(model), {f"0.{k}": v for k, v in state.items()}, keep="0.extra_state").complete


def test_what_a_hold_keeps_is_not_loaded_over():
    model = small()
    hold = fl.freeze(model, "0", "1")
    plan = plan_load(model, small(1).state_dict())
    assert {row.target for row in plan.problems} == {n for n in model.state_dict() if n[0] in "01"}
    assert "hold.thaw() first" in refusal(plan)
    hold.verify()
    plan_load(model, small(1).state_dict(), keep=["0", "1"]).apply()
    hold.verify()
    hold.thaw()
    assert plan_load(model, small(1).state_dict()).complete


def test_a_model_is_a_source_too_and_its_eps_is_compared():
    model, other = nn.Sequential(nn.BatchNorm1d(2)), nn.Sequential(nn.BatchNorm1d(2, eps=1e-3))
    plan = plan_load(model, other)
    assert plan.source.format == "live model"
    assert plan.notes == ("eps is 0.001 in the checkpoint and 1e-05 in the model, in 1 layers (0 ...)",)


def test_wrappers_of_the_model_and_of_the_checkpoint_do_not_matter():
    state = {f"_orig_mod.module.{name}": value for name, value in small(1).state_dict().items()}
    model = torch.compile(nn.DataParallel(small()), backend="eager")
    assert plan_load(model, state).apply().coverage == 1


# Structure


@pytest.mark.real_data
def test_the_real_checkpoint_by_its_own_names(resnet20: Callable[..., nn.Module], resnet20_file: Path):
    model = resnet20()
    report = plan_load(model, resnet20_file).apply()
    assert report.summary == (
        "resnet20-12fca82f.th -> ResNet20: 97/97 tensors, 271,098/271,098 elements (100 %), "
        "19/19 BatchNorm with statistics; container 'state_dict'; prefix 'module.' stripped; "
        "num_batches_tracked absent x19 -> set to 0"
    )
    raw = torch.load(resnet20_file, map_location="cpu", weights_only=True)["state_dict"]
    live = model.state_dict()
    assert all(torch.equal(live[name.removeprefix("module.")], value) for name, value in raw.items())


@pytest.mark.real_data
def test_torchs_own_loading_lets_none_of_them_arrive_and_says_nothing(
    resnet20: Callable[..., nn.Module], resnet20_file: Path
):
    file = torch.load(resnet20_file, map_location="cpu", weights_only=True)
    for value in (file, file["state_dict"]):
        model = resnet20()
        before = snapshot(model)
        model.load_state_dict(value, strict=False)
        assert not before.diff(model)  # 0 of 97


def test_a_head_of_another_width_is_said_to_be_that():
    model = nn.ModuleDict({"body": small()[:2], "classifier": nn.Linear(6, 7)})
    state = {f"body.{name}": value for name, value in small(1)[:2].state_dict().items()}
    state |= {"fc.weight": torch.ones(3, 6), "fc.bias": torch.ones(3)}
    plan = plan_load(model, state)
    assert verdicts(plan)["classifier.weight"] == "shape-mismatch"
    message = refusal(plan)
    assert "classifier.{weight,bias} (2) <- fc.{weight,bias} (2): (3, 6) in the checkpoint, (7, 6) in" in message
    assert "keep='classifier', drop='fc'" in message
    assert plan_load(model, state, keep="classifier", drop="fc").complete


def test_roles_by_their_other_names():
    state = {{"weight": "gamma", "bias": "beta"}.get(n, n): v for n, v in nn.LayerNorm(3).state_dict().items()}
    model = nn.Sequential(nn.LayerNorm(3))
    plan = plan_load(model, {f"0.{name}": value for name, value in state.items()})
    assert [(row.target, row.source, row.confidence) for row in plan.rows] == [
        ("0.weight", "0.gamma", "inferred"),
        ("0.bias", "0.beta", "inferred"),
    ]


# What it prints


def test_the_plan_prints_like_things_together():
    state = {f"layer.{i}.{name}": value for i in range(3) for name, value in nn.BatchNorm1d(2).state_dict().items()}
    model = nn.ModuleDict({"blocks": nn.ModuleList(nn.BatchNorm1d(2) for _ in range(3))})
    text = str(plan_load(model, state))
    assert text.startswith("the state dict -> ModuleDict: 15 of 15 tensors\n")
    assert "renamed (inferred): 15\n" in text
    assert "blocks.[0-2].{weight,bias,running_mean,running_var,num_batches_tracked} (15)" in text


def test_names_from_a_file_cannot_play_with_the_terminal_or_the_page():
    hostile = "\x1b[31m<script>alert(1)</script>"
    plan = plan_load(small(), {**small(1).state_dict(), hostile: torch.ones(1)})
    for text in (str(plan), refusal(plan)):
        assert "\x1b" not in text
        assert "\\x1b[31m" in text
    assert "<script>" not in plan._repr_html_()
    assert "&lt;script&gt;" in plan._repr_html_()


def test_the_repr_of_a_plan_is_its_first_line(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    torch.save(model.state_dict(), tmp_path / "linear.pth")
    planned = plan_load(model, tmp_path / "linear.pth")
    assert repr(planned) == str(planned).splitlines()[0] == "linear.pth -> Linear: 2 of 2 tensors"
