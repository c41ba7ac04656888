"""Blocks are found where they are what they seem, and a model with them computes what it computes without."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import frostline as fl
from frostline.meta import conv_blocks
from frostline.meta.conv_blocks import sequences_of
from frostline.meta.functional_model import FunctionalModel, Pass, governed_layers

WIDE = 16


def block(ways_in: int = 1, width: int = WIDE, bias: bool = True) -> list[nn.Module]:
    return [nn.Conv2d(ways_in, width, 3, padding=1, bias=bias), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]


def places(model: nn.Module) -> list[list[int]]:
    return [list(blocks) for _, blocks in sequences_of(model, governed_layers(model))]


def net(width: int = WIDE) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *block(1, width), nn.Sequential(*block(width, width)), nn.Flatten(), nn.Linear(4 * width, 3)
    ).double()


def test_blocks_are_found_in_sequences_at_any_depth():
    assert places(net()) == [[1], [1]]
    assert places(nn.Sequential(*block(), *block(WIDE))) == [[1, 5]]


def _hooked(parts: list[nn.Module]) -> None:
    parts[2].register_forward_hook(lambda *_: None)


def _own_forward(parts: list[nn.Module]) -> None:
    parts[3].forward = parts[3].forward


def _indices(parts: list[nn.Module]) -> None:
    parts[3] = nn.MaxPool2d(2, return_indices=True)


def _no_weight(parts: list[nn.Module]) -> None:
    parts[1] = nn.BatchNorm2d(WIDE, affine=False)


def _leaky(parts: list[nn.Module]) -> None:
    parts[2] = nn.LeakyReLU()


class _OwnNorm(nn.BatchNorm2d):
    pass


def _subclass(parts: list[nn.Module]) -> None:
    parts[1] = _OwnNorm(WIDE)


@pytest.mark.parametrize("change", [_hooked, _own_forward, _indices, _no_weight, _leaky, _subclass])
def test_what_is_no_plain_block_is_left_alone(change: Callable[[list[nn.Module]], None]):
    parts = block()
    change(parts)
    assert places(nn.Sequential(*parts)) == []


def test_a_sequence_with_a_forward_of_its_own_and_a_held_norm_are_left_alone():
    class Twice(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return super().forward(input) * 2

    assert places(Twice(*block())) == []
    held = nn.Sequential(*block())
    fl.freeze(held, "1")
    assert places(held) == []


def gradients(
    model: nn.Module, x: Tensor, settings: Pass, monkeypatch: pytest.MonkeyPatch, *, fused: bool
) -> list[Tensor]:
    if not fused:
        monkeypatch.setattr("frostline.meta.functional_model.sequences_of", lambda *_: [])
    values = dict(model.named_parameters())
    result = FunctionalModel(model)(values, settings, x)
    monkeypatch.undo()
    loss = functional.cross_entropy(result.output, torch.arange(len(x)) % 3)
    if settings.once:
        second = []
    else:
        grads = torch.autograd.grad(loss, values.values(), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), values.values(), allow_unused=True)
    first = torch.autograd.grad(
        functional.cross_entropy(FunctionalModel(model)(values, settings, x).output, torch.arange(len(x)) % 3),
        values.values(),
    )
    seen = [t for path in sorted(result.observed) for t in (result.observed[path].mean, result.observed[path].var)]
    return [result.output, *first, *(g for g in second if g is not None), *seen]


def _plain(model: nn.Sequential) -> None:
    pass


def _turned(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[1].weight[3] = -0.5


@pytest.mark.parametrize("prepare", [_plain, _turned])
@pytest.mark.parametrize("once", [False, True])
def test_a_model_with_blocks_computes_what_it_computes_without(
    prepare: Callable[[nn.Sequential], None], once: bool, monkeypatch: pytest.MonkeyPatch
):
    model = net()
    prepare(model)
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = copy.deepcopy(model.state_dict())
    settings = Pass("batch", observe="values", once=once)
    fused, plain = (gradients(model, x, settings, monkeypatch, fused=how) for how in (True, False))
    assert len(fused) == len(plain)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(fused, plain, strict=True))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def _ran(model: nn.Module, x: Tensor, settings: Pass, monkeypatch: pytest.MonkeyPatch) -> int:
    ran: list[int] = []
    real = conv_blocks.normalized_and_pooled
    monkeypatch.setattr(conv_blocks, "normalized_and_pooled", lambda *a, **k: ran.append(1) or real(*a, **k))
    FunctionalModel(model)(dict(model.named_parameters()), settings, x)
    return len(ran)


def test_blocks_run_as_one_where_they_may(monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    assert _ran(net(), x, Pass("batch"), monkeypatch) == 2


def test_blocks_run_one_by_one_where_they_have_to(monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    assert _ran(net(width=8), x, Pass("batch"), monkeypatch) == 0
    assert _ran(net(), x, Pass("batch", observe="graph"), monkeypatch) == 0
    assert _ran(net(), x, Pass("instance"), monkeypatch) == 0
    assert _ran(net().bfloat16(), x.bfloat16(), Pass("batch"), monkeypatch) == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _ran(net().float(), x.float(), Pass("batch"), monkeypatch) == 0
    turned = net()
    _turned(turned)
    assert _ran(turned, x, Pass("batch"), monkeypatch) == 1


def test_an_output_that_a_hook_has_seen_is_not_written_to():
    model = net()
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    values = dict(model.named_parameters())
    run = FunctionalModel(model)
    loss = run(values, Pass("batch", once=True), x).output.square().sum()
    kept = next(m for m in run._model.modules() if isinstance(m, nn.Conv2d))
    assert kept._forward_hooks
    before = seen[0].detach().clone()
    torch.autograd.grad(loss, values.values())
    assert torch.equal(seen[0], before)
