"""The nets that faults are planted in are healthy, the faults are real, and planting one leaves the net as it was."""

from __future__ import annotations

import copy
import math
import pickle

import planted_suite
import pytest
import torch
from planted_by_edit import replay
from planted_faults import ALL, Case, Fault, faults_for
from planted_images import DATA, Split, shifted_and_flipped
from planted_measures import deviations, error, populations, proof
from planted_nets import EVERYWHERE, NETS, norm_layers, raw_resnet20, reset_statistics
from torch import Generator, Tensor, nn

NET = "digits_cnn"


def the(name: str, net: str = NET) -> Fault:
    return next(fault for fault in faults_for(net) if fault.name == name)


def planted(name: str, net: str = NET) -> Case:
    return the(name, net).plant(NETS[net](0), 0)


def needs_data() -> None:
    if not DATA.is_dir():
        pytest.skip(f"REAL DATA ABSENT: {DATA} is not there, so nets on real photographs go unchecked")


@pytest.mark.parametrize("name", EVERYWHERE)
def test_nets_on_digits_are_healthy(name: str) -> None:
    net = NETS[name](0)
    model, batches = net.fresh(), net.batches(batch_size=128, samples=768)
    assert not model.training
    in_eval, in_train = error(model, batches), error(model, batches, train_mode=True)
    assert in_eval < 0.05
    assert abs(in_eval - in_train) < 0.03
    # Momentum 0.1 over batches of 32 is off by 0.23 / sqrt(32) = 0.04 sd in the mean, in the spread by about as much.
    assert max(deviations(model, net.batches()).values()) < 0.1
    assert all(layer.momentum == 0.1 for layer in norm_layers(model).values())
    assert {int(layer.num_batches_tracked or 0) for layer in norm_layers(model).values()} == {net.steps}


@pytest.mark.parametrize("name", [fault.name for fault in faults_for(NET) if fault.strength == 1])
def test_the_weakest_faults_are_real(name: str) -> None:
    net, case = NETS[NET](0), planted(name)
    found = proof(net, case)
    assert found.real, found


def test_the_proof_finds_nothing_in_a_healthy_net() -> None:
    net = NETS[NET](0)
    control = planted("healthy/training data/0")
    for kind in ("statistics", "data"):
        loader = control.loader if kind == "statistics" else net.batches("held_out", seed=1)
        found = proof(net, Case(control.model, loader, proof=kind))
        assert not found.real, (kind, found)
    agreeing = planted("healthy/processes agree/0")
    assert not proof(net, Case(agreeing.model, agreeing.loader, agreeing.options, proof="ranks")).real
    assert not proof(net, Case(control.model, control.loader, proof="batch")).real
    assert not proof(net, Case(control.model, control.loader, proof="counter")).real
    halves = {name: net.batches(seed=seed) for seed, name in enumerate("ab")}
    assert not proof(net, Case(control.model, control.loader, proof="domains", domains=halves)).real


