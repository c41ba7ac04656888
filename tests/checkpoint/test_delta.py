"""Deltas: small files for heads on one trunk, which fit that trunk and no other."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.checkpoint.delta import load_delta, save_delta
from frostline.checkpoint.delta_info import KEY, read_delta_info
from frostline.checkpoint.stored import in_memory
from frostline.checkpoint.tensor_writer import DIGEST, write_tensors
from frostline.errors import CheckpointError, CorruptCheckpoint, NothingSelected
from frostline.tasks import TaskModel

Build = Callable[..., nn.Module]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Stand in for training."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=100 * seed + number))
    return module


def logits(model: nn.Module, *task: str) -> Tensor:
    with torch.no_grad():
        return model.eval()(draw(4, 3, 16, 16, seed=9), *task)


@pytest.fixture
def model(resnet20: Build) -> nn.Module:
    return resnet20()


def test_five_heads_on_one_trunk_are_five_small_files(tmp_path: Path, model: nn.Module) -> None:
    before = fl.snapshot(model)
    expected: list[Tensor] = []
    infos = []
    for number in range(5):
        fill(model.linear, number)
        expected.append(logits(model))
        infos.append(save_delta(model, tmp_path / f"{number}", base=before, name=f"head {number}"))
    whole = tmp_path / "whole"
    write_tensors(whole, {name: in_memory(value) for name, value in model.state_dict().items()}, {})
    head_bytes = sum(p.nbytes for p in model.linear.parameters())
    for number, info in enumerate(infos):
        assert (info.tensors, info.elements, info.nbytes) == (2, 650, head_bytes)
        # What a file has beyond its head are the digests of the trunk: a name and 32 digits for each tensor.
        size = (tmp_path / f"{number}").stat().st_size
        assert size < head_bytes + 100 * len(info.base_entries) + 1000
        assert size < whole.stat().st_size / 50
        assert {i.base_digest for i in infos} == {info.base_digest}
    # One after the other, on one model, in any order, each gives its own logits to the bit.
    for number in (0, 3, 1, 4, 2, 0):
        info = load_delta(model, tmp_path / f"{number}")
        assert info == infos[number]
        assert torch.equal(logits(model), expected[number])


def test_the_same_delta_is_the_same_file(tmp_path: Path, model: nn.Module) -> None:
    save_delta(model, tmp_path / "a", trained="linear")
    save_delta(model, tmp_path / "b", trained=model.linear)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_library_reads_what_is_stored(tmp_path: Path, model: nn.Module) -> None:
    save_delta(model, tmp_path / "a", trained="linear")
    read = safetensors.torch.load_file(tmp_path / "a")
    assert read.keys() == {"linear.weight", "linear.bias"}
    assert torch.equal(read["linear.weight"], model.linear.weight)


@pytest.mark.parametrize("kind", ["snapshot", "model", "state dict"])
def test_every_kind_of_base_gives_what_differs_from_it(tmp_path: Path, model: nn.Module, kind: str) -> None:
    base: Any = {
        "snapshot": lambda: fl.snapshot(model),
        "model": lambda: copy.deepcopy(model),
        "state dict": lambda: state_of(model),
    }[kind]()
    with torch.no_grad():
        model.linear.weight[0, 0] = torch.nextafter(model.linear.weight[0, 0], torch.tensor(9.0))
        model.bn1.running_mean[3] = -0.0
    save_delta(model, tmp_path / "a", base=base)
    assert safetensors.torch.load_file(tmp_path / "a").keys() == {"linear.weight", "bn1.running_mean"}


def test_what_the_base_lacks_or_has_in_another_shape_is_stored(tmp_path: Path, resnet20: Build) -> None:
    base = fl.snapshot(resnet20())
    model = resnet20(num_classes=3)
    model.extra = nn.Linear(2, 2)
    save_delta(model, tmp_path / "a", base=base)
    assert safetensors.torch.load_file(tmp_path / "a").keys() == {
        "linear.weight",
        "linear.bias",
        "extra.weight",
        "extra.bias",
    }


def test_another_base_is_refused_by_name(tmp_path: Path, model: nn.Module) -> None:
    """One running statistic that is off by one unit in the last place, and nothing else."""
    save_delta(model, tmp_path / "a", trained="linear", name="digits")
    original = read_delta_info(tmp_path / "a")
    fill(model.linear, 7)
    with torch.no_grad():
        statistic = model.layer2[1].bn2.running_var
        statistic[5] = torch.nextafter(statistic[5], torch.tensor(math.inf))
    before = state_of(model)
    with pytest.raises(CheckpointError) as caught:
        load_delta(model, tmp_path / "a")
    message = str(caught.value)
    assert "('digits') stands on another base; nothing was changed" in message
    assert f"expected: ResNet20 with digest {original.base_digest}" in message
    assert f"different: 1 of {len(original.base_entries)}: layer2.1.bn2.running_var" in message
    found = message.partition("found: ResNet20 with digest ")[2][:32]
    assert found != original.base_digest
    assert len(found.strip()) == 32
    assert_untouched(model, before)


def test_the_usual_way_says_nothing_about_another_base(tmp_path: Path, model: nn.Module) -> None:
    """The twin: torch loads the head onto whatever trunk there is, and the logits are others."""
    expected = logits(model)
    head = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("linear")}
    with torch.no_grad():
        model.layer2[1].bn2.running_var += 1
    result = model.load_state_dict(head, strict=False)
    assert result.unexpected_keys == []
    assert not torch.equal(logits(model), expected)


def test_at_most_eight_names_are_written_out(tmp_path: Path, model: nn.Module) -> None:
    save_delta(model, tmp_path / "a", trained="linear")
    fill(model.layer1, 1)
    with pytest.raises(CheckpointError, match=r"different: 18 of .*\(\+10 more; read_delta_info"):
        load_delta(model, tmp_path / "a")


def test_a_model_with_more_or_less_than_the_base_is_refused(tmp_path: Path, model: nn.Module) -> None:
    save_delta(model, tmp_path / "a", trained="linear")
    model.adapter = nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match=r"unknown to the delta: 2 of \d+: adapter.weight, adapter.bias"):
        load_delta(model, tmp_path / "a")
    del model.adapter, model.layer1[2]
    with pytest.raises(CheckpointError, match=r"missing in the model: 12 of \d+: layer1.2.conv1.weight"):
        load_delta(model, tmp_path / "a")


def test_a_head_of_another_width_or_dtype_is_refused(tmp_path: Path, resnet20: Build) -> None:
    model = resnet20()
    save_delta(model, tmp_path / "a", trained="linear")
    other = resnet20(num_classes=3)
    other.load_state_dict({n: v for n, v in model.state_dict().items() if "linear" not in n}, strict=False)
    before = state_of(other)
    with pytest.raises(CheckpointError) as caught:
        load_delta(other, tmp_path / "a")
    assert "linear.weight ((10, 64) torch.float32 in the file, (3, 64) torch.float32 in the model)" in str(caught.value)
    assert_untouched(other, before)
    model.linear.half()
    with pytest.raises(CheckpointError, match=r"linear.bias .*float16 in the model"):
        load_delta(model, tmp_path / "a")
    model.linear = nn.Identity()
    with pytest.raises(CheckpointError, match=r"linear.weight .the model has no such tensor"):
        load_delta(model, tmp_path / "a")


def test_heads_beside_each_other_in_one_model(tmp_path: Path, resnet20: Build) -> None:
    trunk = resnet20()
    trunk.linear = nn.Identity()
    model = TaskModel(trunk, {name: fill(nn.Linear(64, 4), i) for i, name in enumerate("abc")})
    expected = {name: logits(model, name) for name in "abc"}
    for name in "ab":
        save_delta(model, tmp_path / name, trained=f"heads.{name}", beside="heads.*", name=name)
    info = read_delta_info(tmp_path / "a")
    assert info.tensors == 2
    assert info.beside == ("heads.b.weight", "heads.b.bias", "heads.c.weight", "heads.c.bias")
    assert all(path.startswith("trunk.") for path in info.base_entries)
    # Onto a model whose heads are all others, and which has one more.
    fresh = TaskModel(copy.deepcopy(trunk), {name: fill(nn.Linear(64, 4), 50) for name in "abc"})
    for name in "ab":
        load_delta(fresh, tmp_path / name)
    assert all(torch.equal(logits(fresh, name), expected[name]) for name in "ab")
    assert not torch.equal(logits(fresh, "c"), expected["c"])
    more = TaskModel(copy.deepcopy(trunk), {name: fill(nn.Linear(64, 4), 50) for name in "ad"})
    with pytest.raises(CheckpointError, match=r"unknown to the delta: 2 of .*heads.d.weight"):
        load_delta(more, tmp_path / "a")
    load_delta(more, tmp_path / "a", beside="heads.d")
    assert torch.equal(logits(more, "a"), expected["a"])
    # Without saying so, the other heads are part of what a delta stands on.
    save_delta(model, tmp_path / "strict", trained="heads.a")
    with pytest.raises(CheckpointError, match=r"different: 2 of .*heads.c.weight, heads.c.bias"):
        load_delta(fresh, tmp_path / "strict")


def test_beside_with_a_base_is_not_stored(tmp_path: Path, resnet20: Build) -> None:
    model = TaskModel(nn.Linear(2, 2), {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    base = fl.snapshot(model)
    fill(model.heads, 3)
    info = save_delta(model, tmp_path / "a", base=base, beside="heads.b")
    assert safetensors.torch.load_file(tmp_path / "a").keys() == {"heads.a.weight", "heads.a.bias"}
    assert info.beside == ("heads.b.weight", "heads.b.bias")


def test_the_optimizer_and_everything_else_stay(tmp_path: Path, model: nn.Module) -> None:
    fill(model.linear, 1)
    save_delta(model, tmp_path / "a", trained="linear")
    target = copy.deepcopy(model)
    fill(target.linear, 2)
    target.train()
    target.layer1.requires_grad_(False)
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    flags = {path: entry.value for path, entry in fl.inventory(target).items() if not entry.is_tensor}
    generator = torch.get_rng_state()
    load_delta(target, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), generator)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in target.parameters()}
    assert {path: entry.value for path, entry in fl.inventory(target).items() if not entry.is_tensor} == flags
    target.linear.weight.sum().backward()
    optimizer.step()
    assert torch.equal(target.linear.weight, model.linear.weight - 0.1)


def test_buffers_go_along_unless_a_state_dict_leaves_them_out(tmp_path: Path) -> None:
    def build() -> nn.Module:
        net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        net[1].register_buffer("mask", torch.zeros(2), persistent=False)
        return net

    model = build()
    with torch.no_grad():
        model[1].running_mean += 3
        model[1].mask += 1
    save_delta(model, tmp_path / "a", trained="1")
    assert safetensors.torch.load_file(tmp_path / "a").keys() == {
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }
    target = build()
    target[0].load_state_dict(model[0].state_dict())
    load_delta(target, tmp_path / "a")
    assert torch.equal(target[1].running_mean, model[1].running_mean)
    assert not target[1].mask.any()


class Tied(nn.Module):
    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def test_tied_tensors_go_together(tmp_path: Path) -> None:
    model, target = fill(Tied(), 1), Tied()
    target.mix.load_state_dict(model.mix.state_dict())
    info = save_delta(model, tmp_path / "a", trained="head")
    assert safetensors.torch.load_file(tmp_path / "a").keys() == {"embed.weight", "head.weight"}
    assert info.tensors == 2
    load_delta(target, tmp_path / "a")
    assert target.head.weight is target.embed.weight
    assert torch.equal(target.embed.weight, model.embed.weight)


def test_tied_tensors_that_cannot_take_two_values_are_left_as_they_were(tmp_path: Path) -> None:
    model, target = fill(Tied(tied=False), 1), Tied()
    target.mix.load_state_dict(model.mix.state_dict())
    save_delta(model, tmp_path / "a", trained=["head", "embed"])
    before = state_of(target)
    with pytest.raises(CheckpointError, match="did not arrive: tensors differ after writing; nothing was changed"):
        load_delta(target, tmp_path / "a")
    assert_untouched(target, before)


class Interrupting(torch.utils._python_dispatch.TorchDispatchMode):
    """Lets some tensors be copied into, and is interrupted at the next, as by Ctrl-C."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.writes = writes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.writes -= 1
            if self.writes == -1:
                raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_whatever_interrupts_it_the_model_is_as_it_was(tmp_path: Path, writes: int) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    save_delta(model, tmp_path / "a", trained=["1", "2"])
    fill(model[1], 1)
    fill(model[2], 2)
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt), Interrupting(writes):
        load_delta(model, tmp_path / "a")
    assert_untouched(model, before)


