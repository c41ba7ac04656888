"""What layers are given, measured sample by sample, and what they normalize with meanwhile."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline.attach.ledger import holds_statistics
from frostline.compat import import_torchvision
from frostline.errors import NonFiniteStatistics, NormsError, NoStatistics
from frostline.norms import EMA, Blend, StatisticsUse, StatsPolicy, register, tracked_layers
from frostline.norms.feed import Feed
from frostline.norms.observe import not_reached, one_pass, sample_statistics
from frostline.norms.untouched import untouched

SHAPES = {
    "(N, C)": (5, 3),
    "(N, C, L)": (5, 3, 7),
    "4-d": (5, 3, 6, 4),
    "5-d": (5, 3, 2, 4, 3),
    "one position": (5, 3, 1, 1),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def reference(x, channel_dim=1):
    """Two passes in float64, by the book."""
    rows = x.double().movedim(channel_dim, 1).flatten(2) if x.ndim > 2 else x.double()[..., None]
    mean = rows.mean(2)
    return mean, (rows - mean[..., None]).square().mean(2)


class TestSampleStatistics:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_against_two_passes(self, shape, dtype):
        x = (torch.randn(SHAPES[shape], dtype=torch.float64) * 2 + 3).to(dtype)
        mean, var, positions = sample_statistics(x)
        expected = reference(x)
        assert mean.dtype == var.dtype == torch.float64
        assert positions == x[0, 0].numel()
        # Half values are exact in float32, whose sums are right to 1e-7; see the docstring for what is lost of that.
        rtol = 1e-14 if dtype == torch.float64 else 1e-5
        assert torch.allclose(mean, expected[0], rtol=rtol / 10, atol=rtol / 10)
        assert torch.allclose(var, expected[1], rtol=rtol, atol=0)

    @pytest.mark.parametrize("ratio", [0, 0.5, 3.9, 4.1, 100, 1e3, 1e4, 1e5])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_a_mean_far_above_the_standard_deviation(self, ratio, layout):
        x = (torch.randn(8, 6, 32, 32) + ratio).to(memory_format=layout)
        mean, var, _ = sample_statistics(x)
        expected = reference(x)
        assert torch.allclose(mean, expected[0], rtol=0, atol=1e-6)
        assert torch.allclose(var, expected[1], rtol=1e-5, atol=0)
        if ratio >= 1e3:
            naive = x.square().mean((2, 3)) - x.mean((2, 3)).square()
            assert not torch.allclose(naive.double(), expected[1], rtol=0.02, atol=0)
        if ratio >= 1e4:
            assert naive.min() < 0, "float32 E[x^2] - E[x]^2 no longer turns negative"

    def test_large_images(self):
        """Where a norm in float32 would have lost digits."""
        x = torch.randn(2, 3, 448, 448) + 0.5
        assert torch.allclose(sample_statistics(x)[1], reference(x)[1], rtol=1e-6, atol=0)

    @pytest.mark.parametrize("value", [0.0, 0.1, 1e-20, 1e-30, -3e4, 1e15])
    def test_all_values_equal(self, value):
        x = torch.full((3, 2, 5, 5), value)
        mean, var, _ = sample_statistics(x)
        assert torch.allclose(mean, x[:, :, 0, 0].double(), rtol=1e-12, atol=0)
        assert bool((var >= 0).all())
        assert var.max() <= (1e-7 * abs(value)) ** 2

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_a_sample_does_not_know_its_neighbours(self, layout):
        """To the bit, with samples of which some are shifted and others are not."""
        x = torch.randn(12, 5, 16, 16) + torch.tensor([0.0, 3.0, 1e4])[torch.arange(12) % 3, None, None, None]
        x = x.to(memory_format=layout)
        whole = sample_statistics(x)
        for part in (slice(0, 1), slice(3, 4), slice(2, 9), slice(0, 12, 2)):
            found = sample_statistics(x[part])
            assert torch.equal(found[0], whole[0][part])
            assert torch.equal(found[1], whole[1][part])

    @pytest.mark.parametrize("shape", [(4, 6, 5, 3), (4, 7, 3), (4, 3)])
    def test_channels_in_the_last_dimension(self, shape):
        x = torch.randn(shape) + 2
        mean, var, _ = sample_statistics(x, -1)
        expected = reference(x, -1)
        assert torch.allclose(mean, expected[0], rtol=0, atol=1e-6)
        assert torch.allclose(var, expected[1], rtol=1e-5, atol=0)

    def test_nothing_of_the_input_is_kept(self):
        """Else what a model later writes into its own tensor would be measured."""
        for x in (torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, 2, dtype=torch.float64)):
            mean, var, _ = sample_statistics(x)
            before = mean.clone(), var.clone()
            x.fill_(7)
            assert torch.equal(mean, before[0])
            assert torch.equal(var, before[1])

    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 40), st.integers(-8, 8), st.integers(0, 2**31))
    def test_any_shape_and_any_shift(self, n, channels, positions, shift, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, channels, positions, generator=generator) * 0.3 + float(shift) ** 5
        mean, var, _ = sample_statistics(x)
        expected = reference(x)
        spread = expected[1].sqrt() + 1e-7 * abs(float(shift)) ** 5
        assert bool(((mean - expected[0]).abs() <= 1e-6 * spread + 1e-12).all())
        assert bool(((var - expected[1]).abs() <= 1e-5 * expected[1] + (1e-6 * spread).square()).all())


def watch(model, batches, *paths, upstream="running", **settings):
    found = []
    with untouched(model) as root:
        layers = tracked_layers(root, *paths)
        number = one_pass(root, Feed(batches), layers, found.append, upstream=upstream, **settings)
    assert number == len(batches)
    return found


def net():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    )


def images(n=6, **settings):
    return torch.randn(n, 2, 9, 9, **settings) + 1


class Recorder(nn.Module):
    """Hands its input on and keeps it."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def forward(self, x):
        self.kept.append(x.clone())
        return x


