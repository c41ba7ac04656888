"""Runs every benchmark in a process of its own, one after the other, and prints one table.

    python benchmarks/run_all.py [--rounds N]

Exit code 1 if a goal is missed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from measure import HEADER, RESULTS, row

BENCHMARKS = (
    "step_with_hold",
    "digest_speed",
    "verify_buffers",
    "freeze_probe",
    "norm_moments",
    "norm_diagnose",
    "norm_policies",
    "checkpoint_subtree",
    "checkpoint_planning",
    "checkpoint_diff",
    "param_groups",
    "unfreezing_step",
    "meta_speed",
    "doctor_speed",
    "lint_speed",
    "start_up",
    "fast_heads",
    "ddp_step",
    "callback_lightning",
    "callback_trainer",
)


def main() -> int:
    here = Path(__file__).parent
    for name in BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, str(here / f"{name}.py"), *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
    results = [json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in BENCHMARKS]
    rows = [each for result in results for each in result["comparisons"]]
    print(HEADER)
    for each in rows:
        print(row(each))
    return int(any(each["met"] is False for each in rows))


if __name__ == "__main__":
    sys.exit(main())
