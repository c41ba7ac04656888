"""Normalizing with statistics as values, against PyTorch's batch norm and formulas written out, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from frostline.meta.normalizing import (
    LayerStatistics,
    normalized_by,
    normalized_by_batch,
    normalized_by_sample,
    normalized_by_task,
    of_batch,
)

EPS = 1e-5
SHAPES = [(5, 3), (4, 3, 6), (4, 3, 4, 5), (2, 3, 2, 3, 2)]


def some(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 1
    weight, bias = torch.randn(2, shape[1], generator=generator, dtype=torch.float64)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("observe", [False, True])
def test_a_batch_is_normalized_as_by_pytorch_with_both_derivatives(shape: tuple[int, ...], observe: bool):
    values = some(shape)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return normalized_by_batch(x, weight, bias, EPS, observe=observe)[0]

    def by_values(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return normalized_by(x, of_batch(x), weight, bias, EPS)

    def torchs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.batch_norm(x, None, None, weight, bias, True, 0.0, EPS)

    direction = torch.linspace(-1, 1, values[0].numel(), dtype=torch.float64).view(shape)
    found: list[list[Tensor]] = []
    for form in (torchs, ours, by_values):
        y = form(*values)
        first = torch.autograd.grad((y * direction).sum(), values, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), values[:2])
        found.append([y, *first, *second])
    for form in found[1:]:
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(form, found[0], strict=True))


def test_second_derivatives_agree_with_finite_differences():
    x, weight, bias = some((3, 2, 2))
    form = lambda x, weight, bias: normalized_by(x, of_batch(x), weight, bias, EPS)  # noqa: E731
    small = [x, weight.detach()[:2].requires_grad_(), bias.detach()[:2].requires_grad_()]
    assert torch.autograd.gradgradcheck(form, small)


@pytest.mark.parametrize("shape", SHAPES)
def test_observed_statistics_are_the_batchs_and_have_no_graph(shape: tuple[int, ...]):
    x, weight, bias = some(shape)
    seen = normalized_by_batch(x, weight, bias, EPS, observe=True)[1]
    assert seen is not None
    var, mean = torch.var_mean(x.detach(), [d for d in range(x.ndim) if d != 1], correction=0)
    assert torch.allclose(seen.mean, mean, rtol=1e-12)
    assert torch.allclose(seen.var, var, rtol=1e-12)
    assert seen.count == x.numel() // 3
    assert not seen.mean.requires_grad
    assert torch.allclose(seen.unbiased, x.detach().transpose(0, 1).flatten(1).var(1), rtol=1e-12)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_merged_statistics_are_those_of_both_batches_together(one: int, two: int, seed: int):
    x = torch.randn(one + two, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    merged, whole = of_batch(x[:one]).merged(of_batch(x[one:])), of_batch(x)
    assert torch.allclose(merged.mean, whole.mean, rtol=1e-9, atol=1e-12)
    assert torch.allclose(merged.var, whole.var, rtol=1e-9, atol=1e-12)
    assert merged.count == whole.count


@pytest.mark.parametrize("over_channels", [False, True])
def test_each_sample_by_itself_is_instance_norm_or_layer_norm(over_channels: bool):
    x, weight, bias = some((4, 3, 4, 5))
    expected = (
        functional.group_norm(x, 1, weight, bias, EPS)
        if over_channels
        else functional.instance_norm(x, weight=weight, bias=bias, eps=EPS)
    )
    assert torch.allclose(normalized_by_sample(x, weight, bias, EPS, over_channels=over_channels), expected, rtol=1e-10)


@pytest.mark.parametrize("over_channels", [False, True])
def test_task_norm_has_its_ends_in_the_context_and_in_the_sample(over_channels: bool):
    x, weight, bias = some((4, 3, 4, 5))
    context = of_batch(torch.randn(6, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))
    by_context, by_sample = (
        normalized_by_task(
            x, context, torch.tensor(share, dtype=torch.float64), weight, bias, EPS, over_channels=over_channels
        )
        for share in (1.0, 0.0)
    )
    assert torch.allclose(by_context, normalized_by(x, context, weight, bias, EPS), rtol=1e-9, atol=1e-11)
    assert torch.allclose(by_sample, normalized_by_sample(x, weight, bias, EPS, over_channels=over_channels), rtol=1e-9)


def test_half_precision_is_averaged_in_float32():
    x = torch.full((4096, 1), 3.0, dtype=torch.bfloat16)
    x[::2] = 1.0
    assert of_batch(x).mean.item() == 2.0
    assert of_batch(x).var.item() == 1.0
    y = normalized_by(x, LayerStatistics(torch.tensor([2.0]), torch.tensor([1.0])), None, None, 0.0)
    assert y.dtype == torch.bfloat16
    assert y.unique().tolist() == [-1.0, 1.0]
