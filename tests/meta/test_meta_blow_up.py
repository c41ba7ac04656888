"""What is said of a blow-up is measured, and true: each figure is held against one computed another way."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from frostline import meta
from frostline.errors import InnerLoopDiverged
from frostline.meta.adaptation import FIXED, explain_adaptation, walk
from frostline.meta.blow_up import BlowUp
from frostline.meta.curvature import largest_curvature
from frostline.meta.guard import Guard

DIGITS = meta.Tasks(meta.digits(rotations="classes"), way=5, shot=5, queries=5)
SUPPORT = DIGITS.task("all", 0).support


class OutOfOrder(nn.Module):
    """Layers that are registered in another order than they run in, and one that nothing normalizes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(128, 5)
        self.late_norm, self.late = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, stride=2)
        self.early_norm, self.early = nn.BatchNorm2d(8), nn.Conv2d(1, 8, 3, padding=1)
        self.share = nn.Parameter(torch.full((), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.early_norm(self.early(x)).relu()
        x = self.late_norm(self.late(x)).relu() * self.share
        return self.head(functional.pad(x, (0, 1, 0, 1)).flatten(1))


def honest_net() -> OutOfOrder:
    torch.manual_seed(0)
    net = OutOfOrder().train()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        for index in range(50):
            net(DIGITS.task("all", index).support.inputs)
    return net


def blow_up(net: nn.Module, rate: float, policy: str = "frozen", **options: Any) -> tuple[BlowUp, str]:
    with pytest.raises(InnerLoopDiverged) as caught:
        meta.MAML(net, inner_lr=rate, policy=policy, **{"steps": 6, **options}).adapt(SUPPORT)
    return caught.value.report, str(caught.value)


@pytest.fixture(scope="module")
def seen() -> tuple[BlowUp, str]:
    return blow_up(honest_net(), 4.0)


def eval_loss(net: nn.Module) -> Tensor:
    return functional.cross_entropy(net(SUPPORT.inputs.to(next(net.parameters()).dtype)), SUPPORT.labels)


def test_the_gain_is_weight_over_sigma_and_the_layer_before_it_is_found_by_what_depends_on_what(
    seen: tuple[BlowUp, str],
) -> None:
    net = honest_net()
    gains = {
        path: (norm.weight.abs() / (norm.running_var.double() + norm.eps).sqrt())
        for path, norm in net.named_modules()
        if isinstance(norm, nn.BatchNorm2d)
    }
    path = max(gains, key=lambda path: gains[path].max().item())
    channel = int(gains[path].argmax())
    found = seen[0].steepest
    assert found is not None
    assert found.path == path == "early_norm"
    assert found.behind == "early"
    assert found.gain == pytest.approx(gains[path].max().item(), rel=1e-5)
    assert found.sigma == pytest.approx((net.early_norm.running_var[channel] + 1e-5).sqrt().item(), rel=1e-5)
    own = net.early(SUPPORT.inputs).var((0, 2, 3), correction=0)[channel]
    assert found.own == pytest.approx((own + 1e-5).sqrt().item(), rel=1e-4)


def test_the_curvature_is_the_largest_eigenvalue_of_the_full_hessian() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 5)).double()
    net[2].running_var.fill_(1e-2)
    support = meta.Examples(SUPPORT.inputs.double(), SUPPORT.labels)
    names = list(dict(net.named_parameters()))
    values = [p.detach() for p in net.parameters()]
    sizes = [v.numel() for v in values]

    def loss(flat: Tensor) -> Tensor:
        parts = {n: p.view(v.shape) for n, p, v in zip(names, flat.split(sizes), values, strict=True)}
        return functional.cross_entropy(
            torch.func.functional_call(copy.deepcopy(net).eval(), parts, (support.inputs,)), support.labels
        )

    hessian = torch.autograd.functional.hessian(loss, torch.cat([v.flatten() for v in values]))
    exact = torch.linalg.eigvalsh(hessian)[-1].item()
    with pytest.raises(InnerLoopDiverged) as caught:
        meta.MAML(net, inner_lr=50.0, steps=5, policy="frozen").adapt(support)
    report = caught.value.report
    # Power iteration stops when a product changes it by less than 1e-4, and comes from below.
    assert 0.99 * exact < report.curvature <= exact * (1 + 1e-9)
    assert report.limit == 2 / report.curvature


@settings(max_examples=30)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=6), st.integers(0, 1000))
def test_power_iteration_finds_the_largest_eigenvalue_whatever_the_others_are(values: list[float], seed: int) -> None:
    torch.manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))[0]
    matrix = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T
    start = torch.randn(len(values), dtype=torch.float64)
    found = largest_curvature(lambda p: 0.5 * p[0] @ matrix @ p[0], [start], iterations=3000, tolerance=1e-12)
    # Where the eigenvalues of largest size are one positive and one negative, products alone do not tell them apart.
    assert found == pytest.approx(max(values), abs=0.02 * max(map(abs, values)) + 1e-9)


