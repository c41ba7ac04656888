"""Writing safetensors piece by piece; the library of the format is the reference."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from frostline import durable
from frostline.checkpoint import tensor_writer
from frostline.checkpoint.stored import InMemory, StoredTensor, as_bytes, in_memory
from frostline.checkpoint.tensor_writer import DIGEST, RESERVED, combined_digest, write_tensors
from frostline.errors import CannotWrite, CheckpointError, CorruptCheckpoint, StorageFull
from frostline.runs.tensor_file import read_tensor_file
from frostline.state.digest import digest, digest_all

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
]


def entries_of(tensors: dict[str, Tensor]) -> dict[str, StoredTensor]:
    return {name: in_memory(tensor) for name, tensor in tensors.items()}


def header_of(path: Path) -> tuple[int, dict[str, dict[str, object]]]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return length, json.loads(content[8 : 8 + length])


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Any bits at all, NaNs with payloads among them; of a bool only those that are one."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    count = dtype.itemsize * int(torch.Size(shape).numel())
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and digest(one) == digest(other)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (5, 7), (2, 3, 1, 4)])
def test_the_library_reads_every_dtype_and_shape_to_the_bit(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = {f"layer.{i}": random_tensor(dtype, shape, i) for i, dtype in enumerate(DTYPES)}
    path = tmp_path / "a.safetensors"
    written = write_tensors(path, entries_of(tensors), {"format": "pt"})
    read = safetensors.torch.load_file(path)
    assert read.keys() == tensors.keys()
    assert all(same_bits(read[name], tensors[name]) for name in tensors)
    assert written == combined_digest(digest_all(tensors))


def test_a_dtype_of_new_torch_only(tmp_path: Path) -> None:
    dtype = getattr(torch, "float8_e8m0fnu", None)
    if dtype is None:
        pytest.skip("this torch has no float8_e8m0fnu")
    value = torch.arange(12, dtype=torch.uint8).view(dtype).reshape(3, 4)
    write_tensors(tmp_path / "a", {"a": in_memory(value)}, {})
    read = safetensors.torch.load_file(tmp_path / "a")["a"]
    assert (read.dtype, read.shape) == (dtype, value.shape)
    assert torch.equal(read.view(torch.uint8), value.view(torch.uint8))


def test_tensors_that_are_strided_tied_or_views_are_stored_by_value(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "transposed": whole.t(),
        "column": whole[:, 1],
        "expanded": whole[:1].expand(3, 6),
        "tied": whole,
        "also tied": whole,
        "conjugate": torch.complex(whole, whole + 1).conj(),
        "parameter": torch.nn.Parameter(whole * 2),
    }
    before = whole.clone()
    path = tmp_path / "a.safetensors"
    write_tensors(path, entries_of(tensors), {})
    read = safetensors.torch.load_file(path)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert torch.equal(whole, before)


@settings(deadline=None, max_examples=60)
@given(
    names=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda name: name != RESERVED),
        max_size=6,
        unique=True,
    ),
    metadata=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        max_size=3,
    ),
    data=st.data(),
)
def test_any_names_metadata_and_tensors_come_back(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], metadata: dict[str, str], data: st.DataObject
) -> None:
    shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
    tensors = {
        name: random_tensor(data.draw(st.sampled_from(DTYPES)), data.draw(shapes), seed)
        for seed, name in enumerate(names)
    }
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    write_tensors(path, entries_of(tensors), metadata)
    read = safetensors.torch.load_file(path)
    assert read.keys() == tensors.keys()
    assert all(same_bits(read[name], tensors[name]) for name in tensors)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {**metadata, DIGEST: combined_digest(digest_all(tensors))}
    # In its own place, nothing between, and nothing that its dtype could not be read from.
    length, header = header_of(path)
    assert (8 + length) % 8 == 0
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.dtype.itemsize == 0  # type: ignore[index]


def test_equal_content_gives_equal_bytes_in_whatever_order_it_comes(tmp_path: Path) -> None:
    tensors = {f"t{i}": random_tensor(dtype, (3,), i) for i, dtype in enumerate(DTYPES)}
    metadata = {f"key{i}": str(i) for i in range(20)}
    write_tensors(tmp_path / "a", entries_of(tensors), metadata)
    write_tensors(tmp_path / "b", entries_of(dict(reversed(tensors.items()))), dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    tensors["t0"][0] = 1 - tensors["t0"][0].nan_to_num().clamp(-9, 9)
    write_tensors(tmp_path / "b", entries_of(tensors), metadata)
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_the_library_itself_writes_metadata_in_random_order() -> None:
    """The twin: the naive writer gives many files for one content."""
    metadata = {f"key{i}": str(i) for i in range(20)}
    assert len({safetensors.torch.save({"a": torch.zeros(1)}, metadata) for _ in range(20)}) > 1


def test_the_digest_is_the_one_that_run_folders_check(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, generator=torch.Generator().manual_seed(0)), "b": torch.arange(4)}
    path = tmp_path / "a.safetensors"
    write_tensors(path, entries_of(tensors), {"note": "x"})
    read, metadata = read_tensor_file(path)
    assert metadata == {"note": "x"}
    assert torch.equal(read["a"], tensors["a"])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match="not those that were saved"):
        read_tensor_file(path)


@pytest.mark.parametrize("extra", [-8, -1, 0, 1, 8])
def test_the_digest_from_pieces_is_the_digest_of_the_whole(extra: int) -> None:
    limit = tensor_writer._DIGEST_PIECE
    for size in (limit + extra, 2 * limit + extra):
        entry = in_memory(torch.arange(size // 8 + 1, dtype=torch.int64).view(torch.uint8)[:size])
        digests: dict[str, str] = {}
        assert sum(len(piece) for piece in tensor_writer._values({"a": entry}, digests)) == size
        assert digests["a"] == entry.digest()


@dataclass(frozen=True, eq=False)
class Pieced(StoredTensor):
    """A tensor that lives in a file, as a reader would have it: one buffer, which is used again."""

    content: list[bytes]
    reads: list[str]

    def read(self) -> Tensor:
        raise AssertionError("a writer has no business with a whole tensor")

    def pieces(self, most: int) -> Iterator[Tensor]:
        self.reads.append("pass")
        buffer = torch.empty(most, dtype=torch.uint8)
        whole = self.content[min(len(self.reads), len(self.content)) - 1]
        for start in range(0, len(whole), most):
            piece = torch.frombuffer(bytearray(whole[start : start + most]), dtype=torch.uint8)
            buffer[: len(piece)] = piece
            yield buffer[: len(piece)]


def test_values_pass_through_in_pieces_and_never_as_a_whole(tmp_path: Path) -> None:
    value = torch.arange(3 * 2**20, dtype=torch.float32)
    entry = Pieced(tuple(value.shape), value.dtype, "here", [as_bytes(value).numpy().tobytes()], [])
    write_tensors(tmp_path / "a", {"a": entry}, {})
    assert torch.equal(safetensors.torch.load_file(tmp_path / "a")["a"], value)
    assert entry.reads == ["pass", "pass"]


def test_a_source_that_changes_while_it_is_written_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    entry = Pieced((8,), torch.uint8, "here", [bytes(8), bytes(7) + b"\1"], [])
    with pytest.raises(CorruptCheckpoint, match="tensors changed while they were"):
        write_tensors(path, {"a": entry}, {})
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_source_that_is_too_short_is_not_written(tmp_path: Path) -> None:
    entry = Pieced((8,), torch.uint8, "here", [bytes(7)], [])
    with pytest.raises(CorruptCheckpoint, match=r"'fc\\x1b' has 7 bytes"):
        write_tensors(tmp_path / "a", {"fc\x1b": entry}, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex32])
def test_a_dtype_that_the_format_lacks_is_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    entry = Pieced((2,), dtype, "here", [bytes(32)], [])
    with pytest.raises(CheckpointError, match=rf"'fc.weight'.*no {str(dtype).removeprefix('torch.')}"):
        write_tensors(tmp_path / "a", {"fc.weight": entry}, {})
    assert os.listdir(tmp_path) == []
    assert entry.reads == []


@pytest.mark.parametrize("name", [RESERVED, "lone \ud800"])
def test_names_that_the_format_cannot_hold_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot hold these names") as caught:
        write_tensors(tmp_path / "a", {name: in_memory(torch.zeros(1))}, {})
    str(caught.value).encode()
    assert os.listdir(tmp_path) == []


def test_a_lone_surrogate_in_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no character"):
        write_tensors(tmp_path / "a", {}, {"file": "x\udcff"})


def test_a_header_that_no_reader_would_take_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_writer, "_LONGEST_HEADER", 1000)
    with pytest.raises(CheckpointError, match=r"header has 1,\d\d\d bytes"):
        write_tensors(tmp_path / "a", {}, {"plan": "x" * 1000})
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_tensors(path, {"a": in_memory(torch.zeros(4))}, {})
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(StorageFull, match="no space left") as caught:
        write_tensors(path, {"a": in_memory(torch.ones(4))}, {})
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_another_error_of_the_disk_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="cannot be written: No such file or directory"):
        write_tensors(tmp_path / "none" / "a", {}, {})


# Writes {how} over a file, tells when half of the pieces are out, and waits to be killed.
KILLED = """
import sys, time
from pathlib import Path
import torch
from frostline.checkpoint.stored import in_memory
from frostline.checkpoint import tensor_writer

