"""Which statistics to train few-shot learning with, and which to test with: the table of policies on Omniglot.

MAML, 5-way 1-shot, 4 convolutions; each net is trained under one policy and tested under all of them, on the same 600
tasks of characters that it has not seen. The run is shorter and the net narrower than in publications: it shows the
order, not the last percent. Nothing guards the inner loop here: what blows up shows as chance.

    python benchmarks/meta_policies.py [--train POLICY ...] [--seeds N] [--iterations N] [--width N] [--tasks N]
                                       [--inner-lr R]

Each trained net adds its rows to ``results/meta_policies.json``; nets that are there under the same settings are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, SCHEMA_VERSION, machine

from frostline import meta
from frostline.durable import replace_file
from frostline.json_values import finite
from frostline.meta.networks import conv4

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "omniglot"
TRAIN = (
    "batch",
    "support",
    "population",
    "running",
    "task_norm_i",
    "batch/population",
)
TEST = (
    "batch",
    "support",
    "task_norm_i",
    "batch/population",
    "population",
    "batch/running",
    "running",
    "per_step",
)
WAY, SHOT, QUERIES, STEPS, INNER_LR, LR, BATCH = 5, 1, 5, 5, 0.1, 1e-3, 8
MEASURED_ON = 200


def main() -> int:
    """Train, test, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--train", nargs="*", default=list(TRAIN))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--tasks", type=int, default=600)
    parser.add_argument("--inner-lr", type=float, default=INNER_LR)
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"Omniglot is not in {DATA}: nothing measured", file=sys.stderr)
        return 1
    classes = meta.omniglot(DATA)
    target = RESULTS / "meta_policies.json"
    setting = {
        "iterations": options.iterations,
        "meta_batch": BATCH,
        "width": options.width,
        "steps": STEPS,
        "lr": LR,
        "test_tasks": options.tasks,
        "population_measured_on": MEASURED_ON,
    }
    nets: list[dict[str, Any]] = []
    if target.is_file():
        before = json.loads(target.read_text(encoding="utf-8"))
        nets = before["nets"] if before["setting"] == setting else []
    have = {(net["train"], net["seed"], net["inner_lr"]) for net in nets}
    for seed in range(options.seeds):
        splits = meta.Splits.draw(classes, {"train": 1100, "val": 100, "test": "rest"}, seed=seed)
        tasks = meta.Tasks(classes, way=WAY, shot=SHOT, queries=QUERIES, splits=splits, seed=seed)
        for policy in options.train:
            if (policy, seed, options.inner_lr) in have:
                continue
            nets.append(_net(policy, seed, tasks, options))
            result = {"schema_version": SCHEMA_VERSION, "machine": machine(), "setting": setting, "nets": nets}
            result["tasks"] = tasks.describe()
            replace_file(target, (json.dumps(finite(result), indent=1) + "\n").encode())
            print(_line(nets[-1]), flush=True)
    return 0


def _net(policy: str, seed: int, tasks: meta.Tasks, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = conv4(WAY, width=options.width)
    learner = meta.MAML(model, inner_lr=options.inner_lr, steps=STEPS, policy=policy, guard=None)
    outer = torch.optim.Adam(learner.parameters(), LR)
    began, losses, skipped = time.perf_counter(), [], 0
    for iteration in range(options.iterations):
        outer.zero_grad()
        batch = learner.backward(tasks.batch("train", iteration * BATCH, BATCH), on_nonfinite="skip")
        outer.step()
        losses.append(batch.loss)
        skipped += len(batch.skipped)
    seconds = time.perf_counter() - began
    drawn = tasks.batch("train", 10_000_000, MEASURED_ON)
    varies = meta.variation(learner, drawn).to_json() if policy in ("batch", "support") else None
    if all(torch.isfinite(p).all() for p in learner.parameters()):
        learner.statistics = meta.measure_population(learner, drawn)
    found = meta.evaluate(learner, tasks, count=options.tasks, policies=TEST)
    rows = [
        {"test": row.policy, "kind": row.kind, "accuracy": row.accuracy, "interval": row.interval, "tasks": row.tasks}
        for row in found.rows
    ]
    return {
        "train": policy,
        "seed": seed,
        "inner_lr": options.inner_lr,
        "seconds": round(seconds, 1),
        "last_losses": [round(loss, 4) for loss in losses[-10:]],
        "skipped_in_training": skipped,
        "rows": rows,
        "variation": varies,
    }


def _line(net: dict[str, Any]) -> str:
    cells = [f"{row['test']} {100 * row['accuracy']:.1f}±{100 * row['interval']:.1f}" for row in net["rows"]]
    return f"{net['train']} (seed {net['seed']}, {net['seconds']} s): " + ", ".join(cells)


if __name__ == "__main__":
    sys.exit(main())
