"""The run folder: whole files or none, whatever interrupts the writing, and the last good checkpoint is found."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import Tensor

from frostline import durable
from frostline.errors import CorruptCheckpoint, RunFolderError, StorageFull
from frostline.runs.run_folder import RunFolder, free_folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path / "run")
    run.write_json("config.json", {"seed": 0})
    return run


def files(run: RunFolder) -> list[str]:
    return sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file())


def values(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


# Create and open


def test_a_new_folder_is_made_with_those_above_it_and_an_empty_one_is_taken(tmp_path: Path):
    assert RunFolder.create(tmp_path / "a" / "b").path.is_dir()
    (tmp_path / "empty").mkdir()
    RunFolder.create(str(tmp_path / "empty"))


def test_a_folder_with_a_run_is_refused_and_left_alone(run: RunFolder):
    run.save_checkpoint("a", {}, {})
    before = files(run)
    with pytest.raises(RunFolderError) as caught:
        RunFolder.create(run.path)
    assert str(caught.value) == (
        f"the output folder {run.path} already holds a run\n  found: checkpoints, config.json\n"
        f"  fix: another folder with --out, or go on with that run: --resume {run.path}"
    )
    assert caught.value.exit_code == 2
    assert files(run) == before


def test_a_folder_with_other_files_and_a_file_are_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match=r"already holds other files\n  found: thesis\.tex\n  fix: another folder"):
        RunFolder.create(tmp_path)
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder.create(tmp_path / "thesis.tex")
    with pytest.raises(RunFolderError, match="cannot be written: Not a directory"):
        RunFolder.create(tmp_path / "thesis.tex" / "run")


def test_what_a_run_leaves_that_was_killed_before_its_configuration_is_no_run(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".config.json.0a1b2c3d.partial").write_text('{"se')
    run = RunFolder.create(tmp_path)
    run.write_json("config.json", {})
    assert files(run) == ["config.json"]


@pytest.mark.parametrize(
    ("make", "found"), [(None, "does not exist"), (Path.mkdir, "has no config"), (Path.touch, "is a file")]
)
def test_no_run_to_resume(make: Any, found: str, tmp_path: Path):
    path = tmp_path / "run"
    if make:
        make(path)
    with pytest.raises(RunFolderError, match=rf"no run to resume: .*{found}"):
        RunFolder.open(path)


# Values


def test_json_and_text_come_back(run: RunFolder):
    value = {"lr": 0.1, "name": "Fröst", "list": [1, None, True]}
    run.write_json("config.json", value)
    assert RunFolder.open(run.path).read_json("config.json") == value
    assert run.write_text("report.html", "ü\n").read_bytes() == "ü\n".encode()


def test_json_that_is_not_there_or_broken(run: RunFolder):
    with pytest.raises(RunFolderError, match=r"has no certificate\.json"):
        run.read_json("certificate.json")
    run.write_text("certificate.json", "{")
    with pytest.raises(RunFolderError, match=r"certificate\.json is no JSON"):
        run.read_json("certificate.json")


@pytest.mark.parametrize("name", ["../config.json", "a/b", "", ".."])
def test_names_stay_inside_the_folder(name: str, run: RunFolder):
    with pytest.raises(ValueError, match="no plain file name"):
        run.write_text(name, "x")
    with pytest.raises(ValueError, match="no name for a checkpoint"):
        run.save_checkpoint(f"{name}/", {}, {})


def test_nan_is_not_written_as_broken_json(run: RunFolder):
    run.append_metrics({"loss": 1.0})
    for write in (
        lambda: run.write_json("config.json", float("nan")),
        lambda: run.append_metrics({"loss": float("inf")}),
    ):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write()
    assert run.read_json("config.json") == {"seed": 0}
    assert run.read_metrics() == [{"loss": 1.0}]


def test_metrics_are_appended_read_and_cut(run: RunFolder):
    assert run.read_metrics() == []
    for epoch in range(4):
        run.append_metrics({"epoch": epoch, "loss": epoch / 3})
    run.truncate_metrics(lambda row: row["epoch"] < 2)
    run.append_metrics({"epoch": 2})
    assert run.read_metrics() == [{"epoch": 0, "loss": 0.0}, {"epoch": 1, "loss": 1 / 3}, {"epoch": 2}]


def test_half_a_row_from_a_kill_is_passed_over_and_then_removed(run: RunFolder):
    run.append_metrics({"epoch": 0})
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"epoch": 1, "lo')
    again = RunFolder.open(run.path)
    assert again.read_metrics() == [{"epoch": 0}]
    again.append_metrics({"epoch": 1})
    assert path.read_text() == '{"epoch": 0}\n{"epoch": 1}\n'


def test_a_broken_row_in_the_middle_is_named(run: RunFolder):
    (run.path / "metrics.jsonl").write_text('{"epoch": 0}\n[1]\n{"epoch": 2}\n')
    with pytest.raises(RunFolderError, match="line 2 of"):
        run.read_metrics()


def test_tensors_come_back_whatever_they_are(run: RunFolder):
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {
        "base": base,
        "tied": base,
        "view": base[1],
        "strided": base.t(),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "bool": torch.tensor([True, False]),
        "nan": torch.tensor([0x7FC00123, -(2**31)], dtype=torch.int32).view(torch.float32),
    }
    run.save_tensors("model.safetensors", tensors, {"seed": "0"})
    loaded = run.load_tensors("model.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert (
            loaded[name].contiguous().view(-1).view(torch.uint8).tolist()
            == tensor.detach().contiguous().view(-1).view(torch.uint8).tolist()
        ), name
    loaded["base"].add_(1)  # writable, and alone
    assert torch.equal(loaded["tied"], base)


def test_the_same_tensors_give_the_same_bytes(run: RunFolder):
    """Safetensors' own writer puts the metadata in another order now and then; ours has one."""
    tensors = {"ünï/a": torch.arange(5.0), "b": torch.ones(2, dtype=torch.bfloat16)}
    metadata = {"format": "pt", "z": 'a "quoted" text', "m": "1", "k": "ü"}
    written = {run.save_tensors("model.safetensors", tensors, metadata).read_bytes() for _ in range(20)}
    assert len(written) == 1
    with safetensors.safe_open(run.path / "model.safetensors", "pt") as file:
        assert {name: file.metadata()[name] for name in metadata} == metadata
        assert all(torch.equal(file.get_tensor(name), tensors[name]) for name in tensors)


def test_tensors_that_are_not_there_or_damaged(run: RunFolder):
    with pytest.raises(RunFolderError, match=r"has no model\.safetensors"):
        run.load_tensors("model.safetensors")
    path = run.save_tensors("model.safetensors", {"a": torch.zeros(100)}, {})
    content = path.read_bytes()
    for damaged in (content[:-1], content[:5], b"", content[:-1] + b"\x01"):
        path.write_bytes(damaged)
        with pytest.raises(CorruptCheckpoint):
            run.load_tensors("model.safetensors")


# Checkpoints


def save(run: RunFolder, name: str, value: int, **options: Any) -> Path:
    return run.save_checkpoint(name, {"value": torch.tensor(value)}, {"epoch": str(value)}, **options)


def test_the_newest_two_and_named_ones_are_kept(run: RunFolder):
    save(run, "start", 0)
    for epoch in range(1, 5):
        save(run, f"epoch-{epoch}", epoch, keep=("start",))
    assert run.checkpoint_names() == [
        "000001.start.safetensors",
        "000004.epoch-3.safetensors",
        "000005.epoch-4.safetensors",
    ]
    latest = run.latest_checkpoint()
    assert latest is not None
    assert (latest.name, values(latest.tensors), latest.metadata, latest.skipped) == (
        "epoch-4",
        {"value": 4},
        {"epoch": "4"},
        (),
    )
    assert values(run.checkpoint("start").tensors) == {"value": 0}
    with pytest.raises(RunFolderError, match=r"has no checkpoint 'epoch-1'\n  found: 000001\.start"):
        run.checkpoint("epoch-1")


def test_a_name_may_be_used_again_and_only_its_newest_is_kept(run: RunFolder):
    for value in range(4):
        save(run, "best", value)
    for value in range(4, 7):
        save(run, "last", value, keep=("best",))
    assert run.checkpoint_names() == ["000004.best.safetensors", "000006.last.safetensors", "000007.last.safetensors"]
    assert values(run.checkpoint("last").tensors) == {"value": 6}


def test_there_is_none_before_the_first(run: RunFolder):
    assert run.latest_checkpoint() is None
    assert run.checkpoint_names() == []


