"""The run folder: what a run leaves behind, written so that a kill or a full disk costs the last step at most.

Knows names, JSON and tensors; knows nothing of models or training. One process writes it: under several, the main one.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from frostline import durable
from frostline.errors import CorruptCheckpoint, RunFolderError, name_some
from frostline.runs.tensor_file import read_tensor_file, serialize

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
NEWEST = 2
_CHECKPOINT = re.compile(r"(\d{6,})\.([\w.-]+)\.safetensors")


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint of a run.

    Attributes:
        name: the name it was saved under.
        path: its file.
        tensors: its tensors, on the CPU.
        metadata: what was saved beside them.
        skipped: newer checkpoints that could not be read, each with the reason.
    """

    name: str
    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    skipped: tuple[str, ...]


class RunFolder:
    """A folder that holds one run; made by :meth:`create` or :meth:`open`.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._writes = False

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Make the folder for a new run, with the folders above it. An empty one is taken as it is.

        Raises:
            RunFolderError: something is there already; it is left alone.
            StorageFull: there is no space for it.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise RunFolderError(f"the output folder {run.path} is a file\n  fix: another folder with --out")
        if run.path.is_dir():
            # What a run leaves that was killed before it wrote its configuration does not count.
            found = sorted(entry.name for entry in run.path.iterdir() if not _is_leftover(entry))
            if CONFIG in found:
                raise RunFolderError(
                    f"the output folder {run.path} already holds a run\n  found: {name_some(found)}\n"
                    f"  fix: another folder with --out, or go on with that run: --resume {run.path}"
                )
            if found:
                raise RunFolderError(
                    f"the output folder {run.path} already holds other files\n  found: {name_some(found)}\n"
                    "  fix: another folder with --out"
                )
            return run
        with run._telling(run.path, 0):
            run.path.mkdir(parents=True, exist_ok=True)
        return run

    @classmethod
    def begin(cls, path: str | os.PathLike[str], config: object) -> RunFolder:
        """Make the folder for a new run with its configuration. Where that cannot be written, no folder is left.

        Raises:
            RunFolderError: something is there already; it is left alone.
            StorageFull: there is no space for it.
        """
        was_there = Path(path).exists()
        run = cls.create(path)
        try:
            run.write_json(CONFIG, config)
        except BaseException:
            if not was_there:
                with suppress(OSError):
                    run.path.rmdir()
            raise
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, asked: str = "--resume") -> RunFolder:
        """Open the folder of a run that is to go on, or to be looked at.

        Nothing is written. What a kill left half-written is passed over, and removed by the first write: so processes
        that only read do not get in the way of the one that writes.

        Args:
            path: the folder.
            asked: the option that named it, for messages.

        Raises:
            RunFolderError: it holds no run.
        """
        run = cls(path)
        if not (run.path / CONFIG).is_file():
            if not run.path.exists():
                found = "does not exist"
            elif run.path.is_dir():
                found = f"has no {CONFIG}"
            else:
                found = "is a file"
            raise RunFolderError(
                f"no run{' to resume' if asked == '--resume' else ''}: {run.path} {found}\n"
                f"  fix: {asked} with the --out folder of an earlier run"
            )
        return run

    def write_json(self, name: str, value: object) -> Path:
        """Write a value as JSON, whole or not at all.

        Raises:
            ValueError: it holds NaN or an infinite number, which JSON has no words for.
            StorageFull: there is no space; what was there before is kept.
        """
        return self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run.

        Raises:
            RunFolderError: it is not there, or is no JSON.
        """
        path = self._inside(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise self._lacks(name) from None
        except ValueError as error:
            raise RunFolderError(f"{path} is no JSON: {error}\n  fix: restore it, or start a new run") from error

    def write_text(self, name: str, text: str) -> Path:
        """Write a text as UTF-8, whole or not at all.

        Raises:
            StorageFull: there is no space; what was there before is kept.
        """
        return self._write(self._inside(name), text.encode())

    def append_metrics(self, row: Mapping[str, object]) -> None:
        """Add a row to the metrics. A kill loses no row; a power cut none that is older than the last checkpoint.

        Raises:
            ValueError: it holds NaN or an infinite number.
            StorageFull: there is no space; the rows before are kept.
        """
        self._begin_writing()
        path = self.path / METRICS
        line = _line(row)
        with self._telling(path, len(line)):
            durable.append_file(path, line)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the rows in the order they were added; half a row at the end, from a kill, is passed over.

        Raises:
            RunFolderError: a row is no JSON object.
        """
        path = self.path / METRICS
        if not path.exists():
            return []
        rows: list[dict[str, Any]] = []
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise RunFolderError(
                    f"line {number} of {path} is no JSON object: {line[:40]!r}\n  fix: remove that line"
                )
            rows.append(cast("dict[str, Any]", row))
        return rows

    def truncate_metrics(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Leave only the rows that ``keep`` accepts, such as those before the checkpoint that is resumed from.

        Raises:
            StorageFull: there is no space; all rows are kept.
        """
        rows = self.read_metrics()
        kept = [row for row in rows if keep(row)]
        if len(kept) < len(rows):
            self._write(self.path / METRICS, b"".join(_line(row) for row in kept))

    def save_tensors(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
        """Write tensors as safetensors, whole or not at all.

        Tensors may share memory, lie on any device and be strided; each is stored by itself. They are only read.

        Args:
            name: the file's name.
            tensors: under their names.
            metadata: what is stored beside them; a digest of the tensors is added.

        Raises:
            StorageFull: there is no space; what was there before is kept.
        """
        return self._write(self._inside(name), serialize(tensors, metadata))

    def load_tensors(self, name: str) -> dict[str, Tensor]:
        """Read the tensors of a file that :meth:`save_tensors` wrote, on the CPU.

        Raises:
            RunFolderError: it is not there.
            CorruptCheckpoint: it is cut short, or its tensors are not those that were saved.
        """
        path = self._inside(name)
        if not path.is_file():
            raise self._lacks(name)
        return read_tensor_file(path)[0]

    def save_checkpoint(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, keep: Collection[str] = ()
    ) -> Path:
        """Write a checkpoint, then remove all but the newest two.

        Args:
            name: what it is called; it may be used again, and then is a new checkpoint.
            tensors: as for :meth:`save_tensors`.
            metadata: the same.
            keep: names whose newest checkpoint is kept too, however old it is.

        Returns:
            The file, ``checkpoints/NUMBER.NAME.safetensors``; numbers go up.

        Raises:
            StorageFull: there is no space; all checkpoints are kept.
        """
        folder = self.path / CHECKPOINTS
        before = self._checkpoints()
        number = before[0][0] + 1 if before else 1
        path = folder / f"{number:06}.{name}.safetensors"
        if _CHECKPOINT.fullmatch(path.name) is None:
            raise ValueError(f"{name!r} is no name for a checkpoint: letters, digits, dots and dashes are")
        content = serialize(tensors, metadata)
        with self._telling(path, len(content)):
            folder.mkdir(exist_ok=True)
            # Rows that a checkpoint refers to reach the disk before it does.
            durable.sync_file(self.path / METRICS)
        self._write(path, content)

        kept_names: set[str] = set()
        for position, (_, old_name, old) in enumerate(self._checkpoints()):
            newest_of_name = old_name in keep and old_name not in kept_names
            kept_names.add(old_name)
            if position >= NEWEST and not newest_of_name:
                old.unlink(missing_ok=True)
        return path

    def latest_checkpoint(self) -> SavedCheckpoint | None:
        """Read the newest checkpoint that can be read, or say that there is none.

        Returns:
            The checkpoint; ``skipped`` names newer ones that are damaged. ``None`` before the first one.

        Raises:
            CorruptCheckpoint: there are checkpoints, and all are damaged.
        """
        skipped: list[str] = []
        for _, name, path in self._checkpoints():
            try:
                tensors, metadata = read_tensor_file(path)
            except CorruptCheckpoint as error:
                skipped.append(f"{path.name}: {str(error).splitlines()[1].strip()}")
                continue
            return SavedCheckpoint(name, path, tensors, metadata, tuple(skipped))
        if skipped:
            raise CorruptCheckpoint(
                f"no checkpoint in {self.path / CHECKPOINTS} can be read\n  "
                + "\n  ".join(skipped)
                + "\n  fix: restore one of them, or start a new run with another --out"
            )
        return None

    def checkpoint(self, name: str) -> SavedCheckpoint:
        """Read the newest checkpoint of a name.

        Raises:
            RunFolderError: there is none.
            CorruptCheckpoint: it is damaged.
        """
        for _, found, path in self._checkpoints():
            if found == name:
                return SavedCheckpoint(name, path, *read_tensor_file(path), ())
        raise RunFolderError(
            f"the run in {self.path} has no checkpoint {name!r}\n"
            f"  found: {name_some(self.checkpoint_names()) or 'none'}\n  fix: start a new run with another --out"
        )

    def checkpoint_names(self) -> list[str]:
        """The file names of the checkpoints, the newest last; nothing is read."""
        return [path.name for _, _, path in reversed(self._checkpoints())]

    def _checkpoints(self) -> list[tuple[int, str, Path]]:
        """Number, name and file of each checkpoint, the newest first."""
        folder = self.path / CHECKPOINTS
        found: list[tuple[int, str, Path]] = []
        for path in folder.iterdir() if folder.is_dir() else ():
            match = _CHECKPOINT.fullmatch(path.name)
            if match:
                found.append((int(match[1]), match[2], path))
        return sorted(found, reverse=True)

    def _write(self, path: Path, content: bytes) -> Path:
        self._begin_writing()
        with self._telling(path, len(content)):
            durable.replace_file(path, content)
        return path

    @contextmanager
    def _telling(self, path: Path, size: int) -> Generator[None, None, None]:
        """Say what to do about a disk that is full, and about a folder that must not be written."""
        try:
            yield
        except OSError as error:
            full = durable.storage_full(error, path, size, self._advice())
            if full is not None:
                raise full from error
            if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}:
                raise RunFolderError(
                    f"{path} cannot be written: {error.strerror}\n  fix: another folder with --out"
                ) from error
            raise

    def _advice(self) -> str:
        checkpoints = self._checkpoints()
        if not checkpoints:
            return "  kept: no checkpoint, because none was written yet\n  fix: free space there, then start again"
        return (
            f"  kept: the last good checkpoint, {checkpoints[0][2].name}\n"
            f"  fix: free space there, then continue with --resume {self.path}"
        )

    def _inside(self, name: str) -> Path:
        if name in {"", ".."} or Path(name).name != name:
            raise ValueError(f"{name!r} is no plain file name; a run's files lie in its folder itself")
        return self.path / name

    def _lacks(self, name: str) -> RunFolderError:
        return RunFolderError(f"the run in {self.path} has no {name}\n  fix: resume it, so that it is written")

    def _begin_writing(self) -> None:
        """Remove, once, what an earlier process left half-written."""
        if self._writes:
            return
        self._writes = True
        for folder in (self.path, self.path / CHECKPOINTS):
            for entry in folder.iterdir() if folder.is_dir() else ():
                if durable.is_partial(entry):
                    entry.unlink(missing_ok=True)
        durable.drop_torn_line(self.path / METRICS)


def _line(row: Mapping[str, object]) -> bytes:
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _is_leftover(entry: Path) -> bool:
    if entry.name == CHECKPOINTS and entry.is_dir():
        return all(durable.is_partial(inner) for inner in entry.iterdir())
    return durable.is_partial(entry)


def free_folder(stem: str) -> str:
    """The first of ``STEM-1``, ``STEM-2`` ... that does not exist.

    Example:
        >>> free_folder("no/such/run")
        'no/such/run-1'
    """
    return next(name for number in itertools.count(1) if not Path(name := f"{stem}-{number}").exists())
