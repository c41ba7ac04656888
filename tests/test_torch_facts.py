"""How PyTorch really behaves: the facts that the library relies on, without the library.

If one of these fails under a new release, a page of `torch-facts` has to be rewritten, and what stands on it looked at.
"""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def torchvision_ops():
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_torchvision("ops")


@pytest.fixture(scope="module")
def frozen_norms(torchvision_ops):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from timm.layers.norm_act import FrozenBatchNormAct2d
    return {
        "torchvision": torchvision_ops.FrozenBatchNorm2d,
        "timm": lambda n: FrozenBatchNormAct2d(n, apply_act=False),
    }


class TestModes:
    """What the guard in ``__dict__["train"]`` stands on."""

    def test_train_is_called_on_each_child_through_its_instance_attribute(self):
        model = nn.Sequential(nn.Dropout(), nn.Dropout())
        called = []
        model[0].__dict__["train"] = lambda mode=True: called.append(mode)
        model.train()
        model.eval()
        assert called == [True, False]
        assert not model[1].training

    def test_eval_is_train_of_false(self):
        layer = nn.Dropout()
        layer.__dict__["train"] = lambda mode=True: ("mine", mode)
        assert layer.eval() == ("mine", False)

    def test_an_instance_attribute_named_forward_is_what_a_call_runs(self):
        layer = nn.Linear(1, 1)
        layer.__dict__["forward"] = lambda x: "mine"
        assert layer(torch.ones(1)) == "mine"

    def test_train_reaches_children_of_an_eval_parent(self):
        model = nn.Sequential(nn.BatchNorm1d(2).eval())
        assert model.train()[0].training

    def test_deepcopy_and_pickle_register_a_module_before_they_reach_its_dict(self):
        for other in (copy.deepcopy(_HoldsItself()), pickle.loads(pickle.dumps(_HoldsItself()))):
            assert other.anchor.owner is other

    def test_a_closure_in_a_deepcopy_drives_the_original(self):
        model = nn.Dropout()
        model.__dict__["train"] = lambda mode=True: setattr(model, "training", False)
        other = copy.deepcopy(model)
        other.train()
        assert (model.training, other.training) == (False, True)

    def test_a_shallow_copy_shares_what_lies_in_the_dict(self):
        layer = nn.Linear(1, 1)
        layer.__dict__["train"] = marker = object()
        other = copy.copy(layer)
        assert other.__dict__["train"] is marker
        assert other._parameters is layer._parameters


class _Anchor:
    def __init__(self, owner):
        self.owner = owner

    def __deepcopy__(self, memo):
        return _Anchor(memo[id(self.owner)])

    def __reduce__(self):
        return _Anchor, (self.owner,)


class _HoldsItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.anchor = _Anchor(self)


class TestF1ToF3Statistics:
    @pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    def test_f1_frozen_parameters_do_not_stop_statistics(self, context):
        layer = nn.BatchNorm1d(2).requires_grad_(False)
        with context():
            layer(torch.randn(4, 2) + 1)
        assert layer.num_batches_tracked == 1
        assert layer.running_mean.abs().min() > 0

    def test_f2_the_flag_set_to_false_later(self):
        layer, x = nn.BatchNorm1d(2), torch.randn(6, 2) + 1
        layer.track_running_stats = False
        before = layer.running_mean.clone()
        assert not torch.equal(layer(x)[:2], layer(x[:2]))
        assert torch.equal(layer.running_mean, before)
        layer.eval()
        assert torch.equal(layer(x)[:2], layer(x[:2]))  # in eval mode the flag is not consulted

    @pytest.mark.parametrize("grad", [True, False])
    def test_f3_versions_of_mean_and_variance_stand_still(self, grad):
        layer = nn.BatchNorm2d(2)
        before = {name: buffer._version for name, buffer in layer.named_buffers()}
        with torch.set_grad_enabled(grad):
            layer(torch.randn(4, 2, 3, 3) + 1)
        bumps = {name: buffer._version - before[name] for name, buffer in layer.named_buffers()}
        assert bumps == {"running_mean": 0, "running_var": 0, "num_batches_tracked": 1}
        assert layer.running_mean.abs().min() > 0

    def test_f3_other_writes(self):
        tensor = torch.zeros(3)
        tensor.data.add_(1)
        tensor.numpy()[0] = 5
        assert tensor._version == 0
        with torch.no_grad():
            tensor.add_(1)
        assert tensor._version == 1
        tensor.detach().add_(1)
        assert tensor._version == 2

    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
    @pytest.mark.parametrize("fused", [True, False])
    def test_f3_fused_optimizers_do_not_bump_versions(self, kind, fused):
        parameter = nn.Parameter(torch.ones(3))
        optimizer = kind([parameter], lr=0.1, fused=fused)
        parameter.grad = torch.ones(3)
        optimizer.step()
        assert not torch.equal(parameter, torch.ones(3))
        assert (parameter._version == 0) == fused

    def test_an_instance_norm_with_momentum_none_still_writes(self):
        """Its buffers become the mean over as many copies as the batch has samples, which rounds."""
        moved = []
        for size in (1, 2, 6, 7):
            torch.manual_seed(1)
            layer = nn.InstanceNorm1d(64, track_running_stats=True, momentum=None)
            layer.running_mean.uniform_(-1, 1)
            before = layer.running_mean.clone()
            layer(torch.randn(size, 64, 4))
            moved.append(not torch.equal(layer.running_mean, before))
        assert moved[0] is False
        assert moved[2:] == [True, True]


