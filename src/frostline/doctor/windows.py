"""A loop cut into windows: what was done between one moment of stepping and the next.

Optimizers that step one after the other without a backward pass in between (one for the trunk, one for the head) step
at one moment. A loop that trains two nets in turn (a GAN) has moments of different optimizers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from frostline.audit.events import Backward, Forward, Step, ZeroGrad
from frostline.audit.seen import OptimizerSeen, Seen


@dataclass
class Window:
    """What was done up to a moment of stepping, in order.

    Attributes:
        forwards: forward passes with gradients.
        backwards: backward passes.
        clears: calls of ``zero_grad``.
        steps: the steps that ended it; empty where the watch ended before.
        lost: how many of the backward passes were cleared again before the steps.
    """

    forwards: list[Forward] = field(default_factory=list[Forward])
    backwards: list[Backward] = field(default_factory=list[Backward])
    clears: list[ZeroGrad] = field(default_factory=list[ZeroGrad])
    steps: list[Step] = field(default_factory=list[Step])
    lost: int = 0

    @property
    def size(self) -> int:
        """How many backward passes went into its steps."""
        return len(self.backwards) - self.lost

    @property
    def lines(self) -> set[tuple[str, int]]:
        """The lines of its backward passes."""
        return {(b.place.file, b.place.line) for b in self.backwards}


def windows(seen: Seen) -> list[Window]:
    """All windows, in order; the last is open if something came after the last step.

    Example:
        >>> from frostline.audit.events import Backward, Step
        >>> done = {"rates": (0.1,), "forwards": 2, "backwards": 2, "rows": (), "tensors": 1, "without_grad": 0}
        >>> step = Step(at=2, step=0, optimizer="sgd", **done)
        >>> [w.size for w in windows(Seen(events=[Backward(at=0, step=0), Backward(at=1, step=0), step]))]
        [2]
    """
    found = [Window()]
    for event in seen.events:
        now = found[-1]
        if isinstance(event, Step):
            now.steps.append(event)
        elif isinstance(event, ZeroGrad):
            now.clears.append(event)
        elif isinstance(event, Backward) or (isinstance(event, Forward) and event.grad):
            if now.steps:
                # What clears after the step belongs to the window that begins.
                last = now.steps[-1].at
                after = [clear for clear in now.clears if clear.at > last]
                now.clears = now.clears[: len(now.clears) - len(after)]
                now = Window(clears=after)
                found.append(now)
            if isinstance(event, Forward):
                now.forwards.append(event)
            else:
                now.backwards.append(event)
    for window in found:
        owners = {step.optimizer for step in window.steps} or {optimizer.name for optimizer in seen.optimizers}
        steppers = [optimizer for optimizer in seen.optimizers if optimizer.name in owners]
        before = [c for c in window.clears if not window.steps or c.at < window.steps[0].at]
        cleared = [c.at for c in before if any(clears(c, optimizer) for optimizer in steppers)]
        window.lost = sum(backward.at < cleared[-1] for backward in window.backwards) if cleared else 0
    return found


def clears(event: ZeroGrad, optimizer: OptimizerSeen) -> bool:
    """Whether a ``zero_grad`` clears gradients that an optimizer uses: its own, or that of a model it has a part of."""
    if event.of_optimizer:
        return event.owner == optimizer.name
    return any(name == event.owner for group in optimizer.groups for name, _ in group.paths)


def accumulates(found: list[Window]) -> bool:
    """Whether the windows are those of gradient accumulation.

    One line does all backward passes, each after a forward pass of its own, and most windows have the same number of
    them that count, two at least. Two losses with a backward pass each, or two nets in turn, are something else, and so
    are the passes of a closure.
    """
    closed = [window for window in found if window.steps]
    if len({line for window in closed for line in window.lines}) != 1:
        return False
    if any(len(window.forwards) < len(window.backwards) for window in closed):
        return False
    if any(backward.in_step for window in closed for backward in window.backwards):
        return False
    size = usual(closed)
    return size >= 2 and sum(window.size == size for window in closed) * 2 >= len(closed)


def usual(closed: list[Window]) -> int:
    """The commonest size of a window; the larger of two that are as common; 0 without windows."""
    sizes = [window.size for window in closed]
    return max(sizes, key=lambda size: (sizes.count(size), size), default=0)
