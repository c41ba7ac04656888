"""An open checkpoint: clean names, shapes at hand, each choice said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from frostline.checkpoint import compare, open_checkpoint, verify
from frostline.checkpoint.opened import Checkpoint
from frostline.errors import CheckpointError
from frostline.runs.tensor_file import serialize
from frostline.runs.training_state import pack

TENSORS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.count": torch.tensor(7)}


def save(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


def holds(found: Checkpoint, expected: dict[str, torch.Tensor]) -> bool:
    read = found.read_all()
    return list(read) == list(expected) and all(torch.equal(read[name], expected[name]) for name in expected)


# Where it may come from


def test_a_file_a_path_as_text_a_state_dict_and_a_model(tmp_path: Path):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    path = save(model.state_dict(), tmp_path / "a.pt")
    for source in (path, str(path), model.state_dict(), model):
        found = open_checkpoint(source)
        assert holds(found, model.state_dict())
        assert found.shapes == {name: tuple(value.shape) for name, value in model.state_dict().items()}
        assert found.outside == {}
        assert found.originals == {name: name for name in model.state_dict()}
    assert open_checkpoint(path).title == "a.pt"
    assert open_checkpoint(path).files == (path,)
    assert open_checkpoint(model).title == "Sequential"
    assert open_checkpoint(model).files == ()
    assert open_checkpoint({"a": torch.ones(1)}).path is None


def test_a_model_gives_what_a_file_of_it_would_have_and_no_more():
    model = nn.Module()
    model.register_buffer("kept", torch.ones(1))
    model.register_buffer("computed", torch.ones(1), persistent=False)
    wrapped = nn.DataParallel(nn.Sequential(model))
    assert list(open_checkpoint(wrapped).tensors) == ["0.kept"]


def test_tensors_of_a_live_state_dict_are_not_handed_out(tmp_path: Path):
    state = {"a": torch.ones(2)}
    open_checkpoint(state).read_all()["a"].zero_()
    assert torch.equal(state["a"], torch.ones(2))


def test_values_are_those_of_when_they_are_asked_for():
    state = {"a": torch.ones(2)}
    found = open_checkpoint(state)
    state["a"].zero_()
    assert torch.equal(found.tensors["a"].read(), torch.zeros(2))


def test_the_model_of_a_checkpoint_of_a_run_is_what_is_read(tmp_path: Path):
    tensors = {"model/fc.bias": torch.ones(2), "model/bn.count": torch.tensor(7), "optimizer/0/step": torch.ones(1)}
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(tensors, path, {"frostline.digest": "0"})
    for take in (None, "model"):
        found = open_checkpoint(path, take=take)
        assert set(found.tensors) == {"fc.bias", "bn.count"}
        assert found.choices() == ["container 'model'"]
    assert set(open_checkpoint(path, take="optimizer").tensors) == {"0/step"}
    assert set(open_checkpoint(path, take="model.fc").tensors) == {"bias"}
    # The twin: a file of another making, whose names happen to begin so, or one of ours with any other name.
    for others, metadata in (({}, {"by": "hand"}), ({"fc.bias": torch.ones(1)}, {"frostline.digest": "0"})):
        safetensors.torch.save_file(tensors | others, path, metadata)
        found = open_checkpoint(path)
        assert (set(found.tensors), found.container) == ({*tensors, *others}, ())


def test_a_run_can_be_compared_with_its_own_checkpoints(tmp_path: Path):
    """What a run writes by the way and at its end, whatever writes it."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    tensors, metadata = pack(model, optimizer)
    (tmp_path / "during.safetensors").write_bytes(serialize(tensors, metadata))
    (tmp_path / "end.safetensors").write_bytes(serialize(model.state_dict(), {"format": "pt"}))
    during, end = (open_checkpoint(tmp_path / f"{name}.safetensors") for name in ("during", "end"))
    assert str(compare(during.tensors, end.tensors)) == "all 7 tensors equal to the bit"
    assert verify(during.path or "", end.path or "").holds


def test_safetensors_have_no_containers(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"ema": torch.ones(1), "model.w": torch.ones(2)}, path, {"by": "hand"})
    found = open_checkpoint(path)
    assert set(found.tensors) == {"ema", "model.w"}
    assert (found.format, found.container, dict(found.metadata)) == ("safetensors", (), {"by": "hand"})
    below = open_checkpoint(path, take="model")
    assert set(below.tensors) == {"w"}
    assert (below.container, below.subtree) == ((), "model")


# Containers and wrappers


@pytest.mark.parametrize(
    ("value", "container"),
    [
        ({"state_dict": TENSORS, "epoch": 3}, ("state_dict",)),
        ({"model": {"state_dict": TENSORS}}, ("model", "state_dict")),
        (TENSORS, ()),
    ],
)
def test_containers_are_unwrapped_and_said(value: Any, container: tuple[str, ...], tmp_path: Path):
    for source in (value, save(value, tmp_path / "a.pt")):
        found = open_checkpoint(source)
        assert holds(found, TENSORS)
        assert found.container == container
        assert found.choices() == ([f"container {'.'.join(container)!r}"] if container else [])


