"""Kept statistics against PyTorch's own buffers, and against moments of all values together."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from frostline.errors import MetaError
from frostline.meta import MAML, Examples, KeptStatistics, Task
from frostline.meta.normalizing import LayerStatistics, of_batch
from frostline.meta.statistics import population_of


def net(momentum: float | None = 0.1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=momentum), nn.Linear(3, 2)).double()


def some_tasks(count: int, seed: int = 0) -> list[Task]:
    generator = torch.Generator().manual_seed(seed)

    def examples(each: int) -> Examples:
        return Examples(
            torch.randn(2 * each, 4, generator=generator, dtype=torch.float64), torch.arange(2).repeat_interleave(each)
        )

    return [Task(examples(3), examples(4), way=2, seed=i) for i in range(count)]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_what_pytorchs_buffers_would_hold(momentum: float | None) -> None:
    learner, tasks = MAML(net(momentum), inner_lr=0.2, steps=2, order=1), some_tasks(6)
    for batch in (tasks[:3], tasks[3:]):
        learner.backward(batch, threads=2)
    # The same passes on one model in train mode, whose buffers every task writes.
    model = net(momentum).train()
    for task in tasks:
        values = dict(model.named_parameters())
        for _ in range(2):
            loss = functional.cross_entropy(
                torch.func.functional_call(model, values, (task.support.inputs,)), task.support.labels
            )
            grads = torch.autograd.grad(loss, list(values.values()))
            values = {
                k: (v - 0.2 * g).detach().requires_grad_() for (k, v), g in zip(values.items(), grads, strict=True)
            }
        torch.func.functional_call(model, values, (task.query.inputs,))
    kept = learner.statistics.running["1"]
    torch.testing.assert_close(kept.mean, model[1].running_mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(kept.var, model[1].running_var, rtol=1e-12, atol=1e-14)
    assert learner.statistics.updates == 2
    assert learner.model[1].num_batches_tracked == 0


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 2**31))
@settings(max_examples=40)
def test_the_population_is_that_of_all_values_together(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, 2, 3, generator=generator, dtype=torch.float64) * 3 + n for n in sizes]
    found = population_of([[{"bn": of_batch(x)}] for x in parts])[0]["bn"]
    together = of_batch(torch.cat(parts))
    torch.testing.assert_close(found.mean, together.mean, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found.var, together.var, rtol=1e-11, atol=1e-11)
    assert found.count == together.count
    if len(set(sizes)) > 1:
        # The naive way, averaging the tasks' variances, leaves out what tasks differ by.
        naive = torch.stack([of_batch(x).var for x in parts]).mean(0)
        assert not torch.allclose(naive, together.var, rtol=1e-6)


def test_each_step_has_statistics_of_its_own() -> None:
    learner = MAML(net(), inner_lr=1.0, steps=2, policy="batch")
    learner.backward(some_tasks(4))
    means = [step["1"].mean for step in learner.statistics.per_step]
    assert len(means) == 3
    assert not torch.allclose(means[0], means[1], rtol=1e-3)
    assert torch.equal(learner.statistics.of_source("per_step", 7)["1"].mean, means[1])
    assert torch.equal(learner.statistics.of_source("per_step", None)["1"].mean, means[2])


def test_an_update_replaces_the_value_and_writes_to_none() -> None:
    learner = MAML(net(), inner_lr=0.1, steps=1)
    before = learner.statistics
    copied = copy.deepcopy(before.tensors())
    learner.backward(some_tasks(2))
    assert learner.statistics is not before
    assert all(torch.equal(value, copied[name]) for name, value in before.tensors().items())


def test_values_go_to_a_file_and_back() -> None:
    learner = MAML(net(), inner_lr=0.1, steps=1)
    learner.backward(some_tasks(2))
    tensors = learner.statistics.tensors()
    back = KeptStatistics.of(net(), steps=1).from_tensors(tensors)
    assert all(torch.equal(value, tensors[name]) for name, value in back.tensors().items())
    assert back.updates == 1
    with pytest.raises(MetaError, match="other layers or another number of steps"):
        KeptStatistics.of(net(), steps=2).from_tensors(tensors)
    wrong: dict[str, Tensor] = {**tensors, "running.0.1.mean": torch.zeros(7)}
    with pytest.raises(MetaError, match=r"running\.0\.1\.mean"):
        KeptStatistics.of(net(), steps=1).from_tensors(wrong)


def test_a_model_without_buffers_starts_from_mean_0_and_variance_1() -> None:
    kept = KeptStatistics.of(nn.BatchNorm1d(2, track_running_stats=False), steps=1)
    assert not kept.frozen
    assert kept.running[""].var.tolist() == [1.0, 1.0]


def test_the_unbiased_variance_is_that_of_pytorch() -> None:
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(of_batch(x).unbiased, x.var(0), rtol=1e-12, atol=0)
    assert LayerStatistics(torch.zeros(1), torch.ones(1), 1).unbiased == 1
