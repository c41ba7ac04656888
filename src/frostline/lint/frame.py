"""Where the walk through a file stands: in which function, loop and branch, and what it has seen happen there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from frostline.lint.events import Condition, Event, Loop
from frostline.lint.scopes import Names
from frostline.lint.values import EACH, Value


class Frame:
    """One function, or what stands outside of any, while it is walked through.

    Args:
        function: its qualified name in the file.
        owner: the class it is a method of; "" if none.
        names: what names stand for in it.
        used_as_module: paths that are asked for what only modules have.
    """

    def __init__(self, function: str, owner: str, names: Names, used_as_module: frozenset[str]) -> None:
        self.function = function
        self.owner = owner
        self.names = names
        self.used_as_module = used_as_module
        self.events: list[Event] = []
        self.loops: tuple[Loop, ...] = ()
        self.conditions: tuple[Condition, ...] = ()
        self.no_grad = 0
        # In a lambda, or in a generator that may never be consumed: nothing happens there.
        self.quiet = 0
        # The expression that is a statement by itself: nobody uses its value.
        self.unused: ast.expr | None = None
        self.fresh: dict[int, list[Event]] = {}
        self.returned: list[Value] = []
        # Names that were declared global or nonlocal.
        self.shared: set[str] = set()

    def emit(self, what: str, path: str, node: ast.AST, **data: Any) -> None:
        """Take down that something happens."""
        if self.quiet:
            return
        event = Event(
            what=what,
            path=path,
            line=getattr(node, "lineno", 0),
            column=getattr(node, "col_offset", 0),
            node=node,
            loops=self.loops,
            conditions=self.conditions,
            no_grad=self.no_grad > 0,
            function=self.function,
            data=data,
        )
        self.events.append(event)

    def emit_new(self, what: str, node: ast.AST, **data: Any) -> None:
        """Take down that something is made, which gets its path when it is given a name."""
        if self.quiet:
            return
        self.emit(what, "", node, **data)
        self.fresh.setdefault(id(node), []).append(self.events[-1])

    def name_fresh(self, node: ast.AST, path: str) -> None:
        """What was made by this expression has a path now."""
        for event in self.fresh.pop(id(node), ()):
            # The events of a frame are not shared before the walk is over.
            object.__setattr__(event, "path", path)

    def pass_on(self, inner: ast.AST, outer: ast.AST, since: int) -> None:
        """A call gives back what it was called on: what that gets its name from is the call now.

        Args:
            inner: what the call is called on.
            outer: the call.
            since: how many events there were before it.
        """
        done = [event for event in self.events[since:] if not event.path and event.what in {"mode", "flag", "move"}]
        found = [*self.fresh.pop(id(inner), ()), *done]
        if found:
            self.fresh[id(outer)] = found

    def subjects(self, value: Value | None, path: str) -> Iterator[tuple[str, Value | None]]:
        """Whom something is done to: more than one where a loop goes over a literal list of them."""
        if value is not None and value.path.endswith(EACH) and value.items:
            for item in value.items:
                if item is not None:
                    yield item.path, item
        else:
            yield (value.path if value is not None and value.path else path), value
