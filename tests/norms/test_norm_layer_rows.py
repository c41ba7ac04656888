"""What PyTorch does with statistics, row by row, by running the layers; and that we say the same of each.

The truth tables of modes, flags and buffers are in ``test_layers.py``, what needs two processes in ``test_ranks.py``.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.compat import import_torchvision
from frostline.norms import has_running_statistics, population_moments, statistics_of, tracked_layers

BATCH = {
    "BatchNorm1d": (6, 3),
    "BatchNorm2d": (6, 3, 4, 4),
    "BatchNorm3d": (6, 3, 2, 2, 2),
    "SyncBatchNorm": (6, 3, 4, 4),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def statistics(layer):
    return layer.running_mean.clone(), layer.running_var.clone(), int(layer.num_batches_tracked)


def over_channels(x):
    return x.double().movedim(1, 0).flatten(1)


class TestArithmetic:
    @pytest.mark.parametrize("name", BATCH)
    def test_normalizes_with_the_biased_and_stores_the_unbiased_variance(self, name):
        layer = getattr(nn, name)(3, momentum=1.0, eps=1e-12).double()
        x = torch.randn(BATCH[name], dtype=torch.float64) * 2 + 3
        out = layer(x)
        assert torch.allclose(over_channels(out).var(1, unbiased=False), torch.ones(3, dtype=torch.float64))
        assert torch.allclose(layer.running_var, over_channels(x).var(1, unbiased=True))

    @pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0])
    def test_momentum_is_the_weight_of_the_new_value(self, momentum):
        layer, x = nn.BatchNorm1d(3, momentum=momentum).double(), torch.randn(6, 3, dtype=torch.float64) + 3
        layer(x)
        assert torch.allclose(layer.running_mean, momentum * x.mean(0))
        assert torch.allclose(layer.running_var, (1 - momentum) + momentum * x.var(0))

    def test_what_was_there_first_keeps_its_weight(self):
        """No debiasing: (1 - m)^t; after 100 steps with 0.01 it is 37 %."""
        layer, x = nn.BatchNorm1d(1, momentum=0.01).double(), torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        layer.running_mean.fill_(1)
        for _ in range(100):
            layer(x)
        assert layer.running_mean.item() == pytest.approx(0.99**100)
        assert 0.36 < layer.running_mean.item() < 0.37

    def test_momentum_none_is_the_plain_average(self):
        layer, parts = nn.BatchNorm1d(3, momentum=None).double(), torch.randn(5, 8, 3, dtype=torch.float64)
        for part in parts:
            layer(part)
        assert torch.allclose(layer.running_mean, parts.mean(1).mean(0))
        assert torch.allclose(layer.running_var, parts.var(1).mean(0))
        assert statistics_of(layer).updates

    def test_momentum_none_hardly_moves_a_layer_with_a_long_past(self):
        layer = nn.BatchNorm1d(3, momentum=None)
        layer.num_batches_tracked.fill_(100_000)
        layer(torch.randn(8, 3) + 10)
        assert layer.running_mean.max() < 2e-4
        layer.reset_running_stats()
        layer(torch.randn(8, 3) + 10)
        assert layer.running_mean.min() > 8

    def test_momentum_zero_counts_and_moves_nothing(self):
        layer = nn.BatchNorm1d(3, momentum=0.0)
        layer(torch.randn(8, 3) + 10)
        assert statistics(layer)[2] == 1
        assert layer.running_mean.tolist() == [0, 0, 0]
        assert statistics_of(layer).updates, "the counter is written"

    @pytest.mark.parametrize("n", [4, 8, 32])
    def test_the_correction_for_bias_is_wrong_below_another_batch_norm(self, n):
        """There the batch's mean was forced to zero; the mean of unbiased variances is n / (n - 1) of the variance."""
        model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=None)).double()
        parts = (torch.randn(960, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64)).split(n)
        for part in parts:
            model.train()(part)
        true = population_moments(model, parts)["2"].var()
        assert (model[2].running_var / true).mean() == pytest.approx(n / (n - 1), rel=0.02)

    @pytest.mark.parametrize("name", BATCH)
    def test_one_value_per_channel_is_refused_and_counted(self, name):
        layer = getattr(nn, name)(3)
        x = torch.randn(1, 3, *[1] * (len(BATCH[name]) - 2))
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(x)
        assert layer.num_batches_tracked == 1
        assert layer.running_mean.tolist() == [0, 0, 0]
        layer.eval()(x)

    def test_one_value_per_channel_is_refused_in_eval_mode_without_buffers(self):
        layer = nn.BatchNorm1d(3, track_running_stats=False).eval()
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(torch.randn(1, 3))
        assert statistics_of(layer).batch_dependent_in_eval

    def test_an_empty_batch_is_counted_and_changes_nothing(self):
        layer = nn.BatchNorm2d(3)
        layer(torch.randn(0, 3, 4, 4))
        mean, var, count = statistics(layer)
        assert (mean.tolist(), var.tolist(), count) == ([0] * 3, [1] * 3, 1)

    @pytest.mark.parametrize(("value", "mean"), [(float("nan"), "nan"), (float("inf"), "inf")])
    def test_one_bad_batch_poisons_for_ever(self, value, mean):
        layer, x = nn.BatchNorm1d(1), torch.randn(8, 1)
        layer(torch.where(torch.arange(8)[:, None] == 3, value, x))
        for _ in range(50):
            layer(x)
        assert str(layer.running_mean.item()) == mean
        assert str(layer.running_var.item()) == "nan"


