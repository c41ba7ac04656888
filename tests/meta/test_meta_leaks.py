"""What leaks between tasks is found and named, in anyone's code; what does not leak is left in peace."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from frostline import meta
from frostline.errors import MetaError
from frostline.meta.leak_report import LeakReport
from frostline.meta.leaks import check_leaks
from frostline.state.snapshot import snapshot


def task(seed: int, shape: tuple[int, ...] = (1, 6, 6), shot: int = 3) -> meta.Task:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0] * shot + [1] * shot)

    def draw() -> Tensor:
        return torch.randn(2 * shot, *shape, generator=generator) + 2 * (seed % 3) + labels.view(-1, *[1] * len(shape))

    return meta.Task(meta.Examples(draw(), labels), meta.Examples(draw(), labels), way=2, seed=seed)


A, B = task(1), task(2)


def conv_net(norm: Any = nn.BatchNorm2d) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def inner_steps(run: Any, weights: dict[str, Tensor], task: meta.Task, steps: int = 2) -> dict[str, Tensor]:
    for _ in range(steps):
        loss = functional.cross_entropy(run(weights, task.support.inputs), task.support.labels)
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), grads, strict=True)}
    return weights


def shallow_clone(module: nn.Module) -> nn.Module:
    """As learn2learn's clone_module: parameters are cloned, buffers are the very same tensors."""
    clone = module.__new__(type(module))
    clone.__dict__ = module.__dict__.copy()
    clone._parameters = {name: p.clone() for name, p in module._parameters.items()}  # type: ignore[assignment]
    clone._buffers = dict(module._buffers)
    clone._modules = {name: shallow_clone(child) for name, child in module._modules.items()}
    return clone


def with_shared_buffers(model: nn.Module, task: meta.Task) -> Tensor:
    clone = shallow_clone(model)
    for _ in range(2):
        found = [(m, n, p) for m in clone.modules() for n, p in m._parameters.items() if p is not None]
        loss = functional.cross_entropy(clone(task.support.inputs), task.support.labels)
        grads = torch.autograd.grad(loss, [p for _, _, p in found], create_graph=True)
        for (module, name, p), g in zip(found, grads, strict=True):
            module._parameters[name] = p - 0.1 * g  # type: ignore[assignment]
    return clone(task.query.inputs)


def with_parameters_only(model: nn.Module, task: meta.Task) -> Tensor:
    def run(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, weights, (x,))

    return run(inner_steps(run, dict(model.named_parameters()), task), task.query.inputs)


def with_cloned_buffers(model: nn.Module, task: meta.Task) -> Tensor:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def run(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, {**weights, **buffers}, (x,))

    return run(inner_steps(run, dict(model.named_parameters()), task), task.query.inputs)


class BackedUpNorm(nn.Module):
    """As MAML++: statistics that are written in every pass, with a backup to restore from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.running_mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.running_var = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.backup_running_mean = torch.zeros(channels)
        self.backup_running_var = torch.zeros(channels)
        self.by = copy.copy

    def backup(self) -> None:
        self.backup_running_mean.data = self.by(self.running_mean.data)
        self.backup_running_var.data = self.by(self.running_var.data)

    def restore(self) -> None:
        self.running_mean.data = self.by(self.backup_running_mean.data)
        self.running_var.data = self.by(self.backup_running_var.data)

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.running_mean, self.running_var, training=True)


def with_backup(model: nn.Module, task: meta.Task) -> Tensor:
    norms = [m for m in model.modules() if isinstance(m, BackedUpNorm)]
    for norm in norms:
        norm.backup()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def run(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, weights, (x,))

    logits = run(inner_steps(run, trained, task), task.query.inputs)
    for norm in norms:
        norm.restore()
    return logits


class ContextNorm(nn.Module):
    """As TaskNorm in cnaps: the context's moments are an attribute of the module."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.context: Tensor | None = None
        self.anew = False

    def forward(self, x: Tensor) -> Tensor:
        if self.context is None or self.anew:
            self.context = x.mean((0, 2, 3), keepdim=True)
        return x - self.context


def with_context(model: nn.Module, task: meta.Task) -> Tensor:
    model(task.support.inputs)
    return model(task.query.inputs)


def with_higher(model: nn.Module, task: meta.Task) -> Tensor:
    higher = pytest.importorskip("higher")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (inner, steps):
        for _ in range(2):
            steps.step(functional.cross_entropy(inner(task.support.inputs), task.support.labels))
        return inner(task.query.inputs)


STATISTICS = ["1.running_mean", "1.running_var", "1.num_batches_tracked"]


