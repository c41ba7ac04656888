"""O402: the optimizer holds parameters that the model no longer has."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import OptimizerSeen, Seen
from frostline.doctor.ownership import LeftOut, left_out, params_in_code
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted, parts_of, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Parts of a model that were replaced after the optimizer was made, and orphans that are the likely other half."""
    told: set[str] = set()
    lefts = left_out(seen)
    for left in lefts:
        if left.why == "replaced":
            told.add(left.optimizer.name)
            yield _replaced(left, seen)
    for left in lefts:
        # Both before the watch: the optimizer has tensors that nobody uses, and the model has some that nobody steps.
        optimizer = left.optimizer
        if left.why in {"forgotten", "meant"} and optimizer.name not in told and _never_used(optimizer, seen):
            told.add(optimizer.name)
            yield _unseen(left)


def _never_used(optimizer: OptimizerSeen, seen: Seen) -> bool:
    """Whether its orphans can never have had a gradient: in each step at least as many of its tensors had none."""
    orphans = sum(model == "" for group in optimizer.groups for model, _ in group.paths)
    steps = [step for step in seen.steps if step.optimizer == optimizer.name and step.backwards]
    return bool(orphans and len(steps) > 1 and all(step.without_grad >= orphans for step in steps))


def _replaced(left: LeftOut, seen: Seen) -> Found:
    home, put = left.optimizer, left.cause
    assert put is not None
    parts = parts_of(left.paths, left.model)
    steps = sum(step.optimizer == home.name and step.step >= put.step for step in seen.steps)
    evidence = [
        f"replaced at {at(put.place)}",
        f"{home.name} still has {counted(len(left.lost), 'old parameter')}"
        + (f"; made before that, at {at(home.made)}" if home.made.is_known else ""),
        f"{counted(len(left.tensors), 'new parameter')} with gradients, values unchanged in {counted(steps, 'step')}",
    ]
    return Found(
        message=f"{some(parts)} was replaced after {home.name} was made, which steps on the old tensors: "
        "the new part never trains",
        model=left.model.name,
        paths=tuple(dict.fromkeys([*left.places, *left.lost])),
        evidence=tuple(evidence),
        remedy="make the optimizer after the replacement, or "
        f'{home.name}.add_param_group({{"params": {params_in_code(parts, left.model)}}}) behind it',
        severity=Severity.ERROR,
        safety=Safety.UNSAFE,
        place=put.place,
    )


def _unseen(left: LeftOut) -> Found:
    home = left.optimizer
    orphans = sum(model == "" for group in home.groups for model, _ in group.paths)
    parts = parts_of(left.paths, left.model)
    shapes = ", ".join("x".join(map(str, shape)) or "scalar" for shape in home.orphans[:4])
    return Found(
        message=f"{home.name} holds {counted(orphans, 'tensor')} that no model has and that never get a gradient, "
        f"while {counted(len(left.tensors), 'trainable parameter')} of {left.model.name} are in no optimizer",
        model=left.model.name,
        paths=left.places,
        evidence=(
            *((f"orphans of {home.name}: {shapes}{', ...' if len(home.orphans) > 4 else ''}",) if shapes else ()),
            f"with gradients and in no optimizer: {some(parts)}",
            "both were so when the watch began: a part was probably replaced after the optimizer was made",
        ),
        remedy="make the optimizer after the model has its last form",
        severity=Severity.WARNING,
        safety=Safety.UNSAFE,
        place=home.made,
        inferred=True,
    )


def sound(seen: Seen) -> str | None:
    """That optimizers have nothing that the models do not have."""
    steppers = [o for o in seen.optimizers if o.steps]
    if not steppers or any(not model for o in steppers for group in o.groups for model, _ in group.paths):
        return None
    count = sum(len(group.paths) for o in steppers for group in o.groups)
    return f"all {counted(count, 'parameter')} of {counted(len(steppers), 'optimizer')} belong to a model that was seen"


RULE = Rule(
    code="O402",
    what="Looks for tensors of an optimizer that no model has any more, and for trainable parameters that stand in "
    "their place and are in no optimizer.",
    why="`model.fc = nn.Linear(...)` makes new parameters. An optimizer that was made before keeps the old ones, on "
    "which it steps without an error; the new head stays at its random start while the rest of the model adapts to "
    "it.",
    evidence="The line that replaced the part, the line that made the optimizer, what it still holds, and that the new "
    "parameters had gradients and did not move; from the first step on.",
    example="optimizer = torch.optim.SGD(model.parameters(), lr=0.01)\n"
    "model.fc = nn.Linear(512, 10)\n"
    "train(model, optimizer)",
    instead="model.fc = nn.Linear(512, 10)\n"
    "optimizer = torch.optim.SGD(model.parameters(), lr=0.01)\n"
    "train(model, optimizer)",
    remedy="Make the optimizer after the model has its last form. `frostline.replace_head` followed by a new optimizer "
    "does it in this order.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: a new optimizer begins without state, and the part begins to train",
    false_alarms="Tensors of an optimizer that belong to no module (a learned temperature, an image that is optimized, "
    "heads that are swapped in and out and are all in the optimizer) are not reported: they get gradients, and no "
    "parameter of a model lacks an optimizer.",
    source="HVPNeT#5, FairMOT#125, accelerate#2665, accelerate#3256",
    look=look,
    sound=sound,
    explains=("O412", "O413", "O411", "H602", "F107"),
)
