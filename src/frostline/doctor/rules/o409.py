"""O409: the loss is averaged over micro-batches of different sizes."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted
from frostline.doctor.windows import Window, accumulates, windows
from frostline.findings import Safety, Severity

# A sample that counts this much more than another is worth a word; less is the usual rounding of batches.
_SPREAD = 1.25


def look(seen: Seen) -> Iterator[Found]:
    """Windows of accumulation in which the mean of a small micro-batch counts as much as that of a large one."""
    found = windows(seen)
    if not accumulates(found):
        return
    closed = [window for window in found if window.steps and window.size > 1]
    uneven = [(window, sizes) for window in closed if (sizes := _sizes(window)) and max(sizes) >= _SPREAD * min(sizes)]
    if not uneven:
        return
    window, sizes = max(uneven, key=lambda pair: max(pair[1]) / min(pair[1]))
    sure = all(_is_plain_mean(window) for window, _ in uneven)
    if not sure and any(backward.mean is False for w, _ in uneven for backward in w.backwards):
        return  # sums, or means with weights of their own: somebody has thought of it
    if not sure and any(len({round(b.scale, 9) for b in w.backwards if b.scale is not None}) > 1 for w, _ in uneven):
        return
    # The last, smaller batch of an epoch is in one step only: worth to know, no more.
    often = len(uneven) > 1 and 2 * len(uneven) > len(closed)
    place = window.backwards[-1].place
    ratio = max(sizes) / min(sizes)
    yield Found(
        message=f"one step averages over micro-batches of {min(sizes):,} to {max(sizes):,} values: "
        f"those of the smallest count {ratio:.3g} times as much",
        evidence=(
            f"values that the losses of one step averaged over: {', '.join(f'{size:,}' for size in sizes[:8])}"
            if sure
            else f"rows of the micro-batches of one step: {', '.join(f'{size:,}' for size in sizes[:8])}",
            f"uneven in {len(uneven)} of {counted(len(closed), 'step')}",
            "each loss is a mean, with the same factor in front"
            if sure
            else "whether each loss is a mean could not be seen; a sum that is divided by the whole is right",
        ),
        remedy='sum the loss (reduction="sum") and divide by the number of values of the whole step',
        severity=Severity.WARNING if sure and often else Severity.INFO,
        safety=Safety.UNSAFE,
        place=place,
    )


def _sizes(window: Window) -> list[int]:
    """Over how many values each loss of a window averages; where that was not seen, how many rows came."""
    counts = [backward.count for backward in window.backwards[window.lost :]]
    if all(counts):
        return counts
    rows = [forward.rows for forward in window.forwards[window.lost :]]
    return rows if all(rows) and len(window.forwards) == len(window.backwards) else []


def _is_plain_mean(window: Window) -> bool:
    """Whether each loss was seen to be a mean, all with the same factor in front."""
    passes = window.backwards[window.lost :]
    scales = {backward.scale for backward in passes}
    return all(b.mean is True and b.count for b in passes) and len(scales) == 1 and None not in scales


def sound(seen: Seen) -> str | None:
    """That the micro-batches of each step are of one size."""
    found = windows(seen)
    closed = [window for window in found if window.steps and window.size > 1]
    sizes = [_sizes(window) for window in closed]
    if not accumulates(found) or not sizes or not all(sizes) or any(len(set(one)) > 1 for one in sizes):
        return None
    return f"the micro-batches of {counted(len(closed), 'step')} are of one size each"


RULE = Rule(
    code="O409",
    what="Compares, where gradients are accumulated, over how many values the losses of the micro-batches of one step "
    "average: rows, pixels, or tokens that are not padding.",
    why="The mean of means is not the mean. A micro-batch of 30 tokens counts as much as one of 300, so that each "
    "of its tokens counts ten times as much, and the result depends on how the batch was cut. The loss is off by a "
    "few per cent, which looks like noise.",
    evidence="The number of values of each micro-batch of a step, and that each loss is a mean with the same "
    "factor, as the graph of the loss says; from the first step on.",
    example="for x, y in micro_batches:  # padded to different lengths\n"
    "    loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100)\n"
    "    (loss / k).backward()",
    instead="for x, y in micro_batches:\n"
    '    loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")\n'
    "    (loss / tokens_of_all).backward()",
    remedy="Sum the losses and divide by the number of values of the whole step.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the gradients become other ones",
    false_alarms="A mean for each micro-batch on purpose, so that each counts the same (one for each user or task). "
    "Where the graph does not show that each loss is a mean, or where the factors differ, nothing above information "
    "is said. Nor is it where few steps are concerned, as by the last, smaller batch of an epoch. Sizes that differ "
    "by less than a quarter are passed over.",
    source="transformers PR34191, transformers#35203, nanochat PR59",
    look=look,
    sound=sound,
)
