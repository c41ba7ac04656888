"""What is computed again gives the same gradient to the bit, and holds nothing in the meantime."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.errors import MetaError
from frostline.meta.recomputed import recomputed

CPU = torch.device("cpu")
Work = Callable[[], Tensor]


def inner_step(net: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """A weight moved by a gradient, through which a gradient can go."""
    loss = functional.linear(net(x), weight).square().sum()
    [grad] = torch.autograd.grad(loss, [weight], create_graph=True)
    return weight - 0.1 * grad


def chain(again: bool, net: nn.Module, steps: int = 3) -> list[Tensor]:
    torch.manual_seed(3)
    weight = torch.randn(2, 4).requires_grad_()
    x, now = torch.randn(5, 4), weight
    for _ in range(steps):
        work = partial(inner_step, net, now, x)
        now = recomputed(work, CPU) if again else work()
    return list(torch.autograd.grad(now.square().sum(), [weight, *net.parameters()]))


@pytest.mark.parametrize("last", [nn.Tanh(), nn.SiLU(), nn.Dropout(0.5), nn.LayerNorm(4)])
def test_the_gradient_is_the_same_to_the_bit(last: nn.Module):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), last)
    assert all(torch.equal(a, b) for a, b in zip(chain(False, net), chain(True, net), strict=True))


def test_random_numbers_go_on_as_they_would_have():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    states = []
    for again in (False, True):
        chain(again, net)
        states.append(torch.default_generator.get_state())
    assert torch.equal(*states)


def test_it_is_computed_twice_and_not_three_times():
    calls: list[int] = []
    weight = torch.ones(2, 4, requires_grad=True)

    def work() -> Tensor:
        calls.append(1)
        return inner_step(nn.Identity(), weight, torch.ones(3, 4))

    made = recomputed(work, CPU)
    assert len(calls) == 1
    made.sum().backward()
    assert len(calls) == 2


def test_a_second_backward_pass_makes_it_a_third_time():
    weight = torch.ones(2, 4, requires_grad=True)
    made = recomputed(lambda: weight.exp() * weight, CPU).sum()
    first, second = (torch.autograd.grad(made, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_what_is_inside_is_let_go_before_and_after_the_backward_pass():
    inside: list[weakref.ref[Tensor]] = []
    weight = torch.ones(3, requires_grad=True)

    def work() -> Tensor:
        middle = weight.exp()
        inside.append(weakref.ref(middle))
        return middle.sin() * middle

    kept = work()
    assert inside.pop()() is not None, "the twin: a plain graph holds on to it"
    del kept
    made = recomputed(work, CPU).sum()
    assert inside[0]() is None
    made.backward()
    assert all(reference() is None for reference in inside)


def test_work_that_is_not_the_same_each_time_is_found_out():
    calls: list[int] = []
    weight = torch.ones(3, requires_grad=True)

    def work() -> Tensor:
        calls.append(1)
        return weight.exp().sin() if len(calls) == 1 else weight.exp()

    made = recomputed(work, CPU).sum()
    with pytest.raises(MetaError, match="computed again kept 1 values for the gradient, and 2 at first"):
        made.backward()


def test_autocast_is_that_of_the_first_time():
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def gradient(again: bool) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = (
                recomputed(lambda: (weight @ weight).float().sin(), CPU) if again else (weight @ weight).float().sin()
            )
        return torch.autograd.grad(made.sum(), weight)[0]

    assert torch.equal(gradient(False), gradient(True))


def test_the_compiler_is_not_imported():
    code = (
        "import sys, torch\nfrom frostline.meta.recomputed import recomputed\n"
        "x = torch.ones(1, requires_grad=True)\nrecomputed(lambda: x.exp(), torch.device('cpu')).backward()\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
