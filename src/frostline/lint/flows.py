"""What code does from its start to its end: the events of a function with those of what it calls in their place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from frostline.lint.events import Condition, Event, Flow, Loop
from frostline.lint.scopes import Function
from frostline.lint.values import RETURNED, Value

if TYPE_CHECKING:
    from frostline.lint.module_walk import ModuleWalk

# Data of events that are paths. What `of` holds of a load or of zero_grad is a kind, which no function has as a name.
_PATHS = frozenset({"of", "paths", "scaler"})
# Longer than this no flow gets; what comes later is cut off, and said to be.
_MOST_EVENTS = 4_000
_DEEPEST = 6
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

    A flow begins with what stands outside of functions, or with a function that no other one of the file calls. A method
    comes behind ``__init__`` of its class.
    """
    walk.walk_all()
    called = {
        event.get("callee")
        for name, events in _all_events(walk)
        for event in events
        if event.what == "call" and event.get("file") == walk.source.path and event.get("callee") != name
    }
    flows = [_flow(walk, "<module>", [])]
    for name, function in walk.functions.items():
        if name in called or not function.events:
            continue
        init = walk.functions.get(f"{function.owner}.__init__") if function.owner else None
        before: list[Function] = []
        if init is not None and init is not function:
            before.append(init)
        elif init is function and _has_other_roots(walk, function, called):
            continue
        if function.owner and walk.is_lightning(walk.qualified(function.owner)):
            own = name.rpartition(".")[2]
            # What is called later than this one does not stand before it.
            earlier = _LIFECYCLE[: _LIFECYCLE.index(own)] if own in _LIFECYCLE else _LIFECYCLE
            names = (f"{function.owner}.{each}" for each in earlier)
            before += [walk.functions[each] for each in names if each in walk.functions]
        flows.append(_flow(walk, name, before))
    return flows


def _has_other_roots(walk: ModuleWalk, init: Function, called: set[Any]) -> bool:
    return any(
        each.owner == init.owner and each is not init and each.events and name not in called
        for name, each in walk.functions.items()
    )


def _all_events(walk: ModuleWalk) -> Iterator[tuple[str, list[Event]]]:
    yield "<module>", walk.events
    for name, function in walk.functions.items():
        yield name, function.events


def _flow(walk: ModuleWalk, name: str, before: list[Function]) -> Flow:
    expansion = _Expansion(walk)
    function = walk.functions.get(name)
    for each in before:
        expansion.run(walk, each.events, _Call.top(each.name))
    expansion.run(walk, function.events if function is not None else walk.events, _Call.top(name))
    has_callers = False
    if function is not None and not function.around and not function.owner:
        has_callers = walk.project.is_imported(function.name, walk.source.path)
    return Flow(
        name=name,
        events=tuple(expansion.events),
        has_callers=has_callers,
        parameters=function.parameters if function is not None else (),
        owner=function.owner if function is not None else "",
        is_complete=len(expansion.events) < _MOST_EVENTS,
        aliases=expansion.aliases,
    )


@dataclass(frozen=True)
class _Call:
    """How the function that is put in place was called.

    Attributes:
        name: the function.
        roots: what stands for the first part of its paths.
        constants: its parameters that were given a literal.
        locals: whether names that it binds itself are to be told from the caller's.
        node: the call in the file of the flow; ``None`` at the top.
        within: the file of the flow, or the file that the function stands in.
    """

    name: str
    roots: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    locals: frozenset[str] = frozenset()
    node: ast.AST | None = None
    loops: tuple[Loop, ...] = ()
    conditions: tuple[Condition, ...] = ()
    no_grad: bool = False
    via: tuple[str, ...] = ()
    stack: tuple[tuple[str, str], ...] = ()

    @staticmethod
    def top(name: str) -> _Call:
        return _Call(name)

    def path(self, path: str) -> str:
        """A path of the function, as its caller knows it."""
        if not path or self.node is None:
            return path
        root, rest = _split(path)
        if root in self.roots:
            above = self.roots[root]
            return f"{above}{rest}" if above else ""
        if root in self.locals:
            return f"{self.name}():{path}"
        return path


def _split(path: str) -> tuple[str, str]:
    for i, char in enumerate(path):
        if char in ".[":
            return path[:i], path[i:]
    return path, ""


