"""What every few-shot learner is: a model with a statistics policy, which adapts to tasks and learns from many."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from frostline.errors import InnerLoopDiverged, MetaError
from frostline.meta.adapted import Adapted
from frostline.meta.functional_model import FunctionalModel, check_not_lazy, governed_layers
from frostline.meta.guard import brief
from frostline.meta.meta_batch import GradientSum, Met, MetaBatch, OnNonfinite, TaskGradient, Told, what_is_not_finite
from frostline.meta.norm_parameters import NormParameters
from frostline.meta.passes import Passes, check_policy
from frostline.meta.policy import Policy
from frostline.meta.statistics import KeptStatistics
from frostline.meta.task import Examples, Task
from frostline.meta.task_threads import in_threads
from frostline.norms.processes import in_all, world_size

R = TypeVar("R")
S = TypeVar("S")


class Learner(nn.Module, ABC):
    """A model with a statistics policy, which adapts to tasks and learns from many of them.

    The model is used as it is, unmodified: tasks run on copies of its modules, so that neither its parameters nor its
    buffers, modes and hooks are touched but by the optimizer of the outer loop. :attr:`statistics` is a value, which
    :meth:`backward` replaces by a new one.

    Attributes:
        model: the model.
        policy: which statistics meta-training normalizes with; ``None`` for a model without batch norm.
        statistics: what meta-training has kept.
        norms: parameters that the policy adds.
        steps: inner steps of training.
    """

    def __init__(self, model: nn.Module, *, policy: Any, steps: int) -> None:
        super().__init__()
        check_not_lazy(model)
        self.model = model
        self.steps = steps
        layers = governed_layers(model)
        self.statistics = KeptStatistics.of(model, steps)
        chosen = Policy.of("batch" if policy is None else policy)
        if policy is not None:
            check_policy(chosen, layers, self.statistics, type(model).__name__)
        self.policy = chosen
        self.norms = NormParameters(layers, chosen, steps)
        # Whether a pass has been seen to draw random numbers: those cannot be each task's own in several threads.
        self._draws = False

    # What a learner of one kind has to say.

    @abstractmethod
    def adapted_on(self, run: FunctionalModel, support: Examples, policy: Policy, steps: int, seed: int) -> Adapted:
        """Adapt without building a graph; the caller has seeded what is drawn at random."""

    @abstractmethod
    def gradient_on(self, run: FunctionalModel, task: Task) -> TaskGradient:
        """The outer gradient of one task."""

    @abstractmethod
    def observed_on(self, run: FunctionalModel, task: Task, queries: Sequence[Any]) -> list[Met]:
        """Adapt without building a graph, and return the statistics that the passes met.

        One mapping for each inner step, and one for each of the query passes.
        """

    def batched(self, tasks: Sequence[Task]) -> Iterator[TaskGradient]:
        """The outer gradients of all tasks in one batched pass."""
        raise MetaError(
            f"{type(self).__name__} has no batched form for {len(tasks)} tasks\n"
            "  fix: vmap=False; threads= is the other way"
        )

    def can_batch(self, tasks: Sequence[Task]) -> bool:
        """Whether these tasks can run in one batched pass with the gradients of the loop."""
        del tasks
        return False

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What changes the results, as values of JSON."""

    # What all have in common.

    def adapt(self, support: Examples, *, policy: Any = None, steps: int | None = None, seed: int = 0) -> Adapted:
        """Adapt to a support set; the learner and its model stay as they are.

        Random layers draw from ``seed``, and the global generators are afterwards as before. Modes are those of the
        model's modules at this moment.

        Args:
            support: inputs and labels.
            policy: by default the learner's own.
            steps: inner steps, by default those of training.
            seed: of dropout and the like.

        Raises:
            InnerLoopDiverged: adapting blew up; see :class:`~frostline.meta.Guard`.
            PolicyError: the model cannot have this policy.
        """
        run = self.functional()
        with seeded_by(seed, run):
            return self.adapted_on(run, support, self.policy_for(policy), self.steps_for(steps), seed)

    def backward(
        self,
        tasks: Sequence[Task],
        *,
        threads: int | None = None,
        vmap: bool | None = None,
        on_nonfinite: OnNonfinite = "stop",
    ) -> MetaBatch:
        """Add the gradient of the tasks' mean query loss to ``.grad`` of the trained parameters.

        Each task's graph is freed before the next one's is built, so that memory does not grow with their number. The
        gradient is a sum in the order of the tasks, the same to the bit with any number of threads of one intra-op
        thread. Where ``torch.distributed`` is initialized, each process works on its share of the same tasks, and all
        end with the gradient that one process would have, to rounding. :attr:`statistics` take in what the passes met.
        Nothing is changed if a task raises.

        Args:
            tasks: the meta-batch; with several processes the same in each of them.
            threads: tasks at a time, each with one intra-op thread; by default as many as PyTorch's intra-op threads on
                a CPU, and one on other devices. A model that draws random numbers in its passes runs one after
                the other, so that each task's are its own.
            vmap: all tasks in one batched pass, ``vmap`` over ``grad``, which takes the memory of all of them. The
                first use compares it with the loop, in float64. By default it is used on a GPU where it is exact.
            on_nonfinite: ``stop`` raises at a task whose loss or gradient is NaN or infinite, or whose inner loop blows
                up; ``skip`` leaves it out, and counts it in :attr:`MetaBatch.skipped`.

        Raises:
            InnerLoopDiverged: with ``stop``; the task is named.
            MetaError: no tasks, or the learner has nothing to train.
        """
        if not tasks:
            raise MetaError("backward was given no tasks\n  fix: at least one")
        trained = [p for p in self.parameters() if p.requires_grad]
        if not trained:
            raise MetaError(f"{type(self).__name__} has nothing to train: no parameter requires a gradient")
        found = self._gradients(tasks, trained, threads, vmap, on_nonfinite)
        # Without a task that counts there are no gradients either.
        for parameter, grad in zip(trained, found.grads or [None] * len(trained), strict=True):
            if grad is not None:
                mean = grad / len(found.losses)
                parameter.grad = mean if parameter.grad is None else parameter.grad + mean
        momenta = {path: layer.momentum for path, layer in governed_layers(self.model).items()}
        self.statistics = self.statistics.updated(found.observed, momenta)
        count = len(found.losses)
        loss, accuracy = (sum(each) / count if count else float("nan") for each in (found.losses, found.correct))
        return MetaBatch(loss, accuracy, tuple(found.losses), found.skipped)

    def over_tasks(
        self,
        work: Callable[[FunctionalModel, Task], R],
        tasks: Sequence[Task],
        consume: Callable[[Iterator[R]], S],
        *,
        threads: int | None = None,
        training: bool | None = None,
    ) -> S:
        """Do some work for each task on copies of the model, and consume what comes of it in the order of the tasks.

        Each task's random numbers come from its own seed. Threads cannot give each its own, so where random numbers
        turn out to be drawn in threads, what was made with them is thrown away, and all tasks run one after the other.

        Args:
            work: is given the model as a function, and a task.
            tasks: what to work on.
            consume: makes one value of all results; called a second time in the case above.
            threads: see :meth:`backward`.
            training: the mode of all modules of the copies; by default as the model has them.
        """
        count = self._threads(threads, len(tasks))
        if count > 1 and not self._draws:
            before = torch.default_generator.get_state()
            found = consume(in_threads(work, tasks, [self.functional(training) for _ in range(count)]))
            if torch.equal(torch.default_generator.get_state(), before):
                return found
            torch.default_generator.set_state(before)
            self._draws = True

        def seeded(run: FunctionalModel, task: Task) -> R:
            with seeded_by(task.seed, run):
                return work(run, task)

        return consume(in_threads(seeded, tasks, [self.functional(training)]))

    def functional(self, training: bool | None = None) -> FunctionalModel:
        """The model as a function of values, as it is at this moment, or with all modules in one mode."""
        return FunctionalModel(self.model, training=training)

    def values(self) -> dict[str, Tensor]:
        """The model's parameters by path."""
        return dict(self.model.named_parameters())

    def passes(self, run: FunctionalModel, policy: Policy, support: Any, *, vmapped: bool = False) -> Passes:
        """The passes of one task."""
        like = next(self.model.parameters()).detach()
        kept = self.statistics.to(dict.fromkeys(self.statistics.running, like))
        return Passes(run, policy, kept, self.norms, support, vmapped)

    def policy_for(self, policy: Any) -> Policy:
        """A policy that this model can have; ``None`` is the learner's own."""
        if policy is None:
            return self.policy
        chosen = Policy.of(policy)
        check_policy(chosen, governed_layers(self.model), self.statistics, type(self.model).__name__)
        return chosen

    def steps_for(self, steps: int | None) -> int:
        """A number of inner steps; ``None`` is that of training."""
        if steps is None:
            return self.steps
        if steps < 0:
            raise MetaError(f"steps={steps} inner steps were asked for\n  fix: 0 or more")
        return steps

    def get_extra_state(self) -> dict[str, Tensor]:
        """The kept statistics, for ``state_dict``."""
        return self.statistics.tensors()

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the kept statistics of a ``state_dict``."""
        self.statistics = self.statistics.from_tensors(state)

    def _threads(self, asked: int | None, tasks: int) -> int:
        if asked is not None and asked < 1:
            raise MetaError(f"threads={asked}\n  fix: 1 or more")
        on_cpu = next(self.parameters()).device.type == "cpu"
        return max(1, min((torch.get_num_threads() if on_cpu else 1) if asked is None else asked, tasks))

    def _gradients(
        self,
        tasks: Sequence[Task],
        trained: list[nn.Parameter],
        threads: int | None,
        vmap: bool | None,
        how: OnNonfinite,
    ) -> GradientSum:
        world = world_size()
        rank = dist.get_rank() if world > 1 else 0
        mine = list(range(rank, len(tasks), world))

        def work() -> GradientSum:
            return self._summed(tasks, mine, threads, vmap, how)

        if world == 1:
            return work()
        own: list[GradientSum] = []

        def local() -> Told:
            own.append(work())
            return own[0].told()

        told = in_all(local)
        return own[0].united(told, trained)

    def _summed(
        self,
        tasks: Sequence[Task],
        mine: list[int],
        threads: int | None,
        vmap: bool | None,
        how: OnNonfinite,
    ) -> GradientSum:
        chosen = [tasks[place] for place in mine]

        def consume(found: Iterator[TaskGradient | str]) -> GradientSum:
            return GradientSum.of(found, mine, how)

        on_gpu = next(self.parameters()).device.type == "cuda"
        if vmap or (vmap is None and on_gpu and chosen and self.can_batch(chosen)):
            found = self.batched(chosen) if chosen else iter(())
            return consume(
                one if (fault := what_is_not_finite(one)) is None else f"task {task.index} gave {fault}"
                for task, one in zip(chosen, found, strict=True)
            )

        # What is left out need not be explained at length.
        learner = brief(self) if how == "skip" else self

        def one(run: FunctionalModel, task: Task) -> TaskGradient | str:
            try:
                found = learner.gradient_on(run, task)
            except InnerLoopDiverged as error:
                text = f"task {task.index}: {error}"
                if how == "stop":
                    raise InnerLoopDiverged(text, error.report) from error
                return text.splitlines()[0]
            fault = what_is_not_finite(found)
            return found if fault is None else f"task {task.index} gave {fault}"

        return self.over_tasks(one, chosen, consume, threads=threads)


@contextlib.contextmanager
def seeded_by(seed: int, run: FunctionalModel) -> Generator[None]:
    """Let everything that is drawn inside depend on the seed, and put the global generators back afterwards."""
    device = run.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield
