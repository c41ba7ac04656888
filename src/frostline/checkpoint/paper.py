"""A plan on paper: JSON that says for each tensor where it comes from, and for which files that was found out."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline.checkpoint.opened import Checkpoint
from frostline.checkpoint.operations import Operation
from frostline.checkpoint.plan import LOADED, ON_PURPOSE, SCHEMA_VERSION, LoadPlan, Row
from frostline.durable import replace_file, told
from frostline.errors import CheckpointError, name_some, printable


@dataclass(frozen=True)
class PlanOnPaper:
    """A plan as it was written down.

    Attributes:
        text: all of it, as one line of JSON.
        name: what the checkpoint was called.
        model: the class of the model.
        complete: whether everything was accounted for.
        rows: its rows, at most one for each entry of the model.
        take: what was taken of the checkpoint.
        stripped: wrapper names that were taken out.
        sha256: hash of each file that it is for, by name; empty where nothing says so.
    """

    text: str
    name: str
    model: str
    complete: bool
    rows: tuple[Row, ...]
    take: str | None
    stripped: tuple[str, ...]
    sha256: Mapping[str, str]


def save_plan(plan: LoadPlan, path: str | os.PathLike[str]) -> None:
    """Write a plan as JSON, with the hashes of the files that it is for; whole or not at all."""
    content = {**plan.to_json(), "sha256": {file.name: _sha256(file) for file in plan.source.files}}
    text = json.dumps(content, indent=1) + "\n"
    with told(Path(path), len(text), "  fix: free some space, or another file"):
        replace_file(Path(path), text.encode())


def read_plan(path: str | os.PathLike[str]) -> PlanOnPaper:
    """Read what :func:`save_plan` wrote.

    Raises:
        CheckpointError: it does not exist, or is no plan of this version.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        # What is there already is no plan, and not to be replaced by one.
        fix = f"frostline plan ... -o {'FILE' if os.path.exists(path) else path}"
        raise CheckpointError(f"the plan {path} cannot be read: {error}\n  fix: {fix}") from error
    return plan_told(text, str(path))


def plan_told(text: str, where: str) -> PlanOnPaper:
    """A plan out of its JSON text.

    Raises:
        CheckpointError: it is none of this version.
    """
    try:
        data = _is(json.loads(text), dict)
        if data["schema_version"] != SCHEMA_VERSION:
            raise CheckpointError(
                f"the plan in {where} is of another version than {SCHEMA_VERSION}: "
                f"{printable(str(data['schema_version']))[:40]}\n  fix: plan again"
            )
        rows = tuple(_row(_is(each, dict)) for each in _is(data["rows"], list))
        twice = [name for name, count in Counter(row.target for row in rows if row.target).items() if count > 1]
        if twice:
            raise CheckpointError(f"the plan in {where} has several rows for {name_some(twice)}\n  fix: one for each")
        return PlanOnPaper(
            text=json.dumps(data),
            name=_is(data["source"]["name"], str),
            model=_is(data["model"], str),
            complete=_is(data["complete"], bool),
            rows=rows,
            take=_is(data["asked"]["take"], str, type(None)),
            stripped=tuple(_is(each, str) for each in _is(data["source"]["stripped"], list)),
            sha256={name: _is(hashed, str) for name, hashed in _is(data.get("sha256", {}), dict).items()},
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{where} holds no plan: {type(error).__name__}: {printable(str(error))[:200]}\n"
            "  fix: frostline plan ... -o FILE"
        ) from error


def _row(data: Mapping[str, Any]) -> Row:
    """A row of which nothing is taken on trust: anyone can write a plan, also into a header."""
    values = dict(data)
    for name in ("verdict", "confidence", "why"):
        _is(values[name], str)
    for name in ("target", "source", "dtype_source", "dtype_target"):
        _is(values[name], str, type(None))
    values["operations"] = tuple(
        Operation(_is(each["name"], str), _is(each["arguments"], dict)) for each in _is(data["operations"], list)
    )
    for side in ("shape_source", "shape_target"):
        sizes = _is(data[side], list, type(None))
        values[side] = None if sizes is None else tuple(_is(n, int) for n in sizes)
    row = Row(**values)
    if not (row.is_in_the_way or row.verdict.partition(":")[0] in {*LOADED, *ON_PURPOSE}):
        raise ValueError(f"a verdict {row.verdict!r}")
    if row.target == "" or (row.is_loaded and None in (row.target, row.source, row.shape_target)):
        raise ValueError(f"a row is {row.verdict} and does not say from where to where")
    return row


def _is(value: Any, *types: type) -> Any:
    if not isinstance(value, types):
        raise TypeError(f"{type(value).__name__} where {' or '.join(each.__name__ for each in types)} should be")
    return value


def check_same_files(told: PlanOnPaper, checkpoint: Checkpoint, where: str) -> None:
    """Do nothing if a checkpoint is the one that a plan is for.

    Raises:
        CheckpointError: a file is another one, or is not there.
    """
    # By content: the file may have another name by now.
    here = {_sha256(file) for file in checkpoint.files} if told.sha256 else set[str]()
    differing = [name for name, hashed in told.sha256.items() if hashed not in here]
    if differing:
        raise CheckpointError(
            f"{where} was made for another checkpoint than {checkpoint.title}\n"
            f"  differing: {name_some(differing)}\n  fix: plan again, with this one"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        hashed = hashlib.sha256()
        while piece := stream.read(2**20):
            hashed.update(piece)
    return hashed.hexdigest()
