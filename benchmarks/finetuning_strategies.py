"""Which way of fine-tuning wins where, and what it costs: five strategies and training from scratch, on three tasks.

The same start, epochs and optimizer, and for one seed the same head, batches and augmentation for all. Each strategy
has one rate, chosen beforehand by a seed that is not used again, on training images of its split alone. (PACS is split
anew by each seed: there, such an image may be one that another seed judges by.) Runs have one thread each, so that a
machine that others use slows them down in proportion and no more; seconds are those of the processor.

    python benchmarks/finetuning_strategies.py [--seeds N] [--jobs N] [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, SCHEMA_VERSION, machine
from strategies_start import (
    BATCH,
    WIDTH,
    Task,
    kept_start,
    real_task,
    synthetic_task,
    trained_start,
    write_start,
)
from strategies_training import LAYER_DECAY, STRATEGIES, TRUNK_SHARE, WEIGHT_DECAY, Plan, Run, fine_tune

REFERENCE = "full"
MEASURES = ("last", "best")
# 97.5 % points of Student's t, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Suite:
    """What is run.

    Attributes:
        tasks: their names.
        seeds: of the runs that count.
        rates: to choose from.
        choosing_seeds: of the runs that rates are chosen by.
        plan: what all runs have in common.
        synthetic: whether the tasks are the synthetic ones.
        jobs: processes.
    """

    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    choosing_seeds: tuple[int, ...]
    plan: Plan
    synthetic: bool
    jobs: int


@dataclass(frozen=True)
class Job:
    """One run, as plain values that another process can be told."""

    strategy: str
    task: str
    seed: int
    rate: float
    choosing: bool


def full_suite(seeds: int, jobs: int) -> tuple[Suite, dict[str, float]]:
    """The suite on real images, and what is known of its start."""
    file, facts = kept_start()
    plan = Plan(epochs=20, batch=16, width=WIDTH, start=file)
    tasks = ("hymenoptera", "art_painting", "sketch")
    return Suite(tasks, tuple(range(seeds)), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (100,), plan, False, jobs), facts


def quick_suite(folder: Path) -> tuple[Suite, dict[str, float]]:
    """A small one on synthetic images, which takes seconds and says nothing about strategies."""
    images = synthetic_task("stripes to start from", 0).train
    file = folder / "start.safetensors"
    write_start(trained_start(images, 0, epochs=2, width=8), file)
    plan = Plan(epochs=6, batch=8, width=8, start=file)
    return Suite(("stripes",), (0, 1), (1e-3, 3e-3), (100,), plan, True, 1), {"images": len(images), "epochs": 2}


# Running ------------------------------------------------------------------------------------------------------------


def run_suite(suite: Suite, start: dict[str, float]) -> dict[str, Any]:
    """Choose the rates, run everything, and sum it up as JSON-ready values."""
    clock = time.perf_counter()
    asked = [
        Job(strategy, task, seed, rate, choosing=True)
        for seed in suite.choosing_seeds
        for task in suite.tasks
        for strategy in STRATEGIES
        for rate in suite.rates
    ]
    tried = run_all(suite, asked)
    rates = {strategy: chosen_rate(strategy, tried) for strategy in STRATEGIES}
    # Strategies innermost: what slows the machine down for a while slows all of them down.
    asked = [
        Job(strategy, task, seed, rates[strategy], choosing=False)
        for seed in suite.seeds
        for task in suite.tasks
        for strategy in STRATEGIES
    ]
    runs = run_all(suite, asked)
    plan = suite.plan
    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark": "finetuning_strategies",
        "machine": machine(),
        "settings": {
            "tasks": list(suite.tasks), "seeds": list(suite.seeds), "epochs": plan.epochs, "batch": plan.batch,
            "width": plan.width, "optimizer": "AdamW", "weight_decay": WEIGHT_DECAY, "trunk_share": TRUNK_SHARE,
            "layer_decay": LAYER_DECAY, "jobs": suite.jobs, "seconds": round(time.perf_counter() - clock),
        },
        "start": {**start, "batch": BATCH},
        "rates": {
            "choosing_seeds": list(suite.choosing_seeds),
            "chosen": rates,
            "accuracy": {s: {str(rate): settled(tried, s, rate) for rate in suite.rates} for s in STRATEGIES},
        },
        "summary": summary(suite.tasks, runs),
        "against_full": [
            difference(task, strategy, measure, runs)
            for task in suite.tasks for strategy in STRATEGIES if strategy != REFERENCE for measure in MEASURES
        ],
        "runs": [{**asdict(run), "curve": [round(value, 4) for value in run.curve]} for run in runs],
    }  # fmt: skip


def run_all(suite: Suite, jobs: Sequence[Job]) -> list[Run]:
    """Each run, in the order asked for; in other processes if there are to be several."""
    if suite.jobs == 1:
        return [_run(suite, job) for job in jobs]
    # Not forked: this process has trained the start, and threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(suite.jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        runs: list[Run] = []
        for run in pool.map(_run, [suite] * len(jobs), jobs):
            runs.append(run)
            said = f"{len(runs)}/{len(jobs)} {run.task} {run.strategy} seed {run.seed} rate {run.rate:g}"
            print(f"{said}: {run.last:.3f}, {run.cpu_seconds:.1f} s", file=sys.stderr, flush=True)
        return runs


def _run(suite: Suite, job: Job) -> Run:
    task = _task(job.task, job.seed, suite.synthetic)
    return fine_tune(job.strategy, task.without_val(job.seed) if job.choosing else task, job.seed, job.rate, suite.plan)


@cache
def _task(name: str, seed: int, synthetic: bool) -> Task:
    return synthetic_task(name, seed) if synthetic else real_task(name, seed)


# What came of it ----------------------------------------------------------------------------------------------------


def chosen_rate(strategy: str, tried: Iterable[Run]) -> float:
    """The rate with the highest accuracy over all tasks, late in the runs; of equals the smaller."""
    runs = [run for run in tried if run.strategy == strategy]
    return max(sorted({run.rate for run in runs}), key=lambda rate: settled(runs, strategy, rate))


def settled(tried: Iterable[Run], strategy: str, rate: float) -> float:
    """Mean accuracy over tasks and seeds, and over the last quarter of the epochs, which a few images sway less."""
    runs = [run for run in tried if (run.strategy, run.rate) == (strategy, rate)]
    return statistics.fmean(value for run in runs for value in run.curve[-max(1, len(run.curve) // 4) :])


def summary(tasks: Iterable[str], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, for each task and strategy."""
    rows: list[dict[str, Any]] = []
    for task in tasks:
        for strategy in STRATEGIES:
            those = [run for run in runs if (run.task, run.strategy) == (task, strategy)]
            row: dict[str, Any] = {"task": task, "strategy": strategy, "rate": those[0].rate}
            for name in (*MEASURES, "cpu_seconds", "seconds", "moved", "distance", "trained"):
                values = [float(getattr(run, name)) for run in those]
                row[name] = {"mean": statistics.fmean(values), "sd": _spread(values)}
            rows.append(row)
    return rows