@pytest.mark.parametrize("adapt", [with_shared_buffers, with_parameters_only])
def test_buffers_that_tasks_write_are_found_with_the_count_and_the_fix(adapt: Any) -> None:
    report = check_leaks(adapt, A, B, model=conv_net())
    assert [leak.where for leak in report.state] == STATISTICS
    assert {leak.kind for leak in report.state} == {"buffer"}
    assert report.state[2].by == 3  # two inner steps and the query pass
    assert all("3 forward passes in train mode" in leak.cause for leak in report.state)
    assert "b.clone()" in report.state[0].fix
    # In train mode nobody reads them, so that no result changes: the leak is in the state alone.
    assert not report.results
    with pytest.raises(MetaError, match=r"(?s)leaks between tasks: 3 of \d+ entries.*1.running_mean.*fix: "):
        report.raise_if_leaking()


@pytest.mark.parametrize("adapt", [with_shared_buffers, with_parameters_only])
def test_results_that_change_are_found_where_what_leaked_is_read(adapt: Any) -> None:
    def judged_in_eval_mode(model: nn.Module, task: meta.Task) -> Tensor:
        adapt(model.train(), task)
        return model.eval()(task.query.inputs)

    model = conv_net().eval()
    report = check_leaks(judged_in_eval_mode, A, B, model=model)
    assert {(leak.where, leak.when) for leak in report.results} >= {
        ("logits of A", "B before A"),
        ("logits of B", "A before B"),
    }
    assert all(leak.by is not None and leak.by > 0 for leak in report.results)
    assert not model.training


@pytest.mark.parametrize("adapt", [with_cloned_buffers, with_higher])
def test_copied_buffers_are_no_leak(adapt: Any) -> None:
    report = check_leaks(adapt, A, B, model=conv_net())
    assert not report
    assert report.proven
    assert len(report.compared) == 3
    assert "nothing leaks between tasks: 3 results and" in str(report)


def test_a_backup_that_shares_memory_is_named_and_one_by_clone_is_silent() -> None:
    model = conv_net(BackedUpNorm)
    report = check_leaks(with_backup, A, B, model=model)
    moved = {leak.where: leak for leak in report.state}
    assert {"1.running_mean", "1.running_var"} <= moved.keys()
    assert "its backup shares its memory (1.backup_running_mean)" in moved["1.running_mean"].cause
    assert "clone" in moved["1.running_mean"].fix
    # Nothing of the check itself is left, although tensors were made to share memory meanwhile.
    assert model[1].running_mean.data_ptr() != model[1].backup_running_mean.data_ptr()
    assert not model[1].running_mean.any()
    model[1].by = torch.clone
    model[1].backup()
    assert not check_leaks(with_backup, A, B, model=model)


def test_a_context_kept_on_the_module_is_found_as_an_attribute_and_in_the_results() -> None:
    model = conv_net(ContextNorm)
    report = check_leaks(with_context, A, B, model=model)
    assert [(leak.where, leak.kind) for leak in report.state] == [("1.context", "attribute")]
    assert ("logits of A", "B before A") in [(leak.where, leak.when) for leak in report.results]
    assert model[1].context is None
    model[1].anew = True
    stale = check_leaks(with_context, A, B, model=model)
    # Made anew for each task it changes no result, and is still left behind.
    assert [leak.where for leak in stale.leaks] == ["1.context"]


def test_state_outside_of_the_model_is_told_by_the_results_alone() -> None:
    seen: list[Tensor] = []

    def centred_by_the_last_task(model: nn.Module, task: meta.Task) -> Tensor:
        mean = task.support.inputs.mean()
        shift = next((m for m in seen if not torch.equal(m, mean)), torch.zeros(()))
        seen.insert(0, mean)
        return model(task.query.inputs - shift)

    report = check_leaks(centred_by_the_last_task, A, B, model=conv_net().eval())
    assert not report.state
    assert bool(report) or not report.proven


def test_modes_flags_and_weights_that_stay_changed_are_named() -> None:
    def careless(model: nn.Module, task: meta.Task) -> Tensor:
        model.eval()
        model[0].weight.requires_grad_(False)
        with torch.no_grad():
            model[4].bias.add_(1)
        return model(task.query.inputs)

    model = conv_net()
    report = check_leaks(careless, A, B, model=model)
    moved = {leak.where: leak.kind for leak in report.state}
    assert moved["4.bias"] == "parameter"
    assert moved["0.weight.requires_grad"] == "requires_grad"
    assert moved["1.training"] == "mode"
    assert report.results
    assert model.training
    assert model[0].weight.requires_grad


def test_random_numbers_are_no_leak_and_what_does_not_repeat_is_said() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 2))
    report = check_leaks(lambda model, task: model(task.query.inputs), A, B, model=net)
    assert report.proven
    own = torch.Generator().manual_seed(0)

    def noisy(model: nn.Module, task: meta.Task) -> Tensor:
        return model(task.query.inputs + torch.randn(task.query.inputs.shape, generator=own))

    report = check_leaks(noisy, A, B, model=net)
    assert not report
    assert not report.proven
    assert report.not_repeatable == ("logits of A", "logits of B")
    assert "not repeatable by itself: logits of A, logits of B" in str(report)
    assert "not everything could be compared" in str(report)


