"""The tables of small nets with small normalization batches: what each way of estimating statistics makes of one net.

Handwritten digits, an MLP with six batch norms, SGD on batches of 32 that are normalized in groups of 4, 8 or 32, and
running statistics that follow the first group only, as on rank 0 of several processes. The figures given beside ours
are from an earlier run of the same experiment, of which the split, the width, the learning rates and the shift of the
images are not known. They were chosen so that the figures without any repair are about those given; what the repairs
make of them is then to be compared.

    python benchmarks/recalibration_tables.py [--seeds N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from measure import RESULTS, SCHEMA_VERSION, machine
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import frostline as fl
from frostline.norms.recalibrate import plan_recalibrate, recalibrate

EPOCHS, FROZEN_SHARE, BATCH, LARGE = 30, 0.2, 32, 240
WIDTH, DEPTH = 64, 6
# In the last part of the training, frozen or not, the rate is a tenth: behind frozen statistics the first diverges.
RATE, LAST_RATE = 0.1, 0.01
CONTRAST, NOISE = 0.5, 0.15
GROUPS, FEW, PRIORS = (4, 8, 32), (2, 8, 32, 128), (0, 16, 64)
COLUMNS = (
    "EMA", "precise, B=240", "mean of variances, B=NBS", "eval-consistent", "frozen in the last 20 %", "batch at test",
    "train, batch",
)  # fmt: skip
GIVEN: dict[str, Any] = {
    "estimators": {
        4: (12.3, 5.0, 12.2, 5.0, 2.9, 20.6, 18.2),
        8: (1.8, 1.6, 1.8, 1.6, 1.7, 7.4, 3.9),
        32: (1.7, 1.6, 1.6, 1.6, 1.9, 3.0, 0.2),
    },
    "residual": {"EMA": 0.039, "all at once, B=4": 0.71, "B=16": 0.12, "B=60": 0.020, "B=240": 0.003},
    "label shift": {"as trained": 1.5, "recalibrated on 3 of 10 classes": 18.2},
    "shift": {"source statistics": 38.3, "of the target": 15.2, "clean, as trained": 1.5, "clean, of the target": 4.7},
    "few samples": {0: (84.5, 32.9, 17.9, 16.4), 16: (36.6, 29.0, 20.4, 16.6), 64: (37.9, 35.3, 28.1, 19.3)},
}


class InGroups(nn.BatchNorm1d):
    """Normalizes a training batch in groups, and follows the first of them."""

    def __init__(self, width: int, group: int) -> None:
        super().__init__(width)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        parts = [super().forward(x[: self.group])]
        if len(x) > self.group:
            rest = x[self.group :].unflatten(0, (-1, self.group))
            spread, mean = torch.var_mean(rest, 1, correction=0, keepdim=True)
            normal = (rest - mean) / (spread + self.eps).sqrt() * self.weight + self.bias
            parts.append(normal.flatten(0, 1))
        return torch.cat(parts)


def net(group: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([64, *[WIDTH] * DEPTH]):
        layers += [nn.Linear(inputs, outputs), InGroups(outputs, group), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.from_numpy(found.data).float().div(16)[order], torch.from_numpy(found.target).long()[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(y))[: len(y) // BATCH * BATCH]
        for rows in order.split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()


@torch.no_grad()
def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return 100 * float((model.eval()(x).argmax(1) != y).double().mean())


@torch.no_grad()
def error_with_batches(model: nn.Module, x: Tensor, y: Tensor, group: int) -> float:
    """In train mode, in groups, on a copy; what is left over at the end is not counted."""
    copy = deepcopy(model).train()
    rows = torch.randperm(len(y))[: len(y) // group * group]
    return 100 * float((copy(x[rows]).argmax(1) != y[rows]).double().mean())


def estimators(group: int, seed: int, errors: dict[str, list[float]], residuals: dict[str, list[float]]) -> nn.Module:
    """One net under every way of estimating its statistics; it comes back with those of B=240."""
    x, y, test_x, test_y = digits(seed)
    torch.manual_seed(seed)
    model = net(group)
    last = round(EPOCHS * FROZEN_SHARE)
    train(model, x, y, EPOCHS - last, torch.optim.SGD(model.parameters(), RATE))
    frozen = deepcopy(model)
    train(model, x, y, last, torch.optim.SGD(model.parameters(), LAST_RATE))

    recalibrate(frozen, x.split(LARGE))
    fl.freeze(frozen, nn.BatchNorm1d, level="stats")
    train(frozen, x, y, last, torch.optim.SGD(frozen.parameters(), LAST_RATE))

    mean_of_variances, exact, precise = deepcopy(model), deepcopy(model), deepcopy(model)
    update_bn(x.split(group), mean_of_variances)
    recalibrate(exact, x.split(LARGE), method="eval-consistent")
    recalibrate(precise, x.split(LARGE))
    found = (
        error(model, test_x, test_y),
        error(precise, test_x, test_y),
        error(mean_of_variances, test_x, test_y),
        error(exact, test_x, test_y),
        error(frozen, test_x, test_y),
        error_with_batches(model, test_x, test_y, group),
        error_with_batches(model, x, y, group),
    )
    for name, value in zip(COLUMNS, found, strict=True):
        errors.setdefault(name, []).append(value)
    if group == BATCH:
        for size in (4, 16, 60, LARGE):
            rows = plan_recalibrate(model, x.split(size)).rows
            name = f"B={size}" if size > 4 else "all at once, B=4"
            residuals.setdefault(name, []).append(statistics.median(row.residual_var for row in rows))
        residuals.setdefault("EMA", []).append(residual_of_ema(model, x))
    return precise


@torch.no_grad()
def residual_of_ema(model: nn.Module, x: Tensor) -> float:
    """Running statistics as training left them, against what their layers meet in eval mode."""
    found: list[float] = []
    model.eval()
    value = x
    for layer in model.children():
        if isinstance(layer, nn.BatchNorm1d):
            ratio = (value.double().var(0) + layer.eps) / (layer.running_var.double() + layer.eps)
            found.append(float(ratio.log().abs().median()))
        value = layer(value)
    return statistics.median(found)


def shifted(x: Tensor, seed: int) -> Tensor:
    """Less contrast, and noise."""
    return 0.5 + CONTRAST * (x - 0.5) + NOISE * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def shifts(model: nn.Module, seed: int, found: dict[str, dict[Any, list[float]]]) -> None:
    """What other data does to the statistics of a healthy net."""
    x, y, test_x, test_y = digits(seed)
    target, target_test = shifted(x, seed), shifted(test_x, 1000 + seed)

    def note(table: str, name: Any, value: float) -> None:
        found.setdefault(table, {}).setdefault(name, []).append(value)

    three = y < 3
    copy = deepcopy(model)
    clean = error(model, test_x, test_y)
    note("label shift", "as trained", clean)
    recalibrate(copy, [x[three]], allow_imbalance=True)
    note("label shift", "recalibrated on 3 of 10 classes", error(copy, test_x, test_y))

    note("shift", "source statistics", error(model, target_test, test_y))
    result = recalibrate(copy := deepcopy(model), target.split(LARGE))
    note("shift", "of the target", error(copy, target_test, test_y))
    note("shift", "clean, as trained", clean)
    note("shift", "clean, of the target", error(copy, test_x, test_y))
    result.undo()
    assert error(copy, test_x, test_y) == clean

    for n in FEW:
        plan = plan_recalibrate(model, [target[:n]])
        for prior in PRIORS:
            copy = deepcopy(model)
            for path, change in plan.changes.items():
                layer = copy.get_submodule(path)
                assert isinstance(layer, nn.BatchNorm1d)
                layer.running_mean.lerp_(change.new.mean, n / (prior + n))
                layer.running_var.lerp_(change.new.var, n / (prior + n))
            note("few samples", (prior, n), error(copy, target_test, test_y))


def told(values: Sequence[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "sd": spread, "values": list(values)}


def cell(ours: dict[str, Any], given: float, digits: int = 1) -> str:
    return f"{ours['mean']:.{digits}f} +- {ours['sd']:.{digits}f} ({given:g})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    start = time.perf_counter()
    errors: dict[int, dict[str, list[float]]] = {group: {} for group in GROUPS}
    residuals: dict[str, list[float]] = {}
    others: dict[str, dict[Any, list[float]]] = {}
    for seed in seeds:
        for group in GROUPS:
            model = estimators(group, seed, errors[group], residuals)
        shifts(model, seed, others)  # the net of groups of 32 is the healthy one

    tables: dict[str, Any] = {"estimators": {}, "residual": {}, "label shift": {}, "shift": {}, "few samples": {}}
    print("test error in %: ours +- sd over the seeds (given)\n")
    print("| NBS | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
    for group in GROUPS:
        row = {name: told(errors[group][name]) for name in COLUMNS}
        given = dict(zip(COLUMNS, GIVEN["estimators"][group], strict=True))
        tables["estimators"][str(group)] = {name: {**row[name], "given": given[name]} for name in COLUMNS}
        print(f"| {group} | " + " | ".join(cell(row[name], given[name]) for name in COLUMNS) + " |")
    for title, values, digits in (
        ("residual", residuals, 4), ("label shift", others["label shift"], 1), ("shift", others["shift"], 1)
    ):  # fmt: skip
        print(f"\n| {title} | ours (given) |\n|---|---|")
        for name, given in GIVEN[title].items():
            tables[title][name] = {**told(values[name]), "given": given}
            print(f"| {name} | {cell(tables[title][name], given, digits)} |")
    print("\n| N \\ n | " + " | ".join(map(str, FEW)) + " |\n|" + "---|" * (len(FEW) + 1))
    for prior in PRIORS:
        row = {n: told(others["few samples"][prior, n]) for n in FEW}
        given = dict(zip(FEW, GIVEN["few samples"][prior], strict=True))
        tables["few samples"][str(prior)] = {str(n): {**row[n], "given": given[n]} for n in FEW}
        print(f"| {prior} | " + " | ".join(cell(row[n], given[n]) for n in FEW) + " |")

    result = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": "recalibration_tables",
        "machine": machine(),
        "settings": {
            "seeds": len(seeds), "epochs": EPOCHS, "batch": BATCH, "width": WIDTH, "depth": DEPTH,
            "rates": [RATE, LAST_RATE], "contrast": CONTRAST, "noise": NOISE,
            "seconds": round(time.perf_counter() - start),
        },
        "tables": tables,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "recalibration_tables.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
