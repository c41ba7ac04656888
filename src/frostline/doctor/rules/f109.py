"""F109: a parameter was frozen between backward and step: its gradient is still applied."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import GradFlag
from frostline.audit.seen import Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.stale_gradients import stale
from frostline.doctor.telling import counted, parts_of, quoted, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Frozen parameters that a step moved by a gradient from before."""
    for one in stale(seen, zeros=False):
        paths = tuple(one.paths)
        parts = parts_of(paths, one.model)
        verb = "was" if len(paths) == 1 else "were"
        where = f" ({one.frozen})" if one.frozen.is_known else ""
        evidence = [
            f"{some(parts)}: frozen after a backward pass, before the step that uses it{where}",
            f"{one.furthest}: moved by {one.paths[one.furthest]:.3g} in the step after that",
            "an optimizer looks at .grad, not at requires_grad",
        ]
        yield Found(
            message=f"{counted(len(paths), 'parameter')} {verb} frozen between backward() and step(), and moved again",
            model=one.model.name,
            paths=paths,
            evidence=tuple(evidence),
            remedy="freeze before backward() or after step(), or set p.grad = None with it:\n"
            f"frostline.freeze({one.model.name}, {quoted(parts)}, optimizer={one.optimizer})",
            severity=Severity.ERROR,
            safety=Safety.UNSAFE,
            place=one.frozen if one.frozen.is_known else None,
        )


def sound(seen: Seen) -> str | None:
    """How many parameters were frozen while training, and stayed where they were from then on."""
    moved = {(model, path) for step in seen.steps for model, path, _ in step.stale_moved}
    frozen = {(e.model, e.path) for e in seen.of(GradFlag, lambda e: e.step > 0 and e.before and not e.value)}
    last = {key for key in frozen - moved if (t := seen.tensor(key)) is not None and not t.trainable_now and t.owner}
    return f"{counted(len(last), 'parameter')} frozen while training stayed from then on" if last else None


RULE = Rule(
    code="F109",
    what="Looks, at every step, for frozen parameters of the optimizer that still have a gradient from before they "
    "were frozen, and compares their values before and after the step.",
    why="An optimizer moves whatever has a `.grad`, whether or not it requires one. The step that follows applies "
    "the gradient once more, and momentum with it.",
    evidence="The line that froze, the flag, the gradient, and how far the step moved the parameter; in that very "
    "step.",
    example="loss.backward()\nif epoch == 5:\n    model.backbone.requires_grad_(False)\noptimizer.step()",
    instead='if epoch == 5:\n    frostline.freeze(model, "backbone", optimizer=optimizer)\noptimizer.zero_grad()\n'
    "loss(model(x), y).backward()\noptimizer.step()",
    remedy="Freeze before `backward()` or after `step()`, set `p.grad = None` with it, or freeze with "
    "`frostline.freeze(..., optimizer=...)`.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the last step may be meant to count",
    false_alarms="None known: a frozen parameter has moved. Nothing is said where the gradient is zero and moves "
    "nothing.",
    source="sparseml#965",
    look=look,
    sound=sound,
    explains=("F110", "O403"),
)
