"""The files that are linted together: which file a name that was imported comes from."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frostline.lint.module_walk import ModuleWalk
    from frostline.lint.scopes import Class, Function

# Trees of this many lines are kept in memory for those who import from them.
_MOST_LINES = 60_000
_FROM = re.compile(r"^[ \t]*from[ \t]+[\w.]+[ \t]+import[ \t]*(\([^)]*\)|[^\n#]*)", re.M)


class Project:
    """The files of one run.

    Args:
        files: the paths of all of them.
        open_file: reads one and gives what is in it, or ``None`` where it is no Python.
        read_text: its text, or "".

    Attributes:
        asked: the files that were looked into since it was last emptied: what a result depends on.
        missed: whether a name was asked for that none of the files has.
        asked_callers: whether it was asked who imports a name.
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
        self._by_last: dict[str, list[str]] | None = None
        self._open: OrderedDict[str, ModuleWalk | None] = OrderedDict()
        self._opening: set[str] = set()
        self._lines = 0
        self._imported: dict[str, int] | None = None
        self.asked: set[str] = set()
        self.missed = False
        self.asked_callers = False

    def add(self, walk: ModuleWalk) -> None:
        """Keep what is in a file for those who import from it."""
        file = walk.source.path
        if file in self._open:
            return
        self._open[file] = walk
        self._lines += walk.lines
        while self._lines > _MOST_LINES and len(self._open) > 1:
            _, old = self._open.popitem(last=False)
            self._lines -= old.lines if old is not None else 0

    def find(self, name: str, near: str) -> tuple[ModuleWalk, Function | Class] | None:
        """The function or class of a qualified name, through the imports of other files.

        Args:
            name: as the file that uses it imported it: ``package.module.name``.
            near: the path of that file.
        """
        return self._find(name, near, 0)

    def _find(self, name: str, near: str, depth: int) -> tuple[ModuleWalk, Function | Class] | None:
        if depth > 8 or not self._files:
            return None
        parts = name.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            file = self._file(parts[:cut], near)
            if file is None:
                continue
            walk = self.open(file)
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
            return None
        return None

    def open(self, file: str) -> ModuleWalk | None:
        """What is in one of the files; ``None`` where it is no Python, or is being opened."""
        self.asked.add(file)
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
        if self._by_last is None:
            self._by_last = {}
            for file in self._files:
                path = PurePath(file)
                last = path.parent.name if path.stem == "__init__" else path.stem
                self._by_last.setdefault(last, []).append(file)
        found = [file for file in self._by_last.get(parts[-1], ()) if _ends_with(file, parts)]
        if not found:
            # A name of a library is no miss: a new file by that name is unlikely enough.
            self.missed = self.missed or parts[0] not in _LIBRARIES
            return None
        here = PurePath(near).parts
        return max(sorted(found), key=lambda file: _common(PurePath(file).parts, here))

    def is_imported(self, name: str, file: str) -> bool:
        """Whether another of the files imports this name from anywhere."""
        self.asked_callers = True
        if self._imported is None:
            self._imported = {}
            for each in self._files:
                for found in set(_imports_of(self._read_text(each))):
                    self._imported[found] = self._imported.get(found, 0) + 1
        own = name in _imports_of(self._read_text(file))
        return self._imported.get(name, 0) > int(own)


_LIBRARIES = frozenset(
    {
        "torch", "torchvision", "torchaudio", "timm", "transformers", "numpy", "builtins", "os", "sys", "math", "re",
        "typing", "copy", "json", "random", "time", "collections", "itertools", "functools", "pathlib", "logging",
        "argparse", "dataclasses", "warnings", "abc", "contextlib", "inspect", "enum", "tqdm", "sklearn", "scipy", "PIL",
        "pandas", "matplotlib", "lightning", "pytorch_lightning", "accelerate", "torchmetrics", "datasets",
    }
)  # fmt: skip


def _imports_of(text: str) -> set[str]:
    found: set[str] = set()
    for names in _FROM.findall(text):
        found.update(re.findall(r"\w+", names))
    return found


def _ends_with(file: str, parts: list[str]) -> bool:
    path = PurePath(file)
    folders = [*path.parent.parts] if path.stem == "__init__" else [*path.parent.parts, path.stem]
    return folders[-len(parts) :] == parts


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[int, int]:
    same = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        same += 1
    return same, -len(one)
