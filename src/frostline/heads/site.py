"""Where the head is, and why it cannot be replaced if it cannot. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter

from frostline.errors import ModelError, name_some, printable
from frostline.heads.initial import KINDS, Head
from frostline.heads.widened import Widened
from frostline.norms.convert.families import why_untouchable
from frostline.norms.convert.places import Place, places_of, plain_references
from frostline.state import names
from frostline.state.inventory import inventory

# What keeps copies, shards or buckets of the parameters that it was given, and would go on with those.
_OWNERS_OF_PARAMETERS = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine"}
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass(frozen=True, eq=False)
class HeadSite:
    """A head that may be replaced.

    Attributes:
        asked: the call in words, for errors.
        root: the model, without wrappers.
        path: the dotted path of the head.
        paths: all of its paths, if the module is shared.
        module: the head.
        places: where it stands.
        owners: path to module, for the modules above it, the model first.
        parameters: local name to parameter.
    """

    asked: str
    root: nn.Module
    path: str
    paths: tuple[str, ...]
    module: Head
    places: tuple[Place, ...]
    owners: dict[str, nn.Module]
    parameters: dict[str, nn.Parameter]

    @property
    def rows(self) -> int:
        """How many outputs the head has."""
        return len(self.parameters["weight"])

    def is_still(self, other: HeadSite) -> bool:
        """Whether this is the same head with the same parameters in the same places."""
        mine, theirs = self.parameters, other.parameters
        return (
            self.module is other.module
            and self.paths == other.paths
            and {(id(place.parent), place.name) for place in self.places}
            == {(id(place.parent), place.name) for place in other.places}
            and {name: id(p) for name, p in mine.items()} == {name: id(p) for name, p in theirs.items()}
        )


def find_head(model: nn.Module, name: str, verb: str) -> HeadSite:
    """Find a head by its dotted path, and refuse what would lose something if another stood in its place.

    Args:
        model: any module; ``torch.compile`` and DataParallel are looked through.
        name: the dotted path of an ``nn.Linear`` or ``nn.Conv1d/2d/3d``.
        verb: the function that asks, for errors.

    Raises:
        ModelError: there is no such layer, or it is held, tied, parametrized, hooked, lazy, or wrapped.
        UnsupportedModel: the model is one of ``torch.jit``.

    Example:
        >>> find_head(nn.Sequential(nn.ReLU(), nn.Linear(2, 3)), "1", "a doctest").rows
        3
    """
    root = names.unwrap(model)
    asked = f"{verb}({type(root).__name__}, {printable(repr(name))})"
    path, found = _locate(root, name, asked)
    if isinstance(names.unwrap(found), KINDS) and found is not names.unwrap(found):
        raise _unfit(asked, "is compiled by itself", "replace it first, and compile afterwards")
    if not isinstance(found, KINDS) or isinstance(found, NonDynamicallyQuantizableLinear):
        raise _no_head(root, path, found, asked)
    head: Head = found
    all_modules = dict(root.named_modules(remove_duplicate=False))
    paths = tuple(p for p, module in all_modules.items() if module is head)
    above = {p: module for p, module in all_modules.items() if any(names.is_under(q, p) and p != q for q in paths)}
    places = tuple(places_of(model).get(id(head), ()))
    parameters = {each: parameter for each, parameter in head._parameters.items() if parameter is not None}
    site = HeadSite(asked, root, path, paths, head, places, above, parameters)
    for problem, fix in _problems(site, model):
        raise _unfit(asked, problem, fix)
    return site


def _locate(root: nn.Module, name: str, asked: str) -> tuple[str, nn.Module]:
    modules = dict(root.named_modules(remove_duplicate=False))
    if not name:
        raise _unfit(
            asked, "names the model itself, in which the head has no place", "the dotted path of a layer inside it"
        )
    for path, module in modules.items():
        if path == name:
            return path, module
    for path, module in modules.items():
        if names.canonical(path) == name:
            return path, module
    near = names.nearest(name, _heads(modules)) or _heads(modules)[::-1]
    fix = f"one of the Linear and convolution layers: {name_some(near)}" if near else "a model with a Linear layer"
    raise ModelError(f"{asked}: the model has no module of that name\n  fix: {fix}")


def _heads(modules: dict[str, nn.Module]) -> list[str]:
    return [
        path
        for path, module in modules.items()
        if path and isinstance(module, KINDS) and not isinstance(module, NonDynamicallyQuantizableLinear)
    ]


def _no_head(root: nn.Module, path: str, found: nn.Module, asked: str) -> ModelError:
    every = _heads(dict(root.named_modules(remove_duplicate=False)))
    inside = [each for each in every if names.is_under(each, path)]
    near = inside[::-1] or names.nearest(path, every) or every[::-1]
    where = "those inside it" if inside else "those in the model"
    fix = f"{where}: {name_some(near)}" if near else "the model has none"
    if isinstance(found, NonDynamicallyQuantizableLinear):
        reason = "the projection of an attention layer, which never calls it as a layer"
    else:
        reason = f"a {type(found).__name__}"
    return ModelError(f"{asked}: a head is a Linear or a convolution layer\n  found: {reason}\n  fix: {fix}")


def _unfit(asked: str, problem: str, fix: str) -> ModelError:
    return ModelError(f"{asked}: the head {problem}\n  fix: {fix}")


def _problems(site: HeadSite, model: nn.Module) -> Iterator[tuple[str, str]]:
    """What is wrong with a head and what to do about it, the worst first."""
    head = site.module
    if not site.places:
        yield "is the model itself, and has no place in it", "put it into an nn.Sequential"
    if any(isinstance(p, UninitializedParameter) for p in site.parameters.values()):
        yield "is lazy and does not know its width yet", "run the model once on real input first"
    sharded = _owners_of_parameters(model, site)
    if sharded:
        yield (
            f"is inside a {sharded}, which would not synchronize parameters that come later",
            "replace before wrapping",
        )
    why = why_untouchable(head)
    if why is not None and why.startswith("held"):
        yield f"is {why}", "release the hold first (hold.thaw()), or hold without the head"
    if why is not None:
        known = "compiled by itself" if why.startswith("compiled") else why
        yield f"cannot be replaced without loss: {known}", "replace it first, and change or compile it afterwards"
    yield from _problems_of_parts(head)
    yield from _problems_of_ties(site)


def _owners_of_parameters(model: nn.Module, site: HeadSite) -> str | None:
    wrappers: list[nn.Module] = [*_wrappers(model), *site.owners.values(), site.module]
    for module in wrappers:
        if _OWNERS_OF_PARAMETERS & {cls.__name__ for cls in type(module).__mro__}:
            return type(module).__name__
    return None


def _wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """The model and what `names.unwrap` goes through, from the outside in."""
    root = names.unwrap(model)
    while model is not root:
        yield model
        inner = model._modules.get("_orig_mod")
        model = cast("nn.Module", model._modules["module"] if inner is None else inner)


def _problems_of_parts(head: Head) -> Iterator[tuple[str, str]]:
    own: dict[str, Tensor | None] = {**head._parameters, **head._buffers}
    known = {"weight", "bias", *(["order", "columns"] if isinstance(head, Widened) else [])}
    others = [name for name, tensor in own.items() if tensor is not None and name not in known]
    others += list(head._modules)
    if others or own.get("weight") is None:
        what = name_some(others) or "no weight of its own"
        yield (
            f"keeps more than weight and bias, or computes them (parametrized, pruned or normalized): {what}",
            "undo that first (torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, prune.remove)",
        )
    tensors = [head._parameters[name] for name in ("weight", "bias") if head._parameters.get(name) is not None]
    strange = [p for p in tensors if type(p) is not nn.Parameter or not p.is_floating_point()]
    if strange:
        what = f"a {type(strange[0]).__name__} of {str(strange[0].dtype).removeprefix('torch.')}"  # type: ignore[union-attr]
        yield f"has {what}, not floating-point parameters of torch", "replace it before quantizing or sharding"
    hooks = [name.strip("_") for name in _HOOKS if getattr(head, name, None)]
    hooks += [
        f"hooks on {name}"
        for name, p in head._parameters.items()
        if p is not None and (p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None))
    ]
    if hooks:
        yield f"has hooks, which would be lost: {name_some(hooks)}", "remove them, and register them on the new head"


def _problems_of_ties(site: HeadSite) -> Iterator[tuple[str, str]]:
    own = {names.join(path, name) for path in site.paths for name in site.parameters}
    entries = inventory(site.root)
    tied = sorted({a for path in own for a in entries[path].aliases if a not in own}, key=names.natural_key)
    if tied:
        yield (
            f"shares its tensors with {name_some(tied)}, which would no longer be tied",
            "untie first: model.get_submodule(PATH).weight = nn.Parameter(weight.detach().clone())",
        )
    if (where := plain_references(site.root).get(id(site.module))) is not None:
        yield (
            f"is also kept in {where!r}, past the children that torch knows, which would go on using it",
            "remove that reference first",
        )
