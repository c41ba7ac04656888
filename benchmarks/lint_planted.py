"""The doctor's planted loops, read instead of run: which of them the linter finds, and whether it lets the twins be.

    python benchmarks/lint_planted.py

Each file of `planted_loops/` holds a loop that makes one mistake and a twin that does not; they were written for the
doctor. A rule is *found* where its code stands at the loop with the mistake (or at what only that loop uses), *silent*
where no twin of any rule has a finding of it worse than a note.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from measure import RESULTS, SCHEMA_VERSION

from frostline.findings import Severity
from frostline.lint.diagnostic import Diagnostic
from frostline.lint.rules import all_rules
from frostline.lint.run import lint_paths
from frostline.lint.settings import Settings

FOLDER = Path(__file__).parent / "planted_loops"
# What a reading cannot know: the text of these loops does not hold what their rule looks for.
NOT_IN_THE_TEXT = {
    "C507": "the planted checkpoint leaves the head out by its keys; in source only `append` is told",
    "C510": "the planted tensor is set to NaN by hand",
    "N306": "the planted data has another scale, and no constants are written",
    "M211": "the optimizer class is written in the planted file itself",
    "S451": "the class of the scheduler is an argument",
    "T701": "the planted loop has none of the words of meta-learning",
}


def main() -> None:
    rules = all_rules()
    report = lint_paths([FOLDER], Settings(), cache=False)
    by_file: dict[str, list[Diagnostic]] = {}
    for each in report.diagnostics:
        by_file.setdefault(Path(each.finding.file).name, []).append(each)
    rows: list[dict[str, Any]] = []
    loud: dict[str, set[str]] = {}
    for file in sorted(FOLDER.glob("[a-z][0-9][0-9][0-9].py")):
        twins = _lines(file, "twin")
        for each in by_file.get(file.name, []):
            inside = any(first <= each.finding.line <= last for first, last in twins)
            if inside and each.finding.severity is not Severity.INFO:
                loud.setdefault(each.finding.code, set()).add(file.stem.upper())
    for code in rules:
        file = FOLDER / f"{code.lower()}.py"
        if not file.exists():
            continue
        twins = _lines(file, "twin")
        found = [
            each.finding.line
            for each in by_file.get(file.name, [])
            if each.finding.code == code and not any(first <= each.finding.line <= last for first, last in twins)
        ]
        rows.append(
            {
                "code": code,
                "found": bool(found),
                "loud_on_twins": sorted(loud.get(code, ())),
                **({"why": NOT_IN_THE_TEXT[code]} if not found and code in NOT_IN_THE_TEXT else {}),
            }
        )
    found = sum(row["found"] for row in rows)
    silent = sum(not row["loud_on_twins"] for row in rows)
    for row in rows:
        if not row["found"] or row["loud_on_twins"]:
            print(row)
    print(f"{found} of {len(rows)} found, {silent} silent on all twins")
    data = {"schema_version": SCHEMA_VERSION, "rules": len(rows), "found": found, "silent": silent, "rows": rows}
    (RESULTS / "lint_planted.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _lines(file: Path, name: str) -> list[tuple[int, int]]:
    """The lines of a function and of those that only it calls by a name that begins with its own."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [
        (node.lineno, node.end_lineno or node.lineno)
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name.lower().startswith(name)
    ]


if __name__ == "__main__":
    main()
