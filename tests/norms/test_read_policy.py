"""Which policy a layer follows: every row of the truth tables, by running the layer; and what set it."""

from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.norms import EMA, Cumulative, Domain, OncePerStep, StatsPolicy
from frostline.norms.domain_split import split_domains
from frostline.norms.policed import set_policy
from frostline.norms.read_policy import DEFAULT, encoding_of, policy_of, set_by, stock_policy
from frostline.norms.step_commit import step_commit

SHAPES = {
    "BatchNorm1d": (6, 3),
    "BatchNorm2d": (6, 3, 4, 4),
    "BatchNorm3d": (6, 3, 2, 2, 2),
    "SyncBatchNorm": (6, 3, 4, 4),
    "InstanceNorm1d": (6, 3, 5),
    "InstanceNorm2d": (6, 3, 4, 4),
    "InstanceNorm3d": (6, 3, 2, 2, 2),
}
BATCH = [name for name in SHAPES if "Batch" in name]
INSTANCE = [name for name in SHAPES if "Instance" in name]
COUNT_BEFORE = 4


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def build(name, **settings):
    layer = getattr(nn, name)(3, **settings).double()
    if layer.running_mean is not None:
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
        layer.num_batches_tracked.fill_(COUNT_BEFORE)
    return layer


def run(layer, name, momentum):
    """Infer use and update from the output and the buffers alone; shares no code with the library."""
    x = torch.randn(SHAPES[name], dtype=torch.float64) * 2 + 3
    before = {key: value.clone() for key, value in layer.named_buffers()}
    out = layer(x)

    def normalized(mean, var):
        shape = [*mean.shape, *[1] * (x.ndim - mean.ndim)] if mean.ndim == 2 else [1, -1, *[1] * (x.ndim - 2)]
        return (x - mean.view(shape)) / (var.view(shape) + layer.eps).sqrt()

    over, inner = [d for d in range(x.ndim) if d != 1], list(range(2, x.ndim))
    candidates = {"batch": normalized(x.mean(over), x.var(over, unbiased=False))}
    if inner:
        candidates["instance"] = normalized(x.mean(inner), x.var(inner, unbiased=False))
    if "running_mean" in before:
        candidates["running"] = normalized(before["running_mean"], before["running_var"])
    # float64: rounding is of the order of 1e-15, the candidates differ by more than 0.1.
    (use,) = [kind for kind, value in candidates.items() if torch.allclose(out, value, rtol=0, atol=1e-9)]
    after = dict(layer.named_buffers())
    if all(torch.equal(after[key], before[key]) for key in before):
        return StatsPolicy(use)
    new = x.mean(over)
    moved = {
        EMA(momentum or 0.0): before["running_mean"].lerp(new, momentum or 0.0),
        Cumulative(): before["running_mean"].lerp(new, 1 / (COUNT_BEFORE + 1)),
    }
    (update,) = [how for how, v in moved.items() if torch.allclose(after["running_mean"], v, rtol=0, atol=1e-12)]
    return StatsPolicy(use, update)


class TestAsPyTorchDecides:
    @pytest.mark.parametrize("name", BATCH)
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize(("built", "flag"), [(True, True), (True, False), (False, False), (False, True)])
    @pytest.mark.parametrize("momentum", [0.1, None, 0.0, 1.0])
    def test_batch_norm(self, name, training, built, flag, momentum):
        layer = build(name, affine=False, track_running_stats=built, momentum=momentum).train(training)
        layer.track_running_stats = flag
        said = policy_of(layer)
        if name == "SyncBatchNorm" and flag and not built and training:
            with pytest.raises(AssertionError):
                run(layer, name, momentum)
            return
        assert run(layer, name, momentum) == said

    @pytest.mark.parametrize("name", INSTANCE)
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize(("built", "flag"), [(True, True), (True, False), (False, False)])
    @pytest.mark.parametrize("momentum", [0.1, None, 0.0, 1.0])
    def test_instance_norm(self, name, training, built, flag, momentum):
        layer = build(name, track_running_stats=built, momentum=momentum).train(training)
        layer.track_running_stats = flag
        said = policy_of(layer)
        if said.update == EMA(0.0):
            # The buffers are written with what they held: a mean over copies, which rounds or not.
            assert not momentum
            assert run(layer, name, momentum) in (said, StatsPolicy(said.use))
            return
        assert run(layer, name, momentum) == said
        assert layer.num_batches_tracked is None or layer.num_batches_tracked == COUNT_BEFORE

    def test_momentum_zero_still_counts(self):
        layer = build("BatchNorm1d", momentum=0.0)
        assert policy_of(layer) == StatsPolicy("batch", EMA(0.0))
        layer(torch.randn(4, 3, dtype=torch.float64))
        assert layer.num_batches_tracked == COUNT_BEFORE + 1

    def test_without_a_count_cumulative_never_moves(self):
        layer = build("BatchNorm1d", momentum=None)
        layer.num_batches_tracked = None
        before = layer.running_mean.clone()
        assert policy_of(layer) == StatsPolicy("batch", EMA(0.0))
        layer(torch.randn(4, 3, dtype=torch.float64))
        assert torch.equal(layer.running_mean, before)

    def test_others(self):
        for layer in (nn.GroupNorm(1, 2), nn.LayerNorm(2), nn.RMSNorm(2)):
            assert policy_of(layer) == StatsPolicy("sample")
        assert policy_of(nn.Linear(2, 2)) is None
        from frostline.compat import import_torchvision

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frozen = import_torchvision("ops").FrozenBatchNorm2d(2)
        assert policy_of(frozen) == StatsPolicy("running")


