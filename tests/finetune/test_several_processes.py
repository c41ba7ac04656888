"""The same command under a launcher: what is held stays on every process, and one of them speaks and writes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow
TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"]
COMMAND = ["-m", "frostline", "finetune", "--device", "cpu"]


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def launch(launcher: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *launcher, free_port(), *COMMAND, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


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
