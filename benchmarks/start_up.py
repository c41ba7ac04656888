"""What does starting cost? `import frostline` beside `import torch`, and commands without torch beside Python itself.

The goals are absolute: the import adds at most 0.15 s to that of torch, and `frostline --help` answers in 0.3 s. Each
side is a process of its own, from its start to its end.
"""

from __future__ import annotations

import os
import subprocess
import sys

from measure import Comparison, Side, compare, rounds_asked_for, write

ADDED = "import frostline, added to import torch"
HELP = "frostline --help"
GOALS = {ADDED: 0.15, HELP: 0.3}
COMMANDS = {
    HELP: ("--help",),
    "frostline --version": ("--version",),
    "frostline demo": ("demo",),
    "frostline doctor --help": ("doctor", "--help"),
    "frostline rule F107": ("rule", "F107"),
}


def python(name: str, code: str, **environment: str) -> Side:
    """A process that runs some code; an error in it ends the benchmark."""
    command, variables = [sys.executable, "-c", code], {**os.environ, **environment}
    return Side(name, lambda: subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL))


def main() -> None:
    rounds = rounds_asked_for(15)
    torch = python("import torch", "import torch")
    both = python("import torch, frostline", "import torch, frostline")
    names = python("import torch; from frostline import *", "import torch\nfrom frostline import *")
    comparisons: list[Comparison] = [
        compare("import torch, frostline / import torch", both, torch, rounds=rounds, goal=None),
        compare("import torch and all public names / import torch", names, torch, rounds=rounds, goal=None),
    ]
    seconds = {ADDED: comparisons[0].side_seconds - comparisons[0].baseline_seconds}
    alone = python("python -c pass", "pass")
    for name, arguments in COMMANDS.items():
        code = f"import sys\nfrom frostline.cli import main\nsys.argv = ['frostline', *{arguments!r}]\nmain()"
        comparisons.append(compare(f"{name} / python", python(name, code), alone, rounds=rounds, goal=None))
        seconds[name] = comparisons[-1].side_seconds
    completing = {"_FROSTLINE_COMPLETE": "complete_bash", "COMP_WORDS": "frostline di", "COMP_CWORD": "1"}
    tab = python("a completion", "from frostline.cli import main\nmain()", **completing)
    comparisons.append(compare("a completion of frostline di / python", tab, alone, rounds=rounds, goal=None))
    seconds["frostline di and the tabulator"] = comparisons[-1].side_seconds
    for name, goal in GOALS.items():
        verdict = "met" if seconds[name] <= goal else "MISSED"
        print(f"{name}: {seconds[name] * 1e3:.0f} ms, goal {goal * 1e3:.0f} ms, {verdict}")
    write("start_up", {"rounds": rounds, "seconds": seconds, "goal_seconds": GOALS}, comparisons)


if __name__ == "__main__":
    main()
