"""What the doctor says, for a terminal: an examination as lines, with a tree of evidence under each finding."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from frostline.cli.doctor_subjects import subject_of
from frostline.errors import printable
from frostline.findings import Finding, Severity

if TYPE_CHECKING:  # importing them would import torch, and `--help` should not wait for that
    from frostline.audit.seen import Crash
    from frostline.baseline import Split
    from frostline.doctor import Examination

# Prose in longer lines is hard to read.
_WIDEST = 100
_STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "blue"}
_NOUNS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


@dataclass(frozen=True)
class Signs:
    """The signs that lines are drawn with."""

    marks: dict[Severity, str]
    right: str
    branch: str
    last: str
    below: str
    dot: str
    more: str


FANCY = Signs({Severity.ERROR: "✗", Severity.WARNING: "!", Severity.INFO: "i"}, "✓", "├─ ", "└─ ", "│  ", "·", "…")
PLAIN = Signs({Severity.ERROR: "x", Severity.WARNING: "!", Severity.INFO: "i"}, "v", "|- ", "`- ", "|  ", "-", "...")


def print_examination(
    console: Console, examination: Examination, *, earlier: Examination | None = None, split: Split | None = None
) -> None:
    """Print what was found.

    Where the console is no terminal, or ``NO_COLOR`` is set, the signs are ASCII, and what its encoding cannot say is
    written out.

    Args:
        console: where to.
        examination: what was found.
        earlier: what the same audit found before remedies were applied.
        split: the findings against a baseline: what it has is counted and not told.
    """
    plain = not console.is_terminal or bool(os.environ.get("NO_COLOR"))
    for line in told(examination, width=console.width, plain=plain, earlier=earlier, split=split):
        console.print(_encodable(line, console.encoding), soft_wrap=True)


def told(
    examination: Examination,
    *,
    width: int = 80,
    plain: bool = True,
    earlier: Examination | None = None,
    split: Split | None = None,
) -> Iterator[Text]:
    """What was found, line by line; only remedies and tracebacks are wider than ``width``, because they are copied."""
    return _Teller(examination, min(width, _WIDEST), PLAIN if plain else FANCY, split).lines(earlier)


class _Teller:
    def __init__(self, examination: Examination, width: int, signs: Signs, split: Split | None) -> None:
        self._examination = examination
        self._seen = examination.seen
        self._width = max(width, 40)
        self._signs = signs
        self._split = split
        self._findings = list(examination if split is None else split.new)
        self._in_memory = {finding.id for finding in examination.repairable}

    def lines(self, earlier: Examination | None) -> Iterator[Text]:
        seen = self._seen
        if seen.crash is not None:
            yield from self._crash(seen.crash)
        yield from self._head()
        if earlier is not None:
            yield Text()
            yield from self._compared(earlier)
        for finding in self._findings:
            yield Text()
            yield from self._finding(finding)
        if self._split is not None and (self._split.known or self._split.gone):
            yield Text()
            yield from self._baseline(self._split)
        if self._examination.sound:
            yield Text()
            yield Text("checked and found right", style="bold")
            for line in self._examination.sound:
                yield from self._item(self._signs.right, line, "green")
        if seen.missed:
            yield Text()
            yield Text("not looked at", style="bold")
            for line in seen.missed:
                yield from self._item("-", line, "yellow")

    def _head(self) -> Iterator[Text]:
        """What was audited, what it cost, and how many findings there are."""
        seen = self._seen
        steps = len(seen.steps)
        audited = f"{steps:,} step{'' if steps == 1 else 's'} audited" if steps else "no step was seen"
        left = Text.assemble(("doctor", "bold"), "  ", self._what(), "  ", audited, f" (+{seconds(seen.cost)})")
        counts: list[Text] = []
        for severity, mark in self._signs.marks.items():
            number = sum(finding.severity is severity for finding in self._findings)
            if number:
                noun = f"{_NOUNS[severity]}{'' if number == 1 else 's'}"
                counts.append(Text(f"{mark} {number} {noun}", style=_STYLES[severity]))
        if not counts and steps:
            counts.append(Text("nothing found" if self._split is None else "nothing new", style="green"))
        number = len(self._examination.sound)
        if number:
            counts.append(Text(f"{self._signs.right} {number} check{'' if number == 1 else 's'}", style="green"))
        right = Text("  ").join(counts)
        space = self._width - left.cell_len - right.cell_len
        if space >= 2:
            yield Text.assemble(left, " " * space, right)
        elif left.cell_len <= self._width:
            yield left
            yield from self._flowed(counts)
        else:
            yield from self._cut(Text.assemble(("doctor", "bold"), "  ", self._what()))
            yield from self._flowed([Text(audited), Text(f"(+{seconds(seen.cost)})"), *counts])
        if not steps:
            yield from self._wrapped(
                "Nothing that an optimizer does could be judged: no step was done while it was watched.", "        "
            )
        ended = _ENDED.get(seen.ended)
        if ended:
            yield Text(f"        {ended}", style="dim")

    def _flowed(self, parts: list[Text]) -> Iterator[Text]:
        """As many parts to a line as fit, below the name of what was run."""
        line = Text()
        for part in parts:
            if line.cell_len and 8 + line.cell_len + 2 + part.cell_len > self._width:
                yield Text.assemble("        ", line)
                line = Text()
            line = Text.assemble(line, "  ", part) if line.cell_len else part
        if line.cell_len:
            yield Text.assemble("        ", line)

    def _what(self) -> str:
        if self._seen.script:
            return printable(self._seen.script)
        names = [f"{model.name} ({model.type})" for model in self._seen.models]
        if len(names) > 2:
            names = [*names[:2], f"+{len(names) - 2} more"]
        return printable(", ".join(names)) or "a loop"

    def _crash(self, crash: Crash) -> Iterator[Text]:
        """The exception with its own traceback: what the user would have seen without the doctor."""
        for line in crash.traceback.rstrip("\n").splitlines():
            yield Text(printable(line))
        yield Text()
        where = f" at {crash.place}" if crash.place.is_known else ""
        yield from self._wrapped(f"The loop ended with {crash.type}{where}; this is what was seen until then.", "")
        yield Text()

    def _compared(self, earlier: Examination) -> Iterator[Text]:
        found = earlier.compare(self._examination)
        before, after = len(found.gone) + len(found.left), len(found.left) + len(found.new)
        yield Text(f"before and after: {before} finding{'' if before == 1 else 's'}, now {after}", style="bold")
        rows = [(self._signs.right, "gone", "green", found.gone), ("-", "still there", "yellow", found.left)]
        for sign, how, style, findings in [*rows, ("+", "new", "red", found.new)]:
            for finding in findings:
                yield from self._item(sign, f"{finding.code} {how}: {finding.message}", style)

    def _finding(self, finding: Finding) -> Iterator[Text]:
        """The place and what was meant there, the finding in a sentence, and a tree of what was seen."""
        signs, style = self._signs, _STYLES[finding.severity]
        subject = subject_of(finding, self._seen)
        head = Text.assemble((f"{signs.marks[finding.severity]} ", style), (printable(subject.name), "bold"))
        if subject.more:
            head.append(f" +{subject.more:,} more")
        for part in (subject.type, subject.contrast):
            if not part:
                continue
            gap = "   " if head.plain.rpartition("\n")[2] else ""
            if len(head.plain.rpartition("\n")[2]) + len(gap) + len(part) > self._width:
                head.append("\n   ")
            head.append(f"{gap}{printable(part)}", style="dim" if part == subject.type else "")
        for line in head.split("\n", allow_blank=True):
            yield from self._cut(line)
        yield from self._wrapped(finding.message, "  ", style=style)
        for line in finding.evidence.splitlines():
            yield from self._branch(signs.branch, signs.below, line)
        if finding.inferred:
            yield from self._branch(signs.branch, signs.below, "nothing was declared: what was meant was inferred")
        at = f"  at {finding.file}:{finding.line}  {finding.source}".rstrip() if finding.line else ""
        cause = Text.assemble(f"  {signs.last}cause ", (finding.code, "bold"), printable(at))
        yield from self._cut(cause)
        yield from self._remedy(finding)

    def _remedy(self, finding: Finding) -> Iterator[Text]:
        """The fix and how safe it is, in its own lines because it is copied, and the rule to read."""
        rule = Text(f"frostline rule {finding.code}", style="dim")
        safety = finding.safety.value + (", in memory" if finding.id in self._in_memory else "")
        label = f"     fix ({safety})"
        remedy = [printable(line) for line in finding.remedy.splitlines()]
        if len(remedy) > 1:
            yield Text(label)
            for line in remedy:
                yield Text(f"       {line}", style="cyan")
        elif remedy:
            line = Text.assemble(label, "  ", (remedy[0], "cyan"))
            whole = Text.assemble(line, f"  {self._signs.dot}  ", rule)
            if whole.cell_len <= self._width:
                yield whole
                return
            yield line
        yield Text.assemble("     ", rule)

    def _branch(self, first: str, later: str, line: str) -> Iterator[Text]:
        yield from self._wrapped(line, f"  {first}", f"  {later}")

    def _item(self, sign: str, line: str, style: str) -> Iterator[Text]:
        for number, text in enumerate(self._wrapped(line, f"  {sign} ", "    ")):
            if not number:
                text.stylize(style, 2, 3)
            yield text

    def _baseline(self, split: Split) -> Iterator[Text]:
        if split.known:
            number = len(split.known)
            codes = ", ".join(dict.fromkeys(finding.code for finding in split.known))
            yield from self._wrapped(
                f"{number} finding{'' if number == 1 else 's'} of the baseline not shown: {codes}", ""
            )
        if split.gone:
            number = len(split.gone)
            codes = ", ".join(dict.fromkeys(printable(one.code) for one in split.gone))
            yield from self._wrapped(f"{number} of the baseline not found any more: {codes}", "")

    def _wrapped(self, text: str, first: str, later: str | None = None, style: str = "") -> Iterator[Text]:
        """A sentence in lines that fit, the later ones in line with the first."""
        later = " " * len(first) if later is None else later
        room = self._width - len(first)
        pieces = textwrap.wrap(printable(text), room, break_on_hyphens=False) or [""]
        for number, piece in enumerate(pieces):
            yield Text.assemble(later if number else first, (piece, style))

    def _cut(self, line: Text) -> Iterator[Text]:
        """A line that ends where the width does."""
        if line.cell_len > self._width:
            line.truncate(self._width - len(self._signs.more))
            line.append(self._signs.more)
        yield line


_ENDED = {
    "stopped": "stopped by the doctor after that",
    "exited": "the script left by itself (sys.exit)",
}


def seconds(value: float) -> str:
    """A duration in words short enough for a headline.

    Example:
        >>> seconds(0.0123), seconds(0.84), seconds(75.2)
        ('12 ms', '0.8 s', '75 s')
    """
    if value < 0.1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def _encodable(line: Text, encoding: str) -> Text:
    """The line with what the encoding cannot say written out."""
    try:
        line.plain.encode(encoding)
    except UnicodeEncodeError:
        return Text(line.plain.encode(encoding, "backslashreplace").decode(encoding))
    return line
