"""Opening any checkpoint: told by content, lazily, and with an error of ours for whatever is none."""

from __future__ import annotations

import gc
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from frostline.checkpoint.readers.open_file import read_contents
from frostline.errors import CheckpointError, CorruptCheckpoint

TENSORS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.count": torch.tensor(7)}


def save_zip(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


def save_legacy(value: Any, path: Path) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def save_safetensors(value: dict[str, torch.Tensor], path: Path) -> Path:
    safetensors.torch.save_file(value, path)
    return path


SAVERS = {"torch": save_zip, "torch legacy": save_legacy, "safetensors": save_safetensors}


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors.bak", "a", "a.safetensors", "a.json"])
@pytest.mark.parametrize("kind", SAVERS)
def test_every_format_is_told_by_its_content(kind: str, name: str, tmp_path: Path):
    found = read_contents(SAVERS[kind](dict(TENSORS), tmp_path / name))
    root: Any = found.root
    assert found.format == kind
    assert {name: stored.read().tolist() for name, stored in root.items()} == {
        name: value.tolist() for name, value in TENSORS.items()
    }


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
@pytest.mark.parametrize("kind", SAVERS)
def test_opening_reads_no_tensor_and_reading_one_reads_no_other(kind: str, tmp_path: Path):
    saved = {f"layer{index}": torch.full((1_300_000,), float(index)) for index in range(10)}
    path = SAVERS[kind](saved, tmp_path / "a")
    assert path.stat().st_size > 50_000_000
    start = bytes_read()
    root: Any = read_contents(path).root
    opened = bytes_read() - start
    assert opened < 2**20
    assert torch.equal(root["layer7"].read(), saved["layer7"])
    assert bytes_read() - start - opened < 5_200_000 + 2**20
    start = bytes_read()
    assert sum(piece.numel() for piece in root["layer3"].pieces(2**16)) == 5_200_000
    assert bytes_read() - start < 5_200_000 + 2**20


@pytest.mark.parametrize("kind", SAVERS)
def test_a_file_that_changes_is_noticed(kind: str, tmp_path: Path):
    path = SAVERS[kind](dict(TENSORS), tmp_path / "a")
    content = path.read_bytes()
    root: Any = read_contents(path).root
    weight = root["conv.weight"]
    assert torch.equal(weight.read(), TENSORS["conv.weight"])
    with path.open("r+b") as file:
        file.truncate(len(content) - 1)
    for read in (weight.read, lambda: list(weight.pieces(8))):
        with pytest.raises(CorruptCheckpoint, match="has changed since it was opened: its size is another"):
            read()
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(CorruptCheckpoint, match="it was written to or replaced"):
        weight.read()
    path.unlink()
    with pytest.raises(CorruptCheckpoint, match="has changed since it was opened: it is gone"):
        weight.read()


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short(kind: str, share: float, tmp_path: Path):
    path = SAVERS[kind]({"a": torch.randn(500), "b": torch.randn(500)}, tmp_path / f"a.{kind.replace(' ', '')}")
    whole = path.read_bytes()
    path.write_bytes(whole[: max(1, int(len(whole) * share))])
    with pytest.raises(CorruptCheckpoint) as caught:
        read_contents(path)
    assert str(path) in str(caught.value)
    assert "fix: copy or download it again" in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty (0 bytes)"),
        (b"<!DOCTYPE html>", "found: a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "fix: git lfs pull"),
        (pickle.dumps({"a": [1, 2]}), "found: a pickle that torch did not write"),
        (b"\x80\x02}q", "found: a pickle that is cut short"),
        (bytes(range(100, 200)), "found: bytes that begin with b'defghijk'"),
        (b"\x00", "found: bytes that begin with b'\\x00'"),
        (b".", "found: bytes that begin with b'.'"),
    ],
)
def test_what_is_no_checkpoint(content: bytes, said: str, tmp_path: Path):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpoint) as caught:
        read_contents(path)
    assert said in str(caught.value)


def test_what_cannot_be_opened(tmp_path: Path):
    def message(path: Any) -> str:
        with pytest.raises(CheckpointError) as caught:
            read_contents(path)
        assert caught.value.exit_code == 2
        return str(caught.value)

    assert "no.pt does not exist\n" in message(tmp_path / "no.pt")
    assert "does not exist" in message(tmp_path / "a\0b")
    (tmp_path / "broken").symlink_to("nowhere")
    assert "broken is a symbolic link to nowhere, which does not exist" in message(tmp_path / "broken")
    (tmp_path / "loop").symlink_to("loop")
    assert "loop is a symbolic link that leads back to itself" in message(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is a pipe, not a file" in message(tmp_path / "pipe")
    assert "/dev/zero is a device, not a file" in message("/dev/zero")
    assert "cannot be read: File name too long" in message(tmp_path / ("a" * 300))
    (tmp_path / "file").write_bytes(b"x")
    assert "cannot be read: Not a directory" in message(tmp_path / "file" / "a.pt")
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(here := Path.cwd())
        try:
            os.chdir(tmp_path)  # names of sockets are short
            listening.bind("s")
        finally:
            os.chdir(here)
        assert "is a socket, not a file" in message(tmp_path / "s")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_what_may_not_be_read(tmp_path: Path):
    path = save_zip(TENSORS, tmp_path / "a.pt")
    path.chmod(0)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        read_contents(path)


def test_what_the_system_refuses_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save_zip(TENSORS, tmp_path / "a.pt")

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        read_contents(path)


@pytest.mark.parametrize("url", ["https://example.org/a.pt", "hf://org/model", "s3://bucket/a", "file:///a.pt"])
def test_local_files_only(url: str):
    with pytest.raises(CheckpointError, match="is not on this machine; local files only"):
        read_contents(url)


def test_a_file_with_the_name_of_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "hf:").mkdir()
    save_zip(TENSORS, tmp_path / "hf:" / "a.pt")
    monkeypatch.chdir(tmp_path)
    assert read_contents("hf://a.pt").format == "torch"


@pytest.mark.parametrize("kind", SAVERS)
def test_names_that_are_not_valid_utf8(kind: str, tmp_path: Path):
    path = tmp_path / os.fsdecode(b"\xff\x1b[31m.pt")
    SAVERS[kind](dict(TENSORS), tmp_path / "a").rename(path)
    root: Any = read_contents(path).root
    assert torch.equal(root["conv.weight"].read(), TENSORS["conv.weight"])
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(CorruptCheckpoint) as caught:
        read_contents(path)
    str(caught.value).encode()
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("kind", SAVERS)
def test_a_tensor_for_which_there_is_no_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root: Any = read_contents(SAVERS[kind](dict(TENSORS), tmp_path / "a")).root

    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "empty", refuse)
    for read in (root["conv.weight"].read, lambda: list(root["conv.weight"].pieces(8))):
        with pytest.raises(CheckpointError, match=r"there is no memory for a tensor of shape \(\d+,( 3)?\)"):
            read()


def test_the_collector_is_left_as_it_was(tmp_path: Path):
    path = save_zip(TENSORS, tmp_path / "a.pt")
    assert gc.isenabled()
    read_contents(path)
    assert gc.isenabled()
    with pytest.raises(CheckpointError):
        read_contents(tmp_path / "no.pt")
    assert gc.isenabled()
    gc.disable()
    try:
        read_contents(path)
        assert not gc.isenabled()
    finally:
        gc.enable()
