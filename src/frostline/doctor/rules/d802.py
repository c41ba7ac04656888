"""D802: parameters were moved or replaced after the model was wrapped."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import Load, Registration, Wrapped
from frostline.audit.places import Place
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted, differing, some, wrapped_by
from frostline.findings import Safety, Severity

_DDP = "DistributedDataParallel"


def look(seen: Seen) -> Iterator[Found]:
    """Parameters that the wrapper took in and that are gone from the model, or have other memory."""
    for model in seen.models:
        wrapped = wrapped_by(seen, model.name, _DDP)
        if wrapped is None or not model.wrapped_lost:
            continue
        replaced, place = _replaced(model, wrapped, seen)
        moved = [path for path in model.wrapped_lost if path not in replaced]
        apart = differing(seen, model, model.wrapped_lost)
        evidence = [f"wrapped at {at(wrapped.place)}"]
        if replaced:
            evidence.append(f"replaced since: {some(replaced)}")
            evidence.append("the wrapper holds the old parameters; the new ones get gradients that nobody averages")
        if moved:
            evidence.append(f"in other memory than then: {some(moved)}")
        if apart:
            evidence.append(f"different in the {len(seen.ranks)} processes by now: {some(apart)}")
        yield Found(
            message=f"{counted(len(model.wrapped_lost), 'parameter')} of {model.name} "
            f"{'is' if len(model.wrapped_lost) == 1 else 'are'} not what {_DDP} took in",
            model=model.name,
            paths=tuple(dict.fromkeys([*replaced, *moved])),
            evidence=tuple(evidence),
            remedy=f"replace and move first, then {_DDP}({model.name}), then the optimizer",
            severity=Severity.ERROR if replaced or apart else Severity.INFO,
            safety=Safety.UNSAFE,
            place=place or wrapped.place,
        )


def _replaced(model: ModelSeen, wrapped: Wrapped, seen: Seen) -> tuple[list[str], Place | None]:
    """Paths at which something else was put after wrapping, and the first line that did it."""
    paths: list[str] = []
    place: Place | None = None
    for event in seen.of(Registration, lambda e: e.model == model.name and e.at > wrapped.at and e.replaced):
        here = [path for path in model.wrapped_lost if path == event.path or path.startswith(f"{event.path}.")]
        here += [t.path for t in model.below(event.path) if t.kind == "parameter" and t.path not in wrapped.trainable]
        if here:
            paths += here
            place = place or event.place
    for load in seen.of(Load, lambda e: e.model == model.name and e.at > wrapped.at and e.assign and not e.error):
        here = [path for path in model.wrapped_lost if not load.path or path.startswith(f"{load.path}.")]
        if here:
            paths += here
            place = place or load.place
    return list(dict.fromkeys(path for path in paths if path in model.tensors or path in model.wrapped_lost)), place


def sound(seen: Seen) -> str | None:
    """How many parameters are still those that were wrapped."""
    kept = sum(
        len(model.parameters)
        for model in seen.models
        if wrapped_by(seen, model.name, _DDP) is not None and not model.wrapped_lost
    )
    return f"{counted(kept, 'parameter')} are those that {_DDP} took in" if kept else None


RULE = Rule(
    code="D802",
    what="Compares the parameters that `DistributedDataParallel` took in, by identity and address, with those that "
    "the model has at the end.",
    why="The wrapper hangs its hooks on the parameters that it was given. A head that is replaced later, or a load "
    "with `assign=True`, leaves it with the old ones: the new ones are never averaged, each process trains its own, "
    "and the checkpoint is that of one process.",
    evidence="The paths, the line that wrapped and the line that put something else there; at the end of the watch.",
    example="model = DistributedDataParallel(net)\nnet.head = nn.Linear(512, 10)",
    instead="net.head = nn.Linear(512, 10)\nmodel = DistributedDataParallel(net)",
    remedy="Replace, move and load with `assign=True` first; wrap then; make the optimizer last.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: a new wrapper broadcasts the parameters of the first process to all",
    false_alarms="Parameters that only moved to other memory (`vector_to_parameters`, flattened recurrent weights) "
    "and keep their hooks: they are information only, as long as the processes agree.",
    source="pytorch#12603, pytorch#104336",
    look=look,
    sound=sound,
    explains=("D807", "O402", "O412"),
)
