"""F116: a framework's switch for freezing does not do what it says."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.audit.contract import INFERRED
from frostline.audit.events import GradFlag
from frostline.audit.places import NOWHERE, Place
from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.source_lines import calls, reached
from frostline.doctor.telling import biggest, counted, drift_of, flags_by_path, parts_of, quoted, some
from frostline.findings import Safety, Severity

_LIGHTNING = frozenset({"lightning", "pytorch_lightning"})


def look(seen: Seen) -> Iterator[Found]:
    """Lightning's BackboneFinetuning and its batch norms; what a library thawed although it was declared frozen."""
    for model in seen.models:
        found = _train_bn(seen, model)
        if found is not None:
            yield found
        yield from _declared(seen, model)


def _train_bn(seen: Seen, model: ModelSeen) -> Found | None:
    flags = seen.of(GradFlag, lambda e: e.model == model.name and e.place.via in _LIGHTNING)
    # The first round is what was done before training; unfreezing later is what the callback is for.
    froze = {e.path for e in flags if not e.value and not e.step}
    left = {e.path for e in flags if e.value and not e.step} - froze
    kept = [t for t in model.parameters if t.path in left and "batchnorm" in model.modules[t.module].kinds]
    if not froze or not kept:
        return None
    layers = tuple(dict.fromkeys(t.module for t in kept))
    statistics = [t for t in model.buffers if t.module in layers and t.moved]
    moved = [t for t in kept if t.moved_in_step]
    asked = _asked_to_freeze(seen)
    which = counted(len(layers), "batch norm")
    evidence = [f"lightning froze {counted(len(froze), 'parameter')}, and set requires_grad=True in {which}"]
    if asked.is_known:
        evidence.append(f"train_bn=False was asked for at {asked}; freeze_before_training does not pass it on")
    if moved:
        evidence.append(
            f"{some(t.path for t in moved)} changed in {counted(max(t.moved_in_step for t in moved), 'step')}"
        )
    if statistics:
        worst = biggest(statistics)
        evidence.append(f"{worst.path}: {drift_of(worst, seen)}")
    return Found(
        message=f"BackboneFinetuning left {which} of the backbone trainable"
        + (", although train_bn=False was given" if asked.is_known else ": train_bn is True by default"),
        model=model.name,
        paths=tuple(t.path for t in (*kept, *statistics)),
        evidence=tuple(evidence),
        remedy=f"frostline.freeze({model.name}, {quoted(parts_of(froze | left, model))})\n"
        "or override freeze_before_training: self.freeze(pl_module.backbone, train_bn=self.train_bn)",
        severity=Severity.ERROR if asked.is_known else Severity.INFO,
        safety=Safety.UNSAFE,
        place=asked if asked.is_known else next((e.place for e in flags if e.place.is_known), None),
    )


def _asked_to_freeze(seen: Seen) -> Place:
    """Where ``BackboneFinetuning(train_bn=False)`` is made."""
    for statement in reached(seen):
        for call in calls(statement, "BackboneFinetuning"):
            for keyword in call.keywords:
                if (
                    keyword.arg == "train_bn"
                    and isinstance(keyword.value, ast.Constant)
                    and keyword.value.value is False
                ):
                    return statement.place_of(call)
    return NOWHERE


def _declared(seen: Seen, model: ModelSeen) -> Iterator[Found]:
    """What was declared frozen, and made trainable by a library."""
    by_line: dict[Place, list[TensorSeen]] = {}
    moved = [t for t in model.parameters if t.moved_in_step and t.must_stay and t.must_stay not in INFERRED]
    written = flags_by_path(seen) if moved else {}
    for tensor in moved:
        flags = written.get((model.name, tensor.path))
        if flags and flags[-1].value and flags[-1].place.via not in {"", "frostline"}:
            by_line.setdefault(flags[-1].place, []).append(tensor)
    for place, tensors in by_line.items():
        paths = tuple(t.path for t in tensors)
        parts = parts_of(paths, model)
        yield Found(
            message=f"{place.via} made {counted(len(paths), 'parameter')} trainable that "
            f"{'was' if len(paths) == 1 else 'were'} declared frozen",
            model=model.name,
            paths=paths,
            evidence=(
                f"requires_grad=True was written by {place.via}, called at {place}  {place.text}",
                f"{tensors[0].path}: {drift_of(tensors[0], seen)}",
            ),
            remedy=f"frostline.freeze({model.name}, {quoted(parts)}, optimizer=optimizer)  # after that call",
            severity=Severity.ERROR,
            safety=Safety.UNSAFE,
            place=place,
        )


def sound(seen: Seen) -> str | None:
    """How many parameters a library froze, and that stayed."""
    froze = {(e.model, e.path) for e in seen.of(GradFlag, lambda e: bool(e.place.via) and not e.value)}
    kept = [t for key in froze if (t := seen.tensor(key)) is not None and not t.trainable and not t.moved]
    return f"{counted(len(kept), 'parameter')} that a library froze stayed" if kept else None


RULE = Rule(
    code="F116",
    what="Follows the flags that a library writes on the user's behalf, and compares them with what it was asked for "
    "and with what was declared frozen.",
    why="Lightning's `BackboneFinetuning(train_bn=False)` freezes without passing `train_bn` on: its batch norms "
    "stay trainable, and their statistics move. Trainers and wrappers of other libraries thaw what they did not "
    "freeze.",
    evidence="The library, the flags that it wrote, the line that called it, and what moved; from the first training "
    "step on.",
    example="trainer = Trainer(callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=10, train_bn=False)])",
    instead='frostline.freeze(module, "backbone")  # thaw it in a callback of your own\ntrainer = Trainer()',
    remedy="Freeze with `frostline.freeze`, which keeps statistics and mode too, or override `freeze_before_training`.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the batch norms may be meant to train",
    false_alarms="Without `train_bn=False` the batch norms train by default: that is said as information.",
    source="Lightning#21531 and PR21652, vision PR3396 and #3394, Relation-DETR#39",
    look=look,
    sound=sound,
    explains=("F106", "F107", "F108", "O401", "O412"),
)