def test_the_model_gradients_and_generators_are_left_as_they_were() -> None:
    model = conv_net()
    model(A.support.inputs).sum().backward()
    grad = model[0].weight.grad
    assert grad is not None
    before, values = snapshot(model), grad.clone()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert check_leaks(with_parameters_only, A, B, model=model)
    assert not before.diff(model)
    assert model[0].weight.grad is grad
    assert torch.equal(grad, values)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()

    def failing(model: nn.Module, task: meta.Task) -> Tensor:
        with_parameters_only(model, task)
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        check_leaks(failing, A, B, model=model)
    assert not before.diff(model)


def test_the_report_is_json_and_prints() -> None:
    report = check_leaks(with_shared_buffers, A, B, model=conv_net())
    found = json.loads(json.dumps(report.to_json()))
    assert found["leaking"]
    assert found["leaks"][0]["where"] == "1.running_mean"
    assert "running_mean" in report._repr_html_()
    assert "leaks between tasks" in str(report)


def test_a_function_needs_its_model_and_has_to_return_tensors() -> None:
    with pytest.raises(MetaError, match="no model"):
        check_leaks(with_higher, A, B)
    with pytest.raises(MetaError, match="NoneType without any"):
        check_leaks(lambda model, task: None, A, B, model=conv_net())


def test_our_learners_leak_nothing_under_every_policy() -> None:
    for own in meta.SOURCES:
        learner = meta.MAML(conv_net(), inner_lr=0.1, steps=2, policy=own)
        report = check_leaks(learner, A, B)
        assert not report, str(report)
        assert report.proven
        assert not report.skipped
        # Logits, losses and weights, under each policy, after B and before, and after B's backward pass.
        assert sum("logits of A" in name for name in report.compared) == len(meta.SOURCES) + 1


def test_a_learner_that_leaks_is_found() -> None:
    class Leaking(meta.MAML):
        def adapted_on(self, *args: Any, **options: Any) -> Any:
            with torch.no_grad():
                self.model(args[1].inputs)
            return super().adapted_on(*args, **options)

    learner = Leaking(conv_net(), inner_lr=0.1, steps=1, policy="frozen/batch")
    report = check_leaks(learner, A, B, policies=["batch", "frozen"])
    assert [leak.where for leak in report.state] == [f"model.{path}" for path in STATISTICS]


class Attentive(nn.Module):
    """Batch norm that is used twice, dropout, tied weights, and a buffer that every pass writes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        x = self.norm(self.first(x.flatten(1))).relu()
        return self.head(self.drop(self.norm(self.second(x))).relu())


NETS: dict[str, Any] = {
    "conv": conv_net,
    "twice": lambda: (torch.manual_seed(1), Attentive())[1],
    "no norm": lambda: (torch.manual_seed(2), nn.Sequential(nn.Flatten(), nn.Linear(36, 2)))[1],
    "momentum none": lambda: conv_net(lambda c: nn.BatchNorm2d(c, momentum=None)),
    "without statistics": lambda: conv_net(lambda c: nn.BatchNorm2d(c, track_running_stats=False)),
}


@settings(max_examples=25)
@given(
    net=st.sampled_from(sorted(NETS)),
    inner=st.sampled_from([s for s in meta.SOURCES if s != "reptile"]),
    query=st.sampled_from(list(meta.SOURCES)),
    steps=st.integers(1, 3),
    order=st.sampled_from([1, 2]),
    training=st.booleans(),
    seed=st.integers(0, 100),
)
def test_no_learner_leaks_under_any_policy_on_any_net(
    net: str, inner: str, query: str, steps: int, order: Any, training: bool, seed: int
) -> None:
    model = NETS[net]().train(training)
    learner = meta.MAML(model, inner_lr=0.05, steps=steps, order=order)
    report = check_leaks(learner, task(seed), task(seed + 1), policies=[f"{inner}/{query}"])
    assert not report, str(report)
    assert not report.not_repeatable
    cannot = {"twice": ("instance", "task_norm_i"), "without statistics": ("frozen",)}.get(net, ())
    # Only what the model cannot have is left out.
    assert report.proven or (report.skipped and (inner in cannot or query in cannot))


@settings(max_examples=15)
@given(net=st.sampled_from(["conv", "twice", "momentum none"]), seed=st.integers(0, 100))
def test_the_naive_way_leaks_on_the_same_nets(net: str, seed: int) -> None:
    report = check_leaks(with_parameters_only, task(seed), task(seed + 1), model=NETS[net]().train())
    assert isinstance(report, LeakReport)
    assert any(leak.role == "norm.mean" for leak in report.state)


def test_prototypes_and_reptile_leak_nothing() -> None:
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    for learner in (meta.Prototypes(trunk, policy="batch"), meta.Reptile(conv_net(), policy="batch", inner_lr=0.01)):
        report = check_leaks(learner, A, B, policies=["batch", "support", "reptile", "running", "population", "frozen"])
        assert report.proven, str(report)
