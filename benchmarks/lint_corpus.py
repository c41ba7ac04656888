"""What the linter finds in code that nobody here wrote, each finding with a verdict of somebody who read it.

    python benchmarks/lint_corpus.py            # what is found now against the verdicts
    python benchmarks/lint_corpus.py --write    # keeps the verdicts of findings that are still there, and adds new ones

The corpus are the installed packages timm, torchvision, transformers, lightning, accelerate, torchmetrics and
scikit-learn. Verdicts stand in `results/lint_corpus.json`: `true` (the code does what the rule says, and suffers from
it or may), `meant` (it does, and is meant to), `false` (it does not); `unread` is what nobody has read. Exit code 1 if
less than 90 % of what was read are true, or anything is unread.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from frostline.lint.diagnostic import Diagnostic
from frostline.lint.run import lint_paths
from frostline.lint.settings import Settings

RESULT = Path(__file__).parent / "results" / "lint_corpus.json"
GOAL = 0.9


def packages() -> dict[str, str]:
    """Package to the distribution that brings it."""
    return {
        "timm": "timm",
        "torchvision": "torchvision",
        "transformers": "transformers",
        "lightning": "lightning",
        "accelerate": "accelerate",
        "torchmetrics": "torchmetrics",
        "sklearn": "scikit-learn",
    }


def found_packages(names: Iterable[str]) -> tuple[Path, list[Path]]:
    """Where packages are installed: the folder of them all, and theirs. Nothing of them is imported."""
    folders: list[Path] = []
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{name} is not installed\n  fix: python -m pip install -c constraints.txt '.[all,dev]'")
        folders.append(Path(spec.origin).parent)
    return folders[0].parent, folders


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--unread", action="store_true", help="show only what has no verdict")
    options = parser.parse_args()
    site, folders = found_packages(packages())
    report = lint_paths(folders, Settings(), cache=False)
    before = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"findings": []}
    verdicts = {row["id"]: (row["verdict"], row.get("why", "")) for row in before["findings"]}
    rows = [_row(each, site, verdicts) for each in report.diagnostics]
    for row in rows:
        if row["verdict"] == "unread" or not options.unread:
            print(f"{row['verdict']:6} {row['file']}:{row['line']}: {row['code']} {row['message']}")
            print(f"         {row['source']}")
    counts = Counter(row["verdict"] for row in rows)
    read = len(rows) - counts["unread"]
    share = (counts["true"] / read) if read else 0.0
    by_rule = {
        code: dict(Counter(row["verdict"] for row in rows if row["code"] == code))
        for code in sorted({row["code"] for row in rows})
    }
    result = {
        "schema_version": 1,
        "packages": {name: importlib.metadata.version(brings) for name, brings in packages().items()},
        "files": report.files,
        "lines": report.lines,
        "failures": [[Path(each.file).relative_to(site).as_posix(), each.message] for each in report.failures],
        "goal": GOAL,
        "verdicts": dict(counts),
        "true_share": round(share, 4),
        "by_rule": by_rule,
        "findings": rows,
    }
    print(f"{report.files:,} files, {report.lines:,} lines, {len(rows)} findings: {dict(counts)}, {share:.1%} true")
    if options.write:
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(share < GOAL or counts["unread"] > 0)


def _row(each: Diagnostic, site: Path, verdicts: dict[str, tuple[str, str]]) -> dict[str, Any]:
    finding = each.finding
    file = Path(finding.file)
    name = file.relative_to(site).as_posix() if file.is_absolute() else file.as_posix()
    key = f"{finding.code} {name} {finding.where} {finding.source}"
    verdict, why = verdicts.get(key, ("unread", ""))
    return {
        "id": key,
        "file": name,
        "line": finding.line,
        "code": finding.code,
        "severity": finding.severity.value,
        "inferred": finding.inferred,
        "message": finding.message,
        "source": finding.source,
        "verdict": verdict,
        **({"why": why} if why else {}),
    }


if __name__ == "__main__":
    sys.exit(main())
