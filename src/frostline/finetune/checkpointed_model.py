"""A model by name with the weights of a checkpoint, all of them; and the way back into a file.

The classifier is as wide as the checkpoint's, so that nothing is left out and nothing stays random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from frostline.checkpoint.container import WRAPPER_TOKENS
from frostline.checkpoint.load_report import LoadReport
from frostline.checkpoint.opened import open_checkpoint
from frostline.checkpoint.plan_load import plan_load
from frostline.checkpoint.stored import StoredTensor
from frostline.durable import replace_file, told
from frostline.errors import ModelError, name_some
from frostline.finetune.classifier import BuiltModel, first_line
from frostline.finetune.factory import call_factory
from frostline.finetune.models import IMAGENET_MEAN, IMAGENET_SIZE, IMAGENET_STD, build_model
from frostline.heads.initial import new_head
from frostline.norms.scores import logits_of
from frostline.norms.untouched import untouched
from frostline.runs.tensor_file import serialize
from frostline.state import names
from frostline.state.inventory import inventory

# A factory is asked for this many classes first, and the checkpoint then says which widths follow that number.
_ASKED = 7


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be looked at.

    Attributes:
        model: the model, on the CPU, in the mode in which it was built.
        name: what it was asked for by.
        image_size: height and width in pixels that it expects.
        mean: what its input is normalized with, one figure for each channel.
        std: the same for the standard deviation.
        source: where model and weights come from, in words.
        start: what was loaded; ``None`` without a checkpoint.
    """

    model: nn.Module
    name: str
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    start: LoadReport | None


def load_model(
    name: str, checkpoint: Path | None, *, num_classes: int = 2, random_weights: bool = False
) -> LoadedModel:
    """Build a model, and give it every parameter and every buffer of a checkpoint.

    Models of timm and torchvision get a classifier of the width that the checkpoint has; a factory that takes
    ``num_classes`` is called with the number that makes the checkpoint fit. torch's global generator is given back as
    it was.

    Args:
        name: ``timm/NAME``, ``torchvision/NAME`` or ``package.module:factory``.
        checkpoint: the file; ``None`` takes the weights that the factory left.
        num_classes: what a factory is called with where there is no checkpoint.
        random_weights: random weights will do.

    Raises:
        ModelError: the model cannot be built, or has random weights and they will not do.
        CheckpointError: the checkpoint does not fit.
    """
    built = build_to_fit(name, checkpoint, num_classes=num_classes)
    if checkpoint is None:
        if built.random_weights and not random_weights:
            raise ModelError(
                f"{name} was built with random weights, of which there is nothing to say\n  fix: --checkpoint FILE"
            )
        return LoadedModel(built.model, name, built.image_size, built.mean, built.std, built.source, None)
    # Who looks for what is wrong with a model has to be able to load it.
    start = plan_load(built.model, checkpoint, accept_suspect="*").apply()
    return LoadedModel(built.model, name, built.image_size, built.mean, built.std, f"{name}, {start.summary}", start)


