"""The set-up of the higher example, trained by higher and by Frostline: the same weights, tasks and iterations.

5-way 5-shot on Omniglot, three convolutions without padding, 5 inner steps of rate 0.1, 32 tasks, Adam 1e-3, batch
statistics in every pass, as in ``examples/maml-omniglot.py`` of facebookresearch/higher; the sum of the tasks' losses
there, their mean here, which Adam does not tell apart. Splits are drawn by a seed, because the example's depends on the
order of a directory.

    python benchmarks/meta_accuracy.py [--seeds N] [--iterations N] [--tasks N]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, SCHEMA_VERSION, machine
from torch import nn
from torch.nn import functional

from frostline import meta
from frostline.durable import replace_file
from frostline.meta.networks import higher_conv3

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "omniglot"
WAY, SHOT, QUERIES, STEPS, INNER_LR, LR, BATCH = 5, 5, 15, 5, 0.1, 1e-3, 32


def main() -> int:
    """Train by both, test both by the same function, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--tasks", type=int, default=200)
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"Omniglot is not in {DATA}: nothing measured", file=sys.stderr)
        return 1
    classes = meta.omniglot(DATA, resample="bicubic", invert=False, rotations="none")
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        splits = meta.Splits.draw(classes, {"train": 1200, "test": "rest"}, seed=seed)
        tasks = meta.Tasks(classes, way=WAY, shot=SHOT, queries=QUERIES, splits=splits, seed=seed)
        torch.manual_seed(seed)
        start = higher_conv3(WAY)
        run: dict[str, Any] = {"seed": seed}
        for name, train in (("higher", _by_higher), ("frostline", _by_frostline)):
            model = copy.deepcopy(start)
            train(model, tasks, options.iterations)
            learner = meta.MAML(model, inner_lr=INNER_LR, steps=STEPS)
            row = meta.evaluate(learner, tasks, count=options.tasks, policies=["batch"]).rows[0]
            run[name] = row.accuracy
            run[name + "_interval"] = row.interval
        runs.append(run)
        print(json.dumps(run), flush=True)
    result = {
        "schema_version": SCHEMA_VERSION,
        "machine": machine(),
        "setting": {**vars(options), "way": WAY, "shot": SHOT, "queries": QUERIES, "meta_batch": BATCH},
        "runs": runs,
        "mean": {name: statistics.fmean(run[name] for run in runs) for name in ("higher", "frostline")},
        "spread": {name: statistics.stdev(run[name] for run in runs) for name in ("higher", "frostline")}
        if len(runs) > 1
        else None,
    }
    replace_file(RESULTS / "meta_accuracy.json", (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps({"mean": result["mean"], "spread": result["spread"]}))
    return 0


def _by_higher(model: nn.Module, tasks: meta.Tasks, iterations: int) -> None:
    import higher

    model.train()
    outer = torch.optim.Adam(model.parameters(), lr=LR)
    for iteration in range(iterations):
        outer.zero_grad()
        inner = torch.optim.SGD(model.parameters(), lr=INNER_LR)
        for task in tasks.batch("train", iteration * BATCH, BATCH):
            with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (functional_model, step):
                for _ in range(STEPS):
                    step.step(functional.cross_entropy(functional_model(task.support.inputs), task.support.labels))
                functional.cross_entropy(functional_model(task.query.inputs), task.query.labels).backward()
        outer.step()


def _by_frostline(model: nn.Module, tasks: meta.Tasks, iterations: int) -> None:
    learner = meta.MAML(model, inner_lr=INNER_LR, steps=STEPS)
    outer = torch.optim.Adam(learner.parameters(), lr=LR)
    for iteration in range(iterations):
        outer.zero_grad()
        learner.backward(tasks.batch("train", iteration * BATCH, BATCH))
        outer.step()


if __name__ == "__main__":
    sys.exit(main())
