"""Models that a flow wraps for distributed training: what lies inside of the wrapper, and what happens later."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.lint.events import Event, Flow
from frostline.lint.values import is_below, owner_of

_TESTS = re.compile(r"eval|valid|test|sampl|generat|infer|predict|export|save|demo|visual", re.I)


@dataclass(frozen=True)
class Wrapping:
    """A model that is wrapped, at one place of a flow.

    Attributes:
        flow: what happens before and after.
        index: which of its events wraps.
        event: that event.
    """

    flow: Flow
    index: int
    event: Event

    @property
    def wrapper(self) -> str:
        """The path of the wrapper."""
        return self.event.path

    def inside(self, path: str) -> str | None:
        """What a path names inside of the model: "" all of it, ``.fc`` a part; ``None`` where it lies elsewhere."""
        path = owner_of(path)
        for above in (f"{self.wrapper}.module", self.wrapper, str(self.event.get("of", ""))):
            if above and is_below(path, above):
                return path[len(above) :]
        return None

    def later(self) -> Iterator[tuple[int, Event]]:
        """What happens after it, with its place in the flow, up to where it is wrapped anew, in the same branch."""
        for index in range(self.index + 1, len(self.flow.events)):
            event = self.flow.events[index]
            if is_elsewhere(self.event, event):
                continue
            if event.what == "wrap" and event.get("how") == "ddp" and self._is_again(event):
                return
            yield index, event

    def is_redone(self, index: int) -> bool:
        """Whether the model is wrapped anew behind an event, before anything is trained."""
        for event in self.flow.events[index + 1 :]:
            if event.what in {"backward", "step", "scaler_step"}:
                return False
            if event.what == "wrap" and event.get("how") == "ddp" and self._is_again(event):
                return True
        return False

    def _is_again(self, event: Event) -> bool:
        return event.path == self.wrapper or self.inside(str(event.get("of", ""))) == ""


def wrappings(flow: Flow) -> Iterator[Wrapping]:
    """Where a flow wraps a model in ``DistributedDataParallel``."""
    for index, event in enumerate(flow.events):
        if event.what == "wrap" and event.get("how") == "ddp" and event.path:
            yield Wrapping(flow, index, event)


def is_in_test(event: Event) -> bool:
    """Whether an event stands in a function that does not train, by its name or by that of one which calls it."""
    return bool(_TESTS.search(f"{event.function} {' '.join(event.via)}"))


def is_elsewhere(one: Event, other: Event) -> bool:
    """Whether two events stand in branches of which only one runs."""
    arms = {condition.key: condition.arm for condition in one.conditions}
    return any(arms.get(condition.key, condition.arm) is not condition.arm for condition in other.conditions)


def trains_after(flow: Flow, index: int) -> bool | None:
    """Whether something is trained after an event of a flow; ``None`` where the flow trains nothing that is seen."""
    event = flow.events[index]
    loops = {loop.key for loop in event.loops if loop.kind != "comprehension"}
    trained = [(i, e) for i, e in enumerate(flow.events) if e.what in {"backward", "step", "scaler_step"}]
    if not trained:
        return None
    return any(
        not is_elsewhere(event, e) and (i > index or any(loop.key in loops for loop in e.loops)) for i, e in trained
    )