def test_a_rate_above_two_over_the_curvature_diverges_on_a_quadratic_and_one_below_does_not() -> None:
    matrix = torch.diag(torch.tensor([3.0, 1.0, 0.1], dtype=torch.float64))
    limit = 2 / largest_curvature(lambda p: 0.5 * p[0] @ matrix @ p[0], [torch.ones(3, dtype=torch.float64)])
    ends: list[float] = []
    for rate in (0.98 * limit, 1.02 * limit):
        point = torch.ones(3, dtype=torch.float64)
        for _ in range(500):
            point = point - rate * (matrix @ point)
        ends.append(point.norm().item())
    assert ends[0] < 1e-2
    assert ends[1] > 1e3


def test_a_loss_without_curvature_has_none() -> None:
    assert largest_curvature(lambda p: p[0].sum(), [torch.ones(3)]) == 0.0
    assert largest_curvature(lambda p: (p[0] * 0).sum() + p[1].sum(), [torch.ones(3), torch.ones(2)]) == 0.0


def test_the_stable_rate_is_stable_in_a_plain_loop_and_the_asked_one_is_not(seen: tuple[BlowUp, str]) -> None:
    report = seen[0]
    assert report.stable is not None
    assert report.stable.rate < report.rate
    ends: dict[float, list[float]] = {}
    for rate in (report.stable.rate, report.rate):
        net = honest_net().eval()
        optimizer = torch.optim.SGD(net.parameters(), lr=rate)
        for _ in range(report.steps):
            loss = eval_loss(net)
            ends.setdefault(rate, []).append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends[rate].append(eval_loss(net).item())
    stable = ends[report.stable.rate]
    assert max(stable[1:]) <= stable[0]
    assert report.stable.last == pytest.approx(stable[-1], rel=1e-3)
    assert not max(ends[report.rate]) <= ends[report.rate][0]


def test_half_again_the_stable_rate_raises_the_loss(seen: tuple[BlowUp, str]) -> None:
    """The search ends within a quarter of a rate that is not stable."""
    report = seen[0]
    assert report.stable is not None
    learner = meta.MAML(honest_net(), inner_lr=report.stable.rate * 1.5, steps=6, policy="frozen", guard=None)
    passes = learner.passes(learner.functional(), learner.policy, SUPPORT.inputs)
    assert not walk(learner, passes, learner.values(), SUPPORT.labels, 6).never_above_the_start


def test_the_policies_that_are_named_work_on_this_task_and_those_with_fixed_inner_statistics_do_not() -> None:
    report, _ = blow_up(honest_net(), 0.5)
    named = [tried.policy for tried in report.instead]
    assert {"support", "batch"} <= set(named)
    for tried in report.instead:
        policy = meta.Policy.of(tried.policy)
        assert not FIXED & set(policy.inner)
        learner = meta.MAML(honest_net(), inner_lr=0.5, steps=6)
        adapted = learner.adapt(SUPPORT, policy=policy)  # the guard would raise
        last = functional.cross_entropy(adapted.predict(SUPPORT.inputs), SUPPORT.labels).item()
        assert last == pytest.approx(tried.last, rel=1e-4)
        assert tried.last < tried.first
    # Fixed statistics in the query pass flatter it, and come last; the others are in order.
    flattered = ["frozen" in policy for policy in named]
    assert flattered == sorted(flattered)
    honest = [tried.last for tried in report.instead if "frozen" not in tried.policy]
    assert honest == sorted(honest, key=lambda last: float(f"{last:.1e}"))


def test_the_layer_that_grew_first_is_the_one_of_a_plain_loop(seen: tuple[BlowUp, str]) -> None:
    report = seen[0]
    net = honest_net().eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=report.rate)
    layers = {"head": net.head, "late": net.late, "early": net.early}

    def norms() -> dict[str, float]:
        return {n: math.hypot(*(p.norm().item() for p in layer.parameters())) for n, layer in layers.items()}

    start = norms()
    for _ in range(report.grown.step):
        optimizer.zero_grad()
        eval_loss(net).backward()
        optimizer.step()
    now = norms()
    assert report.grown.layer == max(now, key=lambda name: now[name] / start[name])
    assert report.grown.after == pytest.approx(now[report.grown.layer], rel=1e-2)
    assert report.grown.kind == type(layers[report.grown.layer]).__name__


def test_the_message_is_short_and_says_what_where_why_and_the_fix(seen: tuple[BlowUp, str]) -> None:
    report, message = seen
    title, *rows = message.splitlines()
    assert len(rows) == 4
    assert title.startswith(
        f"adapting blew up in inner step {report.step} of 6, and was stopped: the support loss went "
    )
    assert [row.split(":")[0].strip() for row in rows] == ["found", "why", "rate", "fix"]
    assert f"{report.grown.layer!r} ({report.grown.kind}) grew first" in rows[0]
    assert "'frozen' statistics stay fixed while the weights in front of them move" in rows[1]
    assert "of 'early_norm' behind 'early'" in rows[1]
    assert f"{report.stable.rate:g} never raises the loss" in rows[2] if report.stable else False
    assert all(len(row) < 450 for row in rows)
    found = json.loads(json.dumps(report.to_json()))
    assert found["steepest"]["behind"] == "early"
    assert found["schema_version"] == 1


