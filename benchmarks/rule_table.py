"""Every rule of the doctor on its planted mistake, on its twin and on all healthy loops, and how soon it speaks.

A rule is *found* where its code is the first finding on the loop that makes its mistake, and *silent* where no loop
that does it right has a finding of it above `info`: the twins of all rules, and the loops of `clean_loops.py`. The
steps until found are those of the shortest watch that finds it, where the loop can be told how many steps to do.

    python benchmarks/rule_table.py [--quick]
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import sys
import warnings
from typing import Any

import clean_loops
import planted_loops
from measure import RESULTS, SCHEMA_VERSION, machine

from frostline.doctor import Examination, all_rules, examine
from frostline.findings import CATALOGUE, Severity

MOST_STEPS = 6


def loops() -> dict[str, Any]:
    """Code of a rule to the module with its planted loops."""
    names = [module.name for module in pkgutil.iter_modules(planted_loops.__path__)]
    # What several loops share stands beside them.
    return {
        name.upper(): importlib.import_module(f"planted_loops.{name}") for name in names if name.upper() in CATALOGUE
    }


def loud(examination: Examination) -> list[str]:
    """The codes of what is worse than a note."""
    return [finding.code for finding in examination.worse_than(Severity.WARNING)]


def steps_until_found(code: str, failing: Any) -> int | None:
    """The fewest steps after which the rule speaks; ``None`` where the loop has a length of its own."""
    if "steps" not in inspect.signature(failing).parameters:
        return None
    for steps in range(1, MOST_STEPS + 1):
        if any(finding.code == code for finding in examine(failing(steps))):
            return steps
    return None


def main() -> int:
    quick = "--quick" in sys.argv[1:]
    rules, planted = all_rules(), loops()
    silent: dict[str, list[str]] = {code: [] for code in rules}
    rows: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        healthy = {f"twin of {code}": module.twin for code, module in planted.items()}
        if not quick:
            healthy |= clean_loops.LOOPS
        for name, loop in healthy.items():
            print(name, file=sys.stderr, flush=True)
            for code in loud(examine(loop())):
                silent[code].append(name)
        for code, rule in rules.items():
            print(code, file=sys.stderr, flush=True)
            module = planted.get(code)
            found = examine(module.failing()) if module else []
            rows.append(
                {
                    "code": code,
                    "title": rule.title,
                    "found": bool(found) and found[0].code == code,
                    "severity": found[0].severity.value if found else None,
                    "also": [finding.code for finding in found[1:] if finding.severity is not Severity.INFO],
                    "silent": not silent[code],
                    "false_alarms": silent[code],
                    "steps": steps_until_found(code, module.failing) if module else None,
                }
            )
    data = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": "rule_table",
        "machine": machine(),
        "planted": len(planted),
        "healthy": len(healthy),
        "rules": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "rule_table.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print("code  found  silent  steps  title")
    for row in rows:
        steps = "-" if row["steps"] is None else row["steps"]
        marks = ("yes" if row["found"] else "NO", "yes" if row["silent"] else "NO")
        print(f"{row['code']}  {marks[0]:5}  {marks[1]:6}  {steps:>5}  {row['title']}")
    missed = [row["code"] for row in rows if not (row["found"] and row["silent"])]
    print(f"{len(rows) - len(missed)} of {len(rows)} rules found and silent" + (f"; not: {missed}" if missed else ""))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
