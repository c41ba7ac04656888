"""M208: a network that only gives targets runs in train mode."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import ModelSeen, Phase, Seen
from frostline.doctor.passes import dropping, giving_passes, layers, mode_matters
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, call_at, counted, last_mode_call, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """A model in no optimizer that runs in the training steps of another, in train mode."""
    for model in seen.models:
        phases = [phase for phase in model.phases if dropping(model, phase)] if _only_gives(seen, model) else []
        if not phases:
            continue
        active = tuple(dict.fromkeys(path for phase in phases for path in dropping(model, phase)))
        moved = tuple(dict.fromkeys(path for phase in phases for path in phase.moved))
        follows = _follows(model)
        call = last_mode_call(seen, model.name, mode=True)
        evidence = [f"{counted(sum(p.forwards for p in phases), 'pass', 'passes')} in train mode, {_first(phases)}"]
        if moved:
            evidence.append(f"statistics that moved in them: {some(moved)}")
        evidence.append(
            f"training=True in {layers(model, active)}"
            + (f" (set by {call_at(call.place)})" if call else "; a module that is made is in train mode")
        )
        evidence.append(
            "its parameters follow those of another model"
            if follows
            else "no optimizer has it, and its parameters stay"
        )
        yield Found(
            message=f"{model.name} only gives targets, and {layers(model, active)} of it ran in train mode",
            model=model.name,
            paths=active,
            evidence=tuple(evidence),
            remedy=f"{model.name}.eval()",
            severity=Severity.INFO if follows else Severity.ERROR if moved else Severity.WARNING,
            safety=Safety.UNSAFE,
            place=call.place if call is not None else phases[0].place,
        )


def _only_gives(seen: Seen, model: ModelSeen) -> bool:
    owned = any(t.owner is not None or t.owned_at_start is not None for t in model.parameters)
    averaged = any("averaged" in module.kinds for module in model.modules.values())
    return not (model.trained or owned or averaged) and giving_passes(seen, model)


def _follows(model: ModelSeen) -> bool:
    """Whether it is a moving average of another: a mean teacher is often in train mode by design."""
    return any(t.moved for t in model.parameters)


def _first(phases: list[Phase]) -> str:
    return f"the first at {at(phases[0].place)}"


def sound(seen: Seen) -> str | None:
    """Which networks that nothing trains ran in eval mode."""
    right = [
        model.name
        for model in seen.models
        if _only_gives(seen, model)
        and any(mode_matters(module) for module in model.modules.values())
        and not any(dropping(model, phase) for phase in model.phases)
    ]
    return f"{' and '.join(right)}, which no optimizer has, ran in eval mode" if right else None


RULE = Rule(
    code="M208",
    what="Looks for a model that no optimizer has, that runs in the training steps of another, and at its mode.",
    why="A teacher, a reference policy or a network for a perceptual loss is meant to be a fixed function. In train "
    "mode its dropout makes the targets noisy, its batch normalization makes them depend on the other samples of the "
    "batch, and its statistics move towards the student's data although nothing trains it.",
    evidence="The passes, the layers in train mode, the line that set it, and the statistics that moved; from the "
    "first training step on.",
    example="teacher = load_teacher()\nfor x, y in loader:\n    with torch.no_grad():\n        target = teacher(x)",
    instead="teacher = load_teacher().eval().requires_grad_(False)\nfor x, y in loader:\n    with torch.no_grad():\n"
    "        target = teacher(x)",
    remedy="Call `teacher.eval()` once; nothing else calls its `train()` while it is no part of the student.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the targets change, and with them the training",
    false_alarms="A target network whose batch normalization is meant to use the batch, as in MoCo or BYOL: where "
    "its parameters follow another model it is only an info. A teacher that is a part of the student's own module is "
    "a frozen part: F107 and M207.",
    source="unbiased-teacher#47, TaCL#11, sparseml#2191, Lightning#2824",
    look=look,
    sound=sound,
    explains=("F107", "M207"),
)