class TestInstanceNorm:
    def test_the_variance_between_instances_is_ignored(self):
        x = torch.randn(16, 2, 8, 8, dtype=torch.float64) * 2 + torch.randn(16, 2, 1, 1, dtype=torch.float64) * 6
        layer = nn.InstanceNorm2d(2, track_running_stats=True, momentum=1.0).double()
        layer(x)
        assert torch.allclose(layer.running_var, x.flatten(2).var(2).mean(0))
        assert bool((over_channels(x).var(1) > 4 * layer.running_var).all())
        found = population_moments(nn.Sequential(layer), [x])["0"]
        assert torch.allclose(found.var(unbiased=True), layer.running_var)

    def test_no_batch_is_ever_counted(self):
        layer = nn.InstanceNorm1d(2, track_running_stats=True)
        layer(torch.randn(4, 2, 5))
        assert layer.num_batches_tracked == 0
        assert layer.running_mean.abs().sum() > 0

    def test_the_tools_do_not_touch_it(self):
        """`update_bn` looks for batch norms only: beside one it leaves the moving average on, else it does nothing."""
        x = torch.randn(4, 2, 5) + 3
        for others, mean in ([nn.BatchNorm1d(2)], 0.3), ([], 0.0):
            model = nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True), *others)
            torch.optim.swa_utils.update_bn([x], model)
            assert model[0].running_mean.mean().item() == pytest.approx(mean, abs=0.1)
            found = population_moments(model, [x])["0"]
            assert found.mean.mean().item() == pytest.approx(3, abs=0.5)


class TestSyncBatchNorm:
    def test_eval_mode_without_buffers_uses_the_batch_of_its_own_process(self):
        layer, x = nn.SyncBatchNorm(3, track_running_stats=False).eval(), torch.randn(6, 3, 4, 4)
        assert not torch.equal(layer(x)[:2], layer(x[:2]))
        said = statistics_of(layer)
        assert (said.uses, said.batch_dependent_in_eval) == ("batch", True)

    def test_flag_switched_on_without_buffers(self):
        layer = nn.SyncBatchNorm(3, track_running_stats=False)
        layer.track_running_stats = True
        with pytest.raises(AssertionError):
            layer(torch.randn(6, 3, 4, 4))
        plain = nn.BatchNorm2d(3, track_running_stats=False)
        plain.track_running_stats = True
        plain(torch.randn(6, 3, 4, 4))

    def test_conversion_keeps_tensors_and_loses_hooks(self):
        model = nn.Sequential(nn.BatchNorm2d(3))
        tensors = [*model.parameters(), *model.buffers()]
        model[0].register_forward_hook(lambda *_: None)
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        assert all(a is b for a, b in zip([*converted.parameters(), *converted.buffers()], tensors, strict=True))
        assert not converted[0]._forward_hooks

    def test_conversion_loses_the_activation_of_timm_s_layer(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_torchvision()
            from timm.layers import BatchNormAct2d
        model, x = nn.Sequential(BatchNormAct2d(3)).eval(), torch.randn(6, 3, 4, 4)
        assert bool((model(x) >= 0).all())
        assert bool((nn.SyncBatchNorm.convert_sync_batchnorm(model)(x) < 0).any())

    def test_conversion_makes_two_of_a_shared_module(self):
        layer = nn.BatchNorm2d(3)
        model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer, layer))
        assert model[0] is not model[1]
        assert model[0].running_mean is model[1].running_mean
        assert list(tracked_layers(model)) == ["0", "1"]


