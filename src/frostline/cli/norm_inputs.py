"""What ``diagnose`` and ``recalibrate`` take in: common options, a model with its weights, batches of folders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from frostline.cli.completion import among, models
from frostline.cli.console import ERRORS, say
from frostline.cli.usage import one_of
from frostline.errors import FrostlineError
from frostline.extras import require

if TYPE_CHECKING:  # importing them would import torch, and `--help` should not wait for that
    from frostline.finetune.checkpointed_model import LoadedModel
    from frostline.finetune.evaluation_data import Batches, ImageFolder, Pixels

FORMS = "timm/NAME, torchvision/NAME or package.module:factory."

Model: TypeAlias = Annotated[str, typer.Argument(help=FORMS, metavar="MODEL", autocompletion=models)]
Checkpoint: TypeAlias = Annotated[
    Path | None, typer.Option(help="The weights; never run as code. Not needed where a factory loads them.")
]
BatchSize: TypeAlias = Annotated[int, typer.Option(help="Images a batch, as in training.", min=2)]
ImageSize: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Side of the images; what the model says by default. Others are resized and cropped.", min=1),
]
Mean: TypeAlias = Annotated[
    str | None, typer.Option(help="Of pixels in 0..1, such as 0.5,0.5,0.5; the model's or ImageNet's by default.")
]
Std: TypeAlias = Annotated[str | None, typer.Option(help="Likewise for the standard deviation.")]
Augment: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Of training images, as the checkpoint was trained: crop (a random part, mirrored), shift (by an eighth, "
        "mirrored) or none. auto is crop where images are resized, else none.",
        autocompletion=among("auto|crop|shift|none"),
    ),
]
Limit: TypeAlias = Annotated[
    int | None, typer.Option(help="Take so many images of each folder, chosen at random.", min=2)
]
Seed: TypeAlias = Annotated[int, typer.Option(help="Of the order of the images.", min=0)]
Device: TypeAlias = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Workers: TypeAlias = Annotated[int, typer.Option(help="Processes that decode images.", min=0)]
SkipBadImages: TypeAlias = Annotated[
    bool, typer.Option("--skip-bad-images", help="Leave out images that cannot be read, and count them.")
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Html: TypeAlias = Annotated[Path | None, typer.Option(help="Write a report as one HTML file.", metavar="FILE")]


class Passes:
    """Shows on standard error how far a pass over the data is, where that is a terminal.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            TextColumn("batch {task.completed:.0f} of {task.total:.0f}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal or console.is_dumb_terminal,
        )
        self._task: TaskID | None = None
        self._what = ""

    def __enter__(self) -> Passes:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt:
            ERRORS.print("stopped; nothing was written", soft_wrap=True)
            raise typer.Exit(130)

    def named(self, name: str, _batch: int) -> None:
        """A batch of the pass of this name was seen."""
        self._what = f", {name}"

    def went_on(self, data: str, done: int, batches: int) -> None:
        """So many batches of this data are done in the current pass."""
        if self._task is None:
            self._task = self._bar.add_task(data, total=batches)
        self._bar.update(self._task, description=f"{data}{self._what}", completed=done, total=batches)
        if done == batches:
            self._what = ""


