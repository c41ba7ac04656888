"""F113: a frozen tensor is also used by a part that is not frozen."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.contract import INFERRED
from frostline.audit.events import GradFlag
from frostline.audit.places import Place
from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, drift_of
from frostline.findings import Safety, Severity
from frostline.state import names


def look(seen: Seen) -> Iterator[Found]:
    """Tied parameters of which one end was meant to be frozen, and the other to train."""
    for model in seen.trained:
        for group in model.tied:
            tensors = [model.tensors[path] for path in group if path in model.tensors]
            if len(tensors) < 2 or tensors[0].kind != "parameter":
                continue
            firm = [t for t in tensors if t.must_stay and t.must_stay not in INFERRED]
            found = None
            if firm and len(firm) < len(tensors) and any(t.moved for t in tensors):
                found = _declared(seen, model, firm[0], next(t for t in tensors if t not in firm))
            elif not any(t.trainable for t in tensors):
                found = _froze_too_much(seen, model, tensors, firm)
            else:
                found = _thawed_too_much(seen, model, tensors)
            if found is not None:
                yield found


def _declared(seen: Seen, model: ModelSeen, kept: TensorSeen, trained: TensorSeen) -> Found:
    flag = _last(seen, model, kept.path, value=True)
    evidence = [
        f"{kept.path} and {trained.path} are one tensor; the first was declared frozen, the second was not",
        f"{kept.path}: {drift_of(kept, seen)}",
    ]
    return Found(
        message=f"{kept.path} was declared frozen, and trains as {trained.path}",
        model=model.name,
        paths=(kept.path, trained.path),
        evidence=tuple(evidence),
        remedy=_untie(model, trained.path),
        severity=Severity.ERROR,
        place=flag.place if flag else None,
    )


def _froze_too_much(seen: Seen, model: ModelSeen, tensors: list[TensorSeen], firm: list[TensorSeen]) -> Found | None:
    """One end was frozen, and with it the other, whose own parameters train."""
    paths = [t.path for t in tensors]
    flag = _last(seen, model, paths[0], value=False)
    trains = [t for t in tensors if t not in firm and _neighbours(model, t, paths, direct=True) is True]
    stays = [t for t in tensors if t not in trains]
    if not trains or not stays:
        # Nothing else is in these modules: what was frozen tells, where it was this tensor alone.
        alone = flag is not None and _line(seen, model, flag) == {flag.path}
        if firm and len(firm) < len(tensors):
            stays, trains = firm, [t for t in tensors if t not in firm]
        elif alone and len(seen.of(GradFlag, lambda e: e.model == model.name and e.path == paths[0])) == 1:
            stays, trains = tensors[:1], tensors[1:]
        else:
            return None
    kept, other = stays[0], trains[0]
    return _told(
        model,
        kept,
        other,
        message=f"freezing {kept.path} froze {other.path} too: they are one tensor",
        second=f"{other.path} got no gradient in {counted(other.steps, 'step')}"
        + (f"; the rest of {other.module} trains" if _neighbours(model, other, paths, direct=True) else ""),
        place=flag.place if flag else None,
    )


def _thawed_too_much(seen: Seen, model: ModelSeen, tensors: list[TensorSeen]) -> Found | None:
    """One end was made trainable, and with it the other, around which all is frozen."""
    paths = [t.path for t in tensors]
    flag = _last(seen, model, paths[0], value=True)
    if _thaws_after_freezing(seen, model, paths[0]) > 1:
        return None  # it was asked for at both ends
    stays = [t for t in tensors if _neighbours(model, t, paths, direct=False) is False]
    trains = [t for t in tensors if t not in stays]
    if not stays and flag is not None:
        # In a flat model: the line that thawed it thawed the neighbours of one end, and no other.
        own = {t.path: {n.path for n in model.below(t.module)} | set(paths) for t in tensors}
        line = _line(seen, model, flag)
        trains = [t for t in tensors if line <= own[t.path] and _neighbours(model, t, paths, direct=True) is not False]
        before = _last(seen, model, paths[0], value=False)
        froze_more = before is not None and before.at < flag.at and _line(seen, model, before) > line
        stays = [t for t in tensors if t not in trains[:1]] if trains and froze_more else []
    if not stays or not trains:
        return None
    kept, other = stays[0], trains[0]
    changed = f"{kept.path} changed in {counted(kept.moved_in_step, 'step')}"
    return _told(
        model,
        kept,
        other,
        message=f"{kept.path} sits in a frozen part, and trains as {other.path}: they are one tensor",
        second=f"{changed}; its neighbours are frozen",
        place=flag.place if flag else None,
    )


def _told(
    model: ModelSeen, kept: TensorSeen, other: TensorSeen, *, message: str, second: str, place: Place | None
) -> Found:
    evidence = [f"{kept.path} and {other.path} share their memory", second]
    return Found(
        message=message,
        model=model.name,
        paths=(kept.path, other.path),
        evidence=tuple(evidence),
        remedy=_untie(model, other.path),
        severity=Severity.WARNING,
        place=place,
        inferred=True,
    )


def _untie(model: ModelSeen, path: str) -> str:
    where = f"{model.name}.{path}"
    return f"decide for both ends, or untie them: {where} = nn.Parameter({where}.detach().clone())"


def _neighbours(model: ModelSeen, tensor: TensorSeen, tied: list[str], *, direct: bool) -> bool | None:
    """Whether any other parameter of its module trains; of the nearest module above that has any, if not ``direct``."""
    path = tensor.module
    while True:
        others = [t for t in model.below(path) if t.kind == "parameter" and t.path not in tied]
        if others:
            return any(t.trainable for t in others)
        if direct or not path:
            return None
        path = names.parent(path)


def _thaws_after_freezing(seen: Seen, model: ModelSeen, path: str) -> int:
    flags = seen.of(GradFlag, lambda e: e.model == model.name and e.path == path)
    frozen = max((i for i, e in enumerate(flags) if not e.value), default=-1)
    return len(flags) - 1 - frozen if frozen >= 0 else 0


def _last(seen: Seen, model: ModelSeen, path: str, *, value: bool) -> GradFlag | None:
    flags = seen.of(GradFlag, lambda e: e.model == model.name and e.path == path and e.value is value)
    return flags[-1] if flags else None


def _line(seen: Seen, model: ModelSeen, flag: GradFlag) -> set[str]:
    """All that the line of a write wrote the same value to."""
    return {
        e.path
        for e in seen.of(GradFlag, lambda e: e.model == model.name and e.place == flag.place and e.value is flag.value)
    }


def sound(seen: Seen) -> str | None:
    """How many tied tensors are wholly frozen or wholly trainable."""
    count = sum(len(model.tied) for model in seen.trained)
    return (
        f"{counted(count, 'tied tensor')} {'is' if count == 1 else 'are'} frozen or trainable at both ends"
        if count
        else None
    )


RULE = Rule(
    code="F113",
    what="Looks at parameters that stand at several paths (an embedding and an output layer that share a weight), "
    "and compares what was declared or done to the one end with what surrounds the other.",
    why="A shared tensor has one `requires_grad`. To freeze the embedding freezes the output layer; to thaw the "
    "output layer trains the embedding of a trunk that was to stay.",
    evidence="Both paths, the line that wrote the flag, and whether the tensor moved; from the first training step on.",
    example="model.head.weight = model.embed.weight\nmodel.embed.requires_grad_(False)  # the head is frozen too",
    instead="model.head.weight = nn.Parameter(model.embed.weight.detach().clone())\nmodel.embed.requires_grad_(False)",
    remedy="Decide for both ends, or untie them before freezing.",
    safety=Safety.MANUAL,
    how_safe="manual: which of the two was meant is not known, and untying changes the model",
    false_alarms="Both ends were meant. Say it of both: freeze both, or call `requires_grad_(True)` on both; nothing "
    "is said of a tensor whose flag was written for each of its ends.",
    source="transformers#11903, transformers#31467, LlamaFactory#5032",
    look=look,
    sound=sound,
    explains=("F106", "F108"),
)
