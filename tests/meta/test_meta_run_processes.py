"""The same command under a launcher: one process speaks and writes, and the weights are those of one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from two_ranks import free_port

from frostline.errors import ModelError
from frostline.meta.run import train
from frostline.meta.run_processes import Processes, join
from frostline.meta.run_settings import MetaConfig

SETTINGS: dict[str, Any] = {
    "way": 3,
    "queries": 2,
    "inner_lr": 0.1,
    "steps": 2,
    "iterations": 4,
    "meta_batch": 3,
    "width": 4,
    "eval_tasks": 6,
    "validate_every": 2,
    "validate_tasks": 3,
    "checkpoint_every": 2,
    "threads": 1,
}
CHILD = """
import os, sys, json
import torch, torch.distributed as dist
torch.set_num_threads(1)
from frostline.meta.run import train, resume
from frostline.meta.run_settings import MetaConfig
folder, settings, resuming = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "resume"
result = resume(folder) if resuming else train(MetaConfig(**settings), folder)
print(json.dumps([result.results["evaluation"]["rows"], dist.get_rank()]))
sys.stdout.flush()
# Leaving in order, and without what an interpreter tears down: a process that is faster would break the others' links.
dist.barrier()
os._exit(0)
"""


def in_two(folder: Path, script: Path, mode: str = "run") -> list[Any]:
    """Two processes of one run, as launchers set them up; what each of them found."""
    script.write_text(CHILD)
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), json.dumps(SETTINGS), mode],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        told = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], told
    return [json.loads(out.splitlines()[-1])[0] for out, _ in told]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A finished run of two processes, and what each of them found."""
    folder = tmp_path_factory.mktemp("processes")
    return folder / "two", in_two(folder / "two", folder / "child.py")


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one_and_one_of_them_writes(tmp_path: Path, two: tuple[Path, list[Any]]):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = train(MetaConfig(**SETTINGS), tmp_path / "alone")
    torch.set_num_threads(threads)
    folder, (first, second) = two
    assert first == second
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 2, 3, 4, 4]
    one, other = (load_file(place / "model.safetensors") for place in (tmp_path / "alone", folder))
    # A convolution's bias before a batch norm has no gradient but rounding errors, which Adam makes steps of.
    for name in [name for name in one if not name.endswith("conv.bias")]:
        # Sums over tasks are rounded in another order, and a step of Adam divides by the size of the gradient.
        assert torch.allclose(other[name], one[name], rtol=1e-4, atol=1e-6), name
    start = load_file(sorted((tmp_path / "alone" / "checkpoints").iterdir())[0])
    assert not torch.allclose(start["model/model.head.weight"], one["head.weight"], rtol=0, atol=1e-4)
    assert len(first) == len(alone.results["evaluation"]["rows"])


@pytest.mark.slow
def test_two_processes_resume_to_what_two_would_have_had(tmp_path: Path, two: tuple[Path, list[Any]]):
    whole, _ = two
    cut = Path(shutil.copytree(whole, tmp_path / "cut"))
    newest = sorted((cut / "checkpoints").iterdir())[-1]
    newest.unlink()
    for name in ("results.json", "model.safetensors", "learner.safetensors"):
        (cut / name).unlink()
    in_two(cut, tmp_path / "child.py", "resume")
    for name in ("results.json", "model.safetensors", "learner.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_alone_there_is_nothing_to_wait_for():
    alone = join("cpu")
    assert alone == Processes(torch.device("cpu"), 0, 1)
    assert alone.main
    alone.wait()
    assert alone.told(lambda: 3) == 3


def test_an_unknown_device_is_refused():
    with pytest.raises(ModelError, match="--device nonsense: there is no device 'nonsense'"):
        join("nonsense")
