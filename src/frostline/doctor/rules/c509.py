"""C509: a reload forgot what was frozen."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import GradFlag, Load, OptimizerLoad
from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, freezer, parts_of, quoted, share, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Parameters that were frozen while one model trained, and train in another of its class that was loaded later."""
    told: set[str] = set()
    for load in seen.of(Load):
        model = seen.model(load.model)
        if model is None or load.error or model.name in told:
            continue
        first, thawed = _forgotten(load, model, seen)
        if first is None:
            continue
        told.add(model.name)
        paths = tuple(t.path for t in thawed)
        resumed = _is_resumed(load, model, seen)
        firm = resumed and any(first.tensors[path].must_stay in {"hold", "declared"} for path in paths)
        evidence = [
            f"{first.name} trained while {some(paths)} {'was' if len(paths) == 1 else 'were'} frozen",
            f"{model.name}, of the same class, was loaded after that and has them trainable",
            "a state_dict holds values: neither requires_grad nor modes are in it",
        ]
        if resumed:
            evidence.append("its optimizer's state was loaded too, so this run goes on with the first")
        if moved := sum(bool(t.moved_in_step) for t in thawed):
            evidence.append(f"optimizer steps moved {share(moved, len(paths))}")
        parts = parts_of(paths, model)
        yield Found(
            message=f"{counted(len(paths), 'parameter')} frozen before the reload "
            f"{'is' if len(paths) == 1 else 'are'} trainable after it",
            model=model.name,
            paths=paths,
            evidence=tuple(evidence),
            remedy=f"frostline.freeze({model.name}, {quoted(parts)}) after loading",
            severity=Severity.ERROR if firm else Severity.WARNING if resumed else Severity.INFO,
            safety=Safety.SAFE,
            place=load.place,
            repair=freezer(seen, model, parts),
            inferred=not firm,
        )


def _forgotten(load: Load, model: ModelSeen, seen: Seen) -> tuple[ModelSeen | None, list[TensorSeen]]:
    """The model in which they were frozen, and those that are not in the one that was loaded."""
    if not model.trained or model.contract_at is None or model.contract_at < load.at:
        return None, []
    meant = {e.path for e in seen.of(GradFlag, lambda e: e.model == model.name and e.value and e.at > load.at)}
    for first in seen.models:
        # A teacher is frozen too, but it does not train: a student that begins as its copy goes on with nothing.
        if first is model or first.type != model.type or not first.trained:
            continue
        if first.contract_at is None or first.contract_at > load.at or first.tensors.keys() != model.tensors.keys():
            continue
        thawed = [
            t for t in model.parameters if t.trainable and not first.tensors[t.path].trainable and t.path not in meant
        ]
        if thawed:
            return first, thawed
    return None, []


def _is_resumed(load: Load, model: ModelSeen, seen: Seen) -> bool:
    """Whether the optimizer of the model was loaded too: then the same run goes on."""
    owners = {t.owner[0] for t in model.parameters if t.owner}
    return any(e.optimizer in owners and not e.error and e.step == load.step for e in seen.of(OptimizerLoad))


def sound(seen: Seen) -> str | None:
    """Whether what was frozen in a run still is after its reload."""
    kept: set[tuple[str, str]] = set()
    for load in seen.of(Load):
        model = seen.model(load.model)
        for first in seen.models:
            if model is None or first is model or first.type != model.type or not (first.trained and model.trained):
                continue
            kept |= {
                (model.name, t.path)
                for t in model.parameters
                if not t.trainable and (other := first.tensors.get(t.path)) is not None and not other.trainable
            }
    return f"{counted(len(kept), 'parameter')} stayed frozen over a reload" if kept else None


RULE = Rule(
    code="C509",
    what="Compares two models of one class in a run, of which the second was loaded after the first had trained: what "
    "was frozen in the first, is it in the second?",
    why="A `state_dict` holds values only. Neither `requires_grad` nor modes are in it, so a run that is resumed in a "
    "new model trains everything, from the epoch at which it was resumed. A pickled model and a deep copy keep them, "
    "which makes the difference hard to find.",
    evidence="The parameters that did not require gradients when the first model trained and do when the second does; "
    "from its first training step on.",
    example="model = build()\n"
    'model.load_state_dict(checkpoint["model"])  # what the first run had frozen is trainable\n'
    'optimizer.load_state_dict(checkpoint["optimizer"])',
    instead="model = build()\n"
    'model.load_state_dict(checkpoint["model"])\n'
    'hold = frostline.freeze(model, "backbone", optimizer=optimizer)\n'
    'optimizer.load_state_dict(checkpoint["optimizer"])',
    remedy="Freeze again after every load, in the code that builds the model.",
    safety=Safety.SAFE,
    how_safe="safe: the same parameters as before the reload are frozen; what moved in between keeps its values",
    false_alarms="A second phase in a new model that trains everything on purpose. Without loading the optimizer's "
    "state too it is information only; calling `requires_grad_(True)` on the part says that it is meant.",
    source="vision#386",
    look=look,
    sound=sound,
)
