"""Which findings the comments of a file silence: ``# noqa`` as the field writes it."""

from __future__ import annotations

import re
from io import StringIO

from frostline.lint.source import Source

_CODES = r"(?P<codes>[a-z]+\d+(?:[,\s]+[a-z]+\d+)*)"
_LINE = re.compile(rf"#\s*noqa(?![\w-])(?:\s*:\s*{_CODES})?", re.IGNORECASE)
_FILE = re.compile(rf"[ \t\f]*#\s*(?:frostline|flake8|ruff)\s*:\s*noqa(?![\w-])(?:\s*:\s*{_CODES})?", re.IGNORECASE)

Codes = tuple[str, ...]
EVERY: Codes = ("",)
"""Codes are silenced by what they begin with, and every code begins with nothing."""


class Silenced:
    r"""What the comments of one file silence.

    Comments are looked for when they are asked for, and told from strings that look like them only where one was
    found: a file without findings costs nothing.

    Example:
        >>> silenced = Silenced.of(Source("a.py", "a()  # noqa: F107, M2\nb()  # NOQA\nc('# noqa')\n"))
        >>> silenced.covers("F107", 1, 1), silenced.covers("F102", 1, 1), silenced.covers("M201", 1, 1)
        (True, False, True)
        >>> silenced.covers("F102", 2, 2), silenced.covers("F102", 3, 3)
        (True, False)
    """

    __slots__ = ("_comments", "_file", "_source")

    def __init__(self, source: Source | None) -> None:
        self._source = source
        self._comments: dict[int, str] | None = None
        self._file: Codes | None = None

    @classmethod
    def of(cls, source: Source) -> Silenced:
        """What the comments of a source silence."""
        return cls(source if "noqa" in source.text.lower() else None)

    def covers(self, code: str, first_line: int, last_line: int) -> bool:
        """Whether a finding is silenced, by its line or for the whole file.

        Args:
            code: the code of the finding.
            first_line: the first line of the statement that it is about, from 1.
            last_line: the last one; a comment on either counts.
        """
        source = self._source
        if source is None:
            return False
        code = code.upper()
        if code.startswith(self._of_file(source)):
            return True
        for line in {first_line, last_line}:
            if _LINE.search(source.line_text(line)) is None:
                continue
            found = _LINE.search(self._comments_of(source).get(line, ""))
            if found is not None and code.startswith(_codes(found)):
                return True
        return False

    def _of_file(self, source: Source) -> Codes:
        """What is silenced in all lines."""
        if self._file is None:
            silenced: list[str] = []
            # A comment that is a line of its own, and no line of a string.
            for line, comment in self._comments_of(source).items() if _mentions_file(source.text) else ():
                found = _FILE.match(comment)
                if found is not None and source.line_text(line).lstrip().startswith("#"):
                    silenced += _codes(found)
            self._file = tuple(silenced)
        return self._file

    def _comments_of(self, source: Source) -> dict[int, str]:
        """The comments that hold the word, by line."""
        if self._comments is None:
            self._comments = _comments(source)
        return self._comments


def _mentions_file(text: str) -> bool:
    """Whether a text might silence a whole file: without it, nobody needs to look for comments."""
    return re.search(r"#\s*(?:frostline|flake8|ruff)\s*:\s*noqa", text, re.IGNORECASE) is not None


def _codes(found: re.Match[str]) -> Codes:
    """What a comment names, in capitals; everything if it names nothing."""
    named = found["codes"]
    return tuple(re.split(r"[,\s]+", named.upper())) if named else EVERY


def _comments(source: Source) -> dict[int, str]:
    """The comments of a source that hold the word ``noqa``, by line."""
    from tokenize import COMMENT, TokenError, generate_tokens

    comments: dict[int, str] = {}
    try:
        # A tokenizer written in Python knows two line ends only: here all become one, and line numbers stay.
        for token in generate_tokens(StringIO(source.text, newline=None).readline):
            if token.type == COMMENT and "noqa" in token.string.lower():
                comments[token.start[0]] = token.string
    except (TokenError, SyntaxError):
        # What cannot be tokenized is searched by line: rather a finding too few than one that was silenced.
        for line in range(1, source.line_count + 1):
            text = source.line_text(line)
            if "noqa" in text.lower() and "#" in text:
                comments[line] = text[text.index("#") :]
    return comments
