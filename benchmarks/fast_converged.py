"""What `fl.fast.Converged` saves and costs: accuracy and processor time against plain fine-tuning, on three tasks.

For one seed all ways have the same start, head, batches, epochs, optimizer and schedule. `plain` draws its augmentation
anew in each epoch. `views` is plain fine-tuning on a fixed set of views of each image, one after the other, which is
what cached activations need: it says what the views alone cost. `converged` trains on the same views, freezes the front
by itself, keeps the activations at the boundary in memory, and trains only what is behind it; `eager` does so with a
tolerance of 0.5 instead of the default. All they do is in their time: making the views, watching, freezing, computing
activations. One thread, ways in turn within each seed, in an order that flips from seed to seed; seconds are those of
the processor.

    python benchmarks/fast_converged.py [--seeds N] [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, SCHEMA_VERSION, machine
from planted_images import Split, shifted_and_flipped
from strategies_start import (
    BATCH,
    SHIFT,
    WIDTH,
    Net,
    Task,
    accuracy,
    batches,
    kept_start,
    normal,
    real_task,
    synthetic_task,
    trained_start,
    write_start,
)
from strategies_training import STRATEGIES, WEIGHT_DECAY, Plan
from torch import Generator, Tensor, nn
from torch.nn import functional

import frostline as fl
from frostline.fast.converged import Converged

# How far from rest a layer may be to be frozen, in the ways that freeze.
TOLERANCES = {"converged": 0.2, "eager": 0.5}
WAYS = ("plain", "views", *TOLERANCES)
RATES = {"full": 1e-3}
TASKS = ("hymenoptera", "art_painting", "sketch")
VIEWS, EPOCHS, STEP_BATCH, ROWS = 4, 20, 16, 64


@dataclass(frozen=True)
class Run:
    """What came of one run.

    Attributes:
        task: its name.
        strategy: how rates are laid over the layers.
        way: one of `WAYS`.
        seed: of the head, the batches, the augmentation and the split.
        cpu_seconds: processor time of the training, evaluation left out.
        curve: accuracy on the images to judge by, after each epoch.
        frozen: how many layers were frozen after each epoch.
        moves: what the watcher said.
        cache_bytes: of the activations that were kept, at most.
    """

    task: str
    strategy: str
    way: str
    seed: int
    cpu_seconds: float
    curve: list[float]
    frozen: list[int]
    moves: list[str] = field(default_factory=list)
    cache_bytes: int = 0

    @property
    def last(self) -> float:
        """Accuracy over the last quarter of the epochs, which a few images sway less than that of one."""
        return statistics.fmean(self.curve[-max(1, len(self.curve) // 4) :])


class Activations:
    """Each view of all training images, as they are in front of the layers that still train."""

    def __init__(self, split: Split, views: int, seed: int) -> None:
        augment = shifted_and_flipped(SHIFT, flip=True)
        generator = Generator().manual_seed(seed)
        self.views = [normal(augment(split.pixels, generator)) for _ in range(views)]
        self.counts = [0] * views
        self.most = 0

    @torch.no_grad()
    def at(self, view: int, layers: list[nn.Module], count: int) -> Tensor:
        """The view in front of layer `count`; what is missing is computed from what there is."""
        for layer in layers[self.counts[view] : count]:
            self.views[view] = torch.cat([layer(rows) for rows in self.views[view].split(ROWS)])
        self.counts[view] = count
        self.most = max(self.most, sum(kept.nbytes for kept in self.views))
        return self.views[view]


def train(task: Task, strategy: str, way: str, seed: int, plan: Plan, views: int) -> Run:
    """Train one model."""
    torch.manual_seed(seed)
    model = Net(task.classes, plan.width)
    fl.plan_load(model, plan.start, keep="head").apply()
    steps = plan.steps(task)
    cpu = time.process_time()
    optimizer = STRATEGIES[strategy](model, RATES[strategy], plan, steps).optimizer
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * plan.epochs)
    generator = Generator().manual_seed(seed)
    layers = [model.stem, *model.blocks]
    kept = Activations(task.train, views, seed) if way != "plain" else None
    # What is kept cannot go back to an earlier layer; a cosine schedule would not ask for it.
    watcher = (
        Converged(model, optimizer, act=True, tolerance=TOLERANCES[way], retry_on_lr_drop=None)
        if way in TOLERANCES
        else None
    )
    run = Run(task.name, strategy, way, seed, 0.0, [], [])
    seconds = time.process_time() - cpu
    model.train()
    for epoch in range(plan.epochs):
        cpu = time.process_time()
        count = 0 if watcher is None else len(watcher.frozen)
        if kept is None:
            source = batches(task.train, plan.batch, generator)
        else:
            source = _rows(kept.at(epoch % views, layers, count), task.train.labels, plan.batch, generator)
        for inputs, labels in source:
            x = inputs
            for layer in layers[count:]:
                x = layer(x)
            optimizer.zero_grad()
            functional.cross_entropy(model.head(x.mean((2, 3))), labels).backward()
            optimizer.step()
            scheduler.step()
        if watcher is not None and (move := watcher.epoch_end().move) is not None:
            run.moves.append(f"epoch {epoch + 1}: {move}")
        seconds += time.process_time() - cpu
        run.frozen.append(0 if watcher is None else len(watcher.frozen))
        run.curve.append(accuracy(model, task.val))
    if watcher is not None and watcher.hold is not None:
        watcher.hold.verify()
    return Run(**{**asdict(run), "cpu_seconds": seconds, "cache_bytes": 0 if kept is None else kept.most})


def _rows(x: Tensor, labels: Tensor, size: int, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in torch.randperm(len(x), generator=generator).split(size):
        if len(rows) > 1:
            yield x[rows], labels[rows]


def summary(runs: list[Run]) -> list[dict[str, Any]]:
    """Accuracy and time of each way, and both against plain, over the seeds."""
    found: list[dict[str, Any]] = []
    for strategy in dict.fromkeys(run.strategy for run in runs):
        for task in dict.fromkeys(run.task for run in runs):
            of = {
                way: sorted(
                    (run for run in runs if (run.strategy, run.task, run.way) == (strategy, task, way)),
                    key=lambda run: run.seed,
                )
                for way in WAYS
            }
            for way in WAYS:
                pairs = list(zip(of[way], of["plain"], strict=True))
                differences = [one.last - other.last for one, other in pairs]
                ratios = [one.cpu_seconds / other.cpu_seconds for one, other in pairs]
                found.append({
                    "strategy": strategy, "task": task, "way": way,
                    "accuracy": [run.last for run in of[way]],
                    "accuracy_mean": statistics.fmean(run.last for run in of[way]),
                    "accuracy_sd": statistics.stdev(run.last for run in of[way]),
                    "difference_mean": statistics.fmean(differences),
                    "difference_sd": statistics.stdev(differences),
                    "time_ratios": ratios,
                    "time_ratio_median": statistics.median(ratios),
                    "cpu_seconds_median": statistics.median(run.cpu_seconds for run in of[way]),
                    "frozen_mean": [statistics.fmean(each) for each in zip(*(r.frozen for r in of[way]), strict=True)],
                })  # fmt: skip
                print(
                    f"| {strategy} | {task} | {way} | {found[-1]['accuracy_mean']:.3f} ± {found[-1]['accuracy_sd']:.3f}"
                    f" | {found[-1]['difference_mean']:+.3f} ± {found[-1]['difference_sd']:.3f}"
                    f" | {found[-1]['time_ratio_median']:.3f} |"
                )
    return found


def run_all(tasks: dict[str, list[Task]], plan: Plan, views: int, facts: dict[str, float]) -> dict[str, Any]:
    """Every way on every task with every seed, and what came of it as JSON-ready values."""
    runs: list[Run] = []
    clock = time.perf_counter()
    for seed in range(len(next(iter(tasks.values())))):
        for strategy in RATES:
            for name, by_seed in tasks.items():
                for way in WAYS if seed % 2 == 0 else WAYS[::-1]:
                    runs.append(train(by_seed[seed], strategy, way, seed, plan, views))
                    print(f"{strategy} {name} {way} {seed}: {runs[-1].last:.3f} {runs[-1].cpu_seconds:.2f} s "
                          f"{runs[-1].frozen}", flush=True)  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark": "fast_converged",
        "machine": machine(),
        "settings": {
            "tasks": list(tasks), "seeds": len(next(iter(tasks.values()))), "epochs": plan.epochs, "batch": plan.batch,
            "width": plan.width, "views": views, "rates": RATES, "tolerances": TOLERANCES,
            "optimizer": "AdamW", "weight_decay": WEIGHT_DECAY,
            "layers": 5, "seconds": round(time.perf_counter() - clock),
        },
        "start": {**facts, "batch": BATCH},
        "summary": summary(runs),
        "runs": [{**asdict(run), "curve": [round(value, 4) for value in run.curve], "last": run.last} for run in runs],
    }  # fmt: skip


def quick(folder: Path) -> dict[str, Any]:
    """Two seeds on synthetic images: takes seconds, and says nothing about the method."""
    images = synthetic_task("stripes to start from", 0).train
    file = folder / "start.safetensors"
    write_start(trained_start(images, 0, epochs=2, width=8), file)
    plan = Plan(epochs=6, batch=8, width=8, start=file)
    return run_all({"stripes": [synthetic_task("stripes", seed) for seed in range(2)]}, plan, 2, {})


def main() -> None:
    """Run, print and write `results/fast_converged.json`; a quick run is not written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.quick:
        with tempfile.TemporaryDirectory() as folder:
            quick(Path(folder))
        return
    file, facts = kept_start()
    plan = Plan(epochs=EPOCHS, batch=STEP_BATCH, width=WIDTH, start=file)
    tasks = {name: [real_task(name, seed) for seed in range(max(2, asked.seeds))] for name in TASKS}
    result = run_all(tasks, plan, VIEWS, facts)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fast_converged.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
