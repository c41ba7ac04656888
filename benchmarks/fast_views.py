"""What views buy: heads on cached features of 1, 2, 4, 8 and 16 augmented views, against a new one in each epoch.

A trunk that was trained on other images (`strategies_start.py`), held; a linear head, the same number of epochs for
all, and for one seed the same split, head, order and random crops. Epoch n trains on view n modulo the number of views;
"fresh" has as many views as epochs, so that none comes twice. "Plain" is the whole image, "frozen" one random crop of
each, which is what a cache without views would keep of a random transform. Runs have one thread each.

    python benchmarks/fast_views.py [--seeds N] [--quick]
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measure import write
from strategies_start import (
    WIDTH,
    Net,
    Task,
    domain,
    insects,
    kept_start,
    normal,
    split_by_seed,
    synthetic_task,
    trained_start,
    write_start,
)
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import Dataset

import frostline as fl
from frostline.runs.seeds import mix_seed, order_of

# The shorter side of a random crop, as a part of the image; it is brought back to the image's size.
SMALLEST_CROP = 0.5
BATCH, RATE, WEIGHT_DECAY = 16, 3e-3, 0.01
HELD_OUT = 0.5
PLAIN, FROZEN, FRESH = "plain", "1", "fresh"
NARROW = {"float16": torch.float16, "8 bits": torch.uint8}


@dataclass(frozen=True)
class Suite:
    """What is run.

    Attributes:
        tasks: their names.
        seeds: of the runs.
        views: how many, for each cached condition beside one.
        epochs: of a head, and views of the fresh condition.
        start: the file that the trunk comes from.
        width: of the net.
        synthetic: whether the tasks are synthetic ones.
    """

    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    views: tuple[int, ...]
    epochs: int
    start: Path
    width: int
    synthetic: bool

    @property
    def conditions(self) -> dict[str, int]:
        """Name of each condition, and its number of views."""
        few = {str(views): views for views in self.views}
        return {PLAIN: 1, FROZEN: 1, **few, **dict.fromkeys(self.narrowed, self.narrowed_views), FRESH: self.epochs}

    @property
    def narrowed_views(self) -> int:
        """Views that are also kept in less space."""
        return 8 if 8 in self.views else self.views[-1]

    @property
    def narrowed(self) -> dict[str, torch.dtype]:
        """Name of each condition with narrower features, and their type."""
        return {f"{self.narrowed_views}, {name}": dtype for name, dtype in NARROW.items()}


@dataclass(frozen=True)
class Run:
    """What came of one head.

    Attributes:
        task: its name.
        condition: its name.
        seed: of everything random.
        accuracy: on the images to judge by, the mean over the last quarter of the epochs.
        loss: the same of the cross entropy.
        curve: accuracy after each epoch.
    """

    task: str
    condition: str
    seed: int
    accuracy: float
    loss: float
    curve: list[float]


class Crops(Dataset[tuple[Tensor, int]]):
    """Images whole, or with ``seed`` a random square of each, mirrored or not, drawn by (seed, epoch, index) alone."""

    def __init__(self, pixels: Tensor, labels: Tensor, seed: int | None = None) -> None:
        self.pixels, self.labels, self.seed, self.epoch = pixels, labels, seed, 1

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.pixels[index], int(self.labels[index])
        if self.seed is None:
            return normal(image), label
        generator = Generator().manual_seed(mix_seed(self.seed, self.epoch, index))
        whole = image.shape[-1]
        share = SMALLEST_CROP + (1 - SMALLEST_CROP) * float(torch.rand((), generator=generator))
        side = round(share * whole)
        top, left = torch.randint(whole - side + 1, (2,), generator=generator).tolist()
        crop = image[None, :, top : top + side, left : left + side]
        crop = interpolate(crop, (whole, whole), mode="bilinear", align_corners=False)[0]
        return normal(crop.flip(2) if torch.rand((), generator=generator) < 0.5 else crop), label


def full_suite(seeds: int) -> tuple[Suite, dict[str, float]]:
    """The suite on real images, and what is known of its start."""
    file, known = kept_start()
    tasks = ("hymenoptera", "art_painting", "sketch")
    return Suite(tasks, tuple(range(seeds)), (2, 4, 8, 16), 32, file, WIDTH, False), known


def quick_suite(folder: Path) -> tuple[Suite, dict[str, float]]:
    """A small one on synthetic images, which takes seconds and says nothing about views."""
    images = synthetic_task("stripes to start from", 0).train
    file = folder / "start.safetensors"
    write_start(trained_start(images, 0, epochs=2, width=8), file)
    return Suite(("stripes",), (0, 1), (2,), 4, file, 8, True), {"images": len(images), "epochs": 2}


def task_of(name: str, seed: int, suite: Suite) -> Task:
    """Ants and bees as they are split; half of a domain of PACS, by seed."""
    if suite.synthetic:
        return synthetic_task(name, seed)
    if name == "hymenoptera":
        return Task(name, 2, *insects())
    return Task(name, 7, *split_by_seed(domain(name), seed, HELD_OUT))


# Running ------------------------------------------------------------------------------------------------------------


def run_task(name: str, seed: int, suite: Suite, folder: Path) -> tuple[list[Run], dict[str, Any]]:
    """Heads of all conditions on one task, and what their features cost."""
    task = task_of(name, seed, suite)
    torch.manual_seed(seed)
    model = Net(task.classes, suite.width)
    fl.plan_load(model, suite.start, keep="head").apply()
    head = {key: value.clone() for key, value in model.head.state_dict().items()}
    hold = fl.freeze(model, "*", "!head*")
    prefix = fl.fast.plan(model, normal(task.train.pixels[:2]), timing=False).prefix()
    whole = Crops(task.train.pixels, task.train.labels)
    random = Crops(task.train.pixels, task.train.labels, seed)
    clock = time.perf_counter()
    views = _filled(folder / "views", prefix, random, suite.epochs)
    seconds = time.perf_counter() - clock
    plain = _filled(folder / "plain", prefix, whole, 1)
    val = _filled(folder / "val", prefix, Crops(task.val.pixels, task.val.labels), 1)
    narrow = {
        condition: _filled(folder / condition, prefix, random, suite.narrowed_views, dtype)
        for condition, dtype in suite.narrowed.items()
    }
    runs: list[Run] = []
    for condition, count in suite.conditions.items():
        model.head.load_state_dict(head)
        source = {PLAIN: plain, **narrow}.get(condition, views)
        curve, losses = train(prefix, model.head, source, val, count, seed, suite.epochs)
        last = max(1, suite.epochs // 4)
        accuracy, loss = (statistics.fmean(values[-last:]) for values in (curve, losses))
        runs.append(Run(name, condition, seed, accuracy, loss, curve))
    hold.verify()
    costs = {
        "task": name,
        "seed": seed,
        "seconds_per_view": seconds / suite.epochs,
        "bytes_per_view": views.nbytes / suite.epochs,
        "narrowing": {condition: str(cache.narrowing) for condition, cache in narrow.items()},
        "fresh_as_computed": is_fresh(views, prefix, random, suite.epochs),
    }
    hold.thaw()
    return runs, costs


def train(
    prefix: Any, head: nn.Module, source: Any, val: Any, views: int, seed: int, epochs: int
) -> tuple[list[float], list[float]]:
    """Train a head on so many views; its accuracy and loss after each epoch."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    judged, labels = val.batch(torch.arange(len(val)), 0)
    accuracies: list[float] = []
    losses: list[float] = []
    for epoch in range(epochs):
        for rows in order_of(len(source), seed, epoch + 1).split(BATCH):
            features, wanted = source.batch(rows, epoch % views)
            optimizer.zero_grad()
            cross_entropy(prefix.rest(features), wanted).backward()
            optimizer.step()
        with torch.no_grad():
            logits = prefix.rest(judged)
        accuracies.append(float((logits.argmax(1) == labels).double().mean()))
        losses.append(float(cross_entropy(logits, labels)))
    return accuracies, losses