class _Expansion:
    """Puts the events of what is called in the place of the call."""

    def __init__(self, walk: ModuleWalk) -> None:
        self._walk = walk
        # What is another name for what.
        self._aliases: dict[str, str] = {}
        self.events: list[Event] = []

    @property
    def aliases(self) -> dict[str, str]:
        """Other paths by which things are known, and the paths that the events have."""
        return self._aliases

    def run(self, walk: ModuleWalk, events: list[Event], call: _Call) -> None:
        """Add the events of one function."""
        for event in events:
            if len(self.events) >= _MOST_EVENTS:
                return
            called = self._callee(event) if event.what == "call" else None
            if event.what == "call" and called is None:
                continue
            conditions = self._conditions(event.conditions, call)
            if conditions is None:
                continue
            placed = self._placed(walk, event, call, conditions)
            if event.what == "alias":
                if placed.path != placed.get("of"):
                    self._aliases[placed.path] = placed.get("of")
            elif called is not None:
                self._called(*called, event, placed, call)
            else:
                self.events.append(placed)

    def _conditions(self, conditions: tuple[Condition, ...], call: _Call) -> tuple[Condition, ...] | None:
        """The branches as seen from outside; ``None`` where a literal argument rules this one out."""
        kept = list(call.conditions)
        for each in conditions:
            told = _decided(each.node, call.constants)
            if told is None:
                kept.append(each)
            elif told is not each.arm:
                return None
        return tuple(kept)

    def _placed(self, walk: ModuleWalk, event: Event, call: _Call, conditions: tuple[Condition, ...]) -> Event:
        if call.node is None and not self._aliases:
            return event if len(conditions) == len(event.conditions) else replace(event, conditions=conditions)
        data = {name: self._data(name, value, call) for name, value in event.data.items()} if event.data else {}
        path = event.path
        path = ",".join(self._path(each, call) for each in path.split(",")) if "," in path else self._path(path, call)
        node, line, column, origin = event.node, event.line, event.column, ""
        if walk is not self._walk:
            node = call.node
            line, column = getattr(node, "lineno", line), getattr(node, "col_offset", column)
            origin = f"{walk.source.path}:{event.line}"
        key = (id(call.node),) if call.node is not None else ()
        loops = tuple(
            replace(
                loop,
                key=(*key, *loop.key),
                over=self._value(loop.over, call),
                conditions=len(call.conditions) + sum(each in conditions for each in event.conditions[: loop.conditions]),
                node=loop.node if walk is self._walk else None,
            )
            for loop in event.loops
        )
        return Event(
            what=event.what,
            path=path,
            line=line,
            column=column,
            node=node,
            loops=(*call.loops, *loops),
            conditions=conditions,
            no_grad=event.no_grad or call.no_grad,
            function=event.function,
            via=call.via,
            origin=origin,
            data=data,
        )

    def _path(self, path: str, call: _Call) -> str:
        path = call.path(path)
        for _ in range(4):
            end = len(path) if self._aliases else 0
            while end > 0 and path[:end] not in self._aliases:
                end = max(path.rfind(".", 0, end), path.rfind("[", 0, end))
            if end <= 0:
                break
            path = self._aliases[path[:end]] + path[end:]
        return path

    def _data(self, name: str, value: Any, call: _Call) -> Any:
        if name in _PATHS and isinstance(value, str):
            return self._path(value, call)
        if isinstance(value, Value):
            if value.kind == "argument":
                return call.constants.get(value.path, value if call.node is None else None)
            return self._value(value, call)
        if isinstance(value, list):
            return [self._data(name, each, call) for each in value]  # pyright: ignore[reportUnknownVariableType]
        return value

    def _value(self, value: Value | None, call: _Call) -> Value | None:
        if value is None:
            return None
        path = self._path(value.path, call) if value.path else ""
        if path == value.path and not value.items and not value.copy_of:
            return value
        items = tuple(self._value(item, call) for item in value.items) if value.items else ()
        copy_of = self._path(value.copy_of, call) if value.copy_of else ""
        return replace(value, path=path, items=items, copy_of=copy_of)

    def _callee(self, event: Event) -> tuple[ModuleWalk, Function] | None:
        """The function that is called, where it does anything that can be noticed."""
        file: str = event.data["file"]
        # What another file holds may have been let go of since; it is opened again then.
        walk = self._walk if file == self._walk.source.path else self._walk.project.open(file)
        if walk is None or event.data["callee"] not in walk.functions:
            return None
        function = walk.function(event.data["callee"])
        return (walk, function) if _matters(walk, function, event.data["is_init"]) else None

    def _called(self, walk: ModuleWalk, function: Function, event: Event, placed: Event, call: _Call) -> None:
        """What a function does that is called here."""
        name = function.name
        key = (walk.source.path, name)
        if len(call.stack) >= _DEEPEST or key in call.stack:
            return
        roots, constants = self._given(function, event, placed, call)
        node = event.node if call.node is None or self._walk is walk else call.node
        if placed.origin:
            node = call.node
        inner = _Call(
            name=name,
            roots=roots,
            constants=constants,
            locals=function.local_names - roots.keys(),
            node=node,
            loops=placed.loops,
            conditions=placed.conditions,
            no_grad=placed.no_grad,
            via=(*call.via, f"{name}:{placed.line}"),
            stack=(*call.stack, key),
        )
        self.run(walk, function.events, inner)

    def _given(
        self, function: Function, event: Event, placed: Event, call: _Call
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """What the parameters of a function stand for, and which are literals."""
        data = event.data
        receiver: Value | None = data["receiver"]
        names = list(function.parameters)
        roots: dict[str, str] = {}
        constants: dict[str, Any] = {}
        if function.is_bound and names:
            own = names.pop(0)
            if data["is_init"]:
                roots["self"] = roots[own] = placed.path.partition(",")[0]
            elif receiver is not None:
                roots["self"] = roots[own] = self._path(receiver.path, call)
        for argument, default in function.defaults():
            if isinstance(default, ast.Constant):
                constants[argument] = default.value
        given = [*zip(names, data["paths"], data["args"], strict=False)]
        given += [(n, path, data["named"].get(n)) for n, path in data["keyed"].items() if n in names]
        for argument, path, value in given:
            constants.pop(argument, None)
            roots[argument] = self._path(path, call)
            if value is not None and value.kind == "const":
                constants[argument] = value.const
            elif value is None and path in call.constants:
                constants[argument] = call.constants[path]
        for argument in names:
            roots.setdefault(argument, "")
        for own, theirs in _returned(function, placed.path):
            roots.setdefault(own, theirs)
        return roots, constants


# What makes the parts of an object.
_MAKING = frozenset({"new", "new_parameter", "renew", "init"})


def _matters(walk: ModuleWalk, function: Function, is_init: bool) -> bool:
    """Whether a function does anything that its caller could notice; most constructors of modules do not."""
    if function.matters is None:
        function.matters = False  # what calls itself does nothing by that
        function.matters = any(_is_noticed(walk, event, function, is_init) for event in function.events)
    return function.matters


def _is_noticed(walk: ModuleWalk, event: Event, function: Function, is_init: bool) -> bool:
    if event.what == "call":
        file: str = event.data["file"]
        other = walk if file == walk.source.path else walk.project.open(file)
        if other is None or event.data["callee"] not in other.functions:
            return False
        return _matters(other, other.function(event.data["callee"]), event.data["is_init"])
    root, rest = _split(event.path)
    if event.what in _MAKING:
        # What an object is made of, or what never leaves the function, is no surprise to the caller.
        return bool(rest) and not (is_init and root == "self") and (root == "self" or root in function.parameters)
    if event.what == "alias":
        return _split(event.get("of"))[0] in function.parameters
    return True


def _returned(function: Function, path: str) -> Iterator[tuple[str, str]]:
    """What the caller calls what a function returns, by what the function calls it."""
    value = function.returned
    if value is None or not path:
        return
    if value.kind == "tuple":
        for item, each in zip(value.items, path.split(","), strict=False):
            if item is not None and item.path and _split(item.path)[1] == "":
                yield item.path, each
    elif value.path and _split(value.path)[1] == "":
        yield value.path, path
    yield RETURNED, path


def _decided(test: ast.expr | None, constants: dict[str, Any]) -> bool | None:
    """The value of a test on a parameter that was given a literal."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        told = _decided(test.operand, constants)
        return None if told is None else not told
    if isinstance(test, ast.Name) and test.id in constants:
        return bool(constants[test.id])
    return None
