"""The pictures of a report about normalization statistics: deviation along depth, and channels of the worst layers.

Knows numbers only. No name is drawn into a picture: names stand in the page's own text, which escapes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frostline.extras import require
from frostline.report import figures
from frostline.report.svg import LINE, PAPER, color, draw

# An output that is off by less is drawn at the lower edge.
_LEAST = 1e-3
# Of wider layers so many channels are drawn: half of them those that are off most.
_MOST_CHANNELS = 400

Channel = tuple[float, float, float, float]


@dataclass(frozen=True)
class LayerLine:
    """One layer of the model.

    Attributes:
        path: its dotted path.
        type: its class name.
        policy: what it does with statistics, in words.
        channels: how many it has.
        effect: how far its output is off by its own statistics, in standard deviations of that output.
        in_eval: the same for what reaches it in eval mode; ``None`` where that is not finite.
        noise: what the noise of a moving average alone would do.
        p_value: chance of a deviation as large, were the statistics estimated from this data.
        off: whether it is off by more than noise and by enough to matter.
    """

    path: str
    type: str
    policy: str
    channels: int
    effect: float
    in_eval: float | None
    noise: float
    p_value: float
    off: bool


@dataclass(frozen=True)
class Picture:
    """A picture for the inside of a page, and what it shows in words."""

    svg: str
    text: str


@dataclass(frozen=True)
class ChannelPicture:
    """The channels of one layer.

    Attributes:
        path: the layer.
        picture: running against measured mean and standard deviation.
        channels: how many the layer has.
        drawn: how many of them are drawn.
        rows: of the channels that are off most: number, then running mean, measured mean, running sd, measured sd.
    """

    path: str
    picture: Picture
    channels: int
    drawn: int
    rows: tuple[tuple[str, str, str, str, str], ...]


def draw_depth(layers: Sequence[LayerLine]) -> Picture | None:
    """Draw how far each layer is off along the depth of the model, over the band of noise.

    Args:
        layers: in the order of the forward pass.

    Returns:
        The picture; ``None`` for no layers.

    Raises:
        MissingExtra: matplotlib is not installed.

    Example:
        >>> draw_depth([LayerLine("bn", "BatchNorm2d", "", 4, 0.5, 0.5, 0.01, 0.001, True)]).text
        'Deviation by layer, in standard deviations of its output. By itself: from 0.5 to 0.5, most at layer 1, bn; ...'
    """
    if not layers:
        return None
    places = list(range(1, len(layers) + 1))
    alone = [_shown(layer.effect) for layer in layers]
    in_eval = [math.nan if layer.in_eval is None else _shown(layer.in_eval) for layer in layers]
    noise = [_shown(2 * layer.noise) for layer in layers]
    finite = [value for value in (*alone, *in_eval, *noise) if math.isfinite(value)]
    low, high = min([*finite, 0.02]) / 1.5, max([*finite, 0.5]) * 1.5

    def fill(sheet: Any) -> None:
        axes = sheet.add_axes((0.05, 0.1, 0.945, 0.87))
        # A band of one layer has no width of its own; half a place on both sides gives it one.
        edges = [places[0] - 0.5, *places, places[-1] + 0.5]
        axes.fill_between(edges, low, [noise[0], *noise, noise[-1]], color=color(3), alpha=0.22, linewidth=0)
        axes.plot(places, in_eval, color=color(1), linewidth=1.6, linestyle=(0, (6, 2.5)), marker="s", markersize=4)
        axes.plot(places, alone, color=color(0), linewidth=1.8)
        for off in (False, True):
            own = [(x, y) for x, y, layer in zip(places, alone, layers, strict=True) if layer.off is off]
            if own:
                axes.plot(
                    *zip(*own, strict=True),
                    linestyle="",
                    marker="o",
                    markersize=7 if off else 5,
                    markerfacecolor=color(0) if off else PAPER,
                    markeredgecolor=color(0),
                    markeredgewidth=1.4,
                )
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.set_xlim(0.5, len(layers) + 0.5)
        ticker: Any = require("matplotlib.ticker", extra="report", purpose="Drawing the pictures of a report")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(12, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(ticker.LogLocator(10, subs=(1.0,) if high / low > 300 else (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.grid(visible=True, axis="y")
        axes.tick_params(length=0, pad=6)
        axes.spines[["left", "right", "top"]].set_visible(False)

    return Picture(draw(960, 290, "frostline-depth", fill), _depth_in_words(layers))


def draw_channels(worst: Sequence[tuple[str, Sequence[Channel]]]) -> tuple[ChannelPicture, ...]:
    """Draw running against measured statistics, a point for each channel, one picture for each layer.

    Args:
        worst: path and ``(running mean, running sd, measured mean, measured sd)`` of each channel.

    Raises:
        MissingExtra: matplotlib is not installed, and there is something to draw.
    """
    found: list[ChannelPicture] = []
    for number, (path, channels) in enumerate(worst):
        ranked = sorted(range(len(channels)), key=lambda i: (-_distance(channels[i]), i))
        finite = [i for i in ranked if all(map(math.isfinite, channels[i]))]
        if not finite:
            continue
        half = _MOST_CHANNELS // 2
        rest = finite[half:]
        chosen = [*finite[:half], *rest[:: max(1, math.ceil(len(rest) / half))]]
        rows = tuple(_row(i, channels[i]) for i in ranked[:10])
        svg = _draw_channels([channels[i] for i in chosen], f"frostline-channels-{number}")
        text = f"{path}: measured over running statistics, a point for each channel. {_channels_in_words(channels)}"
        found.append(ChannelPicture(path, Picture(svg, text), len(channels), len(chosen), rows))
    return tuple(found)


def _draw_channels(channels: Sequence[Channel], salt: str) -> str:
    means = [(c[0], c[2]) for c in channels]
    deviations = [(max(c[1], 1e-12), max(c[3], 1e-12)) for c in channels]

    def fill(sheet: Any) -> None:
        ticker: Any = require("matplotlib.ticker", extra="report", purpose="Drawing the pictures of a report")
        for left, points, is_log in ((0.105, means, False), (0.605, deviations, True)):
            axes = sheet.add_axes((left, 0.1, 0.385, 0.86))
            low, high = min(map(min, points)), max(map(max, points))
            if is_log:
                low, high = low / 1.25, high * 1.25
                axes.set_xscale("log")
                axes.set_yscale("log")
                subs = (1.0,) if high / low > 30 else (1.0, 3.0) if high / low > 6 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
                locate: Any = lambda subs=subs: ticker.LogLocator(10, subs=subs, numticks=6)  # noqa: E731
            else:
                margin = 0.08 * (high - low) or 0.5
                low, high = low - margin, high + margin
                locate = lambda: ticker.MaxNLocator(4)  # noqa: E731
            axes.plot([low, high], [low, high], color=LINE, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.plot(
                *zip(*points, strict=True),
                linestyle="",
                marker="o",
                markersize=5,
                markerfacecolor=color(0),
                markeredgewidth=0,
                alpha=0.7,
            )
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(locate())
                axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.3g}"))
                axis.set_minor_locator(ticker.NullLocator())
            axes.set_xlim(low, high)
            axes.set_ylim(low, high)
            axes.grid(visible=True)
            axes.tick_params(length=0, pad=5)
            axes.spines[["right", "top"]].set_visible(False)

    return draw(480, 214, salt, fill)


def _shown(value: float) -> float:
    return max(value, _LEAST) if math.isfinite(value) else math.nan


def _distance(channel: Channel) -> float:
    """How far a normalized channel is off: the distance of two normal distributions, in running deviations."""
    mean, sd, measured_mean, measured_sd = channel
    if not all(map(math.isfinite, channel)):
        return math.inf
    scale = max(sd, 1e-12)
    return math.hypot((measured_mean - mean) / scale, measured_sd / scale - 1)


def _row(number: int, channel: Channel) -> tuple[str, str, str, str, str]:
    mean, sd, measured_mean, measured_sd = (figures.size(value) for value in channel)
    return str(number), mean, measured_mean, sd, measured_sd


def _channels_in_words(channels: Sequence[Channel]) -> str:
    shifts = sorted(abs(c[2] - c[0]) / max(c[1], 1e-12) for c in channels if all(map(math.isfinite, c)))
    ratios = sorted(c[3] / max(c[1], 1e-12) for c in channels if all(map(math.isfinite, c)))
    return (
        f"Means differ by {figures.size(shifts[len(shifts) // 2])} running standard deviations at the median, "
        f"{figures.size(shifts[-1])} at most; measured standard deviations are {figures.size(ratios[0])} to "
        f"{figures.size(ratios[-1])} times the running ones."
    )


def _depth_in_words(layers: Sequence[LayerLine]) -> str:
    def span(values: list[tuple[float, int]]) -> str:
        finite = [pair for pair in values if math.isfinite(pair[0])]
        if not finite:
            return "not finite"
        (low, _), (high, at) = min(finite), max(finite)
        return f"from {figures.size(low)} to {figures.size(high)}, most at layer {at + 1}, {layers[at].path}"

    alone = span([(layer.effect, i) for i, layer in enumerate(layers)])
    in_eval = span([(layer.in_eval, i) for i, layer in enumerate(layers) if layer.in_eval is not None])
    noise = figures.size(max(2 * layer.noise for layer in layers))
    off = sum(layer.off for layer in layers)
    return (
        f"Deviation by layer, in standard deviations of its output. By itself: {alone}; in eval mode: {in_eval}. "
        f"Noise explains at most {noise}. {figures.count(off, 'layer')} of {len(layers)} off."
    )
