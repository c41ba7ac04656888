"""Statistics move once per step, by all values that went into it, whatever the loop does."""

from __future__ import annotations

import copy
import io
import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.errors import CannotConvert, NormsError, NoStatistics
from frostline.norms import OncePerStep, StatsPolicy
from frostline.norms.policed import set_policy
from frostline.norms.read_policy import policy_of
from frostline.norms.step_commit import plan_step_commit, step_commit


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def net(dtype=torch.float64):
    return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).to(dtype)


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def batches(*sizes):
    return [torch.randn(n, 3, dtype=torch.float64) * (i + 1) + 2 * i for i, n in enumerate(sizes)]


def after(layer, x, momentum=0.1):
    """The statistics of a fresh layer after one update by these values, by the formula."""
    mean, var = x.mean(0), x.var(0, unbiased=True)
    return momentum * mean, (1 - momentum) + momentum * var


def moved_by(layer, *parts, momentum=0.1):
    """Whether a fresh float64 layer was moved once by the union of these values."""
    mean, var = after(layer, torch.cat(parts), momentum)
    # float64: merged and two-pass sums of at most 100 values differ by some 1e-14 of their size.
    return (
        torch.allclose(layer.running_mean, mean, rtol=1e-12, atol=1e-12)
        and torch.allclose(layer.running_var, var, rtol=1e-12, atol=1e-12)
        and layer.num_batches_tracked == 1
    )


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("sizes", [(8, 8, 8, 8), (5, 2, 30), (7,)])
def test_accumulated_micro_batches_count_as_one_batch(sizes, ours):
    model = net()
    optimizer = sgd(model)
    parts = batches(*sizes)
    if ours:
        step_commit(model, optimizer)
    for part in parts:
        model(part).sum().backward()
        if ours:
            assert model[0].num_batches_tracked == model[2].num_batches_tracked == 0
    optimizer.step()
    # PyTorch's own way passes only where a step is one batch.
    assert moved_by(model[0], *parts) == (ours or len(sizes) == 1)
    assert model[2].num_batches_tracked == (1 if ours else len(sizes))


def test_float32_against_the_full_batch():
    """The kernel's own figures of each part carry float32 rounding; merging them in float64 adds none."""
    stock, model = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    optimizer = sgd(model)
    x = torch.randn(16, 3, 8, 8) * 2 + 50
    stock(x)
    with step_commit(model, optimizer):
        for part in x.split(4):
            model(part).sum().backward()
        optimizer.step()
    # Means to an ulp of 50 * 0.1; variances, sums of 1024 squares about a mean that is itself rounded, to 1e-5.
    assert torch.allclose(model.running_mean, stock.running_mean, rtol=0, atol=5 * 2**-22)
    assert torch.allclose(model.running_var, stock.running_var, rtol=1e-5)
    exact = 0.9 + 0.1 * x.double().transpose(0, 1).flatten(1).var(1)
    assert torch.allclose(model.running_var.double(), exact, rtol=1e-5)


def test_outputs_and_gradients_are_those_of_the_class_to_the_bit():
    stock, model = net(torch.float32), net(torch.float32)
    model.load_state_dict(stock.state_dict())
    step_commit(model, sgd(model))
    for x in (torch.randn(8, 3), torch.randn(8, 3)):
        a, b = stock(x), model(x)
        assert torch.equal(a, b)
        a.sum().backward()
        b.sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(stock.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("ours", [True, False])
def test_activation_checkpointing(reentrant, ours):
    model = net()
    optimizer = sgd(model)
    if ours:
        step_commit(model, optimizer)
    parts = [part.requires_grad_() for part in batches(8, 6)]
    for part in parts:
        checkpoint(model, part, use_reentrant=reentrant).sum().backward()
    optimizer.step()
    assert moved_by(model[0], *parts) == ours


def test_two_views_before_one_backward():
    model = net()
    optimizer = sgd(model)
    step_commit(model, optimizer)
    a, b = batches(8, 8)
    (model(a) - model(b)).square().sum().backward()
    optimizer.step()
    assert moved_by(model[0], a, b)


class Loop:
    """The orders in which loops clear gradients."""

    def __init__(self, order, clear):
        self.order, self.clear = order, clear

    def __call__(self, model, optimizer, x, *, step=True):
        def clear():
            {"optimizer": optimizer.zero_grad, "model": model.zero_grad,
             "to zeros": lambda: optimizer.zero_grad(set_to_none=False)}[self.clear]()  # fmt: skip

        if self.order == "before forward":
            clear()
        loss = model(x).sum()
        if self.order == "before backward":
            clear()
        loss.backward()
        if step:
            optimizer.step()
        if self.order == "after step":
            clear()


@pytest.mark.parametrize("order", ["before forward", "before backward", "after step"])
@pytest.mark.parametrize("clear", ["optimizer", "model", "to zeros"])
def test_what_a_skipped_step_staged_is_not_committed_with_the_next(order, clear):
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=0.5), nn.Linear(3, 1)).double()
    optimizer = sgd(model)
    commit = step_commit(model, optimizer)
    loop = Loop(order, clear)
    first, skipped, second = batches(8, 8, 8)
    loop(model, optimizer, first)
    assert moved_by(model[0], first, momentum=0.5)
    loop(model, optimizer, skipped, step=False)
    loop(model, optimizer, second)
    mean, _ = after(model[0], first, 0.5)
    assert torch.allclose(model[0].running_mean, (mean + second.mean(0)) / 2, rtol=1e-12)
    assert model[0].num_batches_tracked == 2
    assert commit.staged == {}


