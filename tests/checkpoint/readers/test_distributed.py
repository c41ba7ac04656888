"""Folders of torch.distributed.checkpoint, read in one process and without a process group."""

from __future__ import annotations

import os
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import frostline as fl
from frostline.checkpoint.readers import distributed
from frostline.checkpoint.readers.open_file import read_contents
from frostline.errors import CheckpointError, CorruptCheckpoint, FrostlineError, UnsafeCheckpoint
from frostline.state.digest import digest

Boxes = list[tuple[tuple[int, ...], tuple[int, ...]]]


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def save(state: dict[str, Any], folder: Path, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, **options), no_dist=True)


def write_shards(folder: Path, tensors: dict[str, tuple[torch.Tensor, Boxes]], alter: Any = None) -> None:
    """What several processes would write: tensors in boxes, each box at its own place of one of two files."""
    folder.mkdir(exist_ok=True)
    described: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    files = {f"__{rank}_0.distcp": (folder / f"__{rank}_0.distcp").open("wb") for rank in range(2)}
    for name, (tensor, boxes) in tensors.items():
        chunks: list[ChunkStorageMetadata] = []
        for number, (offsets, sizes) in enumerate(boxes):
            part = tensor
            for dimension, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
                part = part.narrow(dimension, offset, size)
            file = f"__{number % 2}_0.distcp"
            begin = files[file].tell()
            torch.save(part.clone(), files[file])
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            places[MetadataIndex(name, offsets, number)] = _StorageInfo(file, begin, files[file].tell() - begin)
        properties = TensorProperties(dtype=tensor.dtype)
        described[name] = TensorStorageMetadata(properties, tensor.shape, chunks)
    for each in files.values():
        each.close()
    metadata = Metadata(described, {name: (name,) for name in described}, places)
    if alter is not None:
        alter(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def torch_reads(folder: Path, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {name: torch.zeros_like(value) for name, value in like.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(found, checkpoint_id=folder, no_dist=True)
    return found


ROWS: Boxes = [((0, 0), (2, 3)), ((2, 0), (2, 3)), ((4, 0), (1, 3))]
COLUMNS: Boxes = [((0, 0), (5, 2)), ((0, 2), (5, 1))]
GRID: Boxes = [((0, 0), (3, 2)), ((0, 2), (3, 1)), ((3, 0), (2, 2)), ((3, 2), (2, 1))]
# Cut by no dimension first: nothing that a mesh makes, and sound all the same.
WHIRL: Boxes = [((0, 0), (3, 1)), ((3, 0), (2, 2)), ((0, 1), (2, 2)), ((2, 2), (3, 1)), ((2, 1), (1, 1))]


class TestWhatTorchWrote:
    @pytest.mark.parametrize("kind", [SerializationFormat.TORCH_SAVE, SerializationFormat.SAFETENSORS])
    def test_names_shapes_dtypes_and_values(self, kind: SerializationFormat, tmp_path: Path):
        state = build().state_dict() | {"half": torch.randn(3, 5).bfloat16(), "none": torch.zeros(0, 4)}
        save(state, tmp_path, serialization_format=kind)
        found = fl.checkpoint.open_checkpoint(tmp_path)
        assert found.format == "torch.distributed.checkpoint"
        assert list(found.tensors) == list(state)
        for name, value in state.items():
            read = found.tensors[name].read()
            assert (read.dtype, read.shape) == (value.dtype, value.shape)
            assert torch.equal(read, value)
            assert found.tensors[name].digest() == digest(value)

    def test_one_file_for_each_tensor(self, tmp_path: Path):
        save(build().state_dict(), tmp_path, single_file_per_rank=False)
        model = build()
        with torch.no_grad():
            model[0].weight.zero_()
        assert fl.plan_load(model, tmp_path).apply().coverage == 1.0
        assert torch.equal(model[0].weight, build()[0].weight)

    def test_what_was_nested_is_unwrapped_and_what_is_no_tensor_stays_closed(self, tmp_path: Path):
        model = build()
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        save({"app": {"model": model.state_dict(), "optim": optimizer.state_dict()}, "epoch": 3}, tmp_path)
        found = fl.checkpoint.open_checkpoint(tmp_path)
        assert found.container == ("app", "model")
        assert list(found.tensors) == list(model.state_dict())
        assert found.opaque == ("what is no tensor",)
        assert fl.plan_load(build(), tmp_path).complete

    def test_only_the_files_of_a_wanted_tensor_are_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        save(build().state_dict(), tmp_path, single_file_per_rank=False)
        found = fl.checkpoint.open_checkpoint(tmp_path)
        opened: set[str] = set()
        monkeypatch.setattr(distributed, "_part", _noting(distributed._part, opened))
        found.tensors["2.bias"].read()
        assert len(opened) == 1

    @pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
    def test_the_index_stands_for_its_folder_and_a_shard_does_not(self, name: str, tmp_path: Path):
        save(build().state_dict(), tmp_path)
        if name == ".metadata":
            assert len(read_contents(tmp_path / name).root) == 9  # type: ignore[arg-type]
        else:
            with pytest.raises(CheckpointError, match=r"holds shards of torch[.]distributed[.]checkpoint"):
                read_contents(tmp_path / name)


def _noting(function: Any, into: set[str]) -> Any:
    def noting(files: Any, place: Any, name: str) -> Any:
        into.add(place.file)
        return function(files, place, name)

    return noting


class TestShards:
    @pytest.mark.parametrize("boxes", [ROWS, COLUMNS, GRID, WHIRL])
    def test_are_put_together_as_torch_does_it(self, boxes: Boxes, tmp_path: Path):
        tensor = torch.randn(5, 3)
        write_shards(tmp_path, {"w": (tensor, boxes)})
        entry = fl.checkpoint.open_checkpoint(tmp_path).tensors["w"]
        assert torch.equal(entry.read(), tensor)
        assert torch.equal(torch_reads(tmp_path, {"w": tensor})["w"], tensor)
        for most in (1, 7, 8, 60, 1000):
            pieces = [piece.clone() for piece in entry.pieces(most)]
            assert {len(piece) for piece in pieces[:-1]} <= {most}
            assert torch.equal(torch.cat(pieces).view(torch.float32).view(5, 3), tensor)

    def test_rows_pass_through_one_buffer(self, tmp_path: Path):
        tensor = torch.randn(1000, 3)
        write_shards(tmp_path, {"w": (tensor, [((0, 0), (600, 3)), ((600, 0), (400, 3))])})
        entry = fl.checkpoint.open_checkpoint(tmp_path).tensors["w"]
        assert len({piece.data_ptr() for piece in entry.pieces(4096)}) == 1

    @pytest.mark.parametrize(
        ("boxes", "said"),
        [
            (ROWS[:2], "leave 3 of 15 elements out"),
            ([*ROWS, ((4, 0), (1, 3))], "overlap"),
            ([((0, 0), (3, 3)), ((2, 0), (3, 3))], "overlap"),
            ([], "leave 15 of 15 elements out"),
        ],
    )
    def test_a_hole_or_an_overlap(self, boxes: Boxes, said: str, tmp_path: Path):
        write_shards(tmp_path, {"w": (torch.randn(5, 3), boxes)})
        with pytest.raises(CorruptCheckpoint, match=said) as caught:
            read_contents(tmp_path)
        assert "of w" in str(caught.value)

    @pytest.mark.parametrize(
        ("alter", "said"),
        [
            (lambda m: m.storage_data.popitem(), r"no place for w at \[4, 0\]"),
            (lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size((4, 3))), "a shard of shape"),
            (lambda m: setattr(_place(m), "offset", 2**40), "should be at byte"),
            (lambda m: setattr(_place(m), "offset", -5), "a place that is none"),
            (lambda m: setattr(_place(m), "length", 3), "3 bytes for a shard of 24"),
            (lambda m: setattr(_place(m), "relative_path", "../out.distcp"), "not beside it"),
            (lambda m: setattr(_place(m), "relative_path", "/etc/passwd"), "not beside it"),
            (lambda m: setattr(_place(m), "transform_descriptors", ["zstd"]), "were transformed"),
            (lambda m: m.state_dict_metadata["w"].properties.__setattr__("dtype", None), "a dtype that is none"),
            (lambda m: m.planner_data.update(w=("a",) * 200), "keys of an entry"),
            (lambda m: setattr(m, "storage_data", None), "no places of entries"),
            (lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size((1,) * 5000)), "more than 64 dimensions"),
        ],
    )
    def test_an_index_that_is_wrong(self, alter: Any, said: str, tmp_path: Path):
        write_shards(tmp_path, {"w": (torch.randn(5, 3), ROWS)}, alter)
        with pytest.raises(CheckpointError, match=said):
            read_contents(tmp_path)

    def test_a_shard_that_is_another_one(self, tmp_path: Path):
        def exchange(metadata: Metadata) -> None:
            first, second, *_ = metadata.storage_data.values()
            first.__dict__.update(second.__dict__)

        tensor = torch.randn(5, 3)
        write_shards(tmp_path, {"w": (tensor, [((0, 0), (2, 3)), ((2, 0), (3, 3))])}, exchange)
        entry = fl.checkpoint.open_checkpoint(tmp_path).tensors["w"]
        with pytest.raises(CorruptCheckpoint, match=r"\(3, 3\) and torch.float32 for a shard of shape \(2, 3\)"):
            entry.read()

    def test_missing_files_are_named(self, tmp_path: Path):
        write_shards(tmp_path, {"w": (torch.randn(5, 3), ROWS)})
        (tmp_path / "__1_0.distcp").unlink()
        with pytest.raises(CheckpointError, match="1 of 2 shards cannot be found") as caught:
            read_contents(tmp_path)
        assert "__1_0.distcp (does not exist)" in str(caught.value)


def _place(metadata: Metadata) -> Any:
    return next(iter(metadata.storage_data.values()))


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch bomb",)


class TestHostile:
    def test_an_index_that_wants_to_run_code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        write_shards(tmp_path, {"w": (torch.randn(5, 3), ROWS)}, lambda m: setattr(m, "planner_data", Bomb()))
        for allowed in (False, True):
            with pytest.raises(UnsafeCheckpoint, match=r"wanted: (posix|nt)[.]system"):
                read_contents(tmp_path, allow_pickle=allowed)
        assert not (tmp_path / "bomb").exists()
        torch_reads(tmp_path, {"w": torch.randn(5, 3)})  # the naive way runs it
        assert (tmp_path / "bomb").exists()

    def test_a_shard_that_wants_to_run_code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)

        def exchange(metadata: Metadata) -> None:
            place = _place(metadata)
            torch.save([Bomb(), torch.ones(100)], tmp_path / place.relative_path)
            place.offset, place.length = 0, (tmp_path / place.relative_path).stat().st_size

        write_shards(tmp_path, {"w": (torch.randn(2, 3), [((0, 0), (2, 3))])}, exchange)
        entry = fl.checkpoint.open_checkpoint(tmp_path).tensors["w"]
        with pytest.raises(UnsafeCheckpoint, match=r"wanted: (posix|nt)[.]system"):
            entry.read()
        assert not (tmp_path / "bomb").exists()

    def test_whatever_is_cut_off_or_flipped_is_said_or_harmless(self, tmp_path: Path):
        """Never another error than ours, and never other values: a record of a shard has a checksum."""
        tensor = torch.randn(5, 3)
        write_shards(tmp_path, {"w": (tensor, ROWS)})
        generator, refused = random.Random(0), 0
        for name in (".metadata", "__0_0.distcp"):
            whole = (tmp_path / name).read_bytes()
            trials = [whole[: generator.randrange(len(whole))] for _ in range(40)]
            for _ in range(120):
                flipped = bytearray(whole)
                flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
                trials.append(bytes(flipped))
            for trial in trials:
                (tmp_path / name).write_bytes(trial)
                try:
                    found = {n: e.read() for n, e in fl.checkpoint.open_checkpoint(tmp_path).tensors.items()}
                except FrostlineError:
                    refused += 1
                    continue
                if name != ".metadata":
                    assert torch.equal(found["w"], tensor)
            (tmp_path / name).write_bytes(whole)
        assert refused > 150

    def test_a_save_that_did_not_come_to_its_end(self, tmp_path: Path):
        save(build().state_dict(), tmp_path)
        (tmp_path / ".metadata").unlink()
        with pytest.raises(CheckpointError, match=r"and no \.metadata"):
            read_contents(tmp_path)

    def test_a_file_that_changes_after_opening(self, tmp_path: Path):
        save(build().state_dict(), tmp_path)
        found = fl.checkpoint.open_checkpoint(tmp_path)
        with (tmp_path / "__0_0.distcp").open("ab") as file:
            file.write(b"x")
        with pytest.raises(CorruptCheckpoint, match="has changed since it was opened"):
            found.tensors["0.weight"].read()


def test_a_folder_with_another_checkpoint_beside_it(tmp_path: Path):
    save(build().state_dict(), tmp_path)
    torch.save({}, tmp_path / "meta.pt")  # Lightning's
    assert read_contents(tmp_path).format == "torch.distributed.checkpoint"
    torch.save(build().state_dict(), tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="2 files that could be the checkpoint") as caught:
        read_contents(tmp_path)
    assert "found: .metadata, last.pt" in str(caught.value)
