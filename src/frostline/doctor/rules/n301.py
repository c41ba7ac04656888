"""N301: normalization layers of one kind were put into eval mode, those of another kind were missed."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import ModeCall
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.passes import Passes, mode_matters
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, freezer, share, some
from frostline.findings import Safety, Severity
from frostline.state import names


def look(seen: Seen) -> Iterator[Found]:
    """Layers with statistics in one frozen part: all of some classes in eval mode, all of others in train mode."""
    for model in seen.models:
        phase = next(iter(Passes(seen, model).training), None)
        if phase is None:
            continue
        train = set(phase.train_modules)
        kept, missed = list[str](), list[str]()
        for layers in _parts(model).values():
            modes: dict[str, set[bool]] = {}
            for path in layers:
                modes.setdefault(model.modules[path].type, set()).add(path in train)
            # A part that was switched as a whole, or layer by layer as it pleased, is not a matter of classes.
            if {True} in modes.values() and {False} in modes.values() and {True, False} not in modes.values():
                kept += [path for path in layers if path not in train]
                missed += [path for path in layers if path in train]
        if not missed:
            continue
        call = _by_hand(seen, model, set(kept))
        moved = sorted(
            {t.module for t in model.buffers if t.module in set(missed) and (t.moved or t.path in phase.moved)}
        )
        evidence = [
            f"in eval mode: {counted(len(kept), _types(model, kept))}: {some(kept)}",
            f"in train mode: {counted(len(missed), _types(model, missed))}: {some(missed)}",
        ]
        if moved:
            evidence.append(f"statistics moved in {share(len(moved), len(missed))}")
        yield Found(
            message=f"{counted(len(missed), _types(model, missed))} of a frozen part {_was(missed)} left in train "
            f"mode, while every {_types(model, kept)} is in eval mode",
            model=model.name,
            paths=tuple(missed),
            evidence=tuple(evidence),
            remedy="ask for torch.nn.modules.batchnorm._BatchNorm in place of one class, "
            f"or frostline.freeze({model.name}, {_quoted(model, missed)})",
            severity=Severity.ERROR,
            safety=Safety.SAFE,
            place=call.place if call is not None else phase.place,
            repair=freezer(seen, model, tuple(missed), what=counted(len(missed), "normalization layer")),
            inferred=True,
        )


def _parts(model: ModelSeen) -> dict[str, list[str]]:
    """The layers with running statistics of each frozen part, by the outermost frozen module above them."""
    parts: dict[str, list[str]] = {}
    for path, module in model.modules.items():
        if "stats" in module.kinds and mode_matters(module) and module.frozen_above:
            parts.setdefault(_top(model, path), []).append(path)
    return parts


def _top(model: ModelSeen, path: str) -> str:
    while path and model.modules[names.parent(path)].frozen:
        path = names.parent(path)
    return path


def _types(model: ModelSeen, paths: list[str]) -> str:
    return " or ".join(sorted({model.modules[path].type for path in paths}))


def _was(paths: list[str]) -> str:
    return "was" if len(paths) == 1 else "were"


def _quoted(model: ModelSeen, paths: list[str]) -> str:
    return ", ".join(f'"{top}"' if top else '"*"' for top in dict.fromkeys(_top(model, path) for path in paths))


def _by_hand(seen: Seen, model: ModelSeen, kept: set[str]) -> ModeCall | None:
    """The call that put one of the kept layers into eval mode, alone."""
    calls = seen.of(ModeCall, lambda e: e.model == model.name and not e.mode and e.path in kept and not e.direct)
    return calls[-1] if calls else None


def sound(seen: Seen) -> str | None:
    """In how many frozen parts layers of several classes are in one mode."""
    right = 0
    for model in seen.models:
        for layers in _parts(model).values():
            types = {model.modules[path].type for path in layers}
            right += len(types) > 1 and not any(model.modules[path].training for path in layers)
    return f"normalization layers of all classes are in eval mode in {counted(right, 'frozen part')}" if right else None


RULE = Rule(
    code="N301",
    what="Groups the layers with running statistics of each frozen part by class, and looks whether all of one class "
    "are in eval mode and all of another in train mode.",
    why="`isinstance(m, nn.BatchNorm2d)` is false for `BatchNorm1d`, `BatchNorm3d`, `SyncBatchNorm` and "
    "`InstanceNorm2d`. Their statistics go on moving in the part that was meant to be frozen; and converting the "
    "model to `SyncBatchNorm` makes the test miss every layer.",
    evidence="The classes, the layers in either mode, the statistics that moved, and the line that switched the "
    "others; from the first training step on.",
    example="for m in trunk.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.eval()",
    instead="for m in trunk.modules():\n    if isinstance(m, nn.modules.batchnorm._BatchNorm):\n        m.eval()",
    remedy="Ask for the common class `torch.nn.modules.batchnorm._BatchNorm` (and `_InstanceNorm`, a class below "
    "`_NormBase`, where statistics are tracked), or freeze the part with `frostline.freeze`.",
    safety=Safety.SAFE,
    how_safe="safe: a part that is frozen and whose other layers are in eval mode keeps its statistics",
    false_alarms="Layers of one class that are meant to adapt in a frozen part. Declare them: "
    '`contract=Contract(moving=("trunk.bn.running_*",))`.',
    source="mmdetection PR577",
    look=look,
    sound=sound,
    explains=("F107",),
)
