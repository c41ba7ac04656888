"""Faults of a checkpoint: statistics lost, poisoned, exchanged between layers, or rounded to 16 bits."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from planted_controls import SAMPLES
from planted_faults import Case, planted
from planted_measures import populations
from planted_nets import Batch, Net, norm_layers, reset_statistics
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LOW_PRECISION = {
    1: (torch.bfloat16, 0.005),
    2: (torch.bfloat16, 0.003),
    3: (torch.bfloat16, 0.001),
}


def case(net: Net, model: nn.Module, seed: int) -> Case:
    """The damaged model on training data."""
    return Case(model.eval(), net.batches(seed=500 + seed, samples=SAMPLES))


@planted("never-updated", "statistics lost")
def statistics_lost(net: Net, strength: int, seed: int) -> Case:
    """A checkpoint without buffers, or with those of the head, or the second half, missing."""
    model = net.fresh()
    for layer in _from_the_head(model, strength):
        layer.reset_running_stats()
    return case(net, model, seed)


@planted("never-updated", "momentum 0")
def momentum_zero(net: Net, strength: int, seed: int) -> Case:
    """New layers trained with momentum 0.0 (Lightning#14866 meant ``None``); the counter counts."""
    model = net.fresh()
    for layer in _from_the_head(model, strength):
        layer.reset_running_stats()
        layer.momentum = 0.0
    return case(net, net.train_more(model, 20, seed=100 + seed), seed)


def _from_the_head(model: nn.Module, strength: int) -> list[_BatchNorm]:
    """The last two layers, the second half, or all."""
    layers = list(norm_layers(model).values())
    return {1: layers[-2:], 2: layers[len(layers) // 2 :], 3: layers}[strength]


@planted("non-finite", "one channel")
def one_channel(net: Net, strength: int, seed: int) -> Case:
    """NaN, infinity, or the negative variance of a cancellation, in one channel of one layer."""
    model = net.fresh()
    generator = Generator().manual_seed(seed)
    layers = list(norm_layers(model).values())
    layer = layers[int(torch.randint(len(layers), (1,), generator=generator))]
    channel = int(torch.randint(layer.num_features, (1,), generator=generator))
    assert layer.running_mean is not None
    assert layer.running_var is not None
    if strength == 1:
        layer.running_var[channel] = -8.0
    elif strength == 2:
        layer.running_mean[channel] = float("nan")
    else:
        layer.running_mean[channel] = float("inf")
        layer.running_var[channel] = float("nan")
    return case(net, model, seed)


@planted("non-finite", "one batch")
def one_batch(net: Net, strength: int, seed: int) -> Case:
    """An image with infinite or NaN pixels, whose step the gradient scaler skipped; the statistics took it in."""
    model = net.fresh().train()
    x = net.batches(seed=800 + seed, samples=net.batch_size)[0][0].clone()
    x[0, 0, 0, 0] = float("inf") if strength == 1 else float("nan")
    if strength == 3:
        x[:] = float("nan")
    with torch.no_grad():
        model(x)
    return case(net, model, seed)


@planted("layers-swapped", "statistics")
def statistics_swapped(net: Net, strength: int, seed: int) -> Case:
    return _swapped(net, strength, seed, ("running_mean", "running_var"))


@planted("layers-swapped", "whole layers")
def layers_swapped(net: Net, strength: int, seed: int) -> Case:
    """As by a checkpoint whose keys were assigned in the wrong order."""
    return _swapped(net, strength, seed, ("running_mean", "running_var", "weight", "bias"))


def _swapped(net: Net, strength: int, seed: int, names: Sequence[str]) -> Case:
    """One pair, a rotation of three, or two pairs of layers of equal width."""
    model = net.fresh()
    generator = Generator().manual_seed(seed)
    by_width: dict[int, list[_BatchNorm]] = {}
    for layer in norm_layers(model).values():
        by_width.setdefault(layer.num_features, []).append(layer)
    groups = [layers for layers in by_width.values() if len(layers) >= 2]
    order = [groups[i] for i in torch.randperm(len(groups), generator=generator)]
    if strength == 2 and any(len(layers) >= 3 for layers in groups):
        cycles = [_some(next(layers for layers in order if len(layers) >= 3), 3, generator)]
    elif strength == 3 and len(groups) == 1:
        four = _some(groups[0], 4, generator)
        cycles = [four[:2], four[2:]]
    else:
        cycles = [_some(layers, 2, generator) for layers in order[: 2 if strength > 1 else 1]]
    for cycle in cycles:
        for name in names:
            kept = [copy.deepcopy(getattr(layer, name).data) for layer in cycle]
            for layer, value in zip(cycle, kept[1:] + kept[:1], strict=True):
                getattr(layer, name).data.copy_(value)
    return case(net, model, seed)


def _some(layers: Sequence[_BatchNorm], count: int, generator: Generator) -> list[_BatchNorm]:
    return [layers[i] for i in torch.randperm(len(layers), generator=generator)[:count].tolist()]


@planted("low-precision-buffers", "bfloat16")
def low_precision(net: Net, strength: int, seed: int) -> Case:
    """A net in bfloat16, from new statistics and for so long that in float32 they would have arrived."""
    dtype, momentum = LOW_PRECISION[strength]
    return _low_precision(net, dtype, momentum, seed)


@planted("low-precision-buffers", "float16", strengths=(2,))
def half_precision(net: Net, _strength: int, seed: int) -> Case:
    return _low_precision(net, torch.float16, 0.0005, seed)


def _low_precision(net: Net, dtype: torch.dtype, momentum: float, seed: int) -> Case:
    model = reset_statistics(net.fresh()).to(dtype)
    batches = [(x.to(dtype), y) for x, y in net.batches(seed=500 + seed, samples=SAMPLES)]
    replay(model, batches, momentum, steps=round(4 / momentum))
    return Case(model.eval(), batches)


def replay(model: nn.Module, batches: Sequence[Batch], momentum: float, steps: int) -> nn.Module:
    """Update the statistics as so many steps in train mode over these batches would, the weights being fixed.

    With fixed weights each batch has the same statistics every time it comes, so each needs one forward pass only. The
    update is that of the kernel (``aten/src/ATen/native/Normalization.cpp:batch_norm_cpu_update_stats_template``): it
    takes the momentum and ``1 - momentum`` in the type of the buffers, so in bfloat16 0.999 is 1.
    """
    layers = norm_layers(model)
    per_batch = [populations(model, [batch]) for batch in batches]
    counts = _counts(model, batches[0])
    for path, layer in layers.items():
        layer.momentum = momentum
        assert layer.running_mean is not None
        assert layer.running_var is not None
        assert layer.num_batches_tracked is not None
        n = counts[path]
        means = [found[path].mean.float() for found in per_batch]
        variances = [(found[path].var * n / (n - 1)).float() for found in per_batch]
        mean, var = layer.running_mean, layer.running_var
        for step in range(steps):
            i = step % len(batches)
            mean.copy_(_updated(mean, means[i], momentum))
            var.copy_(_updated(var, variances[i], momentum))
        layer.num_batches_tracked += steps
    return model


def _updated(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    weight = torch.tensor(momentum, dtype=old.dtype)
    return weight.float() * new + ((1 - weight) * old).float()


def _counts(model: nn.Module, batch: Batch) -> dict[str, int]:
    """Values per channel that each layer sees in a batch."""
    found: dict[str, int] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda module, args, path=path: found.__setitem__(path, args[0].numel() // module.num_features)
        )
        for path, layer in norm_layers(model).items()
    ]
    with torch.no_grad():
        model(batch[0])
    for handle in handles:
        handle.remove()
    return found