@pytest.mark.parametrize(("level", "part", "stored"), [("state", "1", "1"), ("grad", "1", "1"), ("stats", "1", "1")])
def test_what_is_held_is_not_written(tmp_path: Path, level: str, part: str, stored: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for tensor in (model[1].weight, model[1].running_mean):
            tensor.add_(1)
    save_delta(model, tmp_path / "a", trained=stored)
    with torch.no_grad():
        for tensor in (model[1].weight, model[1].running_mean):
            tensor.sub_(1)
    hold = fl.freeze(model, part, level=level)
    before = state_of(model)
    with pytest.raises(CheckpointError) as caught:
        load_delta(model, tmp_path / "a")
    held = {"state": ["1.weight", "1.running_mean"], "grad": ["1.weight"], "stats": ["1.running_mean"]}[level]
    line = next(line for line in str(caught.value).split("\n") if "found" in line)
    assert line == "  found: " + ", ".join(f"{path} (held, level {level})" for path in held)
    assert_untouched(model, before)
    hold.verify()
    hold.thaw()
    load_delta(model, tmp_path / "a")
    assert torch.equal(model[1].running_mean, torch.ones(2))


def test_a_held_trunk_is_no_obstacle(tmp_path: Path, model: nn.Module) -> None:
    save_delta(model, tmp_path / "a", trained="linear")
    fill(model.linear, 1)
    hold = fl.freeze(model, "*", "!linear")
    load_delta(model, tmp_path / "a")
    hold.verify()
    # What is held and has the very values already is not written.
    fl.freeze(model, "linear")
    load_delta(model, tmp_path / "a")


def test_names_without_the_tokens_of_wrappers(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return fill(nn.ModuleDict({"trunk": nn.Linear(2, 2), "head": nn.Linear(2, 2)}), 1)

    compiled = build()
    compiled["trunk"] = torch.compile(compiled["trunk"], backend="eager")
    assert "trunk._orig_mod.weight" in compiled.state_dict()
    fill(compiled["head"], 2)
    save_delta(compiled, tmp_path / "a", base=fl.snapshot(build()))
    target = build()
    load_delta(target, tmp_path / "a")
    assert torch.equal(target["head"].weight, compiled["head"].weight)


def test_a_child_called_module_keeps_its_name(tmp_path: Path) -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "trunk": nn.Linear(2, 2)})
    save_delta(model, tmp_path / "a", trained="module")
    expected = model["module"].weight.clone()
    fill(model["module"], 1)
    load_delta(model, tmp_path / "a")
    assert torch.equal(model["module"].weight, expected)


