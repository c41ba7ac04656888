"""Healthy nets, seen in the ways in which users look at them; nothing may be found."""

from __future__ import annotations

import copy

import torch
from planted_faults import SIAMESE, Case, planted
from planted_nets import Net, norm_layers, reset_statistics
from torch import nn

SAMPLES = 768


def control(net: Net, model: nn.Module | None = None, seed: int = 0, **options: object) -> Case:
    """The healthy net on training data."""
    loader = net.batches(seed=500 + seed, samples=SAMPLES)
    return Case(model or net.fresh(), loader, dict(options), proof="nothing")


@planted("healthy", "training data", strengths=(0,))
def on_training_data(net: Net, _strength: int, seed: int) -> Case:
    return control(net, seed=seed)


@planted("healthy", "held-out data", strengths=(0,))
def on_held_out_data(net: Net, _strength: int, seed: int) -> Case:
    return Case(net.fresh(), net.batches("held_out", seed=500 + seed, samples=SAMPLES), proof="nothing")


@planted("healthy", "held-out against training data", strengths=(0,))
def on_both(net: Net, _strength: int, seed: int) -> Case:
    case = control(net, seed=seed)
    loader = net.batches("held_out", seed=500 + seed, samples=SAMPLES)
    return Case(case.model, loader, {"train_loader": case.loader}, proof="nothing")


@planted("healthy", "steps known", strengths=(0,))
def with_steps(net: Net, _strength: int, seed: int) -> Case:
    return control(net, seed=seed, steps=net.steps)


@planted("healthy", "trained further", strengths=(0,))
def trained_further(net: Net, _strength: int, seed: int) -> Case:
    return control(net, net.train_more(net.fresh(), 40, seed=100 + seed), seed)


@planted("healthy", "file without counters", strengths=(0,))
def without_counters(net: Net, _strength: int, seed: int) -> Case:
    """Checkpoints from before PyTorch 0.4.1 load with a counter of 0."""
    model = net.fresh()
    for layer in norm_layers(model).values():
        assert layer.num_batches_tracked is not None
        layer.num_batches_tracked.zero_()
    return control(net, model, seed)


@planted("healthy", "cumulative average", strengths=(0,))
def cumulative(net: Net, _strength: int, seed: int) -> Case:
    """As ``torch.optim.swa_utils.update_bn`` leaves it, but for the momentum, which that restores."""
    model = reset_statistics(net.fresh()).train()
    for layer in norm_layers(model).values():
        layer.momentum = None
    with torch.no_grad():
        for x, _ in net.batches(batch_size=64, seed=700 + seed):
            model(x)
    return control(net, model.eval(), seed)


@planted("healthy", "processes agree", strengths=(0,))
def processes_agree(net: Net, _strength: int, seed: int) -> Case:
    ranks: list[nn.Module] = []
    for rank in range(2):
        model = net.fresh().train()
        with torch.no_grad():
            for x, _ in net.batches(seed=900 + 10 * seed + rank, samples=SAMPLES):
                model(x)
        ranks.append(model.eval())
    states = [copy.deepcopy(model.state_dict()) for model in ranks]
    return control(net, ranks[0], seed, ranks=states)


@planted("healthy", "domains mixed in each batch", nets=SIAMESE, strengths=(0,))
def domains_mixed(net: Net, _strength: int, seed: int) -> Case:
    domains = {
        name: net.batches(net.train.domain(number), seed=600 + seed, augment=True)
        for number, name in enumerate(net.domains)
    }
    return control(net, seed=seed, domains=domains)
