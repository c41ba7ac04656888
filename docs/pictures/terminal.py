"""Draws what `frostline doctor` prints in a terminal, from a real run: ``python docs/pictures/terminal.py``.

The picture is an SVG of text; fonts are those of the reader's machine, and nothing is loaded.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

HERE = Path(__file__).parent
SCRIPT = "train.py"
WIDTH, MOST_LINES = 96, 26


def printed(script: str) -> str:
    """What the doctor prints of a script, in colours."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "OMP_NUM_THREADS": "1"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "frostline", "doctor", script]
    return subprocess.run(command, cwd=HERE, env=environment, stdout=subprocess.PIPE, text=True, check=False).stdout


def drawn(command: str, text: str) -> str:
    """An SVG of a terminal in which a command was given."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text(f"$ {command}", style="bold"))
    lines = text.splitlines()
    console.print(Text.from_ansi("\n".join(lines[:MOST_LINES])))
    if len(lines) > MOST_LINES:
        console.print(Text("  ...", style="dim"))
    picture = console.export_svg(title="frostline", theme=DIMMED_MONOKAI, unique_id="frostline-doctor")
    # The fonts that rich names would be fetched from elsewhere.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    picture = picture.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace").replace(
        "Fira Code", "ui-monospace"
    )
    return re.sub(r"<!-- Generated with .*? -->\s*", "", picture)


if __name__ == "__main__":
    (HERE / "doctor.svg").write_text(drawn(f"frostline doctor {SCRIPT}", printed(SCRIPT)), encoding="utf-8")
