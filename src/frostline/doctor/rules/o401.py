"""O401: parameters that were unfrozen later are in no optimizer."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import GradFlag
from frostline.audit.seen import Seen
from frostline.doctor.ownership import LeftOut, left_out, params_in_code
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted, parts_of, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Parameters that became trainable after the optimizer was made, get gradients, and are in no optimizer."""
    for left in left_out(seen):
        if left.why == "unfrozen" and left.cause is not None:
            yield _found(left, seen)


def _found(left: LeftOut, seen: Seen) -> Found:
    assert left.cause is not None
    home, unfreeze = left.optimizer, left.cause
    steps = sum(step.step >= unfreeze.step for step in seen.steps)
    parts = parts_of(left.paths, left.model)
    own = sum(len(group.paths) for group in home.groups)
    when = f"after {counted(unfreeze.step, 'step')}" if unfreeze.step else "before the first step"
    evidence = [
        f"requires_grad became True {when}, at {at(unfreeze.place)}",
        f"{home.name} has {counted(own, 'other parameter')}"
        + (f"; made before that, at {at(home.made)}" if home.made.is_known else ""),
        f"gradients at {max(t.gradients for t in left.tensors)} of {counted(steps, 'later step')}, values unchanged",
    ]
    return Found(
        message=f"no optimizer has {counted(len(left.tensors), 'parameter')} ({some(parts)}), unfrozen after "
        f"{home.name} was made: {'it never trains' if len(left.tensors) == 1 else 'they never train'}",
        model=left.model.name,
        paths=left.paths,
        evidence=tuple(evidence),
        remedy=f'{home.name}.add_param_group({{"params": {params_in_code(parts, left.model)}}})'
        ", next to the line that unfreezes them" + ("; then make the scheduler anew" if home.schedulers else ""),
        severity=Severity.ERROR,
        safety=Safety.UNSAFE,
        place=unfreeze.place,
    )


def sound(seen: Seen) -> str | None:
    """How many parameters were unfrozen while an optimizer had them."""
    flips = seen.of(GradFlag, lambda e: e.value and not e.before)
    owned = {
        (e.model, e.path) for e in flips if (t := seen.tensor((e.model, e.path))) is not None and t.owner is not None
    }
    return (
        f"{counted(len(owned), 'parameter')} that were unfrozen are in an optimizer" if owned and seen.steps else None
    )


RULE = Rule(
    code="O401",
    what="Looks at every parameter whose `requires_grad` became true after the optimizer was made, and asks whether an "
    "optimizer has it at the end.",
    why="An optimizer keeps the list of parameters that it was given. One that was made from "
    "`filter(lambda p: p.requires_grad, ...)` has the frozen ones left out for good: after unfreezing they get "
    "gradients, cost time and memory, and never move. The loss goes on falling, because the head trains.",
    evidence="The line that unfroze, the line that made the optimizer, and that the parameters had gradients and "
    "did not move; from the first step after unfreezing on.",
    example="model.backbone.requires_grad_(False)\n"
    "optimizer = torch.optim.AdamW(filter(lambda p: p.requires_grad, model.parameters()))\n"
    "...\n"
    "model.backbone.requires_grad_(True)  # epoch 3",
    instead="model.backbone.requires_grad_(True)  # epoch 3\n"
    'optimizer.add_param_group({"params": model.backbone.parameters(), "lr": 1e-5})',
    remedy="Give all parameters to the optimizer from the start (frozen ones without a gradient are passed over), "
    "or add a group where you unfreeze.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the part begins to train, at a learning rate that somebody has to choose",
    false_alarms="Parameters that are unfrozen only to get their gradients (an attack, an analysis) and moved by "
    "nobody. Parameters that are moved by hand, or that another optimizer of the program has, are never reported.",
    source="LMFlow#726, fastai#2133",
    look=look,
    sound=sound,
    explains=("O412", "O411"),
)