class Extra(nn.Linear):
    note = "a"

    def get_extra_state(self) -> object:
        return {"note": self.note}

    def set_extra_state(self, state: Any) -> None:
        self.note = state["note"]


@pytest.mark.parametrize("kind", ["snapshot", "model", "state dict"])
def test_extra_states_are_part_of_the_base(tmp_path: Path, kind: str) -> None:
    model = nn.Sequential(Extra(2, 2), nn.Linear(2, 2))
    base: Any = {
        "snapshot": lambda: fl.snapshot(model),
        "model": lambda: copy.deepcopy(model),
        "state dict": lambda: copy.deepcopy(model.state_dict()),
    }[kind]()
    fill(model[1], 1)
    save_delta(model, tmp_path / "a", base=base)
    load_delta(model, tmp_path / "a")
    model[0].note = "b"
    with pytest.raises(CheckpointError, match=r"different: 1 of 3: 0.extra_state"):
        load_delta(model, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"extra states differ from the base.*0.extra_state"):
        save_delta(model, tmp_path / "b", base=base)


# What cannot be saved or read.


def test_exactly_one_of_base_and_trained(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(CheckpointError, match="neither of base and trained"):
        save_delta(model, tmp_path / "a")
    with pytest.raises(CheckpointError, match="both of base and trained"):
        save_delta(model, tmp_path / "a", base=fl.snapshot(model), trained="linear")


def test_nothing_trained_is_an_error(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(CheckpointError, match="no tensor differs from the base"):
        save_delta(model, tmp_path / "a", base=fl.snapshot(model))
    with pytest.raises(NothingSelected):
        save_delta(model, tmp_path / "a", trained="lin")
    with pytest.raises(CheckpointError, match="the base has none of the model's tensors"):
        save_delta(model, tmp_path / "a", base={f"module.{n}": v for n, v in model.state_dict().items()})
    assert os.listdir(tmp_path) == []


def test_a_whole_checkpoint_is_no_delta(tmp_path: Path, model: nn.Module) -> None:
    torch.save(model.state_dict(), tmp_path / "a.pt")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        with pytest.raises(CheckpointError, match="is no delta"):
            load_delta(model, tmp_path / name)
        with pytest.raises(CheckpointError, match="is no delta"):
            read_delta_info(tmp_path / name)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_delta(model, tmp_path / "none")


def test_a_damaged_delta_changes_nothing(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "a"
    save_delta(model, path, trained="linear")
    fill(model.linear, 1)
    before = state_of(model)
    content = path.read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1], content[:100], b""):
        path.write_bytes(damaged)
        with pytest.raises(CorruptCheckpoint):
            load_delta(model, path)
        assert_untouched(model, before)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(base_digest="0" * 32),
        lambda data: data["base_entries"].update(new="0"),
        lambda data: data["base_entries"].update(new=[]),
        lambda data: data.update(base_entries=[]),
        lambda data: data.update(tensors="2"),
        lambda data: data.update(tensors=True),
        lambda data: data.update(nbytes=-1),
        lambda data: data.update(beside=None),
        lambda data: data.update(beside=[3]),
        lambda data: data.update(more=1),
        lambda data: data.pop("name"),
        lambda data: data.pop("schema_version"),
    ],
)
def test_a_header_that_is_not_ours_is_refused(
    tmp_path: Path, model: nn.Module, change: Callable[[dict[str, Any]], object]
) -> None:
    path = tmp_path / "a"
    save_delta(model, path, trained="linear")
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert read_delta_info(metadata).tensors == 2
    data = json.loads(metadata[KEY])
    change(data)
    with pytest.raises(CorruptCheckpoint, match="damaged header"):
        read_delta_info({KEY: json.dumps(data)})
    for text in ("", "[]", "3", "[" * 100_000, '{"schema_version": 1}'):
        with pytest.raises(CorruptCheckpoint, match="damaged header"):
            read_delta_info({KEY: text})
    with pytest.raises(CheckpointError, match="schema version 2, this version reads 1"):
        read_delta_info({KEY: json.dumps(json.loads(metadata[KEY]) | {"schema_version": 2})})


