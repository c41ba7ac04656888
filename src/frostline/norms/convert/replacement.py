"""One layer put in the place of another, and taken out again."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from frostline.norms.convert.families import why_untouchable
from frostline.norms.convert.places import Place
from frostline.norms.convert.rebuild import rebuilt
from frostline.norms.convert.recipes import STATISTICS, Recipe
from frostline.norms.convert.verify import difference


class Replacement:
    """Puts a new layer into every place of an old one, and takes it out again.

    Args:
        path: the layer's first path.
        old: the layer.
        recipe: what it becomes.
        places: where it stands; none if it is the model itself.
    """

    def __init__(self, path: str, old: nn.Module, recipe: Recipe, places: list[Place]) -> None:
        self.path, self.old, self.recipe, self.places = path, old, recipe, places
        self.new: nn.Module | None = None
        self._placed: dict[str, Any] = {}

    def why_stale(self) -> str | None:
        """Why the old layer must not be replaced now: it stands elsewhere, or has been taken hold of."""
        return "it has been converted already" if self.new is not None else _why_gone(self.old, self.places)

    def why_overtaken(self) -> str | None:
        """Why the new layer must not be taken out: something else stands there, or it has been taken hold of."""
        return None if self.new is None else _why_gone(self.new, self.places)

    def carry_out(self) -> None:
        """Build the new layer and put it in place."""
        self._placed = _placement(self.old)
        self.new = rebuilt(self.old, self.recipe)
        _point_hooks(self.new)
        for place in self.places:
            place.put(self.new)

    def difference(self) -> str | None:
        """What is wrong with the new layer, in words; ``None`` if it is as it should be."""
        assert self.new is not None
        return difference(self.old, self.new, self.recipe)

    def stand_in(self, module: nn.Module) -> nn.Module:
        """The new layer for the old one, any other module for itself."""
        return self.new if module is self.old and self.new is not None else module

    def take_back(self, *, keep_since: bool) -> None:
        """Put the old layer back, as it was or as the new one has been set and moved since."""
        if self.new is None:
            return
        if keep_since:
            _carry_back(self.new, self.old, self._placed)
        _point_hooks(self.old)
        for place in self.places:
            place.put(self.old)
        self.new = None


def _why_gone(module: nn.Module, places: list[Place]) -> str | None:
    here = all(place.holds(module) for place in places)
    return why_untouchable(module) if here else "something else stands in its place"


def _carry_back(new: nn.Module, old: nn.Module, placed: dict[str, Any]) -> None:
    """What a layer's own tables may have come to hold since: tensors of another device or type, another mode."""
    old.training = new.training
    for mine, theirs in ((old._parameters, new._parameters), (old._buffers, new._buffers)):
        for name, tensor in theirs.items():
            if mine.get(name) is not None and tensor is not None:
                mine[name] = tensor  # type: ignore[assignment]
    after = _placement(new)
    if after and after != placed:
        for name in STATISTICS:
            buffer = old._buffers.get(name)
            if buffer is not None and new._buffers.get(name) is None:
                old._buffers[name] = buffer.to(**(after if buffer.is_floating_point() else {"device": after["device"]}))


def _placement(layer: nn.Module) -> dict[str, Any]:
    """Device and type of the weight; empty where there is none."""
    weight = layer._parameters.get("weight")
    return {} if weight is None else {"device": weight.device, "dtype": weight.dtype}


def _point_hooks(layer: nn.Module) -> None:
    """Hooks on loading keep a weak reference to the module that they were registered on."""
    for hook in layer._load_state_dict_pre_hooks.values():
        if getattr(hook, "with_module", False):
            hook.module = weakref.ref(layer)  # type: ignore[attr-defined]
