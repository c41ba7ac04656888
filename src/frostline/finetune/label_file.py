"""Labels in a CSV file, and what of them trains and validates.

Knows text, paths and classes; opens no image and knows nothing of models.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from frostline.errors import CorruptData, DataError, name_some, printable
from frostline.finetune.image_folder import MOST_NAMES, Sample

COLUMNS = "image,label or image,label,split"
SIDES = ("train", "val")


@dataclass(frozen=True)
class LabelRow:
    """One image with its label.

    Attributes:
        image: the file.
        label: the name of its class.
        side: ``train`` or ``val``; empty where the file does not say.
        line: where it stands, counted from 1.
    """

    image: Path
    label: str
    side: str
    line: int


@dataclass(frozen=True)
class LabelFile:
    """What a CSV file of labels says.

    Attributes:
        task: the name of the task.
        path: the file.
        rows: one for each image, in the order of the file.
        notes: what a reader should know, a sentence each.
    """

    task: str
    path: Path
    rows: tuple[LabelRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[Path, ...]:
        """Its images."""
        return tuple(row.image for row in self.rows)


@dataclass(frozen=True)
class TaskData:
    """What of a task trains and what validates.

    Attributes:
        classes: names of the classes, sorted; a label is an index into them.
        train: (path, label) of each training image.
        val: the same for validation.
    """

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]

    @property
    def largest_class(self) -> float:
        """The share of the validation images that belong to their largest class: what always naming it would get."""
        labels = [label for _, label in self.val]
        return max(labels.count(label) for label in range(len(self.classes))) / len(labels)


def read_labels(task: str, path: str | os.PathLike[str], data: str | os.PathLike[str] | None = None) -> LabelFile:
    """Read a CSV file of labels: UTF-8, with or without a byte order mark, with any line ends.

    Its first line names the columns: ``image`` and ``label``, and ``split`` where it says what trains (``train``) and
    what validates (``val``). Images are looked for in ``data`` first, then beside the CSV file. A row that says the
    same as one before it counts once.

    Args:
        task: what the labels are of.
        path: the file.
        data: the folder of the images.

    Raises:
        DataError: there is no such file, it has no header, a row is incomplete or contradicts another one, or an image
            is not there.
        CorruptData: it is no text.
    """
    path = Path(path)
    if data is not None and not Path(data).is_dir():
        found = "is a file" if Path(data).exists() else "does not exist"
        raise DataError(f"the data folder {data} {found}\n  fix: --data with the folder that images are relative to")
    lines = _lines(task, path)
    columns, extra = _columns(task, path, lines[0][1])
    places = [Path(data), path.parent] if data is not None else [path.parent]
    rows: dict[Path, LabelRow] = {}
    wrong: list[str] = []
    missing: list[str] = []
    repeated = 0
    for line, cells in lines[1:]:
        row = _row(cells, columns, len(lines[0][1]), places, line)
        if isinstance(row, str):
            wrong.append(f"line {line}: {row}")
            continue
        before = rows.get(row.image)
        if not row.image.is_file():
            missing.append(f"line {line}: {printable(cells[columns['image']].strip())}")
        elif before is None:
            rows[row.image] = row
        elif (before.label, before.side) == (row.label, row.side):
            repeated += 1
        else:
            wrong.append(
                f"line {line}: {printable(row.image.name)} is {_said(row)}, and in line {before.line} {_said(before)}"
            )
    if wrong:
        raise DataError(_listed(f"{path} has rows that cannot be used", wrong, "one row for each image, with a label"))
    if missing:
        looked = " and ".join(str(place) for place in dict.fromkeys(places))
        raise DataError(
            _listed(
                f"{len(missing)} of the images in {path} are not there",
                missing,
                f"paths relative to one of the folders that were looked in: {looked}",
            )
        )
    if not rows:
        raise DataError(f"{path} has a header and no rows\n  expected: {COLUMNS}\n  fix: one row for each image")
    with_side = sum(bool(row.side) for row in rows.values())
    if 0 < with_side < len(rows):
        lines_without = [str(row.line) for row in rows.values() if not row.side]
        raise DataError(
            f"{path} has rows with a split and rows without one, line {name_some(lines_without)}\n"
            "  fix: train or val in every row, or in none"
        )
    notes = [f"{path.name}: passing over the columns {name_some(extra)}"] if extra else []
    notes += [f"{path.name}: {repeated} rows say what another one says, and count once"] if repeated else []
    return LabelFile(task, path, tuple(rows.values()), tuple(notes))


def sides_of(file: LabelFile, *, val_share: float, seed: int, without: Collection[Path] = ()) -> TaskData:
    """Say what trains and what validates; where the file does not say, a share of each class, drawn from the seed.

    Args:
        file: the labels.
        val_share: the share of each class that validates: at least one image, and at least one is left to train.
        seed: seeds that split; the order of the rows does not count.
        without: images to leave out.

    Raises:
        DataError: there is one class, or a class has nothing to train on or nothing to validate on.
    """
    kept = sorted((row for row in file.rows if row.image not in set(without)), key=lambda row: row.image)
    classes = tuple(sorted({row.label for row in file.rows}))
    if len(classes) == 1:
        raise DataError(
            f"{file.path} has one class, {classes[0]!r}: there is nothing to tell apart\n  fix: rows of another class"
        )
    by_class = {name: [row for row in kept if row.label == name] for name in classes}
    if any(row.side for row in kept):
        sides = {side: {n: [r.image for r in rows if r.side == side] for n, rows in by_class.items()} for side in SIDES}
    else:
        sides = _drawn(by_class, val_share, seed)
    for side, verb in zip(SIDES, ("train", "validate"), strict=True):
        lacking = [name for name, images in sides[side].items() if not images]
        if lacking:
            left_out = " that can be read" if without else ""
            raise DataError(
                f"{file.path} has nothing{left_out} to {verb} on for {name_some(lacking)}\n"
                "  expected: at least one image of each class to train on and one to validate on\n"
                "  fix: more rows of that class, or leave it out"
            )
    train, val = (
        tuple((image, label) for label, name in enumerate(classes) for image in sides[side][name]) for side in SIDES
    )
    return TaskData(classes, train, val)


def _drawn(rows: Mapping[str, Sequence[LabelRow]], share: float, seed: int) -> dict[str, dict[str, list[Path]]]:
    generator = torch.Generator().manual_seed(seed)
    sides: dict[str, dict[str, list[Path]]] = {side: {} for side in SIDES}
    for name, own in rows.items():
        # A class of one image validates nothing, which is refused.
        count = min(max(1, round(share * len(own))), len(own) - 1) if own else 0
        order = torch.randperm(len(own), generator=generator).tolist()
        sides["val"][name] = [own[index].image for index in sorted(order[:count])]
        sides["train"][name] = [own[index].image for index in sorted(order[count:])]
    return sides


def _lines(task: str, path: Path) -> list[tuple[int, list[str]]]:
    """The rows with their numbers, blank ones left out; at least one."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"--task {task}={path}: it {found}\n  fix: a CSV file with the columns {COLUMNS}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except UnicodeDecodeError as error:
        raise CorruptData(
            f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}\n"
            "  fix: save it as UTF-8 (in a spreadsheet: CSV UTF-8)"
        ) from error
    except csv.Error as error:
        raise CorruptData(f"{path} is no CSV file: {error}\n  fix: a CSV file with the columns {COLUMNS}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}\n  fix: make it readable") from error
    if not lines:
        raise DataError(f"{path} is empty\n  fix: a first line {COLUMNS}, then one row for each image")
    return lines


