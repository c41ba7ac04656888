"""Finds the models of a running program: the outermost module above one that ran, and the variable that holds it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from frostline.audit.places import frames, is_users, variables
from frostline.errors import UnsupportedModel
from frostline.state import names

# A chain of owners that is longer goes in a circle.
_HIGHEST = 64


def outermost(inner: Iterable[nn.Module]) -> dict[int, nn.Module]:
    """For each module (by id) the outermost module that has it, wrappers taken off; itself where nothing has it.

    Looks at every object that Python's garbage collector knows, and changes none. Where several modules have it, the
    one with the most modules below it counts: a feature extractor that shares layers with the model is not the model.

    Example:
        >>> model = nn.Sequential(nn.Sequential(nn.Linear(1, 1)))
        >>> outermost([model[0][0]])[id(model[0][0])] is model
        True
    """
    owners: dict[int, list[nn.Module]] = {}
    for item in gc.get_objects():
        # `isinstance` would ask lazy proxies for their class, which runs code of theirs.
        if issubclass(type(item), nn.Module) and "_modules" in item.__dict__:
            for child in item.__dict__["_modules"].values():
                if child is not None:
                    owners.setdefault(id(child), []).append(item)
    found: dict[int, nn.Module] = {}
    for module in inner:
        tops = _tops(module, owners)
        best = max(tops, key=lambda top: sum(1 for _ in top.modules()))
        try:
            found[id(module)] = names.unwrap(best)
        except UnsupportedModel:
            found[id(module)] = module
    return found


def inner_of(module: nn.Module) -> nn.Module:
    """The model of a wrapper, by which events are named; what cannot be looked into stands for itself.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> inner_of(nn.DataParallel(model)) is model
        True
    """
    try:
        return names.unwrap(module)
    except UnsupportedModel:
        return module


def _tops(module: nn.Module, owners: dict[int, list[nn.Module]]) -> list[nn.Module]:
    tops: list[nn.Module] = []
    known: set[int] = set()
    level = [module]
    for _ in range(_HIGHEST):
        above: list[nn.Module] = []
        for item in level:
            if id(item) in known:
                continue
            known.add(id(item))
            mine = owners.get(id(item), [])
            above += mine
            if not mine:
                tops.append(item)
        if not above:
            break
        level = above
    return tops or [module]


def owners_of(wanted: set[int]) -> dict[int, nn.Module]:
    """For parameters (by id) that no known model has, a module that has each of them."""
    found: dict[int, nn.Module] = {}
    for item in gc.get_objects():
        if issubclass(type(item), nn.Module) and "_parameters" in item.__dict__:
            for parameter in item.__dict__["_parameters"].values():
                if id(parameter) in wanted:
                    found[id(parameter)] = item
    return found


def optimizers_of(parameters: set[int]) -> list[Optimizer]:
    """The optimizers of this process that have any of these parameters (by id)."""
    return [
        item
        for item in gc.get_objects()
        if issubclass(type(item), Optimizer)
        and any(id(p) in parameters for group in item.__dict__.get("param_groups", []) for p in group["params"])
    ]


def variable_of(value: object, start: FrameType | None, fallback: str) -> str:
    """The name of the variable in which the user keeps an object; the fallback where none is found.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> variable_of(net, sys._getframe(), "model")
        'net'
    """
    best = ""
    for frame in frames(start):
        if not is_users(frame):
            continue
        for scope in (variables(frame), frame.f_globals):
            best = _in_scope(value, scope)
            if best:
                return best
    main = sys.modules.get("__main__")
    return (_in_scope(value, vars(main)) if main else "") or fallback


def _in_scope(value: object, scope: dict[str, Any]) -> str:
    found = [name for name, held in list(scope.items()) if held is value and _is_telling(name)]
    if found:
        return min(found, key=len)
    holder = scope.get("self")
    if holder is not None and hasattr(holder, "__dict__"):
        inside = [name for name, held in list(vars(holder).items()) if held is value]
        if inside:
            return f"self.{min(inside, key=len)}"
    return ""


def _is_telling(name: str) -> bool:
    """Whether a variable says what it holds; tools put names of their own into a scope, which are none."""
    return name.isidentifier() and not name.startswith("_") and name not in {"self", "cls"}