FAMILIES = (
    "memory-too-long/short training",
    "stale/statistics off",
    "domain-shift/blurred",
    "memory-too-short/momentum",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stronger_fault_is_further_off(family: str) -> None:
    cases = [planted(f"{family}/{strength}") for strength in (1, 2, 3)]
    off = [sum(deviations(case.model, case.loader).values()) for case in cases]
    assert off == sorted(off)


def test_every_cause_is_planted_in_three_strengths_in_every_net() -> None:
    for net in ALL:
        faults = faults_for(net)
        assert len({fault.name for fault in faults}) == len(faults)
        for cause in planted_suite.CAUSES[1:]:
            assert {fault.strength for fault in faults if fault.cause == cause} == {1, 2, 3}, (net, cause)
        assert {fault.cause for fault in faults} == set(planted_suite.CAUSES)


def test_planting_leaves_the_net_as_it_was_and_is_repeatable() -> None:
    net = NETS[NET](0)
    before = copy.deepcopy(net.trained.state_dict())
    rng = torch.random.get_rng_state()
    for name in ("stale/statistics off/1", "mixed-domains/domains named/1", "non-finite/one channel/2"):
        first, second = planted(name), planted(name)
        assert first.model is not second.model
        for (x, y), (again, labels) in zip(first.loader, second.loader, strict=True):
            assert torch.equal(x, again)
            assert torch.equal(y, labels)
        states = (first.model.state_dict(), second.model.state_dict())
        assert all(
            torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(*(s.values() for s in states), strict=True)
        )
        with torch.no_grad():
            next(first.model.parameters()).zero_()
    assert torch.equal(rng, torch.random.get_rng_state())
    assert all(torch.equal(value, net.trained.state_dict()[key]) for key, value in before.items())


def test_a_swap_exchanges_statistics_and_nothing_else() -> None:
    healthy, swapped = NETS[NET](0).fresh(), planted("layers-swapped/statistics/3").model
    before, after = norm_layers(healthy), norm_layers(swapped)
    moved = [path for path in before if not torch.equal(before[path].running_mean, after[path].running_mean)]
    assert len(moved) == 4
    for path in moved:
        assert sum(torch.equal(after[path].running_mean, layer.running_mean) for layer in before.values()) == 1
    assert all(torch.equal(a, b) for a, b in zip(healthy.parameters(), swapped.parameters(), strict=True))


def test_checkpointing_updates_twice_and_leaves_no_trace_on_the_model() -> None:
    net, case = NETS[NET](0), planted("double-update/part of the net/1")
    counts = {path: int(layer.num_batches_tracked or 0) for path, layer in norm_layers(case.model).items()}
    assert {path: count for path, count in counts.items() if count == 200}.keys() == {f"{p}.1" for p in net.part}
    assert set(counts.values()) == {100, 200}
    assert not any("forward" in vars(module) for module in case.model.modules())
    pickle.loads(pickle.dumps(case.model))


def test_replaying_updates_is_running_them() -> None:
    """In 16 bits, with the weights fixed, one batch after the other; and in float32 it would have arrived elsewhere."""
    net = NETS["digits_mlp"](0)
    batches = [(x.bfloat16(), y) for x, y in net.batches(samples=96)]
    replayed = replay(reset_statistics(net.fresh()).bfloat16(), batches, 0.003, steps=30)
    run = reset_statistics(net.fresh()).bfloat16().train()
    exact = reset_statistics(net.fresh()).train()
    for model in (run, exact):
        for layer in norm_layers(model).values():
            layer.momentum = 0.003
        for step in range(30):
            with torch.no_grad():
                model(batches[step % len(batches)][0].to(next(model.parameters()).dtype))
    for path, layer in norm_layers(run).items():
        other, full = norm_layers(replayed)[path], norm_layers(exact)[path]
        assert int(layer.num_batches_tracked or 0) == int(other.num_batches_tracked or 0) == 30
        for name in ("running_mean", "running_var"):
            ours, theirs = getattr(other, name).float(), getattr(layer, name).float()
            # The kernel may sum in another order: now and then the last place of one of the roundings differs.
            assert ((ours - theirs).abs() <= 2**-6 * theirs.abs() + 1e-6).float().mean() > 0.9
            assert (ours == theirs).float().mean() > 0.5
        lost = (other.running_var.float() == 1) & (full.running_var < 1)
        assert lost.any()


def test_own_statistics_repair_a_net_trained_on_two_domains_in_turn_and_pooled_ones_do_not() -> None:
    case = planted("mixed-domains/domains named/3")
    shared = [error(case.model, batches) for batches in case.domains.values()]
    pooled = with_population(case.model, case.loader)
    own = [error(with_population(case.model, batches), batches) for batches in case.domains.values()]
    assert max(shared) > 0.5
    assert max(error(pooled, batches) for batches in case.domains.values()) > 0.5
    assert max(own) < 0.15


@pytest.mark.real_data
@pytest.mark.slow
def test_recalibrating_the_resnet_on_compressed_images_makes_it_worse() -> None:
    needs_data()
    net_held_out = resnet_images()
    before = error(raw_resnet20(), net_held_out)
    after = error(with_population(raw_resnet20(), net_held_out), net_held_out)
    assert 0.17 < before < 0.21
    assert after > before


def resnet_images() -> list[tuple[Tensor, Tensor]]:
    from planted_images import cifar10
    from planted_nets import IMAGENET

    held_out = cifar10()[1]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    order = torch.randperm(len(held_out), generator=Generator().manual_seed(0))
    x = ((held_out.pixels - mean) / std)[order]
    return list(zip(x.split(100), held_out.labels[order].split(100), strict=True))


def with_population(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    model = copy.deepcopy(model)
    found = populations(model, batches)
    for path, layer in norm_layers(model).items():
        layer.running_mean.copy_(found[path].mean)
        layer.running_var.copy_(found[path].var)
    return model


def test_populations_are_those_of_all_values_at_once() -> None:
    torch.manual_seed(0)
    x = 1000 + torch.randn(60, 3, 4, 4) * torch.linspace(0.5, 2, 60).view(-1, 1, 1, 1)
    labels = torch.zeros(60, dtype=torch.long)
    found = populations(nn.Sequential(nn.BatchNorm2d(3)), [(x[:7], labels[:7]), (x[7:], labels[7:])])["0"]
    values = x.double().transpose(0, 1).flatten(1)
    assert torch.allclose(found.mean, values.mean(1), rtol=1e-13)
    assert torch.allclose(found.var, values.var(1, unbiased=False), rtol=1e-11)


def test_augmentation_moves_by_whole_pixels_and_mirrors() -> None:
    pixels = torch.rand(50, 1, 6, 6, generator=Generator().manual_seed(0))
    moved = shifted_and_flipped(1, True)(pixels, Generator().manual_seed(1))
    assert moved.shape == pixels.shape
    where = [(r, c) for r in (1, 2, 3) for c in (1, 2, 3)]
    hits = [
        any(torch.equal(image[:, 2:4, 2:4], source[:, r : r + 2, c : c + 2]) for source in pair for r, c in where)
        for image, *pair in zip(moved, pixels, pixels.flip(3), strict=True)
    ]
    assert all(hits)
    assert not torch.equal(moved, pixels)


def test_batches_are_full_the_same_each_time_and_of_the_split() -> None:
    net = NETS[NET](0)
    first, again, other = net.batches(seed=3), net.batches(seed=3), net.batches(seed=4)
    assert len(first) == len(net.train) // net.batch_size
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    plain = net.batches(augment=False, prepare=lambda pixels: pixels, batch_size=len(net.train))[0]
    assert torch.equal(plain[0].flatten(1).sum(1).sort().values, net.train.pixels.flatten(1).sum(1).sort().values)
    assert len(Split.of(net.train.pixels, net.train.labels, 1).domain(0)) == 0


def test_a_confusion_matrix_counts_what_was_said() -> None:
    def row(cause: str, said: str, forbidden: bool = False) -> planted_suite.Row:
        return planted_suite.Row("net", 0, cause, "", int(cause != "healthy"), said, "", forbidden, None, 0.1)

    rows = [row("stale", "stale"), row("stale", "domain-shift"), row("healthy", "healthy"), row("stale", "stale", True)]
    result = planted_suite.summary(rows, [], 1.0)
    assert result["confusion"] == {"healthy": {"healthy": 1}, "stale": {"stale": 2, "domain-shift": 1}}
    assert math.isclose(result["top1"], 1 / 3, abs_tol=1e-4)
    assert (result["false_alarms"], result["controls"], result["forbidden_remedies"]) == (0, 1, 1)
    assert "stale                        3      2  domain-shift 1" in planted_suite.table(result["confusion"])
