"""F110: a frozen parameter keeps moving: its gradient is zero, not None."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import OptimizerSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.stale_gradients import stale
from frostline.doctor.telling import counted, freezer, parts_of, quoted, some
from frostline.findings import Safety, Severity

# What moves a parameter whose gradient is zero.
_MOVERS = ("momentum", "weight_decay", "betas")


def look(seen: Seen) -> Iterator[Found]:
    """Frozen parameters that steps moved although their gradients are zeros."""
    for one in stale(seen, zeros=True):
        paths = tuple(one.paths)
        parts = parts_of(paths, one.model)
        since = f"requires_grad=False since step {one.since}" if one.since else "requires_grad=False"
        evidence = [f"{some(parts)}: {since}" + (f", {one.frozen}  {one.frozen.text}" if one.frozen.is_known else "")]
        if one.cleared is not None and one.cleared.is_known:
            evidence.append(f"gradients are zeros, not None, by {one.cleared}  {one.cleared.text}")
        else:
            evidence.append(f"gradients are {'zeros' if one.zeros else 'left from before'}, not None")
        optimizer = seen.optimizer(one.optimizer)
        evidence.append(
            f"{one.furthest}: moved by up to {one.paths[one.furthest]:.3g} a step, in {counted(len(one.steps), 'step')}"
            + (f", by {_mover(optimizer)}" if optimizer else "")
        )
        yield Found(
            message=f"{counted(len(paths), 'frozen parameter')} {'keeps' if len(paths) == 1 else 'keep'} moving: "
            f"{one.optimizer} steps on gradients that are not None",
            model=one.model.name,
            paths=paths,
            evidence=tuple(evidence),
            remedy=f"{one.optimizer}.zero_grad()  # set_to_none=True is the default\n"
            f"or frostline.freeze({one.model.name}, {quoted(parts)}, optimizer={one.optimizer})",
            severity=Severity.ERROR,
            safety=Safety.SAFE,
            place=one.cleared if one.cleared is not None and one.cleared.is_known else one.frozen,
            repair=freezer(seen, one.model, parts),
        )


def _mover(optimizer: OptimizerSeen) -> str:
    """What of an optimizer moves a parameter without a gradient."""
    found: dict[str, float] = {}
    for group in optimizer.groups:
        found |= {name: value for name in _MOVERS if (value := group.settings.get(name, 0.0))}
    how = " and ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in found.items())
    return f"{optimizer.type} with {how}" if how else f"the moments of {optimizer.type}"


def sound(seen: Seen) -> str | None:
    """How many frozen parameters had a gradient of zeros that moved nothing."""
    stale_ones = {key for step in seen.steps for key in step.stale}
    moved = {(model, path) for step in seen.steps for model, path, _ in step.stale_moved}
    count = len(stale_ones - moved)
    return f"{counted(count, 'frozen parameter')} with a gradient did not move" if count else None


RULE = Rule(
    code="F110",
    what="Looks, at every step, for frozen parameters of the optimizer whose gradient is a tensor of zeros, and "
    "compares their values before and after the step.",
    why="An optimizer skips a parameter whose `.grad` is `None`, and only that. With zeros, momentum runs on, weight "
    "decay shrinks, and the moments of Adam go on pushing: the frozen part drifts.",
    evidence="The line that froze, the line that filled in zeros, and how far each step moved the parameter; from "
    "the first step after freezing on.",
    example="model.backbone.requires_grad_(False)  # in the middle of training\n...\n"
    "optimizer.zero_grad(set_to_none=False)",
    instead='frostline.freeze(model, "backbone", optimizer=optimizer)\n...\noptimizer.zero_grad()',
    remedy="Let `zero_grad` set gradients to `None`, set `p.grad = None` when freezing, or freeze with "
    "`frostline.freeze(..., optimizer=...)`.",
    safety=Safety.SAFE,
    how_safe="safe: it makes happen what the flag says",
    false_alarms="None known: a frozen parameter has moved. Nothing is said where zeros move nothing.",
    source="fairseq#4702, Muon#54, explosion/curated-transformers#69",
    look=look,
    sound=sound,
    explains=("O403",),
)
