"""Everything is as before, whatever the block, the model in it or an exception did."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import NoStatistics
from frostline.norms.untouched import random_state_kept, untouched


class Writes(nn.Module):
    """Does in eval mode, too, what a codebook, a cache or a careless model does to its own state."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.randn(3, 2))
        self.register_buffer("zero", torch.zeros(2))
        self.register_buffer("nan", torch.full((2,), float("nan")))
        self.register_buffer("low", torch.ones(2, dtype=torch.bfloat16))
        self.register_buffer("flag", torch.tensor(False), persistent=False)
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("rebound", torch.ones(2))
        self.register_buffer("moved", torch.ones(2, 3).t())
        self.register_buffer("dropped", torch.ones(2))
        self.register_buffer("cache", None)
        self.calls = 0
        self.norm = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))

    def forward(self, x):
        self.calls += 1
        self.codes.add_(1)
        self.zero.neg_()
        self.nan.fill_(0)
        self.low.add_(1)
        self.flag.fill_(True)
        self.count += 1
        self.rebound = torch.zeros(2)
        self.moved.data = torch.zeros(4)
        self.dropped = None
        self.cache = torch.ones(1)
        self.register_buffer("table", torch.ones(1), persistent=False)
        self.fresh = 3
        self.train(not self.training)
        self.norm.train()
        return self.norm(x)


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).clone()


class Photo:
    """What a model was, in a way that shares no code with what is tested."""

    def __init__(self, model):
        self.model = model
        self.modes = {path: m.training for path, m in model.named_modules()}
        self.buffers = {(path, name): b for path, m in model.named_modules() for name, b in m._buffers.items()}
        self.bits = {key: None if b is None else bits(b) for key, b in self.buffers.items()}
        self.places = {k: None if b is None else (b.data_ptr(), b.shape, b.stride()) for k, b in self.buffers.items()}
        self.keys = list(model.state_dict())
        self.attributes = {
            path: {n: v for n, v in m.__dict__.items() if isinstance(v, (int, float, str, bool, type(None)))}
            for path, m in model.named_modules()
        }
        self.hooks = self._hooks()
        self.random = (torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())

    def _hooks(self):
        return {
            (path, table): list(hooks)
            for path, m in self.model.named_modules()
            for table, hooks in m.__dict__.items()
            if table.endswith("_hooks") or "hooks_with" in table
        }

    def differences(self):
        now = Photo(self.model)
        found = [name for name in ("modes", "keys", "attributes", "hooks") if getattr(now, name) != getattr(self, name)]
        if list(now.buffers) != list(self.buffers):
            return [*found, "buffer names"]
        found += [f"{key} is another tensor" for key, b in self.buffers.items() if now.buffers[key] is not b]
        found += [f"{key} lies elsewhere" for key, place in self.places.items() if now.places[key] != place]
        found += [
            f"{key} changed" for key, b in self.bits.items() if b is not None and not torch.equal(now.bits[key], b)
        ]
        torch_state, numpy_state, python_state = self.random
        found += ["torch"] if not torch.equal(now.random[0], torch_state) else []
        return [
            *found,
            *(["numpy"] if now.random[1] != numpy_state else []),
            *(["python"] if now.random[2] != python_state else []),
        ]


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), Writes(), nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)))
    model.train()
    model[1].eval()
    model[3][0].eval()  # mixed, as when part of a model is frozen by hand
    model[0].register_forward_hook(lambda *_: None)
    return model


def disturb(model):
    model(torch.randn(4, 2))
    model[0].running_mean.fill_(7)
    model[0].momentum = 1.0
    model[0].track_running_stats = False
    np.random.rand()
    random.random()


def test_what_is_done_does_change_the_model():
    model = build()
    photo = Photo(model)
    disturb(model)
    assert {"modes", "attributes", "keys", "buffer names"} <= set(photo.differences())


@pytest.mark.parametrize("ends", ["well", "error", "interrupt"])
def test_everything_is_as_before(ends):
    model = build()
    photo = Photo(model)
    error = {"well": None, "error": ValueError, "interrupt": KeyboardInterrupt}[ends]
    try:
        with untouched(model) as root:
            assert root is model
            assert not any(m.training for m in root.modules())
            assert not torch.is_grad_enabled()
            disturb(root)
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        assert error is not None
    assert photo.differences() == []
    assert torch.is_grad_enabled()


def test_the_photo_sees_what_torch_s_own_way_leaves_behind():
    """`torch.optim.swa_utils.update_bn`: mixed modes are lost, the generators moved."""
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).train()
    model[1].eval()
    model.eval()[0].train()
    photo = Photo(model)
    torch.optim.swa_utils.update_bn([torch.randn(4, 2)], model)
    assert "modes" in photo.differences()


def test_wrappers_are_looked_through():
    model = build()
    with untouched(nn.DataParallel(model)) as root:
        assert root is model


def test_a_hard_hold_stays():
    model = build()
    hold = fl.freeze(model, "3", lock="hard")
    kind = type(model[3])
    with untouched(model) as root:
        root(torch.randn(4, 2))
    assert type(model[3]) is kind
    hold.verify()
    assert model[0].training


def test_a_buffer_that_did_not_move_is_not_written():
    """A write would make a backward pass fail that still needs the buffer."""
    layer = nn.BatchNorm1d(2).eval()
    loss = layer(torch.randn(4, 2, requires_grad=True)).sum()
    version = layer.running_mean._version
    with untouched(layer) as root:
        root(torch.randn(4, 2))
    assert layer.running_mean._version == version
    loss.backward()


class TestOddBuffers:
    def test_meta(self):
        model = nn.BatchNorm1d(2, device="meta")
        with untouched(model):
            pass

    def test_sparse(self):
        model = nn.Module()
        with torch.sparse.check_sparse_tensor_invariants():
            buffer = torch.sparse_coo_tensor([[0]], [1.0], (3,)).coalesce()
        model.register_buffer("b", buffer)
        with untouched(model):
            model.b.mul_(2)
        assert model.b is buffer
        assert model.b.to_dense().tolist() == [1, 0, 0]

    def test_float8_and_bool_and_complex(self):
        for dtype in (torch.float8_e4m3fn, torch.bool, torch.complex64):
            model = nn.Module()
            model.register_buffer("b", torch.ones(3).to(dtype))
            with untouched(model):
                model.b.copy_(torch.zeros(3).to(dtype))
            assert model.b.to(torch.float32 if dtype != torch.complex64 else dtype).tolist() == [1, 1, 1]

    def test_shared(self):
        model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
        model[1].running_mean = model[0].running_mean
        with untouched(model):
            model[0].running_mean.add_(1)
            model[1].running_mean.add_(1)
        assert model[1].running_mean is model[0].running_mean
        assert model[0].running_mean.tolist() == [0, 0]


@pytest.mark.parametrize("part", [nn.LazyBatchNorm1d, lambda: nn.LazyLinear(2)])
def test_lazy_parts_are_refused_before_anything_happens(part):
    model = nn.Sequential(nn.Linear(2, 2), part())
    with pytest.raises(NoStatistics, match=r"'1' \(Lazy(.|\n)*fix: run the model once"), untouched(model):
        pytest.fail("the block must not run")
    assert model[1].training


def test_random_state():
    photo = Photo(nn.Identity())
    with random_state_kept():
        first = torch.rand(2), np.random.rand(), random.random()
    assert photo.differences() == []
    with pytest.raises(ValueError), random_state_kept():  # noqa: PT011
        assert torch.equal(torch.rand(2), first[0])
        assert (np.random.rand(), random.random()) == first[1:]
        raise ValueError
    assert photo.differences() == []
