"""Reading checkpoint files: every format, every kind of damage, and no code run."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from frostline.checkpoint import read_tensors
from frostline.checkpoint.container import WRAPPER_TOKENS, strip_wrappers
from frostline.errors import CheckpointError, CorruptCheckpoint, UnsafeCheckpoint

TENSORS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.count": torch.tensor(7)}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


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


# Formats


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors.bak", "a"])
@pytest.mark.parametrize("kind", SAVERS)
def test_every_format_is_told_by_its_content(kind: str, name: str, tmp_path: Path):
    read = read_tensors(SAVERS[kind](dict(TENSORS), tmp_path / name))
    assert read.format == kind
    assert read.container == read.stripped == ()
    assert {name: value.tolist() for name, value in read.tensors.items()} == {
        name: value.tolist() for name, value in TENSORS.items()
    }


PLAIN = (torch.bfloat16, torch.complex64, torch.bool, torch.int8)


# Torch itself cannot read float8 back from the older format.
@pytest.mark.parametrize(("save", "dtypes"), [(save_zip, (*PLAIN, torch.float8_e4m3fn)), (save_legacy, PLAIN)])
def test_any_dtype_a_parameter_and_no_elements(save: Any, dtypes: tuple[torch.dtype, ...], tmp_path: Path):
    tensors = {str(dtype): torch.ones(3).to(dtype) for dtype in dtypes} | {"empty": torch.zeros(0, 2)}
    read = read_tensors(save({**tensors, "parameter": nn.Parameter(torch.ones(1))}, tmp_path / "a.pt"))
    assert not read.tensors.pop("parameter").requires_grad
    assert {name: value.dtype for name, value in read.tensors.items()} == {
        name: value.dtype for name, value in tensors.items()
    }


def test_checksums_that_were_never_taken_are_not_missed(tmp_path: Path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save_zip(TENSORS, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_tensors(path).tensors, TENSORS)


@pytest.mark.real_data
def test_a_real_legacy_checkpoint_that_was_saved_on_cuda(resnet20_file: Path):
    with pytest.raises(RuntimeError, match="CUDA"):  # what torch says without a map
        torch.load(resnet20_file, weights_only=True)
    read = read_tensors(resnet20_file)
    assert (read.format, read.container, read.stripped, read.prefix) == (
        "torch legacy",
        ("state_dict",),
        ("module",),
        "module.",
    )
    assert len(read.tensors) == 97
    assert sum(value.numel() for value in read.tensors.values()) == 271_098
    assert next(iter(read.tensors)) == "conv1.weight"
    assert {value.device.type for value in read.tensors.values()} == {"cpu"}


# Damage


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short(kind: str, share: float, tmp_path: Path):
    path = SAVERS[kind]({"a": torch.randn(500), "b": torch.randn(500)}, tmp_path / f"a.{kind.replace(' ', '')}")
    whole = path.read_bytes()
    path.write_bytes(whole[: max(1, int(len(whole) * share))])
    with pytest.raises(CorruptCheckpoint) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert "fix: copy or download it again" in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_flipped_bit_in_a_zip_file_is_seen_though_torch_does_not(tmp_path: Path):
    path = save_zip({"a": torch.zeros(500)}, tmp_path / "a.pt")
    content = bytearray(path.read_bytes())
    content[content.index(b"data/0") + 600] ^= 1
    path.write_bytes(content)
    loaded = torch.load(path, weights_only=True)  # without a word
    assert loaded["a"].count_nonzero() == 1
    with pytest.raises(CorruptCheckpoint, match=r"1 of \d+ records do not match their checksums\n  found: a/data/0"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty (0 bytes)"),
        (b"<!DOCTYPE html>", "found: a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "fix: git lfs pull"),
        (pickle.dumps({"a": [1, 2]}), "found: a pickle that torch did not write"),
        (b"\x80\x02}q", "found: a pickle that is cut short"),
        (bytes(range(100, 200)), "found: bytes that begin with b'defghijk'"),
    ],
)
def test_what_is_no_checkpoint(content: bytes, said: str, tmp_path: Path):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpoint) as caught:
        read_tensors(path)
    assert said in str(caught.value)


def test_another_zip_archive(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("weights.npy", b"1")
    with pytest.raises(CorruptCheckpoint, match=r"holds no data\.pkl\n  found: weights\.npy"):
        read_tensors(tmp_path / "a.npz")


def test_a_missing_file_and_a_folder(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no\.pt does not exist"):
        read_tensors(tmp_path / "no.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_tensors(tmp_path)


# Code


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def save_plain(protocol: int) -> Any:
    def save(value: Any, path: Path) -> Path:
        path.write_bytes(pickle.dumps(value, protocol=protocol))
        return path

    return save


@pytest.mark.parametrize("save", [save_zip, save_legacy, *(save_plain(protocol) for protocol in range(6))])
def test_a_pickle_that_wants_code_is_refused_with_what_it_wanted(save: Any, tmp_path: Path):
    mark = tmp_path / "ran"
    path = save({"a": torch.ones(2) if save in (save_zip, save_legacy) else 1, "b": Evil(mark)}, tmp_path / "a.pt")
    with pytest.raises(UnsafeCheckpoint) as caught:
        read_tensors(path)
    assert f"wanted: {os.mkdir.__module__}.mkdir\n" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # no wider escape hatch is offered
    assert caught.value.exit_code == 3
    assert not mark.exists()
    if save is save_zip:
        torch.load(path, weights_only=False)  # the failing twin
        assert mark.exists()


def test_a_whole_module_names_its_classes(tmp_path: Path):
    path = save_zip(nn.Sequential(nn.Linear(1, 1), nn.ReLU()), tmp_path / "a.pt")
    with pytest.raises(UnsafeCheckpoint) as caught:
        read_tensors(path)
    for name in ("torch.nn.modules.container.Sequential", "torch.nn.modules.linear.Linear"):
        assert name in str(caught.value)
    assert "_rebuild" not in str(caught.value)
    assert "OrderedDict" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_a_torchscript_archive_is_a_program(tmp_path: Path):
    torch.jit.trace(nn.Linear(1, 1), torch.ones(1, 1)).save(str(tmp_path / "a.pt"))
    with pytest.raises(UnsafeCheckpoint, match="is a TorchScript archive"):
        read_tensors(tmp_path / "a.pt")


# Containers


@pytest.mark.parametrize(
    ("value", "container"),
    [
        ({"state_dict": TENSORS, "epoch": 3}, ("state_dict",)),
        ({"model": TENSORS, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, ("model",)),
        ({"model": {"state_dict": OrderedDict(TENSORS)}, "iteration": torch.tensor(9)}, ("model", "state_dict")),
        ({"state_dict": TENSORS, "ema": None, "model": {"depth": 18}}, ("state_dict",)),
        (TENSORS, ()),
    ],
)
def test_containers_are_unwrapped_and_named(value: Any, container: tuple[str, ...], tmp_path: Path):
    read = read_tensors(save_zip(value, tmp_path / "a.pt"))
    assert read.container == container
    assert same(read.tensors, TENSORS)


def test_entries_beside_the_tensors_are_named(tmp_path: Path):
    assert read_tensors(save_zip({**TENSORS, "epoch": 3}, tmp_path / "a.pt")).beside == ("epoch",)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"teacher": TENSORS, "student": TENSORS}, "holds tensors in 2 places: 'teacher' and 'student'"),
        ({"model": TENSORS, "model_ema": {"state_dict": TENSORS}}, "in 2 places: 'model_ema' and 'model'"),
        ({"model": TENSORS, "fc.weight": torch.ones(1)}, "in 2 places: 'model' and the top level"),
        ({"model": {"ema": TENSORS, "net": TENSORS}}, "in 2 places, inside 'model': 'ema' and 'net'"),
        ({"epoch": 3, "args": {}}, "holds no tensors of a model\n  found: 'epoch', 'args'"),
        ({}, "holds no tensors of a model\n  found: nothing"),
        ([torch.ones(1)], "holds a list"),
        (torch.ones(1), "holds a Tensor"),
        ({"a._flat_param": torch.ones(1)}, "holds flat shards of FSDP"),
    ],
)
def test_what_cannot_be_unwrapped(value: Any, said: str, tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        read_tensors(save_zip(value, tmp_path / "a.pt"))
    assert said in str(caught.value)


# Wrappers


@pytest.mark.parametrize(
    ("names", "expected", "tokens"),
    [
        (["module.a", "module.b"], ["a", "b"], ["module"]),
        (["module._orig_mod.a"], ["a"], ["_orig_mod", "module"]),
        (["net.module.a", "b"], ["net.a", "b"], ["module"]),
        (["my_module.a", "modules.b", "module_.c"], ["my_module.a", "modules.b", "module_.c"], []),
        (["module.module.a"], ["a"], ["module"]),
        (["module.a", "a"], ["module.a", "a"], []),
        (["module.a", "_orig_mod.a", "_forward_module.b"], ["module.a", "_orig_mod.a", "b"], ["_forward_module"]),
        (["module", "module.a"], ["module", "module.a"], []),
        ([], [], []),
    ],
)
def test_wrappers_are_stripped_as_whole_parts(names: list[str], expected: list[str], tokens: list[str]):
    stripped, taken = strip_wrappers(dict.fromkeys(names, 0))
    assert (list(stripped), taken) == (expected, tokens)


def test_names_of_the_model_itself_are_kept():
    assert strip_wrappers({"module.a": 0, "_orig_mod.module.b": 1}, keep={"module"})[0] == {
        "module.a": 0,
        "module.b": 1,
    }


parts = st.lists(st.sampled_from(["a", "b", "weight", *sorted(WRAPPER_TOKENS)]), min_size=1, max_size=4)


@given(st.lists(parts.map(".".join), unique=True, max_size=8), st.sets(st.sampled_from(sorted(WRAPPER_TOKENS))))
def test_stripping_never_loses_an_entry_and_is_done_once(names: list[str], keep: set[str]):
    entries = {name: index for index, name in enumerate(names)}
    stripped, taken = strip_wrappers(entries, keep=keep)
    assert list(stripped.values()) == list(entries.values())
    assert all(stripped)
    assert not keep.intersection(taken)
    for old, new in zip(entries, stripped, strict=True):
        assert new == ".".join(part for part in old.split(".") if part not in taken)
    again, more = strip_wrappers(stripped, keep=keep)
    assert (again, more) == (stripped, [])


def test_a_prefix_is_told_only_if_it_is_all_that_was_taken_out(tmp_path: Path):
    read = read_tensors(save_zip({"module.a": torch.ones(1), "module.b": torch.ones(1)}, tmp_path / "a.pt"))
    assert (read.prefix, read.stripped) == ("module.", ("module",))
    read = read_tensors(save_zip({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "b.pt"))
    assert (read.prefix, read.stripped) == ("", ("module",))
    read = read_tensors(save_zip({"c.module.a": torch.ones(1)}, tmp_path / "c.pt"))
    assert (read.prefix, read.stripped) == ("", ("module",))
