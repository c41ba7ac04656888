"""Every pair of use and update, against the formula; what a policy leaves alone, and what it survives."""

from __future__ import annotations

import copy
import io
import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.errors import CannotConvert, HoldReleased, NormsError, NoStatistics
from frostline.norms import EMA, Blend, Cumulative, Domain, OncePerStep, StatsPolicy
from frostline.norms.domain_split import split_domains
from frostline.norms.policed import plan_set_policy, policies_on, set_policy
from frostline.norms.read_policy import policy_of

USES = ["batch", "running", Blend(0.0), Blend(0.3), Blend(1.0)]
UPDATES = [None, EMA(0.0), EMA(0.25), EMA(1.0), Cumulative()]
PAIRS = [StatsPolicy(use, update) for use, update in itertools.product(USES, UPDATES)]
SHAPES = {
    "BatchNorm1d": (6, 3),
    "BatchNorm2d": (6, 3, 4, 4),
    "BatchNorm3d": (6, 3, 2, 2, 2),
    "SyncBatchNorm": (6, 3, 4, 4),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def timm_layers():
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import timm.layers
    return timm.layers


def filled(layer):
    layer = layer.double()
    layer.running_mean.uniform_(-1, 1)
    layer.running_var.uniform_(0.5, 2)
    layer.num_batches_tracked.fill_(4)
    if layer.affine:
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.uniform_(layer.bias)
    return layer


def inputs(name):
    return torch.randn(SHAPES[name], dtype=torch.float64) * 2 + 3


def by_hand(layer, x, policy):
    """Output and buffers, by the formula; running statistics are constants to autograd."""
    over = [d for d in range(x.ndim) if d != 1]
    mean, var = x.mean(over), x.var(over, unbiased=False)
    rm, rv, count = (b.clone() for b in (layer.running_mean, layer.running_var, layer.num_batches_tracked))
    if policy.update is not None:
        count += 1
        m = policy.update.momentum if isinstance(policy.update, EMA) else 1 / count.item()
        rm = (1 - m) * rm + m * mean.detach()
        rv = (1 - m) * rv + m * x.detach().var(over, unbiased=True)
    share = {"batch": 1.0, "running": 0.0}.get(policy.use) if isinstance(policy.use, str) else policy.use.batch_weight
    shape = [1, -1, *[1] * (x.ndim - 2)]
    used_mean, used_var = (share * a + (1 - share) * b for a, b in ((mean, rm), (var, rv)))
    out = (x - used_mean.view(shape)) / (used_var.view(shape) + layer.eps).sqrt()
    if layer.affine:
        out = out * layer.weight.view(shape) + layer.bias.view(shape)
    return out, [rm, rv, count]


def close(a, b):
    # float64 sums of up to 96 values of size 10: a relative error of 1e-14.
    return torch.allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", PAIRS, ids=str)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_every_pair_in_either_mode(name, policy, training):
    layer = filled(getattr(nn, name)(3)).train(training)
    other = copy.deepcopy(layer).train(not training)
    own = copy.deepcopy(other)
    for target in (layer, other):
        set_policy(target, **{"train" if training else "eval": policy})
    assert policy_of(layer) == policy
    for _ in range(2):
        x = inputs(name).requires_grad_()
        expected, buffers = by_hand(layer, x, policy)
        out = layer(x)
        assert close(out, expected)
        assert all(close(a.double(), b.double()) for a, b in zip(layer.buffers(), buffers, strict=True))
        assert layer.num_batches_tracked.dtype == torch.long
        grads = torch.autograd.grad(out.pow(3).sum(), [x, layer.weight, layer.bias])
        wanted = torch.autograd.grad(expected.pow(3).sum(), [x, layer.weight, layer.bias])
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(grads, wanted, strict=True))
        # The other mode is the class' own, to the bit.
        assert torch.equal(other(x), own(x))
        assert all(torch.equal(a, b) for a, b in zip(other.buffers(), own.buffers(), strict=True))


