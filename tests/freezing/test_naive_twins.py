"""What goes wrong where people freeze by hand, one test for each row F1 to F21 of the table of facts.

Each check is made twice: the naive way must fail it, a hold must pass it.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.errors import CannotFreeze, FrozenStateMoved
from frostline.freezing import safe_convert_sync_batchnorm, safe_update_bn

BATCH_NORMS = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3), (4, 3)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), (4, 3, 2, 2)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(3), (4, 3, 2, 2, 2)),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(3), (4, 3, 2, 2)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (4, 3, 5)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(3, track_running_stats=True), (4, 3, 2, 2)),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(3, track_running_stats=True), (4, 3, 2, 2, 2)),
}


def stale(model, optimizer, x):
    """A step with real gradients, after which they are zeros and the optimizer remembers momentum."""
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


OPTIMIZERS = {
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "SGD weight decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
}


class TestF1StatisticsMove:
    @pytest.mark.parametrize("kind", BATCH_NORMS)
    @pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
    def test_in_train_mode(self, kind, grad, twin, train, bytes_of, moved):
        build, shape = BATCH_NORMS[kind]
        model = nn.Sequential(build(), nn.Flatten())
        twin.freeze(model, "0")
        before = bytes_of(model)
        with torch.set_grad_enabled(grad):
            train(model, torch.randn(shape) + 3)
        with twin.verdict():
            assert moved(before, bytes_of(model)) == set()
        if twin.hold:
            twin.hold.verify()

    @pytest.mark.parametrize("kind", BATCH_NORMS)
    def test_output_is_that_of_eval_mode(self, kind, twin):
        build, shape = BATCH_NORMS[kind]
        model = nn.Sequential(build(), nn.Dropout())
        x = torch.randn(shape) + 3
        twin.freeze(model, "0", "1")
        expected = model.eval()(x)
        with twin.verdict():
            assert torch.equal(model.train()(x), expected)


def test_f2_flag_off_makes_the_output_depend_on_the_batch(twin):
    model = nn.Sequential(nn.BatchNorm1d(3))
    model.eval()[0].running_mean.fill_(1.0)
    if twin.hold is None and twin.name == "naive":
        model[0].track_running_stats = False  # what Lightning does
    else:
        twin.freeze(model, "0")
    x = torch.randn(6, 3)
    model.train()
    with twin.verdict():
        assert torch.equal(model(x)[:2], model(x[:2]))


def test_f3_version_counters_do_not_see_batch_norm_move():
    model = nn.BatchNorm2d(3)
    hold = fl.freeze(model, "", level="stats")
    model.training = True  # goes around the guard
    versions = {name: buffer._version for name, buffer in model.named_buffers()}
    model(torch.randn(4, 3, 2, 2))
    by_version = {name for name, buffer in model.named_buffers() if buffer._version != versions[name]}
    assert by_version == {"num_batches_tracked"}  # the naive proof sees neither mean nor variance
    with pytest.raises(FrozenStateMoved) as caught:
        hold.verify()
    assert {"running_mean", "running_var"} <= set(caught.value.diff.paths)


def test_f3_version_counters_do_not_see_fused_optimizers():
    model = nn.Linear(3, 3)
    hold = fl.freeze(model, "")
    model.requires_grad_(True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    version = model.weight._version
    optimizer.step()
    model.requires_grad_(False)
    assert model.weight._version == version
    with pytest.raises(FrozenStateMoved) as caught:
        hold.verify()
    assert caught.value.diff.paths == ["weight", "bias"]


class TestF4ZeroAndStaleGradients:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_zero_gradients(self, name, twin, bytes_of, moved):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        optimizer = OPTIMIZERS[name](model.parameters())
        stale(model, optimizer, torch.randn(4, 3))
        twin.freeze(model, "0", **({"optimizer": optimizer} if twin.name == "ours" else {}))
        before = bytes_of(model[0])
        for _ in range(3):
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        with twin.verdict():
            assert moved(before, bytes_of(model[0])) == set()

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_between_backward_and_step(self, name, twin, bytes_of, moved):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        optimizer = OPTIMIZERS[name](model.parameters())
        model(torch.randn(4, 3)).square().mean().backward()
        twin.freeze(model, "0")
        before = bytes_of(model[0])
        optimizer.step()
        with twin.verdict():
            assert moved(before, bytes_of(model[0])) == set()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_f5_someone_turns_requires_grad_on_again(name, twin, train, bytes_of, moved):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = OPTIMIZERS[name](model.parameters())
    twin.freeze(model, "0", **({"optimizer": optimizer} if twin.name == "ours" else {}))
    before = bytes_of(model[0])
    model.requires_grad_(True)
    train(model, torch.randn(4, 3), optimizer)
    with twin.verdict():
        assert moved(before, bytes_of(model[0])) == set()
    if twin.hold:
        assert twin.hold.diff().paths == ["0.weight.requires_grad", "0.bias.requires_grad"]


def test_f6_held_parameters_cost_no_optimizer_state_and_start_afresh_after_thaw(train):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    groups = [len(group["params"]) for group in optimizer.param_groups]
    hold = fl.freeze(model, "0", optimizer=optimizer)
    train(model, torch.randn(4, 3), optimizer, steps=5)
    assert set(optimizer.state) == set(model[1].parameters())
    assert [len(group["params"]) for group in optimizer.param_groups] == groups
    hold.thaw()
    train(model, torch.randn(4, 3), optimizer, steps=1)
    assert optimizer.state[model[0].weight]["step"] == 1
    assert optimizer.state[model[1].weight]["step"] == 6


def test_f7_update_bn_wipes_what_is_held(twin, bytes_of, moved):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model(torch.randn(8, 2) + 4)
    fl.freeze(model, "0")
    before = bytes_of(model[0])
    (update_bn if twin.name == "naive" else safe_update_bn)([torch.randn(8, 2)], model)
    with twin.verdict():
        assert moved(before, bytes_of(model[0])) == set()


def test_f8_convert_sync_batchnorm_loses_the_hold(twin):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    hold = fl.freeze(model, "0")
    convert = nn.SyncBatchNorm.convert_sync_batchnorm if twin.name == "naive" else safe_convert_sync_batchnorm
    held = model[0]
    model = convert(model)
    assert isinstance(model[1], nn.SyncBatchNorm)
    with twin.verdict():
        assert model[0] is held
    with twin.verdict():
        assert not model.train()[0].training
    if twin.name == "naive":
        with pytest.raises(FrozenStateMoved, match=r"0\.training"):
            hold.verify()
    else:
        hold.verify()


class TestF9ObserversDoNotGoByTheMode:
    @pytest.mark.parametrize("kind", ["FakeQuantize", "FusedMovingAvgObsFakeQuantize"])
    def test_fake_quantizers(self, kind, twin, bytes_of, moved):
        import torch.ao.quantization as ao

        model = nn.Sequential(nn.Linear(3, 3), getattr(ao, kind)())
        model(torch.randn(4, 3))
        if twin.name == "naive":
            model.requires_grad_(False).eval()  # eval mode is not enough here
        else:
            twin.freeze(model, "0", "1")
            model.train()
        before = bytes_of(model[1])
        model(torch.randn(4, 3) * 9)
        with twin.verdict():
            assert moved(before, bytes_of(model[1])) == set()

    @pytest.mark.parametrize(
        "kind", ["MinMaxObserver", "MovingAverageMinMaxObserver", "HistogramObserver", "PerChannelMinMaxObserver"]
    )
    def test_observers(self, kind, twin, bytes_of, moved):
        import torch.ao.quantization as ao

        model = nn.Sequential(nn.Linear(3, 3), getattr(ao, kind)())
        model(torch.randn(4, 3))
        if twin.name == "naive":
            model.requires_grad_(False).eval()
        else:
            twin.freeze(model, "0", "1")
            model.train()
        before = bytes_of(model[1])
        x = torch.randn(4, 3) * 9
        assert torch.equal(model(x), model[0](x))
        with twin.verdict():
            assert moved(before, bytes_of(model[1])) == set()


@pytest.mark.parametrize("api", ["new", "old"])
def test_f10_spectral_norm_iterates_in_train_mode(api, twin, train, bytes_of, moved, old_spectral_norm):
    wrap = nn.utils.parametrizations.spectral_norm if api == "new" else old_spectral_norm
    model = nn.Sequential(wrap(nn.Linear(7, 5)))
    model[0].training = False  # without recursion: does not stop the new API, whose state is in a child
    twin.freeze(model, "0")
    before = bytes_of(model)
    assert any("_u" in name for name in before)
    train(model, torch.randn(4, 7))
    with twin.verdict():
        assert moved(before, bytes_of(model)) == set()


@pytest.mark.parametrize("kind", ["SyncBatchNorm", "BatchNorm3d", "InstanceNorm2d"])
def test_f11_a_type_test_misses_norms(kind, twin, bytes_of, moved):
    build, shape = BATCH_NORMS[kind]
    model = nn.Sequential(build())
    if twin.name == "ours":
        twin.freeze(model, "0")
    model.train()
    if twin.name == "naive":
        for layer in model.modules():
            if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):  # the usual loop
                layer.eval()
    before = bytes_of(model)
    model(torch.randn(shape) + 1)
    with twin.verdict():
        assert moved(before, bytes_of(model)) == set()


def test_f12_batch_norm_without_statistics_depends_on_the_batch_in_eval_too():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))
    x = torch.randn(6, 3)
    model.requires_grad_(False).eval()
    assert not torch.equal(model(x)[:2], model(x[:2]))  # naive: eval mode looks frozen and is not
    with pytest.raises(CannotFreeze, match="N302"):
        fl.freeze(model, "0")


def _compiled(model, x):
    torch.compiler.reset()  # traces of other tests fit the same code
    compiled = torch.compile(model, backend="eager")
    compiled.train()
    compiled(x)
    return compiled


@pytest.mark.slow
def test_f16_a_hook_that_comes_after_compile_is_ignored_the_hold_is_not(twin, bytes_of, moved):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    x = torch.randn(8, 3)
    compiled = _compiled(model, x)
    if twin.name == "naive":
        model[1].register_forward_pre_hook(lambda layer, _: setattr(layer, "training", False))
    else:
        twin.freeze(model, "1")
    before = bytes_of(model[1])
    compiled.train()
    compiled(x)
    with twin.verdict():
        assert moved(before, bytes_of(model[1])) == set()


@pytest.mark.parametrize("reentrant", [True, False])
def test_f17_checkpointing_moves_statistics_twice(reentrant, twin):
    block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    twin.freeze(block, "1")
    block.train()
    checkpoint(block, torch.randn(4, 3, requires_grad=True), use_reentrant=reentrant).sum().backward()
    with twin.verdict():
        assert int(block[1].num_batches_tracked) == 0
    if twin.name == "naive":
        assert int(block[1].num_batches_tracked) == 2


class TestF21RecurrentLayers:
    """Torch refuses cuDNN's backward pass in eval mode; train mode with dropout 0 is the same function."""

    @pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
    def test_output_is_that_of_eval_mode_and_the_mode_follows(self, kind, twin):
        model = nn.Sequential(kind(3, 4, num_layers=3, dropout=0.5))
        x = torch.randn(5, 2, 3)
        expected = model.eval()(x)[0]
        twin.freeze(model, "0")
        model.train()
        assert model[0].training
        with twin.verdict():
            assert torch.equal(model(x)[0], expected)

    def test_gradients_pass_through_a_held_lstm(self):
        first, lstm = nn.Linear(3, 3), nn.LSTM(3, 4, num_layers=2, dropout=0.5)
        model = nn.ModuleList([first, lstm])
        hold = fl.freeze(model, "1")
        model.train()
        lstm(first(torch.randn(5, 2, 3)))[0].sum().backward()
        assert first.weight.grad is not None
        assert all(p.grad is None for p in lstm.parameters())
        hold.verify()
        hold.thaw()
        assert lstm.dropout == 0.5

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: cuDNN's RNN backward needs a CUDA device")
    def test_backward_on_cudnn(self, twin):
        first, lstm = nn.Linear(3, 3).cuda(), nn.LSTM(3, 4, num_layers=2, dropout=0.5).cuda()
        model = nn.ModuleList([first, lstm]).train()
        if twin.name == "naive":
            lstm.requires_grad_(False).eval()
        else:
            twin.freeze(model, "1")
            model.train()
        out = lstm(first(torch.randn(5, 2, 3, device="cuda")))[0].sum()
        if twin.name == "naive":
            with pytest.raises(RuntimeError, match="backward can only be called in training mode"):
                out.backward()
        else:
            out.backward()
            assert first.weight.grad is not None


def test_f20_the_encoder_fast_path_is_taken_by_naive_and_held_alike():
    """A held encoder in eval mode computes what torch computes for a frozen one: nothing is promised beyond that."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    x = torch.randn(2, 4, 8)
    padding = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]]).bool()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors", UserWarning)
        expected = encoder.eval().requires_grad_(False)(x, src_key_padding_mask=padding)
        hold = fl.freeze(encoder.train().requires_grad_(True), "")
        encoder.train()
        assert torch.equal(encoder(x, src_key_padding_mask=padding), expected)
    hold.verify()
