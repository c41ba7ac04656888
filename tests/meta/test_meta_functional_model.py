"""A model as a function of its values: exact, without a trace, and open to models of many kinds."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import frostline as fl
from frostline.compat import import_torchvision
from frostline.errors import PolicyError, UnsupportedModel
from frostline.meta.functional_model import FunctionalModel, Pass, governed_layers, own_statistics


def state(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: (id(t), t._version, t.clone()) for name, t in model.state_dict(keep_vars=True).items()
    }
    found |= {f"mode {path}": module.training for path, module in model.named_modules()}
    found |= {f"grad {name}": p.grad for name, p in model.named_parameters()}
    return found


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a[2], b[2]) and a[:2] == b[:2] if isinstance(a, tuple) else a is b

    return one.keys() == two.keys() and all(equal(one[name], two[name]) for name in one)


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 5, num_layers=2, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def models() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    tied = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    tied[2].weight = tied[0].weight
    return {
        "batch norm": (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), torch.randn(5, 6)),
        "tied": (tied, torch.randn(5, 6)),
        "recurrent": (Recurrent(), torch.randn(5, 4, 6)),
        "spectral norm": (nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 3))), torch.randn(5, 6)),
        "weight norm": (nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 3))), torch.randn(5, 6)),
    }


@pytest.mark.parametrize("name", list(models()))
def test_a_pass_with_its_own_values_is_the_models_own_and_leaves_no_trace(name: str):
    model, x = models()[name]
    before = state(model)
    result = FunctionalModel(model)(values_of(model), Pass("batch"), x)
    assert same(before, state(model))
    assert torch.equal(result.output, model(x))


@pytest.mark.parametrize("name", list(models()))
def test_other_values_count_everywhere_and_gradients_reach_them(name: str):
    model, x = models()[name]
    run = FunctionalModel(model)
    other = {path: (p.detach() * 1.5 + 0.1).requires_grad_() for path, p in model.named_parameters()}
    found = run(other, Pass("batch"), x).output
    grads = torch.autograd.grad(found.square().sum(), other.values(), allow_unused=True)
    assert all(g is not None for g in grads)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.copy_(other[path])
    assert torch.equal(found, model(x))


def test_an_error_in_a_pass_leaves_no_trace_either():
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("in the middle")

    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), Fails())
    before, run = state(model), FunctionalModel(model)
    for _ in range(2):
        with pytest.raises(ValueError, match="in the middle"):
            run(values_of(model), Pass("batch", observe="values"), torch.randn(5, 6))
    assert same(before, state(model))
    # What the failed pass met is not told by the next.
    short = nn.Sequential(nn.Linear(6, 4))
    assert FunctionalModel(short)(values_of(short), Pass("batch", observe="values"), torch.randn(5, 6)).observed == {}


def test_buffers_go_in_as_values_and_come_out_as_new_ones():
    model, x = models()["spectral norm"]
    run = FunctionalModel(model)
    start = dict(run.buffers)
    copies = {name: value.clone() for name, value in start.items()}
    first = run(values_of(model), Pass("batch"), x, start)
    second = run(values_of(model), Pass("batch"), x, first.buffers)
    assert start
    assert all(torch.equal(start[name], copies[name]) for name in start)
    assert any(not torch.equal(first.buffers[name], start[name]) for name in start)
    assert any(not torch.equal(second.buffers[name], first.buffers[name]) for name in start)


def test_a_held_layer_keeps_its_own_statistics():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    x = torch.randn(5, 6)
    fl.freeze(model, "1")
    assert list(governed_layers(model)) == ["2"]
    result = FunctionalModel(model)(values_of(model), Pass("batch", observe="values"), x)
    assert list(result.observed) == ["2"]
    assert torch.equal(result.output, model(x))


def test_a_batch_norm_with_an_activation_of_its_own_is_governed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    norm = layers.BatchNormAct2d(4)
    model, x = nn.Sequential(nn.Conv2d(1, 4, 3), norm), torch.randn(3, 1, 6, 6)
    found = FunctionalModel(model)(values_of(model), Pass("batch", observe="values"), x)
    assert torch.allclose(found.output, model.train()(x), atol=1e-6)
    assert (found.output >= 0).all()
    assert list(found.observed) == ["1"]
    given = {"1": own_statistics(norm)}
    assert torch.allclose(
        FunctionalModel(model)(values_of(model), Pass("given", given=given), x).output, model.eval()(x), atol=1e-6
    )


def test_one_value_per_channel_and_an_empty_batch_are_refused():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    run = FunctionalModel(model)
    with pytest.raises(PolicyError, match="one value per channel"):
        run(values_of(model), Pass("batch"), torch.randn(1, 6))
    with pytest.raises(PolicyError, match="empty batch"):
        run(values_of(model), Pass("batch"), torch.randn(0, 6))


def test_lazy_models_are_refused_by_name():
    with pytest.raises(UnsupportedModel, match=r"lazy layers[\s\S]*0\.weight"):
        FunctionalModel(nn.Sequential(nn.LazyLinear(3)))


def test_two_copies_do_not_disturb_each_other_in_the_middle_of_a_pass():
    model, x = models()["batch norm"]
    outer, inner = FunctionalModel(model), FunctionalModel(model)
    values = values_of(model)
    alone = outer(values, Pass("batch", observe="values"), x)
    expected = inner(values, Pass("instance" if x.ndim > 2 else "layer"), x).output

    found: list[Tensor] = []
    hooked = nn.Sequential(*model)
    hooked[0].register_forward_hook(lambda *_: found.append(inner(values, Pass("layer"), x).output))
    with_other = FunctionalModel(hooked)(values, Pass("batch", observe="values"), x)
    assert torch.equal(with_other.output, alone.output)
    assert torch.equal(found[0], expected)
    assert torch.equal(with_other.observed["1"].mean, alone.observed["1"].mean)
