"""A blow-up is stopped before anything is NaN; healthy runs are never stopped."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline import meta
from frostline.errors import InnerLoopDiverged
from frostline.meta.guard import Guard, brief, unguarded
from frostline.state.snapshot import snapshot

OMNIGLOT = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "omniglot"
DIGITS = meta.Tasks(meta.digits(rotations="classes"), way=5, shot=5, queries=5)


def conv_net(seed: int = 0, channels: int = 16) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential()
    for number in range(4):
        net.append(nn.Conv2d(channels if number else 1, channels, 3, padding=1)).append(nn.BatchNorm2d(channels))
        net.append(nn.ReLU()).append(nn.MaxPool2d(2) if number < 2 else nn.Identity())
    return net.append(nn.Flatten()).append(nn.Linear(4 * channels, 5))


def with_honest_statistics(net: nn.Module, tasks: meta.Tasks = DIGITS, split: str = "all") -> nn.Module:
    """Population statistics over many tasks, averaged without forgetting, as PyTorch's train mode makes them."""
    net = copy.deepcopy(net).train()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    with torch.no_grad():
        for index in range(100):
            net(tasks.task(split, index).support.inputs)
    return net


def plain_loop(net: nn.Module, support: meta.Examples, rate: float, steps: int) -> tuple[list[float], list[float]]:
    """What everyone writes: the losses, and the norms of the first convolution."""
    net = copy.deepcopy(net).eval()
    weight = next(net.parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    losses: list[float] = []
    norms = [weight.norm().item()]
    for _ in range(steps):
        loss = functional.cross_entropy(net(support.inputs), support.labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        norms.append(weight.norm().item())
    return losses, norms


def stopped(learner: Any, support: meta.Examples, **options: Any) -> InnerLoopDiverged:
    with pytest.raises(InnerLoopDiverged) as caught:
        learner.adapt(support, **options)
    return caught.value


@pytest.fixture(scope="module")
def honest() -> nn.Module:
    return with_honest_statistics(conv_net())


@pytest.mark.parametrize("rate", [0.4, 1.0])
def test_fixed_statistics_blow_up_and_are_stopped_before_anything_is_nan(honest: nn.Module, rate: float) -> None:
    for index in range(3):
        support = DIGITS.task("all", 1000 + index).support
        losses, _ = plain_loop(honest, support, rate, 8)
        assert math.isnan(losses[-1])
        # Without a guard the same happens to us.
        unstopped = meta.MAML(honest, inner_lr=rate, steps=8, guard=None).adapt(support, policy="frozen")
        assert math.isnan(unstopped.losses[-1])
        report = stopped(meta.MAML(honest, inner_lr=rate, steps=8), support, policy="frozen").report
        assert report.reason == "loss"
        assert report.step < 1 + next(i for i, loss in enumerate(losses) if math.isnan(loss))
        seen = [*report.losses, *(norm for norms in report.norms.values() for norm in norms)]
        assert all(map(math.isfinite, seen))
        assert report.losses[:2] == pytest.approx(losses[:2], rel=1e-3)  # the same loop, in other roundings


def test_statistics_that_were_never_updated_are_not_stopped() -> None:
    losses = meta.MAML(conv_net(), inner_lr=0.1, steps=5).adapt(DIGITS.task("all", 0).support, policy="frozen").losses
    assert all(map(math.isfinite, losses))


def test_healthy_runs_are_never_stopped_and_a_tighter_guard_would_stop_them(honest: nn.Module) -> None:
    tight = Guard(loss_growth=1.0, explain=False)
    too_tight = 0
    for rate in (0.1, 0.4):
        for steps in (1, 5):
            for net in (conv_net(1), honest):
                for policy in ("batch", "task_norm_i", "instance"):
                    for index in range(3):
                        support = DIGITS.task("all", index).support
                        losses = meta.MAML(net, inner_lr=rate, steps=steps).adapt(support, policy=policy).losses
                        assert len(losses) == steps
                        try:
                            meta.MAML(net, inner_lr=rate, steps=steps, guard=tight).adapt(support, policy=policy)
                        except InnerLoopDiverged:
                            too_tight += 1
    # First steps that raise the loss are normal, and there are some among these.
    assert too_tight > 0


def test_a_classifier_that_starts_at_zero_may_grow() -> None:
    net = conv_net()
    with torch.no_grad():
        net[-1].weight.zero_()
        net[-1].bias.zero_()
    support = DIGITS.task("all", 0).support
    for selector in ("*", "17"):
        adapted = meta.MAML(net, inner_lr=0.4, steps=5, adapt=selector).adapt(support)
        assert adapted.losses[-1] < adapted.losses[0]
        assert adapted.values["17.weight"].norm() > 0


def test_reptile_with_adam_is_watched_too(honest: nn.Module) -> None:
    support = DIGITS.task("all", 0).support
    assert meta.Reptile(honest, inner_lr=1e-3, policy="batch").adapt(support).losses
    report = stopped(meta.Reptile(honest, inner_lr=3.0, steps=8, policy="frozen"), support).report
    assert report.limit is None  # 2 / curvature is for gradient descent
    assert report.stable.rate < 3.0


@pytest.mark.parametrize(
    ("losses", "norms", "reason"),
    [
        ([1.6, 6.4], [3.0, 3.1, 6.6], None),
        ([1.6, 15.9], [3.0, 3.1, 3.2], None),
        ([1.6, 16.1], [3.0, 3.1, 3.2], "loss"),
        ([1e-3, 9.9], [3.0, 3.1, 3.2], None),  # far above the start, and still less than a random guess is off
        ([1.6, 1.7], [3.0, 3.1, 31.0], "norm"),
        ([1.6, 1.5], [3.0, 3.1, 31.0], None),  # grown while the loss falls
        ([1.6, 1.5], [3.0, 3.1, 3001.0], "norm"),
        ([1.6, float("nan")], [3.0, 3.1, 3.2], "not finite"),
        ([1.6, 1.5], [3.0, 3.1, float("inf")], "not finite"),
    ],
)
def test_each_limit(losses: list[float], norms: list[float], reason: str | None) -> None:
    assert Guard().why(losses, [{"conv": norm} for norm in norms]) == reason


def test_a_layer_of_zeros_is_measured_against_the_others() -> None:
    start, now = {"conv": 4.0, "head": 0.0}, {"conv": 4.0, "head": 20.0}
    assert Guard().why([1.6, 1.7], [start, start, now]) is None
    assert Guard().why([1.6, 1.7], [start, start, {**now, "head": 29.0}]) == "norm"
    assert Guard().why([1.6, 1.7], [{"head": 0.0}, {"head": 0.0}, {"head": 11.0}]) == "norm"


def test_what_is_nan_from_the_start_is_no_blow_up(honest: nn.Module) -> None:
    support = DIGITS.task("all", 0).support
    broken = meta.Examples(support.inputs.clone(), support.labels)
    broken.inputs[3, 0, 0, 0] = torch.nan
    error = stopped(meta.MAML(honest, inner_lr=0.1, steps=2), broken)
    assert error.report is None
    assert "before the first inner step\n  found: the support set has values that are NaN" in str(error)
    net = conv_net()
    with torch.no_grad():
        net[4].weight[0] = torch.inf
    assert "found: 4.weight has values that are NaN or infinite" in str(stopped(meta.MAML(net, inner_lr=0.1), support))


def test_meta_training_stops_or_skips(honest: nn.Module) -> None:
    tasks = DIGITS.batch("all", 1000, 3)
    learner = meta.MAML(honest, inner_lr=0.4, steps=5, policy="frozen")
    before = snapshot(honest)
    with pytest.raises(InnerLoopDiverged) as caught:
        learner.backward(tasks, threads=2)
    assert caught.value.report.stable is not None
    assert all(p.grad is None for p in learner.parameters())
    batch = learner.backward(tasks, threads=2, on_nonfinite="skip")
    assert set(batch.skipped) == {0, 1, 2}
    assert all("adapting blew up in inner step" in why for why in batch.skipped.values())
    # A gradient of nothing is none: what the naive loop would have added is NaN.
    assert all(p.grad is None for p in learner.parameters())
    assert not before.diff(honest)


def test_the_second_order_gradient_is_the_same_with_and_without_a_guard() -> None:
    tasks = DIGITS.batch("all", 0, 2)
    grads: list[list[Tensor | None]] = []
    for guard in (Guard(), None):
        learner = meta.MAML(conv_net(), inner_lr=0.1, steps=3, policy="support", guard=guard)
        learner.backward(tasks, threads=1)
        grads.append([p.grad for p in learner.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True) if a is not None and b is not None)
    assert any(g is not None for g in grads[0])


def test_nothing_is_left_behind_by_what_was_stopped(honest: nn.Module) -> None:
    support = DIGITS.task("all", 1000).support
    learner = meta.MAML(honest, inner_lr=0.4, steps=5)
    healthy = learner.adapt(support).predict(support.inputs)
    before, random_state = snapshot(learner), torch.get_rng_state()
    stopped(learner, support, policy="frozen")
    assert not before.diff(learner)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(learner.adapt(support).predict(support.inputs), healthy)


def test_each_step_is_looked_at_with_one_transfer(honest: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    support = DIGITS.task("all", 0).support
    learner = meta.MAML(honest, inner_lr=0.1, steps=3)
    passes = learner.passes(learner.functional(), learner.policy, support.inputs)
    watch = Guard().watching(learner, passes, support)
    assert watch is not None
    values = {path: value.detach() for path, value in learner.values().items()}
    transfers: list[str] = []
    for name in ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(Tensor, name)

        def counted(self: Tensor, *args: Any, name: str = name, original: Any = original) -> Any:
            transfers.append(name)
            return original(self, *args)

        monkeypatch.setattr(Tensor, name, counted)
    for step in range(3):
        watch(step, torch.tensor(1.0), values, values)
    assert transfers == ["tolist"] * 3


def test_nothing_is_watched_under_vmap(honest: nn.Module) -> None:
    support = DIGITS.task("all", 0).support
    learner = meta.MAML(honest, inner_lr=0.1)
    passes = learner.passes(learner.functional(), learner.policy, support.inputs, vmapped=True)
    assert Guard().watching(learner, passes, support) is None


def test_brief_stops_at_the_same_step_and_measures_nothing(honest: nn.Module) -> None:
    support = DIGITS.task("all", 1000).support
    learner = meta.MAML(honest, inner_lr=0.4, steps=5, policy="frozen")
    full, short = stopped(learner, support), stopped(brief(learner), support)
    assert str(full).splitlines()[:2] == str(short).splitlines()[:2]
    assert short.report.curvature is None
    assert short.report.instead == ()
    assert full.report.curvature > 0
    assert learner.guard == Guard()
    assert math.isnan(unguarded(learner).adapt(support, steps=8).losses[-1])


def test_the_error_survives_pickling(honest: nn.Module) -> None:
    error = stopped(meta.MAML(honest, inner_lr=0.4, steps=5, policy="frozen"), DIGITS.task("all", 1000).support)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.report == error.report


# The two runs of the reported divergence, on the data that it was reported for.


def example_net_of_higher() -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential()
    for channels in (1, 64, 64):
        net.append(nn.Conv2d(channels, 64, 3)).append(nn.BatchNorm2d(64, momentum=1)).append(nn.ReLU(inplace=True))
        net.append(nn.MaxPool2d(2, 2))
    return net.append(nn.Flatten()).append(nn.Linear(64, 5))


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not OMNIGLOT.is_dir(), reason=f"needs {OMNIGLOT}")
def test_the_two_runs_on_omniglot() -> None:
    """Never updated: nothing is learned, and nothing is NaN. Honest: norms beyond 1e6, then NaN, stopped before."""
    classes = meta.omniglot(OMNIGLOT, resample="bicubic", invert=False, rotations="none")
    splits = meta.Splits.draw(classes, {"train": 1200, "test": 423}, seed=0)
    tasks = meta.Tasks(classes, way=5, shot=5, queries=5, splits=splits)
    net = example_net_of_higher()
    maml = meta.MAML(net, inner_lr=0.1, steps=5)
    optimizer = torch.optim.Adam(maml.parameters(), lr=1e-3)
    for iteration in range(12):
        optimizer.zero_grad()
        maml.backward(tasks.batch("train", 8 * iteration, 8))
        optimizer.step()

    right, last = {"train": 0, "eval": 0}, {"train": 0.0, "eval": 0.0}
    for index in range(10):
        task = tasks.task("test", index)
        idle = maml.adapt(task.support, policy="frozen")  # net.eval(), statistics never updated
        assert all(map(math.isfinite, idle.losses))
        assert 0.9 < idle.values["0.weight"].norm() / net[0].weight.norm() < 1.1
        for mode, adapted in (("eval", idle), ("train", maml.adapt(task.support))):
            right[mode] += int((adapted.predict(task.query.inputs).argmax(1) == task.query.labels).sum())
            last[mode] += adapted.losses[-1] / 10
    # Longer meta-training ends at chance, 26.6 %; after 96 tasks it is on the way there.
    assert right["train"] > 0.85 * 250
    assert right["eval"] < 0.6 * 250
    assert last["eval"] > 10 * last["train"]

    honest = with_honest_statistics(net, tasks, "train")
    blown = 0
    for index in range(3):
        support = tasks.task("test", index).support
        losses, norms = plain_loop(honest, support, 0.4, 8)
        if math.isnan(losses[-1]):
            blown += 1
            assert max(norm for norm in norms if math.isfinite(norm)) > 1e6
        error = stopped(brief(meta.MAML(honest, inner_lr=0.4, steps=5)), support, policy="frozen")
        assert all(map(math.isfinite, error.report.losses))
    assert blown == 3

    # Explaining a blow-up takes many times as long as stopping it, and the net is one: it is explained once.
    report = stopped(meta.MAML(honest, inner_lr=0.4, steps=5), tasks.task("test", 0).support, policy="frozen").report
    assert all(map(math.isfinite, report.losses))
    # The largest gain is that of the first layer: its variance is some 1e-3 of the others'.
    assert (report.steepest.path, report.steepest.behind) == ("1", "0")
    assert report.steepest.gain > 10
    assert {"support", "batch"} <= {tried.policy for tried in report.instead}
