"""Colour and widths in a terminal; plain and whole anywhere else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pty = pytest.importorskip("pty", reason="terminals of POSIX")
NAME = "a_very_long_name_of_a_backbone_of_a_model"


def in_terminal(folder: Path, columns: int, *arguments: str, **environment: str) -> str:
    """What a command prints into a terminal."""
    main, side = pty.openpty()
    settings = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", **environment}
    with subprocess.Popen(
        [sys.executable, "-m", "frostline", *arguments], cwd=folder, env=settings, stdout=side, stderr=side
    ) as process:
        os.close(side)
        text = b""
        while True:
            try:
                piece = os.read(main, 65_536)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            text += piece
        process.wait()
    os.close(main)
    return text.decode().replace("\r", "")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save({f"{NAME}.weight": torch.ones(3, 3), "fc.weight": torch.ones(2, dtype=torch.int64)}, tmp_path / "m.pth")
    return tmp_path


@pytest.mark.slow
def test_tables_fit_and_headings_are_bold(checkpoint: Path) -> None:
    said = in_terminal(checkpoint, 60, "inspect", "m.pth")
    table = re.sub(r"\x1b\[[0-9;]*m", "", said).partition("\n\n")[2]
    assert max(map(len, table.splitlines())) <= 60
    assert "\x1b[1m" in said


@pytest.mark.slow
def test_no_colour_where_it_is_not_wanted(checkpoint: Path) -> None:
    assert "\x1b" not in in_terminal(checkpoint, 80, "inspect", "m.pth", NO_COLOR="1")


def piped(folder: Path, **environment: str) -> str:
    command = [sys.executable, "-m", "frostline", "inspect", "m.pth"]
    settings = {**os.environ, "COLUMNS": "60", **environment}
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_a_pipe_gets_whole_names_and_colour_only_on_demand(checkpoint: Path) -> None:
    said = piped(checkpoint)
    assert f"\n{NAME}  " in said
    assert "\x1b" not in said
    assert "\x1b[1m" in piped(checkpoint, FORCE_COLOR="1")


@pytest.mark.slow
def test_a_closed_pipe_is_no_traceback() -> None:
    code = f"{sys.executable} -m frostline rule --output-format json | true"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
