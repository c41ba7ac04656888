"""F106: eval() was taken for freezing: the weights train."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import ModeCall
from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import biggest, counted, drift_of, freezer, parts_of, quoted, some
from frostline.findings import Safety, Severity
from frostline.state import names


def look(seen: Seen) -> Iterator[Found]:
    """Parts that were put into eval mode on their own before the first step, and whose weights optimizers moved."""
    for model in seen.models:
        declared = _declared(seen, model)
        if declared is not None:
            yield declared
        tops = {path: trained for path in _parts(model) if (trained := _trained(model, path))}
        if not tops:
            continue
        trained = [t for found in tops.values() for t in found if t.must_stay != "declared"]
        if not trained:
            continue
        call = _eval_call(seen, model, list(tops))
        acts = [
            m
            for top in tops
            for m in model.modules.values()
            if names.is_under(m.path, top) and _obeys_mode(model, m.path)
        ]
        evidence = [f"eval() was called on {some(tops)}" + (f" at {call.place}  {call.place.text}" if call else "")]
        evidence.append(
            f"requires_grad is True in {counted(len(trained), 'parameter')} below; an optimizer changed "
            f"{'it' if len(trained) == 1 else 'them'} in {max(t.moved_in_step for t in trained)} "
            f"of {counted(len(seen.steps), 'step')}"
        )
        if acts:
            evidence.append(f"eval mode changes how {counted(len(acts), 'layer')} below run; it keeps no weight")
        else:
            evidence.append("no layer below runs differently in eval mode: the call does nothing at all")
        yield Found(
            message=f"eval() does not freeze: {counted(len(trained), 'parameter')} of {some(tops)} "
            f"{'trains' if len(trained) == 1 else 'train'}",
            model=model.name,
            paths=tuple(t.path for t in trained),
            evidence=tuple(evidence),
            remedy=f"frostline.freeze({model.name}, {quoted(list(tops))})",
            severity=Severity.WARNING if acts else Severity.ERROR,
            safety=Safety.UNSAFE,
            place=call.place if call else None,
            inferred=True,
        )


def _declared(seen: Seen, model: ModelSeen) -> Found | None:
    """What was declared frozen and trains, where no other rule knows why."""
    trained = [t for t in model.parameters if t.must_stay == "declared" and t.trainable and t.gradients]
    if not any(t.moved_in_step for t in trained):
        return None
    paths = tuple(t.path for t in trained)
    parts = parts_of(paths, model)
    worst = biggest(trained)
    evaluated = all(not model.modules[t.module].training for t in trained)
    why = "its part is in eval mode, which stops no gradient" if evaluated else "nothing froze it"
    return Found(
        message=f"{some(parts)} {'was' if len(parts) == 1 else 'were'} declared frozen, and "
        f"{'trains' if len(parts) == 1 else 'train'}: requires_grad is True in {counted(len(paths), 'parameter')}",
        model=model.name,
        paths=paths,
        evidence=(f"{worst.path}: {drift_of(worst, seen)}; {why}",),
        remedy=f"frostline.freeze({model.name}, {quoted(parts)})",
        severity=Severity.ERROR,
        safety=Safety.SAFE,
        repair=freezer(seen, model, parts),
    )


def _parts(model: ModelSeen) -> list[str]:
    """The outermost modules that were put into eval mode on their own, normalization layers apart."""
    chosen = [m.path for m in model.modules.values() if m.path and m.must_eval == "eval"]
    tops = [p for p in chosen if not any(names.is_under(p, other) for other in chosen if other != p)]
    return [p for p in tops if "norm" not in model.modules[p].kinds]


def _trained(model: ModelSeen, top: str) -> list[TensorSeen]:
    """What an optimizer moved below a module; nothing where it is normalization layers alone."""
    moved = [t for t in model.below(top) if t.kind == "parameter" and t.trainable and t.moved_in_step]
    return moved if any("norm" not in model.modules[t.module].kinds for t in moved) else []


def _obeys_mode(model: ModelSeen, path: str) -> bool:
    return bool(model.modules[path].kinds & {"stats", "dropout", "spectral"})


def _eval_call(seen: Seen, model: ModelSeen, tops: list[str]) -> ModeCall | None:
    """The call that did it: on one of the parts, on a module above it, or on the modules below one by one."""
    calls = seen.of(ModeCall, lambda e: e.model == model.name and not e.mode)
    near = [e for e in calls if e.path in tops] or [e for e in calls if any(names.is_under(t, e.path) for t in tops)]
    return near[-1] if near else None


def sound(seen: Seen) -> str | None:
    """How many parts were put into eval mode and kept their weights."""
    kept = [
        p for model in seen.trained for p in _parts(model) if model.modules[p].parameters and not _trained(model, p)
    ]
    return (
        f"{counted(len(kept), 'part')} in eval mode kept {'its' if len(kept) == 1 else 'their'} weights"
        if kept
        else None
    )


RULE = Rule(
    code="F106",
    what="Compares the parts that were put into eval mode on their own, while the rest of the model trains, and the "
    "parts that a contract names as frozen, with the parameters that optimizer steps changed.",
    why="`eval()` switches dropout off and lets normalization layers use their running statistics. It says nothing "
    "about gradients: an optimizer that has the weights goes on changing them.",
    evidence="The call, the flags and the owners of the parameters below, and in how many steps they changed; from "
    "the first step on.",
    example="model.train()\nmodel.backbone.eval()  # frozen?\noptimizer = SGD(model.parameters(), lr=0.1)",
    instead='model.train()\nfrostline.freeze(model, "backbone")\noptimizer = SGD(model.head.parameters(), lr=0.1)',
    remedy="Freeze the part with `frostline.freeze`, which keeps parameters and mode, or set `requires_grad_(False)`.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: training a part in eval mode, with fixed statistics and without dropout, can be meant; a "
    "warning where the mode makes a difference, an error where it makes none. Safe where a contract declared the "
    "part frozen",
    false_alarms="Fine-tuning with the pretrained statistics on purpose. Parts that are normalization layers alone "
    "are never reported. Where it is meant, put the normalization and dropout layers into eval mode, not the whole "
    "part.",
    source="alexrich021/3dvnet#11",
    look=look,
    sound=sound,
)
