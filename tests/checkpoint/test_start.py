"""Starting from a checkpoint: all of it, checked by value, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from frostline.checkpoint import start_from
from frostline.errors import CheckpointError, CorruptCheckpoint
from frostline.state import snapshot


def save(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


def small(seed: int, width: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, width))


def refusal(model: nn.Module, path: Path, **options: Any) -> str:
    """The message of a refusal that left every bit of the model alone."""
    before = snapshot(model)
    with pytest.raises(CheckpointError) as caught:
        start_from(model, path, **options)
    assert not before.diff(model)
    return str(caught.value)


# A real checkpoint


@pytest.mark.real_data
def test_all_97_tensors_arrive(resnet20: Callable[..., nn.Module], resnet20_file: Path):
    model = resnet20()
    report = start_from(model, resnet20_file)
    assert report.summary == (
        "resnet20-12fca82f.th: 97 of 97 tensors, 271,098 elements; container 'state_dict'; prefix 'module.' stripped; "
        "num_batches_tracked absent x19 -> 0"
    )
    raw = torch.load(resnet20_file, map_location="cpu", weights_only=True)["state_dict"]
    live = model.state_dict()
    assert all(torch.equal(live[name.removeprefix("module.")], value) for name, value in raw.items())
    assert len(report.zeroed) == 19


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


@pytest.mark.real_data
def test_a_head_of_another_width_is_left_out_and_said(resnet20: Callable[..., nn.Module], resnet20_file: Path):
    assert "linear.weight ((10, 64) in the file, (2, 64) in the model)" in refusal(
        resnet20(num_classes=2), resnet20_file
    )
    model = resnet20(num_classes=2)
    head = model.linear.weight.clone()
    report = start_from(model, resnet20_file, except_prefixes=["linear"])
    assert report.summary.startswith("resnet20-12fca82f.th: 95 of 95 tensors, 270,448 elements; ")
    assert report.summary.endswith("; left out linear.weight, linear.bias")
    assert report.left_out == ("linear.weight", "linear.bias")
    assert torch.equal(model.linear.weight, head)


# What is loaded


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_values_arrive_in_place(kind: str, tmp_path: Path):
    source, model = small(1), small(2)
    source(torch.randn(8, 4))
    path = tmp_path / "a"
    if kind == "torch":
        save(source.state_dict(), path)
    else:
        safetensors.torch.save_file(source.state_dict(), path)
    parameters = list(model.parameters())
    model[0].weight.requires_grad_(False)
    model[1].eval()
    report = start_from(model, path)
    assert [id(value) for value in model.parameters()] == [id(value) for value in parameters]
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    assert model[1].num_batches_tracked == 1
    assert (model[0].weight.requires_grad, model[1].training, model[0].training) == (False, False, True)
    assert set(report.loaded) == set(model.state_dict())
    assert report.summary == "a: 9 of 9 tensors, 76 elements"


def test_nan_payloads_and_the_sign_of_zero_arrive(tmp_path: Path):
    source, model = small(1), small(2)
    with torch.no_grad():
        source[0].bias.copy_(torch.tensor([0x7FC00123, -(2**31), 0, 0, 0, 0], dtype=torch.int32).view(torch.float32))
    start_from(model, save(source.state_dict(), tmp_path / "a.pt"))
    assert model[0].bias.view(torch.int32)[:2].tolist() == [0x7FC00123, -(2**31)]


def test_a_model_whose_own_child_is_called_module(tmp_path: Path):
    source, model = (nn.ModuleDict({"module": small(seed)}) for seed in (1, 2))
    assert start_from(model, save(source.state_dict(), tmp_path / "a.pt")).stripped == ()
    wrapped = {f"_orig_mod.{name}": value for name, value in source.state_dict().items()}
    assert start_from(model, save(wrapped, tmp_path / "b.pt")).stripped == ("_orig_mod",)


def test_a_missing_counter_is_zeroed_even_if_the_model_has_counted(tmp_path: Path):
    source, model = small(1), small(2)
    model(torch.randn(8, 4))
    state = source.state_dict()
    del state["1.num_batches_tracked"]
    report = start_from(model, save(state, tmp_path / "a.pt"))
    assert model[1].num_batches_tracked == 0
    assert report.zeroed == ("1.num_batches_tracked",)
    assert report.summary == "a.pt: 8 of 8 tensors, 75 elements; num_batches_tracked absent x1 -> 0"


def test_another_dtype_is_taken_where_it_loses_nothing(tmp_path: Path):
    source, model = small(1).half(), small(2)
    report = start_from(model, save(source.state_dict(), tmp_path / "a.pt"))
    assert len(report.cast) == 8
    assert torch.equal(model[0].weight.half(), source[0].weight)
    precise = save(small(1).state_dict(), tmp_path / "b.pt")
    assert "0.weight (float32 in the file loses values as float16)" in refusal(small(2).half(), precise)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("positions", torch.arange(3), persistent=False)


def test_tied_tensors_need_one_of_their_names(tmp_path: Path):
    value = torch.randn(5, 3)
    for names in (["embed.weight"], ["out.weight"], ["embed.weight", "out.weight"]):
        model = Tied()
        report = start_from(model, save(dict.fromkeys(names, value), tmp_path / "a.pt"))
        assert torch.equal(model.out.weight, value)
        assert report.loaded == ("embed.weight", "out.weight")
    torn = save({"embed.weight": value, "out.weight": value + 1}, tmp_path / "b.pt")
    assert "out.weight (in the model the same tensor as embed.weight, in the file another)" in refusal(Tied(), torn)


def test_recomputed_buffers_in_the_file_are_left_out_and_said(tmp_path: Path):
    model = Tied()
    path = save({"embed.weight": torch.ones(5, 3), "positions": torch.zeros(3)}, tmp_path / "a.pt")
    assert start_from(model, path).summary.endswith("; left out positions")
    assert model.positions.tolist() == [0, 1, 2]


# What is refused


def test_missing_unexpected_and_different_entries_are_named(tmp_path: Path):
    state = small(1, width=5).state_dict()
    del state["1.running_var"]
    state["3.weight"] = torch.ones(1)
    assert refusal(small(2), save(state, tmp_path / "a.pt")) == (
        "a.pt does not fit the model; nothing was changed\n"
        "  missing in the file: 1\n"
        "    1.running_var\n"
        "  unexpected in the file: 1\n"
        "    3.weight\n"
        "  different: 2\n"
        "    2.weight ((5, 6) in the file, (3, 6) in the model)\n"
        "    2.bias ((5,) in the file, (3,) in the model)\n"
        "  fix: a checkpoint of this very model"
    )


def test_torchs_own_strict_loading_leaves_the_model_half_changed(tmp_path: Path):
    state, model = small(1, width=5).state_dict(), small(2)
    before = snapshot(model)
    with pytest.raises(RuntimeError):
        model.load_state_dict(state)
    assert before.diff(model)  # and ours, above, left it alone


def test_at_most_eight_names_of_each_kind(tmp_path: Path):
    path = save({f"x{index}": torch.ones(1) for index in range(11)}, tmp_path / "a.pt")
    message = refusal(small(2), path)
    assert "  unexpected in the file: 11\n" in message
    assert "    x7\n    (+3 more)\n" in message
    assert "no name in the file is a name of the model" in message


@pytest.mark.parametrize("except_prefixes", [["linear", "2"], ["2"]])
def test_prefixes_are_whole_names(except_prefixes: list[str], tmp_path: Path):
    model = nn.ModuleDict({"2": nn.Linear(1, 1), "20": nn.Linear(1, 1)})
    kept = model["2"].weight.clone()
    path = save({"20.weight": torch.ones(1, 1), "20.bias": torch.ones(1)}, tmp_path / "a.pt")
    start_from(model, path, except_prefixes=except_prefixes)
    assert model["20"].weight == 1
    assert torch.equal(model["2"].weight, kept)


def test_tensors_without_values(tmp_path: Path):
    with torch.device("meta"):
        empty = small(1)
    path = save(small(1).state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="on the meta device, which holds no values"):
        start_from(empty, path)
    lazy = nn.LazyLinear(3)
    path = save(nn.Linear(2, 3).state_dict(), tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"weight \(not materialized yet"):
        start_from(lazy, path)


class WithExtra(nn.Linear):
    def get_extra_state(self) -> object:
        return {"scale": 3}


def test_state_that_is_no_tensor_cannot_be_started_from(tmp_path: Path):
    model = WithExtra(1, 1)
    assert "missing in the file: 1\n    extra_state\n" in refusal(model, save(model.state_dict(), tmp_path / "a.pt"))


def test_a_file_that_cannot_be_read(tmp_path: Path):
    path = save(small(1).state_dict(), tmp_path / "a.pt")
    path.write_bytes(path.read_bytes()[:-40])
    model = small(2)
    before = snapshot(model)
    with pytest.raises(CorruptCheckpoint):
        start_from(model, path)
    assert not before.diff(model)


# All or nothing


def test_a_failure_half_way_puts_back_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, model = save(small(1).state_dict(), tmp_path / "a.pt"), small(2)
    before, copy, calls = snapshot(model), Tensor.copy_, []

    def fail_on_the_fourth(self: Tensor, *arguments: Any) -> Tensor:
        calls.append(self)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return copy(self, *arguments)

    monkeypatch.setattr(Tensor, "copy_", fail_on_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        start_from(model, path)
    assert not before.diff(model)


def test_values_that_do_not_arrive_are_noticed_and_taken_back(tmp_path: Path):
    class Overlapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            memory = torch.zeros(4)
            self.register_buffer("a", memory[:3])
            self.register_buffer("b", memory[1:])

    path = save({"a": torch.ones(3), "b": torch.full((3,), 2.0)}, tmp_path / "a.pt")
    message = refusal(Overlapping(), path)
    assert message.startswith(
        "a.pt did not arrive: 1 tensors differ after writing; nothing was changed\n  differing: a\n"
    )
