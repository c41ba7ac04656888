"""Reptile against its algorithm written with PyTorch's own optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from frostline.errors import MetaError
from frostline.meta import SGD, Examples, Reptile, Task


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).double()


def some_tasks(count: int = 3, shot: int = 5) -> list[Task]:
    generator = torch.Generator().manual_seed(0)

    def examples(each: int) -> Examples:
        x = torch.randn(2 * each, 4, generator=generator, dtype=torch.float64)
        return Examples(x, torch.arange(2).repeat_interleave(each))

    return [Task(examples(shot), examples(2), way=2, index=i, seed=i) for i in range(count)]


def test_the_gradient_is_the_way_back_from_where_adapting_leads() -> None:
    model, tasks = net(), some_tasks()
    learner = Reptile(model, inner_lr=0.01, steps=4)
    batch = learner.backward(tasks, threads=2)
    expected = [torch.zeros_like(p) for p in model.parameters()]
    losses: list[float] = []
    for task in tasks:
        moved = copy.deepcopy(model).train()
        optimizer = torch.optim.Adam(moved.parameters(), lr=0.01, betas=(0.0, 0.999))
        for _ in range(4):
            optimizer.zero_grad()
            functional.cross_entropy(moved(task.support.inputs), task.support.labels).backward()
            optimizer.step()
        losses.append(functional.cross_entropy(moved(task.query.inputs), task.query.labels).item())
        for total, before, after in zip(expected, model.parameters(), moved.parameters(), strict=True):
            total += (before - after).detach() / len(tasks)
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-12)
    assert batch.losses == pytest.approx(losses, rel=1e-9)


def test_an_outer_step_is_the_published_update() -> None:
    model, (task, *_) = net(), some_tasks()
    learner = Reptile(model, inner_lr=0.1, steps=2, inner_optimizer=SGD())
    start = {path: p.detach().clone() for path, p in model.named_parameters()}
    adapted = learner.adapt(task.support, seed=task.seed).values
    learner.backward([task])
    torch.optim.SGD(learner.parameters(), lr=0.25).step()
    for path, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), start[path] + 0.25 * (adapted[path] - start[path]), rtol=1e-12, atol=0)


def test_small_batches_go_through_the_support_set_in_an_order_of_the_tasks_own() -> None:
    learner = Reptile(net(), inner_lr=0.1, steps=4, batch=4)
    choose = learner.batch_of(10, seed=3)
    assert choose is not None
    chosen = [choose(step) for step in range(4)]
    assert all(len(part) == 4 for part in chosen)
    first_round = torch.cat(chosen)[:10]
    assert sorted(first_round.tolist()) == list(range(10))
    again, other = learner.batch_of(10, seed=3), learner.batch_of(10, seed=4)
    assert again is not None
    assert other is not None
    assert torch.equal(again(1), chosen[1])
    assert not torch.equal(torch.cat([other(s) for s in range(4)]), torch.cat(chosen))
    assert torch.equal(choose(4), choose(4))
    assert len(choose(17)) == 4


def test_what_does_not_adapt_is_not_trained() -> None:
    model = net()
    Reptile(model, inner_lr=0.1, adapt="3").backward(some_tasks())
    assert model[0].weight.grad is None
    assert model[3].weight.grad is not None


@pytest.mark.parametrize("policy", ["per_step", "task_norm_l", "batch/task_norm_i"])
def test_policies_with_parameters_of_their_own_cannot_be_learned_by_reptile(policy: str) -> None:
    with pytest.raises(MetaError, match="no gradient to learn them by"):
        Reptile(net(), inner_lr=0.1, policy=policy)


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(MetaError, match="1 or more"):
        Reptile(net(), batch=0)
