"""Faults of a training: batches, memory, domains in turn, updates twice, weights that went on without statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from typing import Any

import torch
from planted_controls import SAMPLES
from planted_faults import SIAMESE, Case, planted
from planted_images import Look, Split, dimmed, pacs
from planted_nets import EVERYWHERE, Batch, Net, Step, norm_layers, reset_statistics
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


def _case(net: Net, model: nn.Module, seed: int, **options: Any) -> Case:
    return Case(model.eval(), net.batches(seed=500 + seed, samples=SAMPLES), options)


# Batches and memory -------------------------------------------------------------------------------------------------


@planted("batch-too-small", "trained on")
def batch_too_small(net: Net, strength: int, seed: int) -> Case:
    # Two samples without positions become +1 and -1, whatever they are: such a net cannot learn.
    size = {1: 6, 2: 4, 3: 3}[strength] if net.name == "digits_mlp" else {1: 4, 2: 3, 3: 2}[strength]
    model = net.train_more(net.fresh(), 300, batch_size=size, lr=net.lr / 4, seed=100 + seed)
    return Case(model, net.batches(batch_size=size, seed=500 + seed, samples=SAMPLES), proof="batch")


@planted("memory-too-short", "momentum")
def memory_too_short(net: Net, strength: int, seed: int) -> Case:
    """As with a momentum of TensorFlow taken over as it is (Cadene/pretrained-models#44).

    Batches of 16: larger ones of images have so many values that even a memory of one batch is hardly wrong.
    """
    momentum = {1: 0.5, 2: 0.7, 3: 0.9}[strength]
    model = net.train_more(net.fresh(), 40, batch_size=16, lr=net.lr / 2, momentum=momentum, seed=100 + seed)
    return Case(model, net.batches(batch_size=16, seed=500 + seed, samples=SAMPLES))


@planted("memory-too-long", "short training")
def memory_too_long(net: Net, strength: int, seed: int) -> Case:
    """New statistics keep a weight of a quarter, a half, or four fifths."""
    momentum, steps = {1: (0.02, 68), 2: (0.01, 69), 3: (0.003, 74)}[strength]
    return _case(net, net.train_more(reset_statistics(net.fresh()), steps, momentum=momentum, seed=100 + seed), seed)


@planted("memory-too-long", "tiny momentum", nets=EVERYWHERE)
def tiny_momentum(net: Net, strength: int, seed: int) -> Case:
    momentum, steps = {1: (0.01, 138), 2: (0.003, 231), 3: (0.001, 223)}[strength]
    return _case(net, net.train_more(reset_statistics(net.fresh()), steps, momentum=momentum, seed=100 + seed), seed)


# Weights and statistics of different times --------------------------------------------------------------------------

WENT_ON = (40, 80, 160, 320)


@cache
def _went_on(net: Net, seed: int) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """State dicts along a training that goes on at a high rate, and moving averages of the weights beside them."""
    kept: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    model = net.fresh()
    average = copy.deepcopy(model)

    def after_step(model: nn.Module, done: int) -> None:
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
        if done in WENT_ON:
            kept.append((copy.deepcopy(model.state_dict()), copy.deepcopy(average.state_dict())))

    net.train_more(model, WENT_ON[-1], lr=5 * net.lr, decay=False, seed=100 + seed, after_step=after_step)
    return kept


def _with(model: nn.Module, weights: dict[str, Tensor], statistics: dict[str, Tensor]) -> nn.Module:
    buffers = {name for name, _ in model.named_buffers()}
    model.load_state_dict({name: (statistics if name in buffers else weights)[name] for name in weights})
    return model.eval()


@planted("stale", "statistics off")
def statistics_off(net: Net, strength: int, seed: int) -> Case:
    """Trained on with ``track_running_stats`` turned off, as Lightning's ``freeze_module`` leaves it.

    In train mode a layer normalizes with the batch either way, so the weights are those of the plain training.
    """
    model = net.fresh()
    _with(model, _went_on(net, seed)[strength - 1][0], model.state_dict())
    for layer in norm_layers(model).values():
        layer.track_running_stats = False
    return _case(net, model, seed)


@planted("stale", "statistics of an earlier epoch")
def earlier_epoch(net: Net, strength: int, seed: int) -> Case:
    """Weights that went on, in a file with the statistics of before."""
    model = net.fresh()
    return _case(net, _with(model, _went_on(net, seed)[strength - 1][0], model.state_dict()), seed)


@planted("stale", "average of two checkpoints")
def averaged(net: Net, strength: int, seed: int) -> Case:
    """Weights half way between two checkpoints, statistics of the later one (``AveragedModel``, no ``update_bn``)."""
    model = net.fresh()
    later = _went_on(net, seed)[strength][0]  # further apart than with the others: half the way is undone
    half = {name: (value + later[name]) / 2 for name, value in model.state_dict().items()}
    return _case(net, _with(model, half, later), seed)


@planted("stale", "moving average of weights")
def moving_average(net: Net, strength: int, seed: int) -> Case:
    """Moving average of the weights, statistics as they were copied when it began (pytorch#84053)."""
    model = net.fresh()
    return _case(net, _with(model, _went_on(net, seed)[strength - 1][1], model.state_dict()), seed)


# Two domains in turn ------------------------------------------------------------------------------------------------

CAMERAS: dict[int, Look] = {1: dimmed(0.5, 0.4), 2: dimmed(0.25, 0.7), 3: dimmed(0.12, 0.85)}


def two_domains(net: Net, strength: int) -> dict[str, Split]:
    """The net's own domain and another, ever further away."""
    own = net.train.domain(0)
    if net.name == "siamese" and strength == 1:
        return {"photo": own, "cartoon": pacs("cartoon", 1)[0]}
    if net.domains and strength == 3:
        return {name: net.train.domain(number) for number, name in enumerate(net.domains)}
    other = CAMERAS[strength](own.pixels, Generator())
    return {"own": own, "other camera": Split.of(other, own.labels, 1)}


@cache
def _in_turn(net: Net, strength: int, seed: int) -> nn.Module:
    """Trained with one forward pass for each domain in each step."""
    streams = [net.stream(split, net.batch_size // 2, seed=100 + seed) for split in two_domains(net, strength).values()]

    def steps() -> Iterator[Step]:
        while True:
            yield [next(stream) for stream in streams]

    return net.train_more(net.fresh(), 120, on=steps())


def _per_domain(net: Net, strength: int, seed: int) -> dict[str, list[Batch]]:
    return {
        name: net.batches(split, net.batch_size // 2, seed=500 + seed, samples=SAMPLES // 2, augment=True)
        for name, split in two_domains(net, strength).items()
    }


def _alternating(domains: dict[str, list[Batch]]) -> list[Batch]:
    return list(chain.from_iterable(zip(*domains.values(), strict=False)))


@planted("mixed-domains", "domains named")
def domains_named(net: Net, strength: int, seed: int) -> Case:
    domains = _per_domain(net, strength, seed)
    model = copy.deepcopy(_in_turn(net, strength, seed))
    return Case(model, _alternating(domains), {"domains": domains}, "domains", domains)


@planted("mixed-domains", "alternating batches")
def alternating(net: Net, strength: int, seed: int) -> Case:
    domains = _per_domain(net, strength, seed)
    model = copy.deepcopy(_in_turn(net, strength, seed))
    return Case(model, _alternating(domains), proof="domains", domains=domains)


@planted("mixed-domains", "two views", nets=SIAMESE)
def two_views(net: Net, strength: int, seed: int) -> Case:
    """A forward pass that is given one image of each domain calls its trunk twice."""
    domains = _per_domain(net, strength, seed)
    pairs = zip(*domains.values(), strict=False)
    loader: list[Batch] = [((a, b), torch.cat([labels_a, labels_b])) for (a, labels_a), (b, labels_b) in pairs]
    model = copy.deepcopy(_in_turn(net, strength, seed))
    return Case(model, loader, proof="domains", domains=domains)


# More updates than steps --------------------------------------------------------------------------------------------

TIMES = {1: 2, 2: 3, 3: 4}
# New statistics have no weight left after as many, also where a variance is a hundredth.
STEPS = 100


def _from_new_statistics(net: Net, seed: int, forward: Callable[[nn.Module, Any], Tensor]) -> nn.Module:
    return net.train_more(reset_statistics(net.fresh()), STEPS, seed=100 + seed, forward=forward)


def _times(times: int) -> Callable[[nn.Module, Any], Tensor]:
    """Recomputed by an activation checkpoint, or run again without gradients, as for a consistency loss."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            for _ in range(times - 2):
                model(x)
        return checkpoint(model, x, use_reentrant=False)

    return forward


@planted("double-update", "whole net, steps known")
def whole_net(net: Net, strength: int, seed: int) -> Case:
    model = _from_new_statistics(net, seed, _times(TIMES[strength]))
    case = _case(net, model, seed, steps=STEPS)
    return Case(case.model, case.loader, case.options, proof="counter")


@planted("double-update", "part of the net")
def part_of_the_net(net: Net, strength: int, seed: int) -> Case:
    """Only the front is checkpointed, and called again where it is 3 or 4 times."""
    model = reset_statistics(net.fresh())
    parts = [model.get_submodule(path) for path in net.part]
    for part in parts:
        again, plain = _times(TIMES[strength]), part.forward
        part.forward = lambda x, again=again, plain=plain: again(plain, x)  # type: ignore[method-assign]
    net.train_more(model, STEPS, seed=100 + seed)
    for part in parts:
        del part.forward
    case = _case(net, model, seed)
    return Case(case.model, case.loader, case.options, proof="counter")


# Processes ----------------------------------------------------------------------------------------------------------


def _brightness_halves(data: Split) -> tuple[Split, Split]:
    """The darker and the brighter half."""
    brightness = data.pixels.mean((1, 2, 3))
    bright = brightness > brightness.median()
    return data.where(~bright), data.where(bright)


@planted("ranks-differ", "shards")
def shards(net: Net, strength: int, seed: int) -> Case:
    """One process sees the darker images (1), or another camera's (2, 3)."""
    first, second = _brightness_halves(net.train) if strength == 1 else two_domains(net, strength - 1).values()
    return _two_processes(net, (first, second), seed)


@planted("ranks-differ", "classes", nets=("digits_mlp", "digits_cnn", "resnet20"), strengths=(2,))
def classes(net: Net, _strength: int, seed: int) -> Case:
    """A sorted data set that was not shuffled: half of the classes each."""
    upper = net.train.labels * 2 > net.train.labels.max()
    return _two_processes(net, (net.train.where(~upper), net.train.where(upper)), seed)


def _two_processes(net: Net, shards: tuple[Split, Split], seed: int) -> Case:
    """Gradients are averaged over two processes, statistics are not; the model is that of rank 0."""
    streams = [net.stream(shard, seed=100 + seed) for shard in shards]
    models = [net.fresh().train() for _ in shards]
    optimizers = [torch.optim.SGD(model.parameters(), lr=net.lr / 4, momentum=0.9) for model in models]
    for _ in range(40):
        for model, stream in zip(models, streams, strict=True):
            model.zero_grad()
            x, y = next(stream)
            functional.cross_entropy(model(x), y).backward()
        for ours in zip(*(model.parameters() for model in models), strict=True):
            mean = sum(p.grad for p in ours if p.grad is not None) / len(ours)
            for p in ours:
                p.grad = mean.clone()
        for optimizer in optimizers:
            optimizer.step()
    states = [copy.deepcopy(model.state_dict()) for model in models]
    both = shards[0].joined(shards[1])
    loader = net.batches(both, seed=500 + seed, samples=SAMPLES, augment=True)
    return Case(models[0].eval(), loader, {"ranks": states}, proof="ranks")
