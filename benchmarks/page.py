"""Writes the figures of all benchmarks into docs/benchmarks.md, from benchmarks/results/*.json.

    python benchmarks/page.py [--check]

What stands between two markers there is replaced; the rest of the page is written by hand. With ``--check`` nothing is
written, and exit code 1 says that the page is not what would be.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- begin: python benchmarks/page.py -->", "<!-- end -->"


def section(results: Path = HERE / "results") -> str:
    """The text between the markers."""
    measured, told, verdicts = [], [], []
    for path in sorted(results.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = [_ratio_row(each) for each in data.get("comparisons", [])] + _seconds_rows(data.get("settings", {}))
        command = f"python benchmarks/{path.stem}.py"
        if not rows:
            told.append(f"| {_question(path.stem)} | `{command}` | `{path.name}` |")
            continue
        verdicts += [row.rsplit("|", 2)[1].strip() for row in rows]
        measured += [f"### {path.stem}", f"{_question(path.stem)} Repeated by `{command}`{_setting(data)}.", ""]
        measured += ["| measured | goal | median | quartiles | |", "|---|---|---|---|---|", *rows, ""]
    met, missed = verdicts.count("met"), verdicts.count("**missed**")
    counted = f"{met + missed} comparisons have a goal: {met} met it, {missed} **missed** it; the others have none."
    how = (
        "A figure is the ratio of two sides, the first over the second (times, or memory), or seconds where it says so."
    )
    return "\n".join(
        [
            "## Every comparison",
            f"{counted} {how} A goal is the most that it may be.",
            "",
            *measured,
            "### Measured in other ways",
            "Accuracies, shares and counts, which are told above or on the page of their room.",
            "",
            "| what | repeated by | figures |",
            "|---|---|---|",
            *told,
        ]
    )


def page_with(section_text: str, page: str) -> str:
    """The page with another section.

    Raises:
        ValueError: the markers are not there, or not once each and in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after + before:
        raise ValueError(f"{PAGE.name} has to have the lines {BEGIN!r} and {END!r} once each, in this order")
    return f"{before}{BEGIN}\n{section_text}\n{END}{after}"


def _ratio_row(result: dict[str, Any]) -> str:
    low, high = result["quartiles"]
    return _row(
        result["name"],
        "none" if result["goal"] is None else f"{result['goal']:.4g}",
        _figure(result["median"]),
        f"{_figure(low)} to {_figure(high)}",
        result["met"],
    )


def _seconds_rows(settings: dict[str, Any]) -> list[str]:
    """Rows of a benchmark whose goals are in seconds; one goal may be for all of its figures."""
    seconds, goals = settings.get("seconds"), settings.get("goal_seconds")
    if not isinstance(seconds, dict) or goals is None:
        return []
    if not isinstance(goals, dict):
        goals = dict.fromkeys(seconds, goals)
    return [
        _row(name, _time(goals[name]), _time(taken), "", taken <= goals[name])
        for name, taken in seconds.items()
        if name in goals
    ]


def _row(name: str, goal: str, median: str, quartiles: str, met: bool | None) -> str:
    verdict = {None: "", True: "met", False: "**missed**"}[met]
    return f"| {name.replace('|', chr(92) + '|')} | {goal} | {median} | {quartiles} | {verdict} |"


def _figure(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio >= 0.1 else f"{ratio:.2g}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _setting(data: dict[str, Any]) -> str:
    """What a reader has to know to compare: rounds and threads."""
    said = []
    if isinstance(rounds := data.get("settings", {}).get("rounds"), int):
        said.append(f"{rounds} rounds")
    if threads := data.get("machine", {}).get("torch_threads"):
        said.append(f"{threads} {'thread' if threads == 1 else 'threads'}")
    return f" ({', '.join(said)})" if said else ""


def _question(name: str) -> str:
    """The first paragraph of the script's docstring."""
    said = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))) or name
    return " ".join(said.partition("\n\n")[0].replace("``", "`").split()).replace("|", "\\|")


def main() -> int:
    old = PAGE.read_text(encoding="utf-8")
    new = page_with(section(), old)
    if "--check" in sys.argv[1:]:
        return int(old != new)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
