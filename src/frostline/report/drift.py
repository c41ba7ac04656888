"""How far tensors that were to stay drifted, as small lines for a page; pure Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from frostline.report import figures
from frostline.report.contract_lines import TensorLine, when

# A line has no more points than a screen has pixels for it.
_MOST_POINTS = 240
WIDTH, HEIGHT = 1000, 40


@dataclass(frozen=True)
class DriftLine:
    """One tensor's largest difference to the start over the steps.

    Attributes:
        path: its dotted path.
        line: the data of an SVG path in a box of :data:`WIDTH` times :data:`HEIGHT`.
        area: the same closed along the bottom.
        most: the largest difference.
        text: the same in words.
        written: what wrote it and where.
        codes: the codes of findings that name it.
    """

    path: str
    line: str
    area: str
    most: float
    text: str
    written: str
    codes: tuple[str, ...]


@dataclass(frozen=True)
class Drift:
    """What became of the tensors that were to stay.

    Attributes:
        lines: those that drifted furthest, the furthest first.
        moved: how many drifted.
        counters: how many of them count batches, and have no line where others have one.
        followed: how many were to stay.
        steps: how many steps the lines are wide.
    """

    lines: tuple[DriftLine, ...]
    moved: int
    counters: int
    followed: int
    steps: int

    @property
    def left_out(self) -> int:
        """How many drifted and have no line."""
        return self.moved - self.counters - len(self.lines)


def draw_drift(tensors: Sequence[TensorLine], steps: int, most: int = 12) -> Drift:
    """Draw the tensors that drifted most though they were to stay, each on a scale of its own.

    Args:
        tensors: of one model.
        steps: how many steps were seen.
        most: how many lines at most.

    Example:
        >>> mean = TensorLine("bn.running_mean", "bn", "norm.mean", "stay", True, drift=((1, 0.0), (2, 0.5)))
        >>> drift = draw_drift([mean], steps=2)
        >>> drift.lines[0].text
        '0.5 after step 2; first seen after step 2'
        >>> drift.moved, drift.followed, drift.left_out
        (1, 1, 0)
    """
    followed = [tensor for tensor in tensors if tensor.meant == "stay"]
    moved = [tensor for tensor in followed if tensor.moved]
    # That a counter went up by 100 says less than that a mean moved by 0.1.
    telling = [tensor for tensor in moved if tensor.role != "norm.count"] or moved
    drawn = [tensor for tensor in telling if any(size for _, size in tensor.drift)]
    ranked = sorted(drawn, key=lambda t: (-_rank(t.size), t.path))
    wide = max([steps, *(step for tensor in moved for step, _ in tensor.drift), 1])
    lines = tuple(_draw(tensor, wide) for tensor in ranked[:most])
    return Drift(lines, len(moved), len(moved) - len(telling), len(followed), wide)


def _rank(size: float) -> float:
    return size if math.isfinite(size) else math.inf


def _draw(tensor: TensorLine, steps: int) -> DriftLine:
    points = _thin(tensor.drift)
    top = max((size for _, size in points if math.isfinite(size)), default=0.0) or 1.0
    places: list[str] = []
    # It begins at rest, and stays where it was last seen.
    corners = [*([(0, 0.0)] if points[0][0] else []), *points]
    corners += [(steps, points[-1][1])] if points[-1][0] < steps else []
    for step, size in corners:
        high = size / top if math.isfinite(size) else 1.0
        places.append(f"{WIDTH * step / steps:.0f} {HEIGHT - (HEIGHT - 3) * high:.1f}")
    line = "M" + "L".join(places)
    first = next(step for step, size in tensor.drift if size)
    last_step, last = tensor.drift[-1]
    return DriftLine(
        path=tensor.path,
        line=line,
        area=f"{line}L{WIDTH} {HEIGHT}L0 {HEIGHT}Z",
        most=tensor.size,
        text=f"{figures.size(last)} {when(last_step)}; first seen {when(first)}",
        written=tensor.written,
        codes=tensor.codes,
    )


def _thin(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """As many points as can be seen: of each stretch the largest, and the last of all."""
    stretch = -(-len(points) // _MOST_POINTS)
    kept = [max(points[i : i + stretch], key=lambda point: point[1]) for i in range(0, len(points), stretch)]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]
