"""A run that is killed with SIGKILL, at any moment, and resumed, ends as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from frostline.errors import CorruptCheckpoint, FrozenStateMoved, RunFolderError
from frostline.finetune import FinetuneConfig, resume, run
from frostline.runs.run_folder import RunFolder

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::frostline.errors.TorchvisionWithoutOperators"),
]


def without_seconds(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("seconds", "spent")} for row in rows]


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def assert_same(folder: Path, reference: Path) -> None:
    one, other = RunFolder.open(folder), RunFolder.open(reference)
    assert without_seconds(folder) == without_seconds(reference)
    assert one.read_json("certificate.json") == other.read_json("certificate.json")
    assert bits(one.load_tensors("model.safetensors")) == bits(other.load_tensors("model.safetensors"))
    last, expected = one.latest_checkpoint(), other.latest_checkpoint()
    assert last is not None
    assert expected is not None
    assert last.name == expected.name
    assert bits(last.tensors) == bits(expected.tensors)  # the optimizer's too
    assert not [path for path in folder.rglob("*") if path.name.endswith(".partial")]
    page = (folder / "report.html").read_text()
    assert page.rstrip().endswith("</html>")


# The writes of a run, in their order: config.json, a checkpoint and metrics for each of two epochs, `start`, the same
# for the second phase, metrics of the naive loop, certificate.json, model.safetensors, report.html.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "number", "when"),
    [
        pytest.param("config.json", 1, "after", id="right after config.json"),
        pytest.param("digit-epoch-1", 1, "after", id="phase 1, a checkpoint but no row yet"),
        pytest.param("digit-epoch-2", 1, "half", id="phase 1, in the middle of a checkpoint"),
        pytest.param(".start.", 1, "after", id="at the start of phase 2"),
        pytest.param("metrics", 3, "half", id="phase 2, in the middle of a row"),
        pytest.param("metrics", 6, "before", id="in the naive loop"),
        pytest.param("model.safetensors", 1, "half", id="in the middle of the model"),
    ],
)
def test_killed_and_resumed_is_as_if_nothing_had_happened(
    tmp_path: Path, digits_run: Any, mortal: Any, file: str, number: int, when: str
):
    folder = tmp_path / "run"
    assert mortal.run(folder, file, number, when, digits_run.config) == -signal.SIGKILL
    resume(folder)
    assert_same(folder, digits_run.result.folder)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path, digits_run: Any, mortal: Any):
    folder = tmp_path / "run"
    assert mortal.run(folder, "config.json", 1, "after", digits_run.config) == -signal.SIGKILL
    for file in ("digit-epoch-1", "digit-epoch-2", ".start.", "parity-epoch-1", "parity-epoch-2", "certificate"):
        assert mortal.run(folder, file, 1, "after") == -signal.SIGKILL
    resume(folder)
    assert_same(folder, digits_run.result.folder)


@pytest.mark.slow
def test_a_kill_from_outside_and_the_command(tmp_path: Path, digits_run: Any):
    """As a user meets it: the command, a kill whenever it comes, the command again."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "frostline", "finetune"]
    first = [*command, "--epochs", "2", "--batch-size", "128", "--out", folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(first, env=environment, stdout=subprocess.DEVNULL) as process:
        metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
    done = subprocess.run([*command, "--resume", folder], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines()[0].startswith("resuming after "), done.stderr) == (True, "")
    assert_same(folder, digits_run.result.folder)


def test_a_finished_run_that_is_resumed_gives_the_same_again(digits_run: Any, tmp_path: Path, recorder: Any):
    folder = copy_of(digits_run.result.folder, tmp_path)
    again = resume(folder, progress=recorder)
    assert_same(folder, digits_run.result.folder)
    assert again.certificate == digits_run.result.certificate
    assert recorder.said[0] == "resuming after parity-epoch-2"
    already = "already finished: parity has its 2 epochs; only the proof and the report are made again"
    assert recorder.said[1] == already
    assert recorder.begun == [("parity (naive)", 2, 0)]  # no epoch of ours is done again
    assert recorder.computed == []  # nor any feature


def copy_of(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place / "run"))