def test_entries_beside_the_tensors_are_named(tmp_path: Path):
    assert open_checkpoint(save({**TENSORS, "epoch": 3}, tmp_path / "a.pt")).beside == ("epoch",)


def test_flat_shards_are_no_tensors_of_a_model(tmp_path: Path):
    path = save({"a._flat_param": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"holds flat shards of FSDP.*: a\._flat_param\n  fix:"):
        open_checkpoint(path)
    assert list(open_checkpoint({"my_flat_param": torch.ones(1)}).tensors) == ["my_flat_param"]


@pytest.mark.parametrize(
    ("names", "prefix", "stripped", "said"),
    [
        (["module.a", "module.b"], "module.", ("module",), ["prefix 'module.' stripped"]),
        (["module._orig_mod.a"], "module._orig_mod.", ("_orig_mod", "module"), None),
        (["module.a", "b"], "", ("module",), ["'module' stripped from names"]),
        (["module.a", "_orig_mod.b"], "", ("_orig_mod", "module"), ["'_orig_mod', 'module' stripped from names"]),
        (["c.module.a"], "", ("module",), ["'module' stripped from names"]),
        (["a", "b"], "", (), []),
    ],
)
def test_a_prefix_is_told_only_if_it_is_all_that_was_taken_out(
    names: list[str], prefix: str, stripped: tuple[str, ...], said: list[str] | None
):
    found = open_checkpoint(dict.fromkeys(names, torch.ones(1)))
    assert (found.prefix, found.stripped) == (prefix, stripped)
    assert said is None or found.choices() == said
    assert list(found.originals.values()) == names


def test_wrapper_names_of_the_model_stay():
    found = open_checkpoint({"module.module.a": torch.ones(1)}, keep={"module"})
    assert (list(found.tensors), found.stripped) == (["module.module.a"], ())


# Parts


NESTED = {
    "module.backbone.conv.weight": torch.ones(2),
    "module.backbone.bn.weight": torch.ones(3),
    "module.backbone2.w": torch.ones(4),
    "module.head.weight": torch.ones(5),
    "module.backbone": torch.ones(6),
}


def test_a_part_is_taken_by_its_path_and_the_rest_is_told():
    found = open_checkpoint({"teacher": NESTED, "student": {"x.w": torch.ones(1)}}, take="teacher.backbone")
    assert found.shapes == {"conv.weight": (2,), "bn.weight": (3,)}
    assert {name: entry.shape for name, entry in found.outside.items()} == {
        "backbone2.w": (4,),
        "head.weight": (5,),
        "backbone": (6,),  # a tensor of that very name lies beside the module
    }
    assert (found.container, found.subtree) == (("teacher",), "backbone")
    assert found.originals == {
        "conv.weight": "module.backbone.conv.weight",
        "bn.weight": "module.backbone.bn.weight",
    }
    assert found.whole_name("conv.weight") == "backbone.conv.weight"
    assert found.choices() == [
        "container 'teacher'",
        "prefix 'module.' stripped",
        "took 'backbone', left 3 tensors beside it",
    ]


def test_a_part_that_is_not_there_names_what_is():
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(NESTED, take="backbon")
    assert "has nothing under take='backbon'\n  found: backbone" in str(caught.value)
    with pytest.raises(CheckpointError, match="found: no names with dots"):
        open_checkpoint({"a": torch.ones(1)}, take="a")


def test_names_with_control_characters_are_escaped_in_every_choice(tmp_path: Path):
    nasty = "a\x1b[31m"
    found = open_checkpoint({nasty: {f"{nasty}.{nasty}.w": torch.ones(1)}}, take=f"{nasty}.{nasty}")
    assert found.container == (nasty,)
    assert all(text.isprintable() for text in found.choices())
    assert len(found.choices()) == 2


@pytest.mark.real_data
def test_a_real_legacy_checkpoint_that_was_saved_on_cuda(resnet20_file: Path, resnet20: Callable[..., nn.Module]):
    with pytest.raises(RuntimeError, match="CUDA"):  # what torch says without a map
        torch.load(resnet20_file, weights_only=True)
    found = open_checkpoint(resnet20_file)
    assert found.choices() == ["container 'state_dict'", "prefix 'module.' stripped"]
    assert set(found.beside) == set()
    reference = torch.load(resnet20_file, weights_only=True, map_location="cpu")["state_dict"]
    assert list(found.originals.values()) == list(reference)
    assert holds(found, {name.removeprefix("module."): value for name, value in reference.items()})
    counters = {name for name in resnet20().state_dict() if name.endswith("num_batches_tracked")}
    assert len(found.tensors) == 97
    assert set(found.tensors) == set(resnet20().state_dict()) - counters
