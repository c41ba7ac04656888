"""The probe: a trial run that finds what types do not tell, and leaves no trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import CannotFreeze
from frostline.freezing import KeepTensors


class Counter(nn.Module):
    """Counts its calls in every mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return x


class AlwaysDrops(nn.Module):
    """The mistake: F.dropout drops by default, whatever the mode."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5)


class Caches(nn.Module):
    """Registers a buffer in its first forward."""

    def forward(self, x):
        self.register_buffer("cache", x.detach().clone(), persistent=False)
        return x


@pytest.fixture
def x():
    return torch.randn(8, 3)


def test_what_writes_in_every_mode_is_refused_by_name(x):
    model = nn.Sequential(nn.Linear(3, 3), Counter())
    with pytest.raises(CannotFreeze) as caught:
        fl.freeze(model, "*", probe=x)
    assert str(caught.value) == (
        "freeze(probe=...): in a trial run 1 entries that should be held moved, because their modules write them in "
        "forward whatever their mode.\n"
        "  where: 1.calls (Counter)\n"
        "  fix: freeze(..., handlers={Counter: KeepTensors()}), from frostline.freezing"
    )
    fl.freeze(model, "*", probe=x, handlers={Counter: KeepTensors()}).verify()
    assert model[1].calls == 0


def test_without_the_probe_only_verify_finds_it(x):
    model = nn.Sequential(nn.Linear(3, 3), Counter())
    hold = fl.freeze(model, "*")
    model(x)
    assert hold.diff().paths == ["1.calls"]


def test_what_is_not_held_may_move(x):
    model = nn.Sequential(nn.Linear(3, 3), Counter())
    fl.freeze(model, "0", probe=x).verify()


def test_randomness_in_a_held_part_is_a_finding(x):
    model = nn.Sequential(nn.Linear(3, 3), AlwaysDrops(), nn.Dropout())
    hold = fl.freeze(model, "1", "2", probe=x)
    assert [(f.code, f.where) for f in hold.findings] == [("M205", "1")]
    assert "'1' is held, yet gives different results for the same input" in str(hold)


def test_randomness_outside_is_none_of_its_business(x):
    model = nn.Sequential(nn.Dropout(), nn.Linear(3, 3))
    assert fl.freeze(model, "1", probe=x).findings == []


def test_everything_is_put_back(x, bytes_of):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), Counter(), Caches())
    model[2].eval()
    model[1].weight.grad = grad = torch.ones(3)
    before = bytes_of(model)
    modes = [m.training for m in model.modules()]
    buffers = {p: id(b) for p, b in model.named_buffers()}
    versions = [p._version for p in model.parameters()]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    hold = fl.freeze(model, "0", probe=x)
    assert bytes_of(model) == before
    assert {p: id(b) for p, b in model.named_buffers()} == buffers
    assert [p._version for p in model.parameters()] == versions
    assert model[1].weight.grad is grad
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == generators[1:]
    assert not any(m._forward_hooks for m in model.modules())
    hold.thaw()
    assert [m.training for m in model.modules()] == modes


def test_a_graph_that_waits_for_its_backward_pass_stays_valid(x):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    loss = model(x).sum()
    fl.freeze(model, "0", probe=x)
    loss.backward()
    assert model[2].weight.grad is not None


@pytest.mark.parametrize("form", ["tensor", "tuple", "list", "mapping"])
def test_forms_of_input(form, x):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, a, b=None):
            return {"sum": self.norm(a) + (0 if b is None else b), "nested": [(a, "word", 1)]}

    given = {"tensor": x, "tuple": (x, x), "list": [x], "mapping": {"a": x, "b": x}}[form]
    model = Two()
    hold = fl.freeze(model, "norm", probe=given)
    assert hold.findings == []
    assert model.norm.num_batches_tracked == 0


def test_the_model_is_run_in_train_mode_and_user_hooks_see_it(x):
    seen = []
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    model.register_forward_pre_hook(lambda module, _: seen.append((module.training, torch.is_grad_enabled())))
    model.eval()
    fl.freeze(model, "0", probe=x)
    assert seen == [(True, False)] * 2
    assert not model.training


@pytest.mark.parametrize("level", ["stats", "grad"])
def test_other_levels_do_not_promise_equal_outputs(x, level):
    model = nn.Sequential(nn.BatchNorm1d(3), AlwaysDrops())
    assert fl.freeze(model, "*", level=level, probe=x).findings == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: the probe's CUDA generators need a CUDA device")
def test_generators_of_cuda_come_back(x):
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).cuda()
    before = torch.cuda.get_rng_state()
    fl.freeze(model, "0", probe=x.cuda())
    assert torch.equal(torch.cuda.get_rng_state(), before)
