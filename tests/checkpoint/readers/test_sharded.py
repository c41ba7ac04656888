"""Checkpoints in several files: all shards, each tensor once, and nothing from outside of the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from frostline.checkpoint.readers.open_file import read_contents
from frostline.errors import CheckpointError, CorruptCheckpoint, UnsafeCheckpoint

ONE = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
TWO = {"c": torch.zeros(0), "d": torch.tensor(5)}
NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def write(folder: Path, weight_map: dict[str, str] | None = None, parts: Any = (ONE, TWO)) -> Path:
    for name, part in zip(NAMES, parts, strict=True):
        safetensors.torch.save_file(part, folder / name, {"format": "pt"})
    default = {key: name for name, part in zip(NAMES, parts, strict=True) for key in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map or default}))
    return folder / INDEX


def equal(root: Any, expected: dict[str, Tensor]) -> bool:
    return root.keys() == expected.keys() and all(torch.equal(root[name].read(), expected[name]) for name in expected)


@pytest.mark.parametrize("by", ["index", "folder", "index of another name"])
def test_an_index_and_its_shards_are_one_checkpoint(by: str, tmp_path: Path):
    index = write(tmp_path)
    if by == "index of another name":
        index = index.rename(tmp_path / "whatever")
    found = read_contents(tmp_path if by == "folder" else index)
    assert found.format == "sharded safetensors"
    assert found.files == (index, *(tmp_path / name for name in NAMES))
    assert found.metadata == {"format": "pt"}
    assert equal(found.root, ONE | TWO)


def test_the_order_is_that_of_the_index(tmp_path: Path):
    shards = {"d": NAMES[1], "b": NAMES[0], "c": NAMES[1], "a": NAMES[0]}
    assert list(read_contents(write(tmp_path, shards)).root) == list("dbca")  # type: ignore[call-overload]


def test_shards_of_torch(tmp_path: Path):
    files = {"pytorch_model-00001-of-00002.bin": ONE, "pytorch_model-00002-of-00002.bin": TWO}
    for name, part in files.items():
        torch.save(part, tmp_path / name)
    shards = {key: name for name, part in files.items() for key in part}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    found = read_contents(tmp_path)
    assert found.format == "sharded torch"
    assert equal(found.root, ONE | TWO)
    # Storages have the same numbers in every file.
    assert len({stored.place for stored in found.root.values()}) == 4  # type: ignore[attr-defined]


def test_a_shard_that_wants_code_is_refused(tmp_path: Path):
    torch.save({"a": torch.ones(1), "b": os.system}, tmp_path / "x.bin")
    (tmp_path / "i.index.json").write_text(json.dumps({"weight_map": {"a": "x.bin"}}))
    with pytest.raises(UnsafeCheckpoint, match="system"):
        read_contents(tmp_path)


def test_shards_that_are_missing_are_all_named(tmp_path: Path):
    index = write(tmp_path, {"a": NAMES[0], "x": "gone-1.safetensors", "y": "gone-2.safetensors"})
    (tmp_path / "gone-2.safetensors").symlink_to("../blobs/abc")
    with pytest.raises(CheckpointError, match="is not whole: 2 of 3 shards cannot be found") as caught:
        read_contents(index)
    assert "gone-1.safetensors (does not exist)" in str(caught.value)
    assert "gone-2.safetensors (is a symbolic link to ../blobs/abc, which does not exist)" in str(caught.value)


def test_symbolic_links_are_followed_as_model_hubs_store_shards(tmp_path: Path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write(tmp_path / "snapshot")
    for number, name in enumerate((*NAMES, INDEX)):
        (tmp_path / "snapshot" / name).rename(tmp_path / "blobs" / str(number))
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{number}")
    assert equal(read_contents(tmp_path / "snapshot").root, ONE | TWO)
    assert equal(read_contents(tmp_path / "snapshot" / INDEX).root, ONE | TWO)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "C:x", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path):
    with pytest.raises(CorruptCheckpoint, match="names a shard that is not a file beside it"):
        read_contents(write(tmp_path, {"a": name}))


@pytest.mark.parametrize("shard", [7, None, ["x"]])
def test_shards_that_are_no_names_are_refused(shard: Any, tmp_path: Path):
    with pytest.raises(CorruptCheckpoint, match="names a shard that is not a file beside it"):
        read_contents(write(tmp_path, {"a": shard}))


def test_a_shard_that_is_no_file_is_never_opened(tmp_path: Path):
    index = write(tmp_path)
    (tmp_path / NAMES[1]).unlink()
    os.mkfifo(tmp_path / NAMES[1])  # opening it would block for ever
    with pytest.raises(CheckpointError, match="is a pipe, not a file"):
        read_contents(index)
    (tmp_path / NAMES[1]).unlink()
    (tmp_path / NAMES[1]).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="is a device, not a file"):
        read_contents(index)
    (tmp_path / NAMES[1]).unlink()
    (tmp_path / NAMES[1]).mkdir()
    with pytest.raises(CheckpointError, match="is a folder, not a file"):
        read_contents(index)
    (tmp_path / NAMES[1]).rmdir()
    (tmp_path / NAMES[1]).symlink_to(NAMES[1])
    with pytest.raises(CheckpointError, match="a symbolic link that leads back to itself"):
        read_contents(index)


@pytest.mark.parametrize(
    ("weight_map", "found"),
    [
        ({"a": NAMES[0], "b": NAMES[0], "c": NAMES[1]}, "not in the index: d"),
        ({"a": NAMES[0], "b": NAMES[1], "c": NAMES[1], "d": NAMES[1]}, "not where the index says: b"),
        ({**dict.fromkeys(ONE, NAMES[0]), **dict.fromkeys(TWO, NAMES[1]), "e": NAMES[1]}, "index says: e"),
    ],
)
def test_an_index_that_does_not_fit_its_shards(weight_map: dict[str, str], found: str, tmp_path: Path):
    with pytest.raises(CorruptCheckpoint, match=found):
        read_contents(write(tmp_path, weight_map))


def test_a_tensor_in_two_shards(tmp_path: Path):
    with pytest.raises(CorruptCheckpoint, match=rf"the tensor a is in two shards\n  found: {NAMES[1]}, {NAMES[0]}"):
        read_contents(write(tmp_path, parts=(ONE, {"a": torch.ones(1)})))


def test_a_shard_that_holds_something_else(tmp_path: Path):
    torch.save({"a": torch.ones(1), "epoch": 3}, tmp_path / "x.bin")
    (tmp_path / "i.index.json").write_text(json.dumps({"weight_map": {"a": "x.bin"}}))
    with pytest.raises(CorruptCheckpoint, match="something other than tensors under their names\n  found: epoch"):
        read_contents(tmp_path)


def test_an_index_of_indexes_goes_no_deeper(tmp_path: Path):
    (tmp_path / "i.index.json").write_text(json.dumps({"weight_map": {"a": "i.index.json"}}))
    with pytest.raises(CheckpointError):
        read_contents(tmp_path)


@pytest.mark.parametrize(
    "text", ["{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": 1}', '{"a": {"b": 1}}', "{"]
)
def test_json_that_is_no_index(text: str, tmp_path: Path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CorruptCheckpoint, match=r"no index of shards|an index that cannot be read"):
        read_contents(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"weight_map": {"a": "x", "a": "y"}}', '{"\ud800'])
def test_json_that_cannot_be_read(text: str, tmp_path: Path):
    (tmp_path / "a.json").write_text(text, errors="surrogatepass")
    with pytest.raises(CorruptCheckpoint):
        read_contents(tmp_path / "a.json")