_OPTIMIZERS = "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS Muon NAdam RAdam RMSprop Rprop SGD"
OPTIMIZERS = {
    name: getattr(torch.optim, name)
    for name in _OPTIMIZERS.split()
    if hasattr(torch.optim, name)  # Muon is new
}


class TestF4ToF6Optimizers:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_a_gradient_of_none_is_skipped_by_all_but_lbfgs(self, name):
        held, free = nn.Parameter(torch.full((2, 2), -0.0)), nn.Parameter(torch.ones(2, 2))
        optimizer = OPTIMIZERS[name]([held, free], **({} if name == "LBFGS" else {"lr": 0.1}))
        held.grad = torch.ones(2, 2)

        def closure():
            held.grad = torch.ones(2, 2) if count == 0 else None
            free.grad = free.detach().clone()
            return free.detach().square().sum()

        for count in range(2):
            if count == 1:
                value = held.detach().clone()
            closure()
            optimizer.step(closure)
        assert torch.equal(held, value) == (name != "LBFGS")

    @pytest.mark.parametrize("kind", ["momentum", "weight decay", "Adam", "AdamW"])
    @pytest.mark.parametrize("zero", [True, False], ids=["zeros", "none"])
    def test_f4_a_gradient_of_zeros_does_not_stop_a_parameter(self, kind, zero):
        parameter = nn.Parameter(torch.ones(3))
        optimizer = {
            "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            "weight decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
            "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
            "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
        }[kind]([parameter])
        parameter.grad = torch.ones(3)
        optimizer.step()
        optimizer.zero_grad(set_to_none=not zero)
        parameter.requires_grad_(False)
        before = parameter.clone()
        optimizer.step()
        assert torch.equal(parameter, before) != zero

    def test_f5_a_pre_step_hook_runs_before_the_gradients_are_read_and_may_replace_the_closure(self):
        parameter = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        seen = []

        def hook(own, args, kwargs):
            seen.append((own is optimizer, args[0] is optimizer, len(args), dict(kwargs)))
            parameter.grad = None
            return (args[0], lambda: "replaced"), {}

        optimizer.register_step_pre_hook(hook)
        parameter.grad = torch.ones(1)
        assert optimizer.step(lambda: "own") == "replaced"
        assert parameter.item() == 1
        assert seen == [(True, True, 2, {})]

    def test_f6_state_is_made_at_the_first_gradient(self):
        a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        optimizer = torch.optim.Adam([a, b])
        for _ in range(3):
            a.grad = torch.ones(1)
            optimizer.step()
        assert list(optimizer.state) == [a]
        b.grad = torch.ones(1)
        optimizer.step()
        assert (optimizer.state[a]["step"], optimizer.state[b]["step"]) == (4, 1)

    def test_hooks_are_left_out_of_copies(self):
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
        optimizer.register_step_pre_hook(lambda *_: None)
        assert not copy.deepcopy(optimizer)._optimizer_step_pre_hooks


