"""Frozen parameters that a step moved, because they still had a gradient: one from before, or one of zeros."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from frostline.audit.events import Backward, GradFlag, Step, ZeroGrad
from frostline.audit.places import NOWHERE, Place
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.telling import flags_by_path


@dataclass
class Stale:
    """Frozen parameters of one model that steps of one optimizer moved, frozen on one line.

    Attributes:
        model: the model.
        optimizer: the optimizer.
        frozen: the line that froze them; unknown where that was before the watch.
        since: how many steps were done by then.
        paths: the parameters, and how far a step moved each, at the most.
        steps: the steps that moved any of them.
        cleared: the line that filled their gradients with zeros; ``None`` where they are of a pass before.
        zeros: whether they were zeros when they were frozen, or filled with zeros since.
    """

    model: ModelSeen
    optimizer: str
    frozen: Place
    since: int
    paths: dict[str, float] = field(default_factory=dict[str, float])
    steps: dict[int, None] = field(default_factory=dict[int, None])
    cleared: Place | None = None
    zeros: bool = False

    @property
    def furthest(self) -> str:
        """The parameter that a step moved furthest."""
        return max(self.paths, key=lambda path: self.paths[path])


def stale(seen: Seen, *, zeros: bool) -> Iterator[Stale]:
    """The frozen parameters that steps moved, by the line that froze them.

    Args:
        seen: what was seen.
        zeros: those whose gradients were filled with zeros since; otherwise those whose gradients are from before.
    """
    groups: dict[tuple[str, str, Place], Stale] = {}
    written = flags_by_path(seen) if any(step.stale_moved for step in seen.steps) else {}
    for step in seen.of(Step, lambda e: bool(e.stale_moved)):
        for name, path, size in step.stale_moved:
            model = seen.model(name)
            if model is None:
                continue
            flag = _frozen_by(written.get((name, path), []), step.at)
            cleared = _cleared(seen, step, name, flag)
            if (cleared is not None) is not zeros:
                continue
            place = flag.place if flag else NOWHERE
            group = groups.setdefault(
                (name, step.optimizer, place),
                Stale(model, step.optimizer, place, flag.step if flag else 0),
            )
            group.paths[path] = max(size, group.paths.get(path, 0.0))
            group.steps.setdefault(step.step)
            group.cleared = group.cleared if group.cleared is not None and group.cleared.is_known else cleared
            group.zeros = group.zeros or bool(cleared and cleared.is_known) or (flag is not None and flag.left is False)
    yield from groups.values()


def _frozen_by(written: list[GradFlag], before: int) -> GradFlag | None:
    flags = [e for e in written if e.at < before and not e.value]
    # Where a flag was written again and again, the first write of the last row of them froze it.
    froze = [e for e in flags if e.before]
    return (froze or flags)[-1] if flags else None


def _cleared(seen: Seen, step: Step, model: str, flag: GradFlag | None) -> Place | None:
    """The line that filled the gradient with zeros; ``None`` where it was computed before freezing and still stands."""
    begin = -1 if flag is None else flag.at
    if flag is not None and flag.left is False:
        begin = -1  # it was cleared already; no pass reaches it any more
    clears = seen.of(
        ZeroGrad, lambda e: begin < e.at < step.at and e.owner in {step.optimizer, model} and not e.set_to_none
    )
    if clears:
        return clears[-1].place
    if begin < 0 and flag is not None:
        return NOWHERE  # zeros, by hand
    # Frozen before this round's backward pass: what it has now was not computed in this round.
    last = [e.at for e in seen.of(Step) if e.optimizer == step.optimizer and e.at < step.at]
    passes = [e.at for e in seen.of(Backward) if (last[-1] if last else -1) < e.at < step.at]
    return NOWHERE if passes and begin < passes[0] and flag is not None and last and begin < last[-1] else None
