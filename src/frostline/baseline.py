"""A file of findings that are known and put up with, so that only new ones count; pure Python, knows nothing of torch.

Two equal lines of one file give findings of one id, so a baseline counts them: one more of them is new.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from frostline.durable import replace_file, told
from frostline.errors import BaselineError, CorruptBaseline
from frostline.findings import Finding

SCHEMA_VERSION = 1
_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class KnownFinding:
    """One finding that is put up with; all but the id and the count is for people who read the file.

    Attributes:
        id: as :attr:`~frostline.findings.Finding.id`.
        code: the code of its rule.
        where: the dotted path.
        message: what was found then.
        model: the name of the model.
        file: the file of source.
        count: how many findings of this id are known; ``None`` is any number, as in files from before they were
            counted.
    """

    id: str
    code: str
    where: str = ""
    message: str = ""
    model: str = ""
    file: str = ""
    count: int | None = None


@dataclass(frozen=True)
class Split:
    """Findings against a baseline.

    Attributes:
        new: those that it does not have.
        known: those that it has.
        gone: what it has and was not found again; its ``count`` is how many of them.
    """

    new: tuple[Finding, ...]
    known: tuple[Finding, ...]
    gone: tuple[KnownFinding, ...]


@dataclass(frozen=True)
class Baseline:
    """What is known.

    Attributes:
        findings: what is put up with, by code.
    """

    findings: tuple[KnownFinding, ...] = ()

    @staticmethod
    def of(findings: Iterable[Finding]) -> Baseline:
        """A baseline that knows all of these findings.

        Example:
            >>> from frostline.findings import Severity
            >>> Baseline.of([Finding("F107", Severity.ERROR, "3 layers move", "trunk")]).findings[0].code
            'F107'
        """
        found = list(findings)
        counts = Counter(finding.id for finding in found)
        known = {f.id: KnownFinding(f.id, f.code, f.where, f.message, f.model, f.file, counts[f.id]) for f in found}
        return Baseline(tuple(sorted(known.values(), key=lambda one: (one.code, one.file, one.where, one.id))))

    @property
    def ids(self) -> frozenset[str]:
        """The ids that it knows."""
        return frozenset(one.id for one in self.findings)

    def split(self, findings: Sequence[Finding]) -> Split:
        """Tell new findings from known ones; both keep their order.

        Of findings with one id as many are known as were counted, the first ones.

        Example:
            >>> from frostline.findings import Severity
            >>> old, new = (Finding(code, Severity.ERROR, "it moves", "trunk") for code in ("F106", "F107"))
            >>> [f.code for f in Baseline.of([old]).split([old, new, old]).new]
            ['F107', 'F106']
        """
        counted = {one.id: one.count for one in self.findings}
        found: Counter[str] = Counter()
        new: list[Finding] = []
        known: list[Finding] = []
        for finding in findings:
            most = counted.get(finding.id, 0)
            is_known = most is None or found[finding.id] < most
            found[finding.id] += 1
            (known if is_known else new).append(finding)
        gone = (_left(one, found[one.id]) for one in self.findings)
        return Split(new=tuple(new), known=tuple(known), gone=tuple(one for one in gone if one is not None))


def _left(one: KnownFinding, found: int) -> KnownFinding | None:
    """What was not found again of a known finding."""
    if one.count is None:
        return None if found else one
    return replace(one, count=one.count - found) if found < one.count else None


def write_baseline(path: Path, findings: Iterable[Finding]) -> Baseline:
    """Write a baseline of these findings; the same findings give the same bytes.

    A file that was there is replaced whole, or stays as it was if anything goes wrong.

    Args:
        path: the file.
        findings: all that is to be put up with.

    Returns:
        What was written.

    Raises:
        CannotWrite: it cannot be written.
        StorageFull: there is no space left.
    """
    baseline = Baseline.of(findings)
    data = {"schema_version": SCHEMA_VERSION, "findings": [asdict(one) for one in baseline.findings]}
    content = (json.dumps(data, indent=2, ensure_ascii=True) + "\n").encode()
    with told(path, len(content), "  what was there before is kept\n  fix: free some space, and write it again"):
        replace_file(path, content)
    return baseline


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        CorruptBaseline: it is damaged.
        BaselineError: there is no such file, or it is of another version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BaselineError(
            f"there is no baseline {path}\n  fix: write one first, with --write-baseline {path}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise _damaged(path, f"it holds a {type(data).__name__} where an object is expected")
    fields = cast("dict[str, Any]", data)
    version = fields.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise BaselineError(
            f"the baseline {path} cannot be used\n  expected schema_version: {SCHEMA_VERSION}\n"
            f"  found:                   {version!r}\n  fix: write it anew, with --write-baseline {path}"
        )
    rows = fields.get("findings")
    if not isinstance(rows, list):
        raise _damaged(path, "it has no list of findings")
    return Baseline(tuple(_known(path, number, row) for number, row in enumerate(cast("list[Any]", rows), start=1)))


def _known(path: Path, number: int, row: object) -> KnownFinding:
    fields = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
    if not isinstance(fields.get("id"), str) or not _ID.fullmatch(fields["id"]):
        raise _damaged(path, f"finding {number} has no id of twelve hexadecimal digits")
    count = fields.get("count")
    if count is not None and (type(count) is not int or count < 1):
        raise _damaged(path, f"the count of finding {number} is {count!r}")
    names = ("id", "code", "where", "message", "model", "file")
    return KnownFinding(**{name: str(fields.get(name, "")) for name in names}, count=count)


def _damaged(path: Path, why: str) -> CorruptBaseline:
    return CorruptBaseline(
        f"the baseline {path} cannot be read: {why}\n"
        f"  fix: restore it from version control, or write it anew with --write-baseline {path}"
    )