@pytest.mark.parametrize(("name", "training"), list(itertools.product(SHAPES, [True, False])))
def test_in_another_mode_without_touching_the_layer(name, training):
    layer = build(name, track_running_stats=True).train(training)
    before = dict(layer.__dict__)
    assert policy_of(layer, not training) == policy_of(copy.deepcopy(layer).train(not training))
    assert policy_of(layer, not training) != policy_of(layer)
    assert layer.__dict__ == before


def test_a_held_layer_is_not_brought_into_train_mode():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True))
    fl.freeze(model, "*", level="stats")
    for layer in model:
        assert policy_of(layer, training=True) == policy_of(layer.train()) == StatsPolicy("running")


def test_what_frostline_set():
    policed, split, staged = nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2, momentum=0.3)
    set_policy(policed, train=StatsPolicy("running", EMA(0.2)))
    split_domains(split, ["a", "b"])
    step_commit(staged, torch.optim.SGD(staged.parameters(), lr=0.1))
    assert policy_of(policed) == StatsPolicy("running", EMA(0.2))
    assert policy_of(policed, training=False) == StatsPolicy("running")
    assert policy_of(split) == StatsPolicy(Domain(("a", "b")), EMA(0.1))
    assert policy_of(staged) == StatsPolicy("batch", OncePerStep(0.3))
    assert policy_of(staged, training=False) == StatsPolicy("running")
    assert [set_by(layer) for layer in (policed, split, staged)] == [
        "frostline policy",
        "frostline domains",
        "frostline step_commit",
    ]
    assert encoding_of(policed).endswith("buffers kept, momentum=0.1, forward replaced by PolicyForward")
    assert stock_policy(policed) == StatsPolicy("batch", EMA(0.1))


def test_a_foreign_forward_is_named_and_a_shallow_copy_not_believed():
    layer = nn.BatchNorm1d(2)
    layer.forward = lambda x: x
    assert set_by(layer).startswith("another tool, which replaced its forward by ")
    assert policy_of(layer) == StatsPolicy("batch", EMA(0.1))
    policed = nn.BatchNorm1d(2)
    set_policy(policed, train=StatsPolicy("running"))
    shallow = copy.copy(policed)
    assert policy_of(shallow) == StatsPolicy("batch", EMA(0.1))


def patch_batchnorm(module):
    """As fairscale's, shortened."""

    def pre_forward(module, args):
        if not torch.is_grad_enabled():
            module.track_running_stats = False

    module.register_forward_pre_hook(pre_forward)


class TestFingerprints:
    """Each tool's own lines, where the tool is not installed here."""

    @pytest.fixture
    def layer(self):
        return nn.BatchNorm2d(3)

    def test_default(self, layer):
        for fresh in (layer, nn.InstanceNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True), nn.LayerNorm(3)):
            assert set_by(fresh) == set_by(fresh, inside_training=True) == DEFAULT

    def test_hold(self, layer):
        model = nn.Sequential(layer)
        fl.freeze(model, "0")
        fl.freeze(model, "0", level="stats")
        assert set_by(layer) == "a hold (level state, stats)"

    def test_a_hold_on_parameters_says_nothing_about_statistics(self, layer):
        fl.freeze(nn.Sequential(layer), "0", level="grad")
        assert set_by(layer) == DEFAULT

    def test_lightning(self, layer):
        layer.track_running_stats = False
        assert set_by(layer) == "looks like Lightning's BaseFinetuning.freeze_module"
        assert encoding_of(layer) == "training=True, track_running_stats=False, buffers kept"
        # What makes it no freezing: the same input, two results.
        x = torch.randn(4, 3, 2, 2) + 5
        assert policy_of(layer, training=True).use != policy_of(layer, training=False).use
        assert not torch.allclose(layer.train()(x), layer.eval()(x))

    def test_tent(self, layer):
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = None
        assert set_by(layer) == "looks like Tent's configure_model"
        assert encoding_of(layer) == "training=True, track_running_stats=False, buffers None but num_batches_tracked"

    def test_functorch(self, layer):
        torch.func.replace_all_batch_norm_modules_(layer)
        built = nn.BatchNorm2d(3, track_running_stats=False)
        said = "built with track_running_stats=False, or torch.func.replace_all_batch_norm_modules_"
        assert set_by(layer) == set_by(built) == said
        assert encoding_of(layer) == "training=True, track_running_stats=False, buffers None"

    def test_update_bn_that_was_interrupted(self, layer):
        def loader():
            yield torch.randn(2, 3, 2, 2)
            raise OSError("no more data")

        with pytest.raises(OSError, match="no more"):
            torch.optim.swa_utils.update_bn(loader(), layer)
        assert "aborted torch.optim.swa_utils.update_bn" in set_by(layer)

    def test_fvcore_that_ran_out_of_data(self, layer):
        precise = pytest.importorskip("fvcore.nn.precise_bn")
        with pytest.raises(AssertionError):
            precise.update_bn_stats(layer, [torch.randn(2, 3, 2, 2)], num_iters=200)
        assert "aborted fvcore update_bn_stats" in set_by(layer)

    def test_fairscale(self, layer):
        patch_batchnorm(layer)
        assert set_by(layer) == "looks like fairscale's patch_batchnorm"

    def test_eval_by_hand(self, layer):
        model = nn.Sequential(layer).train()
        layer.eval()
        assert set_by(layer, inside_training=model.training) == "looks like eval() by the user"
        assert set_by(layer, inside_training=model.eval().training) == DEFAULT
