"""Population mean and variance: against float64 by hand, whatever the batches are; and the twins that get it wrong."""

from __future__ import annotations

import copy
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl
from frostline.compat import import_torchvision
from frostline.errors import NonFiniteStatistics, NormsError, NoStatistics, NothingSelected
from frostline.norms import Moments, population_moments

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def vision():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_torchvision("models")


@pytest.fixture(scope="module")
def update_bn_stats():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it scripts functions, which torch has deprecated
        return pytest.importorskip(
            "fvcore.nn.precise_bn", reason="NOT COMPARED with fvcore: not installed"
        ).update_bn_stats


def two_passes(x):
    """Mean and biased variance per channel in float64, of everything at once."""
    rows = x.double().movedim(1, 0).flatten(1)
    mean = rows.mean(1)
    return mean, (rows - mean[:, None]).square().mean(1)


def inputs_of(model, x):
    """What reaches every batch norm of a float64 copy in eval mode, with all the data in one batch."""
    twin, kept = copy.deepcopy(model).double().eval(), {}
    for path, module in twin.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.register_forward_pre_hook(lambda _m, args, path=path: kept.update({path: args[0]}))
    with torch.no_grad():
        twin(x.double())
    return kept


def split(x, sizes):
    return list(x.split(sizes))


def relative(found, expected):
    return float(((found - expected).abs() / expected.abs().clamp(min=1e-30)).max())


class TestMoments:
    def test_of_nothing(self):
        nothing, some = Moments.of(torch.zeros(0, 2)), Moments.of(torch.randn(3, 2))
        assert nothing.merged(some) is some
        assert some.merged(nothing) is some
        assert nothing.merged(nothing).count == 0

    def test_unbiased(self):
        x = torch.randn(7, 3, dtype=torch.float64)
        assert torch.allclose(Moments.of(x).var(unbiased=True), x.var(0), rtol=1e-12)
        assert torch.allclose(Moments.of(x).var(), x.var(0, unbiased=False), rtol=1e-12)
        assert Moments.of(x[:1]).var(unbiased=True).tolist() == [0, 0, 0]

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(st.integers(1, 20), min_size=3, max_size=6),
        st.sampled_from([0.0, 1.0, 1e4]),
        st.integers(0, 2**31),
        st.randoms(use_true_random=False),
    )
    def test_merging_in_any_order_and_any_nesting(self, sizes, offset, seed, rng):
        """Associative and commutative to the rounding of float64, which grows with the square of mean over spread."""
        generator = torch.Generator().manual_seed(seed)
        parts = [torch.randn(n, 2, generator=generator, dtype=torch.float64) + offset for n in sizes]
        whole = Moments.of(torch.cat(parts))
        pool = [Moments.of(part) for part in parts]
        while len(pool) > 1:
            rng.shuffle(pool)
            pool.append(pool.pop().merged(pool.pop()))
        assert pool[0].count == whole.count
        assert torch.allclose(pool[0].mean, whole.mean, rtol=1e-14, atol=1e-14)
        # Deviations of about 1 from a mean that is itself rounded to 1e-16 of the offset.
        assert torch.allclose(pool[0].m2, whole.m2, rtol=1e-12 * max(offset, 1) / 1, atol=1e-12)


def small_net():
    """Float64, with statistics that are not the ones it was built with."""
    model = nn.Sequential(
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3),
        nn.InstanceNorm2d(3, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(75, 5),
        nn.BatchNorm1d(5),
        nn.Dropout(0.5),
    ).double()
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model


def close(found, other, rtol=1e-10):
    assert list(found) == list(other)
    for path, moments in found.items():
        assert moments.count == other[path].count
        assert torch.allclose(moments.mean, other[path].mean, rtol=rtol, atol=rtol)
        assert torch.allclose(moments.var(), other[path].var(), rtol=rtol)


class TestPopulation:
    @pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121"])
    def test_real_nets_against_a_float64_copy_that_sees_everything_at_once(self, vision, name):
        model = vision.get_model(name).eval()
        x = torch.randn(20, 3, 48, 48) * 2 + 1
        expected = inputs_of(model, x)
        found = population_moments(model, split(x, [8, 8, 4]), upstream="running")
        assert set(found) == set(expected)
        for path, moments in found.items():
            mean, var = two_passes(expected[path])
            # The activations themselves are float32: each layer adds about 1e-7 of their size to what it hands on.
            assert moments.count == expected[path].numel() // len(mean)
            assert float(((moments.mean - mean) / var.sqrt()).abs().max()) < 1e-4, path
            assert relative(moments.var(), var) < 1e-4, path

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_first_layer_exactly(self, dtype):
        x = (torch.randn(50, 3, 12, 12, dtype=torch.float64) * 2 + 5).to(dtype)
        found = population_moments(nn.Sequential(nn.BatchNorm2d(3).to(dtype)), split(x, [7, 20, 23]))["0"]
        mean, var = two_passes(x)
        # float32: means of 144 values are rounded once, by 2^-24 of their size; variances lose at most 17 times that.
        assert torch.allclose(found.mean, mean, rtol=1e-14 if dtype == torch.float64 else 6e-8, atol=0)
        assert torch.allclose(found.var(), var, rtol=1e-13 if dtype == torch.float64 else 1e-6, atol=0)

    @settings(max_examples=25, deadline=None)
    @given(st.data())
    def test_any_partition_and_any_order(self, data):
        """With running statistics upstream neither matters, to float64 rounding."""
        n = data.draw(st.integers(2, 24))
        x = torch.randn(n, 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) * 3 + 1
        order = torch.tensor(data.draw(st.permutations(range(n))))
        cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=n - 1)))
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, n], strict=True)]
        torch.manual_seed(0)
        model = small_net()
        whole = population_moments(model, [x], upstream="running")
        close(population_moments(model, split(x[order], sizes), upstream="running"), whole)

    def test_with_batch_statistics_upstream_only_the_first_layer_is_independent_of_the_batches(self):
        x, model = torch.randn(24, 2, 9, 9, dtype=torch.float64), small_net()
        one, other = (population_moments(model, split(x, size)) for size in (4, 12))
        close({"0": one["0"]}, {"0": other["0"]})
        with pytest.raises(AssertionError):
            close({"5": one["5"]}, {"5": other["5"]}, rtol=1e-3)

    @pytest.mark.parametrize("shape", [(30, 4), (30, 4, 6), (30, 4, 3, 5), (30, 4, 2, 3, 2)])
    @pytest.mark.parametrize("sync", [False, True])
    def test_shapes(self, shape, sync):
        layer = (
            nn.SyncBatchNorm(4)
            if sync
            else (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(shape) - 2](4)
        )
        x = torch.randn(shape) * 2 + 3
        found = population_moments(layer, split(x, [11, 9, 10]))[""]
        mean, var = two_passes(x)
        assert torch.allclose(found.mean, mean, rtol=1e-6)
        assert torch.allclose(found.var(), var, rtol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("upstream", ["batch", "running"])
    def test_half_nets(self, dtype, upstream):
        """Values are taken as they come out of half-precision layers; nothing else is lost, buffers are untouched."""
        model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(dtype)
        x = (torch.randn(40, 3, 8, 8) + 30).to(dtype)
        found = population_moments(model, split(x, 10), upstream=upstream)
        mean, var = two_passes(x)
        assert torch.allclose(found["0"].mean, mean, rtol=1e-7)
        assert torch.allclose(found["0"].var(), var, rtol=1e-5)
        assert model[0].running_mean.dtype == dtype
        assert model[0].running_mean.tolist() == [0, 0, 0]

    def test_a_layer_called_twice_counts_both(self):
        class Siamese(nn.Module):
            def __init__(self):
                super().__init__()
                self.bn = nn.BatchNorm1d(2)

            def forward(self, pair):
                return self.bn(pair[0]) - self.bn(pair[1])

        one, other = torch.randn(2, 12, 2), torch.randn(2, 12, 2) + 4
        batches = [torch.stack([a, b]) for a, b in zip(one, other, strict=True)]
        found = population_moments(Siamese(), batches)["bn"]
        mean, var = two_passes(torch.cat([one, other]).flatten(0, 1))
        assert found.count == 48
        assert torch.allclose(found.mean, mean, rtol=1e-12)
        assert torch.allclose(found.var(), var, rtol=1e-12)

    def test_a_layer_that_no_batch_reaches_is_absent(self, update_bn_stats):
        class Branch(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

            def forward(self, x):
                return self.used(x)

        model = Branch()
        assert list(population_moments(model, [torch.randn(4, 2)])) == ["used"]
        update_bn_stats(model.train(), [torch.randn(4, 2)], 1, progress=None)
        assert model.unused.running_var.tolist() == [0, 0], "fvcore no longer wipes what it did not see"

    def test_a_layer_that_only_some_batches_reach(self):
        class Some(nn.Module):
            def __init__(self):
                super().__init__()
                self.bn = nn.BatchNorm1d(2)

            def forward(self, x):
                return self.bn(x) if len(x) > 4 else x

        parts = [torch.randn(8, 2), torch.randn(4, 2) + 100, torch.randn(6, 2)]
        found = population_moments(Some(), parts)["bn"]
        mean, var = two_passes(torch.cat([parts[0], parts[2]]))
        assert torch.allclose(found.mean, mean, rtol=1e-12)
        assert torch.allclose(found.var(), var, rtol=1e-12)

    def test_a_selection_has_the_figures_that_it_has_in_the_whole(self):
        x, model = torch.randn(12, 2, 9, 9, dtype=torch.float64), small_net()
        whole = population_moments(model, split(x, 4))
        part = population_moments(model, split(x, 4), "5", "8")
        assert list(part) == ["5", "8"]
        assert all(torch.equal(part[path].m2, whole[path].m2) for path in part)
        with pytest.raises(NothingSelected):
            population_moments(model, [x], "nothing")

    def test_images_of_several_sizes(self):
        x = [torch.randn(4, 3, size, size) + size / 8 for size in (8, 16, 12)]
        found = population_moments(nn.BatchNorm2d(3), x)[""]
        mean, var = two_passes(torch.cat([each.flatten(2).movedim(1, 2).flatten(0, 1) for each in x]))
        assert torch.allclose(found.mean, mean, rtol=1e-6)
        assert torch.allclose(found.var(), var, rtol=1e-6)

    @pytest.mark.parametrize("wrap", ["DataParallel", "compile"])
    def test_wrappers(self, wrap):
        model, x = small_net(), torch.randn(6, 2, 9, 9, dtype=torch.float64)
        wrapped = nn.DataParallel(model) if wrap == "DataParallel" else torch.compile(model, backend="eager")
        close(population_moments(wrapped, [x]), population_moments(model, [x]), rtol=0)

    def test_all_samples_equal(self):
        found = population_moments(nn.BatchNorm2d(2), [torch.full((4, 2, 5, 5), 0.1)] * 3)[""]
        assert torch.allclose(found.mean, torch.full((2,), 0.1, dtype=torch.float64), rtol=1e-7)
        assert found.var().max() < 1e-15

    def test_mappings_and_a_forward(self):
        model, x = nn.BatchNorm1d(2), torch.randn(6, 2)
        plain = population_moments(model, [x])
        close(population_moments(model, [{"input": x, "labels": None}]), plain, rtol=0)
        close(population_moments(model, [(0, x)], forward=lambda m, batch: m(batch[1])), plain, rtol=0)


class TestInstanceNorm:
    """Its running variance is the mean of the samples' own; with another meaning a healthy layer would look shifted."""

    def images(self):
        return torch.randn(24, 3, 6, 6, dtype=torch.float64) * 2 + torch.randn(24, 3, 1, 1, dtype=torch.float64) * 6

    def test_what_torch_stores(self):
        x = self.images()
        layer = nn.InstanceNorm2d(3, track_running_stats=True, momentum=1.0).double()
        found = population_moments(layer, split(x, [9, 10, 5]))[""]
        layer.train()(x)
        assert torch.allclose(found.mean, layer.running_mean, rtol=1e-10)
        assert torch.allclose(found.var(unbiased=True), layer.running_var, rtol=1e-10)
        assert found.instances == 24
        pooled = x.movedim(1, 0).flatten(1).var(1)
        assert bool((pooled > 5 * found.var(unbiased=True)).all())

    def test_batch_norm_of_the_same_values_is_pooled(self):
        x = self.images()
        found = population_moments(nn.BatchNorm2d(3).double(), split(x, [9, 10, 5]))[""]
        assert torch.allclose(found.var(), two_passes(x)[1], rtol=1e-10)
        assert found.instances == 0


class TestTwins:
    """Each is asked the very question that ours answers, and gets it wrong."""

    def ours(self, batches):
        found = population_moments(nn.BatchNorm1d(1), batches)[""]
        return found.mean.item(), found.var(unbiased=True).item()

    def torch_s(self, batches):
        model = nn.Sequential(nn.BatchNorm1d(1))
        torch.optim.swa_utils.update_bn(batches, model)
        return model[0].running_mean.item(), model[0].running_var.item()

    def fvcore_s(self, batches, update_bn_stats):
        model = nn.Sequential(nn.BatchNorm1d(1)).train()
        update_bn_stats(model, batches, len(batches), progress=None)
        return model[0].running_mean.item(), model[0].running_var.item()

    def truth(self, batches):
        x = torch.cat(batches).double()
        return x.mean().item(), x.var().item()

    def test_unequal_batches(self, update_bn_stats):
        """`update_bn` weights a batch of 100 as one of 300, and drops the variance between batches."""
        batches = [torch.randn(n, 1) + m for n, m in ((300, 0.0), (300, 0.0), (300, 0.0), (100, 10.0))]
        true = self.truth(batches)
        assert self.ours(batches) == pytest.approx(true, rel=1e-6)
        mean, var = self.torch_s(batches)
        assert (true[0], mean) == (pytest.approx(0.98, abs=0.1), pytest.approx(2.49, abs=0.1))
        assert (true[1], var) == (pytest.approx(10.06, abs=0.5), pytest.approx(0.94, abs=0.2))
        # fvcore counts: by n, not n - 1.
        assert self.fvcore_s(batches, update_bn_stats) == pytest.approx((true[0], true[1] * 999 / 1000), rel=1e-4)

    def test_sorted_by_class(self, update_bn_stats):
        batches = [torch.randn(100, 1) + 5 * k for k in range(10)]
        true = self.truth(batches)
        assert true[1] == pytest.approx(208, rel=0.05)
        assert self.ours(batches) == pytest.approx(true, rel=1e-6)
        assert self.torch_s(batches)[1] == pytest.approx(1, abs=0.2)
        assert self.fvcore_s(batches, update_bn_stats) == pytest.approx((true[0], true[1] * 999 / 1000), rel=1e-4)

    @pytest.mark.parametrize(("ratio", "wrong"), [(1e3, 1e-3), (1e4, 1.0)])
    def test_a_mean_far_above_the_standard_deviation(self, update_bn_stats, ratio, wrong):
        """fvcore takes E[x^2] - E[x]^2 in float32: at 1e4 it gives anything from -8 to 24 where the variance is 1."""
        batches = [torch.randn(64, 1) + ratio for _ in range(16)]
        true = self.truth(batches)
        assert self.ours(batches)[1] == pytest.approx(true[1], rel=1e-9)
        found = self.fvcore_s(batches, update_bn_stats)[1]
        assert abs(found / true[1] - 1) > wrong

    def test_sizes_of_batches(self):
        """A mean of batch variances depends on the batches; below another batch norm by n / (n - 1), too."""
        x = torch.randn(240, 4) @ torch.randn(4, 4)
        for size in (4, 16, 60, 240):
            assert self.ours(split(x[:, :1], size)) == pytest.approx(self.truth([x[:, :1]]), rel=1e-9)
        model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
        true = population_moments(model, split(x, 4))["2"].var().mean()
        torch.optim.swa_utils.update_bn(split(x, 4), model)
        assert model[2].running_var.mean() / true == pytest.approx(4 / 3, rel=0.02)

    def test_a_batch_of_one(self):
        """`update_bn` fails there with the model half done; ours fails with the model as it was."""
        batches = [torch.randn(4, 1), torch.randn(1, 1)]
        model = nn.Sequential(nn.BatchNorm1d(1)).eval()
        model[0].running_mean.fill_(3)
        with pytest.raises(NormsError, match="one value per channel"):
            population_moments(model, batches)
        assert (model[0].running_mean.item(), model[0].momentum, model.training) == (3, 0.1, False)
        with pytest.raises(ValueError, match="more than 1 value"):
            torch.optim.swa_utils.update_bn(batches, model)
        assert model[0].momentum is None
        assert model[0].running_mean.item() != 3
        # With running statistics upstream one sample is as good as any.
        assert population_moments(model, batches, upstream="running")["0"].count == 5

    def test_frozen_parts_of_mixed_modes(self):
        """`update_bn` puts everything into train mode; a held layer is moved by it, dropout is on."""
        model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.9), nn.BatchNorm1d(2)).train()
        model[0].eval()
        model[1].eval()
        x = torch.randn(64, 2) + 4
        found = population_moments(model, [x])
        assert [m.training for m in model] == [False, False, True]
        assert torch.allclose(found["2"].var(), torch.ones(2, dtype=torch.float64), rtol=1e-3)
        torch.optim.swa_utils.update_bn([x], model)
        assert [m.training for m in model] != [False, False, True]
        assert model[0].running_mean.mean() > 1


class Codebook(nn.Module):
    """Learns in eval mode, too, and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.zeros(2))

    def forward(self, x):
        self.codes.lerp_(x.mean(0), 0.5)
        return x + self.codes + torch.randn(2) + float(np.random.rand()) + random.random()


class TestAsBefore:
    def build(self):
        model = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
            nn.BatchNorm1d(2),
            Codebook(),
            nn.Dropout(),
            nn.BatchNorm1d(2, momentum=None),
        )
        model.train()
        model[1].eval()
        return model

    def state(self, model):
        return (
            [m.training for m in model.modules()],
            [(m.momentum, m.track_running_stats, m.eps) for m in model.modules() if isinstance(m, nn.BatchNorm1d)],
            [(name, id(b), b.data_ptr(), b.clone().tolist()) for name, b in model.named_buffers()],
            [(name, id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()],
            [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
            torch.random.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
            random.getstate(),
            torch.is_grad_enabled(),
        )

    @pytest.mark.parametrize("upstream", ["batch", "running"])
    @pytest.mark.parametrize("ends", ["well", "loader", "model", "interrupt", "nan"])
    def test_everything(self, upstream, ends):
        model = self.build()
        raised = {"interrupt": KeyboardInterrupt, "nan": NonFiniteStatistics}.get(ends, ZeroDivisionError)

        def loader():
            yield torch.randn(8, 2)
            if ends in {"loader", "interrupt"}:
                raise raised
            yield torch.randn(8, 2) + (float("nan") if ends == "nan" else 0)

        def forward(module, batch):
            if ends == "model":
                module(batch)
                raise raised
            return module(batch)

        before = self.state(model)
        try:
            found = population_moments(model, loader(), forward=forward, upstream=upstream)
            assert ends == "well"
            assert set(found) == {"1", "4"}
        except raised:
            assert ends != "well"
        assert self.state(model) == before

    def test_a_training_run_does_not_notice(self):
        """Measuring in the middle of a training run changes nothing of what comes after, to the bit."""

        def train(measure):
            torch.manual_seed(1)
            model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            data = DataLoader(
                TensorDataset(torch.randn(32, 2)), batch_size=8, shuffle=True, generator=torch.Generator()
            )
            for _ in range(3):
                for (x,) in data:
                    optimizer.zero_grad()
                    model(x).square().mean().backward()
                    if measure:
                        population_moments(model, data)
                    optimizer.step()
            return model.state_dict()

        one, other = train(measure=True), train(measure=False)
        assert all(torch.equal(one[key], other[key]) for key in one)

    def test_a_hold_still_verifies(self):
        model = self.build()
        with fl.frozen(model, "1"):
            population_moments(model, [torch.randn(8, 2)])


class TestBadInput:
    def test_an_empty_loader(self):
        with pytest.raises(NoStatistics, match="yields no batch"):
            population_moments(nn.BatchNorm1d(2), [])

    def test_a_model_without_statistics(self):
        assert population_moments(nn.Linear(2, 2), [torch.randn(3, 2)]) == {}

    @pytest.mark.parametrize("part", [nn.LazyBatchNorm1d, lambda: nn.LazyLinear(3)])
    def test_lazy_parts(self, part):
        model = nn.Sequential(nn.BatchNorm1d(2), part())
        with pytest.raises(NoStatistics, match=r"'1' \(Lazy.*\n.*fix: run the model once|is lazy"):
            population_moments(model, [torch.randn(4, 2)])
        assert nn.parameter.is_lazy(next(iter(model[1].parameters())))


@pytest.mark.real_data
@pytest.mark.slow
def test_a_trained_net_on_real_images():
    """The ResNet-20 checkpoint on CIFAR-10, against a float64 copy over all images at once."""
    file = DATA / "checkpoints" / "resnet20-12fca82f.th"
    if not file.is_file():
        pytest.skip(f"NOT TESTED on real data: {file.name} is not in ../shared/data/checkpoints")
    image = pytest.importorskip("PIL.Image")
    from planted_models import ResNet20

    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    model = ResNet20()
    loaded = model.load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=False)
    assert not loaded.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in loaded.missing_keys)
    paths = sorted((DATA / "cifar10" / "test").glob("*/*"))[::20]
    pixels = np.stack([np.asarray(image.open(path).convert("RGB")) for path in paths]).astype(np.float32) / 255
    x = (
        torch.from_numpy(pixels).permute(0, 3, 1, 2) - torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    ) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    expected = inputs_of(model.eval(), x)
    found = population_moments(model, split(x, 32), upstream="running")
    assert len(found) == 19
    for path, moments in found.items():
        mean, var = two_passes(expected[path])
        assert float(((moments.mean - mean) / var.sqrt()).abs().max()) < 1e-5, path
        assert relative(moments.var(), var) < 1e-5, path