def test_an_epoch_that_is_kept_without_its_row_gets_it(digits_run: Any, tmp_path: Path):
    """Killed between the checkpoint and the row of the same epoch."""
    folder = copy_of(digits_run.result.folder, tmp_path)
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:3]))
    again = resume(folder)
    assert_same(folder, digits_run.result.folder)
    assert [json.loads(line) for line in metrics.read_text().splitlines()] == [row.to_json() for row in again.rows]


def test_what_the_epochs_before_spent_is_known_again(digits_run: Any, tmp_path: Path):
    """Saving the last checkpoint too, which that checkpoint itself cannot say."""
    again = resume(copy_of(digits_run.result.folder, tmp_path))
    before = [row.to_json() for row in digits_run.result.rows]
    assert [row.to_json() for row in again.rows][:4] == before[:4]
    assert all(row["spent"]["saving"] > 0 for row in before[:4])
    assert "preparing" in again.outside
    assert "outside of the epochs, since the run was resumed: " in (again.folder / "report.html").read_text()


# Damage


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(digits_run: Any, tmp_path: Path, recorder: Any):
    folder = copy_of(digits_run.result.folder, tmp_path)
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    resume(folder, progress=recorder)
    assert recorder.said[0].startswith(f"passing over a damaged checkpoint, {newest.name}: cut short or damaged")
    assert recorder.said[1] == "resuming after parity-epoch-1"
    assert recorder.begun[0] == ("parity", 2, 1)
    assert_same(folder, digits_run.result.folder)


def test_one_flipped_bit_in_the_newest_two_is_found(digits_run: Any, tmp_path: Path, recorder: Any):
    folder = copy_of(digits_run.result.folder, tmp_path)
    for path in sorted((folder / "checkpoints").iterdir())[-2:]:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    resume(folder, progress=recorder)
    assert recorder.said[2] == "resuming after start"
    assert_same(folder, digits_run.result.folder)


def test_when_all_are_damaged_it_is_refused_and_nothing_changes(digits_run: Any, tmp_path: Path):
    folder = copy_of(digits_run.result.folder, tmp_path)
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(CorruptCheckpoint, match=r"no checkpoint in .* can be read") as caught:
        resume(folder)
    assert caught.value.exit_code == 3
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_start_that_the_proof_needs_cannot_be_done_without(digits_run: Any, tmp_path: Path):
    folder = copy_of(digits_run.result.folder, tmp_path)
    next((folder / "checkpoints").glob("*.start.*")).write_bytes(b"")
    with pytest.raises(CorruptCheckpoint, match=r"start\.safetensors cannot be read"):
        resume(folder)


def test_a_held_tensor_that_was_changed_in_the_checkpoint_is_no_clean_run(digits_run: Any, tmp_path: Path):
    """The certificate is about the start of the phase, whatever happened in between."""
    folder = RunFolder.open(copy_of(digits_run.result.folder, tmp_path))
    last = folder.latest_checkpoint()
    assert last is not None
    last.tensors["model/trunk.bn1.running_mean"][0] += 1
    folder.save_checkpoint(last.name, last.tensors, last.metadata, keep=("start",))
    with pytest.raises(FrozenStateMoved, match=r"trunk\.bn1\.running_mean"):
        resume(folder.path)


# What can be resumed


def test_another_device_may_be_named(digits_run: Any, tmp_path: Path):
    folder = copy_of(digits_run.result.folder, tmp_path)
    resume(folder, device="cpu")
    assert_same(folder, digits_run.result.folder)
    assert json.loads((folder / "config.json").read_text())["device"] == "auto"


def test_an_image_folder_too(tmp_path: Path, photos: Path, small_net: str, recorder: Any):
    """Augmentation is random; what is drawn depends on seed and epoch alone."""
    config = FinetuneConfig(
        data=str(photos),
        model=f"{small_net}:Net",
        freeze=("stem", "norm"),
        epochs=3,
        batch_size=4,
        workers=0,
        naive=True,
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(config, whole)

    class Stopped(Exception):
        pass

    class StopsInEpochTwo(type(recorder)):
        def step(self, phase: str, epoch: int, done: int, steps: int, loss: float) -> None:
            if (epoch, done) == (2, 2):
                raise Stopped

    with pytest.raises(Stopped):
        run(config, cut, progress=StopsInEpochTwo())
    resume(cut)
    assert_same(cut, whole)


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(RunFolderError, match="no run to resume"):
        resume(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"has no config\.json"):
        resume(tmp_path)
