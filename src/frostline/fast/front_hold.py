"""The hold on the front layers of a model, as one that grows and shrinks from its far end."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from frostline.fast.front_layers import FrontLayers
from frostline.freezing.hold import Hold
from frostline.freezing.verbs import freeze
from frostline.state import names
from frostline.state.selection import exactly


class FrontHold:
    """Freezes the first so many layers, never others.

    Args:
        model: the model, without wrappers.
        optimizer: what trains it.
        front: its layers.

    Attributes:
        hold: the hold on all that is frozen; ``None`` while that is nothing.

    Example:
        >>> import torch
        >>> from frostline.fast.front_layers import front_layers
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
        >>> front = FrontHold(model, torch.optim.SGD(model.parameters(), lr=0.1), front_layers(model, head="2"))
        >>> front.hold_first(2)
        >>> front.hold_first(1)
        >>> [parameter.requires_grad for parameter in model.parameters()][::2], front.parts
        ([False, True, True], ['0'])
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, front: FrontLayers) -> None:
        self.hold: Hold | None = None
        self._model = model
        self._optimizer = optimizer
        self._front = front
        self._count = 0
        self._kept_by_hand: set[str] = set()

    @property
    def count(self) -> int:
        """How many layers are frozen; 0 where someone else has released the hold."""
        return 0 if self.hold is None or self.hold.released else self._count

    @property
    def parts(self) -> list[str]:
        """What is frozen, as paths of modules, and of parameters that stand alone."""
        return self._front.parts(self._model, self.count) if self.count else []

    def hold_first(self, count: int) -> None:
        """Freeze these layers, and no others; 0 is none.

        What is thawed joins the mode that the model is in, but for modules that were in eval mode while the model was
        in train mode when they were frozen.

        Raises:
            CannotFreeze: they cannot be held; then what was frozen is.
        """
        earlier, parts_before = self.hold, self.parts
        parts = self._front.parts(self._model, count) if count else []
        by_hand = self._in_eval_by_hand(parts)
        # First the new hold, then the end of the old one: there is no moment in which anything is free.
        self.hold = freeze(self._model, *map(exactly, parts), optimizer=self._optimizer) if parts else None
        if earlier is not None:
            earlier.thaw()
        self._count = count
        self._kept_by_hand |= by_hand
        modules = dict(self._model.named_modules(remove_duplicate=False))
        thawed = [path for path in parts_before if path in modules and path not in parts]
        for path in thawed:
            modules[path].train(self._model.training)
        for path in self._kept_by_hand & modules.keys():
            if any(names.is_under(path, part) for part in thawed):
                modules[path].train(False)
        self._kept_by_hand = {path for path in self._kept_by_hand if any(names.is_under(path, part) for part in parts)}

    def _in_eval_by_hand(self, parts: list[str]) -> set[str]:
        if not self._model.training:
            return set()
        held = set() if self.hold is None else set(self.hold.paths)
        return {
            path
            for path, module in self._model.named_modules(remove_duplicate=False)
            if not module.training
            and names.join(path, "training") not in held
            and any(names.is_under(path, part) for part in parts)
        }
