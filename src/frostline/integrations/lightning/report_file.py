"""What is told of a run: one line in Lightning's log, and a file beside what Lightning itself writes."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from frostline.integrations.lightning.packages import framework

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_rank_zero = importlib.import_module(f"{framework().__name__}.utilities.rank_zero")


def said(text: str) -> None:
    """Say something in Lightning's log, in the first process only."""
    _rank_zero.rank_zero_info(text)


def target_of(trainer: Trainer, report: str | os.PathLike[str] | None) -> Path | None:
    """Where a report goes: a relative path is below the log folder, or the root folder where nothing logs.

    Every process has to call this, because Lightning asks the first one for its log folder.
    """
    if report is None:
        return None
    folder = trainer.log_dir
    return Path(folder or trainer.default_root_dir) / report
