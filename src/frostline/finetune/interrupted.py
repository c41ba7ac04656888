"""A run that was stopped by Ctrl+C, and where it can go on."""

from __future__ import annotations

from pathlib import Path


class RunInterrupted(KeyboardInterrupt):
    """The run was interrupted after its folder was made; everything that catches a KeyboardInterrupt catches it.

    Attributes:
        folder: the run folder, with which it goes on.

    Example:
        >>> issubclass(RunInterrupted, KeyboardInterrupt), RunInterrupted(Path("run")).folder.name
        (True, 'run')
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder
