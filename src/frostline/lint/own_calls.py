"""Calls of functions and classes of the files that are linted: what they are given, and what they give back."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import TYPE_CHECKING

from frostline.lint.frame import Frame
from frostline.lint.scopes import Class, Function
from frostline.lint.values import MODULES, PARAMETERS, Value

if TYPE_CHECKING:
    from frostline.lint.effects import Effects
    from frostline.lint.expressions import Expressions
    from frostline.lint.module_walk import ModuleWalk


class OwnCalls:
    """Takes down calls of what the files hold; what happens inside is put in their place by flows.

    Args:
        walk: the file that calls.
        expressions: evaluates its expressions.
        effects: takes down what is no call of this kind.
    """

    def __init__(self, walk: ModuleWalk, expressions: Expressions, effects: Effects) -> None:
        self._walk = walk
        self._expressions = expressions
        self._effects = effects

    def call(
        self,
        cls: str,
        node: ast.Call,
        args: list[Value | None],
        named: dict[str, Value | None],
        receiver: Value | None,
        frame: Frame,
    ) -> Value | None:
        """A call of a function or class of the files that are linted."""
        found = self._walk.find(cls)
        if found is None:
            self._effects.unknown(cls, node, args, named, frame)
            return None
        walk, each = found
        if isinstance(each, Class):
            made = self._expressions.made(cls) or Value("object", cls)
            if made.kind == "object" and self._walk.is_optimizer(cls):
                made = Value("optimizer", cls)
            if made.kind in {"optimizer", "scheduler"}:
                return self._effects.library.made(made, node, args, named, frame)
            init = walk.method(cls, "__init__")
            if init is not None:
                owner, method = init
                self._emit_call(owner, method, node, Value(made.kind, cls, path=""), args, named, frame, is_init=True)
            if made.kind == "object":
                frame.fresh.setdefault(id(node), [])
            return made
        return self.run(walk, each, node, None if not each.is_bound else receiver, args, named, frame)

    def run(
        self,
        walk: ModuleWalk,
        function: Function,
        node: ast.Call,
        receiver: Value | None,
        args: list[Value | None],
        named: dict[str, Value | None],
        frame: Frame,
    ) -> Value | None:
        """A function is called; what it gives is told from what it returns."""
        self._emit_call(walk, function, node, receiver, args, named, frame)
        returned = walk.function(function.name).returned
        if returned is None:
            return None
        return self._returned(returned, function, receiver, args, named)

    def _returned(
        self,
        value: Value,
        function: Function,
        receiver: Value | None,
        args: list[Value | None],
        named: dict[str, Value | None],
    ) -> Value | None:
        """What a function returns, as its caller sees it: a parameter of it is what it was given."""
        if value.kind in {"tuple", "list", "group"} or (value.kind in PARAMETERS and value.items):
            items = (self._returned(i, function, receiver, args, named) if i is not None else None for i in value.items)
            return replace(value, path="", items=tuple(items))
        root, dot, rest = value.path.partition(".")
        if root == "self" and receiver is not None and receiver.path:
            return value.at(f"{receiver.path}{dot}{rest}")
        names = function.parameters[1:] if function.is_bound else function.parameters
        if root in names:
            index = names.index(root)
            given = named.get(root) or (args[index] if index < len(args) else None)
            if given is not None and given.path:
                base = given if not rest and value.kind not in PARAMETERS | MODULES else value
                return base.at(f"{given.path}{dot}{rest}")
            return value.at("") if not rest else None
        if value.kind in PARAMETERS | MODULES:
            # Of something that the function made itself, nobody outside knows the path.
            own = root.removesuffix("[*]") in function.local_names
            return replace(value, path="") if own and value.kind in PARAMETERS else value
        return value.at("")

    def _emit_call(
        self,
        walk: ModuleWalk,
        function: Function,
        node: ast.Call,
        receiver: Value | None,
        args: list[Value | None],
        named: dict[str, Value | None],
        frame: Frame,
        is_init: bool = False,
    ) -> None:
        paths = [self._effects.path(n, v, frame) for n, v in zip(node.args, args, strict=True)]
        keyed = {k.arg: self._effects.path(k.value, named.get(k.arg), frame) for k in node.keywords if k.arg}
        frame.emit_new(
            "call",
            node,
            file=walk.source.path,
            callee=function.name,
            receiver=receiver,
            args=args,
            named=named,
            paths=paths,
            keyed=keyed,
            is_init=is_init,
        )
