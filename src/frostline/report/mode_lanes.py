"""When modules were in train mode and when in eval mode, as lanes over the steps of a loop; pure Python."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# What a forward pass was: its mode, and whether gradients were enabled.
PASSES = {
    "train-grad": "train mode, with gradients",
    "eval": "eval mode, no gradients",
    "train": "train mode, no gradients",
    "eval-grad": "eval mode, with gradients",
}
# More spans than this in one lane are thinner than a pixel.
_MOST_SPANS = 400
# Numbers nearer to each other than this share of the width would overlap.
_NEAR = 0.022


@dataclass(frozen=True)
class Flip:
    """A change of mode.

    Attributes:
        at: where between the steps, counted from 0.
        mode: ``train`` or ``eval``, from then on.
    """

    at: float
    mode: str


@dataclass(frozen=True)
class Lane:
    """Modules whose mode changed at the same times.

    Attributes:
        name: what they are called.
        modules: how many they are.
        begins: their mode before the first change.
        flips: the changes, in order.
        must_eval: how many of them were to stay in eval mode.
        broken: whether one of those that were to stay in eval mode did not.
    """

    name: str
    modules: int
    begins: str
    flips: tuple[Flip, ...]
    must_eval: int = 0
    broken: bool = False


@dataclass(frozen=True)
class PassRun:
    """Forward passes of one kind in a row.

    Attributes:
        at: where it begins between the steps.
        kind: a key of :data:`PASSES`.
    """

    at: float
    kind: str


@dataclass(frozen=True)
class ModeLine:
    """A line of source that changed modes.

    Attributes:
        call: what it says, or what it did.
        place: file and line; empty where they are not known.
        mode: ``train`` or ``eval``.
        at: where each time lies between the steps.
        steps: the steps done by then, as printed.
        flipped: how many modules changed at most.
        guarded: how many a hold kept out of it.
    """

    call: str
    place: str
    mode: str
    at: tuple[float, ...]
    steps: str
    flipped: int
    guarded: int = 0


@dataclass(frozen=True)
class ModeTimeline:
    """The modes of one model over a loop.

    Attributes:
        steps: how many steps were seen.
        lanes: the modules.
        passes: the forward passes.
        calls: the lines that changed modes.
        left_out: lanes that are not shown.
        calls_left_out: lines that are not shown.
    """

    steps: int
    lanes: tuple[Lane, ...]
    passes: tuple[PassRun, ...] = ()
    calls: tuple[ModeLine, ...] = ()
    left_out: int = 0
    calls_left_out: int = 0


@dataclass(frozen=True)
class Span:
    """A stretch of a lane, in percent of its width."""

    left: str
    width: str
    kind: str


@dataclass(frozen=True)
class DrawnLane:
    """A lane with its stretches, and the same in words."""

    lane: Lane
    spans: tuple[Span, ...]
    text: str


@dataclass(frozen=True)
class DrawnModes:
    """A timeline, ready to be printed.

    Attributes:
        lanes: the modules.
        passes: stretches of forward passes.
        kinds: the kinds of passes that occur.
        ticks: place and number of steps on the axis.
        marks: place and numbers of the lines that changed modes; those too close to be told apart share one.
    """

    lanes: tuple[DrawnLane, ...]
    passes: tuple[Span, ...]
    kinds: tuple[str, ...]
    ticks: tuple[tuple[str, int], ...]
    marks: tuple[tuple[str, str], ...]


def draw_modes(timeline: ModeTimeline) -> DrawnModes:
    """Lay out a timeline: every place as a percentage of the width.

    Example:
        >>> lane = Lane("model", 9, "train", (Flip(2.5, "eval"),))
        >>> [(span.left, span.width, span.kind) for span in draw_modes(ModeTimeline(4, (lane,))).lanes[0].spans]
        [('0.00%', '62.50%', 'train'), ('62.50%', '37.50%', 'eval')]
        >>> draw_modes(ModeTimeline(4, (lane,))).lanes[0].text
        'train mode, from step 2 on eval mode'
    """
    wide = _wide(timeline)
    passes = _spans([(run.at, run.kind) for run in timeline.passes], wide)
    kinds = [kind for kind in PASSES if any(run.kind == kind for run in timeline.passes)]
    return DrawnModes(
        lanes=tuple(DrawnLane(lane, _spans(_changes(lane), wide), _in_words(lane)) for lane in timeline.lanes),
        passes=passes,
        kinds=tuple(kinds),
        ticks=tuple((_percent(float(tick), wide), tick) for tick in _ticks(wide)),
        marks=tuple(_marks(timeline, wide)),
    )


def _wide(timeline: ModeTimeline) -> float:
    """The width in steps: what came after the last step needs room too."""
    late = [flip.at for lane in timeline.lanes for flip in lane.flips] + [run.at for run in timeline.passes]
    return float(max([timeline.steps, 1, *(math.floor(at) + 1 for at in late)]))


def _changes(lane: Lane) -> list[tuple[float, str]]:
    return [(0.0, lane.begins), *((flip.at, flip.mode) for flip in lane.flips)]


def _spans(changes: Sequence[tuple[float, str]], wide: float) -> tuple[Span, ...]:
    if not changes:
        return ()
    # Beyond what a screen can show, stretches are joined to the one before them.
    stride = -(-len(changes) // _MOST_SPANS)
    kept = changes[::stride]
    ends = [at for at, _ in kept[1:]] + [wide]
    return tuple(
        Span(_percent(at, wide), _percent(end - at, wide), kind)
        for (at, kind), end in zip(kept, ends, strict=True)
        if end > at
    )


def _marks(timeline: ModeTimeline, wide: float) -> Iterator[tuple[str, str]]:
    places = sorted((at / wide, number) for number, line in enumerate(timeline.calls, start=1) for at in line.at)
    near: list[tuple[float, int]] = []
    for place, number in [*places, (math.inf, 0)]:
        if near and place - near[-1][0] > _NEAR:
            numbers = list(dict.fromkeys(number for _, number in near))
            said = ", ".join(map(str, numbers)) if len(numbers) < 4 else f"{numbers[0]} … {numbers[-1]}"
            yield _percent((near[0][0] + near[-1][0]) / 2, 1.0), said
            near = []
        near.append((place, number))


def _in_words(lane: Lane) -> str:
    said = [f"{lane.begins} mode"]
    said += [f"from step {math.floor(flip.at)} on {flip.mode} mode" for flip in lane.flips[:6]]
    if len(lane.flips) > 6:
        said.append(f"{len(lane.flips) - 6:,} more changes")
    return ", ".join(said)


def _percent(at: float, wide: float) -> str:
    return f"{100 * min(max(at / wide, 0.0), 1.0):.2f}%"


def _ticks(wide: float) -> list[int]:
    """About six round numbers of steps, from 0."""
    rough = max(wide / 6, 1.0)
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return list(range(0, math.floor(wide) + 1, int(step)))
