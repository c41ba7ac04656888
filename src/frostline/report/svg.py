"""matplotlib's pictures as SVG for the inside of a page, in colors that the page chooses."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from frostline.extras import require

# Colors that the page replaces: matplotlib cannot write a CSS variable, and a fixed color fits one scheme only.
INK, RULE, PAPER, LINE = "#010101", "#010102", "#010103", "#010104"
_COLOR = "#0102{:02x}"
_TAG = re.compile(r"<[^>]*>")
_STAND_IN = re.compile(r"#0102(?P<color>[0-9a-f]{2})|" + f"{INK}|{RULE}|{PAPER}|{LINE}")
_NAMES = {INK: "currentColor", RULE: "var(--rule)", PAPER: "var(--paper)", LINE: "var(--line)"}

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11,
    "lines.scale_dashes": False,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.labelcolor": INK,
    "axes.formatter.useoffset": False,
}


def color(number: int) -> str:
    """The stand-in for one of the page's colors ``--phase-1`` ..., counted from 0."""
    return _COLOR.format(number)


def draw(width: int, height: int, salt: str, fill: Callable[[Any], None]) -> str:
    """Draw a picture. matplotlib's settings stay as they were.

    Args:
        width: in CSS pixels, where the picture is not scaled.
        height: likewise.
        salt: keeps the element ids of several pictures on one page apart; the same salt gives the same bytes.
        fill: given the figure, draws into it.

    Returns:
        An SVG element that is safe to insert as it is, if no foreign text was drawn.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    purpose = "Drawing the pictures of a report"
    style: Any = require("matplotlib.style", extra="report", purpose=purpose)
    figure: Any = require("matplotlib.figure", extra="report", purpose=purpose)
    with style.context(["default", {**_SETTINGS, "svg.hashsalt": salt}]):
        sheet = figure.Figure(figsize=(width / 72, height / 72), dpi=72)
        fill(sheet)
        buffer = io.StringIO()
        sheet.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return _for_page(buffer.getvalue(), width, height)


def _for_page(svg: str, width: int, height: int) -> str:
    """Cut a stand-alone SVG file down to what may stand inside a page, and let the page choose its colors."""
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Its style sheet says `*`, which inside a page means the whole page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = _TAG.sub(lambda tag: _STAND_IN.sub(_page_color, tag.group()), svg)
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="0 0 {width} {height}" aria-hidden="true" focusable="false">', svg)
    # Groups are numbered from one in every file: on a page of several the names would clash.
    svg = re.sub(r'(<g) id="[^"]*"', r"\1", svg)
    svg = svg.replace("xlink:href=", "href=")
    return re.sub(r">\s+<", "><", svg)


def _page_color(found: re.Match[str]) -> str:
    if found["color"] is not None:
        return f"var(--phase-{int(found['color'], 16) + 1})"
    return _NAMES[found.group()]
