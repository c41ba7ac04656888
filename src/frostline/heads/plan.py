"""What changing a head would do, as a value, and what it did.

Knows how a new head takes the place of an old one in model and optimizer; knows nothing of how it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from frostline.errors import ModelError, name_some, printable
from frostline.heads.initial import Head
from frostline.heads.seats import Seat, find_seats, reseat
from frostline.heads.site import HeadSite, find_head
from frostline.state import names
from frostline.state.inventory import SCHEMA_VERSION
from frostline.tables import html_text

# Where models keep their number of classes: timm's and most others, and those of transformers.
_WIDTH_ATTRIBUTES = ("num_classes", "num_labels")

States: TypeAlias = "dict[str, dict[str, Any]]"


@dataclass(frozen=True, eq=False)
class HeadChange:
    """A head that was replaced or widened; prints itself.

    Attributes:
        path: its dotted path.
        old: how many outputs it had.
        new: how many it has.
        kept: how many outputs it still has of those.
        classes: their names in order, if they were given.
        module: the new head.
        group: the index of its weight's group in the optimizer; ``None`` if it is in none.
        parameters: how many elements its parameters have.
        notes: what else was changed, and what the user should know.
    """

    path: str
    old: int
    new: int
    kept: int
    classes: tuple[str, ...] | None
    module: nn.Module = field(repr=False)
    group: int | None
    parameters: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The change as JSON-ready values with a schema version; the module is left out."""
        return {
            "schema_version": SCHEMA_VERSION,
            "path": self.path,
            "old": self.old,
            "new": self.new,
            "kept": self.kept,
            "classes": None if self.classes is None else list(self.classes),
            "group": self.group,
            "parameters": self.parameters,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        count = f"{self.parameters:,} parameters"
        said = _say(self.path, self.old, self.new, self.kept, self.classes)
        return "\n".join([f"{said}, {count}", *([f"  {'; '.join(self.notes)}"] if self.notes else [])])

    def _repr_html_(self) -> str:
        return html_text(self)


@dataclass(frozen=True, eq=False)
class HeadPlan:
    """What would be done to a head; :meth:`apply` does it whole or not at all. Prints itself.

    Attributes:
        path: its dotted path.
        old: how many outputs it has.
        new: how many it would have.
        kept: how many it would keep of those.
        classes: their names in order, if they were given.
        group: the index of its weight's group in the optimizer; ``None`` if it is in none.
        notes: what else would be changed, and what the user should know.
    """

    path: str
    old: int
    new: int
    kept: int
    classes: tuple[str, ...] | None
    group: int | None
    notes: tuple[str, ...]
    _steps: HeadSteps = field(repr=False)

    def apply(self) -> HeadChange:
        """Make the new head and put it in place; model and optimizer are as before if anything fails.

        Raises:
            ModelError: the model or the optimizer is no longer what was planned for.
        """
        made = self._steps.carry_out()
        count = sum(parameter.numel() for parameter in made.parameters())
        return HeadChange(self.path, self.old, self.new, self.kept, self.classes, made, self.group, count, self.notes)

    def __str__(self) -> str:
        said = f"plan: {_say(self.path, self.old, self.new, self.kept, self.classes)}"
        return "\n".join([said, *(f"  {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        return html_text(self)


@dataclass(frozen=True, eq=False)
class HeadSteps:
    """How a planned change is carried out.

    Attributes:
        model: the model as it was given.
        verb: the function that was asked.
        site: the head that was found.
        optimizer: the torch optimizer, if one was given.
        seats: the places of the head's parameters in it.
        make: makes the new head from the old one, changing nothing.
        states: the optimizer's state for the new head, by parameter name.
        classes: how many classes the model has before and after, for the attributes that say so.
    """

    model: nn.Module
    verb: str
    site: HeadSite
    optimizer: Optimizer | None
    seats: dict[str, Seat]
    make: Callable[[], Head]
    states: Callable[[Head], States]
    classes: tuple[int, int]

    def carry_out(self) -> Head:
        """Change model and optimizer, or neither."""
        self._check_still_true()
        # Parameters that are made in inference mode could never be trained.
        with torch.inference_mode(False), torch.no_grad():
            made = self.make()
            states = self.states(made)
        with ExitStack() as undo:
            for place in self.site.places:
                undo.callback(place.put, self.site.module)
                place.put(made)
            for owner, _, attribute in self.width_attributes():
                undo.callback(setattr, owner, attribute, self.classes[0])
                setattr(owner, attribute, self.classes[1])
            if self.optimizer is not None:
                new = dict(made.named_parameters())
                reseat(self.optimizer, self.seats, new, states, undo)
            undo.pop_all()
        return made

    def width_attributes(self) -> list[tuple[nn.Module, str, str]]:
        """The modules above the head that say how many classes there are: module, path and attribute."""
        found: dict[tuple[int, str], tuple[nn.Module, str, str]] = {}
        for path, owner in self.site.owners.items():
            for attribute in _WIDTH_ATTRIBUTES:
                value = vars(owner).get(attribute)
                if type(value) is int and value == self.classes[0]:
                    found.setdefault((id(owner), attribute), (owner, path, attribute))
        return list(found.values())

    def plan(self, kept: int, names_of_classes: tuple[str, ...] | None, rows: int, notes: list[str]) -> HeadPlan:
        """The plan that prints these steps."""
        group = self.seats["weight"].group if "weight" in self.seats else None
        site = self.site
        said = [*self._say_places(), *self._say_attributes(), *self._say_seats(), *notes]
        return HeadPlan(site.path, site.rows, rows, kept, names_of_classes, group, tuple(said), self)

    def _check_still_true(self) -> None:
        site = find_head(self.model, self.site.path, self.verb)
        now = {} if self.optimizer is None else find_seats(self.optimizer, site.parameters)
        seats = {name: (seat.group, seat.position) for name, seat in now.items()}
        planned = {name: (seat.group, seat.position) for name, seat in self.seats.items()}
        if not site.is_still(self.site) or seats != planned:
            raise ModelError(
                f"{site.asked}: the model or its optimizer has changed since this was planned\n  fix: plan it anew"
            )

    def _say_places(self) -> list[str]:
        paths = self.site.paths
        return [f"one module under {len(paths)} paths, and stays one: {name_some(paths)}"] if len(paths) > 1 else []

    def _say_attributes(self) -> list[str]:
        old, new = self.classes
        attributes = [names.join(path, attribute) for _, path, attribute in self.width_attributes()]
        return [f"{name_some(attributes)}: {old} -> {new}"] if attributes and old != new else []

    def _say_seats(self) -> list[str]:
        if self.optimizer is None:
            return []
        named = type(self.optimizer).__name__
        groups: dict[int, list[str]] = {}
        for name, seat in self.seats.items():
            groups.setdefault(seat.group, []).append(name)
        said = [f"{' and '.join(groups[group])} in group {group} of {named}" for group in sorted(groups)]
        outside = [name for name in self.site.parameters if name not in self.seats]
        if outside:
            said.append(
                f"{' and '.join(outside)} in no group of {named}, as before: optimizer.add_param_group(...) trains them"
            )
        return said


def _say(path: str, old: int, new: int, kept: int, classes: tuple[str, ...] | None) -> str:
    shown = f" ({name_some(classes, most=4)})" if classes else ""
    rows = f", {kept} kept" if kept else ""
    return f"{printable(path)}: {old:,} -> {new:,} outputs{shown}{rows}"
