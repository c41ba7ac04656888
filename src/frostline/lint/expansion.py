"""Puts what functions do in the place of the calls of them: whatever has a name there gets the name it has here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from frostline.lint.events import Condition, Event, Loop
from frostline.lint.scopes import Function
from frostline.lint.values import RETURNED, Value, is_below

if TYPE_CHECKING:
    from frostline.lint.module_walk import ModuleWalk

_LONGEST_PATH = 200
# Data of events that are paths. What `of` holds of other events than these is a kind.
_PATHS = frozenset({"paths", "scaler"})
_PATH_OF = frozenset({"alias", "wrap", "scheduler"})
# So many calls are looked at in one flow: of functions that all call each other there is no end.
_MOST_CALLS = 10_000
_DEEPEST = 6


@dataclass(frozen=True)
class PlacedCall:
    """How the function that is put in place was called.

    Attributes:
        name: the function.
        roots: what stands for the first part of its paths.
        around: what names stand for in the functions that it stands in.
        constants: its parameters that were given a literal.
        locals: whether names that it binds itself are to be told from the caller's.
        node: the call in the file of the flow; ``None`` at the top.
        loops: those that the call stands in.
        conditions: likewise its branches.
        no_grad: gradients are switched off where it stands.
        via: the calls it was reached through, as events have them.
        stack: file and name of what is being put in place, the outermost first.
    """

    name: str
    roots: dict[str, str] = field(default_factory=dict)
    around: dict[str, str] = field(default_factory=dict[str, str])
    constants: dict[str, Any] = field(default_factory=dict)
    locals: frozenset[str] = frozenset()
    node: ast.AST | None = None
    loops: tuple[Loop, ...] = ()
    conditions: tuple[Condition, ...] = ()
    no_grad: bool = False
    via: tuple[str, ...] = ()
    stack: tuple[tuple[str, str], ...] = ()

    @staticmethod
    def top(name: str) -> PlacedCall:
        """What is no call: the function that a flow begins with."""
        return PlacedCall(name)

    def path(self, path: str) -> str:
        """A path of the function, as its caller knows it."""
        if not path or self.node is None:
            return path
        root, rest = split_path(path)
        if root in self.roots:
            above = self.roots[root]
            return f"{above}{rest}" if above else ""
        if root in self.locals:
            return f"{self.name}():{path}"
        return path


def split_path(path: str) -> tuple[str, str]:
    """The name that a path begins with, and the rest."""
    for i, char in enumerate(path):
        if char in ".[":
            return path[:i], path[i:]
    return path, ""


class Expansion:
    """Puts the events of what is called in the place of the call.

    Args:
        walk: the file of the flow.
        most: how many events there may be.

    Attributes:
        events: in order.
        placed: the functions of the file that were put in place, to their ends.
        is_cut: something was left out, because it became too much.
    """

    def __init__(self, walk: ModuleWalk, most: int) -> None:
        self._walk = walk
        self._most = most
        self._calls = 0
        # What is another name for what.
        self._aliases: dict[str, str] = {}
        self.events: list[Event] = []
        self.placed: set[str] = set()
        self.is_cut = False

    @property
    def aliases(self) -> dict[str, str]:
        """Other paths by which things are known, and the paths that the events have."""
        return self._aliases

    def run(self, walk: ModuleWalk, events: list[Event], call: PlacedCall) -> None:
        """Add the events of one function."""
        for event in events:
            if len(self.events) >= self._most or self._calls >= _MOST_CALLS:
                self.is_cut = True
                return
            called = self._callee(event, call) if event.what == "call" else None
            if event.what == "call" and called is None:
                continue
            conditions = self._conditions(event.conditions, call)
            if conditions is None:
                continue
            placed = self._placed(walk, event, call, conditions)
            if event.what == "alias":
                self._alias(placed.path, placed.get("of"))
            elif called is not None:
                self._called(*called, event, placed, call)
            else:
                self.events.append(placed)

    def _alias(self, path: str, of: str) -> None:
        """From here on a path is known by another one; not by one of its own parts, or two of them would never end."""
        if not is_below(of, path) and len(of) <= _LONGEST_PATH:
            self._aliases[path] = of

    def _conditions(self, conditions: tuple[Condition, ...], call: PlacedCall) -> tuple[Condition, ...] | None:
        """The branches as seen from outside; ``None`` where a literal argument rules this one out."""
        kept = list(call.conditions)
        for each in conditions:
            told = _decided(each.node, call.constants)
            if told is None:
                kept.append(each)
            elif told is not each.arm:
                return None
        return tuple(kept)

    def _placed(self, walk: ModuleWalk, event: Event, call: PlacedCall, conditions: tuple[Condition, ...]) -> Event:
        if call.node is None and not self._aliases:
            return event if len(conditions) == len(event.conditions) else replace(event, conditions=conditions)
        data = {name: self._data(name, value, call) for name, value in event.data.items()} if event.data else {}
        if event.what in _PATH_OF and "of" in data:
            data["of"] = self._path(data["of"], call)
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
                conditions=len(call.conditions)
                + sum(each in conditions for each in event.conditions[: loop.conditions]),
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

    def _path(self, path: str, call: PlacedCall) -> str:
        path = call.path(path)
        for _ in range(4):
            end = len(path) if self._aliases else 0
            while end > 0 and path[:end] not in self._aliases:
                end = max(path.rfind(".", 0, end), path.rfind("[", 0, end))
            if end <= 0:
                break
            path = self._aliases[path[:end]] + path[end:]
        return path

    def _data(self, name: str, value: Any, call: PlacedCall) -> Any:
        if name in _PATHS and isinstance(value, str):
            return self._path(value, call)
        if name == "of":
            return value
        if isinstance(value, Value):
            if value.kind == "argument":
                return call.constants.get(value.path, value if call.node is None else None)
            return self._value(value, call)
        if isinstance(value, list):
            return [self._data(name, each, call) for each in value]  # pyright: ignore[reportUnknownVariableType]
        return value

    def _value(self, value: Value | None, call: PlacedCall) -> Value | None:
        if value is None:
            return None
        path = self._path(value.path, call) if value.path else ""
        if path == value.path and not value.items and not value.copy_of:
            return value
        items = tuple(self._value(item, call) for item in value.items) if value.items else ()
        copy_of = self._path(value.copy_of, call) if value.copy_of else ""
        return replace(value, path=path, items=items, copy_of=copy_of)

    def _callee(self, event: Event, call: PlacedCall) -> tuple[ModuleWalk, Function] | None:
        """The function that is called, where it does anything that can be noticed and is not too deep inside."""
        self._calls += 1
        if len(call.stack) >= _DEEPEST or (event.data["file"], event.data["callee"]) in call.stack:
            return None
        called = _other(self._walk, event)
        return called if called is not None and matters(*called, event.data["is_init"]) else None

    def _called(self, walk: ModuleWalk, function: Function, event: Event, placed: Event, call: PlacedCall) -> None:
        """What a function does that is called here."""
        name = function.name
        key = (walk.source.path, name)
        roots, constants = self._given(function, event, placed, call)
        node = event.node if call.node is None or self._walk is walk else call.node
        if placed.origin:
            node = call.node
        around = self._around(walk, function, call)
        inner = PlacedCall(
            name=name,
            roots={each: path for each, path in around.items() if each not in function.local_names} | roots,
            around=around,
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
        if walk is self._walk and not self.is_cut:
            self.placed.add(name)

    def _around(self, walk: ModuleWalk, function: Function, call: PlacedCall) -> dict[str, str]:
        """What names stand for in the function that a function stands in: the one that calls it, or one around both."""
        outer = function.around.removesuffix(".<locals>")
        if walk is not self._walk or not outer or call.node is None:
            return {}
        if outer == call.name:
            return {**call.around, **{each: f"{call.name}():{each}" for each in call.locals}, **call.roots}
        return call.around if call.name.startswith(f"{outer}.<locals>.") else {}

    def _given(
        self, function: Function, event: Event, placed: Event, call: PlacedCall
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


def matters(walk: ModuleWalk, function: Function, is_init: bool) -> bool:
    """Whether a function does anything that its caller could notice; most constructors of modules do not."""
    if is_init in function.matters:
        return function.matters[is_init]
    # Who asked for whom; what calls itself, or is called by what it calls, does nothing by that.
    asked: dict[tuple[int, bool], tuple[Function, tuple[int, bool] | None]] = {}
    waiting = [(walk, function, is_init)]
    asked[id(function), is_init] = (function, None)
    while waiting:
        where, each, made = waiting.pop()
        key = (id(each), made)
        for event in each.events:
            found = event.what != "call" and _is_noticed(event, each, made)
            if event.what == "call" and (called := _other(where, event)) is not None:
                other, inner = called
                its: bool = event.data["is_init"]
                found = inner.matters.get(its, False)
                if its not in inner.matters and (id(inner), its) not in asked:
                    asked[id(inner), its] = (inner, key)
                    waiting.append((other, inner, its))
            if found:
                above: tuple[int, bool] | None = key
                while above is not None:
                    asker, by = asked[above]
                    asker.matters[above[1]] = True
                    above = by
                return True
    for (_, made), (each, _) in asked.items():
        each.matters[made] = False
    return False


def _other(walk: ModuleWalk, event: Event) -> tuple[ModuleWalk, Function] | None:
    """The function that an event of a file calls."""
    file: str = event.data["file"]
    # What another file holds may have been let go of since; it is opened again then.
    other = walk if file == walk.source.path else walk.project.open(file, walk.source.path)
    if other is None or event.data["callee"] not in other.functions:
        return None
    return other, other.function(event.data["callee"])


def _is_noticed(event: Event, function: Function, is_init: bool) -> bool:
    """Whether a caller could notice an event that is no call."""
    root, rest = split_path(event.path)
    if event.what in _MAKING:
        # What an object is made of, or what never leaves the function, is no surprise to the caller.
        return bool(rest) and not (is_init and root == "self") and (root == "self" or root in function.parameters)
    if event.what == "alias":
        return split_path(event.get("of"))[0] in function.parameters
    return True


def _returned(function: Function, path: str) -> Iterator[tuple[str, str]]:
    """What the caller calls what a function returns, by what the function calls it."""
    value = function.returned
    if value is None or not path:
        return
    if value.kind == "tuple":
        for item, each in zip(value.items, path.split(","), strict=False):
            if item is not None and item.path and split_path(item.path)[1] == "":
                yield item.path, each
    elif value.path and split_path(value.path)[1] == "":
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
