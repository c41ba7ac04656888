"""Which file of a folder is its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from frostline.checkpoint.readers.open_file import read_contents
from frostline.errors import CheckpointError


def put(folder: Path, *names: str) -> None:
    """Files that each hold one tensor of their own name."""
    for name in names:
        if name.endswith(".safetensors"):
            safetensors.torch.save_file({name: torch.ones(1)}, folder / name)
        else:
            torch.save({name: torch.ones(1)}, folder / name)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("only.pth",), "only.pth"),
        (("model.safetensors", "optimizer.pt", "training_args.bin"), "model.safetensors"),
        (("pytorch_model.bin", "optimizer.pt", "other.safetensors"), "pytorch_model.bin"),
        (("model-00001-of-00001.safetensors", "last.ckpt", "model.safetensors"), "model.safetensors"),
    ],
)
def test_the_checkpoint_of_a_folder(names: tuple[str, ...], chosen: str, tmp_path: Path):
    put(tmp_path, *names)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    put(tmp_path / "checkpoints", "epoch-1.pt", "epoch-2.pt")
    found = read_contents(tmp_path)
    assert found.files == (tmp_path / chosen,)
    assert list(found.root) == [chosen]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "names",
    [
        ("a.pth", "b.pth"),
        ("model.safetensors", "pytorch_model.bin"),
        ("a.safetensors.index.json", "b.bin.index.json", "model.safetensors"),
        ("a-00001-of-00001.pt", "b-00001-of-00001.pt"),
        ("a-00001-of-00001.pt", "last.pt"),
    ],
)
def test_several_that_could_be_it_are_named(names: tuple[str, ...], tmp_path: Path):
    put(tmp_path, *names)
    with pytest.raises(CheckpointError, match=r"holds \d files that could be the checkpoint") as caught:
        read_contents(tmp_path)
    candidates = [name for name in names if name.endswith("index.json")] or names
    assert all(name in str(caught.value) for name in candidates)


def test_shards_without_an_index_are_joined_when_they_are_complete(tmp_path: Path):
    names = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    put(tmp_path, *names)
    found = read_contents(tmp_path)
    assert found.format == "sharded safetensors"
    assert list(found.root) == names  # type: ignore[call-overload]
    (tmp_path / names[1]).unlink()
    with pytest.raises(CheckpointError, match="is not whole: 1 of 3 shards cannot be found") as caught:
        read_contents(tmp_path)
    assert f"missing: {names[1]} (does not exist)" in str(caught.value)


def test_a_count_of_shards_that_nobody_can_mean(tmp_path: Path):
    put(tmp_path, "model-00001-of-99999.safetensors")
    with pytest.raises(CheckpointError, match="is not whole: 100 of 99999"):
        read_contents(tmp_path)


def test_files_of_torch_distributed_checkpoint_without_their_index(tmp_path: Path):
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"holds 1 files of torch\.distributed\.checkpoint, and no \.metadata"):
        read_contents(tmp_path)


def test_a_folder_without_a_checkpoint(tmp_path: Path):
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint\n  expected: one file of \.bin, "):
        read_contents(tmp_path)


def test_a_folder_of_a_finetuning_run(tmp_path: Path):
    put(tmp_path, "model.safetensors")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "checkpoints").mkdir()
    root: Any = read_contents(str(tmp_path)).root
    assert torch.equal(root["model.safetensors"].read(), torch.ones(1))
