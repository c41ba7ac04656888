"""What git leaves out of a repository, read from ``.gitignore`` files and ``.git/info/exclude``.

Only files of the repository count, so that every machine lints the same: neither a user's own list of ignored files nor
git's index is read. A tracked file that a pattern fits is left out, too.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frostline.extras import require

# POSIX's classes within a bracket, which the package that reads patterns does not know.
_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": " \t",
    "cntrl": "\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "space": " \t-\r",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}


@dataclass(frozen=True)
class Pattern:
    """One line of a file with patterns.

    Attributes:
        literal: the name or path that is meant; empty where there are wildcards.
        suffix: the end of the names that are meant, for ``*.so`` and the like; empty otherwise.
        regex: finds the paths that are meant; ``None`` for a literal, a suffix, and a pattern that git cannot read.
        slashes: how many separators such a path has; ``-1`` where that may be any number.
        anchored: it is compared with the path from the file's folder on, not with names.
        folders: it means folders only.
        ignores: what it means is left out; ``False`` for a line with ``!``, which takes it in again.
    """

    literal: str
    suffix: str
    regex: re.Pattern[str] | None
    slashes: int
    anchored: bool
    folders: bool
    ignores: bool

    def match(self, path: str, name: str, is_folder: bool) -> bool:
        """Whether it means this very file or folder; what lies below a folder that it means is another matter."""
        if self.folders and not is_folder:
            return False
        if self.suffix:
            return name.endswith(self.suffix)
        text = path if self.anchored else name
        if self.regex is None:
            return bool(self.literal) and text == self.literal
        if self.anchored and self.slashes >= 0 and text.count("/") != self.slashes:
            return False
        found = self.regex.match(text)
        # The one group of the expression is the separator behind a folder: it was the folder that matched.
        return found is not None and found.lastindex is None


@dataclass(frozen=True)
class GitIgnore:
    """The patterns that hold for what lies in one folder.

    Attributes:
        layers: the patterns of each file, those of the innermost folder last, each with the way from its folder to this
            one: empty, or with a slash behind.
    """

    layers: tuple[tuple[tuple[Pattern, ...], str], ...] = field(default=())

    @classmethod
    def of(cls, folder: Path) -> GitIgnore:
        """The patterns for a folder that the user has named.

        They come from the root of its repository down; outside of one, from the folder itself. Where they leave the
        folder itself out, only its own count, because the user wants to see what is in it.

        Args:
            folder: an absolute path.

        Raises:
            MissingExtra: a pattern with wildcards was met, and ``pathspec`` is not installed.
        """
        root = git_root(folder)
        if root is None:
            return cls().below("", folder)
        here, rules = root, cls().below("", root)
        for name in folder.relative_to(root).parts:
            here /= name
            if rules.ignores(name, is_folder=True):
                return cls().below("", folder)
            rules = rules.below(name, here)
        return rules

    def below(self, name: str, folder: Path | str) -> GitIgnore:
        """The patterns for a folder in this one; those of a repository of its own start anew.

        Args:
            name: the name of the folder.
            folder: its path.
        """
        place = os.fspath(folder)
        layers = tuple((patterns, f"{way}{_bytewise(name)}/") for patterns, way in self.layers)
        git = os.path.join(place, ".git")
        if os.path.exists(git):
            layers = tuple((each, "") for each in [_patterns_of(_exclude_file(git))] if each)
        patterns = _patterns_of(os.path.join(place, ".gitignore"))
        return GitIgnore((*layers, (patterns, "")) if patterns else layers)

    def ignores(self, name: str, *, is_folder: bool) -> bool:
        """Whether an entry of the folder is left out.

        The last pattern of the innermost file that means the entry decides.

        Args:
            name: the name of the entry.
            is_folder: whether it is a folder; a symbolic link is none.
        """
        text = _bytewise(name) if self.layers else name
        for patterns, way in reversed(self.layers):
            path = way + text
            for pattern in reversed(patterns):
                if pattern.match(path, text, is_folder):
                    return pattern.ignores
        return False


def git_root(folder: Path) -> Path | None:
    """The innermost folder with a ``.git`` that a folder is or lies in."""
    return next((each for each in (folder, *folder.parents) if (each / ".git").exists()), None)


def read_pattern(line: str) -> Pattern | None:
    """One line of a ``.gitignore``; ``None`` where it is empty or a comment.

    Raises:
        MissingExtra: it has wildcards, and ``pathspec`` is not installed.

    Example:
        >>> pattern = read_pattern("!/docs/*.py")
        >>> pattern.ignores, pattern.match("docs/conf.py", "conf.py", False)
        (False, True)
    """
    if line.startswith("#"):
        return None
    text = _without_spaces_behind(line)
    ignores = not text.startswith("!")
    text = text if ignores else text[1:]
    folders = text.endswith("/")
    text = text[:-1] if folders else text
    anchored = "/" in text
    text = text.removeprefix("/")
    if not text:
        return None
    literal, suffix, regex = "", "", None
    if not set("*?[\\") & set(text):
        literal = text
    elif not anchored and text[0] == "*" and len(text) > 1 and not set("*?[\\") & set(text[1:]):
        suffix = text[1:]
    else:
        regex = _regex_of(text)
    slashes = -1 if "**" in text.split("/") else text.count("/")
    return Pattern(literal, suffix, regex, slashes, anchored, folders, ignores)


def _regex_of(text: str) -> re.Pattern[str] | None:
    """What a pattern finds; ``None`` for one that git cannot read, which finds nothing."""
    pathspec: Any = require("pathspec", extra="cli", purpose="Reading .gitignore")
    text = re.sub(r"\[:(\w+):\]", lambda found: _CLASSES.get(found[1], found[0]), text)
    # A backslash in front of a slash changes nothing, and must not hide the slash.
    text = re.sub(r"\\(.)", lambda found: "/" if found[1] == "/" else found[0], text, flags=re.DOTALL)
    # The package takes white space off the end, where git takes spaces only.
    text = f"{text[:-1]}[{text[-1]}]" if text[-1].isspace() and text[-1] != " " else text
    try:
        # A bracket within a bracket is a warning to Python's expressions, and nothing special to git.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            (pattern,) = pathspec.GitIgnoreSpec.from_lines([f"/{text}"]).patterns
    except (ValueError, re.error):
        return None
    return pattern.regex


def _bytewise(name: str) -> str:
    """A name with a character for each byte, because that is how git compares: ``?`` is half of an ``é``."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("latin-1")


