"""Population statistics and how tasks vary, against values that are gathered by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from frostline.errors import MetaError, PolicyError
from frostline.meta import MAML, Examples, Prototypes, Task, measure_population, variation


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)).double()


def some_tasks(count: int = 6, shift: float = 0.0, queries: int = 4) -> list[Task]:
    generator = torch.Generator().manual_seed(0)

    def examples(each: int, mean: Tensor) -> Examples:
        x = torch.randn(2 * each, 4, generator=generator, dtype=torch.float64) + mean
        return Examples(x, torch.arange(2).repeat_interleave(each))

    def one(index: int) -> Task:
        mean = shift * torch.randn(4, generator=generator, dtype=torch.float64)
        return Task(examples(3, mean), examples(queries, mean), way=2, index=index, seed=index)

    return [one(index) for index in range(count)]


def test_the_population_of_a_first_layer_is_that_of_all_its_inputs() -> None:
    model, tasks = net(), some_tasks(shift=2.0)
    learner = MAML(model, inner_lr=0.1, steps=2, adapt="3")
    before = {name: value.clone() for name, value in learner.state_dict().items() if isinstance(value, Tensor)}
    kept = measure_population(learner, tasks, threads=2)
    for step, side in ((0, "support"), (1, "support"), (2, "query")):
        values = model[0](torch.cat([getattr(task, side).inputs for task in tasks])).detach()
        found = kept.population[step]["1"]
        torch.testing.assert_close(found.mean, values.mean(0), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(found.var, values.var(0, correction=0), rtol=1e-11, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items() if name in before)
    assert learner.statistics is not kept
    assert kept.updates == 0


def test_normalizing_with_the_population_of_one_task_is_normalizing_with_its_batch() -> None:
    learner, (task, *_) = MAML(net().eval(), inner_lr=0.1, steps=2), some_tasks(1)
    batch = learner.adapt(task.support).predict(task.query.inputs)
    learner.statistics = measure_population(learner, [task])
    population = learner.adapt(task.support, policy="population").predict(task.query.inputs)
    # Not the inner steps' gradients: those go through the batch's statistics and not through given ones.
    assert not torch.allclose(batch, population, rtol=1e-3)
    frozen_steps = MAML(net().eval(), inner_lr=1e-12, steps=2)
    frozen_steps.statistics = measure_population(frozen_steps, [task])
    own = frozen_steps.adapt(task.support).predict(task.query.inputs)
    given = frozen_steps.adapt(task.support, policy="population").predict(task.query.inputs)
    torch.testing.assert_close(own, given, rtol=1e-8, atol=1e-8)


def test_tasks_that_differ_vary_more_between_than_within_and_alike_ones_do_not() -> None:
    learner = MAML(net(), inner_lr=1e-9)
    far = variation(learner, some_tasks(40, shift=3.0, queries=20)).layers[0]
    near = variation(learner, some_tasks(40, shift=0.0, queries=20)).layers[0]
    assert far.layer == "1"
    assert far.between > 5 * far.within
    assert near.between == pytest.approx(near.within, rel=0.3)
    assert near.between_scale == pytest.approx(near.within_scale, rel=0.3)


def test_a_variation_prints_and_goes_to_json() -> None:
    found = variation(Prototypes(net()), some_tasks(3))
    assert found.to_json()["layers"][0]["layer"] == "1"
    assert "mean between" in str(found)


def test_what_has_no_statistics_to_measure_is_refused() -> None:
    with pytest.raises(PolicyError, match="no batch norm"):
        measure_population(MAML(nn.Linear(4, 2).double(), inner_lr=0.1), some_tasks())
    learner = MAML(net(), inner_lr=0.1)
    with pytest.raises(MetaError, match="no tasks"):
        measure_population(learner, [])
    with pytest.raises(MetaError, match="two or more"):
        variation(learner, some_tasks(1))
    with pytest.raises(MetaError, match="cannot be halved"):
        variation(learner, some_tasks(2, queries=1))
