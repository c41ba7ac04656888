"""N303: a normalization layer uses the batch in eval mode, hard-coded."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import Draw, ModelSeen, Seen
from frostline.doctor.passes import classes
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Batch statistics in a pass in eval mode, in a module that is in eval mode and is no layer without statistics."""
    for model in seen.models:
        draws = _hard_coded(model)
        if not draws:
            continue
        first = draws[0]
        paths = tuple(dict.fromkeys(draw.path for draw in draws))
        moved = tuple(
            dict.fromkeys(
                path
                for phase in model.phases
                if not phase.training
                for path in phase.moved
                if model.tensors[path].module in set(paths)
            )
        )
        evidence = [
            f"{first.op} with statistics of the batch at {at(first.place)}",
            f"training=False in {classes(model, paths)}",
        ]
        if moved:
            evidence.append(f"statistics that moved in eval mode: {some(moved)}")
        yield Found(
            message=f"{counted(len(paths), 'module')} {'normalizes' if len(paths) == 1 else 'normalize'} with the "
            "batch in eval mode, hard-coded",
            model=model.name,
            paths=paths,
            evidence=tuple(evidence),
            remedy="pass training=self.training to functional.batch_norm",
            severity=Severity.ERROR if moved else Severity.WARNING,
            safety=Safety.MANUAL,
            place=first.place,
        )


def _hard_coded(model: ModelSeen) -> list[Draw]:
    found: list[Draw] = []
    for draw in model.draws:
        module = model.modules[draw.path]
        # An instance norm runs the same operator on the channels of one sample.
        alike = "InstanceNorm" in module.type or "instance_norm" in draw.place.text
        if draw.what == "batch_norm" and not draw.training and not module.no_statistics and not alike:
            found.append(draw)
    return found


def sound(seen: Seen) -> str | None:
    """How many normalization layers used their running statistics in eval mode."""
    right = sum(
        "batchnorm" in module.kinds and not module.no_statistics
        for model in seen.models
        if any(not phase.training for phase in model.phases) and not any(d.what == "batch_norm" for d in model.draws)
        for module in model.modules.values()
    )
    return f"{counted(right, 'batch norm')} did not use the batch in eval mode" if right else None


RULE = Rule(
    code="N303",
    what="Looks at the operators of one pass in eval mode, for batch normalization with the statistics of the batch.",
    why="`functional.batch_norm(..., training=True)` does not look at the mode of the model. At test time a sample "
    "is classified by the samples next to it, the figure depends on the order of the data, and running statistics "
    "that are passed along are moved towards the test data.",
    evidence="The operator, its line, the module in eval mode that it ran in, and the statistics that moved; in the "
    "first pass in eval mode.",
    example="return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=True)",
    instead="return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, "
    "training=self.training)",
    remedy="Pass `training=self.training`.",
    safety=Safety.MANUAL,
    how_safe="manual: the line has to be edited; nothing in memory can mend it, and outputs in eval mode change",
    false_alarms="Few-shot learning that uses the statistics of the test batch on purpose. Instance normalization "
    "and weight standardization, which run the same operator on one sample, are known.",
    source="HowToTrainYourMAML#3",
    look=look,
    sound=sound,
)
