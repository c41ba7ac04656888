"""M204: the mode was set on a module alone: parent and children differ."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.audit.events import ModeCall
from frostline.audit.places import NOWHERE, Place
from frostline.audit.seen import ModelSeen, Phase, Seen
from frostline.doctor.passes import Passes, layers, mode_matters
from frostline.doctor.rule import Found, Rule
from frostline.doctor.source_lines import part_named, reached
from frostline.doctor.telling import at, counted, some
from frostline.findings import Safety, Severity
from frostline.state import names


def look(seen: Seen) -> Iterator[Found]:
    """A flag that was written on a module, and modules below it that ran in the other mode."""
    for model in seen.models:
        hit = _first(seen, model)
        if hit is None:
            continue
        write, phase, apart = hit
        name = names.join(model.name, write.path)
        mode, other = ("train", "eval") if write.mode else ("eval", "train")
        place = _place(seen, model, write)
        evidence = [f"{name}.training was set to {write.mode} without a call of {mode}()"]
        if place.is_known:
            evidence[0] += f", at {at(place)}"
        evidence.append(f"{other} mode in {layers(model, apart)} below it: {some(apart)}")
        evidence.append(f"seen in the forward pass at {at(phase.place)}")
        if not write.mode and phase.moved:
            evidence.append(f"statistics that moved in it: {some(phase.moved)}")
        yield Found(
            message=f"{name} was switched to {mode} mode alone: {layers(model, apart)} below it "
            f"{'was' if len(apart) == 1 else 'were'} not",
            model=model.name,
            paths=apart,
            evidence=tuple(evidence),
            remedy=f"{name}.{mode}() in place of {name}.training = {write.mode}",
            severity=Severity.ERROR,
            safety=Safety.UNSAFE,
            place=place if place.is_known else phase.place,
        )


def _first(seen: Seen, model: ModelSeen) -> tuple[ModeCall, Phase, tuple[str, ...]] | None:
    calls = seen.of(ModeCall, lambda e: e.model == model.name)
    writes = [call for call in calls if call.direct]
    if not writes:
        return None
    training = Passes(seen, model).training
    for write in writes:
        # A container that is in train mode while its layers are not matters only where it trains.
        phase = next((p for p in (training if write.mode else model.phases) if p.first > write.at), None)
        if phase is None:
            continue
        train = set(phase.train_modules)
        below = [
            path
            for path, module in model.modules.items()
            if mode_matters(module) and path != write.path and names.is_under(path, write.path)
        ]
        apart = [path for path in below if (path in train) != write.mode]
        if not apart:
            continue
        # Later calls and writes decide for the modules that they reach.
        later = {path for e in calls if write.at < e.at < phase.first for path in (*e.flipped, e.path)}
        left = tuple(path for path in apart if path not in later)
        if left and write.path not in later and not _meant(calls, write, left) and not _put_back(calls, write, left):
            return write, phase, left
    return None


def _meant(calls: list[ModeCall], write: ModeCall, apart: tuple[str, ...]) -> bool:
    """Whether the user has put these modules into their mode one by one: Monte Carlo dropout, fixed statistics."""
    asked = {path for e in calls if e.at < write.at and e.mode != write.mode and e.path for path in e.flipped}
    return asked.issuperset(apart)


def _put_back(calls: list[ModeCall], write: ModeCall, apart: tuple[str, ...]) -> bool:
    """Whether the write undoes a call that had not changed these modules: a framework restores what it found."""
    undone = [e for e in calls if e.at < write.at and not e.direct and e.mode != write.mode and write.path in e.flipped]
    return bool(undone) and not set(apart) & set(undone[-1].flipped)


def _place(seen: Seen, model: ModelSeen, write: ModeCall) -> Place:
    """The line that wrote the flag: the only one that does on this module, or the only one at all."""
    lines = [
        (s.place, target.value)
        for s in reached(seen)
        if isinstance(s.node, ast.Assign)
        and isinstance(s.node.value, ast.Constant)
        and s.node.value.value is write.mode
        for target in s.node.targets
        if isinstance(target, ast.Attribute) and target.attr == "training"
    ]
    own = [place for place, target in lines if part_named(target, seen) == (model, write.path)]
    found = own or [place for place, _ in lines]
    return found[0] if len(found) == 1 else NOWHERE


def sound(seen: Seen) -> str | None:
    """In how many models every switch reached all that it should."""
    right = [
        model
        for model in seen.models
        if any(e.model == model.name and not e.path and not e.direct for e in seen.of(ModeCall))
        and any(mode_matters(module) for module in model.modules.values())
    ]
    return f"train() and eval() reached all layers of {counted(len(right), 'model')}" if right else None


RULE = Rule(
    code="M204",
    what="Compares a `training` flag that was written without `train()` or `eval()` with the flags of the modules "
    "below, in the next forward pass.",
    why="`model.training = False` is an assignment to one module. Dropout and batch normalization look at their own "
    "flags, which stay as they were: the model says that it is in eval mode, and drops and moves its statistics all "
    "the same.",
    evidence="The module whose flag was written and the line, the modules below it with the other flag, the pass "
    "that ran so, and the statistics that moved; from the first pass after the write on.",
    example="model.training = False\nwith torch.no_grad():\n    predictions = model(x)",
    instead="model.eval()\nwith torch.no_grad():\n    predictions = model(x)",
    remedy="Call `model.eval()` or `model.train()`, with parentheses.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: it is an edit of the loop, and the outputs change",
    false_alarms="Code that writes the flag of a container on purpose, to take another branch of its `forward`, "
    "while the layers below stay as they are. `model.eval` without parentheses does nothing and cannot be seen here; "
    "what follows from it is M201.",
    source="none found",
    look=look,
    sound=sound,
    explains=("M202",),
)