def is_fresh(views: Any, prefix: Any, random: Crops, epochs: int) -> bool:
    """Whether the cached views are, to the bit, what the trunk gives for the crops of the first and last epoch."""
    rows = torch.arange(min(8, len(random)))
    equal = True
    for epoch in (1, epochs):
        random.set_epoch(epoch)
        (now,) = prefix(torch.stack([random[int(row)][0] for row in rows]))
        (kept,), _ = views.batch(rows, epoch - 1)
        equal &= torch.equal(now, kept)
    return equal


def _filled(folder: Path, prefix: Any, data: Crops, views: int, dtype: torch.dtype | None = None) -> Any:
    cache = fl.fast.FeatureCache(folder, prefix, data, views=views, dtype=dtype)
    cache.fill()
    return cache


# What came of it ----------------------------------------------------------------------------------------------------


def summary(suite: Suite, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each task and condition: mean and deviation over the seeds, and the difference from fresh, seed by seed."""
    rows: list[dict[str, Any]] = []
    for task in suite.tasks:
        for condition, views in suite.conditions.items():
            table: dict[str, Any] = {"task": task, "condition": condition, "views": views}
            for measure in ("accuracy", "loss"):
                values = _by_seed(runs, task, condition, measure)
                fresh = _by_seed(runs, task, FRESH, measure)
                table[measure] = {"mean": statistics.fmean(values), "sd": _spread(values)}
                table[f"{measure}_against_fresh"] = interval([a - b for a, b in zip(values, fresh, strict=True)])
            rows.append(table)
    return rows


def tables(rows: Iterable[dict[str, Any]]) -> str:
    """The summary as a table of Markdown; accuracy in percent."""
    lines = ["| task | views | accuracy, % | against fresh | loss | against fresh |", "|---|---|---|---|---|---|"]
    for each in rows:
        accuracy, loss = each["accuracy"], each["loss"]
        gap, loss_gap = each["accuracy_against_fresh"], each["loss_against_fresh"]
        lines.append(
            f"| {each['task']} | {each['condition']} | {100 * accuracy['mean']:.1f} ± {100 * accuracy['sd']:.1f} "
            f"| {_gap(gap, 100, 1)} | {loss['mean']:.3f} ± {loss['sd']:.3f} | {_gap(loss_gap, 1, 3)} |"
        )
    return "\n".join(lines)


def run_suite(suite: Suite, start: dict[str, float]) -> dict[str, Any]:
    """Run everything, and sum it up as JSON-ready values."""
    clock = time.perf_counter()
    runs: list[Run] = []
    costs: list[dict[str, Any]] = []
    for seed in suite.seeds:
        for name in suite.tasks:
            with tempfile.TemporaryDirectory() as folder:
                found, cost = run_task(name, seed, suite, Path(folder))
            runs += found
            costs.append(cost)
            print(f"{name}, seed {seed}: " + ", ".join(f"{r.condition} {r.accuracy:.3f}" for r in found), flush=True)
    return {
        "tasks": list(suite.tasks), "seeds": list(suite.seeds), "epochs": suite.epochs, "batch": BATCH,
        "optimizer": "AdamW", "rate": RATE, "weight_decay": WEIGHT_DECAY, "smallest_crop": SMALLEST_CROP,
        "seconds": round(time.perf_counter() - clock), "start": start, "summary": summary(suite, runs), "costs": costs,
        "runs": [{**asdict(run), "curve": [round(value, 4) for value in run.curve]} for run in runs],
    }  # fmt: skip


def interval(gaps: Sequence[float]) -> dict[str, Any]:
    """The mean of differences, and its 95 % interval by Student's t."""
    from scipy.stats import t

    mean = statistics.fmean(gaps)
    half = float(t.ppf(0.975, len(gaps) - 1)) * _spread(gaps) / math.sqrt(len(gaps))
    return {"mean": mean, "low": mean - half, "high": mean + half, "differs": abs(mean) > half}


def _by_seed(runs: Iterable[Run], task: str, condition: str, measure: str) -> list[float]:
    return [float(getattr(run, measure)) for run in runs if (run.task, run.condition) == (task, condition)]


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values)


def _gap(gap: dict[str, Any], unit: float, digits: int) -> str:
    low, high = unit * gap["low"], unit * gap["high"]
    told = f"{unit * gap['mean']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
    return f"**{told}**" if gap["differs"] else told


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5, help="how many (default 5)")
    parser.add_argument("--quick", action="store_true", help="small synthetic images, in seconds; writes nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        suite, start = quick_suite(Path(folder)) if asked.quick else full_suite(max(2, asked.seeds))
        result = run_suite(suite, start)
    print(tables(result["summary"]))
    if not asked.quick:
        write("fast_views", result, [])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