def difference(task: str, strategy: str, measure: str, runs: Sequence[Run]) -> dict[str, Any]:
    """How much better than ``full``, seed by seed, with the 95 % interval of the mean."""
    values = {(run.strategy, run.seed): float(getattr(run, measure)) for run in runs if run.task == task}
    seeds = sorted(seed for name, seed in values if name == strategy)
    gaps = [values[strategy, seed] - values[REFERENCE, seed] for seed in seeds]
    mean = statistics.fmean(gaps)
    half = _T[len(gaps) - 1] * _spread(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf
    figures = {"mean": mean, "low": mean - half, "high": mean + half, "differs": abs(mean) > half}
    return {"task": task, "strategy": strategy, "measure": measure, **figures}


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


# Telling ------------------------------------------------------------------------------------------------------------


def tables(result: dict[str, Any]) -> str:
    """The results as Markdown, and what they say in words."""
    titles = (
        "strategy", "rate", "last epoch, %", "best epoch, %", "against full, last", "against full, best",
        "processor seconds", "trunk moved, %", "how far",
    )  # fmt: skip
    gaps = {(row["task"], row["strategy"], row["measure"]): row for row in result["against_full"]}
    parts: list[str] = []
    for task in result["settings"]["tasks"]:
        lines = [f"**{task}**\n", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
        for row in _of_task(result, task):
            against = [_interval(gaps.get((task, row["strategy"], measure))) for measure in MEASURES]
            cells = [
                row["strategy"], f"{row['rate']:g}", *(_percent(row[measure]) for measure in MEASURES), *against,
                f"{row['cpu_seconds']['mean']:.1f}", f"{100 * row['moved']['mean']:.1f}",
                f"{row['distance']['mean']:.3f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, verdict(result)])


def verdict(result: dict[str, Any]) -> str:
    """Which strategy is ahead where, whether that is more than chance, and what it costs."""
    said: list[str] = []
    judged = [row for row in result["against_full"] if row["measure"] == "last"]
    for task in result["settings"]["tasks"]:
        rows = {row["strategy"]: row for row in _of_task(result, task)}
        first, second = sorted(rows.values(), key=lambda row: -row["last"]["mean"])[:2]
        gaps = [row for row in judged if row["task"] == task]
        better = [gap["strategy"] for gap in gaps if gap["differs"] and gap["mean"] > 0]
        worse = [gap["strategy"] for gap in gaps if gap["differs"] and gap["mean"] < 0]
        equal = [gap["strategy"] for gap in gaps if not gap["differs"]]
        cost = first["cpu_seconds"]["mean"] / rows[REFERENCE]["cpu_seconds"]["mean"]
        said.append(
            f"{task}: after the last epoch {first['strategy']} has the highest mean, {_mean(first)}, before "
            f"{second['strategy']} with {_mean(second)}, at {cost:.2f} times the time of full; better than full: "
            f"{_listed(better)}; worse: {_listed(worse)}; not to be told from it: {_listed(equal)}."
        )
    edge = [
        name for name, rate in result["rates"]["chosen"].items() if rate in _edges(result["rates"]["accuracy"][name])
    ]
    said.append(f"The rate that was chosen is the smallest or largest of those tried for: {_listed(edge)}.")
    said.append(
        f"Of {len(judged)} intervals at 95 %, {len(judged) / 20:.2g} would leave out zero by chance. All runs share "
        "one start, and say nothing of how another would do. The best epoch is chosen on the images it is judged by."
    )
    return "\n".join(said)


def _edges(tried: dict[str, float]) -> tuple[float, float]:
    rates = sorted(map(float, tried))
    return rates[0], rates[-1]


def _mean(row: dict[str, Any]) -> str:
    return f"{100 * row['last']['mean']:.1f} %"


def _of_task(result: dict[str, Any], task: str) -> list[dict[str, Any]]:
    return [row for row in result["summary"] if row["task"] == task]


def _percent(value: dict[str, float]) -> str:
    return f"{100 * value['mean']:.1f} ± {100 * value['sd']:.1f}"


def _interval(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    said = f"{100 * row['mean']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
    return f"**{said}**" if row["differs"] else said


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 11))
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default 2)")
    parser.add_argument("--quick", action="store_true", help="seconds, on synthetic images; nothing is written")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.quick:
        with tempfile.TemporaryDirectory() as folder:
            print(tables(run_suite(*quick_suite(Path(folder)))))
        return
    result = run_suite(*full_suite(asked.seeds, asked.jobs))
    print(tables(result))
    RESULTS.mkdir(exist_ok=True)
    # Lists of numbers on one line each.
    text = re.sub(
        r"\[\s+([-+\d.,e\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", json.dumps(result, indent=1)
    )
    (RESULTS / "finetuning_strategies.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