class TestGradScaler:
    def run(self, optimizer_type, **settings):
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
        optimizer = optimizer_type(model.parameters(), lr=0.1, **settings)
        scaler = torch.amp.GradScaler(device="cpu", init_scale=4.0)
        commit = step_commit(model, optimizer)
        good, bad = torch.randn(8, 3), torch.randn(8, 3) + 5
        weights = []
        for x, factor in ((bad, math.inf), (good, 1.0)):
            optimizer.zero_grad()
            loss = (model(x) * factor).sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            weights.append(model[1].weight.detach().clone())
        assert weights[0].isfinite().all()
        return model, good, commit

    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
    @pytest.mark.parametrize("fused", [False, True])
    def test_the_batch_of_a_skipped_step_leaves_no_trace(self, kind, fused):
        """A fused optimizer is called for a skipped step too, and skips inside."""
        model, good, commit = self.run(kind, **({"fused": True} if fused else {}))
        mean, var = after(model[0], good)
        assert torch.allclose(model[0].running_mean, mean, rtol=1e-5, atol=1e-6)
        assert torch.allclose(model[0].running_var, var, rtol=1e-5)
        assert model[0].num_batches_tracked == 1
        assert commit.staged == {}


@pytest.mark.parametrize(("value", "where"), [(math.nan, ["0", "2"]), (math.inf, ["0", "2"]), (1e308, ["0"])])
def test_batches_that_are_not_finite(value, where):
    """1e308 is finite, and its variance is not; what the layer makes of it is finite again."""
    model, twin = net(), net()
    optimizer = sgd(model, lr=0.0)
    commit = step_commit(model, optimizer)
    good, bad = batches(8, 8)
    bad[3, 1] = value
    for part in (bad, good):
        model(part).sum().backward()
        twin(part)
    optimizer.step()
    assert moved_by(model[0], good)
    assert commit.dropped == dict.fromkeys(where, 1)
    assert not bool(twin[0].running_var.isfinite().all())
    assert all(bool(buffer.isfinite().all()) for buffer in model.buffers())
    model(bad).sum().backward()
    optimizer.step()  # nothing is staged: nothing moves
    assert model[0].num_batches_tracked == 1
    assert commit.dropped["0"] == 2


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_forward_passes_without_gradients_count_and_eval_mode_does_not(context):
    model = net()
    optimizer = sgd(model)
    commit = step_commit(model, optimizer)
    a, b = batches(8, 6)
    model.eval()
    before = copy.deepcopy(model)
    assert torch.equal(model(a), before(a))
    assert commit.staged == {}
    model.train()
    with context():
        model(a)
    model(b).sum().backward()
    assert {path: moments.count for path, moments in commit.staged.items()} == {"0": 14, "2": 14}
    assert torch.allclose(commit.staged["0"].mean, torch.cat([a, b]).mean(0))
    optimizer.step()
    assert moved_by(model[0], a, b)


def test_of_a_closure_the_last_evaluation_counts():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    step_commit(model, optimizer)
    seen = []

    def closure():
        optimizer.zero_grad()
        seen.append(torch.randn(8, 3, dtype=torch.float64))
        loss = model(seen[-1]).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(seen) > 1
    assert moved_by(model[0], seen[-1])


