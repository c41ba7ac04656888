"""Carrying out a plan: in place, checked by value, and all or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from frostline.checkpoint import plan_load
from frostline.errors import CheckpointError, CorruptCheckpoint
from frostline.state import snapshot


def small(seed: int = 0, width: int = 3) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, width))


def save(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


def refusal(plan: Any) -> str:
    before = snapshot(plan.model)
    with pytest.raises(CheckpointError) as caught:
        plan.apply()
    assert not before.diff(plan.model)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["torch", "torch legacy", "safetensors"])
def test_values_arrive_in_place_and_nothing_else_changes(kind: str, tmp_path: Path):
    source, model = small(1), small()
    source(torch.randn(8, 4))
    path = tmp_path / "a"
    if kind == "safetensors":
        safetensors.torch.save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict(), path, _use_new_zipfile_serialization=kind == "torch")
    parameters = list(model.parameters())
    model[0].weight.requires_grad_(False)
    model[1].eval()
    report = plan_load(model, path).apply()
    assert [id(value) for value in model.parameters()] == [id(value) for value in parameters]
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    assert model[1].num_batches_tracked == 1
    assert (model[0].weight.requires_grad, model[1].training, model[0].training) == (False, False, True)
    assert report.summary == "a -> Sequential: 9/9 tensors, 76/76 elements (100 %), 1/1 BatchNorm with statistics"


def test_an_optimizer_goes_on_with_the_loaded_values():
    source, model = small(1), small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    plan_load(model, source).apply()
    model.zero_grad()
    loaded = model[0].weight.detach().clone()
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, loaded)

    twin = small()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin.load_state_dict(source.state_dict(), assign=True)
    loaded = twin[0].weight.detach().clone()
    twin(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(twin[0].weight, loaded)  # torch's assign=True: the optimizer has lost its parameters


def test_the_payload_of_nan_and_the_sign_of_zero_arrive():
    source, model = small(1), small()
    with torch.no_grad():
        source[0].bias.copy_(torch.tensor([0x7FC00123, -(2**31), 0, 0, 0, 0], dtype=torch.int32).view(torch.float32))
    plan_load(model, source, accept_suspect="0.bias").apply()
    assert model[0].bias.view(torch.int32)[:2].tolist() == [0x7FC00123, -(2**31)]


# Suspect values


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("0.weight", float("nan"), "1 of 24 values are NaN or infinite"),
        ("2.bias", float("-inf"), "1 of 3 values are NaN or infinite"),
        ("1.running_var", -1.0, "1 of 6 variances are negative, the least -1"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_until_they_are_accepted(name: str, value: float, said: str):
    state = small(1).state_dict()
    state[name].view(-1)[0] = value
    message = refusal(plan_load(small(), state))
    assert f"{name} -> {name}: {said}" in message
    assert f"accept_suspect={name!r}" in message
    model = small()
    report = plan_load(model, state, accept_suspect=name).apply()
    assert report.notes == (f"accepted: {name} -> {name}: {said}",)
    assert report.summary.endswith("; suspect values accepted x1")
    assert model.state_dict()[name].view(-1)[0].isnan() or model.state_dict()[name].view(-1)[0] == value

    twin = small()
    twin.load_state_dict(state)  # torch takes them without a word


def test_all_suspects_are_named_and_not_only_the_first():
    state = small(1).state_dict()
    for name in ("0.weight", "2.weight"):
        state[name][0, 0] = float("nan")
    message = refusal(plan_load(small(), state))
    assert "suspect-values: 2\n" in message
    assert "0.weight -> " in message
    assert "2.weight -> " in message


# Types


def test_a_wider_type_loses_nothing_and_a_narrower_one_must_not():
    report = plan_load(model := small(), small(1).half()).apply()
    assert "cast to float32 x8" in report.summary
    assert torch.equal(model[0].weight, small(1).half()[0].weight.float())
    message = refusal(plan_load(small().half(), small(1)))
    assert "0.weight -> 0.weight: float32 in the checkpoint loses values as float16" in message
    assert "adapt={'0.weight': 'narrow'}" in message
    exact = small(1).half().float()
    narrow = small().half()
    plan_load(narrow, exact).apply()
    assert torch.equal(narrow[0].weight.float(), exact[0].weight)
    rounded = small().half()
    plan_load(rounded, small(1), adapt="narrow").apply()
    assert torch.equal(rounded[0].weight, small(1)[0].weight.half())

    twin = small().half()
    twin.load_state_dict(small(1).state_dict())  # torch rounds without a word
    assert torch.equal(twin[0].weight, rounded[0].weight)


# All or nothing


def test_torchs_own_strict_loading_leaves_the_model_half_changed():
    state, model = small(1, width=5).state_dict(), small()
    before = snapshot(model)
    with pytest.raises(RuntimeError):
        model.load_state_dict(state)
    assert before.diff(model)
    refusal(plan_load(small(), state))  # and ours does not


@pytest.mark.parametrize("number", [1, 4, 9])
def test_a_failure_half_way_puts_back_what_was_there(number: int, monkeypatch: pytest.MonkeyPatch):
    model = small()
    plan = plan_load(model, small(1).state_dict())
    before, copy, calls = snapshot(model), Tensor.copy_, []

    def fail(self: Tensor, *arguments: Any) -> Tensor:
        calls.append(self)
        if len(calls) == number:
            copy(self, *arguments)
            raise KeyboardInterrupt
        return copy(self, *arguments)

    monkeypatch.setattr(Tensor, "copy_", fail)
    with pytest.raises(KeyboardInterrupt):
        plan.apply()
    assert len(calls) > number  # it wrote, and wrote back
    assert not before.diff(model)


def test_a_file_that_changes_behind_the_plan_is_noticed(tmp_path: Path):
    path = save(small(1).state_dict(), tmp_path / "a.pt")
    plan = plan_load(small(), path)
    save(small(2).state_dict(), path)
    before = snapshot(plan.model)
    with pytest.raises(CorruptCheckpoint):
        plan.apply()
    assert not before.diff(plan.model)


def test_a_damaged_tensor_in_the_middle_leaves_the_model_alone(tmp_path: Path):
    path = save({"0.weight": torch.ones(6, 4), "0.bias": torch.zeros(6)}, tmp_path / "a.pt")
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(2).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    model = nn.Sequential(nn.Linear(4, 6))
    before = snapshot(model)
    with pytest.raises(CorruptCheckpoint):
        plan_load(model, path).apply()
    assert not before.diff(model)


def test_a_model_that_changed_since_is_planned_anew():
    model = small()
    plan = plan_load(model, small(1))
    model[2] = nn.Linear(6, 4)
    with pytest.raises(CheckpointError, match=r"has changed since it was planned for: 2.weight was \(3, 6\)"):
        plan.apply()


def overlapping() -> nn.Module:
    module, memory = nn.Module(), torch.zeros(4)
    module.register_buffer("a", memory[:3])
    module.register_buffer("b", memory[1:])
    return module


def test_values_that_do_not_arrive_are_noticed_and_taken_back():
    message = refusal(plan_load(overlapping(), {"a": torch.ones(3), "b": torch.full((3,), 2.0)}))
    assert message.startswith(
        "the state dict did not arrive: 1 tensors differ after writing; nothing was changed\n  differing: a\n"
    )


def test_what_is_kept_and_shares_memory_with_what_is_loaded_is_a_conflict():
    plan = plan_load(overlapping(), {"a": torch.ones(3)}, keep="b")
    assert "b (3,): it shares memory with a, which is loaded" in refusal(plan)


# The report


def test_provenance_says_file_key_operation_and_digest(tmp_path: Path):
    path = save(
        {"model": {"module.0.weight": torch.ones(6, 4).half(), "module.0.bias": torch.zeros(6)}}, tmp_path / "a.pt"
    )
    model = nn.Sequential(nn.Linear(4, 6))
    report = plan_load(model, path).apply()
    row = report.rows[0]
    assert (row.file, row.key, row.source, row.operations) == (
        str(path),
        "model.module.0.weight",
        "0.weight",
        ("cast(to=float32, lossy=False)",),
    )
    assert row.digest == snapshot(model)["0.weight"].mark
    assert report.path == path
    data = report.to_json()
    assert data["schema_version"] == 1
    assert data["rows"][0]["verdict"] == "cast"
    assert data["coverage"] == 1.0


def test_coverage_by_sub_tree_and_never_rounded_up():
    model = nn.ModuleDict({"trunk": nn.Linear(100, 100), "head": nn.Linear(1, 1)})
    report = plan_load(
        model, {f"trunk.{k}": torch.zeros_like(v) for k, v in model["trunk"].state_dict().items()}, keep="head"
    ).apply()
    assert [(tree.path, tree.tensors, tree.elements) for tree in report.subtrees] == [
        ("trunk", (2, 2), (10_100, 10_100)),
        ("head", (0, 2), (0, 2)),
    ]
    assert "2/4 tensors, 10,100/10,102 elements (99 %)" in report.summary
    assert "trunk  2/2      10,100/10,100  100.0%" in str(report)
    assert "<table>" in report._repr_html_()
