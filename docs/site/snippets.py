"""What the pages show: their code blocks, and whether a text that a page quotes is what was printed.

Figures that are not whole numbers differ from machine to machine in their last digits, and trained accuracies by a few
images. A quoted text is right if its words and whole numbers are the printed ones, and its other figures lie near.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]

_FENCE = re.compile(r"^( *)```+ *([\w.-]*)")
# What a block needs and a reader has (a model, data) stands in a comment, which no page shows.
_HIDDEN = "<!-- python"
# A figure with a point or an exponent, perhaps in percent; `1.weight`, `0.1.0` and `.5` are no figures.
_FIGURE = re.compile(r"(?<![\w.])-?\d+(?:\.\d+(?:e[+-]?\d+)?|e[+-]?\d+)(?![\w.]*\w)( ?%)?")
# A quoted line of dots stands for any number of printed lines.
_GAP = "..."


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: its path below ``docs/``.
        line: of its first line of content, from 1.
        language: what stands behind the fence; empty where nothing does.
        text: its lines, each with its end.
    """

    page: str
    line: int
    language: str
    text: str


def pages() -> list[Path]:
    """Every page that is written by hand."""
    return sorted(DOCS.rglob("*.md"))


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, and those in comments ``<!-- python``, from top to bottom."""
    found: list[Block] = []
    opened: tuple[int, str, str] | None = None
    content: list[str] = []
    end = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened, content, end = (number + 1, fence[2], fence[1]), [], "```"
        elif opened is None and line == _HIDDEN:
            opened, content, end = (number + 1, "python", ""), [], "-->"
        elif opened is not None and line.strip() == end:
            page = path.relative_to(DOCS).as_posix()
            found.append(Block(page, opened[0], opened[1], "".join(f"{each}\n" for each in content)))
            opened = None
        elif opened is not None:
            content.append(line.removeprefix(opened[2]))
    return found


def unlike(quoted: str, printed: str) -> str:
    """The first quoted line that was not printed where it should have been; empty if all were.

    A line ``...`` stands for any number of printed lines.
    """
    real = [line for line in printed.splitlines() if line.strip()]
    at, gap = 0, False
    for line in (line for line in quoted.splitlines() if line.strip()):
        if line.strip() == _GAP:
            gap = True
            continue
        ends = len(real) if gap else min(at + 1, len(real))
        hit = next((index for index in range(at, ends) if _same_line(line, real[index])), None)
        if hit is None:
            return line
        at, gap = hit + 1, False
    return "" if gap or at == len(real) else f"(the page ends before: {real[at]})"


def _same_line(quoted: str, printed: str) -> bool:
    said, seen = _FIGURE.finditer(quoted), _FIGURE.finditer(printed)
    return _form(quoted) == _form(printed) and all(_near(a, b) for a, b in zip(said, seen, strict=True))


def _form(line: str) -> str:
    """The line without its figures; columns may be wider or narrower by a digit."""
    return re.sub(r"[\s─]+", " ", _FIGURE.sub(r"#\1", line)).strip()


def _near(quoted: re.Match[str], printed: re.Match[str]) -> bool:
    a, b = (float(match[0].rstrip(" %")) for match in (quoted, printed))
    # Eight points of an accuracy, and a third of everything else, or so little that it rounds differently.
    return math.isclose(a, b, rel_tol=0.0 if quoted[1] else 1 / 3, abs_tol=8.0 if quoted[1] else 0.03)
