"""M211: the optimizer's own mode does not follow the model's."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import ModelSeen, OptimizerSeen, Phase, Seen
from frostline.doctor.passes import Passes
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """An optimizer with modes of its own that was in train mode in validation, or in eval mode in a step."""
    for optimizer in seen.optimizers:
        if not optimizer.modes:
            continue
        stepped = sum(not mode for mode in optimizer.in_train_mode)
        looked = sum(optimizer.in_train_mode_at_eval)
        place = _look_at(seen, optimizer)
        if stepped:
            message = f"{optimizer.name} stepped in its eval mode, at the averaged weights"
            figures = f"{counted(stepped, 'step')} of {len(optimizer.in_train_mode)} in eval mode of the optimizer"
        elif looked and place is not None:
            message = f"{optimizer.name} was in its train mode while {place.model} was validated"
            figures = (
                f"{counted(looked, 'pass', 'passes')} of {place.model} in eval mode, with the optimizer in train mode; "
                f"the first at {at(place.place)}"
            )
        else:
            continue
        net = place.model if place is not None else "model"
        yield Found(
            message=message,
            model=place.model if place is not None else "",
            evidence=(figures, f"{optimizer.type} has train() and eval() of its own: the weights differ between them"),
            remedy=f"call {optimizer.name}.train() with {net}.train(), and {optimizer.name}.eval() with {net}.eval()",
            severity=Severity.ERROR,
            safety=Safety.UNSAFE,
            place=place.place if place is not None else optimizer.made,
        )


def _models(seen: Seen, optimizer: OptimizerSeen) -> list[ModelSeen]:
    mine = {name for group in optimizer.groups for name, _ in group.paths}
    return [model for model in seen.models if model.name in mine]


def _look_at(seen: Seen, optimizer: OptimizerSeen) -> Phase | None:
    """The first validation of a model of it."""
    phases = [
        phase for model in _models(seen, optimizer) for phase in Passes(seen, model).validation if not phase.training
    ]
    return min(phases, key=lambda phase: phase.first, default=None)


def sound(seen: Seen) -> str | None:
    """Which optimizers were switched with their models."""
    right = [o.name for o in seen.optimizers if o.modes and o.in_train_mode_at_eval and all(o.in_train_mode)]
    return f"{' and '.join(right)} was switched with its model" if right else None


RULE = Rule(
    code="M211",
    what="Compares the mode of an optimizer that has `train()` and `eval()` of its own, as schedule-free optimizers "
    "do, with the mode of the model whose parameters it has.",
    why="Such an optimizer trains at one point and evaluates at another, an average. `optimizer.eval()` puts the "
    "average into the model. Without it, validation and checkpoints are of the training point, which is worse; and a "
    "step in eval mode goes off from the wrong point.",
    evidence="The mode at each step, and at each pass of the model in eval mode; from the first validation on.",
    example="model.eval()\nwith torch.no_grad():\n    validate(model)\nmodel.train()",
    instead="model.eval()\noptimizer.eval()\nwith torch.no_grad():\n    validate(model)\nmodel.train()\n"
    "optimizer.train()",
    remedy="Call the optimizer's `train()` and `eval()` wherever the model's are called.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: it is an edit of the loop, and the figures of validation change",
    false_alarms="Validation at the training point on purpose.",
    source="schedule_free#60",
    look=look,
    sound=sound,
)