class Inputs:
    """A model and folders of images that go into it.

    Args:
        model: its name.
        checkpoint: its weights.
        folders: by the name of what they are, such as ``data``: option and folder, and more.
        labelled: which of them need labels.
        instead: the option that goes without labels.
        only_if: they do so only where this one of them has class folders.

    Attributes:
        measurable: whether what needs labels has them, in the model's own classes.
    """

    def __init__(
        self,
        model: str,
        checkpoint: Path | None,
        folders: Mapping[str, tuple[str, Path]],
        *,
        labelled: Sequence[str],
        only_if: str | None = None,
        instead: str,
        batch_size: int,
        image_size: int | None,
        mean: str | None,
        std: str | None,
        augment: str,
        limit: int | None,
        seed: int,
        device: str,
        workers: int,
        skip_bad_images: bool,
        passes: Passes,
    ) -> None:
        from frostline.finetune.checkpointed_model import count_outputs, load_model
        from frostline.finetune.evaluation_data import AUGMENTATIONS, Pixels, common_classes, read_image_folder
        from frostline.runs.device import pick_device

        if augment not in ("auto", *AUGMENTATIONS):
            raise FrostlineError(f"--augment {augment}: unknown.\n  fix: {one_of(augment, ('auto', *AUGMENTATIONS))}")
        given_mean, given_std = figures_of(mean, "--mean"), figures_of(std, "--std", positive=True)
        where = pick_device(device)
        self.folders: dict[str, ImageFolder] = {
            name: read_image_folder(root, option=option, limit=limit, seed=seed, skip_bad_images=skip_bad_images)
            for name, (option, root) in folders.items()
        }
        known = {each for folder in self.folders.values() for each in folder.classes}
        self.loaded: LoadedModel = load_model(model, checkpoint, num_classes=len(known) or 2)
        self.loaded.model.to(where)
        side = (image_size, image_size) if image_size is not None else self.loaded.image_size
        self.pixels: Pixels = Pixels.for_images(
            list(self.folders.values()), side, given_mean or self.loaded.mean, given_std or self.loaded.std
        )
        outputs = count_outputs(self.loaded.model, side)
        if only_if is not None and not self.folders[only_if].classes:
            labelled = ()
        wanted = [self.folders[name] for name in labelled]
        having = [folder for folder in self.folders.values() if folder.classes or folder in wanted]
        self.measurable = bool(wanted)
        self._classes = common_classes(having, outputs, instead=instead) if wanted else tuple(sorted(known))
        self.augmentation = augment if augment != "auto" else "none" if self.pixels.as_they_are else "crop"
        self.device = where
        self._options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "listener": passes.went_on}

    def batches(self, name: str, *, training: bool = False) -> Batches:
        """The batches of one folder, augmented if it is of training images."""
        from frostline.finetune.evaluation_data import Batches

        folder = self.folders[name]
        transform = self.pixels.training(self.augmentation) if training else self.pixels.evaluation()
        classes = self._classes if folder.classes else None
        return Batches(folder, transform, classes=classes, name=name, **self._options)

    def facts(self, training: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
        """What went in, in words; ``training`` names the folders that are augmented."""
        height, width = self.pixels.size
        small = max((max(size) for folder in self.folders.values() for size in folder.sizes), default=0)
        smaller = small < min(height, width)
        enlarged = f"; enlarged from {small}: --image-size {small}, if the model was trained so" if smaller else ""
        return (
            ("model", self.loaded.source),
            *((name, folder.described()) for name, folder in self.folders.items()),
            ("images", self.pixels.described() + enlarged),
            *((("augmentation", f"{self.augmentation}, of {' and '.join(training)}"),) if training else ()),
            ("batch size", str(self._options["batch_size"])),
            ("device", str(self.device)),
        )

    def to_json(self) -> dict[str, Any]:
        """The same as JSON-ready values."""
        start = self.loaded.start
        return {
            "model": self.loaded.name,
            "checkpoint": None if start is None else {"path": str(start.path), "summary": start.summary},
            "folders": {
                name: {"path": str(f.root), "images": len(f.images), "classes": len(f.classes), "left_out": len(f.bad)}
                for name, f in self.folders.items()
            },
            "image_size": list(self.pixels.size),
            "mean": list(self.pixels.mean),
            "std": list(self.pixels.std),
            "augmentation": self.augmentation,
            "batch_size": self._options["batch_size"],
            "device": str(self.device),
        }


def figures_of(text: str | None, option: str, *, positive: bool = False) -> tuple[float, ...] | None:
    """Three figures, or one for all three channels.

    Example:
        >>> figures_of("0.5", "--mean"), figures_of(None, "--mean")
        ((0.5, 0.5, 0.5), None)
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in {1, 3} or not all(map(math.isfinite, values)) or (positive and min(values) <= 0):
        what = "positive numbers" if positive else "numbers"
        raise FrostlineError(f"{option} {text}: not one or three {what}.\n  fix: {option} 0.5,0.5,0.5, for example")
    return values if len(values) == 3 else values * 3


def domains_of(given: Sequence[str]) -> dict[str, tuple[str, Path]]:
    """``NAME=FOLDER`` by name, each with the option that gave it.

    Example:
        >>> domains_of(["photo=a", "sketch=b"])["photo"][1].name
        'a'
    """
    found: dict[str, tuple[str, Path]] = {}
    for each in given:
        name, equals, folder = each.partition("=")
        if not (name and equals and folder):
            raise FrostlineError(f"--domain {each}: not NAME=FOLDER.\n  fix: --domain {name or 'photo'}=FOLDER")
        if name in found:
            raise FrostlineError(
                f"--domain {name} was given twice: {found[name][1]} and {folder}.\n  fix: another name for one of them"
            )
        found[name] = (f"--domain {name}=", Path(folder))
    if len(found) == 1:
        raise FrostlineError(
            f"--domain {given[0]}: a single domain, and there is nothing to tell it from.\n"
            "  fix: a second --domain, or pass its folder as --data"
        )
    return found


def check_page(file: Path | None) -> None:
    """See that a report can be written, before anything is measured."""
    if file is None:
        return
    if file.suffix.lower() not in {".html", ".htm"}:
        raise FrostlineError(f"--html {file}: no name of an HTML file.\n  fix: --html {file.stem or 'report'}.html")
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder" if file.is_dir() else f"the folder {file.parent} does not exist"
        raise FrostlineError(f"--html {file}: {what}.\n  fix: a file in a folder that exists")
    for package in ("jinja2", "matplotlib"):
        require(package, extra="report", purpose="--html")


def write_page(file: Path, text: str) -> None:
    """Write a report, whole or not at all."""
    from frostline.durable import replace_file, told

    content = text.encode()
    with told(file, len(content), "  fix: free some space, or leave out --html"):
        replace_file(file, content)


def columns(facts: Sequence[tuple[str, str]]) -> list[str]:
    """Names and values, one under the other.

    Example:
        >>> columns([("data", "7 images"), ("device", "cpu")])
        ['data    7 images', 'device  cpu']
    """
    width = max((len(name) for name, _ in facts), default=0)
    return [f"{name:<{width}}  {value}" for name, value in facts]


def show(lines: Sequence[object]) -> None:
    """Print lines to standard output, and what prints itself as lines."""
    say(*lines)
