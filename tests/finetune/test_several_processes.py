"""The same command under a launcher: what is held stays on every process, and one of them speaks and writes."""

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
from safetensors.numpy import load_file
from two_ranks import free_port

from frostline.finetune import FinetuneConfig, run

pytestmark = pytest.mark.slow
TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"]
COMMAND = ["-m", "frostline", "finetune", "--device", "cpu"]


def command(launcher: list[str], *options: str) -> list[str]:
    return [sys.executable, "-m", *launcher, free_port(), *COMMAND, *options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def launch(launcher: list[str], *options: str, **where: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(launcher, *options),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **where,
    )


def bits(path: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_file(path).items()}


def accuracies(folder: Path) -> list[tuple[str, int, float, float]]:
    rows: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["phase"], row["epoch"], row["accuracy"], row["loss"]) for row in rows]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("several") / "run"
    return folder, launch(TORCHRUN, "--epochs", "2", "--batch-size", "128", "--out", str(folder))


def test_what_is_held_stays_and_one_process_speaks(launched: tuple[Path, subprocess.CompletedProcess[str]]):
    folder, done = launched
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "training digit: 2 epochs"
    for start in ("training digit", "training parity: ", "parity: accuracy", "held: ", "run folder"):
        assert sum(line.startswith(start) for line in lines) == 1
    assert "batch size" in (folder / "report.html").read_text()

    assert len(accuracies(folder)) == 6  # three phases of two epochs, each written once
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["moved"] == []
    assert certificate["probe"]["digit"]["logits_equal"]
    (start,) = (folder / "checkpoints").glob("*.start.*")
    before, after = bits(start), bits(folder / "model.safetensors")
    assert {name for name in after if before[f"model/{name}"] != after[name]} == {
        "heads.parity.weight",
        "heads.parity.bias",
    }
    assert len(certificate["naive"]["moved"]) == 9


def test_one_process_holds_the_same_and_comes_to_the_same(
    launched: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
):
    """The trunk that is held is trained in the run, on every process alone: equal to the bit.

    The head then trains on halves of the same batches. Sums of floats come in another order, and AdamW divides by what
    gradients were: the loss of an epoch may differ by some units of the last place of float32 (6e-8) for each of its 22
    steps; four times as much is allowed.
    """
    one = run(FinetuneConfig(epochs=2, batch_size=128, naive=False, device="cpu"), tmp_path / "run")
    certificate = json.loads((launched[0] / "certificate.json").read_text())
    assert certificate["held"] == json.loads(json.dumps(one.certificate["held"]))
    there = [row for row in accuracies(launched[0]) if "naive" not in row[0]]
    here = accuracies(tmp_path / "run")
    assert [row[:3] for row in there] == [row[:3] for row in here]
    for two, alone in zip(there, here, strict=True):
        assert two[3] == pytest.approx(alone[3], rel=22 * 4 * 6e-8)


def test_accelerate_launch_resumes_to_the_same_result(
    launched: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
):
    folder = Path(shutil.copytree(launched[0], tmp_path / "run"))
    sorted((folder / "checkpoints").iterdir())[-1].unlink()
    done = launch(ACCELERATE, "--resume", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["isolated"]  # one object, from one process
    assert done.stderr.count("resuming after parity-epoch-1") == 1
    assert bits(folder / "model.safetensors") == bits(launched[0] / "model.safetensors")
    assert accuracies(folder) == accuracies(launched[0])
    one, other = (json.loads((place / "certificate.json").read_text()) for place in (folder, launched[0]))
    assert one == other


def test_a_batch_that_cannot_be_split_is_said_once(tmp_path: Path):
    done = launch(TORCHRUN, "--batch-size", "31", "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    assert done.stderr.count("error: --batch-size 31 cannot be split evenly over 2 processes.") == 1
    assert not (tmp_path / "run").exists()


def test_what_is_unfrozen_on_the_way_is_exchanged(small_net: str, photos: Path, tmp_path: Path):
    """Every parameter and every statistic is compared between the processes at the end; the run fails if one differs.

    Batches of 8 and of 4 images, as 12 are there.
    """
    settings = ["--data", str(photos), "--model", f"{small_net}:Net", "--workers", "0", "--epochs", "3"]
    settings += ["--batch-size", "8", "--strategy", "gradual", "--lr", "0.01", "--out", str(tmp_path / "run")]
    done = launch(TORCHRUN, *settings)
    assert done.returncode == 0, done.stderr
    assert "unfrozen: " in done.stdout
    (start,) = (tmp_path / "run" / "checkpoints").glob("*.start.*")
    last = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    before, after = bits(start), bits(last)
    assert before["model/trunk.stem.weight"] != after["model/trunk.stem.weight"]
    assert before["model/trunk.norm.running_mean"] != after["model/trunk.norm.running_mean"]


def test_a_worker_that_is_killed_ends_the_run_with_one_error_and_a_good_checkpoint(
    small_net: str, photos: Path, tmp_path: Path
):
    folder = tmp_path / "run"
    settings = ["--data", str(photos), "--model", f"{small_net}:Net", "--workers", "0", "--epochs", "4000"]
    settings += ["--prefix", "folded", "--out", str(folder)]
    launcher = subprocess.Popen(
        command(TORCHRUN, *settings), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "metrics.jsonl").is_file() or (folder / "metrics.jsonl").read_text().count("\n") < 3:
            assert launcher.poll() is None, launcher.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(worker_of(launcher.pid, rank=1), signal.SIGKILL)
        out, err = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert launcher.returncode != 0
    assert err.count("error: another process of this run has ended, and the run with it") == 1
    kept = err.split("kept: the last good checkpoint, ")[1].splitlines()[0]
    assert bits(Path(kept))
    assert "then go on with --resume" in err
    assert "\nheld:" not in out


def worker_of(launcher: int, *, rank: int) -> int:
    """The process id of a worker, found by what the launcher put into its environment."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (path / "environ").read_text().split("\0")
        except (OSError, IndexError):
            continue
        if parent == launcher and f"RANK={rank}" in variables:
            return int(path.name)
    raise AssertionError("no such worker")
