"""O412: trainable parameters are in no optimizer."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.places import Place
from frostline.audit.seen import Seen, total
from frostline.doctor.ownership import LeftOut, left_out, params_in_code
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted, parts_of, quoted, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Parameters with gradients that no optimizer has: forgotten, or left out on purpose, which costs memory only."""
    for left in left_out(seen):
        if left.why in {"forgotten", "meant"}:
            yield _found(left)


def _found(left: LeftOut) -> Found:
    home, model = left.optimizer, left.model
    parts = parts_of(left.paths, model)
    meant = left.why == "meant"
    owned = sum(name == model.name for group in home.groups for name, _ in group.paths)
    groups = len(home.groups)
    evidence = [
        f"{home.name} has {counted(owned, 'parameter')} of {model.name}"
        + (f" in {groups} groups" if groups > 1 else "")
        + (f"; made at {at(home.made)}" if home.made.is_known else ""),
        f"in no optimizer: {some(left.paths)} ({counted(total(left.tensors), 'element')})",
        (
            f"gradients at {max(t.gradients for t in left.tensors)} of "
            f"{counted(max(t.steps for t in left.tensors), 'step')}, values unchanged"
        ),
    ]
    place: Place = home.made
    if left.cause is not None:
        evidence.insert(0, f"put into the model after the optimizer was made, at {at(left.cause.place)}")
        place = left.cause.place
    if meant:
        message = (
            f"{counted(len(left.tensors), 'parameter')} ({some(parts)}) left out of every optimizer: fixed, but with "
            "gradients that are computed and kept"
        )
        remedy = f"frostline.freeze({model.name}, {quoted(parts)}) saves the time and memory of these gradients"
    else:
        never = "it never trains" if len(left.tensors) == 1 else "they never train"
        message = f"no optimizer has {counted(len(left.tensors), 'trainable parameter')} ({some(parts)}): {never}"
        remedy = f'{home.name}.add_param_group({{"params": {params_in_code(parts, model)}}})'
    return Found(
        message=message,
        model=model.name,
        # The parts as a whole where they were forgotten: their statistics move because they were meant to train.
        paths=left.paths if meant else left.places,
        evidence=tuple(evidence),
        remedy=remedy,
        severity=Severity.INFO if meant else Severity.WARNING,
        safety=Safety.UNSAFE,
        place=place,
        inferred=True,
    )


def sound(seen: Seen) -> str | None:
    """How many trainable parameters have exactly one optimizer."""
    trained = [t for model in seen.trained for t in model.parameters if t.trainable_now and t.gradients]
    if not trained or not all(t.owner is not None for t in trained):
        return None
    return f"all {counted(len(trained), 'parameter')} with gradients are in an optimizer"


RULE = Rule(
    code="O412",
    what="Asks of every trainable parameter that gets gradients whether an optimizer has it.",
    why="A list of parameters by name or by part is easily incomplete: the stem, the pooler, a norm layer, the new "
    "classifier. What is missing stays at its start, random or pretrained, and the rest adapts to it.",
    evidence="Which parameters, that they had gradients and did not move, what the optimizer has instead and where it "
    "was made; from the first step on.",
    example="optimizer = torch.optim.SGD([\n"
    '    {"params": model.layers.parameters(), "lr": 0.001},\n'
    '    {"params": model.fc.parameters(), "lr": 0.01},\n'
    "])  # and the stem?",
    instead="optimizer = torch.optim.SGD(frostline.param_groups(model, 0.001, head_lr=0.01))",
    remedy="Add them to a group, or say that they are frozen.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the part begins to train",
    false_alarms="Leaving a part out of the optimizer is also a way to freeze it. It is taken for one, and told for "
    "information only, where all of what is left out comes before what is trained (a trunk), is in eval mode, or is "
    "most of the model (a prompt, biases or norm layers are trained alone). Otherwise call `requires_grad_(False)` "
    "on what is meant to be fixed: that says it, and saves its gradients.",
    source="mmf PR620, HVPNeT#5",
    look=look,
    sound=sound,
    explains=("F107",),
)