class Slow(type(in_memory(torch.zeros(1)))):
    def pieces(self, most):
        for number, piece in enumerate(super().pieces(most)):
            if number == 2:
                seen.append("half")
                if len(seen) == 2:
                    print("half", flush=True)
                    time.sleep(60)
            yield piece

seen = []
value = torch.ones(4 * 2**20)
entry = Slow(tuple(value.shape), value.dtype, "here", value)
path = Path(sys.argv[1])
if sys.argv[2] == "naive":
    def replace_file(path, pieces):
        with path.open("wb") as file:
            for piece in pieces:
                file.write(piece)
    tensor_writer.replace_file = replace_file
tensor_writer.write_tensors(path, {"a": entry}, {})
"""


@pytest.mark.parametrize("how", ["whole", "naive"])
def test_a_kill_in_the_middle_leaves_the_old_file_whole(tmp_path: Path, how: str) -> None:
    """And the twin, which opens the file itself, does not: the test bites."""
    path = tmp_path / "a"
    write_tensors(path, {"a": in_memory(torch.zeros(4))}, {})
    before = path.read_bytes()
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(path), how], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert (path.read_bytes() == before) == (how == "whole")
    assert all(durable.is_partial(left) for left in tmp_path.iterdir() if left != path)


def test_a_file_is_written_over_itself(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_tensors(path, {"a": in_memory(torch.arange(5))}, {})
    with safetensors.safe_open(path, "pt") as file:
        value = file.get_tensor("a")
        write_tensors(path, {"b": InMemory(tuple(value.shape), value.dtype, "here", value)}, {})
    assert torch.equal(safetensors.torch.load_file(path)["b"], torch.arange(5))