def test_the_order_does_not_depend_on_times(run: RunFolder):
    first = save(run, "z", 1)
    save(run, "a", 2)
    os.utime(first, (2e9, 2e9))
    assert RunFolder.open(run.path).latest_checkpoint().name == "a"


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-3], lambda content: content[:-1] + b"\x07", lambda _: b""]
)
def test_a_damaged_newest_checkpoint_falls_back_and_says_so(damage: Any, run: RunFolder):
    save(run, "epoch-1", 1)
    path = save(run, "epoch-2", 2)
    path.write_bytes(damage(path.read_bytes()))
    latest = run.latest_checkpoint()
    assert (latest.name, values(latest.tensors)) == ("epoch-1", {"value": 1})
    assert len(latest.skipped) == 1
    assert latest.skipped[0].startswith("000002.epoch-2.safetensors: ")
    assert save(run, "epoch-2", 2).name == "000003.epoch-2.safetensors"


def test_all_damaged(run: RunFolder):
    save(run, "epoch-1", 1).write_bytes(b"")
    with pytest.raises(
        CorruptCheckpoint, match=r"no checkpoint in .* can be read\n  000001\.epoch-1\.safetensors: cut short"
    ):
        run.latest_checkpoint()


# Interruptions


class Interrupted(BaseException):
    """What a signal handler raises anywhere."""


WRITES = {
    "write_text": lambda run: run.write_text("report.html", "new"),
    "save_tensors": lambda run: run.save_tensors("model.safetensors", {"a": torch.ones(3)}, {}),
    "save_checkpoint": lambda run: save(run, "epoch-2", 2),
    "truncate_metrics": lambda run: run.truncate_metrics(lambda row: False),
}