def _without_spaces_behind(line: str) -> str:
    """A line without the spaces at its end; one behind a backslash is meant."""
    text = line.rstrip(" ")
    backslashes = len(text) - len(text.rstrip("\\"))
    return text + " " if backslashes % 2 and len(text) < len(line) else text


def _patterns_of(file: str) -> tuple[Pattern, ...]:
    """The patterns in a file; none where it does not exist or cannot be read, as for git."""
    try:
        with open(file, "rb") as stream:
            raw = stream.read()
    except OSError:
        return ()
    lines = raw.removeprefix(b"\xef\xbb\xbf").decode("latin-1").split("\n")
    patterns = (read_pattern(line.removesuffix("\r")) for line in lines)
    return tuple(each for each in patterns if each is not None)


def _exclude_file(git: str) -> str:
    """The list that a repository keeps to itself; a worktree's ``.git`` is a file that leads to it."""
    folder = git
    if not os.path.isdir(git):
        folder = os.path.join(os.path.dirname(git), _one_line(git).removeprefix("gitdir:").strip())
        shared = _one_line(os.path.join(folder, "commondir"))
        folder = os.path.join(folder, shared) if shared else folder
    return os.path.join(folder, "info", "exclude")


def _one_line(file: str) -> str:
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.readline().strip()
    except OSError:
        return ""