class TestF7ToF12Layers:
    def test_f7_update_bn_leaves_a_layer_pinned_in_eval_at_nothing(self):
        model = nn.Sequential(nn.BatchNorm1d(2))
        model(torch.randn(8, 2) + 3)
        model[0].__dict__["train"] = lambda mode=True: setattr(model[0], "training", False)
        model[0].training = False
        update_bn([torch.randn(8, 2)], model)
        assert torch.equal(model[0].running_mean, torch.zeros(2))
        assert torch.equal(model[0].running_var, torch.ones(2))

    def test_f8_convert_sync_batchnorm_rebuilds(self):
        class Mine(nn.BatchNorm1d):
            pass

        layer = Mine(2).eval()
        layer.note = 1
        layer.register_forward_hook(lambda *_: None)
        other = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
        assert type(other) is nn.SyncBatchNorm
        assert not hasattr(other, "note")
        assert not other._forward_hooks
        assert (other.training, other.weight is layer.weight, other.running_mean is layer.running_mean) == (
            False,
            True,
            True,
        )

    def test_f9_fake_quantizers_observe_in_eval_mode(self):
        from torch.ao.quantization import FakeQuantize, MinMaxObserver

        layer, observer = FakeQuantize().eval(), MinMaxObserver().eval()
        for module in (layer, observer):
            module(torch.full((3,), 7.0))
        assert layer.activation_post_process.max_val > 0
        assert observer.max_val == 7
        layer.observer_enabled.zero_()
        before = layer.scale.clone()
        layer(torch.full((3,), 99.0))
        assert torch.equal(layer.scale, before)

    def test_f10_spectral_norm_keeps_its_state_in_a_child(self):
        layer = nn.utils.parametrizations.spectral_norm(nn.Linear(7, 5)).requires_grad_(False)
        u = layer.parametrizations.weight[0]._u
        layer.training = False  # without recursion
        before = u.clone()
        layer(torch.ones(1, 7))
        assert not torch.equal(u, before)
        before = u.clone()
        layer.eval()(torch.ones(1, 7))
        assert torch.equal(u, before)

    def test_f11_who_is_a_batch_norm(self):
        from torch.nn.modules.batchnorm import _BatchNorm

        assert not isinstance(nn.InstanceNorm2d(1, track_running_stats=True), _BatchNorm)
        assert isinstance(nn.SyncBatchNorm(1), _BatchNorm)
        assert not isinstance(nn.SyncBatchNorm(1), (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))

    def test_f12_without_statistics_eval_mode_looks_at_the_batch(self):
        layer, x = nn.BatchNorm1d(2, track_running_stats=False).eval(), torch.randn(6, 2)
        assert not torch.equal(layer(x)[:2], layer(x[:2]))

    def test_an_embedding_with_max_norm_writes_its_frozen_weight_in_eval_mode(self):
        layer = nn.Embedding(3, 2, max_norm=0.1).requires_grad_(False).eval()
        before = layer.weight.clone()
        layer(torch.tensor([0]))
        assert not torch.equal(layer.weight, before)

    @pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
    def test_f21_train_mode_without_dropout_is_eval_mode_to_the_bit(self, kind):
        layer, x = kind(3, 4, num_layers=3, dropout=0.5), torch.randn(5, 2, 3)
        expected = layer.eval()(x)[0]
        layer.train().dropout = 0.0
        assert torch.equal(layer(x)[0], expected)


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3]),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10),
    "ReduceLROnPlateau": lr_scheduler.ReduceLROnPlateau,
    "CosineAnnealingLR past T_max": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda _: 1.0),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LambdaLR(o, lambda _: 1.0), lr_scheduler.ExponentialLR(o, 0.9)], [5]
    ),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=5),
}
FITS = ["StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingLR", "PolynomialLR", "ReduceLROnPlateau"]
OVERSHOOTS = {"LinearLR": 1 / 6, "ConstantLR": 0.3}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_f13_a_group_that_is_added_after_the_scheduler_was_made(name):
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([first], lr=0.1, momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer)

    def run(steps):
        for _ in range(steps):
            optimizer.step()
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))

    run(2)
    optimizer.add_param_group({"params": [second], "lr": 0.1})
    if name in FITS:
        run(5)
    elif name in OVERSHOOTS:
        run(5)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
        assert optimizer.param_groups[1]["lr"] == pytest.approx(OVERSHOOTS[name])  # without a word
    else:
        with pytest.raises(KeyError if name == "OneCycleLR" else ValueError):
            run(5)


class TestF15AndF16Compile:
    @pytest.fixture(autouse=True)
    def _fresh_compiler(self):
        torch.compiler.reset()  # traces of other tests fit the same code

    @pytest.mark.slow
    def test_f15_requires_grad_is_traced_anew(self):
        model = nn.Linear(2, 2)
        compiled = torch.compile(model, backend="aot_eager")

        def gradients():
            model.zero_grad()
            compiled(torch.ones(1, 2)).sum().backward()
            return [p.grad is not None for p in model.parameters()]

        assert gradients() == [True, True]
        model.weight.requires_grad_(False)
        assert gradients() == [False, True]
        model.weight.requires_grad_(True)
        assert gradients() == [True, True]

    @pytest.mark.slow
    def test_f16_a_later_hook_is_ignored(self):
        model, x, called = nn.BatchNorm1d(2), torch.randn(4, 2), []
        compiled = torch.compile(model, backend="eager")
        compiled(x)
        model.register_forward_pre_hook(lambda *_: called.append(1))
        compiled(x)
        assert called == []

    @pytest.mark.slow
    def test_f16_a_later_change_of_the_mode_is_not(self):
        model, x = nn.BatchNorm1d(2), torch.randn(4, 2)
        compiled = torch.compile(model, backend="eager")
        compiled(x)
        model.training = False
        before = model.running_mean.clone()
        compiled(x)
        assert torch.equal(model.running_mean, before)


