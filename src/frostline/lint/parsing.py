"""From source to syntax tree, whatever the file holds: an answer, never an exception."""

from __future__ import annotations

import ast
import gc
import warnings

from frostline.errors import printable
from frostline.lint.diagnostic import Failure
from frostline.lint.source import Source

TOO_DEEP = "nested too deeply to be parsed"


def parse(source: Source) -> ast.Module | Failure:
    r"""Parse a source with this Python's grammar.

    Nothing is compiled or run. Warnings about the source, such as those about escape sequences, are not given.

    Returns:
        The tree; or what is wrong, with line and column in characters, within the cell if it is a notebook.

    Example:
        >>> parse(Source("a.py", "x = 1\nx = = 2\n"))
        Failure(file='a.py', message='invalid syntax', line=2, column=5, cell=0)
    """
    collecting = gc.isenabled()
    # A tree is all new objects and no garbage: looking for some doubles the time.
    gc.disable()
    try:
        with warnings.catch_warnings():  # some 5 microseconds; a file takes milliseconds
            warnings.simplefilter("ignore")
            return ast.parse(source.text)
    except SyntaxError as error:
        if not error.lineno and (failure := _not_text(source)) is not None:  # since Python 3.11.4; before, see below
            return failure
        line, column = error.lineno or 0, max(error.offset or 0, 0)
        message = TOO_DEEP if "too many nested" in error.msg or "too many levels" in error.msg else error.msg
        cell, line = source.cell_of(line) if line else (0, 0)
        return Failure(source.path, printable(message), line, column if line else 0, cell)
    except (RecursionError, MemoryError):
        return Failure(source.path, TOO_DEEP)
    except ValueError as error:  # characters that are none: a notebook may hold null or half of a surrogate pair
        return _not_text(source) or Failure(source.path, printable(str(error)))
    finally:
        if collecting:
            gc.enable()


def _not_text(source: Source) -> Failure | None:
    """The first character that no source may hold."""
    for at, char in enumerate(source.text):
        if char == "\0" or "\ud800" <= char <= "\udfff":
            line, column = source.position(at)
            cell, line = source.cell_of(line)
            what = "a null character" if char == "\0" else "half of a surrogate pair"
            return Failure(source.path, f"holds {what}", line, column, cell)
    return None
