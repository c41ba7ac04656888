"""What code does from its start to its end: the events of a function with those of what it calls in their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from frostline.lint.events import Event, Flow
from frostline.lint.expansion import Expansion, PlacedCall, matters
from frostline.lint.scopes import Function

if TYPE_CHECKING:
    from frostline.lint.module_walk import ModuleWalk

# Longer than this no flow gets; what comes later is cut off, and said to be. Rules compare events with each other, so
# that the time grows with the square of this. Of 4,500 functions of timm, torchvision and accelerate none comes to 300.
_MOST_EVENTS = 1_000
# So many events have the flows of a file together, which is several times what a file of those packages has. Flows
# behind these are cut off earlier, which keeps generated files in bounds.
_MOST_TOGETHER = 20_000
_MOST_BEHIND = 50
_LIFECYCLE = (
    "configure_model",
    "configure_optimizers",
    "setup",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
)


def flows_of(walk: ModuleWalk) -> list[Flow]:
    """The flows of a file, each function in at least one of them.

    A flow begins with what stands outside of functions, or with a function that no other one of the file calls. A
    method comes behind ``__init__`` of its class. Functions that only call each other, or are called too deep inside to
    be put in place, begin a flow too.
    """
    walk.walk_all()
    called = {
        event.get("callee")
        for name, events in _all_events(walk)
        for event in events
        if event.what == "call" and event.get("file") == walk.source.path and event.get("callee") != name
    }
    roots = {name: each for name, each in walk.functions.items() if each.events and name not in called}
    roots_of = Counter(each.owner for each in roots.values())
    making = _Making(walk)
    making.add("<module>", ())
    for name, function in roots.items():
        is_init = name == f"{function.owner}.__init__"
        if not (is_init and roots_of[function.owner] > 1):
            making.add(name, _before(walk, function))
    for name in walk.functions:
        if name in called and name not in making.placed and matters(walk, walk.functions[name], False):
            making.add(name, _before(walk, walk.functions[name]))
    return making.flows


def _before(walk: ModuleWalk, function: Function) -> Sequence[Function]:
    """The methods that have run when this one does."""
    if not function.owner:
        return ()
    init = walk.functions.get(f"{function.owner}.__init__")
    before = [init] if init is not None and init is not function else []
    if walk.is_lightning(walk.qualified(function.owner)):
        own = function.name.rpartition(".")[2]
        # What is called later than this one does not stand before it.
        earlier = _LIFECYCLE[: _LIFECYCLE.index(own)] if own in _LIFECYCLE else _LIFECYCLE
        names = (f"{function.owner}.{each}" for each in earlier)
        before += [walk.functions[each] for each in names if each in walk.functions]
    return before


def _all_events(walk: ModuleWalk) -> Iterator[tuple[str, list[Event]]]:
    yield "<module>", walk.events
    for name, function in walk.functions.items():
        yield name, function.events


class _Making:
    """The flows of a file that have been made so far.

    Attributes:
        flows: in order.
        placed: the functions of the file that have been put in place of a call, to their ends.
    """

    def __init__(self, walk: ModuleWalk) -> None:
        self._walk = walk
        self._left = _MOST_TOGETHER
        self.flows: list[Flow] = []
        self.placed: set[str] = set()

    def add(self, name: str, before: Iterable[Function]) -> None:
        """Make the flow that begins with a function, behind others."""
        walk = self._walk
        expansion = Expansion(walk, _MOST_EVENTS if self._left > 0 else _MOST_BEHIND)
        function = walk.functions.get(name)
        for each in before:
            expansion.run(walk, each.events, PlacedCall.top(each.name))
        expansion.run(walk, function.events if function is not None else walk.events, PlacedCall.top(name))
        self._left -= len(expansion.events)
        self.placed |= expansion.placed
        has_callers = False
        if function is not None and not function.around and not function.owner:
            has_callers = walk.project.is_imported(function.name, walk.source.path)
        self.flows.append(
            Flow(
                name=name,
                events=tuple(expansion.events),
                has_callers=has_callers,
                parameters=function.parameters if function is not None else (),
                owner=function.owner if function is not None else "",
                is_complete=not expansion.is_cut,
                aliases=expansion.aliases,
            )
        )
