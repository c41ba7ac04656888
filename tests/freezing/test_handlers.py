"""State that eval mode does not protect."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.freezing import Handler, KeepTensors, ObserverOff, ObserverPassThrough, RecurrentDropoutOff
from frostline.freezing.handlers import KNOWN, handlers_for, is_lazy, keeps_own_mode


def flipped():
    """An instance norm whose flag was set to False later: it updates its buffers in eval mode, unlike a batch norm."""
    layer = nn.InstanceNorm1d(3, track_running_stats=True)
    layer.track_running_stats = False
    return layer


def quantizer():
    from torch.ao.quantization import FakeQuantize

    return FakeQuantize()


def observer():
    from torch.ao.quantization import MinMaxObserver

    return MinMaxObserver()


CASES = {
    "fake quantizer": (quantizer, ObserverOff(), lambda: torch.randn(4, 3)),
    "observer": (observer, ObserverPassThrough(), lambda: torch.randn(4, 3)),
    "embedding": (lambda: nn.Embedding(9, 3, max_norm=0.5), KeepTensors(), lambda: torch.randint(9, (5,))),
    "embedding bag": (lambda: nn.EmbeddingBag(9, 3, max_norm=0.5), KeepTensors(), lambda: torch.randint(9, (2, 3))),
    "instance norm": (flipped, KeepTensors(), lambda: torch.randn(2, 3, 5)),
}


@pytest.mark.parametrize("name", CASES)
class TestKnownTypes:
    def test_is_recognized(self, name):
        build, handler, _ = CASES[name]
        assert handlers_for(build(), {}) == [handler]
        assert isinstance(handler, Handler)
        assert handler in KNOWN

    def test_eval_mode_by_itself_does_not_hold_it(self, name, bytes_of, moved):
        build, _, inputs = CASES[name]
        layer = build().requires_grad_(False).eval()
        before = bytes_of(layer)
        layer(inputs())
        assert moved(before, bytes_of(layer)) != set()

    def test_a_hold_does(self, name, bytes_of, moved):
        build, _, inputs = CASES[name]
        model = nn.Sequential(build())
        hold = fl.freeze(model, "0")
        before = bytes_of(model)
        for _ in range(3):
            model.train()
            model(inputs())
        assert moved(before, bytes_of(model)) == set()
        hold.verify()

    def test_copies_are_held_and_thaw_brings_all_back(self, name, bytes_of, moved):
        build, _, inputs = CASES[name]
        model = nn.Sequential(build())
        odd = {key: set(m.__dict__) for key, m in model.named_modules()}
        before = bytes_of(model)
        hold = fl.freeze(model, "0")
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            kept = bytes_of(other)
            other.train()(inputs())
            assert moved(kept, bytes_of(other)) == set()
        hold.thaw()
        assert moved(before, bytes_of(model)) == set()
        assert {key: set(m.__dict__) for key, m in model.named_modules()} == odd
        model.train()(inputs())
        assert moved(before, bytes_of(model)) != set()


class TestObserverOff:
    def test_nested_holds_share_it(self):
        model = nn.Sequential(quantizer())
        a, b = fl.freeze(model, "0"), fl.freeze(model, "*")
        assert model[0].observer_enabled == 0
        a.thaw()
        assert model[0].observer_enabled == 0
        b.verify()
        b.thaw()
        assert model[0].observer_enabled == 1

    def test_a_switch_that_was_off_stays_off(self):
        model = nn.Sequential(quantizer())
        model[0].disable_observer()
        fl.freeze(model, "0").thaw()
        assert model[0].observer_enabled == 0

    def test_someone_who_switches_it_on_is_seen(self):
        model = nn.Sequential(quantizer())
        hold = fl.freeze(model, "0")
        model.apply(torch.ao.quantization.enable_observer)
        assert "0.observer_enabled" in hold.diff().paths


class TestKeepTensors:
    def test_the_output_is_that_of_the_kept_values(self):
        model = nn.Sequential(nn.Embedding(9, 3, max_norm=0.5))
        ids = torch.tensor([1, 2, 1])
        fl.freeze(model, "0")
        first = model(ids)
        assert torch.equal(model(ids), first)
        # One rounding of the renormalization, of values below 0.5.
        assert (first.norm(dim=1) <= 0.5 + 1e-6).all()

    def test_the_tensors_are_back_when_forward_raises(self, ungated_codebook):
        model = nn.Sequential(ungated_codebook())
        hold = fl.freeze(model, "0", handlers={ungated_codebook: KeepTensors()})
        buffer = model[0].codes
        with pytest.raises(RuntimeError):
            model(torch.randn(5, 7))
        assert model[0].codes is buffer
        hold.verify()

    def test_at_level_stats_the_affine_part_trains_on(self):
        layer = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
        layer.track_running_stats = False
        model = nn.Sequential(layer)
        hold = fl.freeze(model, "0", level="stats")
        model.train()(torch.randn(2, 3, 5)).square().sum().backward()
        assert layer.weight.grad is not None
        hold.verify()

    def test_gradients_pass_through(self, ungated_codebook):
        model = nn.Sequential(nn.Linear(6, 6), ungated_codebook())
        fl.freeze(model, "1", handlers={ungated_codebook: KeepTensors()})
        model.train()(torch.randn(5, 6)).sum().backward()
        assert model[0].weight.grad is not None

    def test_tensors_of_children_are_kept_too(self, ungated_codebook):
        outer = nn.Sequential(nn.Sequential(ungated_codebook()))
        hold = fl.freeze(outer, "0", handlers={nn.Sequential: KeepTensors()})
        outer.train()(torch.randn(5, 6))
        hold.verify()


class TestRecurrent:
    @pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
    def test_known(self, kind):
        assert handlers_for(kind(2, 2), {}) == [RecurrentDropoutOff()]
        assert keeps_own_mode(kind(2, 2))

    def test_a_forward_of_ones_own_goes_by_the_mode(self, twin):
        class Noisy(nn.LSTM):
            def forward(self, x):
                out = super().forward(x)[0]
                return out + torch.randn_like(out) if self.training else out

        model, x = nn.Sequential(Noisy(3, 4)), torch.randn(5, 2, 3)
        assert not keeps_own_mode(model[0])
        twin.freeze(model, "0")
        expected = model.eval()(x)
        model.train()
        with twin.verdict():
            assert torch.equal(model(x), expected)

    def test_spectral_norm_on_a_recurrent_layer(self, twin, old_spectral_norm, bytes_of, moved):
        model = nn.Sequential(old_spectral_norm(nn.LSTM(5, 6), name="weight_hh_l0"))
        twin.freeze(model, "0")
        before = bytes_of(model)
        model.train()
        model(torch.randn(4, 2, 5))
        with twin.verdict():
            assert moved(before, bytes_of(model)) == set()

    def test_cells_have_no_dropout_and_need_nothing(self):
        assert handlers_for(nn.LSTMCell(2, 2), {}) == []
        assert not keeps_own_mode(nn.LSTMCell(2, 2))


def test_a_handler_given_by_the_user_wins():
    class Mine(KeepTensors):
        pass

    assert handlers_for(nn.LSTM(2, 2), {nn.LSTM: Mine()}) == [Mine()]
    assert handlers_for(nn.Linear(2, 2), {nn.LSTM: Mine()}) == []
    assert Mine() != KeepTensors()


def test_ordinary_layers_need_nothing():
    for layer in (nn.Linear(2, 2), nn.BatchNorm2d(2), nn.Dropout(), nn.Embedding(2, 2), nn.InstanceNorm1d(2)):
        assert handlers_for(layer, {}) == []


def test_lazy():
    assert is_lazy(nn.LazyLinear(2))
    assert is_lazy(nn.LazyBatchNorm1d())
    assert is_lazy(nn.LazyBatchNorm1d(affine=False))
    assert not is_lazy(nn.Linear(2, 2, bias=False))


def test_a_model_prepared_for_quantization_aware_training(bytes_of, moved):
    from torch.ao.quantization import FakeQuantize

    class Prepared(nn.Module):
        """What prepare_qat leaves behind: a fake quantizer below the layer, called by a forward hook."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.linear.activation_post_process = FakeQuantize()
            self.linear.register_forward_hook(lambda module, _, out: module.activation_post_process(out))

        def forward(self, x):
            return self.linear(x)

    model = Prepared()
    model(torch.randn(4, 3))
    hold = fl.freeze(model, "linear")
    before = bytes_of(model)
    model.train()(torch.randn(4, 3) * 9)
    assert moved(before, bytes_of(model)) == set()
    hold.verify()