class TestHolds:
    def test_held_layers_are_left_out(self):
        model = net()
        hold = fl.freeze(model, "0")
        commit = step_commit(model, sgd(model))
        assert (list(commit.layers), commit.skipped) == (["2"], {"0": "held"})
        model.train()(batches(8)[0]).sum().backward()
        commit.optimizer.step()
        hold.verify()
        assert model[2].num_batches_tracked == 1

    def test_a_hold_that_comes_between_forward_and_step(self):
        model = net()
        optimizer = sgd(model)
        step_commit(model, optimizer)
        model(batches(8)[0]).sum().backward()
        hold = fl.freeze(model, "0")
        optimizer.step()
        hold.verify()
        assert (model[0].num_batches_tracked, model[2].num_batches_tracked) == (0, 1)
        hold.thaw()
        optimizer.zero_grad()
        x = torch.randn(8, 3, dtype=torch.float64)
        model.train()(x).sum().backward()
        optimizer.step()
        assert moved_by(model[0], x)

    def test_all_held(self):
        model = net()
        fl.freeze(model, "*")
        with pytest.raises(NoStatistics, match="all 2 layers are held"):
            step_commit(model, sgd(model))


class TestLeftAlone:
    def test_everything_is_back(self):
        model = net()
        optimizer = sgd(model)
        before = [dict(m.__dict__) for m in model.modules()], dict(optimizer.__dict__)
        keys = list(model.state_dict())
        tensors = [id(t) for t in [*model.parameters(), *model.buffers()]]
        with pytest.raises(KeyError), step_commit(model, optimizer):
            optimizer.zero_grad()
            model(batches(8)[0]).sum().backward()
            optimizer.step()
            assert list(model.state_dict()) == keys
            raise KeyError
        optimizer.zero_grad()
        assert [dict(m.__dict__) for m in model.modules()] == before[0]
        assert optimizer.__dict__.keys() == before[1].keys()
        assert not optimizer._optimizer_step_post_hooks
        assert all(not p._post_accumulate_grad_hooks for p in model.parameters())
        assert [id(t) for t in [*model.parameters(), *model.buffers()]] == tensors
        model(batches(8)[0])
        assert model[0].num_batches_tracked == 2

    def test_what_is_staged_at_the_end_is_lost_and_a_second_remove_does_nothing(self):
        model = net()
        optimizer = sgd(model)
        commit = step_commit(model, optimizer)
        model(batches(8)[0]).sum().backward()
        commit.remove()
        commit.remove()
        optimizer.step()
        assert model[0].num_batches_tracked == 0
        step_commit(model, optimizer)  # there is room for another

    def test_two_commits_on_parts_of_one_model(self):
        model = net()
        before = [dict(m.__dict__) for m in model.modules()]
        optimizers = [sgd(model[:2]), sgd(model[2:])]
        commits = [step_commit(model, optimizer, part) for optimizer, part in zip(optimizers, "02", strict=True)]
        (x,) = batches(8)
        model(x).sum().backward()
        optimizers[0].step()
        assert moved_by(model[0], x)
        assert model[2].num_batches_tracked == 0
        model.zero_grad()
        assert commits[1].staged == {}
        for commit in commits:
            commit.remove()
        assert [dict(m.__dict__) for m in model.modules()] == before

    def test_a_zero_grad_of_the_users_own(self):
        model = net()
        optimizer = sgd(model)
        calls = []
        own = optimizer.zero_grad

        def mine(*args, **kwargs):
            calls.append(args)
            own(*args, **kwargs)

        optimizer.zero_grad = mine
        commit = step_commit(model, optimizer)
        optimizer.zero_grad(True)
        assert calls == [(True,)]
        commit.remove()
        assert optimizer.zero_grad is mine

    @pytest.mark.parametrize("way", ["deepcopy", "pickle"])
    def test_copies_do_what_pytorch_does(self, way):
        model = net()
        step_commit(model, sgd(model))
        if way == "deepcopy":
            twin = copy.deepcopy(model)
        else:
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            twin = torch.load(file, weights_only=False)
        twin(batches(8)[0])
        twin.zero_grad()
        assert twin[0].num_batches_tracked == 1
        assert policy_of(twin[0]) == policy_of(nn.BatchNorm1d(3))
        optimizer = sgd(twin)
        with step_commit(twin, optimizer, momentum=0.5):
            assert policy_of(twin[0]) == StatsPolicy("batch", OncePerStep(0.5))
        assert twin[0].num_batches_tracked == 1
        assert model[0].num_batches_tracked == 0

    def test_the_optimizer_can_be_copied(self):
        model = net()
        optimizer = sgd(model)
        step_commit(model, optimizer)
        copy.deepcopy(optimizer).zero_grad()