def build_to_fit(
    name: str,
    checkpoint: Path | None,
    *,
    num_classes: int = 2,
    take: str | None = None,
    width: int | None = None,
    allow_pickle: bool = False,
) -> BuiltModel:
    """Build a model, with a classifier as wide as the one that a checkpoint has in its place; nothing is loaded.

    Args:
        name: as in :func:`load_model`.
        checkpoint: the file; with ``None`` models of timm and torchvision keep the classifier that they come with.
        num_classes: what a factory is called with where no checkpoint tells another width.
        take: the part of the checkpoint that is wanted.
        width: of the classifier, whatever the checkpoint has.
        allow_pickle: run whatever code the checkpoint brings.

    Raises:
        ModelError: the model cannot be built, or no width makes the checkpoint's classifier fit.
        CheckpointError: the checkpoint cannot be used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if _is_factory(name):
            given = (None, width) if width is not None else (checkpoint, num_classes)
            return _from_factory(name, *given, take, allow_pickle=allow_pickle)
        built = build_model(name, num_classes=width or num_classes, pretrained=False)
        if width is not None:
            _widen(built, width)
        elif checkpoint is not None:
            fit_head(built, checkpoint, take, allow_pickle=allow_pickle)
        return built


def fit_head(built: BuiltModel, checkpoint: Path, take: str | None = None, *, allow_pickle: bool = False) -> bool:
    """Give a model a classifier of the width that a checkpoint has one for.

    Returns:
        Whether the checkpoint has a classifier at the model's place for it.

    Raises:
        ModelError: the checkpoint's classifier takes features of another width.
    """
    tensors = _tensors(built.model, checkpoint, take, allow_pickle=allow_pickle)
    own = f"{built.head_path}.weight"
    weight = tensors.get(own)
    if weight is None:
        # Behind a prefix, as Lightning writes it; plans find the prefix, and need the width first.
        inner = [tensor for name, tensor in tensors.items() if name.endswith(f".{own}")]
        if len(inner) != 1 or len(inner[0].shape) != 2 or inner[0].shape[1] != built.in_features:
            return False
        weight = inner[0]
    if len(weight.shape) != 2 or weight.shape[1] != built.in_features:
        raise ModelError(
            f"the classifier of {checkpoint} does not fit the model\n"
            f"  expected: {built.head_path}.weight with {built.in_features} columns\n"
            f"  found: shape {weight.shape}\n"
            "  fix: the model that the checkpoint was made with"
        )
    _widen(built, weight.shape[0])
    return True


def count_outputs(model: nn.Module, image_size: tuple[int, int], channels: int = 3) -> int | None:
    """How many classes a model tells apart: the width of its logits for two blank images. Nothing of it is changed.

    Returns:
        The number; ``None`` where the model gives no logits of shape (N, classes).

    Raises:
        ModelError: the model does not run on images of this size.

    Example:
        >>> count_outputs(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (2, 2))
        5
    """
    blank = torch.zeros(2, channels, *image_size, device=next((p.device for p in model.parameters()), None))
    with untouched(model) as root:
        try:
            logits = logits_of(root(blank))
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise ModelError(
                f"the model cannot run on a batch of images of shape {tuple(blank.shape)}\n"
                f"  found: {type(error).__name__}: {first_line(error)}\n"
                "  fix: --image-size N, if it takes images of another size"
            ) from error
    return logits.shape[1] if logits is not None and logits.ndim == 2 and logits.shape[1] > 1 else None


def save_model(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write every parameter and persistent buffer as a safetensors file, whole or not at all; the model is only read.

    Raises:
        StorageFull: there is no space left; what was there before is still there.
        CannotWrite: it cannot be written for another reason.
    """
    content = serialize(
        {name: entry.value for name, entry in inventory(model).items() if entry.is_tensor and entry.persistent},
        {"format": "pt", **metadata},
    )
    with told(path, len(content), "  fix: free some space, or another --out"):
        replace_file(path, content)


def _widen(built: BuiltModel, width: int) -> None:
    """Give the model a classifier of this width, if its own has another."""
    head = built.model.get_submodule(built.head_path)
    assert isinstance(head, nn.Linear)
    if head.out_features != width:
        owner = built.model.get_submodule(names.parent(built.head_path))
        setattr(owner, built.head_path.rpartition(".")[2], new_head(head, width, torch.Generator()))


def _is_factory(name: str) -> bool:
    return ":" in name and not name.startswith(("timm/", "torchvision/"))


def _from_factory(
    name: str, checkpoint: Path | None, num_classes: int, take: str | None, *, allow_pickle: bool
) -> BuiltModel:
    """Call the factory; it need not have a Linear classifier, because nothing is put in its place."""
    model, told = call_factory(name, num_classes if checkpoint is None else _ASKED)
    if checkpoint is not None and told:
        wanted = _wanted_classes(model, _tensors(model, checkpoint, take, allow_pickle=allow_pickle), checkpoint)
        model = model if wanted is None else call_factory(name, wanted)[0]
    source = f"{name}, weights as the factory left them"
    return BuiltModel(model, "", 0, IMAGENET_SIZE, IMAGENET_MEAN, IMAGENET_STD, source)


def _wanted_classes(model: nn.Module, source: Mapping[str, StoredTensor], checkpoint: Path) -> int | None:
    """How many classes the checkpoint has where the model has as many as it was asked for."""
    differing = {
        source[name].shape[0]
        for name, tensor in inventory(model).tensors.items()
        if name in source
        and tensor.ndim
        and len(source[name].shape) == tensor.ndim
        and tensor.shape[0] == _ASKED
        and source[name].shape[0] != _ASKED
    }
    if len(differing) > 1:
        raise ModelError(
            f"the factory was called with num_classes={_ASKED}, and {checkpoint.name} has several widths in that "
            f"place: {name_some(sorted(map(str, differing)))}\n  fix: a factory without num_classes"
        )
    return differing.pop() if differing else None


def _tensors(model: nn.Module, checkpoint: Path, take: str | None, *, allow_pickle: bool) -> Mapping[str, StoredTensor]:
    own_names = {part for name in inventory(model).tensors for part in name.split(".")}
    kept = WRAPPER_TOKENS.intersection(own_names)
    return open_checkpoint(checkpoint, take=take, keep=kept, allow_pickle=allow_pickle).tensors
