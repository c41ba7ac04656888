"""One batch norm folded into the layer before it, and taken out again."""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn

from frostline.norms.convert.families import kind_of, why_untouchable
from frostline.norms.convert.folded_weights import excess, folded
from frostline.norms.convert.places import Place
from frostline.norms.layers import statistics_of

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class FoldStep:
    """Folds one batch norm, and takes it out again.

    Args:
        path: the batch norm's path.
        norm: the batch norm.
        into: path of the layer before it.
        before: that layer.
        place: where the batch norm stands.
    """

    def __init__(self, path: str, norm: nn.Module, into: str, before: nn.Module, place: Place) -> None:
        self.path, self.norm, self.into, self.before, self.place = path, norm, into, before, place
        kind = kind_of(norm)
        self._acts = kind is not None and kind.acts
        self._was: dict[str, Tensor | None] = {}
        self._new: nn.Module | None = None

    @property
    def leaves(self) -> str:
        """What stands in place of the batch norm afterwards."""
        return "Sequential" if self._acts else "Identity"

    @property
    def note(self) -> str:
        """What is to be known, for the plan."""
        dtype = cast("Tensor", self.before.weight).dtype
        into = f"into {self.into} ({type(self.before).__name__})"
        note = f"{into}: equal up to rounding of its weights, {torch.finfo(dtype).eps / 2:.0e} of each"
        if self.before._parameters["bias"] is None:
            note += f"; a new bias, requires_grad={self._bias_trains()}"
        return note

    def why_stale(self) -> str | None:
        """Why it must not be folded now."""
        if not self.place.holds(self.norm):
            return "something else stands in its place"
        if (use := statistics_of(self.norm)) is None or use.uses != "running":
            return "it no longer normalizes with its running statistics"
        return why_grasped(self.norm) or why_grasped(self.before)

    def why_overtaken(self) -> str | None:
        """Why the fold must not be undone now."""
        if self._new is None:
            return None
        if not self.place.holds(self._new):
            return "something else stands in its place"
        return why_untouchable(self.before)

    def carry_out(self) -> None:
        """Write the weights, and take the batch norm out of its place."""
        parameters = self.before._parameters
        weight, bias = folded(self.before, self.norm)
        self._was = {name: None if p is None else p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            cast("Tensor", parameters["weight"]).copy_(weight)
            if (old := parameters["bias"]) is not None:
                old.copy_(bias)
            else:
                parameters["bias"] = nn.Parameter(bias, requires_grad=self._bias_trains())
        children = {name: child for name in ("drop", "act") if (child := self.norm._modules.get(name)) is not None}
        self._new = nn.Sequential(OrderedDict(children)) if self._acts else nn.Identity()
        # Not by train(), which would reach into the activation.
        self._new.training = self.norm.training
        self.place.put(self._new)

    def difference(self) -> str | None:
        """What is wrong with the weights, in words; ``None`` if they give what both layers gave."""
        over = excess(self.before, self.norm, cast("Tensor", self._was["weight"]), self._was["bias"])
        return None if over <= 1 else f"the folded weights miss by {over:.3g} times what rounding explains"

    def stand_in(self, module: nn.Module) -> nn.Module:
        """The module itself: the model is never what is folded away."""
        return module

    def take_back(self, *, keep_since: bool) -> None:
        """Put the batch norm and the old weights back, in the mode that it had or that is set now."""
        for name, old in self._was.items():
            now = self.before._parameters[name]
            if old is None or now is None:
                self.before._parameters[name] = None
            else:
                with torch.no_grad():
                    now.copy_(old)
        if self._new is not None:
            if keep_since:
                self.norm.training = self._new.training
            self.place.put(self.norm)
        self._was, self._new = {}, None

    def _bias_trains(self) -> bool:
        own = self.norm._parameters.get("bias")
        weight = cast("Tensor", self.before.weight)
        return own.requires_grad if own is not None else weight.requires_grad


def why_grasped(module: nn.Module) -> str | None:
    """Why a layer's values cannot be folded: it is held, replaced in part, or watched.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> _ = layer.register_forward_hook(print)
        >>> why_grasped(layer)
        'has hooks, which would see other values'
    """
    if why := why_untouchable(module):
        return why
    return "has hooks, which would see other values" if any(getattr(module, table) for table in _HOOKS) else None