class TestRefused:
    def test_twice_or_under_a_policy(self):
        model = net()
        commit = step_commit(model, sgd(model))
        with pytest.raises(NormsError, match="has a frostline step_commit already"):
            step_commit(model, sgd(model))
        with pytest.raises(NormsError, match="has a frostline step_commit already"):
            set_policy(model, train=StatsPolicy("running"))
        commit.remove()
        set_policy(model, "0", train=StatsPolicy("running"))
        with pytest.raises(NormsError, match="0: has a frostline policy already"):
            step_commit(model, sgd(model))
        assert "forward" not in model[2].__dict__

    def test_momentum_none(self):
        model = nn.Sequential(nn.BatchNorm1d(3, momentum=None), nn.Linear(3, 1)).double()
        optimizer = sgd(model)
        with pytest.raises(CannotConvert, match="momentum=None"):
            step_commit(model, optimizer)
        (x,) = batches(8)
        with step_commit(model, optimizer, momentum=0.25):
            model(x).sum().backward()
            optimizer.step()
        assert moved_by(model[0], x, momentum=0.25)
        assert model[0].momentum is None

    def test_no_optimizer_and_no_momentum(self):
        with pytest.raises(NormsError, match=r"expected a torch\.optim\.Optimizer, got list"):
            step_commit(net(), [])
        with pytest.raises(ValueError, match="between 0 and 1"):
            step_commit(net(), sgd(net()), momentum=1.5)
        with pytest.raises(NoStatistics):
            step_commit(nn.LayerNorm(3), sgd(nn.LayerNorm(3)))

    def test_all_or_nothing(self, monkeypatch):
        model = net()
        optimizer = sgd(model)
        before = dict(optimizer.__dict__)
        plan = plan_step_commit(model, optimizer)
        monkeypatch.setattr(optimizer, "register_step_post_hook", None)
        with pytest.raises(TypeError):
            plan.apply()
        monkeypatch.undo()
        assert all("forward" not in m.__dict__ and "zero_grad" not in m.__dict__ for m in model.modules())
        assert optimizer.__dict__ == before


def test_one_value_per_channel_raises_as_ever_and_counts_nothing():
    model = net()
    commit = step_commit(model, sgd(model))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.randn(1, 3, dtype=torch.float64))
    assert commit.staged == {}
    assert nn.BatchNorm1d(3)(torch.empty(0, 3)).shape == (0, 3)
    nn.Sequential(model[0])(torch.empty(0, 3, dtype=torch.float64))
    assert commit.staged == {}


def test_accelerates_wrapper():
    accelerate = pytest.importorskip("accelerate")
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = accelerate.Accelerator(cpu=True).prepare(sgd(model))
    commit = step_commit(model, optimizer)
    assert type(commit.optimizer) is torch.optim.SGD
    (x,) = batches(8)
    model(x).sum().backward()
    optimizer.step()
    assert moved_by(model[0], x)


def test_timms_batch_norm_with_an_activation():
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import timm.layers
    layer = timm.layers.BatchNormAct2d(3).double()
    optimizer = sgd(layer)
    step_commit(layer, optimizer)
    x = torch.randn(8, 3, 2, 2, dtype=torch.float64)
    for part in x.split(4):
        assert layer(part).min() == 0
    layer(x[:2]).sum().backward()
    optimizer.step()
    values = torch.cat([x, x[:2]]).transpose(0, 1).flatten(1).T
    assert moved_by(layer, values)


def test_compiled_with_one_graph_for_all_steps():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    eager = net(torch.float32)
    model = copy.deepcopy(eager)
    optimizers = [sgd(eager), sgd(model)]
    for each, optimizer in zip((eager, model), optimizers, strict=True):
        step_commit(each, optimizer)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(4):
        x = torch.randn(8, 3)
        for each, optimizer in zip((eager, compiled), optimizers, strict=True):
            optimizer.zero_grad()
            for part in x.split(4):
                each(part).square().sum().backward()
            if step != 2:  # one step is skipped
                optimizer.step()
    assert counter.frame_count == 1
    assert model[0].num_batches_tracked == 3
    # float32 rounding, grown over four steps
    assert all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(eager.buffers(), model.buffers(), strict=True)
    )


def test_the_plan_and_the_handle_say_what_happens():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.LayerNorm(3))
    plan = plan_step_commit(model, sgd(model))
    assert "forward" not in model[0].__dict__
    assert str(plan.apply()).splitlines() == [
        "statistics of 1 layers move once per step of the optimizer, in Sequential: 0",
        "  left as it is: 1: LayerNorm keeps no running statistics",
    ]
