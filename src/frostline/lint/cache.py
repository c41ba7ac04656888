"""What was found in files before, as long as neither they nor what they depend on have changed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import frostline
from frostline.durable import replace_file
from frostline.lint.diagnostic import Diagnostic, Failure
from frostline.lint.project import Dependencies, name_of
from frostline.lint.stored import diagnostic_from, diagnostic_to, failure_from, failure_to

_SCHEMA = 2
_FILE = "lint.json"


@dataclass
class Result:
    """What was found in one file, and what that rests on.

    Attributes:
        digest: of its content.
        diagnostics: what all rules found.
        failure: why it could not be linted.
        lines: how many it has.
        depends: what else it rests on.
    """

    digest: str
    diagnostics: list[Diagnostic] = field(default_factory=list)
    failure: Failure | None = None
    lines: int = 0
    depends: Dependencies = field(default_factory=Dependencies)


class Cache:
    """Results of earlier runs. A cache that is damaged, of another version, or cannot be written is as none.

    What is found depends on the content of a file, on the rules, and on the files it imports from; a result is used
    only while all of these are the same.

    Args:
        folder: where it lies; ``None`` keeps nothing.
        digests: the content of each file of this run, by its name; "" of those that cannot be read.
    """

    def __init__(self, folder: Path | None, digests: Mapping[str, str]) -> None:
        self._folder = folder
        self._digests = digests
        self._by_name: dict[str, list[str]] = {}
        for name in sorted(digests):
            self._by_name.setdefault(name_of(name), []).append(name)
        self._all = digest("\n".join(f"{name} {digests[name]}" for name in sorted(digests)).encode())
        self._here = str(Path.cwd())
        self._entries: dict[str, Any] = self._read()
        self._changed = False

    def get(self, name: str) -> Result | None:
        """What is known of a file; ``None`` if it has to be linted."""
        entry = self._entries.get(self._key(name))
        if not isinstance(entry, dict):
            return None
        try:
            if not self._holds(name, cast("dict[str, Any]", entry)):
                return None
            return Result(
                digest=entry["digest"],
                diagnostics=[diagnostic_from(each, name) for each in entry["diagnostics"]],
                failure=failure_from(entry["failure"], name) if entry["failure"] else None,
                lines=int(entry["lines"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def _holds(self, name: str, entry: dict[str, Any]) -> bool:
        return (
            entry["digest"] == self._digests[name] != ""
            and all(self._digests.get(each) == before for each, before in entry["asked"].items())
            and all(self._files_called(each) == before for each, before in entry["names"].items())
            and entry["all"] in ("", self._all)
        )

    def put(self, name: str, result: Result) -> None:
        """Keep what was found in a file."""
        self._changed = True
        self._entries[self._key(name)] = {
            "digest": result.digest,
            "diagnostics": [diagnostic_to(each) for each in result.diagnostics],
            "failure": failure_to(result.failure) if result.failure is not None else None,
            "lines": result.lines,
            "asked": {each: self._digests.get(each, "") for each in sorted(result.depends.files)},
            "names": {each: self._files_called(each) for each in sorted(result.depends.names)},
            "all": self._all if result.depends.callers else "",
        }

    def _files_called(self, name: str) -> str:
        """Which files have a name; most names are those of libraries, and none has."""
        files = self._by_name.get(name)
        return digest("\n".join(files).encode()) if files else ""

    def write(self) -> None:
        """Write it, if anything changed; files that are gone are forgotten."""
        if self._folder is None or not self._changed:
            return
        kept = {key: entry for key, entry in self._entries.items() if self._is_there(key)}
        data = {"schema": _SCHEMA, "version": _version(), "entries": kept}
        # Without it everything is only slower.
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            ignored = self._folder / ".gitignore"
            if not ignored.exists():
                ignored.write_text("*\n", encoding="ascii")
            content = json.dumps(data, separators=(",", ":")).encode()
            replace_file(self._folder / _FILE, f"{digest(content)}\n".encode() + content)

    def _key(self, name: str) -> str:
        # What is printed depends on the working directory, and so do names.
        return f"{self._here}\0{name}"

    def _is_there(self, key: str) -> bool:
        here, _, name = key.partition("\0")
        return (here == self._here and name in self._digests) or (Path(here) / name).is_file()

    def _read(self) -> dict[str, Any]:
        if self._folder is None:
            return {}
        try:
            told, _, content = (self._folder / _FILE).read_bytes().partition(b"\n")
            # A single letter of it that is another one could make a finding disappear.
            data = json.loads(content) if told.decode() == digest(content) else None
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(data, dict) or data.get("schema") != _SCHEMA or data.get("version") != _version():  # pyright: ignore[reportUnknownMemberType]
            return {}
        entries = cast("dict[str, Any]", data).get("entries")
        return cast("dict[str, Any]", entries) if isinstance(entries, dict) else {}


def digest(data: bytes) -> str:
    """The digest of a content.

    Example:
        >>> digest(b"") == digest(b""), digest(b"a") == digest(b"b")
        (True, False)
    """
    return blake2b(data, digest_size=16).hexdigest()


@lru_cache(maxsize=1)
def _version() -> str:
    """Of the rules and of Python, whose parser decides what a file means."""
    parts = [frostline.__version__, ".".join(map(str, sys.version_info[:3]))]
    here = Path(__file__).parent
    # In a checkout the rules change while the version does not.
    parts += [f"{path.name} {path.stat().st_mtime_ns}" for path in sorted(here.rglob("*.py"))]
    return digest("\n".join(parts).encode())
