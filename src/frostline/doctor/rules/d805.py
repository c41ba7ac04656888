"""D805: sharded parameters are not frozen as declared."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import GradFlag, Wrapped
from frostline.audit.places import Place
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import SHARDING, counted, parts_of, quoted, share, some, wrapped_by
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Parameters of sharded models that were to be frozen, by their flags or by contract, and train all the same."""
    for model in seen.models:
        wrapped = wrapped_by(seen, model.name, *SHARDING)
        if wrapped is None:
            continue
        paths, why, place = _meant_frozen(model, wrapped, seen)
        trains = tuple(path for path in paths if _trains(model, path))
        if not trains:
            continue
        moved = [path for path in trains if model.tensors[path].moved_in_step]
        evidence = [
            f"sharded by {wrapped.wrapper} at {wrapped.place}",
            why,
            f"trainable, or moved: {some(trains)}"
            + (f"; optimizer steps moved {share(len(moved), len(trains))}" if moved else ""),
        ]
        yield Found(
            message=f"{counted(len(trains), 'sharded parameter')} of {model.name} that "
            f"{'was' if len(trains) == 1 else 'were'} to be frozen {'trains' if len(trains) == 1 else 'train'}",
            model=model.name,
            paths=trains,
            evidence=tuple(evidence),
            remedy=f"{model.name}.get_submodule({_first(trains, model)}).requires_grad_(False) after sharding",
            severity=Severity.ERROR,
            safety=Safety.UNSAFE,
            place=place,
            inferred=not model.declared,
        )


def _first(paths: tuple[str, ...], model: ModelSeen) -> str:
    return quoted(parts_of(paths, model)[:1])


def _trains(model: ModelSeen, path: str) -> bool:
    tensor = model.tensors[path]
    return tensor.trainable_now or bool(tensor.moved_in_step)


def _meant_frozen(model: ModelSeen, wrapped: Wrapped, seen: Seen) -> tuple[list[str], str, Place | None]:
    """The paths that were to be frozen, what says so, and the line."""
    declared = [
        t.path for t in model.parameters if t.must_stay in {"hold", "declared"} and (t.trainable_now or t.moved)
    ]
    if declared:
        return declared, "a hold or the contract says that they must stay", wrapped.place
    allowed = {e.path for e in seen.of(GradFlag, lambda e: e.model == model.name and e.value and e.at > wrapped.at)}
    before = [t.path for t in model.parameters if t.path not in wrapped.trainable and t.path not in allowed]
    if wrapped.trainable and any(_trains(model, path) for path in before):
        return before, "their flags were False when the model was sharded", wrapped.place
    # The parameters that were there before sharding are no longer the model's; a flag on them reaches nothing.
    after = seen.of(GradFlag, lambda e: e.model == model.name and not e.value and e.at > wrapped.at)
    lost = [e for e in after if e.path not in allowed and (t := model.tensors.get(e.path)) and t.trainable_now]
    text = f"requires_grad=False was set on {counted(len(lost), 'parameter')} that the model had before it was sharded"
    return [e.path for e in lost], text, lost[0].place if lost else None


def sound(seen: Seen) -> str | None:
    """How many sharded parameters stayed frozen."""
    kept = 0
    for model in seen.models:
        if wrapped_by(seen, model.name, *SHARDING) is not None:
            kept += sum(1 for t in model.parameters if not t.trainable and not t.trainable_now and not t.moved)
    return f"{counted(kept, 'sharded parameter')} stayed frozen" if kept else None


RULE = Rule(
    code="D805",
    what="Compares, in models that `fully_shard` or FSDP has sharded, what was declared, held, or frozen by its flag "
    "with what is trainable and what optimizer steps moved.",
    why="Sharding puts new parameters in the place of the old ones. A list of parameters that was made before, and "
    "frozen afterwards, holds the old ones: their flags change, the model's do not. Older versions flattened several "
    "parameters into one, frozen and trainable together.",
    evidence="The parameters, the line that sharded and the line that froze; from the first step on.",
    example="frozen = list(model.backbone.parameters())\nfully_shard(model)\nfor p in frozen:\n"
    "    p.requires_grad_(False)  # no longer the model's",
    instead="fully_shard(model)\nfor p in model.backbone.parameters():\n    p.requires_grad_(False)",
    remedy="Freeze what the model has after sharding, or freeze the modules before; shard frozen and trainable parts "
    "as units of their own.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the run trains fewer parameters, and the optimizer has to be made after that",
    false_alarms="None known: a part that is thawed later by `requires_grad_(True)` on the model's own parameters is "
    "not told.",
    source="pytorch#104690, pytorch#91167, OpenDWM#44",
    look=look,
    sound=sound,
    explains=("F106",),
)
