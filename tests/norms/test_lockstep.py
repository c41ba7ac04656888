"""Statistics in lockstep are those of the network in eval mode: against layer-by-layer references in float64."""

from __future__ import annotations

import _thread
import signal
import threading
import time

import pytest
import torch
from torch import nn

from frostline.errors import NonFiniteStatistics, NormsError
from frostline.norms.feed import Feed
from frostline.norms.lockstep import eval_consistent
from frostline.norms.observe import tracked_layers
from frostline.norms.untouched import untouched
from frostline.state.digest import digest_all

# Sums over a few hundred float64 values of order one, merged in another order than the reference adds them: a few
# hundred roundings of 1e-16, amplified by at most the depth.
EXACT = {"rtol": 1e-11, "atol": 1e-11}


@pytest.fixture(autouse=True)
def _seeded_and_single_threaded_at_the_end():
    torch.manual_seed(0)
    before = threading.active_count()
    yield
    assert threading.active_count() == before, "threads were left behind"


def mlp(depth=4, width=8):
    layers = [nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(*(each for block in layers for each in block), nn.Linear(width, 3)).double()


def conv():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, eps=1e-3), nn.Flatten()
    ).double()


def run(model, batches, **options):
    with untouched(model) as root:
        found = eval_consistent(root, Feed(batches), batches, tracked_layers(root), **options)
    return {path: (moments.mean, moments.var(unbiased=True)) for path, moments in found.items()}


def by_hand(model, x):
    """Layer by layer over the whole data: measure by two passes, normalize, go on."""
    found = {}
    with torch.no_grad():
        for path, layer in model.named_children():
            if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
                x = layer(x)
                continue
            values = x.transpose(0, 1).flatten(1)
            mean = values.mean(1)
            var = (values - mean[:, None]).square().sum(1) / (values.shape[1] - 1)
            found[path] = (mean, var)
            shape = (1, -1, *[1] * (x.ndim - 2))
            x = (x - mean.view(shape)) / (var.view(shape) + layer.eps).sqrt()
            x = x * layer.weight.view(shape) + layer.bias.view(shape)
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, statistics in expected.items():
        for got, wanted in zip(found[path], statistics, strict=True):
            torch.testing.assert_close(got, wanted, **EXACT)


@pytest.mark.parametrize(("build", "shape"), [(mlp, (60, 8)), (conv, (30, 3, 8, 8))])
def test_they_are_what_layer_by_layer_over_all_data_gives(build, shape):
    model, x = build(), 3 + 2 * torch.randn(shape, dtype=torch.float64)
    assert_same(run(model, list(x.split(7))), by_hand(model, x))


def test_batches_and_their_order_do_not_matter():
    model, x = mlp(), torch.randn(60, 8, dtype=torch.float64)
    whole = run(model, [x])
    for split in ([1] * 60, [7] * 8 + [4], [59, 1]):
        assert_same(run(model, list(x.split(split))), whole)
    assert_same(run(model, list(x[torch.randperm(60)].split(9))), whole)


def test_the_fixed_point_of_measuring_in_eval_mode_is_the_same():
    """Measure in eval mode, write, repeat: exact after as many passes as there are layers, and not before."""
    model, x = mlp(depth=3), torch.randn(60, 8, dtype=torch.float64)
    found = run(model, list(x.split(8)))
    norms = {path: layer for path, layer in model.named_children() if isinstance(layer, nn.BatchNorm1d)}
    model.eval()
    inputs = {}
    for path, layer in norms.items():
        layer.register_forward_pre_hook(lambda _m, args, path=path: inputs.__setitem__(path, args[0].detach()))
    for number in range(3):
        model(x)
        for path, layer in norms.items():
            layer.running_mean.copy_(inputs[path].mean(0))
            layer.running_var.copy_(inputs[path].var(0))
        if number == 0:
            with pytest.raises(AssertionError):
                torch.testing.assert_close(norms["7"].running_var, found["7"][1], **EXACT)
    assert_same(found, {path: (layer.running_mean, layer.running_var) for path, layer in norms.items()})


def test_one_batch_in_train_mode_agrees_up_to_bessel():
    # In train mode the one batch is normalized by its biased variance, in eval mode by the unbiased one that is stored.
    model, x = mlp(depth=2), torch.randn(60, 8, dtype=torch.float64)
    found = run(model, list(x.split(8)))
    norms = [layer for layer in model if isinstance(layer, nn.BatchNorm1d)]
    for layer in norms:
        layer.momentum = 1.0
    model.train()(x)
    torch.testing.assert_close(found["1"][1], norms[0].running_var, **EXACT)
    torch.testing.assert_close(found["4"][1], norms[1].running_var, rtol=2 / 60, atol=0)
    assert not torch.allclose(found["4"][1], norms[1].running_var, **EXACT)


def test_each_batch_is_run_once_and_two_runs_are_equal_to_the_bit():
    model, x = mlp().float(), torch.randn(60, 8)
    calls = []
    model[0].register_forward_pre_hook(lambda _m, args: calls.append(len(args[0])))
    first = run(model, list(x.split(7)))
    assert calls == [7] * 8 + [4]
    second = run(model, list(x.split(7)))
    assert all(torch.equal(a, b) for path in first for a, b in zip(first[path], second[path], strict=True))


def test_outputs_come_in_order_and_are_those_of_the_finished_network():
    model, x = mlp(), torch.randn(20, 8, dtype=torch.float64)
    outputs = []
    found = run(model, list(x.split(6)), each_batch=lambda _batch, output: outputs.append(output))
    for path, (mean, var) in found.items():
        model.get_submodule(path).running_mean.copy_(mean)
        model.get_submodule(path).running_var.copy_(var)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(outputs), model.eval()(x), **EXACT)


