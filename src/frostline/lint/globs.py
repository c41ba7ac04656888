"""Globs on paths, as the linter's settings hold them: one set of them answers for many paths at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

# What a brace, a bracket or a wildcard may begin.
_WILD = frozenset("*?[{")


class Globs:
    """A set of globs below one folder.

    A glob without a separator is compared with the last part of a path, wherever that lies; every glob is also compared
    with the path from the folder on. ``*`` stands for any text, separators included, ``?`` for one character, ``[a-z]``
    and ``[!a-z]`` for one of a set, ``{a,b}`` for either text, and ``**/`` for any number of folders, none included.
    A ``./`` in front and a separator behind count for nothing. Upper and lower case differ.

    Args:
        patterns: the globs; an absolute one stays as it is.
        root: the folder that they are relative to.

    Example:
        >>> globs = Globs(["build", "gen/*.py"], Path("/home"))
        >>> [globs.match(path) for path in ("/home/a/build", "/home/gen/deep/x.py", "/home/build.py")]
        [True, True, False]
    """

    def __init__(self, patterns: Iterable[str], root: Path) -> None:
        self.patterns = tuple(patterns)
        self.root = root
        self._names: set[str] = set()
        self._paths: set[str] = set()
        name_regexes: list[str] = []
        path_regexes: list[str] = []
        for pattern in self.patterns:
            glob = _plain(pattern)
            at_root = os.path.isabs(glob)
            front = "" if at_root else f"{str(root).rstrip(os.sep)}{os.sep}".replace(os.sep, "/")
            if _WILD.isdisjoint(glob):
                self._paths.add(front + glob)
                if "/" not in glob:
                    self._names.add(glob)
                continue
            regex = _translated(glob)
            path_regexes.append(re.escape(front) + regex)
            if "/" not in glob:
                name_regexes.append(regex)
        self._name_regex = _any_of(name_regexes)
        self._path_regex = _any_of(path_regexes)

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def match(self, path: str) -> bool:
        """Whether one of the globs fits.

        Args:
            path: an absolute path without ``..`` in it.
        """
        path = path.replace(os.sep, "/")
        name = path.rpartition("/")[2]
        return (
            name in self._names
            or path in self._paths
            or (self._name_regex is not None and self._name_regex.fullmatch(name) is not None)
            or (self._path_regex is not None and self._path_regex.fullmatch(path) is not None)
        )

    def without(self, folder: str) -> Globs:
        """Those globs that fit neither a folder nor any folder that it lies in.

        Whoever names a folder wants what is in it, whatever the globs say about the folder itself.
        """
        above = [folder, *map(str, Path(folder).parents)]
        if not any(map(self.match, above)):
            return self
        kept = [each for each in self.patterns if not any(map(Globs([each], self.root).match, above))]
        return Globs(kept, self.root)


def _plain(pattern: str) -> str:
    """A glob with slashes only, without a ``./`` in front and a slash behind."""
    glob = pattern.replace(os.sep, "/")
    while glob.startswith("./"):
        glob = glob[2:]
    return glob.rstrip("/") or glob


def _any_of(regexes: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(f"(?:{each})" for each in regexes), re.DOTALL) if regexes else None


def _translated(glob: str) -> str:
    """A glob as a regular expression. A bracket or a brace that is never closed stands for itself."""
    out: list[str] = []
    at, depth = 0, 0
    while at < len(glob):
        char = glob[at]
        if glob.startswith("**/", at) and (at == 0 or glob[at - 1] == "/"):
            out.append("(?:.*/)?")
            at += 3
            continue
        at += 1
        if char == "*":
            out.append(".*")
        elif char == "?":
            out.append(".")
        elif char == "[" and (end := glob.find("]", at + (2 if glob[at : at + 1] == "!" else 1))) > 0:
            out.append(_one_of(glob[at:end]))
            at = end + 1
        elif char == "{" and "}" in glob[at:]:
            out.append("(?:")
            depth += 1
        elif char == "," and depth:
            out.append("|")
        elif char == "}" and depth:
            out.append(")")
            depth -= 1
        else:
            out.append(re.escape(char))
    # Of two opening braces with one closing, the first is open still.
    return "".join(out) + ")" * depth


def _one_of(members: str) -> str:
    """The inside of a bracket as a regular expression; a range that runs backwards holds nothing."""
    negated = members.startswith("!")
    members = members[negated:]
    out: list[str] = []
    at = 0
    while at < len(members):
        if members[at + 1 : at + 2] == "-" and at + 2 < len(members):
            low, high = members[at], members[at + 2]
            if low <= high:
                out.append(f"{re.escape(low)}-{re.escape(high)}")
            at += 3
        else:
            out.append(re.escape(members[at]))
            at += 1
    if not out:
        return "." if negated else "(?!)"
    return f"[{'^' if negated else ''}{''.join(out)}]"
