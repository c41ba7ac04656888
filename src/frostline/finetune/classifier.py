"""A model's classifier: find it, take it off, and check that it fits.

Knows modules and widths; knows nothing of where models come from, of data or of training.
"""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter

from frostline.errors import ModelError, name_some


@dataclass(frozen=True)
class BuiltModel:
    """A model whose classifier is known.

    Attributes:
        model: the model, with its classifier in place.
        head_path: dotted path of the classifier, an ``nn.Linear``.
        in_features: width of the features that the classifier takes.
        image_size: height and width in pixels that the model expects.
        mean: what its input is normalized with, one figure for each channel.
        std: the same for the standard deviation.
        source: where the model and its weights come from, in words.
        random_weights: whether they are known to be random; a factory's may be anything.
    """

    model: nn.Module
    head_path: str
    in_features: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    random_weights: bool = False


def split_head(built: BuiltModel) -> tuple[nn.Module, nn.Linear]:
    """Take the classifier off.

    The model is changed in place: an ``nn.Identity`` stands where the classifier stood, so that the model gives the
    features that the classifier took. All other modules and every tensor are left alone.

    Returns:
        The model and its former classifier.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> built = BuiltModel(model, "2", 3, (8, 8), (0.5,), (0.5,), "a doctest")
        >>> split_head(built)
        (Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): ReLU()
          (2): Identity()
        ), Linear(in_features=3, out_features=2, bias=True))
    """
    head = built.model.get_submodule(built.head_path)
    assert isinstance(head, nn.Linear), f"{built.head_path} was a Linear when the model was built"
    parent_path, _, child = built.head_path.rpartition(".")
    identity = nn.Identity()
    identity.train(head.training)
    setattr(built.model.get_submodule(parent_path), child, identity)
    return built.model, head


def check_width(trunk: nn.Module, head: nn.Linear, example: Tensor) -> None:
    """Run the trunk once and compare the width of its features with what the head takes.

    The run is in eval mode, without gradients, on a copy: no tensor, mode or random state of the trunk changes.

    Args:
        trunk: a model without its classifier.
        head: the classifier.
        example: a batch of inputs, shape (N, ...), on the trunk's device.

    Raises:
        ModelError: the trunk fails on the batch, or its features are not of shape (N, in_features).
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        probe = copy.deepcopy(trunk)
        for module in probe.modules():
            module.training = False
        try:
            features: object = probe(example)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise ModelError(
                f"the model cannot run on a batch of shape {tuple(example.shape)} once its classifier is taken off\n"
                f"  found: {type(error).__name__}: {first_line(error)}\n"
                "  fix: --head NAME with the dotted path of the classifier, if another Linear is it"
            ) from error
    if isinstance(features, Tensor) and tuple(features.shape) == (len(example), head.in_features):
        return
    if not isinstance(features, Tensor):
        found = f"a {type(features).__name__}"
    elif features.ndim == 2 and len(features) == len(example):
        found = f"{features.shape[1]} features"
    else:
        found = f"a tensor of shape {tuple(features.shape)}"
    raise ModelError(
        f"the head does not fit the trunk\n"
        f"  expected: {head.in_features} features for each of {len(example)} inputs\n"
        f"  found: {found}\n"
        "  fix: --head NAME with the dotted path of the last Linear, the one that gives the logits"
    )


def linear_at(model: nn.Module, path: str, name: str) -> nn.Linear:
    """The Linear at a path, or an error that says what is there and which Linear layers there are."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if path not in modules:
        near = difflib.get_close_matches(path, modules, n=8, cutoff=0.5) or linear_paths(model)
        raise ModelError(
            f"{name} has no module {path!r}\n"
            f"  nearest paths: {name_some(near) or 'none'}\n"
            f"  fix: --head NAME; it has {name_linears(model)}"
        )
    found = modules[path]
    if isinstance(found, nn.Linear) and not isinstance(found.weight, UninitializedParameter) and path:
        return found
    if path and isinstance(found, nn.Linear):
        reason = "a LazyLinear whose width is not known yet; run the model once in the factory"
    elif isinstance(found, nn.Linear):
        reason = "the whole model, which leaves no trunk"
    else:
        reason = f"a {type(found).__name__}"
    raise ModelError(
        f"the head {path!r} of {name} must be a Linear layer inside the model\n"
        f"  found: {reason}\n"
        f"  fix: --head NAME; it has {name_linears(model)}"
    )


def linear_paths(model: nn.Module) -> list[str]:
    """Paths of the Linear layers in the order of registration; attention's, which it never calls, are no heads."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
    ]


def name_linears(model: nn.Module) -> str:
    """Name the Linear layers of a model in words, the last first."""
    paths = linear_paths(model)
    # The last ones, because classifiers come last.
    return f"the Linear layers {name_some(paths[::-1])}" if paths else "no Linear layers"


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).splitlines() or [""])[0]
