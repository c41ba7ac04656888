"""What the linter is told: its defaults, ``[tool.frostline.lint]`` in ``pyproject.toml``, and the command line."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from frostline.errors import LintSettingsError, name_some, printable
from frostline.extras import require
from frostline.lint.gitignore import git_root

OUTPUT_FORMATS = ("concise", "full", "json", "sarif", "github")

# Folders in which nobody's own code lies: of version control, environments, caches and builds.
DEFAULT_EXCLUDE = (
    ".bzr",
    ".direnv",
    ".eggs",
    ".frostline_cache",
    ".git",
    ".hg",
    ".ipynb_checkpoints",
    ".mypy_cache",
    ".nox",
    ".pixi",
    ".pyenv",
    ".pytest_cache",
    ".ruff_cache",
    ".svn",
    ".tox",
    ".venv",
    ".vscode",
    "__pycache__",
    "__pypackages__",
    "_build",
    "build",
    "dist",
    "node_modules",
    "site-packages",
    "venv",
)

_TABLE = "tool.frostline.lint"


@dataclass(frozen=True)
class Settings:
    """How to lint. Globs are those of :class:`~frostline.lint.globs.Globs`.

    Attributes:
        select: codes of rules, or their first characters, or ``ALL``; every rule by default.
        ignore: codes or their first characters that are left out.
        extend_select: more of the kind of ``select``.
        exclude: globs of files and folders that are left out, instead of :data:`DEFAULT_EXCLUDE`.
        extend_exclude: more of them; none by default.
        respect_gitignore: whether what git ignores is left out.
        per_file_ignores: glob to the codes that are left out in files that it fits; none by default.
        baseline: file of known findings, which are not told again; none by default.
        output_format: one of :data:`OUTPUT_FORMATS`; ``full`` shows the lines.
        cache_dir: folder where results are kept; ``None`` is ``.frostline_cache`` in the root.
        unsafe_fixes: whether fixes that may change what a program computes are offered and made.
        root: the folder that globs are relative to: the one of the file with the settings, or the working directory.
        file: the file with the settings; ``None`` where there is none.
        origins: field to the place that set it, as errors name it: ``option --select``.
    """

    select: tuple[str, ...] = ("ALL",)
    ignore: tuple[str, ...] = ()
    extend_select: tuple[str, ...] = ()
    exclude: tuple[str, ...] = DEFAULT_EXCLUDE
    extend_exclude: tuple[str, ...] = ()
    respect_gitignore: bool = True
    per_file_ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    baseline: Path | None = None
    output_format: str = "full"
    cache_dir: Path | None = None
    unsafe_fixes: bool = False
    root: Path = field(default_factory=Path.cwd)
    file: Path | None = None
    origins: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)

    @property
    def cache_folder(self) -> Path:
        """Where results are kept."""
        return self.cache_dir or self.root / ".frostline_cache"

    def origin(self, name: str) -> str:
        """The place that set a field, as errors name it."""
        return self.origins.get(name, f"the default of {_kebab(name)}")

    def overridden(self, **values: Any) -> Settings:
        """The same settings with values of the command line, each in place of the file's.

        Args:
            **values: a field each; ``None`` and an empty list were not given. Globs in ``exclude`` and
                ``extend_exclude`` that hold a separator are relative to the working directory.

        Raises:
            LintSettingsError: the output format does not exist.
            TypeError: there is no such field.
        """
        given = {name: value for name, value in values.items() if value is not None and value not in ((), [], {})}
        for name in ("select", "ignore", "extend_select", "exclude", "extend_exclude"):
            if name in given:
                given[name] = tuple(given[name])
        for name in ("exclude", "extend_exclude"):
            if name in given:
                given[name] = tuple(map(_from_here, given[name]))
        origins = {name: f"option --{_kebab(name)}" for name in given}
        if "output_format" in given:
            _output_format(given["output_format"], origins["output_format"])
        return replace(self, **given, origins={**self.origins, **origins})


def read_settings(start: Path) -> Settings:
    """The settings that hold for a folder or file.

    They stand in the nearest ``pyproject.toml`` that has a table ``[tool.frostline.lint]``, looked for from ``start``
    upwards, no further than the root of its git repository. Without one they are the defaults.

    Args:
        start: a folder, or a file in it.

    Raises:
        LintSettingsError: the file cannot be read, is not TOML, or has a key that does not exist or a value of the
            wrong type. A file in which the name Frostline does not occur is not looked into.
        MissingExtra: Python is older than 3.11 and ``tomli`` is not installed.
    """
    folder = Path(os.path.abspath(start))
    if not folder.is_dir():
        folder = folder.parent
    top = git_root(folder)
    for each in (folder, *folder.parents):
        found = _read(each / "pyproject.toml")
        if found is not None:
            return found
        if each == top:
            break
    return Settings()


def read_settings_file(file: Path) -> Settings | None:
    """The settings in one file, whatever it is called; ``None`` where it has no table ``[tool.frostline.lint]``.

    Args:
        file: in TOML; one that does not exist has none.

    Raises:
        LintSettingsError: as for :func:`read_settings`.
        MissingExtra: likewise.
    """
    return _read(Path(os.path.abspath(file)))


def _read(file: Path) -> Settings | None:
    """The settings in one file; ``None`` where it has none."""
    try:
        raw = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise LintSettingsError(f"{_shown(file)} cannot be read: {error.strerror}") from None
    # Most projects say nothing about Frostline, and reading TOML takes its time.
    if b"frostline" not in raw:
        return None
    table: Any = _parsed(raw, file)
    for key in _TABLE.split("."):
        table = cast("dict[str, Any]", table).get(key) if isinstance(table, dict) else None
    if table is None:
        return None
    if not isinstance(table, dict):
        raise _wrong(f"{_shown(file)}, key {_TABLE}", table, "a table")
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value in cast("dict[str, Any]", table).items():
        if key not in _READERS:
            near = get_close_matches(key.replace("_", "-"), _READERS, n=3, cutoff=0.5)
            raise LintSettingsError(
                f"{_shown(file)} sets {_TABLE}.{printable(key)}, which does not exist\n"
                f"  {'near' if near else 'there are'}: {name_some(near or sorted(_READERS), most=len(_READERS))}"
            )
        name = key.replace("-", "_")
        origins[name] = f"{_shown(file)}, key {_TABLE}.{key}"
        read = _READERS[key](value, origins[name])
        values[name] = file.parent / read if isinstance(read, Path) else read
    return Settings(**values, root=file.parent, file=file, origins=origins)


def _parsed(raw: bytes, file: Path) -> dict[str, Any]:
    toml: Any
    if sys.version_info >= (3, 11):
        import tomllib as toml
    else:
        toml = require("tomli", extra="cli", purpose="Reading pyproject.toml on Python 3.10")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise LintSettingsError(f"{_shown(file)} is not UTF-8: line {line}") from None
    try:
        return toml.loads(text)
    except toml.TOMLDecodeError as error:
        message = str(error)
        at = re.search(r" \(at line (\d+), column (\d+)\)$", message)
        # What is never closed is noticed at the end of the file.
        line = int(at[1]) if at is not None else text.count("\n") + (not text.endswith("\n"))
        why = re.sub(r" \(at [^()]*\)$", "", message)
        raise LintSettingsError(f"{_shown(file)} is not valid TOML: line {line}: {printable(why)}") from None


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in cast("list[Any]", value)):
        raise _wrong(where, value, "a list of strings")
    return tuple(cast("list[str]", value))


def _table_of_strings(value: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise _wrong(where, value, "a table of globs, each with codes")
    rows = cast("dict[str, Any]", value)
    return {key: _strings(each, f'{where}."{printable(key)}"') for key, each in rows.items()}


def _switch(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, value, "true or false")
    return value


def _path(value: Any, where: str) -> Path:
    if not isinstance(value, str) or not value:
        raise _wrong(where, value, "a path")
    return Path(value)


def _output_format(value: Any, where: str) -> str:
    if value not in OUTPUT_FORMATS:
        raise _wrong(where, value, f"one of {', '.join(OUTPUT_FORMATS)}")
    return value


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "select": _strings,
    "ignore": _strings,
    "extend-select": _strings,
    "exclude": _strings,
    "extend-exclude": _strings,
    "respect-gitignore": _switch,
    "per-file-ignores": _table_of_strings,
    "baseline": _path,
    "output-format": _output_format,
    "cache-dir": _path,
    "unsafe-fixes": _switch,
}


def _wrong(where: str, value: Any, wanted: str) -> LintSettingsError:
    return LintSettingsError(f"{where}: found {printable(repr(value))[:80]}, expected {wanted}")


def _from_here(pattern: str) -> str:
    """A glob of the command line: with a separator it is relative to the working directory."""
    if "/" not in pattern.replace(os.sep, "/").rstrip("/") or os.path.isabs(pattern):
        return pattern
    return os.path.join(glob.escape(os.getcwd()), os.path.normpath(pattern))


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _shown(file: Path) -> str:
    """A path as it is printed: from the working directory on, where it lies there."""
    try:
        return printable(str(file.relative_to(Path.cwd())))
    except ValueError:
        return printable(str(file))
