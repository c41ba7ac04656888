"""F114: a parameter that was made after freezing is trainable."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.contract import INFERRED
from frostline.audit.events import GradFlag, Registration
from frostline.audit.places import Place
from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, parts_of, quoted, some
from frostline.findings import Safety, Severity
from frostline.state import names


def look(seen: Seen) -> Iterator[Found]:
    """Parameters that took the place of frozen ones inside of a frozen part, and that train."""
    for model in seen.trained:
        events = [e for e in seen.of(Registration) if e.model == model.name and e.replaced and e.frozen_before]
        lines: dict[Place, dict[str, TensorSeen]] = {}
        for event in events:
            tensors = _trainable(model, event)
            if (
                tensors
                and (event.frozen_around or _is_embedding(model, event))
                and not _asked_for(seen, event, tensors)
            ):
                lines.setdefault(event.place, {}).update({t.path: t for t in tensors})
        if not lines or _new_head(model, events):
            continue
        for place, found in lines.items():
            yield _found(model, list(found.values()), place)


def _trainable(model: ModelSeen, event: Registration) -> list[TensorSeen]:
    """The parameters that stand there now, where all of them train: an adapter has a frozen layer inside."""
    now = [t for t in model.parameters if names.is_under(t.path, event.path)]
    trains = [t for t in now if t.trainable_now and (t.trainable or t.replaced)]
    return trains if len(trains) == len(now) and any(t.gradients or t.moved_in_step for t in trains) else []


def _is_embedding(model: ModelSeen, event: Registration) -> bool:
    path = event.path if event.kind == "module" else names.parent(event.path)
    return path in model.modules and model.modules[path].type == "Embedding"


def _asked_for(seen: Seen, event: Registration, tensors: list[TensorSeen]) -> bool:
    """Whether somebody said so: ``requires_grad_(True)`` on what came."""
    paths = {t.path for t in tensors}
    return bool(seen.of(GradFlag, lambda e: e.model == event.model and e.at > event.at and e.value and e.path in paths))


def _new_head(model: ModelSeen, events: list[Registration]) -> bool:
    """Whether nothing trains but what came later: all was frozen, and a new head put on, as every tutorial does."""
    came = [e.path for e in events]
    return not any(t.trainable_now and not any(names.is_under(t.path, path) for path in came) for t in model.parameters)


def _found(model: ModelSeen, tensors: list[TensorSeen], place: Place) -> Found:
    paths = tuple(t.path for t in tensors)
    parts = parts_of(paths, model)
    firm = [t for t in tensors if t.must_stay and t.must_stay not in INFERRED]
    above = names.parent(parts[0]) or model.name
    evidence = [
        f"what stood at {some(parts)} was frozen; what took its place has requires_grad=True, as all that is new",
        f"{counted(len(paths), 'parameter')} changed in {counted(max(t.moved_in_step for t in tensors), 'step')}",
    ]
    if place.via:
        evidence[0] += f" (by {place.via})"
    return Found(
        message=f"{some(parts)} was made anew after {above} had been frozen, and trains",
        model=model.name,
        paths=paths,
        evidence=tuple(evidence),
        remedy=f"freeze after the last change of the model:\nfrostline.freeze({model.name}, {quoted(parts)})",
        severity=Severity.ERROR if firm else Severity.WARNING,
        safety=Safety.UNSAFE,
        place=place if place.is_known else None,
        inferred=not firm,
    )


def sound(seen: Seen) -> str | None:
    """How many frozen parameters were replaced by frozen ones."""
    kept = {
        (e.model, e.path) for e in seen.of(Registration, lambda e: e.replaced and e.frozen_before and not e.trainable)
    }
    verb = "was" if len(kept) == 1 else "were"
    return (
        f"{counted(len(kept), 'frozen entry', 'frozen entries')} that {verb} made anew stayed frozen" if kept else None
    )


RULE = Rule(
    code="F114",
    what="Follows every parameter and module that is put into a model: reports those that took the place of frozen "
    "ones inside of a frozen part and that train.",
    why="Freezing is a flag of the tensors that are there at the time. `resize_token_embeddings`, a swapped layer or "
    "`register_parameter` make new ones, which train and drag the rest of a frozen part out of tune.",
    evidence="The line that replaced them, the flags before and after, and in how many steps they changed; from the "
    "first training step on.",
    example="model.encoder.requires_grad_(False)\nmodel.encoder.embed = nn.Embedding(32_000 + 3, 768)",
    instead="model.encoder.embed = nn.Embedding(32_000 + 3, 768)\nmodel.encoder.requires_grad_(False)",
    remedy="Freeze after the last change of the model, or freeze the new part too.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: a new part inside of a frozen one may be meant to train",
    false_alarms="A new layer inside of a frozen part that is to train. Say so: call `requires_grad_(True)` on it. A "
    "new head on a model that is frozen altogether, and adapters around frozen layers, are never reported.",
    source="fromage#18, torchtitan#3885",
    look=look,
    sound=sound,
    explains=("F106",),
)
