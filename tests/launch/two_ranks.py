"""Runs a script in two processes under a real torchrun, and gives back what each of them found."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import frostline

# What every script begins with; `found` is what the test gets to see.
_BEGINNING = """
import json, os, sys, warnings
import torch, torch.distributed as dist
from torch import nn
import frostline as fl

torch.set_num_threads(1)
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group("gloo")
found = {}
"""
_END = """
with open(os.path.join(os.environ["FOUND"], f"{rank}.json"), "w") as file:
    json.dump(found, file)
dist.barrier()
# A reducer that was left waiting aborts the process when the interpreter takes it down, after all that is tested.
os._exit(0)
"""


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def torchrun(
    folder: Path, *command: str, processes: int = 2, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script, or ``-m`` and a module, under torchrun in a folder; the caller looks at its exit code."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_addr", "127.0.0.1"]
    return subprocess.run(
        [sys.executable, "-W", "ignore", *launcher, "--master_port", free_port(), *command],
        cwd=folder,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "TORCHELASTIC_ERROR_FILE": "",
            "PYTHONPATH": os.pathsep.join([str(Path(frostline.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def on_two_ranks(folder: Path, body: str, *, timeout: float = 240) -> list[dict[str, Any]]:
    """What ``body`` put into ``found`` on each of two ranks.

    The body finds ``torch``, ``dist``, ``nn``, ``fl``, ``rank`` and ``world``; the process group is there.
    """
    script = folder / "script.py"
    script.write_text(_BEGINNING + body + _END)
    done = torchrun(folder, str(script), timeout=timeout, FOUND=str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
