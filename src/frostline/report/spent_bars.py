"""Where the time of a run went, as one stacked bar for each part of it; pure Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from frostline.report.figures import duration

# What a page says about a name; in this order wherever they stand.
MEANINGS = {
    "loading": "waiting for the next batch",
    "prefix": "forward pass of the part that is held; once, where its features are kept",
    "head": "forward pass, backward pass and step of what trains, and its validation",
    "saving": "checkpoints, metrics and the model",
    "preparing": "the device, the model and the data, before the first phase",
    "starting": "optimizer and loaders of each phase, and what they import",
    "proof": "comparing what is held, before and after",
    "report": "this page",
    "other": "not told apart",
}
# As the page calls them. What is not told apart has a color that stands back.
_COLORS = {
    "loading": "--phase-1",
    "prefix": "--phase-2",
    "head": "--phase-3",
    "saving": "--phase-4",
    "preparing": "--phase-5",
    "starting": "--phase-6",
    "proof": "--ink",
    "report": "--soft",
    "other": "--line",
}
# For names that the page does not know.
_FREE_COLORS = ("--phase-5", "--phase-6")
# A smaller share that was not told apart is not worth a word.
_LEAST_TOLD = 0.005


@dataclass(frozen=True)
class SpentBar:
    """Where the time of one part of a run went.

    Attributes:
        title: the part, such as a phase of training.
        detail: which of it, such as ``first epoch``; may be empty.
        spent: name to seconds, in any order.
        epochs: how many epochs that was; 0 where it was none.
    """

    title: str
    detail: str
    spent: Mapping[str, float]
    epochs: int = 0


@dataclass(frozen=True)
class Stretch:
    """One name within a bar: its place in percent of the width, and its color as CSS."""

    left: str
    width: str
    color: str


@dataclass(frozen=True)
class DrawnBar:
    """A bar with its stretches, and the same in words.

    Attributes:
        bar: what is drawn.
        stretches: from left to right.
        long: how long it took, as printed.
        each: how long an epoch took where there are several, as printed; else empty.
        text: the shares in words, in the order of the stretches.
    """

    bar: SpentBar
    stretches: tuple[Stretch, ...]
    long: str
    each: str
    text: str


@dataclass(frozen=True)
class SpentLine:
    """One name over all bars.

    Attributes:
        name: what the time was spent on.
        meaning: what that is; empty for a name that the page does not know.
        color: as CSS.
        seconds: as printed.
        share: of the whole, as printed.
        of_bars: the seconds in each bar, as printed; empty where it has none.
    """

    name: str
    meaning: str
    color: str
    seconds: str
    share: str
    of_bars: tuple[str, ...]


@dataclass(frozen=True)
class DrawnSpent:
    """All bars, and the same as a table.

    Attributes:
        bars: in their order.
        lines: one for each name.
        whole: how long everything took, as printed.
    """

    bars: tuple[DrawnBar, ...]
    lines: tuple[SpentLine, ...]
    whole: str


def draw_spent(bars: Sequence[SpentBar]) -> DrawnSpent:
    """Lay out the bars: each is as wide as the page, so that the shares can be compared.

    Bars in which nothing was spent are left out.

    Example:
        >>> drawn = draw_spent([SpentBar("parity", "first epoch", {"head": 1.0, "loading": 3.0}, epochs=1)])
        >>> [(stretch.left, stretch.width) for stretch in drawn.bars[0].stretches]
        [('0.00%', '75.00%'), ('75.00%', '25.00%')]
        >>> drawn.bars[0].text, drawn.bars[0].long
        ('loading 75 %, head 25 %', '4.00 s')
    """
    kept = [bar for bar in bars if sum(bar.spent.values()) > 0]
    whole = sum_spent([bar.spent for bar in kept])
    colors = _colors(list(whole))
    total = sum(whole.values())
    return DrawnSpent(
        bars=tuple(_draw(bar, colors) for bar in kept),
        lines=tuple(
            SpentLine(
                name=name,
                meaning=MEANINGS.get(name, ""),
                color=colors[name],
                seconds=duration(seconds),
                share=share_of(seconds, total),
                of_bars=tuple(duration(bar.spent[name]) if name in bar.spent else "" for bar in kept),
            )
            for name, seconds in whole.items()
            if _worth_a_word(name, seconds, total)
        ),
        whole=duration(total),
    )


def sum_spent(accounts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Several accounts as one, in the order in which names stand on a page; those it does not know come last but one.

    Example:
        >>> sum_spent([{"head": 1.0, "other": 1.0}, {"mixing": 2.0, "loading": 1.0, "head": 1.0}])
        {'loading': 1.0, 'head': 2.0, 'mixing': 2.0, 'other': 1.0}
    """
    seconds: dict[str, float] = {}
    for account in accounts:
        for name, spent in account.items():
            seconds[name] = seconds.get(name, 0.0) + spent
    known = [name for name in MEANINGS if name != "other" and name in seconds]
    unknown = [name for name in seconds if name not in MEANINGS]
    return {name: seconds[name] for name in (*known, *unknown, *(("other",) if "other" in seconds else ()))}


def spent_line(spent: Mapping[str, float]) -> str:
    """An account in one line.

    Example:
        >>> spent_line({"loading": 1.2, "prefix": 37.0, "head": 0.1, "saving": 2.4})
        'loading 3 %, prefix 91 %, head <1 %, saving 6 % of 40.7 s'
    """
    total = sum(spent.values())
    if not total:
        return "not measured"
    return f"{', '.join(_shares(sum_spent([spent]), total))} of {duration(total)}"


def share_of(seconds: float, total: float) -> str:
    """A share of the time in whole percent; only nothing prints as ``0 %``, and only everything as ``100 %``.

    Example:
        >>> share_of(1, 3), share_of(1, 1000), share_of(0, 3), share_of(999, 1000), share_of(3, 3)
        ('33 %', '<1 %', '0 %', '>99 %', '100 %')
    """
    share = seconds / total if total else 0.0
    percent = round(100 * share)
    if percent == 0 and share > 0:
        return "<1 %"
    if percent == 100 and share < 1:
        return ">99 %"
    return f"{percent} %"


def _shares(spent: Mapping[str, float], total: float) -> list[str]:
    return [
        f"{name} {share_of(seconds, total)}" for name, seconds in spent.items() if _worth_a_word(name, seconds, total)
    ]


def _worth_a_word(name: str, seconds: float, total: float) -> bool:
    return name != "other" or seconds >= _LEAST_TOLD * total


def _draw(bar: SpentBar, colors: Mapping[str, str]) -> DrawnBar:
    spent = sum_spent([bar.spent])
    total = sum(spent.values())
    stretches: list[Stretch] = []
    before = 0.0
    for name, seconds in spent.items():
        if seconds > 0:
            stretches.append(Stretch(_percent(before / total), _percent(seconds / total), colors[name]))
        before += seconds
    return DrawnBar(
        bar=bar,
        stretches=tuple(stretches),
        long=duration(total),
        each=f"{duration(total / bar.epochs)} an epoch" if bar.epochs > 1 else "",
        text=", ".join(_shares(spent, total)),
    )


def _colors(names: Sequence[str]) -> dict[str, str]:
    """A color for each name; those the page does not know take the ones that are left, and then share."""
    used = {_COLORS[name] for name in names if name in _COLORS}
    free = [color for color in _FREE_COLORS if color not in used] or list(_FREE_COLORS)
    unknown = [name for name in names if name not in _COLORS]
    colors = {**_COLORS, **{name: free[place % len(free)] for place, name in enumerate(unknown)}}
    return {name: f"var({colors[name]})" for name in names}


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
