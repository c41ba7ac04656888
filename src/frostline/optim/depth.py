"""How deep in a model each parameter lies, and which part is its head.

Told by the model itself (timm), else by how its modules are nested, in the order of registration or in that of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from frostline.errors import SelectionError, name_some
from frostline.norms.untouched import untouched
from frostline.optim.blocks import block_of, depths_of
from frostline.optim.matcher import depths_by_matcher
from frostline.state import names
from frostline.state.arguments import arguments_of
from frostline.state.selection import Selector, select

# How depth is told: a word, layers from the input to the output, a mapping or a function from paths to numbers.
By: TypeAlias = "str | Sequence[Selector] | Mapping[str, int] | Callable[[str], int]"
WORDS = ("auto", "model", "blocks", "run")
# Where models have their classifier, by the names that timm, torchvision and transformers give it.
_HEADS = ("head", "fc", "classifier", "last_linear", "heads", "score", "lm_head", "qa_outputs", "cls")


@dataclass(frozen=True)
class Depths:
    """How deep each parameter lies.

    Attributes:
        of: path of each parameter, under all of its names, to its depth; 0 is the stem, the largest the head.
        head: the paths of the head's parameters.
        told_by: what told it, in words.
    """

    of: Mapping[str, int]
    head: frozenset[str]
    told_by: str

    @property
    def deepest(self) -> int:
        """The depth of the head."""
        return max(self.of.values(), default=0)


def depth_of(
    model: nn.Module,
    *,
    by: By = "auto",
    head: Selector | Sequence[Selector] | None = None,
    example: Any = None,
) -> Depths:
    """Say how deep in a model each parameter lies. Nothing is changed.

    Args:
        model: any module; wrappers are looked through.
        by: ``"model"`` asks the model (timm's ``group_matcher``); ``"blocks"`` reads how modules are nested, in the
            order of registration; ``"run"`` likewise, in the order in which they run on ``example``; ``"auto"`` runs
            on the example if there is one, else asks the model, else reads the nesting. Or selectors of the layers from
            the input to the output; or a mapping from patterns, or a function from paths, to numbers.
        head: selectors of the head; by default the model's classifier, by its own word or its usual names.
        example: inputs for one run in eval mode: a tensor, a tuple of arguments or a mapping of keyword arguments.

    Returns:
        The :class:`Depths`; the head is deeper than everything else.

    Raises:
        NothingSelected: a selector matches nothing.
        SelectionError: layers overlap or leave parameters out, or ``by`` is no known word.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Linear(2, 1))
        >>> depth_of(model, head="3").of["2.weight"], depth_of(model, head="3").of["3.weight"]
        (1, 2)
    """
    root = names.unwrap(model)
    parameters = [name for name, _ in root.named_parameters(remove_duplicate=False)]
    in_head = _head(root, head, parameters)
    depths, told_by = _told(root, by, example)
    missing = [name for name in parameters if name not in depths and name not in in_head]
    if missing:
        raise SelectionError(
            f"depth by {told_by}: parameters are in no layer: {name_some(missing)}\n"
            "  fix: add the layer they belong to, or name them as head="
        )
    trunk = sorted({depths[name] for name in parameters if name not in in_head})
    # Numbers without gaps: a rate decays by a factor for each layer that there is.
    number = {depth: index for index, depth in enumerate(trunk)}
    of = {name: len(trunk) if name in in_head else number[depths[name]] for name in parameters}
    return Depths(of, frozenset(in_head), told_by)


def find_head(model: nn.Module) -> str | None:
    """The path of a model's classifier, as it says itself or by a usual name; nothing if there is none.

    Where the model says several, as distilled ones do, this is the first; all of them are the head.

    Example:
        >>> find_head(nn.ModuleDict({"trunk": nn.Linear(2, 2), "fc": nn.Linear(2, 1)}))
        'fc'
    """
    return next(iter(_classifiers(names.unwrap(model))), None)


def _classifiers(root: nn.Module) -> list[str]:
    # timm's models tell by their configuration, which may name several (distilled ones have two).
    told: Any = getattr(root, "pretrained_cfg", None) or getattr(root, "default_cfg", None) or {}
    told = told.get("classifier") if isinstance(told, Mapping) else getattr(told, "classifier", None)
    modules = dict(root.named_modules())
    with_parameters = [
        name
        for name in ([told] if isinstance(told, str) else told or _HEADS)
        if name in modules and next(modules[name].parameters(), None) is not None
    ]
    return with_parameters if told else with_parameters[:1]


def _head(root: nn.Module, head: Selector | Sequence[Selector] | None, parameters: Sequence[str]) -> set[str]:
    if head is None:
        return {name for path in _classifiers(root) for name in parameters if names.is_under(name, path)}
    several = tuple(head) if isinstance(head, (list, tuple)) else (cast("Selector", head),)
    return set(select(root, *several).parameters)


def _told(root: nn.Module, by: By, example: Any) -> tuple[Mapping[str, int], str]:
    if isinstance(by, str):
        if by not in WORDS:
            raise SelectionError(f"depth by {by!r}: no such way\n  fix: one of {', '.join(WORDS)}")
        if by in {"auto", "model"} and (example is None or by == "model"):
            told = depths_by_matcher(root)
            if told is not None:
                return told, "the model's group_matcher"
            if by == "model":
                raise SelectionError(
                    f"depth by 'model': {type(root).__name__} does not tell, or tells what cannot be\n"
                    "  fix: by='blocks'"
                )
        if by == "run" and example is None:
            raise SelectionError("depth by 'run': on which inputs?\n  fix: example=a batch")
        if by in {"auto", "run"} and example is not None:
            return depths_of(block_of(root), _run_order(root, example)), "the order of a run"
        return depths_of(block_of(root)), "the nesting of modules, in the order of registration"
    parameters = [name for name, _ in root.named_parameters(remove_duplicate=False)]
    if isinstance(by, Mapping):
        patterns = cast("Mapping[str, int]", by)
        return _exclusive({p: set(select(root, p).parameters) for p in patterns}, patterns), "the mapping given"
    if callable(by):
        return {name: int(by(name)) for name in parameters}, "the function given"
    layers = [set(select(root, selector).parameters) for selector in by]
    shown = {f"layer {index}": layer for index, layer in enumerate(layers)}
    return _exclusive(shown, {name: index for index, name in enumerate(shown)}), "the layers given"


def _exclusive(layers: Mapping[str, set[str]], numbers: Mapping[str, int]) -> dict[str, int]:
    found: dict[str, str] = {}
    for layer, members in layers.items():
        twice = sorted(members & found.keys())
        if twice:
            raise SelectionError(
                f"depth: {name_some(twice)} in two layers, {found[twice[0]]!r} and {layer!r}\n"
                "  fix: selectors that do not overlap"
            )
        found |= dict.fromkeys(members, layer)
    return {name: numbers[layer] for name, layer in found.items()}


def _run_order(root: nn.Module, example: Any) -> list[str]:
    """Paths of modules in the order in which they are first called, in eval mode and without gradients."""
    order: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: order.setdefault(path) and None)
        for path, module in root.named_modules(remove_duplicate=False)
        if path
    ]
    try:
        with untouched(root) as model, torch.no_grad():
            args, kwargs = arguments_of(example)
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return list(order)
