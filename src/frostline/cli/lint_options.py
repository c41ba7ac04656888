"""What ``frostline lint`` can be asked for, and a reader of plain command lines that does without typer.

Typer takes 0.12 s to import and to set up this command, more than linting a file does. So command lines that have
nothing wrong with them are read here; what is left, help and mistakes, is typer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMATS = ("concise", "full", "json", "sarif", "github")


@dataclass(frozen=True)
class LintOptions:
    """The arguments of the command, named and typed as there."""

    paths: list[Path] | None = None
    select: list[str] | None = None
    ignore: list[str] | None = None
    extend_select: list[str] | None = None
    fix: bool = False
    unsafe_fixes: bool | None = None
    diff: bool = False
    output_format: str | None = None
    as_json: bool = False
    statistics: bool = False
    baseline: Path | None = None
    write_baseline: Path | None = None
    exit_zero: bool = False
    exit_non_zero_on_fix: bool = False
    exclude: list[str] | None = None
    extend_exclude: list[str] | None = None
    no_cache: bool = False
    cache_dir: Path | None = None
    jobs: int | None = None
    config: Path | None = None
    isolated: bool = False
    show_files: bool = False
    stdin_filename: str | None = None


_LISTS = {"--select", "--ignore", "--extend-select", "--exclude", "--extend-exclude"}
_PATHS = {"--baseline", "--write-baseline", "--cache-dir", "--config"}
_FLAGS: dict[str, tuple[str, bool]] = {
    "--fix": ("fix", True),
    "--unsafe-fixes": ("unsafe_fixes", True),
    "--no-unsafe-fixes": ("unsafe_fixes", False),
    "--diff": ("diff", True),
    "--json": ("as_json", True),
    "--statistics": ("statistics", True),
    "--exit-zero": ("exit_zero", True),
    "--exit-non-zero-on-fix": ("exit_non_zero_on_fix", True),
    "--no-cache": ("no_cache", True),
    "--isolated": ("isolated", True),
    "--show-files": ("show_files", True),
}


def read_plainly(arguments: Sequence[str]) -> LintOptions | None:
    """Read a command line.

    Args:
        arguments: what stands behind ``frostline lint``.

    Returns:
        What it asks for; ``None`` where it asks for help, or anything about it is unusual or wrong.

    Example:
        >>> read_plainly(["src", "--select=F1", "--fix"]).select
        ['F1']
        >>> read_plainly(["--selekt", "F1"])
    """
    given: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "-" or not word.startswith("-"):
            given.setdefault("paths", []).append(Path(word))
        elif word in _FLAGS:
            name, value = _FLAGS[word]
            given[name] = value
        else:
            option, equals, text = word.partition("=")
            if not equals:
                if not rest or rest[0].startswith("-"):
                    return None
                text = rest.pop(0)
            if not _take(given, option, text):
                return None
    return LintOptions(**given)


def _take(given: dict[str, Any], option: str, text: str) -> bool:
    """Note the value of an option; whether it has one and may have this."""
    name = option[2:].replace("-", "_")
    if option in _LISTS:
        given.setdefault(name, []).append(text)
    elif option in _PATHS:
        given[name] = Path(text)
    elif option == "--stdin-filename" or (option == "--output-format" and text in FORMATS):
        given[name] = text
    elif option == "--jobs" and text.isdecimal() and int(text) >= 1:
        given[name] = int(text)
    else:
        return False
    return True