def test_instance_norm_gets_the_mean_of_the_samples_variances():
    model = nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True), nn.Conv2d(2, 2, 1)).double()
    x = torch.randn(12, 2, 4, 4, dtype=torch.float64) * torch.rand(12, 2, 1, 1) + torch.randn(12, 2, 1, 1)
    mean, var = run(model, list(x.split(5)))["0"]
    torch.testing.assert_close(mean, x.mean((0, 2, 3)), **EXACT)
    torch.testing.assert_close(var, x.flatten(2).var(2).mean(0), **EXACT)
    # As PyTorch keeps it, once all of its updates weigh the same.
    model[0].momentum = 1.0
    model.train()(x)
    torch.testing.assert_close(var, model[0].running_var, **EXACT)


def test_the_model_is_as_before_afterwards():
    model, x = mlp().train(), torch.randn(20, 8, dtype=torch.float64)
    before = digest_all(dict(model.state_dict()))
    run(model, list(x.split(6)))
    assert digest_all(dict(model.state_dict())) == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_lanes_run_without_gradients_and_under_the_callers_autocast():
    class Sees(nn.Module):
        def forward(self, x):
            seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
            return x

    seen = []
    model, batches = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), Sees()), list(torch.randn(20, 8).split(6))
    run(model, batches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(model, batches)
    assert seen == [(False, False, torch.bfloat16)] * 4 + [(False, True, torch.bfloat16)] * 4


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.bn(torch.relu(self.bn(x)))


class Forks(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, x):
        return self.a(x) if x.mean() > 0 else self.b(x)


class Stops(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.bn(x) if x.mean() > 0 else x


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Shared(), r"layer 'bn' \(BatchNorm1d\) is called more than once"),
        (Forks(), r"batch 0: layer 'a', batch 1: layer 'b'"),
        (Stops(), r"batch 0: layer 'bn', batch 1: through"),
    ],
)
def test_what_cannot_go_in_lockstep_is_refused_with_the_reason(model, words):
    before = digest_all(dict(model.state_dict()))
    with pytest.raises(NormsError, match=words) as raised:
        run(model, [torch.randn(8, 8) + 5, torch.randn(8, 8) - 5])
    assert "all-at-once" in str(raised.value)
    assert digest_all(dict(model.state_dict())) == before


def test_a_batch_without_samples_at_a_layer_brings_nothing_and_does_not_hold_up_the_others():
    class Picks(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(8)

        def forward(self, x):
            return self.bn(x[x[:, 0] > 0])

    x = torch.randn(20, 8, dtype=torch.float64)
    x[:8, 0] = -x[:8, 0].abs()
    mean, _ = run(Picks().double(), [x[:8], x[8:]])["bn"]
    torch.testing.assert_close(mean, x[x[:, 0] > 0].mean(0), **EXACT)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_the_forward_pass_raises_ends_all_lanes(error):
    class Raises(nn.Module):
        def forward(self, x):
            if x[0, 0] == 7:
                raise error("in the third batch")
            return x

    model, batches = nn.Sequential(nn.BatchNorm1d(8), Raises(), nn.BatchNorm1d(8)), list(torch.randn(20, 8).split(5))
    model[0].weight.data.zero_()
    model[0].bias.data.zero_()
    model[0].register_forward_hook(lambda _m, args, out: out + 7 if args[0] is batches[2] else out)
    before = digest_all(dict(model.state_dict()))
    with pytest.raises(error, match="in the third batch"):
        run(model, batches)
    assert digest_all(dict(model.state_dict())) == before


@pytest.fixture
def _ctrl_c_interrupts():
    """As in a terminal: a program in the background begins with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_interrupts")
def test_ctrl_c_while_a_lane_works_ends_all_of_them():
    class Interrupted(nn.Module):
        def forward(self, x):
            _thread.interrupt_main()
            time.sleep(0.2)
            return x

    model = nn.Sequential(nn.BatchNorm1d(8), Interrupted(), nn.BatchNorm1d(8))
    before = digest_all(dict(model.state_dict()))
    with pytest.raises(KeyboardInterrupt):
        run(model, list(torch.randn(20, 8).split(5)))
    assert digest_all(dict(model.state_dict())) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_layer_that_sees_a_value_that_is_not_finite_is_named(value):
    model, batches = mlp().float(), list(torch.randn(20, 8).split(5))
    batches[2][1, 3] = value
    with pytest.raises(NonFiniteStatistics, match=r"batch 2: the input of layer '1'"):
        run(model, batches)


@pytest.mark.slow
def test_compiled_parts_take_part():
    model, x = mlp(depth=2), torch.randn(20, 8, dtype=torch.float64)
    expected = by_hand(model, x)
    compiled = nn.Sequential(torch.compile(model, backend="eager"))
    compiled.eval()(x)  # compiled before there were any hooks
    found = run(compiled, list(x.split(6)))
    assert_same({path.rpartition(".")[2]: statistics for path, statistics in found.items()}, expected)


def test_a_layer_that_runs_in_a_thread_of_the_models_own_is_refused():
    class Threaded(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(8)

        def forward(self, x):
            errors = []

            def work():
                try:
                    self.bn(x)
                except NormsError as error:
                    errors.append(error)

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            raise errors[0]

    with pytest.raises(NormsError, match="a thread that the forward pass started itself"):
        run(Threaded(), [torch.randn(4, 8)])
