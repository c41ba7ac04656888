"""Which parameters the optimizers of a flow have, as far as source tells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.lint.events import Event, Flow
from frostline.lint.frozen_parts import shown
from frostline.lint.iterations import loop_of, within
from frostline.lint.phases import Phases
from frostline.lint.values import PARAMETERS, Value, is_below, owner_of, related
from frostline.lint.wrapping import is_elsewhere

STEPS = frozenset({"step", "scaler_step"})
_REQUIRED = re.compile(r"^(not \(not )?(p|\w+\[1\])\.requires_grad( (is|==) True)?\)?$")
# Calls that nobody here knows, and that may well give an optimizer more or make it anew.
_REBUILDS = re.compile(r"param_group|optim|unfreeze|thaw|rebuild|reset|setup|configure|add_|grow|prepare|init", re.I)


@dataclass(frozen=True)
class Owner:
    """An optimizer that was made, or a group that was added to one.

    Attributes:
        index: the place of the event in the flow.
        event: that event.
        sources: what it was given, with paths as the model has them without its wrappers.
    """

    index: int
    event: Event
    sources: tuple[Value, ...]

    @property
    def is_known(self) -> bool:
        """Whether it is known whose parameters all of them are."""
        return bool(self.sources) and all(
            source.path and source.kind in PARAMETERS | {"parameter"} for source in self.sources
        )

    @property
    def name(self) -> str:
        """What the optimizer is called."""
        return shown(self.event.path) if self.event.path not in {"", "<return>"} else "the optimizer"

    @property
    def given(self) -> str:
        """What it was given, as a list of paths for people."""
        return ", ".join(dict.fromkeys(shown(source.path) for source in self.sources))

    def has_all(self, path: str) -> bool:
        """Whether it surely has all parameters at a path."""
        return any(not s.filtered and s.kind in PARAMETERS and is_below(path, s.path) for s in self.sources)

    def may_have(self, path: str) -> bool:
        """Whether it may have some of the parameters at a path."""
        return any(related(path, s.path) for s in self.sources if s.path) or not self.is_known

    def required_only(self, path: str) -> bool:
        """Whether what it has at a path is exactly what was trainable when it was made."""
        mine = [s for s in self.sources if related(path, s.path)]
        return bool(mine) and all(is_required_only(s) and is_below(path, s.path) for s in mine)


def is_required_only(source: Value) -> bool:
    """Whether parameters are left out for one reason only: they do not require gradients.

    Example:
        >>> is_required_only(Value("parameters", path="model", filtered=True, tests=("p.requires_grad",)))
        True
        >>> is_required_only(Value("parameters", path="model", filtered=True, tests=("'head' in name",)))
        False
    """
    return source.filtered and bool(source.tests) and all(_REQUIRED.match(test) for test in source.tests)


def place_of(flow: Flow, event: Event) -> int:
    """Which of the events of a flow one is, by identity: two calls on one line may be equal."""
    return next(i for i, each in enumerate(flow.events) if each is event)


def root_of(path: str) -> str:
    """What a path begins with that tells one model from another: its first name, of an object's attribute two.

    Example:
        >>> root_of("model.trunk.0"), root_of("self.net.trunk"), root_of("layers[0]")
        ('model', 'self.net', 'layers')
    """
    function, mark, inner = path.rpartition("():")
    parts = inner.partition("[")[0].split(".")
    return f"{function}{mark}" + (".".join(parts[:2]) if parts[0] in {"self", "cls"} else parts[0])


def _surely_has(source: Value, path: str) -> bool:
    """Whether an optimizer was given parameters at a path, or what it lies in."""
    if not source.path or not related(source.path, path):
        return False
    return not source.filtered or is_required_only(source)


class Ownership:
    """The optimizers of a flow, and what is done to what they have.

    Args:
        flow: the flow.

    Attributes:
        flow: the flow.
        owners: all that was made or added, in order.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._phases = Phases(flow)
        self.owners = [self._owner(i, e) for i, e in enumerate(flow.events) if e.what in {"optimizer", "add_group"}]

    def path(self, path: str) -> str:
        """The path of a part of a model without its wrappers, and without what loops put behind it."""
        return self._phases.canonical(path)

    def _owner(self, index: int, event: Event) -> Owner:
        sources: list[Value] = event.get("sources", [])
        return Owner(index, event, tuple(each.at(self.path(owner_of(each.path))) for each in sources))

    def made(self) -> Iterator[Owner]:
        """The optimizers, without groups that were added later."""
        return (owner for owner in self.owners if owner.event.what == "optimizer")

    def later(self, owner: Owner, event: Event) -> bool:
        """Whether an event comes behind the making of an optimizer, in the same branch."""
        index = place_of(self.flow, event)
        return index > owner.index and not is_elsewhere(owner.event, event)

    def is_given_later(self, path: str, event: Event) -> bool:
        """Whether an optimizer that is made behind an event, or a group that is added anywhere, may have a path."""
        index = place_of(self.flow, event)
        return any(
            (owner.index > index or owner.event.what == "add_group") and owner.may_have(path) for owner in self.owners
        )

    def may_be_given(self, event: Event, *paths: str) -> bool:
        """Whether a function that nobody here knows may give what is at some paths to an optimizer behind an event."""
        index = place_of(self.flow, event)
        names = [self.path(path) for path in paths]
        for each in self.flow.events[index + 1 :]:
            if each.what == "unknown" and _REBUILDS.search(str(each.get("name", ""))):
                given = [self.path(path) for path in each.get("paths", ())]
                receiver = self.path(str(each.get("name", "")).rpartition(".")[0])
                if any(related(name, other) for name in names for other in (*given, receiver) if other):
                    return True
        return False

    def orphaned(self, event: Event, path: str) -> Owner | None:
        """The optimizer that has what an event puts something new in the place of; ``None`` where it gets that later.

        Args:
            event: the event.
            path: what is new from there on.
        """
        path = self.path(path)
        index = place_of(self.flow, event)
        having = [
            owner
            for owner in self.made()
            if owner.index < index and self.later(owner, event) and any(_surely_has(s, path) for s in owner.sources)
        ]
        if not having or self.is_given_later(path, event):
            return None
        owner = having[-1]
        return None if self.may_be_given(event, path, owner.event.path) else owner

    def steps_unseen(self) -> bool:
        """Whether an optimizer steps that the flow did not make."""
        made = {owner.event.path for owner in self.made()}
        return any(
            event.what in STEPS and event.path and event.path not in made and f"self.{event.path}" not in made
            for event in self.flow.events
        )

    def trains_after(self, event: Event, owner: Owner) -> bool | None:
        """Whether an optimizer steps behind an event; ``None`` where the flow has no step of it."""
        index = place_of(self.flow, event)
        loop = loop_of(event)
        steps = [(i, e) for i, e in enumerate(self.flow.events) if self._is_step(e, owner)]
        if not steps:
            return None
        return any(
            not is_elsewhere(event, e) and (i > index or (loop is not None and within(e, loop))) for i, e in steps
        )

    def _is_step(self, event: Event, owner: Owner) -> bool:
        if event.what in STEPS:
            return event.path in {owner.event.path, ""}
        # train(model, optimizer): what else would it be given both for?
        return event.what == "unknown" and bool(owner.event.path) and owner.event.path in event.get("paths", ())

    def flags(self, path: str, value: bool, *, before: int | None = None) -> list[Event]:
        """Where parameters at, in or around a path are frozen, or thawed, in the flow or before a place in it."""
        return [
            event
            for event in self.flow.events[:before]
            if ((event.what == "flag" and event.get("value") is value) or (event.what == "hold" and not value))
            and related(self.path(event.path), path)
        ]

    def is_frozen(self, path: str, index: int) -> Event | None:
        """What surely froze all of a path before a place in the flow, if nothing thawed any of it behind that."""
        found: Event | None = None
        for event in self.flow.events[:index]:
            if event.what != "flag" or not related(self.path(event.path), path):
                continue
            if event.get("value") is False and event.whole and is_below(path, self.path(event.path)):
                found = event
            elif event.get("value") is not False:
                found = None
        return found
