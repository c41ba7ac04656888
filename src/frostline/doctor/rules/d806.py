"""D806: the optimizer was made before the model was wrapped or sharded."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import Wrapped
from frostline.audit.seen import ModelSeen, OptimizerSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import SHARDING, counted, some, wrapped_by
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Optimizers that were made before a model was sharded and hold what it had then."""
    for model in seen.models:
        wrapped = wrapped_by(seen, model.name, *SHARDING)
        for optimizer in seen.optimizers if wrapped is not None else ():
            assert wrapped is not None
            paths = _lost(optimizer, model, wrapped)
            if not paths:
                continue
            owned = sum(1 for t in model.parameters if t.owner and t.owner[0] == optimizer.name)
            trainable = sum(1 for t in model.parameters if t.trainable_now)
            yield Found(
                message=f"{optimizer.name} was made before {wrapped.wrapper}: {counted(len(paths), 'parameter')} of it "
                f"{'is' if len(paths) == 1 else 'are'} no longer the model's",
                model=model.name,
                paths=paths,
                evidence=(
                    f"sharded at {wrapped.place}, which put new parameters in the place of {some(paths)}",
                    f"of {counted(trainable, 'trainable parameter')} of {model.name}, {optimizer.name} has {owned}",
                    f"so its {counted(optimizer.steps, 'step')} moved {'only a part of' if owned else 'nothing in'} it",
                ),
                remedy=f"make {optimizer.name} after {wrapped.wrapper}, from {model.name}.parameters()",
                severity=Severity.ERROR,
                safety=Safety.UNSAFE,
                place=optimizer.made if optimizer.made.is_known else wrapped.place,
            )


def _lost(optimizer: OptimizerSeen, model: ModelSeen, wrapped: Wrapped) -> tuple[str, ...]:
    """The paths of the model at which the optimizer's own parameters stood before sharding."""
    if optimizer.made_at is not None and optimizer.made_at > wrapped.at:
        return ()
    return tuple(dict.fromkeys(path for name, path in optimizer.orphans_were if name == model.name))


def sound(seen: Seen) -> str | None:
    """How many optimizers of sharded models have the model's own parameters."""
    owners = {
        t.owner[0]
        for model in seen.models
        if wrapped_by(seen, model.name, *SHARDING) is not None
        for t in model.parameters
        if t.owner
    }
    sound = [o for o in seen.optimizers if o.name in owners and not o.orphans]
    return (
        f"{counted(len(sound), 'optimizer')} made after sharding, with the sharded model's own parameters"
        if sound
        else None
    )


RULE = Rule(
    code="D806",
    what="Looks for optimizers that were made before `fully_shard` or FSDP sharded the model, and hold parameters "
    "that it no longer has.",
    why="Sharding puts new parameters in the place of the old ones. An optimizer that was made before steps the old "
    "ones: the loss does not fall, no error is raised, and the memory of the unsharded parameters is never freed.",
    evidence="The line that made the optimizer, the line that sharded, and the parameters; from the first step on.",
    example="optimizer = AdamW(model.parameters(), lr=1e-4)\nfully_shard(model)",
    instead="fully_shard(model)\noptimizer = AdamW(model.parameters(), lr=1e-4)",
    remedy="Shard first and make the optimizer then.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the model begins to train",
    false_alarms="None known: a launcher that exchanges the parameters of an optimizer for the new ones (accelerate's "
    "`prepare`) leaves none behind, and `DistributedDataParallel` keeps the parameters that it is given.",
    source="accelerate#2665, accelerate#3256, DeepSpeed#6770",
    look=look,
    sound=sound,
    explains=("O402", "O404", "O412", "O413", "H602", "O407", "F117"),
)
