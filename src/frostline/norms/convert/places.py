"""Where modules stand in a model, by torch's tables and besides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from frostline.attach.ledger import KEY
from frostline.state import names

# Where torch keeps children and tensors, and where the account of holds lies.
_OWN_TABLES = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", KEY}


@dataclass(frozen=True)
class Place:
    """Where a module stands.

    Attributes:
        parent: the module that it is a child of.
        name: under which name.
    """

    parent: nn.Module
    name: str

    def put(self, module: nn.Module) -> None:
        """Let this module stand there."""
        self.parent._modules[self.name] = module

    def holds(self, module: nn.Module | None) -> bool:
        """Whether this module stands there."""
        return module is not None and self.parent._modules.get(self.name) is module


def places_of(model: nn.Module) -> dict[int, list[Place]]:
    """Every place of every module below the model, wrappers included, by the module's id.

    Example:
        >>> shared = nn.ReLU()
        >>> [place.name for place in places_of(nn.Sequential(shared, nn.Tanh(), shared))[id(shared)]]
        ['0', '2']
    """
    found: dict[int, list[Place]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                found.setdefault(id(child), []).append(Place(parent, name))
    return found


def plain_references(model: nn.Module) -> dict[int, str]:
    """Modules that some module also keeps as a plain attribute, in a list, tuple, set or dict: id to where.

    What is kept so is not found by torch, and would go on being used after the child was replaced.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> model.favourites = [model[0]]
        >>> plain_references(model)[id(model[0])]
        'favourites'
    """
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in _OWN_TABLES:
                continue
            for each in _one_level(value):
                if isinstance(each, nn.Module):
                    found.setdefault(id(each), names.join(path, name))
    return found


def _one_level(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from cast("dict[Any, Any]", value).values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from cast("list[Any]", value)
    else:
        yield value