def test_a_delta_that_stores_what_it_stands_on_is_damaged(tmp_path: Path, model: nn.Module) -> None:
    save_delta(model, tmp_path / "a", trained="linear")
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != DIGEST}
    write_tensors(tmp_path / "b", {"conv1.weight": in_memory(torch.zeros(16, 3, 3, 3))}, metadata)
    with pytest.raises(CorruptCheckpoint, match="not those that were saved"):
        load_delta(model, tmp_path / "b")


def test_one_line_with_sizes(tmp_path: Path, model: nn.Module) -> None:
    save_delta(model, tmp_path / "a.safetensors", trained="linear", name="di\x1bgits")
    info = read_delta_info(tmp_path / "a.safetensors")
    entries = len(model.state_dict()) - 2
    size = sum(v.nbytes for n, v in model.state_dict().items() if "linear" not in n) / 1e6
    assert str(info) == (
        r"a.safetensors 'di\x1bgits': 2 tensors, 650 elements, 2.6 kB; "
        f"on ResNet20 {info.base_digest[:12]} ({entries} tensors, {size:.3g} MB)"
    )
    assert json.loads(json.dumps(info.to_json()))["schema_version"] == 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO CUDA DEVICE: deltas across devices are not tested")
def test_a_delta_from_one_device_loads_onto_another(tmp_path: Path, model: nn.Module) -> None:
    expected = state_of(model)
    save_delta(model.cuda(), tmp_path / "a", trained="linear")
    fill(model.linear.cpu(), 1)
    model.linear.cuda()
    load_delta(model, tmp_path / "a")
    assert torch.equal(model.linear.weight.cpu(), expected["linear.weight"])
