"""Another head in the place of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from frostline.errors import ModelError
from frostline.heads.class_names import read_classes
from frostline.heads.initial import Head, carry_over, kind_of, new_head
from frostline.heads.plan import HeadChange, HeadPlan, HeadSteps, States
from frostline.heads.seats import find_seats, first_state, torch_optimizer
from frostline.heads.site import find_head
from frostline.heads.widened import Widened


def plan_replace_head(
    model: nn.Module,
    name: str,
    classes: int | Sequence[str],
    *,
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
) -> HeadPlan:
    """Say what :func:`replace_head` would do. Nothing is changed; arguments and errors are the same.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1000))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> print(plan_replace_head(model, "2", ["ant", "bee"], optimizer=optimizer))
        plan: 2: 1,000 -> 2 outputs (ant, bee)
          weight and bias in group 0 of SGD
    """
    site = find_head(model, name, "replace_head")
    old = site.module
    count, named = read_classes(classes, site.asked)
    if not isinstance(old, nn.Linear) and count % old.groups:
        raise ModelError(
            f"{site.asked}: a convolution with groups={old.groups} cannot have {count} outputs\n"
            f"  fix: a multiple of {old.groups}, or a head with groups=1"
        )
    inner = None if optimizer is None else torch_optimizer(optimizer, site.asked)
    seats = {} if inner is None else find_seats(inner, site.parameters)

    def make() -> Head:
        made = new_head(old, count, generator or torch.Generator().manual_seed(0))
        # A subclass computes its logits in its own way (a cosine classifier), and shall go on doing so.
        cls = kind_of(old) if isinstance(old, Widened) else type(old)
        carry_over(old, made, cls, but=("blocks",))
        return made

    def states(made: Head) -> States:
        return {} if inner is None else {k: first_state(inner, s, made.get_parameter(k)) for k, s in seats.items()}

    steps = HeadSteps(model, "replace_head", site, inner, seats, make, states, (site.rows, count))
    return steps.plan(0, named, count, [])


def replace_head(
    model: nn.Module,
    name: str,
    classes: int | Sequence[str],
    *,
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
) -> HeadChange:
    """Put a new head with another number of outputs into the place of one, in the model and in its optimizer.

    Device, dtype, mode, bias, class, and of a convolution its geometry stay what they were, and so does every other
    module and tensor. The new parameters require gradients, whether or not the old ones did; they start from the
    values that torch's own layer starts from, drawn from ``generator`` alone. Where the modules above the head have an
    attribute ``num_classes`` or ``num_labels`` that says the old number, it says the new one. A module that stands
    under several paths is replaced under all of them. Either everything is changed or, on an error, nothing.

    Args:
        model: any module, changed in place; ``torch.compile`` and DataParallel are looked through, and what is compiled
            is compiled anew at its next call.
        name: the dotted path of an ``nn.Linear``, or of an ``nn.Conv1d/2d/3d`` whose channels are the classes.
        classes: how many, or their names in the order of the outputs.
        optimizer: the optimizer that trains the model. The new parameters sit exactly where the old ones sat: same
            group, same position. The state of the old ones is dropped; every other state, every option of the groups,
            and schedulers that were made before stay. Parameters that sat in no group are in none afterwards.
        generator: what the start values are drawn from; by default a fresh one with the seed 0, so that two heads of
            one shape start alike.

    Returns:
        The :class:`~frostline.heads.plan.HeadChange`, which prints what was done.

    Raises:
        ModelError: there is no such layer (the nearest are named), or it cannot be replaced without losing something:
            it is held, tied, parametrized, pruned, hooked, lazy, quantized, compiled by itself, the model itself, or
            in a model that is wrapped for training on several devices.
        UnsupportedModel: the model is one of ``torch.jit``.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1000))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> print(replace_head(model, "2", 10, optimizer=optimizer))
        2: 1,000 -> 10 outputs, 40 parameters
          weight and bias in group 0 of SGD
        >>> optimizer.param_groups[0]["params"][2] is model[2].weight
        True

    Source:
        ``timm.models.resnet.ResNet.reset_classifier``, which leaves the optimizer with the parameters of the old head
        and the new head in train mode, in float32 on the CPU.
    """
    return plan_replace_head(model, name, classes, optimizer=optimizer, generator=generator).apply()