class TestLazyAndGroup:
    @pytest.mark.parametrize("training", [True, False])
    def test_the_first_call_materializes_in_eval_mode_too(self, training):
        layer = nn.LazyBatchNorm1d().train(training)
        assert nn.parameter.is_lazy(layer.running_mean)
        layer(torch.randn(6, 3) + 3)
        assert type(layer) is nn.BatchNorm1d
        assert (layer.running_mean.abs().sum() > 0) == training == statistics_of(layer).updates

    def test_conversion_of_a_lazy_layer_has_no_features(self):
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.LazyBatchNorm1d()))
        assert converted[0].num_features == 0

    def test_a_group_of_one_value_is_a_dead_layer(self):
        """The check counts the samples, which are not normalized together: it passes, and everything becomes zero."""
        layer = nn.GroupNorm(3, 3)
        assert layer(torch.randn(2, 3)).abs().max() < 1e-4
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(torch.randn(1, 3))

    @pytest.mark.parametrize("layer", [nn.GroupNorm(3, 6), nn.LayerNorm(4), nn.RMSNorm(4)], ids=repr)
    def test_no_buffers_and_no_modes(self, layer):
        x = torch.randn(5, 6, 4)
        assert not has_running_statistics(layer)
        assert torch.equal(layer.train()(x), layer.eval()(x))
        assert tracked_layers(nn.Sequential(layer)) == {}


class TestCheckpoints:
    def test_a_layer_without_tracking_has_no_buffers_to_save_or_load(self):
        tracks, does_not = nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)
        assert list(does_not.state_dict()) == ["weight", "bias"]
        with pytest.raises(RuntimeError, match="Unexpected key"):
            does_not.load_state_dict(tracks.state_dict())
        with pytest.raises(RuntimeError, match="Missing key"):
            tracks.load_state_dict(does_not.state_dict())

    def test_a_layer_that_tent_has_configured(self):
        layer = nn.BatchNorm1d(2)
        layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
        assert list(layer.state_dict()) == ["weight", "bias", "num_batches_tracked"]
        assert statistics_of(layer.eval()).uses == "batch"
        assert tracked_layers(layer) == {}

    def test_a_checkpoint_from_before_the_counter(self):
        layer = nn.BatchNorm1d(2)
        layer.num_batches_tracked.fill_(7)
        state = {k: v.clone() for k, v in layer.state_dict().items() if k != "num_batches_tracked"}
        layer.load_state_dict(state)  # no metadata: version 1
        assert layer.num_batches_tracked == 7, "where the layer has a counter, it keeps it"
        fresh = nn.BatchNorm1d(2)
        fresh.load_state_dict(state)
        assert fresh.num_batches_tracked == 0

    def test_loading_copies_and_assigning_rebinds(self):
        layer, state = nn.BatchNorm1d(2), nn.BatchNorm1d(2).state_dict()
        buffer = layer.running_mean
        layer.load_state_dict(state)
        assert layer.running_mean is buffer
        layer.load_state_dict(state, assign=True)
        assert layer.running_mean is not buffer

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_converts_the_statistics_and_not_the_counter(self, dtype):
        layer = nn.BatchNorm1d(2).to(dtype)
        assert (layer.running_mean.dtype, layer.num_batches_tracked.dtype) == (dtype, torch.int64)


