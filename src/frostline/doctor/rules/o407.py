"""O407: gradients are cleared before the step that should use them."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import Backward, Step, ZeroGrad
from frostline.audit.places import Place
from frostline.audit.seen import OptimizerSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted
from frostline.doctor.windows import Window, clears, windows
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Steps whose gradients were cleared after the last backward pass; windows of which only the last pass counts."""
    for optimizer in seen.optimizers:
        if not any(t is not None and t.trainable_now for t in map(seen.tensor, _keys(optimizer))):
            continue  # nothing of it trains, cleared or not
        found = _before_the_step(optimizer, seen) or _per_micro_batch(optimizer, seen)
        if found is not None:
            yield found


def _keys(optimizer: OptimizerSeen) -> list[tuple[str, str]]:
    return [key for group in optimizer.groups for key in group.paths]


def _paths(optimizer: OptimizerSeen) -> tuple[str, tuple[str, ...]]:
    """The model that it has most of, and the paths in it."""
    keys = [key for key in _keys(optimizer) if key[0]]
    model = keys[0][0] if keys else ""
    return model, tuple(path for name, path in keys if name == model)


def _before_the_step(optimizer: OptimizerSeen, seen: Seen) -> Found | None:
    """``backward(); zero_grad(); step()``: the step finds no gradient."""
    steps = seen.of(Step, lambda e: e.optimizer == optimizer.name and e.backwards > 0)
    lost: list[tuple[Step, ZeroGrad]] = []
    for step, clear in _last_clear(optimizer, seen):
        if clear is not None and step.backwards and (step.without_grad == step.tensors or step.all_zero):
            lost.append((step, clear))
    if not lost or 2 * len(lost) < len(steps):
        return None
    step, clear = lost[0]
    became = "None" if step.without_grad == step.tensors else "zero"
    model, paths = _paths(optimizer)
    return Found(
        message=f"gradients are cleared between backward() and {optimizer.name}.step(): "
        f"{len(lost)} of {counted(len(steps), 'step')} had none",
        model=model,
        paths=paths,
        evidence=(
            f"cleared after the backward pass, at {at(clear.place)}",
            f"{counted(step.tensors, 'gradient')} of {optimizer.name}, all {became}, at {at(step.place)}",
        ),
        remedy="move this line before the backward pass, or behind the step",
        severity=Severity.ERROR,
        safety=Safety.UNSAFE,
        place=clear.place,
    )


def _last_clear(optimizer: OptimizerSeen, seen: Seen) -> Iterator[tuple[Step, ZeroGrad | None]]:
    """The steps of an optimizer, each with what cleared its gradients after the last backward pass."""
    clear: ZeroGrad | None = None
    for event in seen.events:
        if isinstance(event, ZeroGrad):
            clear = event if clears(event, optimizer) else clear
        elif isinstance(event, Backward):
            clear = None
        elif isinstance(event, Step) and event.optimizer == optimizer.name:
            yield event, clear
            clear = None


def _per_micro_batch(optimizer: OptimizerSeen, seen: Seen) -> Found | None:
    """Several backward passes for each step, each with a clearing of its own."""
    found = [window for window in windows(seen) if window.steps]
    mine = [w for w in found if all(step.optimizer == optimizer.name for step in w.steps)]
    # In turn with another net, clearing between the passes of one and of the other is right.
    if len(mine) < 2 or len(mine) != len(found):
        return None
    if any(backward.in_step for window in mine for backward in window.backwards):
        return None  # the closure of an optimizer that evaluates several times for one step
    places = {place for window in mine for place in _wasted(window, optimizer)}
    if len(places) != 1 or any(len(window.backwards) < 2 or not _wasted(window, optimizer) for window in mine):
        return None
    model, paths = _paths(optimizer)
    # An optimizer of two stages (SAM) moves the parameters in between, by hand, and clears on purpose.
    tensors = [t for path in paths if (t := seen.tensor((model, path))) is not None]
    if any(t.moved_between for t in tensors):
        return None
    place = next(iter(places))
    counts = [len(window.backwards) for window in mine]
    return Found(
        message=f"gradients are cleared at every micro-batch: of {max(counts, key=counts.count)} backward passes for "
        "a step only the last one counts",
        model=model,
        paths=paths,
        evidence=(
            (
                f"{counted(sum(len(w.backwards) for w in mine), 'backward pass', 'backward passes')} and "
                f"{counted(len(mine), 'step')} of {optimizer.name}"
            ),
            f"between the backward passes of one step came {at(place)}",
        ),
        remedy="clear once for each step: move this line behind the step, into the same if",
        severity=Severity.ERROR,
        safety=Safety.UNSAFE,
        place=place,
    )


def _wasted(window: Window, optimizer: OptimizerSeen) -> set[Place]:
    """The lines that cleared between any two backward passes of a window of accumulation; empty where one was kept."""
    if len(window.lines) != 1 or len(window.forwards) < len(window.backwards):
        return set()
    places: set[Place] = set()
    for before, after in zip(window.backwards, window.backwards[1:], strict=False):
        between = [c for c in window.clears if before.at < c.at < after.at and clears(c, optimizer)]
        if not between:
            return set()
        places |= {c.place for c in between}
    return places


def sound(seen: Seen) -> str | None:
    """How many steps had the gradients of all their backward passes."""
    steps = [step for step in seen.steps if step.backwards and step.without_grad < step.tensors and not step.all_zero]
    if not steps or len(steps) < len([step for step in seen.steps if step.backwards]):
        return None
    return f"all {counted(len(steps), 'step')} had gradients that were not cleared before"


RULE = Rule(
    code="O407",
    what="Looks at the order of `backward`, `zero_grad` and `step`: whether a step finds its gradients cleared, and "
    "whether, of several backward passes for a step, all but the last are cleared.",
    why="`backward(); zero_grad(); step()` trains nothing, in silence. `zero_grad()` at every micro-batch of gradient "
    "accumulation trains with the last one only, at a k-th of the learning rate if the loss is divided by k.",
    evidence="How many steps had no gradient or a gradient of zero, and the line that cleared; from the first step on, "
    "for accumulation from the second.",
    example="loss.backward()\noptimizer.zero_grad()\noptimizer.step()",
    instead="optimizer.zero_grad()\nloss.backward()\noptimizer.step()",
    remedy="Clear once for each step: before its first backward pass, or right after the step.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: training begins, or takes larger steps",
    false_alarms="Not reported: two nets in turn (a GAN), gradients that are computed for an attack or one loss at a "
    "time, optimizers of two stages or with a closure (SAM, LBFGS), steps that a gradient scaler or a check for NaN "
    "skips now and then.",
    source="RAE#67, openWakeWord#316, ultralytics PR11217, accelerate#1299",
    look=look,
    sound=sound,
    explains=("H602", "O409", "O413"),
)
