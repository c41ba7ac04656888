"""Prototypical networks against the published equations written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from frostline import meta
from frostline.errors import MetaError
from frostline.meta import Examples, Prototypes, Task


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Tanh()).double()


def some_tasks(count: int = 3) -> list[Task]:
    generator = torch.Generator().manual_seed(0)

    def examples(each: int) -> Examples:
        x = torch.randn(3 * each, 1, 4, 4, generator=generator, dtype=torch.float64)
        return Examples(x, torch.arange(3).repeat_interleave(each))

    return [Task(examples(2), examples(4), way=3, seed=i) for i in range(count)]


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_loss_gradient_and_scores_are_those_of_the_equations(distance: str) -> None:
    model, tasks = net().train(), some_tasks()
    learner = Prototypes(model, distance=distance, scale=2.0)  # type: ignore[arg-type]
    batch = learner.backward(tasks)
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    losses: list[torch.Tensor] = []
    for task in tasks:
        support, query = (model(part.inputs).flatten(1) for part in (task.support, task.query))
        prototypes = torch.stack([support[task.support.labels == label].mean(0) for label in range(3)])
        if distance == "euclidean":
            scores = -2.0 * torch.cdist(query, prototypes).square()
        else:
            scores = 2.0 * functional.normalize(query) @ functional.normalize(prototypes).T
        losses.append(functional.cross_entropy(scores, task.query.labels))
    torch.testing.assert_close(
        learner.adapt(task.support).predict(task.query.inputs), scores.detach(), rtol=1e-9, atol=1e-9
    )
    total = torch.stack(losses).mean()
    assert batch.loss == pytest.approx(total.item(), rel=1e-12)
    for grad, expected in zip(found, torch.autograd.grad(total, list(model.parameters())), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("policy", list(meta.SOURCES))
def test_every_policy_can_be_had_and_the_model_stays(policy: str) -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learner, (task, *_) = Prototypes(model, policy=policy), some_tasks()
    learner.backward([task])
    assert torch.isfinite(learner.adapt(task.support).predict(task.query.inputs)).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_class_without_an_example_has_no_prototype() -> None:
    (task, *_) = some_tasks()
    with pytest.raises(MetaError, match="class 1 has no example"):
        Prototypes(net()).adapt(Examples(task.support.inputs[:2], torch.tensor([0, 2])))


def test_an_unknown_distance_is_refused() -> None:
    with pytest.raises(MetaError, match="'manhattan'"):
        Prototypes(net(), distance="manhattan")  # type: ignore[arg-type]