class TestTransforms:
    def test_vmap_in_train_mode_needs_stacked_buffers(self):
        layers, x = [nn.BatchNorm1d(3) for _ in range(2)], torch.randn(2, 6, 3) + 3
        with pytest.raises(RuntimeError, match="vmap"):
            vmap(copy.deepcopy(layers[0]))(x)
        assert torch.allclose(vmap(copy.deepcopy(layers[0]).eval())(x)[1], layers[1].eval()(x[1]))
        layers[1].train()
        parameters, buffers = stack_module_state(layers)
        vmap(lambda p, b, xs: functional_call(layers[1], (p, b), (xs,)))(parameters, buffers, x)
        assert torch.allclose(buffers["running_mean"], 0.1 * x.mean(1))
        assert buffers["num_batches_tracked"].tolist() == [1, 1]

    def test_vmap_and_the_plain_average(self):
        layers = [nn.BatchNorm1d(3, momentum=None) for _ in range(2)]
        parameters, buffers = stack_module_state(layers)
        with pytest.raises(RuntimeError, match="item"):
            vmap(lambda p, b, xs: functional_call(layers[0], (p, b), (xs,)))(parameters, buffers, torch.randn(2, 6, 3))

    def test_functional_call_writes_into_what_it_is_passed(self):
        layer, x = nn.BatchNorm1d(3), torch.randn(6, 3) + 3
        buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        functional_call(layer, (dict(layer.named_parameters()), buffers), (x,))
        assert layer.num_batches_tracked == 0
        assert buffers["num_batches_tracked"] == 1
        functional_call(layer, dict(layer.named_parameters()), (x,))
        assert layer.num_batches_tracked == 1, "without buffers the module's own are written, silently"

    def test_grad_with_captured_buffers(self):
        layer, x = nn.BatchNorm1d(3), torch.randn(6, 3)

        def loss(parameters):
            return functional_call(layer, parameters, (x,)).square().sum()

        with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
            torch.func.grad(loss)(dict(layer.named_parameters()))

        def with_buffers(parameters, buffers):
            return functional_call(layer, (parameters, buffers), (x,)).square().sum()

        torch.func.grad(with_buffers)(dict(layer.named_parameters()), dict(layer.named_buffers()))

    def test_batch_norm_replacement(self):
        """Irreversible, and it skips layers whose flag is already off: those keep their buffers."""
        model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
        model[1].track_running_stats = False
        torch.func.replace_all_batch_norm_modules_(model)
        assert [has_running_statistics(layer) for layer in model] == [False, True]
        assert [statistics_of(layer.eval()).uses for layer in model] == ["batch", "running"]

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_activation_checkpointing_updates_twice(self, reentrant):
        """Two counts a step, and a change of 1 - (1 - m)^2 in place of m; the plain average stays right."""
        x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
        layer, average = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3, momentum=None).double()
        for each in (layer, average):
            checkpoint(each, x, use_reentrant=reentrant).sum().backward()
            assert each.num_batches_tracked == 2
        assert torch.allclose(layer.running_mean, x.mean(0) * 0.19)
        assert torch.allclose(average.running_mean, x.mean(0))

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_recomputation_can_be_told(self, reentrant):
        seen = []

        def forward(x):
            seen.append(torch._C._current_graph_task_id() != -1)
            return x.sin().sin()

        checkpoint(forward, torch.ones(1, requires_grad=True), use_reentrant=reentrant).backward()
        assert seen == [False, True]

    def test_a_trace_in_eval_mode_never_updates(self):
        layer, x = nn.BatchNorm1d(3).eval(), torch.randn(6, 3) + 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(layer, x)
        traced.train()(x)
        assert traced.running_mean.tolist() == [0, 0, 0]

    def test_export_keeps_the_update(self):
        layer, x = nn.BatchNorm1d(3), torch.randn(6, 3) + 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(copy.deepcopy(layer), (x,))
            run = program.module()
        run(x)
        assert torch.allclose(dict(run.named_buffers())["running_mean"], 0.1 * x.mean(0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decomposed = program.run_decompositions()
        assert set(decomposed.graph_signature.buffers_to_mutate.values()) == {
            "running_mean",
            "running_var",
            "num_batches_tracked",
        }


class TestCompile:
    """With the backend that only captures: what counts is how often it is called."""

    def compiled(self, model):
        calls = []

        def backend(graph, _inputs):
            calls.append(graph)
            return graph.forward

        torch._dynamo.reset()
        return torch.compile(model, backend=backend), calls

    @pytest.mark.parametrize("what", ["momentum", "flag", "mode", "buffer"])
    def test_what_recompiles(self, what):
        model, x = nn.Sequential(nn.BatchNorm1d(3)), torch.randn(6, 3)
        compiled, calls = self.compiled(model)
        with torch.no_grad():
            compiled(x)
            before = len(calls)
            if what == "momentum":
                model[0].momentum = 0.2
            elif what == "flag":
                model[0].track_running_stats = False
            elif what == "mode":
                model.eval()
            else:
                model[0].running_mean = model[0].running_mean.clone()
            compiled(x)
        assert len(calls) - before == (what != "buffer")

    def test_statistics_equal_those_of_eager(self):
        model, x = nn.Sequential(nn.BatchNorm1d(3)), torch.randn(6, 3)
        twin = copy.deepcopy(model)
        compiled, _ = self.compiled(model)
        with torch.no_grad():
            compiled(x)
            twin(x)
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


class TestPrecision:
    def test_autocast_leaves_buffers_in_float32(self):
        model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(8, 3, 9, 9)
        twin = copy.deepcopy(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model[0](x).dtype == torch.bfloat16
            model(x)
        twin(x)
        difference = (model[1].running_mean - twin[1].running_mean).abs().max().item()
        assert model[1].running_mean.dtype == torch.float32
        assert 0 < difference < 2e-3

    def test_a_step_that_grad_scaler_skips_still_updates(self):
        model, x = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)), torch.randn(6, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        scaler = torch.amp.GradScaler("cpu")
        before = copy.deepcopy(model[1].weight.data)
        scaler.scale(model(x).sum() * float("inf")).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model[1].weight, before), "the step was skipped"
        assert model[0].num_batches_tracked == 1

    def test_statistics_in_bfloat16_stand_still(self):
        layers = [nn.BatchNorm1d(1, momentum=1e-3).to(dtype) for dtype in (torch.bfloat16, torch.float32)]
        for layer in layers:
            layer.running_mean.fill_(1)
            x = torch.tensor([[1.0], [3.0]], dtype=layer.running_mean.dtype)
            for _ in range(1000):
                layer(x)
        assert layers[0].running_mean.item() == 1.0
        assert layers[1].running_mean.item() == pytest.approx(2 - 0.999**1000, abs=1e-3)


def test_a_child_in_eval_mode_does_not_survive_its_parent_s_train():
    model = nn.Sequential(nn.BatchNorm1d(2))
    model[0].eval()
    model.train()
    assert statistics_of(model[0]).updates
    with fl.frozen(model, "0"):
        model.train()
        assert statistics_of(model[0]).uses == "running"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: no CUDA device")
class TestCuda:
    def test_an_empty_batch(self):
        layer = nn.BatchNorm2d(3).cuda()
        layer(torch.randn(0, 3, 4, 4, device="cuda"))
        assert layer.running_mean.tolist() == [0, 0, 0]

    def test_population_moments(self):
        x = torch.randn(30, 3, 8, 8) * 2 + 1e3
        there, here = (population_moments(nn.BatchNorm2d(3).to(d), x.split(7))[""] for d in ("cuda", "cpu"))
        assert there.mean.is_cuda
        assert torch.allclose(there.mean.cpu(), here.mean, rtol=1e-8)
        assert torch.allclose(there.var().cpu(), here.var(), rtol=1e-5)
