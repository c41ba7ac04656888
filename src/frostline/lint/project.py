"""The files that are linted together: which file a name that was imported comes from."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frostline.lint.module_walk import ModuleWalk
    from frostline.lint.scopes import Class, Function

# Trees of this many lines are kept in memory for those who import from them.
_MOST_LINES = 150_000
_FROM = re.compile(r"^[ \t]*from[ \t]+[\w.]+[ \t]+import[ \t]*(\([^)]*\)|[^\n#]*)", re.M)


@dataclass(frozen=True)
class Dependencies:
    """What the findings in a file rest on, besides its own text.

    Attributes:
        files: what is in these files.
        names: which files there are by these names: ``helpers`` is that of ``helpers.py`` and ``helpers/__init__.py``.
        callers: which names the other files import.
    """

    files: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    callers: bool = False


class Project:
    """The files of one run.

    Args:
        files: the paths of all of them.
        open_file: reads one and gives what is in it, or ``None`` where it is no Python.
        read_text: its text, or "".

    Attributes:
        ancestries: by class and the file that asked for it: the class with its bases; kept here, because it is gone
            when a file is let go of.
    """

    def __init__(
        self,
        files: Iterable[str] = (),
        open_file: Callable[[str], ModuleWalk | None] = lambda _: None,
        read_text: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._files = frozenset(files)
        self._open_file = open_file
        self._read_text = read_text
        self._by_last: dict[str, list[tuple[tuple[str, ...], str]]] | None = None
        self._found: dict[tuple[tuple[str, ...], str], str | None] = {}
        self._imports: dict[str, set[str]] = {}
        self._open: OrderedDict[str, ModuleWalk | None] = OrderedDict()
        self._opening: set[str] = set()
        self._lines = 0
        # By name and the file that asked for it: what was found, as long as no file is let go of.
        self._names: dict[tuple[str, str], tuple[ModuleWalk, Function | Class] | None] = {}
        self.ancestries: dict[tuple[str, str], list[tuple[ModuleWalk, Class]]] = {}
        self._imported: dict[str, int] | None = None
        # By the file that asked: the files that were opened for it, and what it looked for.
        self._asked: dict[str, set[str]] = {}
        self._looked: dict[str, set[str]] = {}
        self._asked_callers: set[str] = set()

    def add(self, walk: ModuleWalk) -> None:
        """Keep what is in a file for those who import from it."""
        file = walk.source.path
        if file in self._open:
            return
        self._open[file] = walk
        self._lines += walk.lines

    def kept(self, file: str) -> ModuleWalk | None:
        """What is in a file, if it is in memory."""
        return self._open.get(file)

    def trim(self) -> None:
        """Let go of the files that were not asked for in a long time; not while one is being linted."""
        while self._lines > _MOST_LINES:
            self._names.clear()
            self.ancestries.clear()
            _, old = self._open.popitem(last=False)
            if old is not None:
                self._lines -= old.lines
                old.forget()

    def forget(self) -> None:
        """Let go of all files."""
        self._names.clear()
        self.ancestries.clear()
        self._open.clear()
        self._lines = 0

    def find(self, name: str, near: str) -> tuple[ModuleWalk, Function | Class] | None:
        """The function or class of a qualified name, through the imports of other files.

        Args:
            name: as the file that uses it imported it: ``package.module.name``.
            near: the path of that file.
        """
        key = (name, near)
        if key not in self._names:
            self._names[key] = self._find(name, near, 0)
        return self._names[key]

    def _find(self, name: str, near: str, depth: int) -> tuple[ModuleWalk, Function | Class] | None:
        if depth > 8 or not self._files:
            return None
        parts = name.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            file = self._file(parts[:cut], near)
            if file is None:
                continue
            walk = self.open(file, near)
            if walk is None:
                return None
            rest = ".".join(parts[cut:])
            found = walk.functions.get(rest) or walk.classes.get(rest)
            if found is not None:
                return walk, found
            # `import a; a.b.c`, or a name that this file has from another one.
            origin = walk.imported(parts[cut])
            if origin:
                return self._find(".".join([origin, *parts[cut + 1 :]]), file, depth + 1)
            # What `from a import *` brings, the last one first.
            for star in reversed(walk.top.stars):
                found = self._find(f"{star}.{rest}", file, depth + 1)
                if found is not None:
                    return found
            return None
        return None

    def depends_on(self, file: str) -> Dependencies:
        """What was asked for to lint a file, and to know what is in the files that it was asked of."""
        files = {file}
        waiting = [file]
        while waiting:
            more = self._asked.get(waiting.pop(), set()) - files
            files |= more
            waiting += more
        looked = frozenset[str]().union(*(self._looked.get(each, ()) for each in files))
        return Dependencies(frozenset(files - {file}), looked, not files.isdisjoint(self._asked_callers))

    def open(self, file: str, near: str) -> ModuleWalk | None:
        """What is in one of the files; ``None`` where it is no Python, or is being opened.

        Args:
            file: its path.
            near: the path of the file that asks.
        """
        self._asked.setdefault(near, set()).add(file)
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        if file in self._opening:
            return None
        self._opening.add(file)
        try:
            walk = self._open_file(file)
        finally:
            self._opening.discard(file)
        if walk is None:
            self._open[file] = None
        else:
            self.add(walk)
        return walk

    def _file(self, parts: list[str], near: str) -> str | None:
        """The file of a module: the one whose path ends so; of several, the one with most folders in common."""
        here = near.rpartition(os.sep)[0]
        self._looked.setdefault(near, set()).add(parts[-1])
        key = (tuple(parts), here)
        if key not in self._found:
            self._found[key] = self._looked_up(key[0], tuple(here.split(os.sep)))
        return self._found[key]

    def _looked_up(self, parts: tuple[str, ...], here: tuple[str, ...]) -> str | None:
        if self._by_last is None:
            self._by_last = {}
            for file in sorted(self._files):
                folders = _dotted(file)
                if folders:
                    self._by_last.setdefault(folders[-1], []).append((folders, file))
        found = [each for each in self._by_last.get(parts[-1], ()) if each[0][-len(parts) :] == parts]
        return max(found, key=lambda each: _common(each[0], here))[1] if found else None

    def is_imported(self, name: str, file: str) -> bool:
        """Whether another of the files imports this name from anywhere."""
        self._asked_callers.add(file)
        if self._imported is None:
            self._imported = {}
            for each in self._files:
                for found in self._imports_of(each):
                    self._imported[found] = self._imported.get(found, 0) + 1
        own = name in self._imports_of(file)
        return self._imported.get(name, 0) > int(own)

    def _imports_of(self, file: str) -> set[str]:
        """The names that a file imports from others."""
        if file not in self._imports:
            found = (re.findall(r"\w+", names) for names in _FROM.findall(self._read_text(file)))
            self._imports[file] = {name for names in found for name in names}
        return self._imports[file]


def _dotted(file: str) -> tuple[str, ...]:
    """The folders of a module and its name, as a dotted import names them."""
    parts = tuple(file.rpartition(".")[0].split(os.sep))
    return parts[:-1] if parts[-1] == "__init__" else parts


def name_of(file: str) -> str:
    """The name by which a file is imported, without the packages it lies in.

    Example:
        >>> name_of("pkg/helpers.py"), name_of("pkg/__init__.py"), name_of("__init__.py")
        ('helpers', 'pkg', '')
    """
    return "".join(_dotted(file)[-1:])


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[int, int]:
    same = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        same += 1
    return same, -len(one)
