"""Whether a schedule fits a model, its optimizer and a saved state; else it is refused before anything is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from frostline.errors import CannotThaw, ModelError, SelectionError, name_some, printable
from frostline.freezing.live_wrappers import not_exchanged
from frostline.optim.groups import title_of
from frostline.optim.steppable import not_held, refuse_parallel, the_one
from frostline.optim.unfreeze import Stage
from frostline.state.selection import Selection


def names_in(stage: Stage) -> list[str]:
    """The parts of a stage, as it names them."""
    return [part if isinstance(part, str) else repr(part) for part in stage.parts]


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse what exchanges the gradients of a fixed set of parameters.

    Raises:
        ModelError: it does.
    """
    refuse_parallel(
        model,
        "Unfreezing: DistributedDataParallel exchanges gradients of what required them when it was made, and says "
        "nothing of others\n  fix: unfreeze on the module inside, and wrap it anew after each stage: ddp = "
        "frostline.freezing.rewrap(ddp, unfreezing.epoch_end)",
    )


def refuse_inside_steps(stage: Stage, model: nn.Module, part: Selection) -> None:
    """Refuse a stage that begins within a step, where a live wrapper would exchange no gradients of it.

    Raises:
        CannotThaw: there is such a wrapper; nothing can be wrapped anew within a step.
    """
    if not_exchanged(model, part.parameters):
        raise CannotThaw(
            f"Unfreezing: {name_some(names_in(stage))} would begin to train within a step ({stage.at!r}), and "
            "DistributedDataParallel, which was made without it, would exchange none of its gradients.\n"
            "  fix: Epoch(...) instead, and ddp = frostline.freezing.rewrap(ddp, unfreezing.epoch_end); or wrap with "
            "find_unused_parameters=True before the schedule is attached"
        )


def the_scheduled_one(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer that was meant.

    Raises:
        ModelError: there is not exactly one, or it cannot be worked with.
    """
    return the_one(
        optimizer,
        "Unfreezing",
        hooks="_optimizer_state_dict_pre_hooks",
        several="a schedule for each",
        lbfgs="and remembers where they went: what begins to train later would begin with a false memory\n"
        "  fix: freeze() by hand, and a new LBFGS after each thaw()",
    )


def check_apart(stages: Iterable[Stage], parts: Iterable[Selection]) -> None:
    """Refuse stages that overlap.

    Raises:
        SelectionError: they do.
    """
    # Tensors by identity, because they may have several names; modules by path, because activations are shared freely.
    seen: dict[object, int] = {}
    titles: list[str] = []
    for number, (stage, part) in enumerate(zip(stages, parts, strict=True)):
        titles.append(", ".join(names_in(stage)))
        keys: list[tuple[str, object]] = [(path, id(tensor)) for path, tensor in part.parameters.items()]
        keys += [(path, id(tensor)) for path, tensor in part.buffers.items()]
        keys += [(path, path) for path in part.modules]
        for path, key in keys:
            before = seen.setdefault(key, number)
            if before != number:
                raise SelectionError(
                    f"Unfreeze: {path or 'the model'} is in two stages, {titles[before]} and {titles[number]}\n"
                    "  fix: stages that do not overlap"
                )


def check_same(saved: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> None:
    """Refuse the state of another schedule.

    Args:
        saved: what was saved of each stage.
        own: the same of the schedule that it is loaded into.

    Raises:
        ModelError: they differ; the first stage that does is shown.
    """
    if list(saved) == list(own):
        return
    if len(saved) != len(own):
        said = f"it has {len(saved)} stages\n  found: {len(own)} stages here"
    else:
        number = next(n for n, (theirs, ours) in enumerate(zip(saved, own, strict=True)) if theirs != ours)
        said = f"its stage {number + 1} is {_line(saved[number])}\n  found: {_line(own[number])} here"
    raise ModelError(f"the state is of another schedule: {said}\n  fix: the schedule that the run began with")


def _line(stage: Mapping[str, Any]) -> str:
    return f"{name_some(list(stage['parts']))} at {printable(str(stage['at']))}, warm-up {stage['warmup']}"


def groups_of(stage: Stage, part: Selection, optimizer: Optimizer) -> list[int]:
    """The numbers of the optimizer's groups that hold a stage's parameters and nothing else.

    Raises:
        ModelError: the optimizer lacks some; or the stage is to be warmed up, and shares a group with others.
    """
    members = {id(parameter) for parameter in part.parameters.values()}
    if missing := not_held(part.parameters, optimizer):
        raise ModelError(
            f"Unfreeze: the optimizer does not hold what will be unfrozen: {name_some(missing)}\n"
            "  fix: make it from fl.param_groups(model, ...), frozen parts included; nothing is added later"
        )
    own: list[int] = []
    mixed: list[str] = []
    for index, group in enumerate(optimizer.param_groups):
        inside = [id(parameter) in members for parameter in group["params"]]
        if any(inside) and not all(inside):
            mixed.append(title_of(group, index))
        elif any(inside):
            own.append(index)
    # A group of several parts has no warmth of its own.
    if mixed and stage.warmup:
        raise ModelError(
            f"Unfreeze: {', '.join(names_in(stage))} is to be warmed up, and shares groups with other parts: "
            f"{name_some(mixed)}\n"
            "  fix: fl.param_groups(model, lr, layer_decay=1.0), which gives each layer its own groups"
        )
    return own
