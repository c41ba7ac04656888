"""Each cause planted in a net whose statistics are right otherwise, and the same net without it.

The net has random weights and statistics of real images, estimated by moving averages as training does it: a diagnosis
of statistics does not ask what the weights are good for. Trained nets are judged in ``benchmarks/planted_suite.py``.
"""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from frostline.norms.causes import judge
from frostline.norms.causes.from_state import non_finite
from frostline.norms.evidence import Evidence, LayerFacts, off_layers
from frostline.norms.feed import Feed
from frostline.norms.look import look
from frostline.norms.observe import tracked_layers

PIXELS = (torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16 - 0.3) / 0.37


def net():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 32, bias=False), nn.BatchNorm1d(32),
    )  # fmt: skip


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def batches(n, size=32, seed=0, change=lambda x: x):
    generator = torch.Generator().manual_seed(seed)
    return [change(PIXELS[torch.randint(0, len(PIXELS), (size,), generator=generator)]) for _ in range(n)]


def settle(model, loader, momentum=0.1):
    """Statistics by moving averages, the weights being fixed."""
    for layer in norms_of(model):
        layer.momentum = momentum
    model.train()
    with torch.no_grad():
        for images in loader:
            model(images)
    return model.eval()


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    return settle(net(), batches(120))


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


def causes(model, loader=None, *, train_loader=None, domains=None, steps=None, batch_size=None, ranks=None):
    loader = batches(16, seed=7) if loader is None else loader
    facts = {path: LayerFacts.of(path, layer) for path, layer in tracked_layers(model).items()}
    updates = {path: layer.updates for path, layer in facts.items()}

    def at(data):
        return look(model, Feed(data), batch_size=batch_size, updates=updates)

    data = at(loader)
    train = data if train_loader is None else at(train_loader)
    seen = {name: at(each) for name, each in (domains or {}).items()}
    return judge(Evidence(facts, train, data, seen, steps, batch_size or train.batch_samples, ranks or {}))


def first(*args, **kwargs):
    return causes(*args, **kwargs)[0].name


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_said_of_a_healthy_net(seed):
    torch.manual_seed(100 + seed)
    healthy = settle(net(), batches(100, seed=seed))
    assert [row.name for row in causes(healthy, batches(16, seed=50 + seed))] == ["healthy"]


def test_non_finite(model):
    facts = {path: LayerFacts.of(path, layer) for path, layer in tracked_layers(model).items()}
    assert non_finite(facts) is None
    for value, word in ((float("nan"), "1 NaN"), (float("inf"), "1 infinite"), (-1.0, "1 negative")):
        broken = copy.deepcopy(model)
        broken[4].running_var[3] = value
        row = non_finite({path: LayerFacts.of(path, layer) for path, layer in tracked_layers(broken).items()})
        assert row.layers == ("4",)
        assert word in row.evidence


class TestNeverUpdated:
    def test_as_built(self, model):
        model[4].reset_running_stats()
        row = causes(model)[0]
        assert (row.name, row.layers) == ("never-updated", ("4",))

    def test_momentum_zero(self, model):
        for layer in norms_of(model):
            layer.momentum = 0.0
        with torch.no_grad():
            for conv in (model[0], model[3]):
                conv.weight.mul_(1.5)
        assert first(model) == "never-updated"

    def test_as_built_and_right(self):
        """A layer whose input has mean 0 and variance 1 is fine as it is built."""
        torch.manual_seed(0)
        alone = nn.Sequential(nn.BatchNorm1d(4)).eval()
        assert first(alone, [torch.randn(64, 4) for _ in range(8)]) == "healthy"


class TestMemory:
    @pytest.mark.parametrize(("momentum", "updates"), [(0.001, 200), (0.003, 200), (0.01, 130)])
    def test_too_long(self, momentum, updates):
        torch.manual_seed(1)
        slow = settle(net(), batches(updates), momentum)
        assert first(slow) == "memory-too-long"

    def test_long_enough(self):
        torch.manual_seed(1)
        assert first(settle(net(), batches(400), 0.02)) == "healthy"

    @pytest.mark.parametrize("momentum", [0.5, 0.7, 0.9])
    def test_too_short(self, model, momentum):
        assert first(settle(model, batches(20, seed=3), momentum)) == "memory-too-short"

    @pytest.mark.parametrize("size", [2, 3, 4])
    def test_batch_too_small(self, model, size):
        assert first(settle(model, batches(200, size, seed=3)), batches(60, size, seed=8)) == "batch-too-small"

    def test_the_batch_of_training_can_be_named(self, model):
        assert first(model, batches(60, 4, seed=8), batch_size=32) == "healthy"


