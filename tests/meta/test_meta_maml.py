"""Outer gradients against finite differences, higher, and PyTorch's own loop; what moves, and what does not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import frostline as fl
from frostline import meta
from frostline.errors import InnerLoopDiverged, MetaError, NothingSelected, PolicyError, UnsupportedModel
from frostline.meta import MAML, Examples, MultiStep, Task

NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(3),
    "batch without tracking": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "batch without affine": lambda: nn.BatchNorm2d(3, affine=False),
    "group": lambda: nn.GroupNorm(3, 3),
    "layer": lambda: nn.LayerNorm([3, 5, 5]),
    "instance": lambda: nn.InstanceNorm2d(3, affine=True),
    "instance with tracking": lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    "none": nn.Identity,
}
POLICIES = [*meta.SOURCES, "batch/running", "batch/population", "task_norm_i/batch"]


def net(norm: str = "batch", seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 3, 2), NORMS[norm](), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 2)
        )
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
            if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.2, 0.6)
    return model.double()


def some_tasks(count: int = 2, queries: int = 2, seed: int = 0) -> list[Task]:
    generator = torch.Generator().manual_seed(seed)

    def examples(each: int) -> Examples:
        x = torch.randn(2 * each, 1, 6, 6, generator=generator, dtype=torch.float64)
        return Examples(x, torch.arange(2).repeat_interleave(each))

    return [Task(examples(2), examples(queries), way=2, index=i, seed=i) for i in range(count)]


def gradient(learner: meta.Learner, tasks: list[Task], **options: object) -> Tensor:
    learner.zero_grad()
    learner.backward(tasks, **options)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in grads])


def finite_difference(learner: meta.Learner, tasks: list[Task], direction: Tensor, step: float = 1e-5) -> float:
    """Derivative of the mean query loss along a direction, by central differences of order 4."""
    parameters = [p for p in learner.parameters() if p.requires_grad]
    start = torch.cat([p.detach().flatten() for p in parameters])
    kept = learner.statistics

    def loss(place: float) -> float:
        torch.nn.utils.vector_to_parameters(start + place * direction, parameters)
        learner.statistics = kept
        return learner.backward(tasks).loss

    found = (8 * (loss(step) - loss(-step)) - (loss(2 * step) - loss(-2 * step))) / (12 * step)
    torch.nn.utils.vector_to_parameters(start, parameters)
    learner.statistics = kept
    return found


def assert_right(learner: meta.Learner, tasks: list[Task], relative: float = 1e-7) -> None:
    kept = learner.statistics
    grad = gradient(learner, tasks)
    # A meta-batch moves them, and the finite differences are to be of the same function.
    learner.statistics = kept
    direction = torch.randn(len(grad), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = finite_difference(learner, tasks, direction / direction.norm())
    # A direction may be all but orthogonal to the gradient; an error is measured on the gradient's own scale.
    scale = grad.norm().item() / len(grad) ** 0.5
    assert abs((grad @ direction / direction.norm()).item() - expected) <= relative * max(scale, abs(expected))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("norm", ["batch", "batch without affine"])
def test_second_order_gradients_are_those_of_finite_differences(norm: str, policy: str) -> None:
    learner = MAML(net(norm), inner_lr=0.3, steps=2, policy=policy, guard=None)
    assert_right(learner, some_tasks())


@pytest.mark.parametrize("norm", [name for name in NORMS if not name.startswith("batch") or "tracking" in name])
def test_second_order_gradients_with_layers_that_need_no_policy(norm: str) -> None:
    assert_right(MAML(net(norm), inner_lr=0.3, steps=3, guard=None), some_tasks())


def test_the_check_bites_first_order_gradients_are_not_those_of_finite_differences() -> None:
    learner = MAML(net(), inner_lr=0.3, steps=2, order=1, guard=None)
    with pytest.raises(AssertionError):
        assert_right(learner, some_tasks(), relative=1e-3)


@pytest.mark.parametrize("learn", ["parameter", "layer_step"])
@pytest.mark.parametrize("optimizer", ["sgd", meta.SGD(momentum=0.9, nesterov=True, weight_decay=0.01), meta.Adam()])
def test_learned_rates_and_inner_optimizers_are_differentiated_right(learn: str, optimizer: object) -> None:
    learner = MAML(
        net(), inner_lr=0.05, steps=3, learn_rates=learn, inner_optimizer=optimizer, policy="support", guard=None
    )
    assert_right(learner, some_tasks(), relative=1e-6)


def test_a_multi_step_loss_is_differentiated_right_and_moves_its_weight_to_the_last_step() -> None:
    learner = MAML(net(), inner_lr=0.2, steps=3, multi_step=MultiStep(10), guard=None)
    grad = gradient(learner, some_tasks())
    alone = gradient(MAML(net(), inner_lr=0.2, steps=3, guard=None), some_tasks())
    assert not torch.allclose(grad, alone, rtol=1e-3)
    # The weights are those of the iteration, which a finite difference must not move.
    parts = [MAML(net(), inner_lr=0.2, steps=k, guard=None) for k in (1, 2, 3)]
    expected = sum(gradient(part, some_tasks()) for part in parts) / 3
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12)
    learner.iteration = 10
    late = gradient(learner, some_tasks())
    assert (late - alone).norm() < 0.1 * (grad - alone).norm()


def higher_gradient(model: nn.Module, tasks: list[Task], rate: float, steps: int) -> Tensor:
    higher = pytest.importorskip("higher", reason="higher is in frostline[dev]")
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for task in tasks:
        with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (functional_model, inner):
            for _ in range(steps):
                inner.step(functional.cross_entropy(functional_model(task.support.inputs), task.support.labels))
            query = functional.cross_entropy(functional_model(task.query.inputs), task.query.labels)
            (query / len(tasks)).backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


@pytest.mark.parametrize("norm", list(NORMS))
def test_the_batch_policy_gives_the_gradient_of_higher(norm: str) -> None:
    model, tasks = net(norm), some_tasks()
    # higher follows the mode; ours does not read it.
    expected = higher_gradient(model.train(), tasks, rate=0.3, steps=3)
    found = gradient(MAML(model, inner_lr=0.3, steps=3, guard=None), tasks)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_frozen_policy_gives_the_gradient_of_higher_in_eval_mode() -> None:
    model, tasks = net(), some_tasks()
    expected = higher_gradient(model.eval(), tasks, rate=0.1, steps=3)
    found = gradient(MAML(model.train(), inner_lr=0.1, steps=3, policy="frozen", guard=None), tasks)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def by_hand(model: nn.Module, task: Task, rate: float, policy: str) -> Tensor:
    """One inner step and the query loss, with batch norm written out, for a Sequential of the nets above."""
    values = dict(model.named_parameters())

    def run(
        v: dict[str, Tensor], x: Tensor, given: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x = functional.conv2d(x, v["0.weight"], v["0.bias"])
        own = (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))
        mean, var = own if given is None else given
        x = (x - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
        x = torch.tanh(x * v["1.weight"][:, None, None] + v["1.bias"][:, None, None])
        x = torch.tanh(functional.conv2d(x, v["3.weight"], v["3.bias"]))
        return functional.linear(x.flatten(1), v["6.weight"], v["6.bias"]), own

    scores, _ = run(values, task.support.inputs, None)
    grads = torch.autograd.grad(
        functional.cross_entropy(scores, task.support.labels), list(values.values()), create_graph=True
    )
    fast = {name: value - rate * g for (name, value), g in zip(values.items(), grads, strict=True)}
    if policy == "support":
        _, of_support = run(fast, task.support.inputs, None)
        scores, _ = run(fast, task.query.inputs, of_support)
    else:
        joint = [torch.cat([task.support.inputs, query[None]]) for query in task.query.inputs]
        scores = torch.cat([run(fast, x, None)[0][-1:] for x in joint])
    loss = functional.cross_entropy(scores, task.query.labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(values.values()))])


@pytest.mark.parametrize("policy", ["support", "reptile"])
def test_inductive_policies_give_the_gradient_that_is_written_out(policy: str) -> None:
    model, (task, *_) = net(), some_tasks()
    found = gradient(MAML(model, inner_lr=0.3, steps=1, policy=policy, guard=None), [task])
    torch.testing.assert_close(found, by_hand(model, task, 0.3, policy), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("policy", [p for p in POLICIES if not meta.Policy.of(p).transductive])
def test_an_inductive_policy_says_the_same_of_a_query_whatever_is_asked_with_it(policy: str) -> None:
    learner, (task, other) = MAML(net(), inner_lr=0.1, policy=policy), some_tasks(queries=4)
    adapted = learner.adapt(task.support)
    alone = adapted.predict(task.query.inputs[:1])
    together = adapted.predict(torch.cat([task.query.inputs[:1], 7 * other.query.inputs]))
    torch.testing.assert_close(together[:1], alone, rtol=1e-12, atol=1e-12)


def test_the_batch_policy_is_transductive() -> None:
    learner, (task, other) = MAML(net(), inner_lr=0.1, policy="batch"), some_tasks(queries=4)
    adapted = learner.adapt(task.support)
    one = adapted.predict(torch.cat([task.query.inputs[:1], task.query.inputs]))
    two = adapted.predict(torch.cat([task.query.inputs[:1], 7 * other.query.inputs]))
    assert not torch.allclose(one[:1], two[:1], rtol=1e-3)


def test_anil_moves_the_head_alone_and_trains_everything() -> None:
    model, (task, *_) = net(), some_tasks()
    learner = MAML(model, inner_lr=0.3, steps=2, adapt="6", guard=None)
    before = {path: value.detach().clone() for path, value in model.named_parameters()}
    adapted = learner.adapt(task.support)
    moved = {path for path, value in adapted.values.items() if not torch.equal(value, before[path])}
    assert moved == {"6.weight", "6.bias"} == set(learner.adapted)
    assert_right(learner, some_tasks())
    assert all(p.grad is not None and p.grad.any() for p in model[0].parameters())


def test_frozen_parameters_do_not_adapt_and_get_no_gradient() -> None:
    model = net()
    model[0].requires_grad_(False)
    learner = MAML(model, inner_lr=0.3, steps=2, guard=None)
    adapted = learner.adapt(some_tasks()[0].support)
    assert torch.equal(adapted.values["0.weight"], model[0].weight)
    assert "0.weight" not in learner.adapted
    assert_right(learner, some_tasks())
    assert model[0].weight.grad is None


def test_what_is_frozen_later_stops_adapting_too() -> None:
    model, tasks = net(), some_tasks()
    learner = MAML(model, inner_lr=0.3, steps=2, learn_rates="layer_step", guard=None)
    with fl.frozen(model, "3", level="grad"):
        assert "3.weight" not in learner.adapted
        assert torch.equal(learner.adapt(tasks[0].support).values["3.weight"], model[3].weight)
        assert_right(learner, tasks)
    assert "3.weight" in learner.adapted
    model.requires_grad_(False)
    with pytest.raises(MetaError, match="all frozen"):
        learner.adapt(tasks[0].support)


def test_a_held_batch_norm_keeps_its_own_statistics_under_every_policy() -> None:
    model = net()
    hold = fl.freeze(model, "1")
    (task, *_) = some_tasks()
    assert list(MAML(model, inner_lr=0.1).statistics.running) == []
    found = MAML(model, inner_lr=0.1, steps=2).adapt(task.support).predict(task.query.inputs)
    # Adapted by hand, in the mode that the hold keeps.
    plain = copy.deepcopy(model).train()
    moving = [p for p in plain.parameters() if p.requires_grad]
    for _ in range(2):
        loss = functional.cross_entropy(plain(task.support.inputs), task.support.labels)
        with torch.no_grad():
            for p, g in zip(moving, torch.autograd.grad(loss, moving), strict=True):
                p -= 0.1 * g
    torch.testing.assert_close(found, plain(task.query.inputs).detach(), rtol=1e-10, atol=1e-12)
    hold.verify()


def test_dropout_is_each_tasks_own_and_leaves_the_global_generator_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 2)).double()
    learner, tasks = MAML(model, inner_lr=0.3, steps=2), some_tasks(count=4)
    state = torch.get_rng_state()
    both = gradient(learner, tasks, threads=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    single = torch.stack([gradient(learner, [task], threads=1) for task in reversed(tasks)]).mean(0)
    torch.testing.assert_close(both, single, rtol=1e-12, atol=1e-12)
    assert not torch.equal(
        gradient(learner, [tasks[0]]), gradient(MAML(model.eval(), inner_lr=0.3, steps=2), tasks[:1])
    )
    model.train()
    first, again = (learner.adapt(tasks[0].support, seed=3).predict(tasks[0].query.inputs) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, learner.adapt(tasks[0].support, seed=4).predict(tasks[0].query.inputs))


@pytest.mark.parametrize("policy", ["batch", "support", "task_norm_l"])
def test_threads_change_no_bit(policy: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        learner, tasks = MAML(net(), inner_lr=0.3, steps=2, policy=policy), some_tasks(count=7)
        one, kept = gradient(learner, tasks, threads=1), learner.statistics
        learner.statistics = MAML(net(), inner_lr=0.3, steps=2, policy=policy).statistics
        three = gradient(learner, tasks, threads=3)
        assert torch.equal(one, three)
        assert all(torch.equal(a, kept.tensors()[name]) for name, a in learner.statistics.tensors().items())
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("order", [1, 2])
def test_checkpointed_steps_give_the_same_gradient_and_statistics_to_the_bit(order: int) -> None:
    plain, checkpointed = (
        MAML(net(), inner_lr=0.3, steps=3, order=order, checkpoint_steps=how, policy="support") for how in (False, True)
    )
    assert torch.equal(gradient(plain, some_tasks()), gradient(checkpointed, some_tasks()))
    for name, value in plain.statistics.tensors().items():
        assert torch.equal(value, checkpointed.statistics.tensors()[name])


def test_first_order_is_the_query_gradient_at_the_adapted_weights() -> None:
    model, (task, *_) = net(), some_tasks()
    learner = MAML(model, inner_lr=0.3, steps=2, order=1)
    found = gradient(learner, [task])
    moved = copy.deepcopy(model).train()
    torch.nn.utils.vector_to_parameters(
        torch.cat([v.flatten() for v in learner.adapt(task.support).values.values()]), moved.parameters()
    )
    functional.cross_entropy(moved(task.query.inputs), task.query.labels).backward()
    expected = torch.cat([p.grad.flatten() for p in moved.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_nothing_of_the_model_moves_but_gradients() -> None:
    model = net()
    snapshot = fl.snapshot(model)
    learner = MAML(model, inner_lr=0.3, steps=2, policy="running")
    learner.backward(some_tasks())
    learner.adapt(some_tasks()[0].support).predict(some_tasks()[0].query.inputs)
    assert not snapshot.diff(model)
    assert learner.statistics.updates == 1


def test_a_nan_task_is_skipped_and_counted_or_stops_everything() -> None:
    good, bad = some_tasks()
    bad.support.inputs[0, 0, 0, 0] = float("nan")
    learner = MAML(net(), inner_lr=0.3)
    alone = gradient(learner, [good])
    learner.zero_grad()
    batch = learner.backward([bad, good], on_nonfinite="skip")
    assert list(batch.skipped) == [0]
    assert len(batch.losses) == 1
    assert torch.equal(torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None]), alone)
    learner.zero_grad()
    kept = learner.statistics
    with pytest.raises(InnerLoopDiverged):
        learner.backward([good, bad])
    assert all(p.grad is None for p in learner.parameters())
    assert learner.statistics is kept
    assert learner.backward([bad], on_nonfinite="skip").loss != 0
    assert all(p.grad is None for p in learner.parameters())
    assert learner.statistics is kept


def test_a_kept_state_comes_back_with_its_statistics() -> None:
    learner = MAML(net(), inner_lr=0.3, steps=2, policy="per_step", learn_rates="layer_step")
    learner.backward(some_tasks())
    state = copy.deepcopy(learner.state_dict())
    other = MAML(net(seed=1), inner_lr=0.3, steps=2, policy="per_step", learn_rates="layer_step")
    other.load_state_dict(state)
    assert other.iteration == 1
    assert other.statistics.updates == 1
    assert torch.equal(gradient(learner, some_tasks()), gradient(other, some_tasks()))
    with pytest.raises(MetaError, match="another number of steps"):
        MAML(net(), inner_lr=0.3, steps=3).load_state_dict(MAML(net(), inner_lr=0.3, steps=2).state_dict())


def test_a_model_with_tied_weights_adapts_them_as_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(36, 36)
            self.two = nn.Linear(36, 36)
            self.two.weight = self.one.weight
            self.head = nn.Linear(36, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.two(torch.tanh(self.one(x.flatten(1))))))

    learner = MAML(Tied().double(), inner_lr=0.3, steps=2)
    assert "two.weight" not in learner.adapted
    assert_right(learner, some_tasks())


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: MAML(net(), inner_lr=0.1, policy="bacth"), PolicyError, "did you mean 'batch'"),
        (lambda: MAML(net("group"), inner_lr=0.1, policy="support"), PolicyError, "no batch norm"),
        (
            lambda: MAML(net("batch without tracking"), inner_lr=0.1, policy="frozen"),
            PolicyError,
            "track_running_stats",
        ),
        (lambda: MAML(net(), inner_lr=0.0), MetaError, "positive"),
        (lambda: MAML(net(), inner_lr=0.1, steps=0), MetaError, "1 or more"),
        (lambda: MAML(net(), inner_lr=0.1, order=3), MetaError, "first-order"),  # type: ignore[arg-type]
        (lambda: MAML(net(), inner_lr=0.1, adapt="nothing"), NothingSelected, "nothing"),
        (lambda: MAML(net().requires_grad_(False), inner_lr=0.1), MetaError, "requires_grad=False"),
        (lambda: MAML(net(), inner_lr=0.1, inner_optimizer=torch.optim.LBFGS), MetaError, "functional form"),
        (lambda: MAML(nn.LazyLinear(2), inner_lr=0.1), UnsupportedModel, "lazy"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    make: Callable[[], object], error: type[Exception], says: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LazyLinear warns that lazy modules may change
        with pytest.raises(error, match=says):
            make()


def test_a_classifier_with_fewer_outputs_than_classes_is_named() -> None:
    task = some_tasks()[0]
    labels = torch.tensor([0, 0, 3, 3])
    learner = MAML(net(), inner_lr=0.1)
    with pytest.raises(MetaError, match="2 outputs, and the task 4 classes"):
        learner.adapt(Examples(task.support.inputs, labels))
    with pytest.raises(MetaError, match="support set is empty"):
        learner.adapt(Examples(task.support.inputs[:0], labels[:0]))


def test_one_value_per_channel_has_no_statistics() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    one = Examples(torch.ones(1, 3), torch.tensor([0]))
    with pytest.raises(PolicyError, match="one value per channel"):
        MAML(model, inner_lr=0.1).adapt(one)
