"""Which calls of a run are a function of the model's inputs and of frozen tensors alone; and why the others are not.

Knows traces; runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from frostline.fast.tracing import Call, Event, Memory, Trace

Key = tuple[str, int]


@dataclass
class Purity:
    """What was found out about a run.

    Attributes:
        trace: the run.
        reasons: index of each call that is not pure, to why.
        first: index of each call in which a reason arises by itself, and is not the consequence of another.
        outermost: index of each call to the outermost pure call that it is part of; pure calls only.
    """

    trace: Trace
    reasons: dict[int, str] = field(default_factory=dict[int, str])
    first: dict[int, str] = field(default_factory=dict[int, str])
    outermost: dict[int, int] = field(default_factory=dict[int, int])

    def pure(self) -> list[Call]:
        """All pure calls, in the order in which they began."""
        return [call for call in self.trace.calls if call.index not in self.reasons]

    def tops(self) -> list[Call]:
        """The outermost pure calls."""
        return [call for call in self.trace.calls if self.outermost.get(call.index) == call.index]


def judge(trace: Trace, forced: Mapping[Key, str]) -> Purity:
    """Follow what is not pure through a run: from where it arises to all that depends on it.

    Args:
        trace: the run, with operations.
        forced: calls whose results are known not to be pure, with the reason.
    """
    purity = Purity(trace)
    for event, reason in follow(trace, forced):
        if reason is None:
            continue
        said, own = reason
        index = event.call
        if own and index >= 0:
            purity.first.setdefault(index, said)
        while index >= 0:
            purity.reasons.setdefault(index, said)
            index = trace.calls[index].parent
    for call in purity.pure():
        # A call begins after the one that it is part of.
        purity.outermost[call.index] = purity.outermost.get(call.parent, call.index)
    writers = _writers_of_inputs(purity)
    if not writers:
        return purity
    return judge(trace, {**forced, **{call.key: "changes what it was given in place" for call in writers}})


def follow(trace: Trace, forced: Mapping[Key, str]) -> Iterator[tuple[Event, tuple[str, bool] | None]]:
    """Each event, and where its result is not pure the reason, and whether that arises here."""
    tainted: dict[Memory, str] = {}
    for event in trace.events:
        own = event.reason
        if event.kind == "return":
            own = forced.get(trace.calls[event.call].key)
        looked_at = event.gives if event.kind == "return" else (*event.reads, *event.writes)
        met = next((tainted[each] for each in looked_at if each in tainted), None)
        reason = own if own is not None else met
        if reason is not None:
            for each in (*event.gives, *event.writes):
                tainted.setdefault(each, reason)
        yield event, None if reason is None else (reason, own is not None)


def _writers_of_inputs(purity: Purity) -> list[Call]:
    """Outermost pure calls that write into memory which came from outside and is not what they return."""
    trace = purity.trace
    made: dict[int, set[Memory]] = {}
    written: dict[int, set[Memory]] = {}
    for event in trace.events:
        top = purity.outermost.get(event.call)
        if top is None:
            continue
        if event.kind == "return" and event.call == top:
            made.setdefault(top, set()).update(event.gives)
        elif event.kind == "operation":
            fresh = set(event.gives) - set(event.reads)
            made.setdefault(top, set()).update(fresh)
            written.setdefault(top, set()).update(event.writes)
    return [trace.calls[top] for top, writes in written.items() if writes - made.get(top, set())]