class TestF17ToF20Gradients:
    @pytest.mark.parametrize("reentrant", [True, False])
    def test_f17_checkpoint_moves_statistics_twice(self, reentrant):
        block = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        checkpoint(block, torch.randn(4, 2, requires_grad=True), use_reentrant=reentrant).sum().backward()
        assert block[1].num_batches_tracked == 2

    def test_f17_reentrant_checkpoint_behind_a_frozen_prefix_has_no_gradient(self):
        prefix, block = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
        x = prefix(torch.randn(4, 2))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad", UserWarning)
            assert not checkpoint(block, x, use_reentrant=True).requires_grad
        assert checkpoint(block, x, use_reentrant=False).requires_grad

    def test_f18_a_frozen_prefix_records_no_graph(self):
        assert nn.Linear(2, 2).requires_grad_(False)(torch.ones(1, 2)).grad_fn is None

    def test_f19_features_of_inference_mode_cannot_feed_a_head(self):
        with torch.inference_mode():
            features = nn.Linear(2, 2)(torch.ones(1, 2))
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            nn.Linear(2, 2)(features)
        with torch.no_grad():
            features = nn.Linear(2, 2)(torch.ones(1, 2))
        nn.Linear(2, 2)(features).sum().backward()

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
    def test_f20_a_frozen_encoder_takes_the_fast_path(self):
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
        x, padding = torch.randn(2, 4, 8), torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]]).bool()
        slow = encoder(x, src_key_padding_mask=padding)
        fast = encoder.requires_grad_(False)(x, src_key_padding_mask=padding)
        assert fast[padding].abs().sum() == 0
        assert slow[padding].abs().min() > 0
        assert not torch.equal(fast[~padding], slow[~padding])
        # Two layers of float32 on values of order 1: a few units in the last place.
        assert torch.allclose(fast[~padding], slow[~padding], rtol=0, atol=1e-5)


class TestF22AndF23NotToTheBit:
    @pytest.mark.parametrize("name", ["torchvision", "timm"])
    def test_f22_frozen_batch_norms(self, name, frozen_norms):
        frozen, plain = frozen_norms[name](64), nn.BatchNorm2d(64).eval()
        for buffer in ("running_mean", "running_var"):
            value = torch.rand(64) * 3 + 0.1
            getattr(frozen, buffer).copy_(value)
            getattr(plain, buffer).copy_(value)
        x = torch.randn(4, 64, 5, 5)
        difference = (frozen(x) - plain(x)).abs().max()
        assert 0 < difference < 1e-4
        assert frozen(x.bfloat16()).dtype == torch.float32
        assert plain(x.bfloat16()).dtype == torch.bfloat16

    def test_f23_folding_a_norm_into_a_convolution(self):
        from torch.nn.utils.fusion import fuse_conv_bn_eval

        conv, norm = nn.Conv2d(3, 8, 3).eval(), nn.BatchNorm2d(8).eval()
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        x = torch.randn(2, 3, 8, 8)
        difference = (fuse_conv_bn_eval(conv, norm)(x) - norm(conv(x))).abs().max()
        assert 0 < difference < 1e-5


@pytest.mark.skipif(not hasattr(torch, "hash_tensor"), reason="this torch has no hash_tensor")
def test_f24_hash_tensor_does_not_see_the_order():
    assert torch.hash_tensor(torch.tensor([1, 2])) == torch.hash_tensor(torch.tensor([2, 1]))


class TestMechanisms:
    """The rows of the table of mechanisms that we did not take, and why."""

    def test_m0_eval_once_is_undone(self):
        model = nn.Sequential(nn.BatchNorm1d(2))
        model[0].eval()
        assert model.train()[0].training

    def test_m6_a_lambda_cannot_be_pickled(self):
        layer = nn.Dropout()
        layer.train = lambda mode=True: layer
        with pytest.raises((pickle.PicklingError, AttributeError)):
            pickle.dumps(layer)

    def test_lazy_modules_swap_their_own_class(self):
        layer = nn.LazyLinear(2)
        layer(torch.ones(1, 3))
        assert type(layer) is nn.Linear

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
    def test_a_scripted_module_has_a_train_of_its_own(self):
        layer = nn.BatchNorm1d(2)
        layer.training = False
        layer.__dict__["train"] = lambda mode=True: layer
        scripted = torch.jit.script(layer)
        scripted.train()
        scripted(torch.randn(4, 2))
        assert layer.num_batches_tracked == 1

    def test_gradients_and_flags_follow_load_state_dict_with_assign(self):
        layer = nn.Linear(2, 2).requires_grad_(False)
        old = layer.weight
        layer.load_state_dict(layer.state_dict(), assign=True)
        assert layer.weight is not old
        assert not layer.weight.requires_grad
