"""Which files are linted: those that were named, and the Python files and notebooks in folders that were named."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from frostline.errors import LintSettingsError, name_some, printable
from frostline.lint.diagnostic import Failure
from frostline.lint.gitignore import GitIgnore
from frostline.lint.globs import Globs
from frostline.lint.settings import Settings

# Stubs (.pyi) hold no statements that could be wrong.
ENDINGS = (".py", ".ipynb")


@dataclass(frozen=True)
class FoundFile:
    """A file to lint.

    Attributes:
        path: absolute; symbolic links in it are kept.
        name: how it is printed: from the working directory on where it lies there, absolute otherwise.
    """

    path: Path
    name: str


def find_files(paths: Sequence[Path], settings: Settings) -> tuple[list[FoundFile], list[Failure]]:
    """Look for what is to be linted.

    A file that is named is taken, whatever its ending and whatever is excluded. A folder that is named is looked into,
    even if an exclude or git leaves it out or it lies in such a folder; what is excluded below it is left out. Every
    file is taken once: symbolic links are followed after all else, to places that were not seen; a link that leads
    nowhere is passed over.

    Args:
        paths: files and folders.
        settings: what is excluded.

    Returns:
        The files, and the folders that cannot be read, both in the order of their names, which does not depend on the
        order of ``paths``.

    Raises:
        LintSettingsError: a path does not exist.
        MissingExtra: a ``.gitignore`` with wildcards was met, and ``pathspec`` is not installed.
    """
    search = _Search(settings)
    places = sorted({os.path.abspath(path) for path in paths})
    # Of two names for the same thing, the one that is no link is printed.
    for place in sorted(places, key=os.path.islink):
        search.start(place)
    search.follow_links()
    return (
        sorted(search.files, key=lambda found: found.name),
        sorted(search.failures, key=lambda failure: failure.file),
    )


@dataclass(frozen=True)
class _Folder:
    """A folder that is still to be looked into, with what holds there."""

    path: str
    git: GitIgnore
    exclude: Globs


class _Search:
    """What has been found so far."""

    def __init__(self, settings: Settings) -> None:
        self.files: list[FoundFile] = []
        self.failures: list[Failure] = []
        self._exclude = Globs((*settings.exclude, *settings.extend_exclude), settings.root)
        self._respect_gitignore = settings.respect_gitignore
        self._seen: set[tuple[int, int]] = set()
        self._links: list[tuple[str, _Folder]] = []
        here = os.getcwd()
        self._front = here if here.endswith(os.sep) else here + os.sep

    def start(self, place: str) -> None:
        """Take what the user has named."""
        try:
            status = os.stat(place)
        except (FileNotFoundError, NotADirectoryError):
            raise LintSettingsError(_missing(place, self._name(place))) from None
        except OSError as error:
            self._fail(place, error)
            return
        if stat.S_ISDIR(status.st_mode):
            git = GitIgnore.of(Path(place)) if self._respect_gitignore else GitIgnore()
            self._walk(_Folder(place, git, self._exclude.without(place)))
        elif stat.S_ISREG(status.st_mode):
            self._take(place, (status.st_dev, status.st_ino))
        else:
            # A pipe would be waited for.
            self.failures.append(Failure(self._name(place), "not a regular file"))

    def follow_links(self) -> None:
        """Take what symbolic links lead to; those that are met on the way, too."""
        while self._links:
            batch, self._links = sorted(self._links, key=lambda link: link[0]), []
            for path, folder in batch:
                try:
                    status = os.stat(path)
                except OSError:
                    continue
                if stat.S_ISREG(status.st_mode) and path.endswith(ENDINGS):
                    self._take(path, (status.st_dev, status.st_ino))
                elif stat.S_ISDIR(status.st_mode):
                    name = os.path.basename(path)
                    self._walk(_Folder(path, self._git_below(folder.git, name, path), folder.exclude))

    def _walk(self, top: _Folder) -> None:
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            try:
                status = os.stat(folder.path)
                if (key := (status.st_dev, status.st_ino)) in self._seen:
                    continue
                self._seen.add(key)
                with os.scandir(folder.path) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self._fail(folder.path, error)
                continue
            for entry in found:
                is_folder = entry.is_dir(follow_symlinks=False)
                is_link = not is_folder and entry.is_symlink()
                if not (is_folder or is_link or entry.name.endswith(ENDINGS)):
                    continue
                if folder.exclude.match(entry.path) or folder.git.ignores(entry.name, is_folder=is_folder):
                    continue
                if is_link:
                    self._links.append((entry.path, folder))
                elif is_folder:
                    git = self._git_below(folder.git, entry.name, entry.path)
                    waiting.append(_Folder(entry.path, git, folder.exclude))
                elif entry.is_file(follow_symlinks=False):
                    self._take(entry.path, (status.st_dev, entry.inode()))

    def _git_below(self, git: GitIgnore, name: str, path: str) -> GitIgnore:
        return git.below(name, path) if self._respect_gitignore else git

    def _take(self, path: str, key: tuple[int, int]) -> None:
        if key not in self._seen:
            self._seen.add(key)
            self.files.append(FoundFile(Path(path), self._name(path)))

    def _fail(self, path: str, error: OSError) -> None:
        why = error.strerror or type(error).__name__
        self.failures.append(Failure(self._name(path), why[:1].lower() + why[1:]))

    def _name(self, path: str) -> str:
        if path + os.sep == self._front:
            return "."
        return path.removeprefix(self._front)


def _missing(place: str, name: str) -> str:
    """What to say of a path that does not exist: what its folder holds instead."""
    folder = Path(place).parent
    while not folder.is_dir():
        place, folder = str(folder), folder.parent
    missing = os.path.basename(place)
    head = f"there is no file or folder {printable(name)!r}"
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return f"{head}\n  {printable(str(folder))} cannot be read: {error.strerror}"
    near = get_close_matches(missing, names, n=8, cutoff=0.6)
    listed = f"near: {name_some(near)}" if near else f"it holds: {name_some(names) or 'nothing'}"
    return f"{head}\n  {printable(str(folder))} has no {printable(missing)!r}; {listed}"
