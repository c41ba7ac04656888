"""Where the linter's findings go: the format, the stream, its colours, and what is said beside them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TextIO

from frostline.cli.lint_documents import Outcome, as_github, as_json, as_sarif
from frostline.cli.lint_sources import Sources
from frostline.cli.lint_text import Full, Look, concise, failure_line, statistics, summary
from frostline.cli.paint import Paint, wants_colour
from frostline.errors import name_some

DOCUMENTS = ("json", "sarif", "github")


def look_of(stream: TextIO, *, unsafe: bool) -> Look:
    """How findings look on a stream."""
    return Look(
        width=_columns(stream),
        paint=Paint(wants_colour(stream)),
        unsafe=unsafe,
        more="…" if _says(stream, "…") else "...",
    )


def print_outcome(
    outcome: Outcome,
    sources: Sources,
    stream: TextIO,
    *,
    output_format: str,
    unsafe: bool,
    count: bool = False,
    written: str = "",
) -> None:
    """Print what came of a run. In the formats for programs the stream gets nothing but the document.

    Args:
        outcome: what came of it.
        sources: the files that findings are in.
        stream: where to.
        output_format: one of those of the settings.
        unsafe: whether unsafe fixes are wanted.
        count: instead of findings, how many each rule has.
        written: the file of known findings that was just written.
    """
    print_failures(outcome)
    if output_format == "json":
        import json

        say(stream, [json.dumps(as_json(outcome, unsafe=unsafe, statistics=count), indent=2)])
        return
    if output_format == "sarif":
        say(stream, [as_sarif(outcome, sources).rstrip("\n")])
        return
    if output_format == "github":
        say(stream, as_github(outcome))
        return
    look = look_of(stream, unsafe=unsafe)
    found = outcome.new.diagnostics
    if count and found:
        say(stream, [statistics(outcome.new, look), ""])
    elif output_format == "concise":
        say(stream, (concise(each, look) for each in found))
    else:
        full = Full(look, sources)
        say(stream, (line for each in found for line in (*full.lines(each), "")))
    if written:
        number = len(outcome.report.diagnostics)
        say(stream, [f"{number:,} finding{'' if number == 1 else 's'} in {written} as known."])
        return
    say(stream, [*_beside_the_baseline(outcome), *summary(outcome.new, look, fixed=len(outcome.fixed))])


def print_failures(outcome: Outcome) -> None:
    """Name the files that could not be linted, on standard error."""
    paint = Paint(wants_colour(sys.stderr))
    say(sys.stderr, (f"{paint('error', 'red')}: {failure_line(each)}" for each in outcome.report.failures))


def say(stream: TextIO, lines: Iterable[str]) -> None:
    """Print lines; what the stream's encoding cannot say is written out."""
    text = "".join(f"{line}\n" for line in lines)
    if not _says(stream, text):
        encoding = stream.encoding
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    stream.write(text)


def _beside_the_baseline(outcome: Outcome) -> list[str]:
    lines: list[str] = []
    if outcome.known:
        number = len(outcome.known)
        codes = name_some(list(dict.fromkeys(finding.code for finding in outcome.known)))
        lines.append(f"{number:,} finding{'' if number == 1 else 's'} of the baseline not shown: {codes}.")
    if outcome.gone:
        number = sum(one.count or 1 for one in outcome.gone)
        codes = name_some(list(dict.fromkeys(one.code for one in outcome.gone)))
        lines.append(f"{number:,} of the baseline not found any more: {codes}.")
    return lines


def _columns(stream: TextIO) -> int:
    """How wide the terminal is: ``COLUMNS``, or what the stream says, or 80."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _says(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
