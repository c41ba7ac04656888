"""O406: gradients are never cleared and pile up."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import Step, ZeroGrad
from frostline.audit.places import Place
from frostline.audit.seen import Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted
from frostline.doctor.windows import clears, windows
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Optimizers that step again on gradients of which they have already used a part."""
    for optimizer in seen.optimizers:
        steps = seen.of(Step, lambda e, o=optimizer: e.optimizer == o.name)
        later = [step for step in steps if step.carried is not None]
        piled = [step for step in later if step.carried and step.backwards]
        # Now and then it may be meant: two steps on the same gradients, a step to warm up.
        if not piled or 2 * len(piled) < len(later):
            continue
        cleared = seen.of(ZeroGrad, lambda e, o=optimizer: clears(e, o))
        norms = [step.grad_norm for step in steps if step.grad_norm is not None]
        evidence = [
            (
                f"{len(piled)} of {counted(len(later), 'later step')} of {optimizer.name}: {piled[-1].carried} of "
                f"{counted(piled[-1].tensors, 'gradient')} still held what the step before had used"
            ),
            f"its gradients were cleared {counted(len(cleared), 'time')}, last at {at(cleared[-1].place)}"
            if cleared
            else f"nothing called {optimizer.name}.zero_grad() or the zero_grad() of its model",
        ]
        if len(norms) >= 2:
            evidence.append(f"norm of its gradients: {norms[0]:.3g} at its first step, {norms[-1]:.3g} at the last")
        yield Found(
            message=f"{optimizer.name} steps on gradients that nobody clears: each step adds to those of all steps "
            "before",
            evidence=tuple(evidence),
            remedy=f"{optimizer.name}.zero_grad() before this line",
            severity=Severity.ERROR,
            safety=Safety.UNSAFE,
            place=_backward_of(piled[0], seen),
        )


def _backward_of(step: Step, seen: Seen) -> Place:
    """The line of the first backward pass that went into a step."""
    for window in windows(seen):
        if step in window.steps and window.backwards:
            return window.backwards[0].place
    return step.place


def sound(seen: Seen) -> str | None:
    """How many steps had gradients of their own."""
    later = [step for step in seen.steps if step.carried is not None and step.backwards]
    if not later or any(step.carried for step in later):
        return None
    return f"gradients were cleared before each of {counted(len(later), 'later step')}"


RULE = Rule(
    code="O406",
    what="Looks, at the first backward pass after each step, whether the gradients that the step has used are still "
    "there and are added to.",
    why="`backward()` adds to `.grad`. Without `zero_grad()` each step is made with the sum of all gradients so "
    "far: it behaves like a momentum of 1, overshoots, and the loss explodes or swings.",
    evidence="In how many steps, the norm of the gradients at the first and the last, and the line of the backward "
    "pass; from the second step on. Gradients that are cleared by hand (`p.grad = None`) count as cleared.",
    example="for x, y in loader:\n    loss(model(x), y).backward()\n    optimizer.step()",
    instead="for x, y in loader:\n    optimizer.zero_grad()\n    loss(model(x), y).backward()\n    optimizer.step()",
    remedy="Call `optimizer.zero_grad()` once for each step, before the first backward pass that counts for it.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the steps become smaller, which is what the learning rate was meant for",
    false_alarms="Two steps in a row on the same gradients are not reported, nor is accumulation, where the "
    "clearing comes once for each step. A loop that keeps gradients on purpose as its momentum is.",
    source="stackoverflow 60335387, pytorch#47175, TennisCourtDetector#7, torchforge PR71",
    look=look,
    sound=sound,
)
