"""Which parts of a model an optimizer of a flow was given."""

from __future__ import annotations

from frostline.lint.events import Event, Flow
from frostline.lint.values import PARAMETERS, Value, is_below, owner_of

_WHOLE = PARAMETERS | {"module", "parameter"}


def optimizer_of(flow: Flow, step: Event) -> Event | None:
    """The making of the optimizer that steps, or clears; the last one before it by that path."""
    made: Event | None = None
    for event in flow.events:
        if event is step:
            break
        if event.what == "optimizer" and event.path == step.path:
            made = event
    return made


def is_given(flow: Flow, part: str, optimizer: Event) -> bool | None:
    """Whether an optimizer has the parameters of a part: some of them is enough; ``None`` where it cannot be told.

    What a filter leaves over is not told, since it is nearly always one by ``requires_grad``.
    """
    sources: list[Value] = list(optimizer.get("sources") or [])
    for event in flow.of("add_group"):
        if event.path == optimizer.path:
            sources += event.get("sources") or []
    told: bool | None = False
    for source in sources:
        path = owner_of(source.path)
        if not path or source.kind not in _WHOLE:
            told = None
        elif is_below(part, path) or is_below(path, part):
            if not source.filtered:
                return True
            told = None
    return told if sources else None


def gives_more(optimizer: Event, part: str) -> bool:
    """Whether an optimizer has something besides a part: what the part lies in, or another one."""
    sources: list[Value] = optimizer.get("sources") or []
    return any(source.path and not is_below(owner_of(source.path), part) for source in sources)
