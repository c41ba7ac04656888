"""M203: a later train() undid eval() of a part that was meant to stay in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from frostline.audit.events import Forward, ModeCall
from frostline.audit.seen import ModelSeen, Phase, Seen
from frostline.doctor.passes import Passes, dropping, layers, mode_matters
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import call_at, counted, some
from frostline.findings import Safety, Severity
from frostline.state import names

_FIRM = {"hold", "declared"}


def look(seen: Seen) -> Iterator[Found]:
    """Layers that had to stay in eval mode, in train mode in a training step."""
    for model in seen.models:
        hit = next(((p, u) for p in Passes(seen, model).training if (u := _undone(seen, model, p))), None)
        if hit is None:
            continue
        phase, undone = hit
        call = _undoing(seen, model, phase, undone)
        before = _eval_call(seen, model, phase, undone)
        moved = [t for t in model.buffers if t.module in set(undone) and (t.moved or t.path in phase.moved)]
        evidence: list[str] = []
        if before is not None:
            evidence.append(f"eval mode was set by {call_at(before.place)}")
        else:
            evidence.append(
                f"eval mode was {'declared' if model.modules[undone[0]].must_eval in _FIRM else 'set before'}"
            )
        if call is not None:
            by = f" (by {call.place.via})" if call.place.via else ""
            evidence.append(f"train mode was set again by {call_at(call.place)}{by}")
        else:
            evidence.append("the flag was written without train(), past what keeps it")
        evidence.append(f"in train mode in the training pass at {phase.place}: {some(undone)}")
        if moved:
            evidence.append(f"statistics moved in {counted(len({t.module for t in moved}), 'layer')}")
        yield Found(
            message=f"{layers(model, undone)} that {'was' if len(undone) == 1 else 'were'} put into eval mode "
            "ran in train mode in training",
            model=model.name,
            paths=undone,
            evidence=tuple(evidence),
            remedy=_remedy(model, undone),
            severity=Severity.ERROR if moved else Severity.WARNING,
            safety=Safety.SAFE,
            place=call.place if call is not None else phase.place,
            repair=_locker(model, undone),
            inferred=all(model.modules[path].must_eval not in _FIRM for path in undone),
        )


def _undone(seen: Seen, model: ModelSeen, phase: Phase) -> tuple[str, ...]:
    thawed = frozenset(phase.thawed)
    paths = tuple(p for p in dropping(model, phase) if model.modules[p].must_eval and p not in thawed)
    if not paths or any(model.modules[path].must_eval in _FIRM for path in paths):
        return paths
    call, again = _eval_call(seen, model, phase, paths), _undoing(seen, model, phase, paths)
    # Who calls train() on the part itself, as the two nets of a GAN in one module are switched, means it.
    if call is not None and again is not None and names.is_under(again.path, call.path):
        return ()
    kept = tuple(path for path in paths if not model.modules[path].training)
    return kept or (() if call is None or _was_validated(seen, call, paths) else paths)


def _was_validated(seen: Seen, call: ModeCall, paths: tuple[str, ...]) -> bool:
    """Whether a part ran between a call of ``eval()`` and the next ``train()``: it was looked at, and trains again."""
    back = (e.at for e in seen.of(ModeCall) if e.mode and e.at > call.at and not set(paths).isdisjoint(e.flipped))
    until = next(back, call.at)
    return bool(seen.of(Forward, lambda e: e.model == call.model and call.at < e.at < until))


def _eval_call(seen: Seen, model: ModelSeen, phase: Phase, paths: tuple[str, ...]) -> ModeCall | None:
    """The first call that put these layers, but not the whole model, into eval mode."""
    return next(
        (
            e
            for e in seen.of(ModeCall)
            if e.model == model.name
            and not e.mode
            and e.path
            and e.at < phase.first
            and any(names.is_under(path, e.path) for path in paths)
        ),
        None,
    )


def _undoing(seen: Seen, model: ModelSeen, phase: Phase, paths: tuple[str, ...]) -> ModeCall | None:
    """The call that put them back into train mode before this phase."""
    calls = [
        e
        for e in seen.of(ModeCall)
        if e.model == model.name
        and e.mode
        and not e.direct
        and e.at < phase.first
        and not set(paths).isdisjoint(e.flipped)
    ]
    return calls[-1] if calls else None


def _remedy(model: ModelSeen, paths: tuple[str, ...]) -> str:
    held = all(model.modules[path].frozen_above for path in paths)
    level = "" if held else ', level="stats"'
    quoted = ", ".join(f'"{path}"' for path in _tops(model, paths)[:4])
    if not held and any("dropout" in model.modules[path].kinds for path in paths):
        return f"call eval() on {some(paths)} after every {model.name}.train(), or override train() in its class"
    return f"frostline.freeze({model.name}, {quoted}{level})"


def _tops(model: ModelSeen, paths: tuple[str, ...]) -> list[str]:
    """The outermost modules that were meant: as far up as everything for which the mode matters is among the paths."""
    chosen = set(paths)
    matter = [path for path, module in model.modules.items() if mode_matters(module)]
    tops: dict[str, None] = {}
    for path in paths:
        top = path
        while above := names.parent(top):
            if not model.modules[above].must_eval or any(names.is_under(m, above) and m not in chosen for m in matter):
                break
            top = above
        tops.setdefault(top)
    return list(tops)


def _locker(model: ModelSeen, paths: tuple[str, ...]) -> Callable[[], str]:
    def repair() -> str:
        from frostline.freezing import freeze
        from frostline.state.selection import exactly

        assert model.live is not None
        # A module without parameters is held as it is; of a norm layer that trains only the statistics are.
        for path in paths:
            module = model.modules[path]
            trains = "stats" in module.kinds and not module.frozen
            freeze(model.live, exactly(path), level="stats" if trains else "state")
        return f"a hold on the mode of {counted(len(paths), 'layer')}"

    return repair


def sound(seen: Seen) -> str | None:
    """How many layers kept the eval mode that they were put into."""
    kept = {
        (model.name, path)
        for model in seen.models
        if Passes(seen, model).training
        for path, module in model.modules.items()
        if module.must_eval and mode_matters(module) and not module.training
    }
    return f"{counted(len(kept), 'layer')} stayed in eval mode while the rest trained" if kept else None


RULE = Rule(
    code="M203",
    what="Compares the modules that were put into eval mode on their own before the first step, or that are declared "
    "or held so, with those that were in train mode in a training step.",
    why="`eval()` on a part lasts until the next `model.train()`, which every epoch and every trainer calls. The "
    "statistics that were meant to be fixed move from the second epoch on, and dropout that was switched off drops "
    "again.",
    evidence="The line that set eval mode, the line that undid it and the library that called it, the layers, and "
    "the statistics that moved; from the first step after the call on.",
    example="model.backbone.eval()\nfor epoch in range(10):\n    model.train()\n    train_one_epoch(model)",
    instead='hold = frostline.freeze(model, "backbone", optimizer=optimizer)\nfor epoch in range(10):\n    '
    "model.train()\n    train_one_epoch(model)",
    remedy='Hold the part with `frostline.freeze`, with `level="stats"` where its weights train; or call its '
    "`eval()` after every `model.train()`; or override `train()` in its class.",
    safety=Safety.SAFE,
    how_safe="safe: the mode that was set is kept, and no value is changed",
    false_alarms="A part that is put into eval mode before the first step for a short while and then trained in "
    "train mode on purpose, without a forward pass in between; not where it was frozen and is unfrozen, which is "
    "seen. Say so: `contract=Contract(moving=...)`, or `--moving`, with the part.",
    source="Lightning#2551, Lightning#18930, Lightning PR18951, transformers#24479",
    look=look,
    sound=sound,
    explains=("F107", "M207"),
)
