"""Where in the user's source something was done: the first frame that is neither torch's, nor ours, nor a library's."""

from __future__ import annotations

import inspect
import linecache
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import torch

# A stack deeper than this belongs to a recursion, and the frame that matters is not at its far end.
_DEEPEST = 200
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_AUDIT = os.path.join(_OURS, "audit") + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_LIBRARIES = tuple(
    {
        os.path.join(os.path.abspath(path), "")
        for path in [
            *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
            *site.getsitepackages(),
            site.getusersitepackages(),
        ]
    }
)


@dataclass(frozen=True)
class Place:
    """A line of source.

    Attributes:
        file: the path of the file; empty where no line is known.
        line: its number, from 1; 0 where it is not known.
        function: the function that it stands in; ``<module>`` at the top of a file.
        via: the library that did it on the user's behalf, ``lightning`` for example; empty where it was the user.
    """

    file: str = ""
    line: int = 0
    function: str = ""
    via: str = ""

    @property
    def text(self) -> str:
        """The line itself, without its indentation; empty where the file cannot be read."""
        return linecache.getline(self.file, self.line).strip() if self.file else ""

    @property
    def is_known(self) -> bool:
        """Whether there is a line at all."""
        return bool(self.file)

    def __str__(self) -> str:
        """The place as an editor understands it: ``train.py:41``, relative to the working directory where it is below.

        Example:
            >>> str(Place()), str(Place("nowhere/train.py", 3))
            ('an unknown line', 'nowhere/train.py:3')
        """
        if not self.file:
            return "an unknown line"
        return f"{short(self.file)}:{self.line}"

    def to_dict(self) -> dict[str, Any]:
        """The place as JSON-ready values, with the text of the line."""
        return {**asdict(self), "file": short(self.file), "text": self.text}


NOWHERE = Place()


def short(file: str) -> str:
    """A file's path relative to the working directory, where it lies below that."""
    try:
        relative = os.path.relpath(file) if file and os.path.isabs(file) else file
    except (ValueError, OSError):  # another drive, or a working directory that is gone
        return file
    return file if relative.startswith("..") else relative


_KIND: dict[str, str] = {}


def kind_of(file: str) -> str:
    """Whose code a file is: ``user``, ``torch``, ``ours``, ``library`` or ``none`` (no file at all).

    Example:
        >>> kind_of(torch.__file__), kind_of("<frozen runpy>"), kind_of(__file__)
        ('torch', 'none', 'ours')
    """
    known = _KIND.get(file)
    if known is None:
        known = _KIND[file] = _kind_of(file)
    return known


def _kind_of(file: str) -> str:
    if file.startswith("<") and not file.startswith("<ipython"):
        return "none"
    path = os.path.abspath(file)
    if path.startswith(_OURS):
        return "ours"
    if path.startswith(_TORCH):
        return "torch"
    return "library" if path.startswith(_LIBRARIES) else "user"


def frames(start: FrameType | None) -> Iterator[FrameType]:
    """The frames from this one outwards, up to a sensible depth."""
    for _ in range(_DEEPEST):
        if start is None:
            return
        yield start
        start = start.f_back


def user_place(depth: int = 1) -> Place:
    """The user's line that is being executed, seen from the caller.

    Where a library acts between the user and torch (a trainer that calls ``model.train()``), it is named in ``via``.
    Where no user's frame is on the stack, the innermost frame of a library is given.

    Args:
        depth: how many frames of the caller's own to leave out.

    Example:
        >>> user_place().function
        '<module>'
    """
    via, inner = "", None
    for frame in frames(sys._getframe(depth)):
        file = frame.f_code.co_filename
        kind = kind_of(file)
        if is_users(frame):
            return Place(file, frame.f_lineno, frame.f_code.co_name, via)
        if kind == "ours" and not via and not file.startswith(_AUDIT):
            via = "frostline"  # a hold that is thawed, for example
        if kind == "library" and inner is None:
            name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
            # contextlib and functools only pass calls on.
            if name not in _CARRIERS:
                via, inner = via or name, frame
    return Place(inner.f_code.co_filename, inner.f_lineno, inner.f_code.co_name, via) if inner else NOWHERE


def is_users(frame: FrameType) -> bool:
    """Whether a frame runs the user's code: from a file, or typed at a prompt, behind ``-c``, in a docstring."""
    file = frame.f_code.co_filename
    typed = file in {"<stdin>", "<string>"} and frame.f_globals.get("__name__") == "__main__"
    return kind_of(file) == "user" or typed or file.startswith("<doctest")


_CARRIERS = frozenset({"contextlib", "functools", "runpy", "threading", "concurrent", "pytest", "_pytest", "pluggy"})


def in_stack(suffix: str) -> bool:
    """Whether a file whose path ends so is on the stack: ``torch/utils/checkpoint.py`` for example."""
    return any(frame.f_code.co_filename.endswith(suffix) for frame in frames(sys._getframe(1)))


def variables(frame: FrameType) -> dict[str, Any]:
    """A copy of a frame's local variables; the frame keeps nothing of it.

    Before Python 3.13 the first look at ``f_locals`` makes a snapshot that lives as long as the frame, and with it
    everything that the function deletes in the meantime. It is emptied; the variables themselves are elsewhere.

    Example:
        >>> def inner(value):
        ...     return variables(sys._getframe())["value"]
        >>> inner(3)
        3
    """
    found = frame.f_locals
    copied = dict(found)
    if sys.version_info < (3, 13) and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        found.clear()
    return copied