class TestOnePass:
    @pytest.mark.parametrize("upstream", ["batch", "running"])
    def test_what_reaches_the_layers(self, upstream):
        """`batch` is what they see in train mode, `running` what they see in eval mode."""
        model = net().double()
        model[1].running_mean.uniform_(-1, 1)
        model[4].running_var.uniform_(1, 2)
        x = images(dtype=torch.float64)
        inputs = [Recorder(), Recorder()]
        twin = copy.deepcopy(model)
        nn.Sequential(*twin[:1], inputs[0], *twin[1:4], inputs[1], twin[4]).train(upstream == "batch")(x)
        found = watch(model, [x], upstream=upstream)
        assert [seen.path for seen in found] == ["1", "4"]
        for seen, recorder in zip(found, inputs, strict=True):
            expected = reference(recorder.kept[0])
            assert torch.allclose(seen.mean, expected[0], rtol=1e-10, atol=1e-12)
            assert torch.allclose(seen.var, expected[1], rtol=1e-10, atol=1e-12)

    def test_a_layer_called_twice(self):
        layer = nn.BatchNorm1d(2)

        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.bn = layer

            def forward(self, x):
                return self.bn(self.bn(x) + 5)

        x = torch.randn(8, 2)
        found = watch(Twice(), [x, x])
        assert [(seen.path, seen.call) for seen in found] == [("bn", 0), ("bn", 1)] * 2
        assert torch.equal(found[0].mean, x.double())
        assert torch.allclose(found[1].mean, x.double() / (1 + 1e-5) ** 0.5 + 5, rtol=1e-6)

    def test_keyword_input_and_what_is_not_reached(self):
        class Keyword(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

            def forward(self, x):
                return self.used(input=x)

        model = Keyword()
        found = watch(model, [torch.randn(4, 2)])
        assert [seen.path for seen in found] == ["used"]
        assert not_reached(tracked_layers(model), {"used": 1}) == "unused"
        assert not_reached(tracked_layers(model), {"used": 1, "unused": 1}) == ""

    def test_a_pre_hook_of_the_user_s_that_changes_the_input_is_seen(self):
        model = nn.Sequential(nn.BatchNorm1d(2))
        model[0].register_forward_pre_hook(lambda _module, args: (args[0] * 10,))
        x = torch.randn(4, 2)
        (seen,) = watch(model, [x])
        assert torch.equal(seen.mean, (x * 10).double())

    def test_input_that_the_model_overwrites_afterwards(self):
        class Overwrites(nn.Module):
            def __init__(self):
                super().__init__()
                self.bn = nn.BatchNorm1d(2).double()

            def forward(self, x):
                x = x * 1
                y = self.bn(x)
                x.fill_(float("nan"))
                return y

        x = torch.randn(4, 2, dtype=torch.float64)
        assert torch.equal(watch(Overwrites(), [x])[0].mean, x)

    def test_empty_batches_count_for_nothing(self):
        found = watch(net(), [images(0), images(3)])
        assert [len(seen.mean) for seen in found] == [3, 3]

    def test_callbacks_see_the_model_s_own_statistics_and_are_not_watched(self):
        model = net()
        x = images()
        with untouched(model) as root:
            expected = root(x)
        own, outputs, found = model[1].running_mean, [], []

        def each_batch(batch, output):
            assert model[1].running_mean is own
            outputs.append((output, model(batch)))

        with untouched(model) as root:
            one_pass(root, Feed([x, x]), tracked_layers(root), found.append, upstream="batch", each_batch=each_batch)
        assert len(found) == 4
        assert all(torch.equal(plain, expected) and not torch.equal(batch, expected) for batch, plain in outputs)

    def test_activations_are_not_kept(self):
        class Marked(Recorder):
            def forward(self, x):
                y = x * 1
                self.kept.append(weakref.ref(y))
                return y

        marked = Marked()
        model = nn.Sequential(marked, nn.BatchNorm2d(2))
        alive = []

        def each_batch(*_):
            gc.collect()
            alive.append(sum(ref() is not None for ref in marked.kept))

        with untouched(model) as root:
            one_pass(root, Feed([images()] * 5), tracked_layers(root), lambda _: None, each_batch=each_batch)
        assert max(alive) <= 1, alive
        assert len(marked.kept) == 5

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_channels_last_input(self, layout):
        model, x = net(), images()
        found = watch(model.to(memory_format=layout), [x.to(memory_format=layout)])
        for seen, other in zip(found, watch(model.to(memory_format=torch.contiguous_format), [x]), strict=True):
            assert torch.allclose(seen.var, other.var, rtol=1e-4)


class TestWhatIsNotFinite:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("upstream", ["batch", "running"])
    def test_the_batch_and_the_first_layer_are_named(self, value, upstream):
        bad = images()
        bad[2, 1, 4, 4] = value
        with pytest.raises(NonFiniteStatistics, match=r"batch 1: the input of layer '1' \(BatchNorm2d\)"):
            watch(net(), [images(), bad], upstream=upstream)

    def test_a_weight_between_two_layers(self):
        model = net()
        model[3].weight.data[0, 0, 0, 0] = float("nan")
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(NonFiniteStatistics, match=r"batch 0: the input of layer '4'"):
            watch(model, [images()], upstream="batch")
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if "running" in k)


class TestOneValue:
    def test_batch_statistics_need_two(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        with pytest.raises(NormsError, match=r"batch 1 gives layer '1' \(BatchNorm1d\) one value(.|\n)*drop_last"):
            watch(model, [torch.randn(4, 2), torch.randn(1, 2)], upstream="batch")
        assert model[1].num_batches_tracked == 0
        with pytest.raises(ValueError, match="more than 1 value"):
            model.train()(torch.randn(1, 2))
        assert model[1].num_batches_tracked == 1, "torch counts the batch that it refuses"

    def test_running_statistics_do_not(self):
        assert watch(nn.Sequential(nn.BatchNorm1d(2)), [torch.randn(1, 2)])[0].count == 1


class TestWhoUsesItsBatch:
    """With ``batch``, each layer does as it would in train mode."""

    def outputs(self, model, x):
        found = []
        with untouched(model) as root:
            one_pass(
                root,
                Feed([x]),
                tracked_layers(root),
                lambda _: None,
                upstream="batch",
                each_batch=lambda _b, output: found.append(output),
            )
        return found[0]

    def in_train_mode(self, model, x):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            return twin.train()(x)

    @pytest.mark.parametrize(
        "layer",
        [
            nn.BatchNorm2d(2),
            nn.SyncBatchNorm(2),
            nn.InstanceNorm2d(2, track_running_stats=True, affine=True),
            nn.BatchNorm2d(2, momentum=None),
            nn.BatchNorm2d(2, affine=False),
        ],
        ids=repr,
    )
    def test_layers_of_torch(self, layer):
        model = nn.Sequential(layer).double()
        layer.running_mean.uniform_(1, 2)
        x = images(dtype=torch.float64)
        assert torch.allclose(self.outputs(model, x), self.in_train_mode(model, x), rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("layer", [nn.BatchNorm2d(2), nn.InstanceNorm2d(2, track_running_stats=True)], ids=repr)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_nets_are_not_rounded_more_than_in_training(self, layer, dtype):
        model = nn.Sequential(copy.deepcopy(layer)).to(dtype)
        # A mean of 30 in bfloat16 is off by up to 0.06 standard deviations: statistics must not pass through buffers.
        x = (torch.randn(6, 2, 9, 9) + 30).to(dtype)
        assert torch.equal(self.outputs(model, x), self.in_train_mode(model, x))

    def test_flag_switched_off_as_lightning_does(self):
        model = nn.Sequential(nn.BatchNorm2d(2)).double()
        model[0].track_running_stats = False
        x = images(dtype=torch.float64)
        assert torch.allclose(self.outputs(model, x), self.in_train_mode(model, x), rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("level", ["state", "stats"])
    @pytest.mark.parametrize("kind", ["BatchNorm2d", "InstanceNorm2d"])
    def test_held_layers_use_their_buffers(self, level, kind):
        model = nn.Sequential(getattr(nn, kind)(2, track_running_stats=True)).double()
        model[0].running_mean.uniform_(1, 2)
        x = images(dtype=torch.float64)
        with fl.frozen(model, "0", level=level):
            assert holds_statistics(model[0])
            assert torch.equal(self.outputs(model, x), self.in_train_mode(model, x))
            assert torch.equal(self.outputs(model, x), copy.deepcopy(model).eval()(x))
        assert not holds_statistics(model[0])
        assert not torch.allclose(self.outputs(model, x), copy.deepcopy(model).eval()(x), atol=0.1)

    @pytest.mark.parametrize("which", ["torchvision", "timm"])
    def test_frozen_batch_norms(self, which):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ops = import_torchvision("ops")
            from timm.layers.norm_act import FrozenBatchNormAct2d
        layer = ops.FrozenBatchNorm2d(2) if which == "torchvision" else FrozenBatchNormAct2d(2, apply_act=False)
        layer.running_mean.fill_(1)
        model, x = nn.Sequential(layer), images()
        assert torch.equal(self.outputs(model, x), self.in_train_mode(model, x))

    def test_timm_s_batch_norm_with_activation(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_torchvision()
            from timm.layers import BatchNormAct2d
        model, x = nn.Sequential(BatchNormAct2d(2)).double(), images(dtype=torch.float64)
        out = self.outputs(model, x)
        assert bool((out >= 0).all())
        assert torch.allclose(out, self.in_train_mode(model, x), rtol=1e-9, atol=1e-12)
        assert [seen.path for seen in watch(model, [x])] == ["0"]

    @pytest.mark.parametrize("use", ["running", Blend(0.5), "batch"])
    def test_a_policy_decides(self, use):
        layer = nn.BatchNorm2d(2).double()

        class Forward:
            def __call__(self, x):
                return nn.BatchNorm2d.forward(layer, x)

            def policy(self):
                return StatsPolicy(use, EMA(0.1)) if layer.training else StatsPolicy("running")

        layer.forward = Forward()
        layer.running_mean.fill_(5)
        model, x = nn.Sequential(layer), images(dtype=torch.float64)
        uses_batch = abs(float(self.outputs(model, x).mean())) < 1e-9
        assert uses_batch == (use == "batch")

    def test_a_selection_is_measured_and_the_rest_still_uses_its_batch(self):
        model, x = net(), images()
        with untouched(model) as root:
            part, found = tracked_layers(root, "4"), []
            one_pass(root, Feed([x]), part, found.append, upstream="batch", beside=tracked_layers(root))
        assert torch.equal(found[0].mean, watch(model, [x], upstream="batch")[1].mean)
        alone = watch(model, [x], "4", upstream="batch")
        assert [seen.path for seen in found] == [seen.path for seen in alone] == ["4"]
        assert not torch.allclose(found[0].mean, alone[0].mean, atol=1e-3)


class LastDim(nn.Module):
    """A layer of the user's own, with other names and with its channels behind."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def forward(self, x):
        over = tuple(range(x.ndim - 1))
        mean, var = (x.mean(over), x.var(over, unbiased=False)) if self.training else (self.centre, self.spread)
        return (x - mean) / (var + 1e-5).sqrt()


@register(LastDim, mean="centre", var="spread", channel_dim=-1)
def _read(layer):
    return StatisticsUse("batch" if layer.training else "running", updates=False)


class TestKindsOfLayers:
    def test_registered_with_the_channels_behind(self):
        model = nn.Sequential(LastDim(3)).double()
        x = torch.randn(4, 5, 6, 3, dtype=torch.float64) * 2 + 3
        (seen,) = watch(model, [x], upstream="batch")
        expected = reference(x, -1)
        assert torch.allclose(seen.mean, expected[0], rtol=1e-12)
        assert torch.allclose(seen.var, expected[1], rtol=1e-10)
        out = TestWhoUsesItsBatch().outputs(model, x)
        assert torch.allclose(out, copy.deepcopy(model).train()(x), rtol=1e-9, atol=1e-9)

    def test_instance_norm_without_a_batch_dimension(self):
        x = torch.randn(2, 9, 9)
        model = nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True))
        (alone,), (batched,) = watch(model, [x]), watch(model, [x[None]])
        assert torch.equal(alone.mean, batched.mean)
        assert alone.mean.shape == (1, 2)

    def test_instance_norm_with_its_flag_off_writes_in_eval_mode_and_is_put_back(self):
        model = nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True))
        model[0].track_running_stats = False
        before = model[0].running_mean.clone()
        for upstream in ("batch", "running"):
            assert len(watch(model, [images()], upstream=upstream)) == 1
            assert torch.equal(model[0].running_mean, before)
        model.eval()(images())
        assert not torch.equal(model[0].running_mean, before)

    def test_what_keeps_no_statistics_is_not_tracked(self):
        model = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.InstanceNorm1d(2), nn.LayerNorm(2))
        assert tracked_layers(model) == {}

    def test_shared_layers_are_tracked_once(self):
        layer = nn.BatchNorm1d(2)
        assert list(tracked_layers(nn.Sequential(layer, layer))) == ["0"]

    def test_lazy_layers_are_refused(self):
        with pytest.raises(NoStatistics, match=r"layer '0' \(LazyBatchNorm1d\) is lazy"):
            tracked_layers(nn.Sequential(nn.LazyBatchNorm1d()))


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
        self.second = nn.Sequential(nn.BatchNorm2d(3))

    def forward(self, x):
        return self.second(self.first(x))


class TestWrappers:
    @pytest.mark.parametrize("how", ["wrapper", "in place", "a part"])
    def test_compiled_before(self, how):
        """Hooks that come after compiling are not called, or compiled themselves: the parts run eagerly."""
        x, graphs, model = images(), [], TwoParts().eval()
        expected = watch(copy.deepcopy(model), [x])

        def backend(graph, _inputs):
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        compiled = model
        if how == "wrapper":
            compiled = torch.compile(model, backend=backend)
        elif how == "in place":
            model.compile(backend=backend)
        else:
            model.second = torch.compile(model.second, backend=backend)
        with torch.no_grad():
            compiled(x)
        count = len(graphs)
        assert count
        found = watch(compiled, [x])
        assert len(graphs) == count, "something was compiled"
        assert len(found) == len(expected) == 2
        assert all(torch.equal(seen.mean, other.mean) for seen, other in zip(found, expected, strict=True))
        with torch.no_grad():
            compiled(x)
        assert len(graphs) == count, "the pass made compiled code be thrown away"

    def test_data_parallel(self):
        model, found = net(), []
        found = watch(nn.DataParallel(model), [images()])
        assert [seen.path for seen in found] == ["1", "4"]


@pytest.mark.parametrize("ends", ["well", "loader", "model", "interrupt", "callback"])
def test_hooks_and_buffers_afterwards(ends):
    model = net()
    model[1].register_forward_pre_hook(lambda *_: None)
    tables = (
        [dict(m._forward_pre_hooks) for m in model.modules()],
        [dict(m._forward_pre_hooks_with_kwargs) for m in model.modules()],
    )
    buffers = [(b, b.clone()) for b in model.buffers()]
    raised = KeyboardInterrupt if ends == "interrupt" else ValueError

    def loader():
        yield images()
        if ends in {"loader", "interrupt"}:
            raise raised
        yield images()

    def each_batch(*_):
        if ends == "callback":
            raise raised

    if ends == "model":
        model[2].register_forward_hook(lambda *_: (_ for _ in ()).throw(raised()))
    try:
        with untouched(model) as root:
            one_pass(
                root, Feed(loader()), tracked_layers(root), lambda _: None, upstream="batch", each_batch=each_batch
            )
    except raised:
        assert ends != "well"
    else:
        assert ends == "well"
    assert tables == (
        [dict(m._forward_pre_hooks) for m in model.modules()],
        [dict(m._forward_pre_hooks_with_kwargs) for m in model.modules()],
    )
    assert all(now is b and torch.equal(now, value) for now, (b, value) in zip(model.buffers(), buffers, strict=True))
