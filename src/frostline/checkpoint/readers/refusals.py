"""What is said of a file that cannot be read; every reader says it in the same words.

Knows paths and texts; knows nothing of formats.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from frostline.errors import CheckpointError, CorruptCheckpoint, UnsafeCheckpoint, name_some, printable

# Of what a damaged file holds, so many letters are shown.
_LONGEST = 500
AGAIN = "fix: copy or download it again"
LOCAL = "fix: the path of a checkpoint file, or of a folder that holds one"


def shown(path: str | os.PathLike[str]) -> str:
    """A path in one line of text that any terminal can take, also if its name is not valid UTF-8."""
    return printable(os.fspath(path))


def cut_short(path: Path, size: int, found: str, *, fix: str = AGAIN) -> CorruptCheckpoint:
    """The file is cut short or damaged: what was found says where."""
    said = printable(found)[:_LONGEST]
    return CorruptCheckpoint(
        f"the checkpoint {shown(path)} is cut short or damaged ({size:,} bytes)\n  found: {said}\n  {fix}"
    )


def unsafe(path: Path, wanted: Sequence[str], *, of_torch: bool = True) -> UnsafeCheckpoint:
    """The file is a pickle that wants to run code: what it wants to import, and the ways out."""
    other = "\n  or, only if you trust the file as you trust a program: allow_pickle=True runs that code"
    return UnsafeCheckpoint(
        f"{shown(path)} is a pickle that wants to import and call code; nothing of it was run\n"
        f"  wanted: {name_some(wanted, most=32)}\n"
        f"  fix: have it saved again as model.state_dict(), which needs none of these{other if of_torch else ''}"
    )


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The system does not let the file be read."""
    return CheckpointError(f"the checkpoint {shown(path)} cannot be read: {error.strerror or type(error).__name__}")


def reason(error: BaseException) -> str:
    """An exception in one short line."""
    first = (str(error).splitlines() or [""])[0][:200].strip()
    return f"{type(error).__name__}: {first}".rstrip(": ")
