"""Converting normalization layers: which, into what, and the verbs."""

from __future__ import annotations

from torch import nn

from frostline.errors import CannotConvert, name_some
from frostline.norms.convert.families import is_unmaterialized, kind_of, missing_parts, own_doing, why_untouchable
from frostline.norms.convert.places import Place, places_of, plain_references
from frostline.norms.convert.plan import ConversionPlan, ConversionResult, ConversionRow, nothing_to_do
from frostline.norms.convert.recipes import Already, Recipe, Refused, Site, recipe_for
from frostline.norms.convert.replacement import Replacement
from frostline.norms.convert.targets import Target
from frostline.norms.layers import statistics_of
from frostline.state import names
from frostline.state.selection import Selector, select

ALREADY = "it is one already"


def plan_convert(model: nn.Module, to: Target, *selectors: Selector) -> ConversionPlan:
    """Say what :func:`convert` would do. The model is only read; arguments and errors are the same.

    Example:
        >>> from frostline.norms.convert import GroupNorm
        >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.LayerNorm(8))
        >>> print(plan_convert(model, GroupNorm()))
        Sequential: GroupNorm(groups=None), 1 layers
        layer  from         to         exact  note
        ─────  ───────────  ─────────  ─────  ────...
        1      BatchNorm2d  GroupNorm  no     another function, needs training: 32 groups of 2 channels, ...
        left as it is: 2: LayerNorm is not known to normalize with the batch
    """
    if not isinstance(to, Target):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise CannotConvert(
            f"convert: {to!r} is nothing that layers can be turned into\n"
            "  fix: FrozenNorm(), GroupNorm(), SyncNorm(), PlainNorm() or NoTracking(), from frostline.norms.convert"
        )
    root = names.unwrap(model)
    layers = layers_in(root, selectors, verb=str(to))
    places, elsewhere = places_of(model), plain_references(root)
    rows: list[ConversionRow] = []
    steps: list[Replacement] = []
    skipped: dict[str, str] = {}
    lost: list[str] = []
    for path, layer in layers.items():
        kind = kind_of(layer)
        here = places.get(id(layer), [])
        if kind is None:
            skipped[path] = f"{type(layer).__name__} is not known to normalize with the batch"
        elif why := why_untouchable(layer) or missing_parts(layer, kind) or _why_out_of_reach(layer, here, elsewhere):
            skipped[path] = why
        elif why := own_doing(layer, kind.known):
            skipped[path] = why
            lost.append(path)
        else:
            try:
                recipe = recipe_for(Site(root, path, layer, kind), to)
            except Already:
                skipped[path] = ALREADY
            except Refused as reason:
                skipped[path] = str(reason)
            else:
                rows.append(_row(path, layer, recipe, here))
                steps.append(Replacement(path, layer, recipe, here))
    if not rows and set(skipped.values()) != {ALREADY}:
        raise nothing_to_do(str(to), model, skipped)
    return ConversionPlan(model, str(to), tuple(rows), skipped, tuple(lost), tuple(steps))


def convert(model: nn.Module, to: Target, *selectors: Selector) -> ConversionResult:
    """Turn normalization layers into others: all that are selected or, on an error, none.

    A converted layer is a new module that holds the same state: the same Parameter objects, so that an optimizer goes
    on training them, and the same buffers where it has them; ``requires_grad``, mode, device, type, hooks (their
    handles go on working) and attributes of the user's own are kept. A layer that stands under several names stays one
    module.
    Layers that are held, that something else has taken hold of (a replaced forward, a parametrization), or that do
    something of their own which the target would lose are left alone; :func:`plan_convert` names each of them. timm's
    ``BatchNormAct2d`` keeps its activation. Every converted layer is checked against the old one by value.

    Args:
        model: any module, changed in place; ``torch.compile`` and data-parallel wrappers are looked through. What is
            compiled already is compiled anew at its next call.
        to: what the layers become: :class:`~frostline.norms.convert.targets.FrozenNorm`,
            :class:`~frostline.norms.convert.targets.GroupNorm`, :class:`~frostline.norms.convert.targets.SyncNorm`,
            :class:`~frostline.norms.convert.targets.PlainNorm`, :class:`~frostline.norms.convert.targets.NoTracking`.
        *selectors: only this part; the whole model by default.

    Returns:
        The :class:`~frostline.norms.convert.plan.ConversionResult`, whose ``undo`` puts the original modules back.

    Raises:
        CannotConvert: no layer can be converted, a lazy layer does not know its width yet, or the check failed.
        NothingSelected: a selector matches nothing.

    Warns:
        NotConverted: layers that do something of their own were left alone.

    Example:
        >>> from frostline.norms.convert import FrozenNorm
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> weight = model[1].weight
        >>> result = convert(model, FrozenNorm())
        >>> model[1], model[1].weight is weight
        (FrozenBatchNorm(2, eps=1e-05, affine=True), True)
        >>> result.undo()[1]
        BatchNorm1d(2, eps=1e-05, momentum=0.1, affine=True, ...)

    Source: ``torch/nn/modules/batchnorm.py:convert_sync_batchnorm`` and ``timm/layers/norm_act.py:
        freeze_batch_norm_2d``, which lose hooks, activations, momentum and ``requires_grad``, and have no way back.
    """
    return plan_convert(model, to, *selectors).apply()


def layers_in(root: nn.Module, selectors: tuple[Selector, ...], *, verb: str) -> dict[str, nn.Module]:
    """The normalization layers that are selected, each once, by its first path.

    Args:
        root: the model, without wrappers.
        selectors: only this part; none is the whole model.
        verb: for the error.

    Raises:
        CannotConvert: one is lazy and does not know its width yet: a conversion would give it none.
        NothingSelected: a selector matches nothing.
    """
    selected = select(root, *selectors).modules.values() if selectors else list(root.modules())
    inside = {id(module) for module in selected}
    layers = {path: m for path, m in root.named_modules() if id(m) in inside and statistics_of(m) is not None}
    lazy = [f"{path or '(the model)'} ({type(m).__name__})" for path, m in layers.items() if is_unmaterialized(m)]
    if lazy:
        raise CannotConvert(
            f"{verb}: a lazy layer does not know its width yet: {name_some(lazy)}\n"
            "  fix: run the model once, or leave the layer out"
        )
    return layers


def _why_out_of_reach(layer: nn.Module, places: list[Place], elsewhere: dict[int, str]) -> str | None:
    """Why putting another module in a layer's places would not take it out of the model, if it would not."""
    if id(layer) in elsewhere:
        return f"{elsewhere[id(layer)]!r} refers to it past the children that torch knows, and would go on using it"
    if any(place.name == "_orig_mod" for place in places):
        return "compiled by itself: convert first, and compile afterwards"
    return None


def _row(path: str, layer: nn.Module, recipe: Recipe, places: list[Place]) -> ConversionRow:
    note = recipe.note if len(places) <= 1 else f"{recipe.note}; one module in {len(places)} places, and stays one"
    return ConversionRow(path, type(layer).__name__, recipe.cls.__name__, recipe.exact, note)
