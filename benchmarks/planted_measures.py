"""What is really wrong with a model, measured without the library: by float64, in two passes over each batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from planted_faults import Case
from planted_nets import Batch, Net, norm_layers
from torch import Tensor, nn


@dataclass(frozen=True)
class Population:
    """Mean and variance of what a layer is given, over all batches; float64."""

    mean: Tensor
    var: Tensor


def populations(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Population]:
    """What each batch norm is given in train mode, by the law of total variance; the model is copied first."""
    model = copy.deepcopy(model).train()
    layers = norm_layers(model)
    seen: dict[str, list[tuple[int, Tensor, Tensor]]] = {path: [] for path in layers}

    def watch(path: str) -> None:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            values = args[0].detach().double().transpose(0, 1).flatten(1)
            mean = values.mean(1)
            seen[path].append((values.shape[1], mean, (values - mean[:, None]).square().sum(1)))

        layers[path].register_forward_pre_hook(hook)

    for path, layer in layers.items():
        watch(path)
        layer.reset_running_stats()  # a copy's statistics may be NaN, and nothing here reads them
    with torch.no_grad():
        for x, _ in batches:
            model(x)
    found: dict[str, Population] = {}
    for path, parts in seen.items():
        total = sum(n for n, _, _ in parts)
        mean = torch.stack([n * part for n, part, _ in parts]).sum(0) / total
        squares = torch.stack([m2 + n * (part - mean).square() for n, part, m2 in parts]).sum(0)
        found[path] = Population(mean, squares / total)
    return found


def deviations(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """How far the running statistics of each layer are off, in standard deviations of its output.

    The root mean square over the channels of the distance between what comes out and what should: a wrong mean and a
    wrong spread. Not finite where the statistics are not.
    """
    found: dict[str, float] = {}
    measured = populations(model, batches)
    for path, layer in norm_layers(model).items():
        mean, var = layer.running_mean, layer.running_var
        assert mean is not None
        assert var is not None
        spread = (var.double() + layer.eps).sqrt()
        shift = (measured[path].mean - mean.double()) / spread
        gain = (measured[path].var + layer.eps).sqrt() / spread
        found[path] = float((shift.square() + (gain - 1).square()).mean().sqrt())
    return found


def error(model: nn.Module, batches: Iterable[Batch], *, train_mode: bool = False) -> float:
    """The share of samples that are told wrongly, in eval or in train mode; the model is copied first."""
    model = copy.deepcopy(model).train(train_mode)
    wrong = total = 0
    with torch.no_grad():
        for x, y in batches:
            wrong += int((model(x).argmax(1) != y).sum())
            total += len(y)
    return wrong / total


def batch_noise(model: nn.Module, batches: Iterable[Batch]) -> float:
    """By how much the output of a layer differs as it normalizes with one batch, or with all; the mean over layers."""
    batches = list(batches)
    whole = populations(model, batches)
    distances: list[float] = []
    for each in (populations(model, [batch]) for batch in batches[:40]):
        for path, layer in norm_layers(model).items():
            spread = (whole[path].var + layer.eps).sqrt()
            shift = (each[path].mean - whole[path].mean) / spread
            gain = (each[path].var + layer.eps).sqrt() / spread
            distances.append(float((shift.square() + (gain - 1).square()).mean().sqrt()))
    return sum(distances) / len(distances)


def rank_distance(ranks: Sequence[Mapping[str, Tensor]]) -> float:
    """How far the statistics of two processes lie apart in the layer where they do most, in standard deviations."""
    first, second = ranks
    worst = 0.0
    for name, mean in first.items():
        if not name.endswith("running_mean"):
            continue
        of_var = name.replace("running_mean", "running_var")
        spread = (first[of_var].double() + 1e-5).sqrt()
        shift = (second[name].double() - mean.double()) / spread
        gain = (second[of_var].double() + 1e-5).sqrt() / spread
        worst = max(worst, float((shift.square() + (gain - 1).square()).mean().sqrt()))
    return worst


@dataclass(frozen=True)
class Proof:
    """Whether a fault is real.

    Attributes:
        measured: how much is wrong.
        healthy: what is measured in the same way on the healthy net.
        factor: how many times that it has to be.
    """

    measured: float
    healthy: float
    factor: float

    @property
    def real(self) -> bool:
        """Whether something is wrong; NaN is."""
        return not self.measured < self.factor * self.healthy


def proof(net: Net, case: Case) -> Proof:
    """Measure that something is wrong in a case, by what it says it can be measured by."""
    size = len(case.loader[0][1])
    if case.proof == "counter":
        counts = [int(layer.num_batches_tracked or 0) for layer in norm_layers(case.model).values()]
        return Proof(max(counts), case.options.get("steps", min(counts)), 2.0)
    if case.proof == "ranks":
        return Proof(rank_distance(case.options["ranks"]), _healthy(net, "train", net.batch_size)[0], 2.0)
    if case.proof == "batch":
        return Proof(batch_noise(case.model, case.loader), batch_noise(net.fresh(), net.batches(samples=768)), 2.0)
    if case.proof == "domains":
        off = [max(deviations(case.model, batches).values()) for batches in case.domains.values()]
        return Proof(min(off), _healthy(net, "train", net.batch_size)[0], 2.0)
    found = list(deviations(case.model, case.loader).values())
    worst, mean = _healthy(net, "held_out" if case.proof == "data" else "train", size)
    # Some faults are in one layer, some are a little in each: whichever shows.
    by_worst, by_mean = Proof(max(found), worst, 1.7), Proof(sum(found) / len(found), mean, 1.7)
    if any(not math.isfinite(value) for value in found):
        return Proof(math.nan, worst, 1.7)
    return max(by_worst, by_mean, key=lambda each: each.measured / each.healthy)


@cache
def _healthy(net: Net, split: str, batch_size: int) -> tuple[float, float]:
    """The largest and the mean deviation of the healthy net's layers."""
    batches = net.batches(split, batch_size, seed=500, samples=768)
    found = deviations(net.fresh(), batches).values()
    return max(found), sum(found) / len(found)
