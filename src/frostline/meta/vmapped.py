"""All tasks of a meta-batch in one batched pass: ``vmap`` over ``grad``, never ``grad`` over ``vmap``.

``grad`` of a ``vmap`` over inner loops gives silently wrong second-order gradients with PyTorch's batch, instance and
layer norm: ``batch_norm_backward_plumbing`` in ``aten/src/ATen/functorch/BatchRulesNorm.cpp`` takes the saved mean and
deviation for constants.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import MetaError
from frostline.meta.functional_model import FunctionalModel
from frostline.meta.inner_loop import adapted_by
from frostline.meta.maml import MAML
from frostline.meta.meta_batch import TaskGradient
from frostline.meta.normalizing import LayerStatistics
from frostline.meta.task import Task

# Of float64 gradients of the same tasks; rounding leaves about 1e-14.
TOLERANCE = 1e-10


def batched_gradients(learner: MAML, tasks: Sequence[Task]) -> Iterator[TaskGradient]:
    """The outer gradient of each task, all computed at once.

    Args:
        learner: its weights are read.
        tasks: of equal shapes.

    Raises:
        MetaError: the tasks differ in shape, or the model does something that cannot be batched.
    """
    shapes = {(task.support.inputs.shape, task.query.inputs.shape) for task in tasks}
    if len(shapes) > 1:
        raise MetaError(f"tasks of {len(shapes)} shapes cannot be batched\n  fix: vmap=False, or tasks of one shape")
    # The learner's parameters are the arguments of the function that is differentiated, wherever they lie.
    stand_in = copy.copy(learner)
    stand_in._modules = dict(learner._modules)
    for name in ("rates", "norms"):
        stand_in._modules[name] = copy.deepcopy(getattr(learner, name))
    trained = {path: p for path, p in learner.named_parameters() if p.requires_grad}
    constant = {path: p.detach() for path, p in learner.named_parameters() if not p.requires_grad}
    run = FunctionalModel(learner.model)
    counts: list[dict[str, int]] = []

    def one_task(values: dict[str, Tensor], *data: Tensor) -> tuple[Tensor, Any]:
        everything = {**constant, **values}
        for path, value in everything.items():
            _put(stand_in, path, value)
        model_values = {p.removeprefix("model."): v for p, v in everything.items() if p.startswith("model.")}
        support_x, support_y, query_x, query_y = data
        passes = stand_in.passes(run, learner.policy, support_x, vmapped=True)
        task = replace(tasks[0], support=tasks[0].support._replace(inputs=support_x, labels=support_y))
        loop = replace(
            stand_in.loop(
                "second" if learner.order == 2 else "first",
                learner.steps,
                passes,
                task.support,
                task.seed,
                observe=True,
            ),
            vmapped=True,
            watch=None,
        )
        several = learner.multi_step is not None
        done = adapted_by(loop, passes, model_values, learner.adapted, support_y, keep_path=several)
        loss, query = stand_in.query_loss(done, passes, query_x, query_y)
        observed = [*done.observed, query.observed]
        counts[:] = [{path: seen.count for path, seen in met.items()} for met in observed]
        met = [{path: (seen.mean.detach(), seen.var.detach()) for path, seen in step.items()} for step in observed]
        right = (query.output.argmax(1) == query_y).float().mean()
        last = learner.loss(query.output, query_y).detach()
        return loss, (last, right, met)

    stacked = [
        torch.stack(part)
        for part in zip(
            *((t.support.inputs, t.support.labels, t.query.inputs, t.query.labels) for t in tasks), strict=True
        )
    ]
    per_task = torch.func.grad(one_task, has_aux=True)
    batched = torch.vmap(per_task, in_dims=(None, 0, 0, 0, 0))
    try:
        grads, (losses, rights, met) = batched({p: v.detach() for p, v in trained.items()}, *stacked)
    except RuntimeError as error:
        raise MetaError(
            f"this {type(learner.model).__name__} cannot be run for several tasks in one pass\n"
            f"  found: {str(error).splitlines()[0]}\n  fix: vmap=False"
        ) from error
    for place, (loss, right) in enumerate(zip(losses.tolist(), rights.tolist(), strict=True)):
        observed = [
            {path: LayerStatistics(mean[place], var[place], counts[step][path]) for path, (mean, var) in layers.items()}
            for step, layers in enumerate(met)
        ]
        yield TaskGradient(loss, right, [grads[path][place] for path in trained], observed)


def check_batched(learner: MAML, tasks: Sequence[Task]) -> list[bool]:
    """Compare the batched gradients of two tasks with those of the loop, in float64.

    The learner is only read.

    Returns:
        For each trained parameter whether the loss depends on it: where it does not, a batched gradient is zero and
        the loop's is ``None``, which an optimizer takes for something else.

    Raises:
        MetaError: they differ, or the model cannot be batched.
    """
    exact = copy.deepcopy(learner).double()
    few = [task.to(torch.float64) for task in tasks[:2]]
    run = FunctionalModel(exact.model)
    depends = [False for p in exact.parameters() if p.requires_grad]
    for task, batched in zip(few, batched_gradients(exact, few), strict=True):
        loop = exact.gradient_on(run, task).grads
        depends = [known or own is not None for known, own in zip(depends, loop, strict=True)]
        for own, other in zip(loop, batched.grads, strict=True):
            assert other is not None, "a batched gradient is zero where there is none"
            reference = torch.zeros_like(other) if own is None else own
            if not torch.allclose(reference, other, rtol=TOLERANCE, atol=TOLERANCE):
                raise MetaError(
                    f"the batched gradient of this {type(learner.model).__name__} is not that of the loop\n"
                    "  fix: vmap=False"
                )
    return depends


def _put(root: nn.Module, path: str, value: Tensor) -> None:
    if path.startswith("model."):
        return
    *parents, name = path.split(".")
    owner = root
    for parent in parents:
        owner = owner._modules[parent]  # type: ignore[assignment]
    owner._parameters[name] = value  # type: ignore[assignment]
