"""A model by name with all of a checkpoint's values, whatever its number of classes; and back into a file."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from frostline.checkpoint import open_checkpoint
from frostline.compat import import_torchvision
from frostline.errors import CannotWrite, CheckpointError, ModelError, StorageFull
from frostline.finetune import checkpointed_model as room
from frostline.finetune.checkpointed_model import count_outputs, load_model, save_model

pytestmark = pytest.mark.filterwarnings("ignore::frostline.errors.TorchvisionWithoutOperators")
NETS = """
from torch import nn

def mlp(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.BatchNorm1d(7), nn.Linear(7, num_classes))

def all_convolutions(num_classes=2):
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, num_classes, 1))

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

def two_heads(num_classes):
    return nn.ModuleDict({"a": nn.Linear(2, num_classes), "b": nn.Linear(2, num_classes)})
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "nets_of_loading_tests.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import nets_of_loading_tests  # pyright: ignore[reportMissingImports]

    yield nets_of_loading_tests
    sys.modules.pop("nets_of_loading_tests", None)


def saved(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("factory", ["mlp", "all_convolutions"])
@pytest.mark.parametrize("classes", [2, 7, 11])
def test_a_factory_is_called_with_the_number_of_classes_that_the_checkpoint_has(
    nets: Any, tmp_path: Path, factory: str, classes: int
):
    """Seven is what it is asked for first, and the width of another layer."""
    source = getattr(nets, factory)(classes)
    loaded = load_model(f"nets_of_loading_tests:{factory}", saved(source, tmp_path / "a.pth"))
    mine = loaded.model.state_dict()
    assert mine.keys() == source.state_dict().keys()
    assert all(torch.equal(mine[name], value) for name, value in source.state_dict().items())
    assert loaded.start is not None
    assert loaded.start.summary in loaded.source


def test_a_factory_without_a_checkpoint_is_told_the_number(nets: Any):
    assert load_model("nets_of_loading_tests:mlp", None, num_classes=5).model[-1].out_features == 5
    assert load_model("nets_of_loading_tests:fixed", None, num_classes=5).model[-1].out_features == 3


def test_several_widths_where_the_number_of_classes_stands_are_refused(nets: Any, tmp_path: Path):
    other = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 4)})
    with pytest.raises(ModelError, match="several widths in that place: 3, 4"):
        load_model("nets_of_loading_tests:two_heads", saved(other, tmp_path / "a.pth"))


def test_a_model_of_a_library_gets_the_classifier_of_the_checkpoint(tmp_path: Path):
    import_torchvision()
    timm: Any = pytest.importorskip("timm")
    source = timm.create_model("test_resnet", num_classes=4)
    loaded = load_model("timm/test_resnet", saved(source, tmp_path / "a.pth"))
    mine = loaded.model.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in source.state_dict().items())


def test_a_width_that_is_asked_for_counts_more_than_the_checkpoints(nets: Any, tmp_path: Path):
    import_torchvision()
    assert room.build_to_fit("timm/resnet10t", None, width=7).model.get_submodule("fc").out_features == 7
    path = saved(room.build_to_fit("nets_of_loading_tests:mlp", None, width=5).model, tmp_path / "five.safetensors")
    model = room.build_to_fit("nets_of_loading_tests:mlp", path, width=3).model
    assert {parameter.shape[0] for parameter in model.parameters()} >= {3}
    assert 5 not in {parameter.shape[0] for parameter in model.parameters()}


def test_the_classifier_of_a_checkpoint_is_found_behind_a_prefix(tmp_path: Path):
    import_torchvision()
    model = nn.Module()
    model.model = room.build_to_fit("timm/resnet10t", None, width=7).model
    path = saved(model, tmp_path / "lightning.safetensors")
    loaded = load_model("timm/resnet10t", path)
    assert loaded.model.get_submodule("fc").out_features == 7


def test_a_checkpoint_without_a_classifier_is_refused_rather_than_left_random(tmp_path: Path):
    import_torchvision()
    timm: Any = pytest.importorskip("timm")
    trunk = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(CheckpointError, match=r"2 not in the checkpoint:\n    - fc.\{weight,bias\} \(2\)"):
        load_model("timm/test_resnet", saved(trunk, tmp_path / "a.pth"))


def test_random_weights_are_refused_unless_they_will_do():
    with pytest.raises(ModelError, match="random weights, of which there is nothing to say"):
        load_model("timm/test_resnet", None)
    assert load_model("timm/test_resnet", None, random_weights=True).start is None


def test_the_global_generator_is_given_back(nets: Any):
    before = torch.random.get_rng_state()
    load_model("nets_of_loading_tests:mlp", None)
    assert torch.equal(before, torch.random.get_rng_state())


def test_outputs_are_counted_without_a_trace():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 6)).train()
    assert count_outputs(model, (2, 2)) == 6
    assert model.training
    assert model[1].num_batches_tracked == 0
    assert count_outputs(nn.Conv2d(3, 6, 1), (2, 2)) is None
    with pytest.raises(ModelError, match=r"images of shape \(2, 3, 4, 4\)\n.*\n  fix: --image-size N"):
        count_outputs(model, (4, 4))


def test_what_is_saved_is_read_back_to_the_bit(tmp_path: Path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[1].register_buffer("scratch", torch.ones(1), persistent=False)
    save_model(model, tmp_path / "a.safetensors", {"made": "here"})
    read = open_checkpoint(tmp_path / "a.safetensors").read_all()
    assert read.keys() == model.state_dict().keys()
    assert all(torch.equal(read[name], value) for name, value in model.state_dict().items())
    assert not list(tmp_path.glob(".*"))


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"old")

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(room, "replace_file", full)
    with pytest.raises(StorageFull, match="no space left on the device"):
        save_model(nn.Linear(1, 1), target, {})
    assert target.read_bytes() == b"old"
    monkeypatch.undo()
    with pytest.raises(CannotWrite, match="cannot be written"):
        save_model(nn.Linear(1, 1), tmp_path / "nowhere" / "a.safetensors", {})
