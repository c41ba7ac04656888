"""N305: a moving average of a model leaves out or spoils its buffers."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import ModelSeen, Phase, Seen, TensorSeen
from frostline.doctor.passes import own_steps
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted, some
from frostline.findings import Safety, Severity

# A vector of unit length that was blended with another is shorter; rounding alone costs far less.
_SHORT = 0.99


def look(seen: Seen) -> Iterator[Found]:
    """Copies of a trained model whose parameters follow it while their statistics do not, or lost their length."""
    for source, copy in _pairs(seen):
        left = [t for t in copy.buffers if t.role.startswith("norm.") and not t.moved and source.tensors[t.path].moved]
        if left and _follows(copy):
            yield _left_out(source, copy, left)
        elif left and _is_fresh(seen, source, copy):
            yield _never_written(source, copy, left)
        short = [t for t in copy.buffers if t.unit_norm is not None and t.unit_norm < _SHORT]
        if short:
            yield _spoiled(source, copy, short)


def _follows(copy: ModelSeen) -> bool:
    return any(t.moved for t in copy.parameters)


def _is_fresh(seen: Seen, source: ModelSeen, copy: ModelSeen) -> bool:
    """Whether it first runs after all steps of the other, in eval mode, with statistics that nobody has written.

    One that ran before the last step and did not move then is no average.
    """
    if copy.norm_input is None or not copy.norm_input.fresh or not copy.phases:
        return False
    first = copy.phases[0]
    return not first.training and first.step > 0 and all(s.at < first.first for s in own_steps(seen, source))


def _left_out(source: ModelSeen, copy: ModelSeen, left: list[TensorSeen]) -> Found:
    layers = tuple(dict.fromkeys(t.module for t in left))
    used = _used(copy)
    stayed = f"{counted(len(left), 'statistic')} of {copy.name} did not move while those of {source.name} did"
    evidence = [
        f"{counted(sum(t.moved for t in copy.parameters), 'parameter')} of {copy.name} followed those of {source.name}",
        f"{stayed}: {some(t.path for t in left)}",
    ]
    if used is not None:
        evidence.append(f"used in eval mode at {at(used.place)}")
    return Found(
        message=f"{copy.name} follows the parameters of {source.name}, but not the statistics of "
        f"{counted(len(layers), 'normalization layer')}",
        model=copy.name,
        paths=tuple(t.path for t in left),
        evidence=tuple(evidence),
        remedy=f"copy the buffers too: for a, b in zip({copy.name}.buffers(), {source.name}.buffers()): a.copy_(b)",
        severity=Severity.ERROR if used is not None else Severity.WARNING,
        safety=Safety.UNSAFE,
        place=used.place if used is not None else None,
    )


def _never_written(source: ModelSeen, copy: ModelSeen, left: list[TensorSeen]) -> Found:
    first = copy.phases[0]
    steps = counted(first.step, "step")
    return Found(
        message=f"{copy.name} normalizes with mean 0 and variance 1, after {steps} that moved those of {source.name}",
        model=copy.name,
        paths=tuple(t.path for t in left),
        evidence=(
            f"{copy.name} has the same tensors as {source.name}, and no optimizer has it",
            f"its statistics were never written: {some(t.path for t in left)}",
            f"used in eval mode at {at(first.place)}",
        ),
        remedy=f"copy the buffers too: for a, b in zip({copy.name}.buffers(), {source.name}.buffers()): a.copy_(b)",
        severity=Severity.WARNING,
        safety=Safety.UNSAFE,
        place=first.place,
        inferred=True,
    )


def _spoiled(source: ModelSeen, copy: ModelSeen, short: list[TensorSeen]) -> Found:
    used = _used(copy)
    worst = min(short, key=lambda t: t.unit_norm or 0.0)
    return Found(
        message=f"{counted(len(short), 'vector')} of spectral normalization in {copy.name} lost unit length",
        model=copy.name,
        paths=tuple(t.path for t in short),
        evidence=(
            f"|{worst.path}| = {worst.unit_norm:.3g}, not 1: it was averaged with that of {source.name}",
            "the norm that the weight is divided by is wrong by as much",
        ),
        remedy="copy the buffers of spectral normalization, do not average them",
        severity=Severity.ERROR,
        safety=Safety.UNSAFE,
        place=used.place if used is not None else None,
    )


def _used(copy: ModelSeen) -> Phase | None:
    return next((phase for phase in copy.phases if not phase.training), None)


def _pairs(seen: Seen) -> Iterator[tuple[ModelSeen, ModelSeen]]:
    """A model that trains, and another with the same tensors that no optimizer has."""
    for source in seen.models:
        if not source.trained:
            continue
        for copy in seen.models:
            owned = any(t.owner is not None or t.owned_at_start is not None for t in copy.parameters)
            if copy is source or copy.trained or owned or copy.type != source.type:
                continue
            same = set(copy.tensors) == set(source.tensors)
            # In train mode its own passes move its statistics.
            own = any(phase.training and phase.moved for phase in copy.phases)
            if same and not own:
                yield source, copy


def sound(seen: Seen) -> str | None:
    """Which averages follow the buffers of their models too."""
    pairs = [copy for _, copy in _pairs(seen) if _follows(copy)]
    right = [copy.name for copy in pairs if any(t.role.startswith("norm.") for t in copy.buffers)]
    return f"{' and '.join(right)} followed the statistics of its model too" if right else None


RULE = Rule(
    code="N305",
    what="Looks for a copy of a trained model that no optimizer has and whose parameters move, and compares its "
    "buffers with those of the model: whether they moved too, and whether vectors of unit length still are.",
    why="A moving average over `model.parameters()` leaves out buffers: the copy normalizes with the statistics of "
    "its first day, mean 0 and variance 1, and its accuracy is near chance. An average over everything spoils what "
    "must not be averaged: counters, and the vectors of spectral normalization.",
    evidence="The statistics that stayed, the length of the vectors, and the pass in eval mode in which they were "
    "used; from the second step on.",
    example="for a, p in zip(ema.parameters(), model.parameters()):\n    a.data.lerp_(p.data, 0.01)",
    instead="for a, p in zip(ema.parameters(), model.parameters()):\n    a.data.lerp_(p.data, 0.01)\nfor a, b in "
    "zip(ema.buffers(), model.buffers()):\n    a.copy_(b)",
    remedy="Copy the buffers after each update, or use `torch.optim.swa_utils.AveragedModel(model, use_buffers=True)`.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: it is an edit of the loop, and the outputs of the copy change",
    false_alarms="A copy whose statistics are estimated anew before it is used, after the loop that was watched; an "
    "untrained copy that is tested at the end, as a base line.",
    source="ignite#2590, mean-teacher#9, sesemi#36, pytorch#84053, miles-credit PR394",
    look=look,
    sound=sound,
)