def _columns(task: str, path: Path, header: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Where the columns stand, and the others."""
    titles = [cell.strip().lower() for cell in header]
    known = [name for name in ("image", "label", "split") if name in titles]
    twice = [name for name in known if titles.count(name) > 1]
    if not {"image", "label"} <= set(known) or twice:
        found = printable(",".join(header))
        parted = next((name for mark, name in ((";", "semicolons"), ("\t", "tabs")) if mark in ",".join(header)), None)
        fix = f"commas between the columns instead of {parted}" if parted else "add that line"
        raise DataError(
            f"--task {task}={path}: the first line has to name the columns{', each once' if twice else ''}\n"
            f"  expected: {COLUMNS}\n  found: {found[:100]}\n  fix: {fix}"
        )
    return {name: titles.index(name) for name in known}, [printable(t) for t in titles if t not in known]


def _row(cells: list[str], columns: dict[str, int], width: int, places: list[Path], line: int) -> LabelRow | str:
    """A row, or what is wrong with it."""
    if len(cells) != width:
        return f"{len(cells)} columns instead of {width} (a comma in a name needs quotes around it)"
    image, label = cells[columns["image"]].strip(), cells[columns["label"]].strip()
    side = cells[columns["split"]].strip().lower() if "split" in columns else ""
    if not image or not label:
        return f"no {'label' if image else 'image'}"
    if side and side not in SIDES:
        return f"the split {printable(side)!r}, which is neither train nor val"
    found = [place / image for place in places if (place / image).is_file()]
    # One file has one name here, so that the same image in two tasks is read once.
    return LabelRow(
        Path(os.path.normpath(Path(found[0] if found else places[0] / image).absolute())), label, side, line
    )


def _said(row: LabelRow) -> str:
    return f"{row.label!r}" + (f" ({row.side})" if row.side else "")


def _listed(what: str, lines: Sequence[str], fix: str) -> str:
    rest = [f"(+{len(lines) - MOST_NAMES} more)"] if len(lines) > MOST_NAMES else []
    return "\n  ".join([what, *lines[:MOST_NAMES], *rest, f"fix: {fix}"])