def content(run: RunFolder) -> dict[str, bytes]:
    return {name: (run.path / name).read_bytes() for name in files(run)}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [Interrupted(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_write_leaves_everything_as_it_was(
    write: Any, step: str, error: BaseException, run: RunFolder, monkeypatch: pytest.MonkeyPatch
):
    run.write_text("report.html", "old")
    run.append_metrics({"epoch": 0})
    save(run, "epoch-1", 1)
    before = content(run)

    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(StorageFull if isinstance(error, OSError) else Interrupted):
        write(run)
    assert content(run) == before


def test_a_plain_write_loses_the_file(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    """The failing twin of the test above."""
    path = run.write_text("report.html", "old")
    with pytest.raises(Interrupted), path.open("w") as file:
        file.write("ne")
        raise Interrupted
    assert path.read_text() == "ne"


def test_an_interrupted_row_is_taken_back(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    run.append_metrics({"epoch": 0})
    monkeypatch.setattr(durable, "memoryview", lambda data: [data[:7], None], raising=False)
    with pytest.raises(TypeError):
        run.append_metrics({"epoch": 1})
    assert (run.path / "metrics.jsonl").read_text() == '{"epoch": 0}\n'


def test_content_is_on_the_disk_before_it_takes_the_name(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("sync"), fsync(handle)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (steps.append("replace"), replace(self, target)))
    run.write_text("report.html", "new")
    assert steps == ["sync", "replace", "sync"]  # the content, the name, the folder


def test_files_get_the_usual_permissions(run: RunFolder):
    plain = run.path / "plain"
    plain.touch()
    assert run.write_text("report.html", "x").stat().st_mode == plain.stat().st_mode


def test_readers_leave_half_written_files_of_a_living_writer_alone(run: RunFolder):
    partial = run.path / ".report.html.0a1b2c3d.partial"
    partial.write_text("half")
    reader = RunFolder.open(run.path)
    reader.read_metrics()
    reader.latest_checkpoint()
    assert partial.exists()
    reader.write_text("a.txt", "")  # a writer after all: the run was killed, and goes on here
    assert not partial.exists()


WRITER = """
import sys, torch
from frostline.runs.run_folder import RunFolder
run = RunFolder.open(sys.argv[1])
latest = run.latest_checkpoint()
epoch = 0 if latest is None else int(latest.metadata["epoch"])
run.truncate_metrics(lambda row: row["epoch"] <= epoch)
while True:
    epoch += 1
    run.append_metrics({"epoch": epoch, "padding": "x" * 5000})
    run.save_checkpoint(f"epoch-{epoch}", {"value": torch.full((50_000,), epoch)}, {"epoch": str(epoch)})
    print("saved", flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_last_good_checkpoint(run: RunFolder):
    reached = 0
    for pause in (0.11, 0.237, 0.161):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(run.path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            # However slow the machine is: one is saved, and then it may be anywhere.
            assert process.stdout.readline() == b"saved\n"
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
        again = RunFolder.open(run.path)
        latest = again.latest_checkpoint()
        assert latest is not None
        epoch = int(latest.metadata["epoch"])
        assert latest.skipped == ()
        assert torch.equal(latest.tensors["value"], torch.full((50_000,), epoch))
        assert epoch > reached
        reached = epoch
        rows = [row["epoch"] for row in again.read_metrics()]
        assert rows in (list(range(1, epoch + 1)), list(range(1, epoch + 2)))
        assert len(again.checkpoint_names()) in (2, 3)  # the third is about to be removed


# No space


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if sys.platform == "linux"
        else None
    )
    if mounted is None or mounted.returncode:
        pytest.skip("mounting a file system of 200 kB is not permitted here, so a really full disk goes untested")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_good_checkpoint(tiny_disk: Path):
    run = RunFolder.create(tiny_disk / "run")
    run.write_json("config.json", {})
    weights = {"value": torch.arange(20_000)}  # 160 kB: one fits, two do not
    run.save_checkpoint("epoch-1", weights, {})
    before = content(run)
    with pytest.raises(StorageFull) as caught:
        run.save_checkpoint("epoch-2", weights, {})
    assert content(run) == before
    path = run.path / "checkpoints" / "000002.epoch-2.safetensors"
    message = str(caught.value)
    assert message.startswith(f"{path} could not be written (160,")
    assert message.endswith(
        "are free): no space left on the device\n"
        "  kept: the last good checkpoint, 000001.epoch-1.safetensors\n"
        f"  fix: free space there, then continue with --resume {run.path}"
    )
    assert (caught.value.errno, caught.value.exit_code) == (errno.ENOSPC, 3)
    assert torch.equal(run.latest_checkpoint().tensors["value"], weights["value"])

    with pytest.raises(StorageFull):
        for epoch in range(1000):
            run.append_metrics({"epoch": epoch, "padding": "x" * 500})
    assert [row["epoch"] for row in run.read_metrics()] == list(range(len(run.read_metrics())))

    naive = tiny_disk / "run" / "config.json"
    with pytest.raises(OSError, match="No space"):
        naive.write_bytes(b"x" * 100_000)
    with pytest.raises(json.JSONDecodeError):  # a plain write has destroyed it
        json.loads(naive.read_text())


def test_a_full_disk_before_the_first_checkpoint(tiny_disk: Path):
    run = RunFolder.create(tiny_disk / "run")
    with pytest.raises(StorageFull, match="kept: no checkpoint, because none was written yet"):
        run.save_checkpoint("start", {"value": torch.zeros(100_000)}, {})
    assert files(run) == []


def test_a_limit_on_the_size_of_files_is_told_apart(run: RunFolder):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    save(run, "epoch-1", 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(
            StorageFull, match="the file would be larger than allowed\n  kept: the last good checkpoint"
        ):
            run.save_tensors("model.safetensors", {"a": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "model.safetensors" not in files(run)


def test_a_folder_that_must_not_be_written(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunFolderError, match=r"report\.html cannot be written: Read-only file system\n  fix: another"):
        run.write_text("report.html", "x")


def test_other_errors_of_the_system_pass_through(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        run.write_text("report.html", "x")
    assert not isinstance(caught.value, StorageFull)


def test_a_run_begins_with_its_configuration_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.begin(tmp_path / "run", {"seed": 1})
    assert run.read_json("config.json") == {"seed": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunFolder.begin(tmp_path / "bad", {"lr": float("nan")})
    assert not (tmp_path / "bad").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunFolder.begin(tmp_path / "empty", {"lr": float("nan")})
    assert (tmp_path / "empty").is_dir()


def test_the_first_free_folder(tmp_path: Path) -> None:
    assert free_folder(f"{tmp_path}/run") == f"{tmp_path}/run-1"
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-3").mkdir()
    assert free_folder(f"{tmp_path}/run") == f"{tmp_path}/run-2"
