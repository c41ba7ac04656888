"""Meta-batches over threads and processes: the same gradient, the same statistics, and errors that reach everyone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from frostline.errors import InnerLoopDiverged, MetaError
from frostline.meta import MAML, Examples, Task


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).double()


def some_tasks(count: int) -> list[Task]:
    generator = torch.Generator().manual_seed(0)

    def examples(each: int) -> Examples:
        x = torch.randn(2 * each, 4, generator=generator, dtype=torch.float64)
        return Examples(x, torch.arange(2).repeat_interleave(each))

    return [Task(examples(3), examples(2), way=2, index=i, seed=i) for i in range(count)]


def test_gradients_add_up_to_those_that_are_there_and_to_the_mean_over_tasks() -> None:
    learner, tasks = MAML(net(), inner_lr=0.1), some_tasks(3)
    alone: list[list[Tensor]] = []
    for task in tasks:
        learner.zero_grad()
        learner.backward([task])
        alone.append([p.grad.clone() for p in learner.parameters() if p.grad is not None])
    learner.zero_grad()
    learner.backward(tasks)
    learner.backward(tasks)
    for place, p in enumerate(learner.parameters()):
        torch.testing.assert_close(p.grad, 2 * sum(g[place] for g in alone) / 3, rtol=1e-12, atol=1e-15)


def test_the_result_tells_loss_and_accuracy_of_each_task() -> None:
    learner, tasks = MAML(net(), inner_lr=0.1), some_tasks(3)
    batch = learner.backward(tasks)
    assert batch.loss == pytest.approx(sum(batch.losses) / 3)
    assert 0 <= batch.accuracy <= 1
    assert not batch.skipped
    again = learner.backward(tasks[1:2])
    assert again.losses == batch.losses[1:2]


def test_autocast_reaches_the_threads() -> None:
    seen: list[torch.dtype] = []

    class Told(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    learner = MAML(nn.Sequential(Told(4, 2)).float(), inner_lr=0.1)
    tasks = [task.to(torch.float32) for task in some_tasks(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        learner.backward(tasks, threads=2)
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    learner.backward(tasks, threads=2)
    assert set(seen) == {torch.float32}


def test_an_error_in_a_thread_comes_out_and_leaves_everything_as_it_was() -> None:
    learner, tasks = MAML(net(), inner_lr=0.1), some_tasks(4)
    wrong = Task(tasks[2].support, Examples(torch.ones(2, 7, dtype=torch.float64), torch.tensor([0, 1])), way=2)
    threads, kept = torch.get_num_threads(), learner.statistics
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        learner.backward([*tasks[:2], wrong, *tasks[2:]], threads=2)
    assert torch.get_num_threads() == threads
    assert learner.statistics is kept
    assert all(p.grad is None for p in learner.parameters())


def test_no_tasks_no_threads_and_nothing_to_train_are_refused() -> None:
    learner = MAML(net(), inner_lr=0.1)
    with pytest.raises(MetaError, match="no tasks"):
        learner.backward([])
    with pytest.raises(MetaError, match="1 or more"):
        learner.backward(some_tasks(1), threads=0)
    for parameter in learner.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(MetaError, match="nothing to train"):
        learner.backward(some_tasks(1))


_RANK = """
import json, os, sys
import torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
import importlib.util
spec = importlib.util.spec_from_file_location("shared", {this!r})
shared = importlib.util.module_from_spec(spec)
sys.modules["shared"] = shared
spec.loader.exec_module(shared)
from frostline.errors import FrostlineError
from frostline.meta import MAML
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
tasks = shared.some_tasks(5)
learner = MAML(shared.net(), inner_lr=0.1, steps=2, policy="per_step")
batch = learner.backward(tasks)
found = dict(
    grads=[None if p.grad is None else p.grad.tolist() for p in learner.parameters()],
    statistics={{k: v.tolist() for k, v in learner.statistics.tensors().items()}},
    losses=batch.losses,
)
# A task of the second rank only is NaN: skipped in both, or stopped in both.
tasks[1].support.inputs[0, 0] = float("nan")
learner.zero_grad()
found["skipped"] = list(learner.backward(tasks, on_nonfinite="skip").skipped)
learner.zero_grad()
try:
    learner.backward(tasks)
    found["stopped"] = ""
except FrostlineError as error:
    found["stopped"] = str(error)
found["untouched"] = all(p.grad is None for p in learner.parameters())
# Fewer tasks than processes.
learner.zero_grad()
found["few"] = learner.backward(tasks[:1]).losses
json.dump(found, open(os.path.join({out!r}, str(rank) + ".json"), "w"))
dist.barrier()
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_have_the_gradient_and_the_statistics_of_one(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    here = Path(__file__)
    script.write_text(textwrap.dedent(_RANK.format(tests=str(here.parent), this=str(here), out=str(tmp_path))))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", "0", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "127.0.0.1:0", str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    tasks = some_tasks(5)
    one = MAML(net(), inner_lr=0.1, steps=2, policy="per_step")
    batch = one.backward(tasks)
    for rank in ranks:
        for grad, parameter in zip(rank["grads"], one.parameters(), strict=True):
            if parameter.grad is None:
                assert grad is None
            else:
                torch.testing.assert_close(
                    torch.tensor(grad, dtype=torch.float64), parameter.grad, rtol=1e-12, atol=1e-14
                )
        for name, value in one.statistics.tensors().items():
            torch.testing.assert_close(
                torch.tensor(rank["statistics"][name], dtype=value.dtype), value, rtol=1e-12, atol=1e-14
            )
        assert rank["losses"] == list(batch.losses)
        assert rank["skipped"] == [1]
        assert rank["untouched"]
        assert len(rank["few"]) == 1
    assert ranks[0]["grads"] == ranks[1]["grads"]
    assert "process 1 failed" in ranks[0]["stopped"]
    assert "task 1" in ranks[1]["stopped"]


def test_the_error_of_a_task_that_is_not_finite_names_it() -> None:
    tasks = some_tasks(2)
    tasks[1].query.inputs[0, 0] = float("inf")
    with pytest.raises(InnerLoopDiverged, match="task 1"):
        MAML(net(), inner_lr=0.1).backward(tasks)
