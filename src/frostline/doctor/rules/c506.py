"""C506: a checkpoint of the trained part lacks statistics that moved."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import biggest, counted, drift_of, saved_of, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Statistics that moved and are in no file, though the parameters beside them are, or are frozen."""
    for model in seen.models:
        saves, saved = saved_of(model, seen)
        lost = [t for t in model.buffers if _is_lost(t, saved, model)]
        if not saves or not lost:
            continue
        layers = tuple(dict.fromkeys(t.module for t in lost))
        beside = [t for t in model.parameters if t.module in layers and t.path in saved]
        worst = biggest(lost)
        parameters = [t for t in model.parameters if t.path in saved]
        evidence = [
            f"saved: {counted(len(parameters), 'parameter')}, {counted(len(saved) - len(parameters), 'buffer')}",
            f"in no file: the statistics of {counted(len(layers), 'layer')}: {some(layers)}",
            f"{worst.path}: {drift_of(worst, seen)}",
            "named_parameters() and requires_grad say nothing of statistics: they are buffers",
        ]
        if not beside:
            evidence.append("the parameters of these layers are frozen, so the base checkpoint has the old statistics")
        yield Found(
            message=f"the checkpoint lacks the statistics of {counted(len(layers), 'normalization layer')} "
            "that moved in training",
            model=model.name,
            paths=tuple(t.path for t in lost),
            evidence=tuple(evidence),
            remedy=f"save {model.name}.state_dict(), or add dict({model.name}.named_buffers())"
            if beside
            else f"add the buffers to the file, or frostline.freeze({model.name}, ...) the layers, so that they stay",
            severity=Severity.ERROR,
            safety=Safety.UNSAFE,
            place=saves[-1].place,
            inferred=True,
        )


def _is_lost(tensor: TensorSeen, saved: set[str], model: ModelSeen) -> bool:
    """A statistic that moved, and whose layer's parameters are saved, or did not train."""
    if not tensor.moved or not tensor.role.startswith("norm.") or tensor.path in saved:
        return False
    own = [t for t in model.parameters if t.module == tensor.module]
    if own and any(t.path in saved for t in own):
        return True
    return bool(own) and not any(t.moved for t in own) and _trains_and_is_saved(saved, model)


def _trains_and_is_saved(saved: set[str], model: ModelSeen) -> bool:
    """Whether what is saved is what was trained: a file that is meant to be laid over a base."""
    return any(t.moved_in_step and t.path in saved for t in model.parameters)


def sound(seen: Seen) -> str | None:
    """How many statistics that moved are in a file."""
    kept = 0
    for model in seen.models:
        saves, saved = saved_of(model, seen)
        moved = [t for t in model.buffers if t.moved and t.role.startswith("norm.")]
        if saves and any(_is_lost(t, saved, model) for t in moved):
            return None
        kept += sum(t.path in saved for t in moved)
    return f"{counted(kept, 'statistic')} that moved went into a file" if kept else None


RULE = Rule(
    code="C506",
    what="Compares what went into files with the running statistics that moved while training.",
    why="A checkpoint that is made from `named_parameters()`, or from what requires gradients, has no buffers. "
    "Whoever loads it gets the trained weights with the statistics of the base model, or with mean 0 and variance 1: "
    "the accuracy after reloading is lower than before saving, often by tens of points.",
    evidence="The parameters and buffers of the model that the files have, and the statistics that moved and that "
    "none of them has; at the end of the watch.",
    example='torch.save({n: p for n, p in model.named_parameters() if p.requires_grad}, "trained.pt")',
    instead='torch.save(model.state_dict(), "trained.pt")\n'
    "# or, with what is frozen held still, statistics included:\n"
    'hold = frostline.freeze(model, "backbone", optimizer=optimizer)\n'
    'torch.save({n: p for n, p in model.named_parameters() if p.requires_grad}, "adapter.pt")',
    remedy="Save the buffers too, or keep the layers from moving while only a part trains.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: what is in the file changes, and so does what is loaded from it",
    false_alarms="Statistics that are estimated anew after every load on purpose (`frostline.recalibrate`, "
    "`update_bn`). What another file of the same run has counts as saved, and a part that is left out with its "
    "parameters is not told here.",
    source="peft#1732, peft PR1734, peft PR3481",
    look=look,
    sound=sound,
)
