"""What does one sub-tree of 4 MB out of a checkpoint of 1 GB cost? Against ``torch.load`` and a dict comprehension.

The goal is for a file on the disk: its pages are dropped before each run, as far as the system does that (Linux). From
the page cache loading all is copying memory, at ten gigabytes a second, and the time of ours is that of opening the
file; it has no goal there. Nor has safetensors' own `load_file`, which maps the file and reads what is touched. Peak
memory is that of a fresh process over what it had after the imports, with the model of 4 MB in it: the goal is 32 MB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measure import Comparison, Side, compare, rounds_asked_for, write
from safetensors.torch import load_file, save_file
from torch import nn

from frostline.checkpoint import plan_load

GOAL = 0.02
MOST_MB = 32
BLOCKS = 249

CHILD = """
import sys
from pathlib import Path
import torch
from torch import nn
from safetensors.torch import load_file
import frostline.attach.ledger, frostline.checkpoint, frostline.checkpoint.apply

def peak():
    # Not ru_maxrss, which a process inherits from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

path, how = sys.argv[1:]
model = nn.Sequential(nn.Linear(1023, 1024))
start = peak()
if how == "plan":
    frostline.checkpoint.plan_load(model, path, take="blocks.100").apply()
else:
    state = load_file(path) if path.endswith("safetensors") else torch.load(path, weights_only=True)
    prefix = "blocks.100."
    model.load_state_dict({k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)})
print(peak() - start)
"""


def state() -> dict[str, torch.Tensor]:
    """1 GB: blocks of 4 MB."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, torch.Tensor] = {}
    for block in range(BLOCKS):
        found[f"blocks.{block}.0.weight"] = torch.randn(1024, 1023, generator=generator)
        found[f"blocks.{block}.0.bias"] = torch.randn(1024, generator=generator)
    return found


def plan(path: Path, model: nn.Module) -> None:
    """Ours."""
    assert plan_load(model, path, take="blocks.100").apply().coverage == 1


def by_hand(path: Path, model: nn.Module) -> None:
    """As it is done everywhere."""
    loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    prefix = "blocks.100."
    model.load_state_dict({k[len(prefix) :]: v for k, v in loaded.items() if k.startswith(prefix)})


def drop(path: Path) -> None:
    """Make the system forget what is in the file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak(path: Path, how: str) -> int:
    """Peak memory of a fresh process over its imports, in bytes."""
    command = [sys.executable, "-c", CHILD, str(path), how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    rounds = rounds_asked_for(9)
    comparisons: list[Comparison] = []
    peaks: dict[str, int] = {}
    model = nn.Sequential(nn.Linear(1023, 1024))
    with tempfile.TemporaryDirectory() as folder:
        files = {"safetensors": Path(folder) / "all.safetensors", "torch zip": Path(folder) / "all.pt"}
        everything = state()
        save_file(everything, files["safetensors"])
        torch.save(everything, files["torch zip"])
        del everything
        for kind, path in files.items():
            ours = Side("plan_load of 4 MB", lambda path=path: plan(path, model))
            theirs = Side("load all, dict comprehension", lambda path=path: by_hand(path, model))
            cold = [Side(side.name, side.run, lambda path=path: drop(path)) for side in (ours, theirs)]
            goal = GOAL if kind == "torch zip" else None
            name = f"4 MB out of 1 GB, {kind}"
            comparisons.append(compare(f"{name}, from the disk", *cold, rounds=rounds, goal=goal))
            comparisons.append(compare(f"{name}, from the page cache", ours, theirs, rounds=rounds, goal=None))
            peaks |= {f"{kind}, {how}": peak(path, how) for how in ("plan", "by hand")}
    for name, size in peaks.items():
        print(f"peak memory, {name}: {size / 1e6:.1f} MB")
    write(
        "checkpoint_subtree", {"rounds": rounds, "peak_bytes": peaks, "peak_goal_bytes": MOST_MB * 10**6}, comparisons
    )


if __name__ == "__main__":
    main()