@pytest.mark.parametrize("use", ["batch", "running", Blend(0.3)], ids=str)
def test_gradcheck(use):
    layer = filled(nn.BatchNorm2d(2))
    set_policy(layer, train=StatsPolicy(use))
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,)), (x, layer.weight, layer.bias)
    )


@pytest.mark.parametrize("update", [EMA(0.3), Cumulative()], ids=str)
def test_gradcheck_of_running_and_updated_with_the_statistics_that_were_used(update):
    """The update belongs to the state, not to the function: the gradient is that of the constants after it."""
    layer = filled(nn.BatchNorm2d(2))
    set_policy(layer, train=StatsPolicy("running", update))
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    constant = copy.deepcopy(layer)
    policies_on(constant)[0].remove()
    constant.eval()
    assert torch.equal(constant(x), out)
    (wanted,) = torch.autograd.grad(constant(x).square().sum(), x)
    assert torch.equal(grad, wanted)
    assert torch.autograd.gradcheck(constant, (x,))


def test_two_forward_passes_before_backward():
    """The statistics move in between; the first pass' gradient is that of what it used."""
    layer = filled(nn.BatchNorm1d(3))
    x, y = (inputs("BatchNorm1d").requires_grad_() for _ in range(2))
    alone = copy.deepcopy(layer)
    for each in (layer, alone):
        set_policy(each, train=StatsPolicy("running", EMA(0.5)))
    (wanted,) = torch.autograd.grad(alone(x).pow(3).sum(), x)
    first = layer(x).pow(3).sum()
    layer(y)
    (grad,) = torch.autograd.grad(first, x)
    assert torch.equal(grad, wanted)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_stock_meaning_is_the_stock_result_to_the_bit(name, dtype):
    stock = getattr(nn, name)(3).to(dtype)
    layer = copy.deepcopy(stock)
    set_policy(layer, train=StatsPolicy("batch", EMA(0.1)), eval=StatsPolicy("running"))
    for training in (True, True, False):
        x = (torch.randn(SHAPES[name]) * 2 + 3).to(dtype)
        a, b = (each.train(training)(x) for each in (stock, layer))
        assert torch.equal(a, b)
        assert all(torch.equal(a, b) for a, b in zip(stock.buffers(), layer.buffers(), strict=True))


def test_cumulative_is_the_stock_cumulative():
    stock = nn.BatchNorm1d(3, momentum=None)
    layer = copy.deepcopy(stock)
    set_policy(layer, train=StatsPolicy("batch", Cumulative()))
    for _ in range(5):
        x = torch.randn(8, 3)
        assert torch.equal(stock(x), layer(x))
    assert layer.num_batches_tracked == 5
    # float32: five roundings of values of size 1.
    assert torch.allclose(stock.running_mean, layer.running_mean, rtol=0, atol=5e-7)
    assert torch.allclose(stock.running_var, layer.running_var, rtol=0, atol=5e-7)


def test_running_and_updated_is_robustas_and_no_switch_of_pytorch_does_it():
    """robusta/batchnorm/bn.py:EMABatchNorm.forward: train mode for the statistics, then eval mode for the output."""
    layer = filled(nn.BatchNorm2d(3))
    robusta, x = copy.deepcopy(layer), inputs("BatchNorm2d")
    robusta.train()(x)
    wanted = robusta.eval()(x)
    stock = {
        (training, flag): copy.deepcopy(layer).train(training)
        for training, flag in itertools.product((False, True), repeat=2)
    }
    set_policy(layer, train=StatsPolicy("running", EMA(0.1)))
    assert torch.equal(layer(x), wanted)
    assert torch.equal(layer.running_var, robusta.running_var)
    for (_, flag), twin in stock.items():
        twin.track_running_stats = flag
        assert not torch.allclose(twin(x), wanted)


def test_batch_without_update_leaves_even_the_count_and_momentum_zero_does_not():
    layer, naive = nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=0.0)
    set_policy(layer, train=StatsPolicy("batch"))
    for each in (layer, naive):
        each(torch.randn(4, 3))
    assert (layer.num_batches_tracked, naive.num_batches_tracked) == (0, 1)