def test_statistics_of_the_batch_are_not_blamed() -> None:
    report, message = blow_up(honest_net(), 4000.0, policy="batch")
    assert report.fixed == ()
    assert "the statistics were not fixed, so the rate is too large for this loss" in message
    assert "stay fixed" not in message
    assert report.stable is not None
    assert f"inner_lr={report.stable.rate:g}" in message.splitlines()[-1]


def test_a_model_without_batch_norm_is_told_its_rate_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))
    report, message = blow_up(net, 100.0, policy=None)  # type: ignore[arg-type]
    assert report.steepest is None
    assert report.instead == ()
    assert "sigma" not in message
    assert "why: the rate is too large for this loss" in message


def test_a_model_that_cannot_be_differentiated_twice_is_explained_without_a_curvature() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise RuntimeError("this operator has no second derivative")
            return grad.clone()

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(x)

    net = nn.Sequential(honest_net(), Layer())
    report, _ = blow_up(net, 4.0)
    assert report.curvature is None
    assert report.stable is not None


def test_learned_rates_and_momentum_are_explained_too() -> None:
    report, _ = blow_up(honest_net(), 4.0, learn_rates="parameter")
    assert report.limit is None
    assert report.stable is not None
    momentum = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    report, _ = blow_up(honest_net(), 4.0, inner_optimizer=momentum)
    assert report.limit is None
    assert report.curvature is not None


# What is told of an adaptation that was not stopped.


def test_losses_norms_and_gains_are_those_of_a_plain_loop() -> None:
    report = explain_adaptation(meta.MAML(honest_net(), inner_lr=0.1, steps=3), SUPPORT, policy="frozen")
    net = honest_net().eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(4):
        loss = eval_loss(net)
        assert report.losses[step] == pytest.approx(loss.item(), rel=1e-4)
        norm = math.hypot(net.early.weight.norm().item(), net.early.bias.norm().item())
        assert report.norms["early"][step] == pytest.approx(norm, rel=1e-5)
        gain = (net.late_norm.weight.abs() / (net.late_norm.running_var + 1e-5).sqrt()).max().item()
        assert report.gains["late_norm"][step] == pytest.approx(gain, rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert report.notes == ()
    assert "gain of late_norm" in str(report)
    assert json.loads(json.dumps(report.to_json()))["policy"] == "frozen"
    assert "<table>" in report._repr_html_()


def test_the_batch_s_own_gains_are_those_of_the_batch() -> None:
    net = honest_net()
    report = explain_adaptation(meta.MAML(net, inner_lr=0.1, steps=1), SUPPORT, policy="batch")
    var = net.early(SUPPORT.inputs).var((0, 2, 3), correction=0)
    gain = (net.early_norm.weight.abs() / (var + 1e-5).sqrt()).max().item()
    assert report.gains["early_norm"][0] == pytest.approx(gain, rel=1e-4)
    instance = explain_adaptation(meta.MAML(net, inner_lr=0.1, steps=1), SUPPORT, policy="instance")
    assert instance.gains == {}


@pytest.mark.parametrize("policy", ["frozen", "running", "population", "per_step"])
def test_statistics_that_were_never_updated_are_named(policy: str) -> None:
    torch.manual_seed(0)
    fresh = meta.MAML(OutOfOrder(), inner_lr=0.1, steps=2, policy=policy)
    note = explain_adaptation(fresh, DIGITS.task("all", 0)).notes[0]
    assert "never updated (mean 0, variance 1): no normalization" in note
    assert "early_norm" in note
    assert "late_norm" in note
    fresh.backward(DIGITS.batch("all", 0, 2), threads=1)
    # Meta-training updates all but the model's own buffers.
    again = explain_adaptation(fresh, DIGITS.task("all", 0)).notes
    assert any("never updated" in text for text in again) == (policy == "frozen")
    assert not any("never updated" in text for text in explain_adaptation(fresh, SUPPORT, policy="batch").notes)


def test_a_loss_at_chance_is_named() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].bias.zero_()
    stuck = explain_adaptation(meta.MAML(net, inner_lr=1e-6), SUPPORT)
    assert stuck.notes == ("the support loss ends at 1.609, and ln 5 = 1.609: nothing was learned",)
    assert explain_adaptation(meta.MAML(net, inner_lr=0.1, steps=5), SUPPORT).notes == ()


def test_a_blow_up_is_shown_to_its_end() -> None:
    report = explain_adaptation(meta.MAML(honest_net(), inner_lr=40.0, steps=8), SUPPORT, policy="frozen")
    assert not all(map(math.isfinite, report.losses))
    assert "nan" in str(report)
    json.dumps(report.to_json(), allow_nan=False)


def test_guard_and_walk_see_the_same() -> None:
    learner = meta.MAML(honest_net(), inner_lr=0.1, steps=3, policy="batch")
    passes = learner.passes(learner.functional(), learner.policy, SUPPORT.inputs)
    seen = walk(learner, passes, learner.values(), SUPPORT.labels, 3)
    assert list(seen.losses[:3]) == learner.adapt(SUPPORT).losses
    assert seen.falls
    assert Guard().why(seen.losses[:3], seen.norms) is None
