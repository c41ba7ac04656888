"""Models by name: build one of timm, torchvision or the user's own, and say where its classifier is.

Knows where timm and torchvision keep their classifiers; knows nothing of data or training. Weights are fetched only
when asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from frostline.compat import import_torchvision
from frostline.errors import ModelError
from frostline.extras import require
from frostline.finetune.classifier import (
    BuiltModel,
    check_width,
    first_line,
    linear_at,
    linear_paths,
    name_linears,
    split_head,
)
from frostline.finetune.factory import FORMS, call_factory

__all__ = ["BuiltModel", "build_model", "check_width", "split_head"]

TORCHVISION_HEADS = ("fc", "classifier", "head", "heads")
# Their training output is a tuple with the logits of auxiliary classifiers.
TORCHVISION_WITH_AUXILIARY = ("googlenet", "inception_v3")
IMAGENET_SIZE = (224, 224)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def build_model(
    name: str, *, num_classes: int, pretrained: bool, head: str | None = None, in_chans: int = 3
) -> BuiltModel:
    """Build a model with the classifier it comes with.

    Models of timm and torchvision keep their own number of classes, so that a pretrained classifier survives;
    ``num_classes`` is for factories, and for models of timm that have no classifier of their own. Nothing is
    downloaded unless ``pretrained``. Random weights are drawn from torch's global generator: seed it before.

    Args:
        name: ``timm/NAME``, ``torchvision/NAME`` or ``package.module:factory``. A factory is called with
            ``num_classes`` if it takes that, and may lie in the working directory.
        num_classes: see above.
        pretrained: fetch the pretrained weights.
        head: dotted path of the classifier, where it is not the one that the model names.
        in_chans: channels of the images.

    Returns:
        The model and what is known of it.

    Raises:
        ModelError: there is no such model, it cannot be built, its weights cannot be fetched, or its classifier is
            not one ``nn.Linear``.
        MissingExtra: timm or torchvision is not installed.
    """
    library, slash, short = name.partition("/")
    if ":" in name and not name.startswith(("timm/", "torchvision/")):
        return _from_factory(name, num_classes, pretrained, head, in_chans)
    if slash and library == "timm":
        return _from_timm(short, num_classes, pretrained, head, in_chans)
    if slash and library == "torchvision":
        return _from_torchvision(short, pretrained, head, in_chans)
    found = f"the unknown prefix {library + '/'!r}" if slash else "no prefix"
    if Path(name).exists():
        fix = "the name of the model; a file or folder of weights is loaded into it by an option (--help)"
    else:
        fix = f"timm/{short or name}, if timm has a model of that name"
    raise ModelError(f"no model {name!r}: it has {found}\n  expected: {FORMS}\n  fix: {fix}")


def _from_timm(name: str, num_classes: int, pretrained: bool, head: str | None, in_chans: int) -> BuiltModel:
    import_torchvision()  # timm imports it, and this is what makes that work beside a CPU build of torch
    timm: Any = require("timm", extra="train", purpose=f"The model timm/{name}")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    try:
        default: Any = timm.get_pretrained_cfg(name)
    except RuntimeError:  # resnet18 exists, resnet18.of_my_own does not
        raise _unknown("timm", name, timm.list_models(f"{name.partition('.')[0]}*", pretrained=True)) from None
    options: dict[str, Any] = {"in_chans": in_chans}
    lacks_classifier: bool = default is not None and default.num_classes == 0
    if lacks_classifier:
        options["num_classes"] = num_classes
    model: nn.Module = _building(
        f"timm/{name}", pretrained, lambda: timm.create_model(name, pretrained=pretrained, **options)
    )

    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    path = head if head is not None else config.get("classifier")
    if isinstance(path, tuple | list):
        several: Sequence[str] = path
        raise ModelError(
            f"timm/{name} has {len(several)} classifiers: {', '.join(several)}\n  fix: a model with one classifier"
        )
    if path is None:
        raise ModelError(f"timm/{name} names no classifier\n  fix: --head NAME; it has {name_linears(model)}")
    data: dict[str, Any] = timm.data.resolve_model_data_config(model)
    weights = f"pretrained {config.get('tag') or 'weights'}" if pretrained else "random weights"
    return BuiltModel(
        model=model,
        head_path=path,
        in_features=linear_at(model, path, f"timm/{name}").in_features,
        image_size=(data["input_size"][-2], data["input_size"][-1]),
        mean=_for_channels(data["mean"], in_chans),
        std=_for_channels(data["std"], in_chans),
        source=f"timm/{name}, {weights}" + (", with a new classifier" if pretrained and lacks_classifier else ""),
        random_weights=not pretrained,
    )


def _from_torchvision(name: str, pretrained: bool, head: str | None, in_chans: int) -> BuiltModel:
    models: Any = import_torchvision("models")
    known: list[str] = models.list_models(module=models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    if name in TORCHVISION_WITH_AUXILIARY:
        raise ModelError(
            f"torchvision/{name} has auxiliary classifiers: in training it gives a tuple, not logits\n"
            "  fix: timm/inception_v3, or any model with one classifier"
        )
    if in_chans != 3:
        raise ModelError(
            f"torchvision/{name} takes images with 3 channels, asked for {in_chans}\n"
            "  fix: the model of timm, which adapts its first layer, or a factory of your own"
        )
    weights: Any = models.get_model_weights(name).DEFAULT if pretrained else None
    model: nn.Module = _building(f"torchvision/{name}", pretrained, lambda: models.get_model(name, weights=weights))
    size, mean, std = IMAGENET_SIZE, IMAGENET_MEAN, IMAGENET_STD
    if weights is not None:
        preset: Any = weights.transforms()
        size, mean, std = (preset.crop_size[0],) * 2, tuple(preset.mean), tuple(preset.std)
    path = head if head is not None else _torchvision_head(model, name)
    return BuiltModel(
        model=model,
        head_path=path,
        in_features=linear_at(model, path, f"torchvision/{name}").in_features,
        image_size=size,
        mean=mean,
        std=std,
        source=f"torchvision/{name}, {'random weights' if weights is None else f'pretrained {weights.name}'}",
        random_weights=weights is None,
    )


def _torchvision_head(model: nn.Module, name: str) -> str:
    for child in TORCHVISION_HEADS:
        paths = [path for path in linear_paths(model) if path == child or path.startswith(f"{child}.")]
        if paths:
            return paths[-1]
    raise ModelError(
        f"torchvision/{name} has no Linear classifier at {', '.join(TORCHVISION_HEADS)}\n"
        f"  found: {name_linears(model)}\n"
        "  fix: a model whose classifier is a Linear"
    )


def _from_factory(name: str, num_classes: int, pretrained: bool, head: str | None, in_chans: int) -> BuiltModel:
    if pretrained:
        raise ModelError(
            f"--pretrained says nothing to the factory {name!r}: what it returns is used as it is\n"
            "  fix: leave out --pretrained, and load weights in the factory or with --init CHECKPOINT"
        )
    model, told = call_factory(name, num_classes)
    path = head if head is not None else _factory_head(model, name, num_classes if told else None)
    return BuiltModel(
        model=model,
        head_path=path,
        in_features=linear_at(model, path, name).in_features,
        image_size=IMAGENET_SIZE,
        mean=_for_channels(IMAGENET_MEAN, in_chans),
        std=_for_channels(IMAGENET_STD, in_chans),
        source=f"{name}, weights as the factory left them",
    )


def _factory_head(model: nn.Module, name: str, out_features: int | None) -> str:
    """The last Linear, of that many outputs where the factory was told how many there are."""
    paths = [
        path
        for path in linear_paths(model)
        if path and (out_features is None or linear_at(model, path, name).out_features == out_features)
    ]
    if paths:
        return paths[-1]
    outputs = "" if out_features is None else f" with {out_features} outputs"
    raise ModelError(
        f"the classifier of {name} is not plain: no Linear inside the model{outputs}\n"
        f"  found: {name_linears(model)}\n"
        "  fix: --head NAME with the dotted path of the Linear that gives the logits"
    )


def _building(name: str, pretrained: bool, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except Exception as error:
        if not pretrained:
            raise ModelError(
                f"{name} cannot be built\n"
                f"  found: {type(error).__name__}: {first_line(error)}\n"
                "  fix: another model of the same family"
            ) from error
        raise ModelError(
            f"the pretrained weights of {name} could not be fetched\n"
            f"  found: {type(error).__name__}: {first_line(error)}\n"
            "  fix: --init CHECKPOINT with a file you have, or leave out --pretrained to start from random weights"
        ) from error


def _unknown(library: str, name: str, known: Sequence[str]) -> ModelError:
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    return ModelError(
        f"no model {name!r} in {library}\n"
        f"  nearest names: {', '.join(near) or 'none'}\n"
        f"  fix: {library}/{near[0] if near else 'resnet18'}"
    )


def _for_channels(values: Sequence[float], in_chans: int) -> tuple[float, ...]:
    """One figure for each channel: the given ones, or their average where the number of channels differs."""
    return tuple(values) if len(values) == in_chans else (sum(values) / len(values),) * in_chans
