"""IPython's own syntax in the cells of notebooks: replaced by Python of the same length, so that places stay."""

from __future__ import annotations

import re

PYTHON_MAGICS = frozenset({"capture", "debug", "memit", "prun", "time", "timeit"})
"""Magics of whole cells behind whose first line Python goes on."""

_HINT = re.compile(r"[!%?]|^\s*[,;/]", re.MULTILINE)
_CELL_MAGIC = re.compile(r"%%(\w*)[^\r\n]*")
_NOT_AN_END = re.compile(r"[^\r\n]")
_ESCAPED = re.compile(r"[%!?,;/]")
_ASSIGNED = re.compile(r"(?:[\w.,:*() \t\[\]]|\[(?:'[^'\r\n]*'|\"[^\"\r\n]*\")\])*=[ \t]*(?=[!%])")
_HELP = re.compile(r"[^#\"'?\r\n]+\?\??[ \t]*(?=[\r\n]|\Z)")
_SHELL_LINE = re.compile(r"(?:[^\\\r\n]|\\(?:\r\n|[\s\S]|\Z))*")
_ALL_BLANKS = re.compile(r"[ \t\f\r\n]*")
_BLANKS = re.compile(r"[ \t\f]*")
# What Python is made of, as far as it matters for where a statement ends.
_PIECE = re.compile(
    r"(?P<string>\"{3}(?:[^\\]|\\[\s\S])*?(?:\"{3}|\Z)|'{3}(?:[^\\]|\\[\s\S])*?(?:'{3}|\Z)"
    r"|\"(?:[^\"\\\r\n]|\\(?:\r\n|[\s\S]))*\"?|'(?:[^'\\\r\n]|\\(?:\r\n|[\s\S]))*'?)"
    r"|(?P<comment>#[^\r\n]*)|(?P<joined>\\(?:\r\n|[\r\n]))|(?P<end>\r\n|[\r\n])|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|[^\"'#\\\r\n()\[\]{}]+|[\s\S]"
)


def without_magics(cell: str) -> tuple[str, list[tuple[int, int]]]:
    r"""Replace magics, shell commands and calls for help in a cell.

    Args:
        cell: its text.

    Returns:
        A text of the same length with the same line ends, which parses if the rest of the cell does; and where it
        differs, as ranges of offsets. That of an instruction for the whole cell begins at -1: nothing may be put
        before it.

    Example:
        >>> without_magics("%matplotlib inline\nfiles = !ls -l\n")
        ('                  \nfiles = None  \n', [(0, 18), (27, 33)])
    """
    if _HINT.search(cell) is None:
        return cell, []
    masked: list[tuple[int, int]] = []
    at = 0
    while (magic := _CELL_MAGIC.match(cell, _first_character(cell, at))) is not None:
        if magic[1] not in PYTHON_MAGICS:
            return _NOT_AN_END.sub(" ", cell), [(-1, len(cell))]
        at = magic.end()
        masked = [(-1, at)]
    pieces = [_NOT_AN_END.sub(" ", cell[:at])]
    began = False  # whether there was Python that may have opened a block
    while at < len(cell):
        blanks = _BLANKS.match(cell, at)
        start = at if blanks is None else blanks.end()
        span = _magic_at(cell, start)
        if span is not None:
            pieces += cell[at : span[0]], _stand_in(cell, *span, alone=span[0] == start, indented=began and start > at)
            masked.append(span)
            at = span[1]
        else:
            span = (at, at)
        end = _statement_end(cell, max(start, span[1]))
        pieces.append(cell[at:end])
        began = began or bool(pieces[-1].strip())
        at = end
    return "".join(pieces), masked


def _first_character(cell: str, at: int) -> int:
    """The offset of the next character that is no blank."""
    blanks = _ALL_BLANKS.match(cell, at)
    return at if blanks is None else blanks.end()


def _magic_at(cell: str, at: int) -> tuple[int, int] | None:
    """The range of what is not Python in the statement that begins at an offset."""
    found = at if _ESCAPED.match(cell, at) else None
    if found is None and (assigned := _ASSIGNED.match(cell, at)) is not None:
        found = assigned.end()
    if found is not None:
        line = _SHELL_LINE.match(cell, found)
        return (found, len(cell) if line is None else line.end())
    called = _HELP.match(cell, at)
    return None if called is None else (at, called.end())


def _stand_in(cell: str, start: int, end: int, *, alone: bool, indented: bool) -> str:
    """Python that is as long as what it replaces and has its line ends."""
    blank = _NOT_AN_END.sub(" ", cell[start:end])
    if alone and not indented:
        return blank  # not even a statement: nobody should put an import before it
    word = "pass" if alone else "None"
    ends = re.search(r"[\r\n]", blank)
    room = len(blank) if ends is None else ends.start()
    word = word if room >= len(word) else "0"
    # Lines that went on with a backslash are blank now, and stay behind the statement.
    return word + blank[len(word) :]


def _statement_end(cell: str, at: int) -> int:
    """The offset behind the line end of the statement that begins at an offset."""
    depth = 0
    for piece in _PIECE.finditer(cell, at):
        kind = piece.lastgroup
        if kind == "open":
            depth += 1
        elif kind == "close":
            depth = max(depth - 1, 0)
        elif kind == "end" and not depth:
            return piece.end()
    return len(cell)