class TestData:
    @pytest.mark.parametrize("factor", [255.0, 1 / 255, 0.25, 2.0])
    def test_wrong_input_scale(self, model, factor):
        assert first(model, batches(16, seed=7, change=lambda x: x * factor)) == "wrong-input-scale"

    def test_not_normalized(self, model):
        assert first(model, batches(16, seed=7, change=lambda x: x * 0.37 + 0.3)) == "wrong-input-scale"

    @pytest.mark.parametrize("strength", [0.5, 0.8, 1.2])
    @pytest.mark.parametrize("told", [True, False])
    def test_domain_shift(self, model, strength, told):
        generator = torch.Generator().manual_seed(0)

        def noisy(x):
            return 0.8 * x + strength * torch.randn(x.shape, generator=generator)

        train = batches(16, seed=9) if told else None
        assert first(model, batches(16, seed=7, change=noisy), train_loader=train) == "domain-shift"

    @pytest.mark.parametrize("distance", [0.2, 0.5, 1.0])
    @pytest.mark.parametrize("told", [True, False])
    def test_stale(self, model, distance, told):
        """The weights went on, the statistics did not."""
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for layer in model:
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    noise = torch.randn(layer.weight.shape, generator=generator)
                    layer.weight.add_(noise * layer.weight.std() * distance)
        train = batches(16, seed=9) if told else None
        assert first(model, train_loader=train) == "stale"


class TestMixedDomains:
    @staticmethod
    def negative(x):
        return -1.5 * x + 0.5

    def test_one_after_the_other(self, model):
        """By the domains' names, and by batches that fall into two kinds."""
        pairs = zip(batches(60), batches(60, seed=1, change=self.negative), strict=True)
        both = [each for pair in pairs for each in pair]
        settle(model, both)
        domains = {"photo": batches(10, seed=5), "negative": batches(10, seed=6, change=self.negative)}
        assert first(model, both[:20], domains=domains) == "mixed-domains"
        assert first(model, both[:20]) == "mixed-domains"

    def test_mixed_in_each_batch_is_healthy(self, model):
        both = [torch.cat([a[:16], self.negative(a[16:])]) for a in batches(120)]
        settle(model, both)
        domains = {"photo": batches(10, seed=5), "negative": batches(10, seed=6, change=self.negative)}
        assert first(model, both[:16], domains=domains) == "healthy"

    def test_two_calls_in_one_forward_pass(self, model):
        class Siamese(nn.Module):
            def __init__(self, trunk):
                super().__init__()
                self.trunk = trunk

            def forward(self, pair):
                return self.trunk(pair[0]), self.trunk(pair[1])

        def pairs(n, seed, change):
            views = zip(batches(n, seed=seed), batches(n, seed=seed + 1, change=change), strict=True)
            return [torch.stack(pair) for pair in views]

        siamese = settle(Siamese(model), pairs(100, 0, self.negative))
        assert first(siamese, pairs(12, 20, self.negative)) == "mixed-domains"
        # Two views of one kind are fine, though the layers are called twice.
        healthy = settle(siamese, pairs(100, 0, lambda x: x))
        assert first(healthy, pairs(12, 20, lambda x: x)) == "healthy"


class TestCounters:
    @pytest.mark.parametrize("factor", [2, 3, 4])
    def test_part_of_the_net_counts_twice(self, model, factor):
        model[4].num_batches_tracked *= factor
        row = causes(model)[0]
        assert (row.name, row.layers) == ("double-update", ("4",))

    def test_all_of_it_against_the_steps(self, model):
        assert first(model, steps=60) == "double-update"
        assert first(model, steps=120) == "healthy"

    def test_layers_that_were_thawed_later_are_no_multiple(self, model):
        model[1].num_batches_tracked.fill_(170)
        assert first(model) == "healthy"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(model, dtype):
    """Statistics that began elsewhere and are kept there: every update is rounded away."""
    model.to(dtype)
    for layer in norms_of(model):
        layer.running_var.mul_(1.4)
    before = [layer.running_var.clone() for layer in norms_of(model)]
    settle(model, batches(50, change=lambda x: x.to(dtype)), momentum=1e-3 if dtype is torch.bfloat16 else 2e-4)
    kept = [(layer.running_var == old).float().mean() for layer, old in zip(norms_of(model), before, strict=True)]
    assert min(kept) > 0.9
    assert first(model, batches(16, seed=7, change=lambda x: x.to(dtype))) == "low-precision-buffers"


def test_low_precision_that_fits_is_fine(model):
    loader = batches(16, seed=7, change=lambda x: x.bfloat16())
    assert first(model.bfloat16(), loader) == "healthy"


def test_ranks_differ(model):
    assert first(model, ranks={"1": 0.5, "4": 0.01}) == "ranks-differ"
    assert first(model, ranks={"1": 0.005, "4": 0.01}) == "healthy"


@pytest.mark.parametrize("whole", [True, False])
def test_layers_swapped(model, whole):
    with torch.no_grad():
        model[4].weight.mul_(torch.linspace(0.5, 1.5, 16))
    settle(model, batches(100, seed=2))
    one, other = copy.deepcopy(model[4].state_dict()), copy.deepcopy(model[7].state_dict())
    keys = one.keys() if whole else ("running_mean", "running_var")
    model[4].load_state_dict({**one, **{key: other[key] for key in keys}})
    model[7].load_state_dict({**other, **{key: one[key] for key in keys}})
    row = causes(model)[0]
    assert row.name == "layers-swapped"
    assert set(row.layers) == {"4", "7"}


def test_a_layer_that_is_off_behind_a_bad_one_is_not_blamed(model):
    """In eval mode everything behind a bad layer is off; by itself only the bad one is."""
    model[1].running_var.mul_(4)
    found = look(model, Feed(batches(16, seed=7)))
    assert off_layers(found) == ["1"]
    assert found.layers["4"].fit_in_eval.effect > 0.3
