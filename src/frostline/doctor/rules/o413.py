"""O413: the optimizer holds frozen parameters only."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import OptimizerSeen, Seen
from frostline.doctor.ownership import left_out, places_of
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, parts_of, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Optimizers that stepped, and none of whose parameters ever required a gradient."""
    idle = [o for o in seen.optimizers if _is_idle(o, seen)]
    others_train = any(o.steps for o in seen.optimizers if o not in idle)
    for optimizer in idle:
        keys = [key for group in optimizer.groups for key in group.paths]
        name = keys[0][0]
        model = seen.model(name)
        assert model is not None
        paths = [path for owner, path in keys if owner == name]
        left = [part for part in left_out(seen) if part.model is model]
        unowned = [path for part in left for path in part.paths]
        evidence = [f"requires_grad=False in all of {some(parts_of(paths, model))}"]
        evidence.append(f"no gradient at any of {counted(optimizer.steps, 'step')}, and torch does not warn")
        if unowned:
            evidence.append(f"trainable, with gradients, and in no optimizer: {some(parts_of(unowned, model))}")
        yield Found(
            message=f"all {counted(len(keys), 'parameter')} of {optimizer.name} are frozen: its steps do nothing",
            model=name,
            paths=(*places_of(paths, model), *places_of(unowned, model)),
            evidence=tuple(evidence),
            remedy="give it what is to be trained: "
            f"torch.optim.{optimizer.type}((p for p in {name}.parameters() if p.requires_grad), ...)",
            severity=Severity.INFO if others_train else Severity.ERROR,
            safety=Safety.UNSAFE,
            place=optimizer.made,
        )


def _is_idle(optimizer: OptimizerSeen, seen: Seen) -> bool:
    keys = [key for group in optimizer.groups for key in group.paths]
    tensors = [seen.tensor(key) for key in keys]
    steps = [step for step in seen.steps if step.optimizer == optimizer.name]
    return (
        bool(keys and steps)
        and all(step.without_grad == step.tensors for step in steps)
        and all(t is not None and not (t.trainable or t.trainable_now or t.gradients) for t in tensors)
        # Under a hold it waits for the thaw.
        and not all(t is not None and t.must_stay == "hold" for t in tensors)
    )


def sound(seen: Seen) -> str | None:
    """How many optimizers had something to step on."""
    if not any(t.must_stay for model in seen.models for t in model.parameters):
        return None  # nothing is frozen: then it is nothing to speak of
    busy = [
        o.name
        for o in seen.optimizers
        if any(step.optimizer == o.name and step.without_grad < step.tensors for step in seen.steps)
    ]
    return f"{', '.join(busy)} had gradients to step on" if busy else None


RULE = Rule(
    code="O413",
    what="Looks for an optimizer that steps and none of whose parameters requires a gradient.",
    why="A step without any gradient is silent: no error, no warning, and nothing moves. It happens when the filter "
    "for what is trainable is the wrong way round, or when everything is frozen after the optimizer was made.",
    evidence="That no parameter of it had a gradient in any step, what it holds, and what is trainable and has no "
    "optimizer; from the first step on.",
    example="model.trunk.requires_grad_(False)\noptimizer = torch.optim.SGD(model.trunk.parameters(), lr=0.1)",
    instead="model.trunk.requires_grad_(False)\noptimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)",
    remedy="Give the optimizer what is to be trained.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: something begins to train",
    false_alarms="A second optimizer whose part is to be unfrozen later and that steps already: this is said for "
    "information only, as long as another optimizer has something to do.",
    source="TrainCheck 84911",
    look=look,
    sound=sound,
    explains=("O403", "O412", "O411", "H602"),
)
