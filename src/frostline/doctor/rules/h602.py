"""H602: a trainable parameter never gets a gradient."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import lru_cache

from frostline.audit.events import Backward
from frostline.audit.places import NOWHERE, Place, kind_of
from frostline.audit.seen import ModelSeen, OptimizerSeen, Seen, TensorSeen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted, parts_of, some
from frostline.findings import Safety, Severity

# So many steps without a gradient: a branch that is taken now and then, or a layer that is dropped, shows up in fewer.
_STEPS = 3


def look(seen: Seen) -> Iterator[Found]:
    """Optimizers that get no gradient at all, parameters that are read past autograd, and what is left over."""
    cut = [o for o in seen.optimizers if _is_cut_off(o, seen)]
    alive = any(step.without_grad < step.tensors for step in seen.steps)
    for optimizer in cut:
        yield _cut_off(optimizer, seen, alive=alive)
    told = {key for optimizer in cut for group in optimizer.groups for key in group.paths}
    for model in seen.models:
        without = [t for t in model.parameters if _never(t) and (model.name, t.path) not in told]
        detached = [(t, place) for t in without if (place := _read_past_autograd(t, model)).is_known]
        for tensor, place in detached:
            yield _detached(tensor, model, place)
        cut_off = {one.path for one, _ in detached}
        rest = [t for t in without if t.path not in cut_off]
        if rest:
            yield _unused(rest, model)


def _never(tensor: TensorSeen) -> bool:
    """Trainable all the time, in an optimizer, and without a gradient in several steps."""
    owned = tensor.owner is not None and tensor.trainable and tensor.trainable_now
    return owned and tensor.steps >= _STEPS and not tensor.gradients


def _is_cut_off(optimizer: OptimizerSeen, seen: Seen) -> bool:
    """Whether no parameter of an optimizer ever has a gradient, although its model runs with them, and backward too."""
    steps = [step for step in seen.steps if step.optimizer == optimizer.name]
    if len(steps) < 2 or not all(
        step.backwards and step.forwards and step.without_grad == step.tensors for step in steps
    ):
        return False
    tensors = [tensor for group in optimizer.groups for key in group.paths if (tensor := seen.tensor(key)) is not None]
    # Where a zero_grad took them away, O407 says so, and this is its consequence.
    return bool(tensors) and all(t.trainable_now and not t.gradients for t in tensors)


def _cut_off(optimizer: OptimizerSeen, seen: Seen, *, alive: bool) -> Found:
    keys = [key for group in optimizer.groups for key in group.paths if key[0]]
    name = keys[0][0]
    paths = tuple(path for owner, path in keys if owner == name)
    passes = seen.of(Backward)
    place = passes[0].place if passes else NOWHERE
    steps = sum(step.optimizer == optimizer.name for step in seen.steps)
    return Found(
        message=f"none of the {counted(len(keys), 'parameter')} of {optimizer.name} ever gets a gradient: "
        "the loss is cut off from the model",
        model=name,
        paths=paths,
        evidence=(
            (
                f"{name} ran with gradients, and {counted(len(passes), 'backward pass', 'backward passes')} ended "
                "without an error"
            ),
            f"in all {counted(steps, 'step')} of {optimizer.name} every gradient was None, so nothing moved",
        ),
        remedy="look between the model's output and this line for .detach(), .data, .item(), numpy() or "
        "torch.tensor(..., requires_grad=True)",
        severity=Severity.INFO if alive else Severity.ERROR,
        place=place,
    )


def _read_past_autograd(tensor: TensorSeen, model: ModelSeen) -> Place:
    """The line of the user's ``forward`` that reads a parameter by its value alone."""
    if model.live is None:
        return NOWHERE
    return _read_by_value(type(model.live.get_submodule(tensor.module)), tensor.path.rpartition(".")[2])