def test_blend_of_schneider_but_for_the_unbiased_variance():
    """robusta/batchnorm/bn.py:BayesianBatchNorm blends with n / (n - 1) times the batch's variance."""
    layer, x, prior = filled(nn.BatchNorm2d(3)), inputs("BatchNorm2d"), 0.7
    batch = nn.BatchNorm2d(3, momentum=1.0).double()
    batch(x)
    n = x.numel() / 3
    mean = prior * layer.running_mean + (1 - prior) * batch.running_mean
    var = prior * layer.running_var + (1 - prior) * batch.running_var * ((n - 1) / n)
    wanted = nn.functional.batch_norm(x, mean, var, layer.weight, layer.bias, False, 0.0, layer.eps)
    set_policy(layer, train=StatsPolicy(Blend(1 - prior)))
    assert close(layer(x), wanted)


class TestLeftAlone:
    def model(self):
        return nn.Sequential(
            nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3)), nn.GroupNorm(1, 3)
        )

    def test_restored_exactly_also_after_an_exception(self):
        model = self.model().eval()
        before = [dict(m.__dict__) for m in model.modules()]
        keys, types = list(model.state_dict()), [type(m) for m in model.modules()]
        tensors = [id(t) for t in [*model.parameters(), *model.buffers()]]
        with pytest.raises(KeyError), set_policy(model, train=StatsPolicy("running"), eval=StatsPolicy("batch")):
            model.train()(torch.randn(2, 3, 4, 4))
            assert list(model.state_dict()) == keys
            assert [type(m) for m in model.modules()] == types
            raise KeyError
        model.eval()
        assert [dict(m.__dict__) for m in model.modules()] == before
        assert [id(t) for t in [*model.parameters(), *model.buffers()]] == tensors

    def test_switches_are_back_after_a_forward_that_raises(self):
        for policy in PAIRS:
            layer = nn.BatchNorm2d(3).eval()
            set_policy(layer, eval=policy)
            before = dict(layer.__dict__), dict(layer._buffers)
            with pytest.raises(ValueError, match="4D"):
                layer(torch.randn(2, 3))
            assert (layer.__dict__, layer._buffers) == before
            assert layer.num_batches_tracked == layer.running_mean.abs().max() == 0

    @pytest.mark.parametrize("policy", PAIRS, ids=str)
    def test_one_value_per_channel_is_refused_before_it_is_counted(self, policy):
        layer = nn.BatchNorm1d(3)
        set_policy(layer, train=policy)
        x = torch.randn(1, 3)
        if policy.update is not None:
            with pytest.raises(NormsError, match="one value per channel"):
                layer(x)
        assert layer.num_batches_tracked == 0
        assert layer.running_mean.abs().max() == 0

    @pytest.mark.parametrize("policy", PAIRS, ids=str)
    def test_an_empty_batch_moves_nothing(self, policy):
        layer = nn.BatchNorm2d(3)
        set_policy(layer, train=policy)
        if isinstance(policy.use, Blend):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the variance of nothing
                layer(torch.randn(0, 3, 2, 2))
        else:
            assert layer(torch.randn(0, 3, 2, 2)).shape == (0, 3, 2, 2)
        assert layer.num_batches_tracked == 0
        assert layer.running_var.tolist() == [1, 1, 1]

    def test_other_layers_and_other_parts(self):
        model = self.model()
        handle = set_policy(model, "2", train=StatsPolicy("running"))
        assert list(handle.layers) == ["2.0"]
        assert policy_of(model[1]) == StatsPolicy("batch", EMA(0.1))
        assert handle.skipped == {}
        model[3](torch.randn(2, 3, 4, 4))


class TestRefused:
    def test_held_and_the_hold_wins(self):
        model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
        hold = fl.freeze(model, "0")
        with pytest.raises(NormsError, match="0: held"):
            set_policy(model, train=StatsPolicy("running"))
        assert "forward" not in model[1].__dict__
        hold.thaw()
        set_policy(model, train=StatsPolicy("batch", EMA(0.5)), eval=StatsPolicy("batch", EMA(0.5)))
        hold = fl.freeze(model, "0")
        x = torch.randn(8, 3)
        plain = nn.BatchNorm1d(3).eval()
        assert torch.equal(model.train()[0](x), plain(x))
        assert policy_of(model[0]) == StatsPolicy("running")
        assert not fl.explain(model)[0].updates
        model.eval()(x)
        assert model[1].num_batches_tracked == 1
        hold.verify()
        hold.thaw()
        assert policy_of(model[0]) == StatsPolicy("batch", EMA(0.5))
        model(x)
        assert model[0].num_batches_tracked == 1

    def test_removed_under_a_hold(self):
        model = nn.Sequential(nn.BatchNorm1d(3))
        handle = set_policy(model, eval=StatsPolicy("batch", EMA(0.5)))
        hold = fl.freeze(model, "0")
        handle.remove()
        model.train()(torch.randn(8, 3))
        hold.verify()
        hold.thaw()
        assert list(model[0].__dict__) == list(nn.BatchNorm1d(3).__dict__)

    def test_a_second_policy(self):
        layer = nn.BatchNorm1d(3)
        first = set_policy(layer, train=StatsPolicy("running"))
        with pytest.raises(NormsError, match=r"\(the model\): has a frostline policy already"):
            set_policy(layer, eval=StatsPolicy("batch"))
        first.remove()
        second = set_policy(layer, eval=StatsPolicy("batch"))
        first.remove()
        assert policy_of(layer, training=False) == StatsPolicy("batch")
        second.remove()
        second.remove()

    def test_another_forward(self):
        split = nn.BatchNorm1d(3)
        split_domains(split, ["a", "b"])
        with pytest.raises(NormsError, match="replaced by DomainForward"):
            set_policy(split, train=StatsPolicy("running"))

    def test_what_has_no_statistics_of_a_batch(self):
        model = nn.Sequential(
            nn.InstanceNorm1d(3, track_running_stats=True), nn.BatchNorm1d(3, track_running_stats=False)
        )
        with pytest.raises(NoStatistics) as caught:
            set_policy(model, train=StatsPolicy("running"))
        assert "0: InstanceNorm1d is no batch norm" in str(caught.value)
        assert "1: BatchNorm1d keeps no running statistics" in str(caught.value)

    def test_nothing_or_no_policy(self):
        layer = nn.BatchNorm1d(3)
        for said, policy in {
            "instance": StatsPolicy("instance"),
            "split_domains": StatsPolicy(Domain(("a", "b"))),
            "step_commit": StatsPolicy("batch", OncePerStep(0.1)),
        }.items():
            with pytest.raises(NormsError, match=said):
                set_policy(layer, train=policy)
        with pytest.raises(NormsError, match="no policy to set"):
            set_policy(layer)

    def test_cumulative_without_a_count(self):
        layer = nn.BatchNorm1d(3)
        layer.num_batches_tracked = None
        with pytest.raises(CannotConvert, match="num_batches_tracked"):
            set_policy(layer, train=StatsPolicy("batch", Cumulative()))
        set_policy(layer, train=StatsPolicy("running", EMA(1.0)))
        layer(torch.randn(4, 3) + 5)
        assert layer.running_mean.min() > 2

    def test_all_or_nothing(self, monkeypatch):
        model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
        plan = plan_set_policy(model, train=StatsPolicy("running"))
        from frostline.norms import policed

        real, calls = policed.install, []

        def second_fails(*args):
            calls.append(args)
            if len(calls) == 2:
                raise MemoryError
            return real(*args)

        monkeypatch.setattr(policed, "install", second_fails)
        with pytest.raises(MemoryError):
            plan.apply()
        assert all("forward" not in layer.__dict__ for layer in model)
        monkeypatch.undo()
        model[1] = nn.BatchNorm1d(3)
        with pytest.raises(NormsError, match="not what it was"):
            plan.apply()


