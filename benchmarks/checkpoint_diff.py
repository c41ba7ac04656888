"""What does comparing two checkpoints of 2 GB cost? Against reading both once, and against loading both.

The goal is for files on the disk: their pages are dropped before each run, as far as the system does that (Linux), so
that both sides read them anew; reading goes through one buffer on one thread, and comparing takes as many as torch
does, four at most. The same from the page cache has no goal: there, reading is copying memory, many times
faster than any disk, and the arithmetic over what has changed takes longer than that. Peak memory is that of a fresh
process, over what it had after the imports; the goal is 256 MB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import Comparison, Side, compare, rounds_asked_for, row, write
from safetensors.torch import load_file
from torch import Tensor

from frostline.checkpoint.compare import compare as compare_checkpoints
from frostline.checkpoint.opened import open_checkpoint
from frostline.checkpoint.stored import StoredTensor, as_bytes
from frostline.checkpoint.tensor_writer import write_tensors

GOAL = 1.3
MOST_MB = 256
BLOCKS = 119
# 16 MiB of weights in each block, and the tensors of a norm.
WEIGHT = (2048, 2048)
CHANNELS = 2048
NORMAL = torch.randn(WEIGHT[0] * WEIGHT[1], generator=torch.Generator().manual_seed(0))

CHILD = """
import sys
from pathlib import Path
from frostline.checkpoint.compare import compare
from frostline.checkpoint.opened import open_checkpoint
import safetensors.torch, torch

def peak():
    # Not ru_maxrss, which a process inherits from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

before, after, how = sys.argv[1:]
start = peak()
if how == "compare":
    assert compare(open_checkpoint(before).tensors, open_checkpoint(after).tensors)
else:
    old, new = safetensors.torch.load_file(before), safetensors.torch.load_file(after)
    assert {name: (new[name] - old[name]).abs().max() for name in old if not torch.equal(old[name], new[name])}
print(peak() - start)
"""


@dataclass(frozen=True, eq=False)
class Made(StoredTensor):
    """A tensor that is made when it is asked for; ``moved`` by a little, or not."""

    seed: int
    moved: bool

    def read(self) -> Tensor:
        value = NORMAL[: self.numel].reshape(self.shape) + self.seed
        return value.add_(1e-3) if self.moved else value

    def pieces(self, most: int) -> Iterator[Tensor]:
        yield from as_bytes(self.read()).split(most)


def make(path: Path, every: int) -> None:
    """Write the checkpoint, with every so many blocks changed; 0 for none."""
    entries: dict[str, StoredTensor] = {}
    for block in range(BLOCKS):
        moved = every > 0 and block % every == 0
        shapes = {"conv.weight": WEIGHT}
        shapes |= {f"norm.{leaf}": (CHANNELS,) for leaf in ("weight", "bias", "running_mean", "running_var")}
        for leaf, shape in shapes.items():
            entries[f"blocks.{block}.{leaf}"] = Made(shape, torch.float32, len(entries), len(entries), moved)
    write_tensors(path, entries, {})


class Files:
    """Two checkpoints, and what is done with them."""

    def __init__(self, before: Path, after: Path) -> None:
        self.paths = (before, after)

    def compare(self) -> None:
        before, after = (open_checkpoint(path).tensors for path in self.paths)
        assert compare_checkpoints(before, after)

    def read(self) -> None:
        buffer = memoryview(bytearray(4 * 2**20))
        for path in self.paths:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def load(self) -> None:
        old, new = map(load_file, self.paths)
        assert {name: (new[name] - old[name]).abs().max() for name in old if not torch.equal(old[name], new[name])}

    def drop(self) -> None:
        """Make the system forget what is in the files."""
        for path in self.paths:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def peak(self, how: str) -> int:
        command = [sys.executable, "-c", CHILD, *map(str, self.paths), how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measured(what: str, files: Files, rounds: int, peaks: dict[str, int]) -> list[Comparison]:
    title = f"diff of two 2 GB files, {what}"
    read, load = Side("readinto", files.read), Side("load_file", files.load)
    cold = Side("frostline.checkpoint.compare", files.compare, files.drop)
    warm = Side("frostline.checkpoint.compare", files.compare)
    cold_read, cold_load = (Side(side.name, side.run, files.drop) for side in (read, load))
    results = [
        compare(f"{title}, from the disk: compare / reading both", cold, cold_read, rounds=rounds, goal=GOAL),
        compare(f"{title}, from the disk: compare / load_file", cold, cold_load, rounds=rounds, goal=None),
        compare(f"{title}, from the page cache: compare / reading both", warm, read, rounds=rounds, goal=None),
        compare(f"{title}, from the page cache: compare / load_file", warm, load, rounds=rounds, goal=None),
    ]
    for how in ("compare", "load_file"):
        peaks[f"{what}: {how}"] = files.peak(how)
    share = peaks[f"{what}: compare"] / (MOST_MB * 1e6)
    memory = Comparison(f"{title}: peak memory of compare / {MOST_MB} MB", cold.name, f"{MOST_MB} MB", 1.0, share)
    memory.quartiles, memory.ratios, memory.met = (share, share), [share], share <= 1.0
    print(row(memory.__dict__), flush=True)
    return [*results, memory]


def main() -> None:
    rounds = rounds_asked_for(7)
    peaks: dict[str, int] = {}
    results: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder) / "before.safetensors", Path(folder) / "after.safetensors")
        make(files.paths[0], 0)
        for what, every in (("every tenth block changed", 10), ("all changed", 1)):
            make(files.paths[1], every)
            results += measured(what, files, rounds, peaks)
        size = files.paths[0].stat().st_size
    write("checkpoint_diff", {"file_bytes": size, "rounds": rounds, "peak_bytes_over_imports": peaks}, results)


if __name__ == "__main__":
    main()
