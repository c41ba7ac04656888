"""timm: classifiers and layers of its models as selectors, new classifiers, and its frozen batch norms as holds.

Where ``timm.utils.freeze(model, ["stem", "blocks"])`` stood, ``fl.freeze(model, "stem", "blocks")`` stands. The former
sets ``requires_grad`` and turns batch norms of two dimensions into others, whose weight and bias are buffers. Batch
norms of one and of three dimensions, and instance norms, go on updating their statistics; dropout and stochastic depth
go on dropping; a stale gradient lets momentum and weight decay move what is frozen; an optimizer that was made before
goes on holding parameters that the model no longer has. The latter leaves every module and parameter the object it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

import frostline as fl
from frostline.compat import import_torchvision
from frostline.errors import ModelError, TorchvisionWithoutOperators, name_some
from frostline.freezing import Hold
from frostline.heads import HeadChange, plan_replace_head
from frostline.integrations.versions import supported
from frostline.norms import ConversionResult, PlainNorm, plan_convert
from frostline.optim import Epoch, gradual
from frostline.state import Selector, exactly, select

# timm imports torchvision, and this is what makes that work beside a CPU build of torch. What is missing then, the
# operators of detection, is of no use here.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", TorchvisionWithoutOperators)
    _torchvision: Any = import_torchvision("ops")
_timm: Any = supported("timm", oldest="1.0.9", tested="1.0", extra="train", purpose="frostline.integrations.timm")
_FROZEN: tuple[type[nn.Module], ...] = (_timm.layers.FrozenBatchNormAct2d, _torchvision.FrozenBatchNorm2d)
_SCORES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Parts(NamedTuple):
    """Selectors of the two parts of a model.

    Attributes:
        trunk: everything but the head.
        head: the classifiers, and the dropout right before them.
    """

    trunk: tuple[Selector, ...]
    head: tuple[Selector, ...]


def trunk_and_head(model: nn.Module) -> Parts:
    """Selectors of a model's trunk and of its head. The model is only read.

    The head is what ``get_classifier()`` gives, and what the configuration names besides (distilled models and VOLO
    have a second one), with the dropout right before it. Pooling and the last norm are the trunk's, so that what is
    held gives features that do not move.

    Args:
        model: a model of timm; wrappers are looked through.

    Returns:
        The :class:`Parts`: ``fl.freeze(model, *trunk_and_head(model).trunk)``.

    Raises:
        ModelError: it is no model of timm, or has no classifier.

    Example:
        >>> import timm
        >>> trunk, head = trunk_and_head(timm.create_model("resnet10t"))
        >>> head, trunk
        (('fc',), ('*', '!fc'))
    """
    root = _root(model)
    tops = [*_tops(root), *_drops(root)]
    return Parts(("*", *(f"!{exactly(path)}" for path in tops)), tuple(exactly(path) for path in tops))


def layer_groups(model: nn.Module) -> dict[str, tuple[Selector, ...]]:
    """A model's layers from the input to the output, for schedules. The model is only read.

    Args:
        model: a model of timm; wrappers are looked through.

    Returns:
        ``stem``, ``block 1`` and so on, and ``head``, each with selectors of its part; together they are the whole
        model, but for layers that keep no tensors. Depth is told as :func:`frostline.optim.depth_of` tells it, by the
        model's ``group_matcher``.

    Raises:
        ModelError: it is no model of timm, or has no classifier.

    Example:
        >>> import timm
        >>> groups = layer_groups(timm.create_model("resnet10t"))
        >>> list(groups), groups["block 4"]
        (['stem', 'block 1', 'block 2', 'block 3', 'block 4', 'head'], ('layer4',))
    """
    head = trunk_and_head(model).head
    stages = gradual(model, every=Epoch(1), head=head).stages
    groups = {f"block {number}" if number else "stem": stage.parts for number, stage in enumerate(reversed(stages))}
    return {**groups, "head": head}


def replace_classifiers(
    model: nn.Module,
    classes: int | Sequence[str],
    *,
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
) -> tuple[HeadChange, ...]:
    """Give a model classifiers of another width, by :func:`frostline.replace_head` for each that it has.

    All refusals come before the first is replaced. ``num_classes`` says the new number, ``get_classifier()`` gives the
    new layers, and ``reset_classifier`` works afterwards; ``pretrained_cfg`` stays, as it speaks of published weights.
    What is held stays held, and the optimizer keeps its groups, unlike with timm's ``reset_classifier``.

    Args:
        model: a model of timm, changed in place.
        classes: how many, or their names.
        optimizer: the optimizer that trains the model; the new parameters take the places of the old ones.
        generator: what the start values are drawn from; by default a fresh one with the seed 0.

    Returns:
        What was done, one for each classifier.

    Raises:
        ModelError: there is no classifier, or one cannot be replaced without losing something (it is held, for
            example).

    Example:
        >>> import timm
        >>> model = timm.create_model("resnet10t")
        >>> print(*replace_classifiers(model, 10))
        fc: 1,000 -> 10 outputs, 5,130 parameters
          num_classes: 1000 -> 10
        >>> model.num_classes, model.get_classifier().out_features
        (10, 10)
    """
    root = _root(model)
    asked: dict[str, Any] = {"optimizer": optimizer, "generator": generator}
    scores = list(_scores(root))
    for path in scores:
        plan_replace_head(model, path, classes, **asked)
    return tuple(fl.replace_head(model, path, classes, **asked) for path in scores)


@dataclass(frozen=True, eq=False)
class HeldNorms:
    """Frozen batch norms that were turned into batch norms under a hold.

    Attributes:
        model: the model; a new layer if the model itself was one.
        hold: what holds them; ``hold.thaw()`` makes them train and update like any batch norm.
        paths: where they are.
        parameters: their weights and biases, which were buffers before: no optimizer has them.
    """

    model: nn.Module
    hold: Hold
    paths: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    _conversion: ConversionResult

    def back(self) -> nn.Module:
        """Thaw, and put the frozen layers back, the very objects, with the values of now; a second time does nothing.

        Returns:
            The model that was given to :func:`frozen_to_hold`.

        Raises:
            CannotConvert: a layer was replaced or taken hold of by something else since; it is no longer held.
        """
        self.hold.thaw()
        return self._conversion.undo()


def frozen_to_hold(model: nn.Module, *selectors: Selector) -> HeldNorms:
    """Turn frozen batch norms of timm and torchvision into batch norms under a hold: as still, but they can be thawed.

    Their statistics stay the same tensors, their weights and biases become parameters on the same memory; ``eps``,
    activation, drop layer, hooks and mode are kept. Once thawed they train, as after timm's ``unfreeze``. What timm's
    conversion has lost is not brought back: the momentum is 0.1, and ``num_batches_tracked``, an entry that the
    ``state_dict`` gains, is 0. Outputs are equal up to rounding, because a frozen batch norm multiplies in another
    order: every layer is checked for that. Done for all of the layers or, on an error, for none.

    Args:
        model: changed in place.
        *selectors: only this part; none is the whole model.

    Returns:
        The :class:`HeldNorms`. ``optimizer.add_param_group({"params": held.parameters})`` lets an optimizer train
        them once they are thawed.

    Raises:
        ModelError: there is none.
        NothingSelected: a selector matches nothing.
        CannotConvert: one computes something else than frozen batch norms do.

    Example:
        >>> import timm
        >>> model = timm.layers.freeze_batch_norm_2d(timm.create_model("resnet10t"))
        >>> held = frozen_to_hold(model, "layer1")
        >>> type(model.layer1[0].bn1).__name__, model.train().layer1[0].bn1.training, held.hold.level
        ('BatchNorm2d', False, 'state')
        >>> type(held.back().layer1[0].bn1).__name__
        'FrozenBatchNorm2d'

    Source: ``timm/layers/norm_act.py:unfreeze_batch_norm_2d``, which needs attributes that only timm's own conversion
        sets, makes new buffers and trains from then on.
    """
    chosen = select(model, *(selectors or ("*",)))
    paths = tuple(path for path, module in chosen.modules.items() if isinstance(module, _FROZEN))
    if not paths:
        raise ModelError(
            f"frozen_to_hold({type(chosen.root).__name__}): no frozen batch norm of timm or torchvision in what was "
            "selected\n  fix: fl.freeze, which holds batch norms as they are"
        )
    conversion = plan_convert(model, PlainNorm(dims=2), *map(exactly, paths)).apply()
    left = [f"{path or '(the model)'}: {why}" for path, why in conversion.plan.skipped.items()]
    if left:
        conversion.undo()
        raise ModelError(f"frozen_to_hold: cannot be turned into a batch norm: {name_some(left)}\n  fix: leave it out")
    try:
        converted = select(conversion.model, *map(exactly, paths))
        parameters = tuple({id(p): p for p in converted.parameters.values()}.values())
        for parameter in parameters:
            parameter.requires_grad_(True)  # what a thaw brings back
        hold = fl.freeze(conversion.model, *map(exactly, paths))
    except BaseException:
        conversion.undo()
        raise
    return HeldNorms(conversion.model, hold, paths, parameters, conversion)


def _root(model: nn.Module) -> nn.Module:
    root = select(model, "*").root
    if not callable(getattr(root, "get_classifier", None)):
        raise ModelError(
            f"{type(root).__name__} has no get_classifier(), which every classifying model of timm has\n"
            "  fix: name the head yourself: fl.freeze(model, '*', '!head')"
        )
    return root


def _tops(root: nn.Module) -> list[str]:
    """The classifiers as whole modules, none of them below another."""
    ask: Callable[[], Any] = root.get_classifier  # type: ignore[assignment]
    try:
        given = ask()
    except AttributeError:
        given = None  # a model that only encodes
    several: list[Any] = list(given) if isinstance(given, (tuple, list, nn.ModuleList)) else [given]
    classifiers = {id(each) for each in several}
    modules = dict(root.named_modules(remove_duplicate=False))
    found = [path for path, module in modules.items() if path and (id(module) in classifiers or path in _told(root))]
    found = [path for path in found if next(modules[path].parameters(), None) is not None]
    if not found:
        raise ModelError(
            f"{type(root).__name__} has no classifier (num_classes={getattr(root, 'num_classes', None)})\n"
            "  fix: model.reset_classifier(10) gives it one"
        )
    return [path for path in found if not any(path.startswith(f"{other}.") for other in found)]


def _told(root: nn.Module) -> tuple[str, ...]:
    """The layers that compute the scores, as the configuration has them."""
    config: Any = getattr(root, "pretrained_cfg", None) or getattr(root, "default_cfg", None) or {}
    told: Any = config.get("classifier") if isinstance(config, dict) else None
    return (told,) if isinstance(told, str) else tuple(told or ())


def _scores(root: nn.Module) -> Iterator[str]:
    """The linear layers or convolutions that compute the scores."""
    tops, modules = _tops(root), dict(root.named_modules(remove_duplicate=False))
    told = [path for path in _told(root) if isinstance(modules.get(path), _SCORES)]
    if told:
        yield from told
        return
    # A model that was made by its class has no configuration: what is as wide as there are classes.
    for path, module in modules.items():
        width = getattr(module, "out_features", getattr(module, "out_channels", None))
        inside = any(path == top or path.startswith(f"{top}.") for top in tops)
        if inside and isinstance(module, _SCORES) and width == getattr(root, "num_classes", None):
            yield path


def _drops(root: nn.Module) -> Iterator[str]:
    """Dropout right before a classifier: beside it in a module of its own, or under timm's name for it."""
    homes = {top.rpartition(".")[0] for top in _tops(root)} - {""}
    for path, module in root.named_modules():
        if isinstance(module, nn.Dropout) and (path == "head_drop" or path.rpartition(".")[0] in homes):
            yield path
