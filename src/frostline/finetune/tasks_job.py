"""Several tasks on one trunk: every image is read once, runs through the trunk once, and all heads train on that."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from frostline.errors import MissingExtra, TrainingDiverged
from frostline.fast.head_run import HeadEpoch
from frostline.fast.head_task import HeadTask
from frostline.fast.heads import train_heads
from frostline.fast.heads_result import HeadsResult
from frostline.finetune.classifier import BuiltModel, check_width, split_head
from frostline.finetune.config import ConfigError
from frostline.finetune.folder_problem import build, start
from frostline.finetune.image_folder import ImageDataset, cannot_be_read, told_left_out, transforms_for, unreadable
from frostline.finetune.label_file import TaskData, read_labels, sides_of
from frostline.finetune.metrics import EpochRow
from frostline.finetune.progress import Progress, Silent
from frostline.finetune.tasks_config import TasksConfig
from frostline.finetune.tasks_features import TasksFeatures, features_for
from frostline.finetune.tasks_page import tasks_page
from frostline.finetune.tasks_result import TasksResult, certify_tasks
from frostline.heads.initial import new_head
from frostline.json_values import finite
from frostline.report import render_run
from frostline.runs.device import pick_device
from frostline.runs.run_folder import RunFolder, free_folder
from frostline.runs.time_spent import TimeSpent
from frostline.state import names
from frostline.state.held_rows import held_rows
from frostline.state.inventory import inventory
from frostline.state.snapshot import Snapshot, snapshot

MakeFeatures: TypeAlias = Callable[
    [nn.Module, ImageDataset, ImageDataset, TasksConfig, Path, Progress, TimeSpent], TasksFeatures
]


def run_tasks(
    config: TasksConfig,
    out: str | Path | None = None,
    *,
    progress: Progress | None = None,
    features: MakeFeatures = features_for,
) -> TasksResult:
    """Train a head for each task on the features of one trunk, and prove that nothing else moved.

    The trunk is held whole and runs once over the union of the images. Everything that can be refused is refused
    before the run folder is made. The global random state is given back as it was.

    Args:
        config: what to do.
        out: the run folder, which must not exist or be empty; ``None`` takes the next free ``runs/finetune-N``.
        progress: told what happens.
        features: computes the features of the images.

    Raises:
        FrostlineError: of the kind that says what is wrong; see :mod:`frostline.errors`.
    """
    return _TasksJob(config, progress or Silent()).run(out, features)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """All that is known before anything is written."""

    tasks: Mapping[str, TaskData]
    images: list[Path]
    built: BuiltModel
    trunk: nn.Module
    heads: Mapping[str, nn.Linear]
    facts: list[tuple[str, str]]
    notes: list[str]
    warnings: list[str]


class _TasksJob:
    def __init__(self, config: TasksConfig, progress: Progress) -> None:
        self.config = config
        self.progress = progress
        self.spent = TimeSpent()
        self.device = pick_device(config.settings.device)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                f"--task on {os.environ['WORLD_SIZE']} processes: heads train in one.\n"
                "  fix: start it without a launcher"
            )

    def run(self, out: str | Path | None, features: MakeFeatures) -> TasksResult:
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            with self.spent("preparing"):
                ready = self._prepare()
                folder = self._make(out)
            for line in ready.notes:
                self.progress.say(line)
            trunk = ready.trunk.to(self.device)
            before = snapshot(trunk)
            given = self._features(features, ready, folder)
            trained = self._train(folder, ready, given)
            given.discard()
            with self.spent("saving"):
                certificate = certify_tasks(held_rows(before, trunk), ready.tasks, trained)
                folder.write_json("certificate.json", certificate)
                _save_model(folder, ready, trained)
            page = self._page(folder, ready, trained, before, certificate)
            return TasksResult(
                folder.path, ready.tasks, len(ready.images), trained, certificate, page, self.spent.to_json()
            )

    def _prepare(self) -> _Prepared:
        settings = self.config.settings
        files = [read_labels(name, file, settings.data) for name, file in self.config.tasks.items()]
        bad = self._bad(sorted({image for file in files for image in file.images}))
        tasks = {
            file.task: sides_of(file, val_share=settings.val_share, seed=settings.seed, without=bad) for file in files
        }
        built = build(settings, len(next(iter(tasks.values())).classes))
        facts, warned = start(settings, built)
        trunk, old_head = split_head(built)
        heads = {
            name: new_head(old_head, len(data.classes), torch.Generator().manual_seed(settings.seed))
            for name, data in tasks.items()
        }
        check_width(trunk, next(iter(heads.values())), torch.zeros(2, len(built.mean), *built.image_size))
        images = sorted({image for data in tasks.values() for image, _ in (*data.train, *data.val)})
        notes = [note for file in files for note in file.notes] + [*told_left_out(list(bad))]
        return _Prepared(tasks, images, built, trunk, heads, facts, notes, [*warned, *notes])

    def _bad(self, images: list[Path]) -> dict[Path, str]:
        bad = unreadable(images)
        if bad and (len(bad) == len(images) or not self.config.settings.skip_bad_images):
            raise cannot_be_read(bad, len(images), skips=len(bad) < len(images))
        return dict(bad)

    def _make(self, out: str | Path | None) -> RunFolder:
        if out is None:
            out = free_folder("runs/finetune")
            self.progress.say(f"run folder {out}")
        return RunFolder.begin(out, self.config.to_json())

    def _features(self, make: MakeFeatures, ready: _Prepared, folder: RunFolder) -> TasksFeatures:
        built, seed = ready.built, self.config.settings.seed
        plain, augmented = (
            ImageDataset(
                [(image, 0) for image in ready.images],
                transforms_for(built.image_size, built.mean, built.std, train=train),
                seed=seed,
            )
            for train in (False, True)
        )
        self.progress.say(f"reading {len(ready.images):,} images, each once a view, for one run through the trunk")
        with self.spent("prefix"):
            return make(ready.trunk, plain, augmented, self.config, folder.path, self.progress, self.spent)

    def _train(self, folder: RunFolder, ready: _Prepared, given: TasksFeatures) -> HeadsResult:
        settings, place = self.config.settings, {image: index for index, image in enumerate(ready.images)}
        wanted = {
            name: HeadTask(
                [label for _, label in data.train],
                [label for _, label in data.val],
                head=ready.heads[name],
                lr=settings.lr,
                epochs=settings.epochs,
                batch_size=settings.batch_size,
                patience=self.config.patience,
                seed=settings.seed,
                samples=[place[image] for image, _ in data.train],
                val_samples=[place[image] for image, _ in data.val],
            )
            for name, data in ready.tasks.items()
        }

        def note(row: HeadEpoch) -> None:
            with self.spent("saving"):
                folder.append_metrics(finite({**_as_epoch(row).to_json(), "val_loss": row.val_loss}))

        heads = f"{len(wanted)} heads side by side" if len(wanted) > 1 else "1 head"
        epochs = f"{settings.epochs} epoch{'' if settings.epochs == 1 else 's'}"
        self.progress.say(f"training {heads}: {'at most ' * (self.config.patience is not None)}{epochs}")
        with self.spent("head"):
            trained = train_heads(
                given.train, wanted, val=given.val, trunk=ready.trunk, device=self.device, after_epoch=note
            )
        if len(trained.diverged) == len(wanted):
            row = trained.rows[0]
            raise TrainingDiverged(
                f"every head diverged; {row.name!r}: {row.diverged}\n"
                f"  kept: what was measured until then, in {folder.path}\n"
                f"  fix: a smaller learning rate than --lr {settings.lr:g}, or look for broken values in the data"
            )
        return trained

    def _page(
        self, folder: RunFolder, ready: _Prepared, trained: HeadsResult, before: Snapshot, certificate: dict[str, Any]
    ) -> Path | None:
        settings, patience = self.config.settings, self.config.patience
        page = tasks_page(
            title=f"{settings.model} learns {_some(list(ready.tasks))}",
            facts=(
                ("data", f"{len(ready.images):,} images, each read once and run once through the trunk"),
                ("model", ready.built.source),
                *ready.facts,
                ("held of the trunk", "all of it"),
                ("classifier of the model", f"{ready.built.head_path}, in whose place the heads stand"),
                ("epochs", f"{settings.epochs}" if patience is None else f"at most {settings.epochs}"),
                *((("patience", f"{patience} epochs without a better accuracy"),) if patience is not None else ()),
                ("optimizer", f"AdamW, learning rate {settings.lr:g}"),
                ("batch size", str(settings.batch_size)),
                ("seed", str(settings.seed)),
                ("device", str(self.device)),
                ("torch", torch.__version__),
                *((f"time for {name}", f"{seconds:.1f} s") for name, seconds in self.spent.to_json().items()),
            ),
            warnings=tuple(ready.warnings),
            tasks=ready.tasks,
            heads=ready.heads,
            trained=trained,
            before=before,
            certificate=certificate,
            rows=[_as_epoch(row) for row in trained.epochs],
        )
        try:
            folder.write_text("report.html", render_run(page))
        except MissingExtra as error:
            self.progress.say(f"report.html was not written: {error}")
            return None
        return folder.path / "report.html"


def _save_model(folder: RunFolder, ready: _Prepared, trained: HeadsResult) -> None:
    """Write trunk and heads under the names that they have in a :class:`~frostline.tasks.TaskModel`."""
    tensors: dict[str, Tensor] = {
        names.join("trunk", path): entry.value
        for path, entry in inventory(ready.trunk).items()
        if entry.is_tensor and entry.persistent
    }
    classes: dict[str, list[str]] = {}
    for name, head in trained.heads.items():
        # Of a head that diverged there is nothing to keep.
        if name not in trained.diverged:
            tensors |= {names.join("heads", name, path): value for path, value in inventory(head).tensors.items()}
            classes[name] = list(ready.tasks[name].classes)
    metadata = {"format": "pt", "classes": json.dumps(classes, ensure_ascii=False)}
    folder.save_tensors("model.safetensors", tensors, metadata)


def _as_epoch(row: HeadEpoch) -> EpochRow:
    assert row.accuracy is not None, "every task has classes to validate on"
    return EpochRow(row.head, row.epoch, row.epochs, row.loss, row.accuracy, row.seconds)


def _some(tasks: list[str]) -> str:
    return ", ".join(tasks[:4]) + (" ..." if len(tasks) > 4 else "")
