"""A new classifier on the user's images, with the trunk and the classifier it came with held."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from frostline.checkpoint.plan_load import plan_load
from frostline.errors import RandomStart
from frostline.finetune.checkpointed_model import fit_head
from frostline.finetune.classifier import BuiltModel, check_width, split_head
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.image_folder import FolderData, ImageDataset, scan_folder, told_left_out, transforms_for
from frostline.finetune.models import build_model
from frostline.finetune.problem import Phase, Problem, held_part
from frostline.finetune.strategy import told_of_epochs
from frostline.heads.initial import new_head
from frostline.state import names
from frostline.state.inventory import inventory
from frostline.state.selection import exactly
from frostline.tasks.task_model import TaskModel

ORIGINAL = "original"


def folder_problem(config: FinetuneConfig) -> Problem:
    """Build the model, find the images, and put a new head beside the one that the model came with.

    Raises:
        DataError: the folder cannot be used.
        ModelError: the model cannot be built, or its head does not fit.
        CheckpointError: the checkpoint to start from does not fit.
        NothingSelected: a selector matches nothing in the trunk.
    """
    assert config.data is not None
    assert config.model is not None
    data = scan_folder(
        config.data, val_share=config.val_share, seed=config.seed, skip_bad_images=config.skip_bad_images
    )
    built = build(config, len(data.classes))
    facts, told = start(config, built)
    trunk, old_head = split_head(built)
    new = new_head(old_head, len(data.classes), torch.Generator().manual_seed(config.seed))
    check_width(trunk, new, torch.zeros(2, len(built.mean), *built.image_size))
    task = task_name(config.data)
    model = TaskModel(trunk, {ORIGINAL: old_head, task: new})
    held = held_part(model.trunk, config.freeze, config.strategy)
    notes = (
        *told_left_out([path.relative_to(data.root) for path, _ in data.bad]),
        *told_of_epochs(config.strategy, config.epochs),
    )
    train, val = _datasets(config, built, data)
    return Problem(
        title=f"{config.model} learns {', '.join(data.classes[:4])}{' ...' if len(data.classes) > 4 else ''}",
        model=model,
        phases=(Phase(task, config.epochs, config.lr, held, train, val, config.strategy),),
        probe=val,
        probe_heads=(task,),
        facts=(
            (
                "data",
                f"{len(data.train):,} images to train, {len(data.val):,} to validate, {len(data.classes)} classes",
            ),
            ("model", built.source),
            *facts,
            ("strategy", config.strategy),
            ("held of the trunk", ", ".join(config.freeze) or ("all of it" if held else "nothing")),
            ("head", f"{built.head_path}: {old_head.out_features} classes, kept as {ORIGINAL!r}; {task!r} is new"),
        ),
        warnings=(*told, *notes),
        export=lambda trained: _export(trained, built.head_path, task),
        notes=notes,
        heads={task: (built.head_path, tuple(data.classes))},
        load=_loading(config, built.head_path, len(data.classes)),
    )


def task_name(folder: str) -> str:
    """The name of a task from the folder of its images; a dot would be taken for a path.

    Example:
        >>> task_name("data/bees.v2/")
        'bees_v2'
        >>> task_name("data/train")
        'train_new'
    """
    name = re.sub(r"\W+", "_", Path(folder).resolve().name).strip("_") or "images"
    # A ModuleDict, which holds the heads, takes no name that it has a meaning for itself: "train" is one of them.
    return f"{name}_new" if name == ORIGINAL or hasattr(nn.ModuleDict(), name) else name


def build(config: FinetuneConfig, classes: int) -> BuiltModel:
    """Build the model that was asked for; its random weights come from the seed alone.

    Raises:
        ModelError: it cannot be built.
    """
    assert config.model is not None
    # Random weights come from torch's global generator, which is given back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return build_model(config.model, num_classes=classes, pretrained=config.pretrained, head=config.head)


def start(config: FinetuneConfig, built: BuiltModel) -> tuple[list[tuple[str, str]], list[str]]:
    """Load the checkpoint to start from, if one was given.

    Returns:
        Facts, and what a reader should be warned of.

    Raises:
        CheckpointError: the checkpoint does not fit.

    Warns:
        RandomStart: the weights are random.
    """
    if config.init is not None:
        fits = fit_head(built, Path(config.init))
        report = plan_load(built.model, config.init, keep=() if fits else exactly(built.head_path)).apply()
        return [("started from", report.summary)], []
    if not built.random_weights:
        return [], []
    told = "the trunk has random weights: neither --init nor --pretrained was given, so what is held was never trained"
    warnings.warn(told, RandomStart, stacklevel=2)
    return [("started from", "random weights")], [told]


def _datasets(config: FinetuneConfig, built: BuiltModel, data: FolderData) -> tuple[ImageDataset, ImageDataset]:
    def dataset(samples: tuple[tuple[Path, int], ...], *, train: bool) -> ImageDataset:
        transform = transforms_for(built.image_size, built.mean, built.std, train=train)
        return ImageDataset(samples, transform, seed=config.seed)

    return dataset(data.train, train=True), dataset(data.val, train=False)


def _loading(config: FinetuneConfig, head_path: str, classes: int) -> str:
    """The Python that loads the model that :func:`_export` gives."""
    library, _, name = str(config.model).partition("/")
    if config.head is None and library == "timm":
        return f"timm.create_model({name!r}, num_classes={classes}, checkpoint_path=FILE)"
    load = "model.load_state_dict(safetensors.torch.load_file(FILE))"
    if config.head is None and library == "torchvision":
        return f"model = torchvision.models.get_model({name!r}, num_classes={classes}); {load}"
    return f"{load}, where model is {config.model} with {classes} outputs at {head_path}"


def _export(trained: TaskModel, head_path: str, task: str) -> dict[str, Tensor]:
    """The model as its library builds it with this number of classes: the new head stands where the old one stood."""
    tensors = {p: e.value for p, e in inventory(trained.trunk).items() if e.is_tensor and e.persistent}
    head = inventory(trained.heads[task]).tensors
    return {**tensors, **{names.join(head_path, name): value for name, value in head.items()}}