@lru_cache(maxsize=1024)
def _read_by_value(kind: type, name: str) -> Place:
    forward = getattr(kind, "forward", None)
    try:
        lines, first = inspect.getsourcelines(forward) if forward is not None else ([], 0)
        file = inspect.getsourcefile(kind) or ""
    except (OSError, TypeError):
        return NOWHERE
    if kind_of(file) != "user":
        return NOWHERE
    value = re.compile(
        rf"\bself\.{re.escape(name)}\.(data\b|detach\(|item\(|tolist\(|numpy\()|\b(float|int|torch\.tensor)\(self\.{re.escape(name)}\)"
    )
    for i, line in enumerate(lines):
        if value.search(line.partition("#")[0]):
            return Place(file, first + i, "forward")
    return NOWHERE


def _detached(tensor: TensorSeen, model: ModelSeen, place: Place) -> Found:
    return Found(
        message=f"{tensor.path} never gets a gradient: forward() reads its value past autograd",
        model=model.name,
        paths=(tensor.path,),
        evidence=(
            f"its gradient was None in all {counted(tensor.steps, 'step')}, although an optimizer has it",
            f"read at {at(place)}",
        ),
        remedy=f"use self.{tensor.path.rpartition('.')[2]} itself there",
        severity=Severity.WARNING,
        safety=Safety.UNSAFE,
        place=place,
    )


def _unused(tensors: list[TensorSeen], model: ModelSeen) -> Found:
    parts = parts_of([t.path for t in tensors], model)
    modules = [part for part in parts if part in model.modules]
    idle = [part for part in modules if _did_not_run(part, model)]
    ran = [part for part in modules if part not in idle]
    bare = [part for part in parts if part not in modules]
    evidence: list[str] = []
    if idle:
        evidence.append(f"did not run in the passes that were looked at: {some(idle)}")
    if ran:
        evidence.append(f"ran, and nothing of it went into the loss: {some(ran)}")
    if bare:
        evidence.append(f"not read, or past autograd: {some(bare)}")
    return Found(
        message=f"{counted(len(tensors), 'trainable parameter')} ({some(parts)}) got no gradient in "
        f"{counted(max(t.steps for t in tensors), 'step')}",
        model=model.name,
        paths=tuple(t.path for t in tensors),
        evidence=tuple(evidence),
        remedy="nothing has to be done if they are not meant to be used yet; "
        "with DistributedDataParallel set find_unused_parameters=True",
        severity=Severity.INFO,
    )


def _did_not_run(part: str, model: ModelSeen) -> bool:
    module = model.modules.get(part)
    return module is not None and not any(m.runs for m in (module, *model.inside(part)))


def sound(seen: Seen) -> str | None:
    """How many parameters had gradients."""
    tensors = [t for model in seen.models for t in model.parameters if t.owner is not None and t.trainable_now]
    if not tensors or not all(t.gradients for t in tensors):
        return None
    return f"all {counted(len(tensors), 'trainable parameter')} in the optimizers had gradients"


RULE = Rule(
    code="H602",
    what="Looks at every trainable parameter of an optimizer for a gradient, in at least three steps; and for what "
    "cuts it off: all of an optimizer without one, or a `forward` that reads the value alone.",
    why="A parameter that is read by `.data`, `.item()` or `.detach()`, or a loss that was made into a new tensor, "
    "has no way back. `backward()` runs without an error, the step passes over what has no gradient, and nothing is "
    "learned.",
    evidence="That every gradient was `None`, how many steps were looked at, and the line that cuts it off where the "
    "source shows it; from the second step on for a whole optimizer, from the third for a parameter.",
    example="def forward(self, x):\n    return self.body(x) * self.scale.item()",
    instead="def forward(self, x):\n    return self.body(x) * self.scale",
    remedy="Use the parameter itself, and the loss itself.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: something begins to train",
    false_alarms="Heads that are not used in this task, layers that are dropped at random, branches that are not "
    "taken, mask tokens: they are told for information only. So is an optimizer without gradients while another one "
    "has some.",
    source="state-spaces/s4#26, HorizonRobotics/alf PR1406, pytorch#22049",
    look=look,
    sound=sound,
)