class TestOwnForward:
    """Classes that normalize in a forward of their own."""

    @pytest.mark.parametrize("policy", PAIRS, ids=str)
    def test_batch_norm_with_an_activation(self, timm_layers, policy):
        act = filled(timm_layers.BatchNormAct2d(3, act_layer=nn.ReLU))
        plain = filled(nn.BatchNorm2d(3))
        plain.load_state_dict(act.state_dict())
        for layer in (act, plain):
            set_policy(layer, train=policy)
        x = inputs("BatchNorm2d").requires_grad_()
        assert torch.equal(act(x), plain(x).relu())
        assert all(torch.equal(a, b) for a, b in zip(act.buffers(), plain.buffers(), strict=True))
        assert torch.equal(act(x=x), plain(input=x).relu())

    def test_one_that_does_more_is_refused(self, timm_layers):
        split = timm_layers.split_batchnorm.SplitBatchNorm2d(4, num_splits=2)
        before = [buffer.clone() for buffer in split.buffers()]
        with pytest.raises(CannotConvert, match="does not normalize with the batch alone"):
            set_policy(split, train=StatsPolicy("batch"))
        assert all(torch.equal(a, b) for a, b in zip(split.buffers(), before, strict=True))

    def test_the_trial_calls_no_hooks_of_the_user(self, timm_layers):
        layer, seen = timm_layers.BatchNormAct2d(3), []
        for module in layer.modules():
            module.register_forward_hook(lambda *_: seen.append("after"))
            module.register_forward_pre_hook(lambda *_: seen.append("before"))
        set_policy(layer, train=StatsPolicy("batch"))
        assert seen == []
        layer(torch.randn(2, 3, 4, 4))
        assert seen

    def test_one_with_an_update_of_its_own_is_refused(self):
        class Biased(nn.BatchNorm1d):
            def forward(self, x):
                if self.training:
                    self.running_mean.lerp_(x.detach().mean(0), 0.5)
                return nn.functional.batch_norm(
                    x, None if self.training else self.running_mean, None if self.training else self.running_var,
                    self.weight, self.bias, self.training, 0.0, self.eps,
                )  # fmt: skip

        with pytest.raises(CannotConvert, match="Biased has a forward of its own, which"):
            set_policy(Biased(3), train=StatsPolicy("batch"))

    def test_one_that_cannot_be_tried_is_refused(self):
        class Other(nn.BatchNorm2d):
            def forward(self, x, scale):
                return super().forward(x) * scale

        with pytest.raises(CannotConvert, match="cannot be tried"):
            set_policy(Other(3), train=StatsPolicy("batch"))

    def test_a_subclass_with_the_forward_of_torch_needs_no_trial(self):
        class Mine(nn.BatchNorm1d):
            def __deepcopy__(self, memo):
                raise AssertionError

        set_policy(Mine(3), train=StatsPolicy("running"))


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
def test_copies(way):
    model = nn.Sequential(nn.BatchNorm1d(3))
    set_policy(model, train=StatsPolicy("running", EMA(0.5)))
    if way == "deepcopy":
        twin = copy.deepcopy(model)
    elif way == "pickle":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = nn.Sequential(nn.BatchNorm1d(3))
        twin.load_state_dict(model.state_dict())
        set_policy(twin, train=StatsPolicy("running", EMA(0.5)))
    x = torch.randn(8, 3) + 4
    assert torch.equal(twin(x), copy.deepcopy(model)(x))
    assert model[0].running_mean.abs().max() == 0
    (handle,) = policies_on(twin)
    assert str(handle).startswith(
        "1 layers of Sequential follow a policy: 0\n  train mode: uses running, updates ema(0.5)"
    )
    handle.remove()
    assert policy_of(twin[0]) == StatsPolicy("batch", EMA(0.1))
    assert policy_of(model[0]) == StatsPolicy("running", EMA(0.5))


def test_a_deleted_model_is_not_kept_alive():
    layer = nn.BatchNorm1d(3)
    set_policy(layer, train=StatsPolicy("running"))
    forward = layer.forward
    del layer
    with pytest.raises(HoldReleased):
        forward(torch.randn(2, 3))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("policy", [StatsPolicy("batch", EMA(0.1)), StatsPolicy("running", EMA(0.1)),
                                    StatsPolicy(Blend(0.5), Cumulative())], ids=str)  # fmt: skip
def test_activation_checkpointing_updates_once(reentrant, policy):
    plain = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh()).double()
    stock, checked = copy.deepcopy(plain), copy.deepcopy(plain)
    for model in (plain, checked):
        set_policy(model, train=policy)
    x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    plain(x).sum().backward()
    for model in (checked, stock):
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), checked.buffers(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), checked.parameters(), strict=True))
    assert stock[1].num_batches_tracked == 2  # what PyTorch does


class TestCompiled:
    def compiled(self, model):
        from torch._dynamo.testing import CompileCounterWithBackend

        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        return torch.compile(model, backend=counter, fullgraph=True), counter

    @pytest.mark.parametrize(
        "policy",
        [
            StatsPolicy("batch", Cumulative()),
            StatsPolicy("running", EMA(0.1)),
            StatsPolicy(Blend(0.5), Cumulative()),
        ],
        ids=str,
    )
    def test_one_graph_for_all_steps(self, policy):
        eager = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        set_policy(eager, train=policy)
        model = copy.deepcopy(eager)
        compiled, counter = self.compiled(model)
        for _ in range(4):
            x = torch.randn(8, 3)
            for each in (eager, compiled):
                each.zero_grad()
            a, b = eager(x), compiled(x)
            a.square().sum().backward()
            b.square().sum().backward()
            assert torch.allclose(a, b, atol=1e-6)
            assert torch.allclose(eager[0].weight.grad, model[0].weight.grad, atol=1e-5)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(eager.buffers(), model.buffers(), strict=True))
        assert (counter.frame_count, counter.op_count > 0) == (1, True)

    def test_the_stock_cumulative_average_cannot_be_compiled_whole(self):
        compiled, _ = self.compiled(nn.BatchNorm1d(3, momentum=None))
        with pytest.raises(Exception, match=r"graph break|Unsupported|\.item\(\)|data"):
            compiled(torch.randn(8, 3))


def test_the_plan_says_what_would_happen_and_changes_nothing():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(3))
    before = [dict(m.__dict__) for m in model.modules()]
    plan = plan_set_policy(model, train=StatsPolicy("batch"), eval=StatsPolicy(Blend(0.1), EMA(0.1)))
    assert str(plan) == (
        "1 layers of Sequential would follow a policy: 0\n"
        "  train mode: uses batch, updates nothing\n"
        "  eval mode: uses blend(0.1 batch), updates ema(0.1)\n"
        "  left as it is: 1: InstanceNorm1d keeps no running statistics"
    )
    assert [dict(m.__dict__) for m in model.modules()] == before


def test_functional_call_reaches_the_tensors_that_are_passed():
    layer = nn.BatchNorm1d(3)
    set_policy(layer, train=StatsPolicy("running", EMA(1.0)))
    own = {name: tensor.detach().clone() for name, tensor in layer.state_dict().items()}
    torch.func.functional_call(layer, own, (torch.randn(8, 3) + 5,))
    assert own["running_mean"].min() > 2
    assert layer.running_mean.abs().max() == 0


@pytest.mark.parametrize("use", ["batch", "running", Blend(0.5)], ids=str)
def test_half_precision_follows_the_same_policy(use):
    """bfloat16 has 8 bits: within a few parts in 256 of float32. A count of 301 that is rounded to 8 bits is 300."""
    full = nn.BatchNorm1d(3)
    full.num_batches_tracked.fill_(300)
    half = copy.deepcopy(full).bfloat16()
    for layer in (full, half):
        set_policy(layer, train=StatsPolicy(use, Cumulative()))
    x = (torch.randn(64, 3) * 4 + 3).bfloat16()
    out = half(x)
    assert out.dtype == half.running_mean.dtype == torch.bfloat16
    assert torch.allclose(out.float(), full(x.float()), rtol=2**-6, atol=2**-5)
    assert torch.allclose(half.running_mean.float(), full.running_mean, rtol=2**-6)
    assert half.num_batches_tracked == full.num_batches_tracked == 301
