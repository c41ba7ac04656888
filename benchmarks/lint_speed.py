"""How fast the linter is: against TorchFix on the same tree, by lines and core, on all cores, and on unchanged files.

    python benchmarks/lint_speed.py [--rounds N]

Both commands are run as a user runs them, in processes of their own, in turn. The trees are installed packages.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from lint_corpus import found_packages, packages
from measure import Side, compare, write

from frostline.lint.run import lint_paths
from frostline.lint.settings import Settings

# Small, because TorchFix takes about a millisecond for each line of it.
SMALL = ("timm/layers", "torchvision/ops")


def command(*words: str) -> None:
    """Run a command of this environment; findings are no failure."""
    path = Path(sys.executable).parent / words[0]
    done = subprocess.run([str(path), *words[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr.decode())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    site, everything = found_packages(packages())
    # What is run several times: a fifth of it all.
    trees = [tree for tree in everything if tree.name not in {"transformers", "sklearn"}]
    small = [str(site / name) for name in SMALL]
    comparisons = [
        compare(
            "frostline lint, one process, nothing cached: timm.layers and torchvision.ops",
            Side("frostline lint", lambda: command("frostline", "lint", "--no-cache", "--jobs", "1", *small)),
            Side("torchfix --select=ALL -j 1", lambda: command("torchfix", "--select=ALL", "-j", "1", *small)),
            rounds=options.rounds,
            goal=0.1,
            warmup=1,
        )
    ]
    settings = replace(Settings(), cache_dir=folder / "cache")
    report = lint_paths(trees, settings, cache=False)

    def first() -> None:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        lint_paths(trees, settings)

    def again() -> None:
        if lint_paths(trees, settings).cached != report.files:
            raise RuntimeError("not everything came from the cache")

    # The first run of each round fills the cache that the second one reads.
    comparisons.append(
        compare(
            f"a second run over {report.files:,} unchanged files",
            Side("from the cache", again, prepare=first),
            Side("the first run", first),
            rounds=max(2, options.rounds // 2),
            goal=0.1,
            warmup=0,
        )
    )
    comparisons.append(
        compare(
            "all cores",
            Side(f"{os.cpu_count()} processes", lambda: lint_paths(trees, settings, cache=False)),
            Side("one process", lambda: lint_paths(trees, settings, cache=False, jobs=1)),
            rounds=max(2, options.rounds // 2),
            goal=0.7,
            warmup=0,
        )
    )
    start, wall = time.process_time(), time.perf_counter()
    report = lint_paths(everything, settings, cache=False, jobs=1)
    busy, wall = time.process_time() - start, time.perf_counter() - wall
    speed = {
        "lines": report.lines,
        "files": report.files,
        "seconds": round(wall, 2),
        "processor_seconds": round(busy, 2),
        "lines_per_second_and_core": round(report.lines / wall),
        "lines_per_processor_second": round(report.lines / busy),
        "goal": 20_000,
    }
    print(speed)
    shutil.rmtree(folder)
    write("lint_speed", {"small": SMALL, "packages": [tree.name for tree in trees], "speed": speed}, comparisons)


if __name__ == "__main__":
    main()
