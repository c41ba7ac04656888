"""Measures two sides against each other, in one process and in turn, and writes the ratio to JSON.

A machine that others use, or whose clock frequency wanders, is slow for minutes at a time. Both sides therefore run in
each round, one right after the other, in an order that flips from round to round; the result is the median over the
rounds of the ratio within a round. On Linux a round in which other processes took more than `QUIET` of the machine is
run again, whatever it showed; the JSON says how many were, and how many disturbed rounds had to be kept.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

SCHEMA_VERSION = 1
RESULTS = Path(__file__).parent / "results"
# The share of all processor time that others may take of a round.
QUIET = 0.03
_TICK = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01


@dataclass(frozen=True)
class Side:
    """What is timed: ``run``, ``repeats`` times in a row; ``prepare`` is called before, and not timed."""

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    repeats: int = 1

    def seconds(self) -> float:
        """The time of one run."""
        self.prepare()
        gc.collect()
        start = time.perf_counter()
        for _ in range(self.repeats):
            self.run()
        return (time.perf_counter() - start) / self.repeats


@dataclass
class Comparison:
    """How long ``side`` takes, with the time of ``baseline`` as the unit."""

    name: str
    side: str
    baseline: str
    goal: float | None
    median: float = 0.0
    quartiles: tuple[float, float] = (0.0, 0.0)
    met: bool | None = None
    side_seconds: float = 0.0
    baseline_seconds: float = 0.0
    repeated_rounds: int = 0
    disturbed_rounds: int = 0
    ratios: list[float] = field(default_factory=list)


def compare(name: str, side: Side, baseline: Side, *, rounds: int, goal: float | None, warmup: int = 1) -> Comparison:
    """Run both sides in turn; ``goal`` is the largest ratio of the medians that is good enough."""
    result = Comparison(name, side.name, baseline.name, goal)
    times: list[tuple[float, float]] = []
    for _ in range(warmup):
        side.seconds()
        baseline.seconds()
    while len(times) < rounds:
        order = (side, baseline) if len(times) % 2 == 0 else (baseline, side)
        watched = others()
        taken = {each: each.seconds() for each in order}
        disturbed = watched() > QUIET
        if disturbed and result.repeated_rounds < rounds:
            result.repeated_rounds += 1
            continue
        result.disturbed_rounds += disturbed
        times.append((taken[side], taken[baseline]))
    ratios = [ours / theirs for ours, theirs in times]
    low, result.median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    result.quartiles = (low, high)
    result.met = None if goal is None else result.median <= goal
    result.side_seconds = statistics.median(ours for ours, _ in times)
    result.baseline_seconds = statistics.median(theirs for _, theirs in times)
    result.ratios = ratios
    print(row(asdict(result)), flush=True)
    return result


def row(result: dict[str, Any]) -> str:
    """One line of the table of results."""
    low, high = result["quartiles"]
    goal = "none" if result["goal"] is None else f"<= {result['goal']:.4g}"
    met = {None: "", True: "met", False: "MISSED"}[result["met"]]
    figures = f"{result['median']:.4f} | {high - low:.4f} | {low:.4f} to {high:.4f}"
    times = f"{_short(result['side_seconds'])} / {_short(result['baseline_seconds'])}"
    return f"| {result['name']} | {goal} | {figures} | {times} | {met} |"


HEADER = "| measured | goal | median ratio | IQR | quartiles | times | |\n|---|---|---|---|---|---|---|"


def write(name: str, settings: dict[str, Any], comparisons: list[Comparison]) -> None:
    """Write the results, and what is needed to read them, to ``results/NAME.json``."""
    data = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": name,
        "machine": machine(),
        "settings": settings,
        "quiet_share": QUIET,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(data, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What of the machine a ratio depends on; nothing that names it."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "architecture": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def rounds_asked_for(default: int) -> int:
    """The number of rounds from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=default, help=f"rounds per comparison (default {default})")
    return max(2, parser.parse_args().rounds)


def resnet(name: str, images: torch.Tensor) -> torch.nn.Module:
    """A ResNet of torchvision with random weights, and with statistics that fit them.

    With the statistics it is built with, activations of a deep random ResNet overflow in eval mode.
    """
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = import_torchvision("models").get_model(name)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm in norms:
        norm.momentum = 0.1
    return model


def others() -> Callable[[], float]:
    """Starts to watch; the result says what share of the machine other processes have taken since."""
    start = (time.perf_counter(), _busy(), time.process_time())

    def share() -> float:
        wall, busy, own = (
            b - a for a, b in zip(start, (time.perf_counter(), _busy(), time.process_time()), strict=True)
        )
        cpus = os.cpu_count() or 1
        # The machine's account is kept in whole ticks.
        return max(0.0, busy - own - 2 * _TICK) / (wall * cpus)

    return share


def _busy() -> float:
    """Seconds that the processors have worked for anyone, stolen time included; 0 where there is no account of it."""
    try:
        user, nice, system, _idle, _wait, irq, soft, stolen, *_ = (
            Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        )
    except (OSError, ValueError):
        return 0.0
    return sum(map(int, (user, nice, system, irq, soft, stolen))) * _TICK


def _short(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
