"""Batch norm, ReLU and pooling in one: the same as PyTorch's three operators, with all derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from frostline.errors import MetaError
from frostline.meta.pooled_norm import Pool, can_pool_first, normalized_and_pooled

EPS = 1e-5
PLAIN = Pool([2, 2], [2, 2], [0, 0], [1, 1], False)
POOLS = {
    "two by two": PLAIN,
    "overlapping, padded": Pool([3, 3], [2, 2], [1, 1], [1, 1], False),
    "rounded up": Pool([2, 2], [2, 2], [0, 0], [1, 1], True),
    "dilated": Pool([2, 2], [1, 2], [0, 0], [2, 2], False),
}
Block = Callable[[Tensor, Tensor, Tensor], Tensor]


def stock(pool: Pool) -> Block:
    def block(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = functional.relu(functional.batch_norm(x, None, None, weight, bias, True, 0.0, EPS))
        return functional.max_pool2d(y, *pool)

    return block


def ours(pool: Pool, *, consume: bool = False) -> Block:
    # What is consumed has to be nobody else's.
    return lambda x, weight, bias: normalized_and_pooled(
        x * 1 if consume else x, weight, bias, EPS, pool, consume=consume
    )[0]


def some(dtype: torch.dtype = torch.float64, batch: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, 7, 6, generator=generator, dtype=dtype) * 2 + 0.5
    weight = torch.rand(4, generator=generator, dtype=dtype) + 0.5
    bias = torch.randn(4, generator=generator, dtype=dtype)
    return [value.requires_grad_() for value in (x, weight, bias)]


def derivatives(block: Block, values: list[Tensor]) -> list[Tensor]:
    """The result, its gradients, and the gradients of a number made of these."""
    z = block(*values)
    direction = torch.linspace(-1, 2, z.numel(), dtype=z.dtype).view(z.shape).requires_grad_()
    first = torch.autograd.grad((z * direction).sum(), values, create_graph=True)
    number = sum(
        ((torch.arange(g.numel(), dtype=g.dtype).sin().view(g.shape) * g).sum() for g in first), z.new_zeros(())
    )
    return [z, *first, *torch.autograd.grad(number, [*values[:2], direction])]


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_both_derivatives_are_those_of_three_operators(name: str, layout: torch.memory_format):
    x, weight, bias = some()
    values = [x.detach().contiguous(memory_format=layout).requires_grad_(), weight, bias]
    for found, expected in zip(
        derivatives(ours(POOLS[name]), values), derivatives(stock(POOLS[name]), values), strict=True
    ):
        assert torch.allclose(found, expected, rtol=1e-11, atol=1e-11)


def test_derivatives_agree_with_finite_differences():
    x, weight, bias = some()
    small = [
        x.detach()[:2, :2, :4, :4].clone().requires_grad_(),
        *(v.detach()[:2].clone().requires_grad_() for v in (weight, bias)),
    ]
    assert torch.autograd.gradcheck(ours(PLAIN), small)
    assert torch.autograd.gradgradcheck(ours(PLAIN), small)


@pytest.mark.parametrize("name", POOLS)
def test_a_consumed_input_gives_the_same_gradient(name: str):
    values = some(batch=5)
    direction = torch.randn(1, dtype=torch.float64)
    kept, used = (
        torch.autograd.grad((block(*values) * direction).square().sum(), values)
        for block in (ours(POOLS[name]), ours(POOLS[name], consume=True))
    )
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(kept, used, strict=True))


def test_many_pieces_give_what_one_gives(monkeypatch: pytest.MonkeyPatch):
    values = some(batch=7)
    whole = [torch.autograd.grad(ours(PLAIN, consume=c)(*values).square().sum(), values) for c in (False, True)]
    monkeypatch.setattr("frostline.meta.pooled_norm._PIECE", 7 * 6 * 4 * 2)
    for consume, expected in zip((False, True), whole, strict=True):
        found = torch.autograd.grad(ours(PLAIN, consume=consume)(*values).square().sum(), values)
        assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(found, expected, strict=True))


def test_a_consumed_input_cannot_be_differentiated_again():
    values = some()
    z = ours(PLAIN, consume=True)(*values).sum()
    torch.autograd.grad(z, values, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(z, values)
    with pytest.raises(MetaError, match="create_graph=True"):
        torch.autograd.grad(ours(PLAIN, consume=True)(*values).sum(), values, create_graph=True)


def test_a_third_derivative_raises():
    values = some()
    [first] = torch.autograd.grad(ours(PLAIN)(*values).square().sum(), values[:1], create_graph=True)
    with pytest.raises(MetaError, match="no third derivative"):
        torch.autograd.grad(first.square().sum(), values[:1], create_graph=True)


def test_the_statistics_are_those_of_the_batch():
    x, weight, bias = some()
    seen = normalized_and_pooled(x, weight, bias, EPS, PLAIN)[1]
    var, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
    assert torch.allclose(seen.mean, mean, rtol=1e-12)
    assert torch.allclose(seen.var, var, rtol=1e-12)
    assert seen.count == 3 * 7 * 6
    assert not seen.mean.requires_grad
    assert not seen.var.requires_grad


def test_sums_in_float32_are_as_exact_as_those_of_the_plain_layout():
    x = torch.randn(50, 4, 28, 28, generator=torch.Generator().manual_seed(0)) + 1
    x = x.contiguous(memory_format=torch.channels_last)
    seen = normalized_and_pooled(x, torch.ones(4), torch.zeros(4), EPS, PLAIN)[1]
    exact = x.double().mean((0, 2, 3))
    error = (seen.mean - exact).abs().max()
    # Float32 has a relative spacing of 1.2e-7. PyTorch's sums in this layout are the twin that fails.
    assert error < 3e-7
    naive, _ = torch.batch_norm_update_stats(x, None, None, 0.0)
    assert (naive - exact).abs().max() > 3 * error


def test_numbers_that_are_not_finite_are_handed_on():
    x, weight, bias = some()
    broken = x.detach().clone()
    broken[0, 1, 0, 0] = float("nan")
    z = ours(PLAIN)(broken, weight, bias)
    assert z[:, 1].isnan().all()
    assert not z[:, 0].isnan().any()


def test_pooling_comes_first_only_where_every_weight_is_larger_than_zero():
    assert can_pool_first(torch.tensor([1e-30, 2.0]))
    assert not any(can_pool_first(torch.tensor([1.0, bad])) for bad in (0.0, -1.0, float("nan")))
    x, weight, bias = some()
    turned = weight.detach() * torch.tensor([1, -1, 1, 1])
    assert not torch.allclose(ours(PLAIN)(x, turned, bias), stock(PLAIN)(x, turned, bias))
