"""F108: what was frozen is made trainable again later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from frostline.audit.events import Forward, GradFlag, Step
from frostline.audit.places import Place
from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, drift_of, flags_by_path, parts_of, quoted, some
from frostline.findings import Safety, Severity


@dataclass
class _Flags:
    """The flags that one line wrote before training."""

    place: Place
    value: bool
    paths: dict[str, int] = field(default_factory=dict[str, int])


def look(seen: Seen) -> Iterator[Found]:
    """Freezing that a later line undoes altogether before training, and declared freezing that any line undoes."""
    for model in seen.models:
        declared = set[str]()
        for found in _declared(seen, model):
            declared.update(found.paths)
            yield found
        yield from (found for found in _undone(seen, model) if not declared.issuperset(found.paths))


def _undone(seen: Seen, model: ModelSeen) -> Iterator[Found]:
    """Where the later line leaves nothing of the freezing: to freeze all and thaw the head is a common idiom."""
    lines = _lines(seen, model)
    for frozen in (line for line in lines if not line.value and not line.place.via):
        undoing: dict[Place, list[str]] = {}
        for path, at in frozen.paths.items():
            later = [line for line in lines if line.value and line.paths.get(path, -1) > at]
            if later:
                undoing.setdefault(max(later, key=lambda line: line.paths[path]).place, []).append(path)
        tensors = [model.tensors[path] for path in frozen.paths if path in model.tensors]
        undone = sum(len(paths) for paths in undoing.values()) == len(frozen.paths)
        # What a hold is on is looked at by itself: it withstands, or it was moved.
        if not undone or not all(t.trainable and t.gradients and t.must_stay != "hold" for t in tensors):
            continue
        place = max(undoing, key=lambda place: len(undoing[place]))
        yield _found(seen, model, tensors, frozen.place, place, hold=False)


def _lines(seen: Seen, model: ModelSeen) -> list[_Flags]:
    """What each line wrote until the first forward pass or step: what a phase of training thaws later, it means to."""
    begun = [e.at for e in seen.events if isinstance(e, Step) or (isinstance(e, Forward) and e.model == model.name)]
    before = min(begun, default=None)
    lines: dict[tuple[Place, bool], _Flags] = {}
    for event in seen.of(GradFlag, lambda e: e.model == model.name and (before is None or e.at < before)):
        if event.value and event.place.via == "frostline":
            continue  # a hold that the user thaws
        if (
            event.value
            or event.before
            or event.path in lines.get((event.place, False), _Flags(event.place, False)).paths
        ):
            lines.setdefault((event.place, event.value), _Flags(event.place, event.value)).paths[event.path] = event.at
    return list(lines.values())


def _declared(seen: Seen, model: ModelSeen) -> Iterator[Found]:
    moved = [t for t in model.parameters if t.must_stay in {"hold", "declared"} and t.moved_in_step]
    written = flags_by_path(seen) if moved else {}
    thawed: dict[Place, list[TensorSeen]] = {}
    for tensor in moved:
        flags = written.get((model.name, tensor.path), [])
        if flags and flags[-1].value and flags[-1].place.via != "frostline" and any(not e.value for e in flags):
            thawed.setdefault(flags[-1].place, []).append(tensor)
    for place, tensors in thawed.items():
        froze = [e for e in written[model.name, tensors[0].path] if not e.value]
        yield _found(seen, model, tensors, froze[-1].place, place, hold=tensors[0].must_stay == "hold")


def _found(
    seen: Seen, model: ModelSeen, tensors: list[TensorSeen], frozen: Place, thawed: Place, *, hold: bool
) -> Found:
    paths = tuple(t.path for t in tensors)
    parts = parts_of(paths, model)
    declared = tensors[0].must_stay in {"hold", "declared"}
    changed = [t for t in tensors if t.moved_in_step]
    evidence = [f"requires_grad=False at {frozen}  {frozen.text}", f"requires_grad=True at {thawed}  {thawed.text}"]
    if thawed.via:
        evidence[1] += f" (by {thawed.via})"
    if changed:
        far = f"; {changed[0].path} {drift_of(changed[0], seen)}" if changed[0].drift else ""
        evidence.append(f"{counted(len(changed), 'parameter')} changed in {counted(len(seen.steps), 'step')}{far}")
    owner = next((t.owner[0] for t in tensors if t.owner), "optimizer")
    return Found(
        message=f"{some(parts)} was frozen and made trainable again: {counted(len(paths), 'parameter')} "
        f"{'trains' if len(paths) == 1 else 'train'}",
        model=model.name,
        paths=paths,
        evidence=tuple(evidence),
        remedy=f"delete or narrow the later line ({thawed}), or freeze so that it has no effect:\n"
        f"frostline.freeze({model.name}, {quoted(parts)}, optimizer={owner})",
        severity=Severity.ERROR if hold or declared or frozen.function != "__init__" else Severity.WARNING,
        safety=Safety.UNSAFE,
        place=thawed,
        inferred=not declared,
    )


def sound(seen: Seen) -> str | None:
    """How many parameters were frozen by a line and are frozen still."""
    kept = {
        (e.model, e.path)
        for e in seen.of(GradFlag, lambda e: not e.value)
        if (t := seen.tensor((e.model, e.path))) is not None and not t.trainable and not t.trainable_now
    }
    return f"{counted(len(kept), 'parameter')} stayed frozen once a line had frozen them" if kept else None


RULE = Rule(
    code="F108",
    what="Follows every write of `requires_grad`: the last one wins. Reports a line whose freezing a later line "
    "undoes altogether before the first forward pass, and any write that thaws what was declared frozen.",
    why="Both lines look right where they stand. The part trains, and the pretrained weights are lost.",
    evidence="Both lines, in their order, and how many parameters changed; from the first training step on.",
    example="for p in model.backbone.parameters():\n    p.requires_grad = False\nfor p in model.parameters():  # "
    "train all layers\n    p.requires_grad = True",
    instead="for p in model.parameters():\n    p.requires_grad = True\nfor p in model.backbone.parameters():\n    "
    "p.requires_grad = False",
    remedy="Freeze last, or freeze with `frostline.freeze(..., optimizer=...)`, which a later write does not undo.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: which of the two lines was meant is not known",
    false_alarms="A class that freezes in its constructor, in a program that means to train all of it: a warning "
    "then. To freeze everything and to thaw the head, and to thaw step by step while training, are never reported.",
    source="ultralytics/yolov5#1213",
    look=look,
    sound=sound,
    explains=("F106",),
)
