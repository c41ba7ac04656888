"""Functional optimizers against PyTorch's classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.errors import MetaError
from frostline.meta import SGD, Adam, functional_form

TORCH: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01),
    "reptile's adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.999)),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("name", TORCH)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 6))
@settings(max_examples=15)
def test_steps_are_those_of_torch(name: str, seed: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 2), (4,))]
    theirs = [p.clone().requires_grad_() for p in start]
    optimizer = TORCH[name](theirs)
    ours, form = list(start), functional_form(optimizer)
    state = form.start(ours)
    for count in range(1, steps + 1):
        grads = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in start]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g
        optimizer.step()
        kept = [p.clone() for p in ours]
        new, state = form.step(ours, grads, state, [0.1, torch.tensor(0.1, dtype=torch.float64)], count)
        assert all(torch.equal(p, k) for p, k in zip(ours, kept, strict=True))
        ours = new
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("form", [SGD(momentum=0.9, nesterov=True, weight_decay=0.1), Adam(weight_decay=0.1)])
def test_two_steps_can_be_differentiated(form: Any) -> None:
    def run(p: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        state, values = form.start([p]), [p]
        for count in (1, 2):
            values, state = form.step(values, [values[0].sin() + 2], state, [rate], count)
        return values[0]

    p = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(run, (p, torch.tensor(0.1, dtype=torch.float64, requires_grad=True)))


def test_a_gradient_that_was_always_zero_does_not_make_adams_derivative_nan() -> None:
    p = torch.tensor([1.0, 2.0], requires_grad=True)
    grads = [p * torch.tensor([0.0, 1.0])]
    (new,), _ = Adam().step([p], grads, Adam().start([p]), [0.1], 1)
    (grad,) = torch.autograd.grad(new.sum(), p)
    assert torch.isfinite(grad).all()
    assert grad[0] == 1
    # The naive way: the root of zero has an infinite derivative.
    v = (p * torch.tensor([0.0, 1.0])).square()
    (naive,) = torch.autograd.grad(((p * torch.tensor([0.0, 1.0])) / (v.sqrt() + 1e-8)).sum(), p)
    assert torch.isnan(naive[0])


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        (torch.optim.LBFGS, "no functional form"),
        (torch.optim.SGD, "no functional form"),
        (torch.optim.RMSprop([torch.zeros(1)]), "RMSprop"),
        (torch.optim.Adam([torch.zeros(1)], amsgrad=True), "amsgrad"),
        (torch.optim.SGD([torch.zeros(1)], lr=1, maximize=True), "maximize"),
        (torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)]}], lr=1), "2 parameter groups"),
        ("rmsprop", "'rmsprop'"),
    ],
)
def test_an_optimizer_without_a_functional_form_is_refused(optimizer: Any, says: str) -> None:
    with pytest.raises(MetaError, match=says):
        functional_form(optimizer)


def test_a_class_of_ones_own_serves() -> None:
    class Signs:
        def start(self, params: Any) -> Any:
            return ()

        def step(self, params: Any, grads: Any, state: Any, rates: Any, count: int) -> Any:
            return [p - r * g.sign() for p, g, r in zip(params, grads, rates, strict=True)], state

    assert isinstance(functional_form(Signs()), Signs)
