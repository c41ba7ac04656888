"""What calls and assignments do to models and optimizers, and what calls give back."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from frostline.lint.call import Call, truth
from frostline.lint.frame import Frame
from frostline.lint.library_calls import LibraryCalls
from frostline.lint.method_calls import MethodCalls
from frostline.lint.own_calls import OwnCalls
from frostline.lint.parameter_lists import spelled_tests
from frostline.lint.torch_names import OPTIMIZERS, SAME_MODULE, SCHEDULERS, hinted, is_module_class
from frostline.lint.values import MODULES, PARAMETERS, Value

if TYPE_CHECKING:
    from frostline.lint.expressions import Expressions
    from frostline.lint.module_walk import ModuleWalk

_THINGS = frozenset({"module", "optimizer", "parameters", "named_parameters", "scheduler", "averaged"})


class Effects:
    """Looks at calls and at what is assigned to attributes.

    Args:
        walk: the file.
        expressions: evaluates its expressions.

    Attributes:
        consumed: the ids of generator expressions that are gone through at once.
        own: looks at calls of what the files hold.
        library: looks at calls of what is imported.
    """

    def __init__(self, walk: ModuleWalk, expressions: Expressions) -> None:
        self._walk = walk
        self._expressions = expressions
        self.consumed: set[int] = set()
        self._of_lambda: dict[int, Value | None] = {}
        self.own = OwnCalls(walk, expressions, self)
        self.library = LibraryCalls(walk, expressions, self)
        self._methods = MethodCalls(walk, expressions, self)

    def lambda_argument(self, node: ast.Lambda) -> Value | None:
        """What a lambda is called with, where the call that it is given to tells."""
        return self._of_lambda.get(id(node))

    # Assignments.

    def attribute_set(
        self, target: ast.Attribute, owner: Value | None, value: Value | None, node: ast.AST, frame: Frame
    ) -> bool:
        """Whether an assignment to an attribute is one that means something to torch; then it is taken down."""
        path = self.path(target.value, owner, frame)
        if target.attr == "requires_grad":
            # On a module it does nothing: that is a mistake of its own, and no freezing.
            if owner is None or owner.kind != "module":
                self.flag(target.value, owner, self._flag_value(value, node, frame), "attribute", node, frame)
            return True
        if target.attr == "training":
            self.mode(owner, path, truth(value), node, frame, how="attribute")
            return True
        if target.attr == "data" and owner is not None and owner.kind in {"parameter", "unknown"}:
            frame.emit("write", path, node, how="data")
            return True
        if target.attr == "grad":
            frame.emit("grad_set", path, node, value=value)
            return True
        return False

    def _flag_value(self, value: Value | None, node: ast.AST, frame: Frame) -> bool | Value | None:
        """What the flag becomes: a literal, the parameter of the function that decides, or unknown."""
        if value is not None and value.kind == "const":
            return bool(value.const)
        given = getattr(node, "value", None)
        if isinstance(given, ast.Name) and frame.names.has(given.id) and frame.names.get(given.id) is None:
            return Value("argument", path=given.id)
        return None

    def flag(
        self,
        node: ast.expr,
        owner: Value | None,
        flag: bool | Value | None,
        how: str,
        at: ast.AST,
        frame: Frame,
    ) -> None:
        """``requires_grad`` of parameters is set; ``how`` is as events have it."""
        path = self.path(node, owner, frame)
        for subject, item in frame.subjects(owner, path):
            filtered = item is not None and item.kind in PARAMETERS and item.filtered
            frame.emit("flag", subject, at, value=flag, how=how, filtered=filtered)

    def mode(
        self, owner: Value | None, path: str, mode: bool | Value | None, at: ast.AST, frame: Frame, how: str = "method"
    ) -> None:
        """The mode of a module is set; ``how`` is as events have it."""
        for subject, item in frame.subjects(owner, path):
            frame.emit("mode", subject, at, value=mode, how=how, cls=item.cls if item is not None else "")

    def path(self, node: ast.expr, value: Value | None, frame: Frame) -> str:
        """The path by which the value of an expression is known, else that of the expression."""
        return value.path if value is not None and value.path else self._expressions.path(node, frame)

    # Calls.

    def call(self, node: ast.Call, frame: Frame) -> Value | None:
        """Take down what a call does, and tell what it gives."""
        function = node.func
        unused = frame.unused is node
        frame.unused = None
        receiver: Value | None = None
        if isinstance(function, ast.Attribute):
            receiver = self._expressions.value(function.value, frame)
            if receiver is not None and receiver.kind == "object" and not receiver.path:
                receiver = self._unnamed(function.value, receiver, frame)
            callee = self._expressions.attribute(function, receiver, frame)
            if callee is not None and not callee.sure and self._is_method(receiver, function.attr):
                callee = None  # called like a module, but a method
            if callee is not None:
                self._walk.values[id(function)] = callee
        else:
            callee = self._expressions.value(function, frame)
        for each in node.args:
            if isinstance(each, ast.GeneratorExp):
                self.consumed.add(id(each))
        if callee is not None and callee.kind == "ref" and callee.cls in {"builtins.filter", "builtins.map"}:
            return self._filtered(node, callee.cls, frame)
        args = [self._expressions.value(each, frame) for each in node.args]
        named = {each.arg or "**": self._expressions.value(each.value, frame) for each in node.keywords}
        if callee is not None and callee.kind in {"function", "class"}:
            return self.own.call(callee.cls, node, args, named, receiver, frame)
        if callee is not None and callee.kind == "ref":
            return self.library.call(callee.cls, node, args, named, frame)
        if callee is not None and callee.kind in {"module", "averaged"}:
            frame.emit("forward", self.path(function, callee, frame), node, args=args)
            return Value("tensor")
        if isinstance(function, ast.Attribute):
            before = len(frame.events)
            path = self.path(function.value, receiver, frame)
            result = self._methods.call(Call(function, receiver, path, node, args, named, unused, frame))
            is_new = receiver is not None and receiver.kind == "module" and not receiver.path
            if is_new and function.attr in SAME_MODULE:
                frame.pass_on(function.value, node, before)
            return result
        self.unknown(
            ast.unparse(function)[:60] if not isinstance(function, ast.Name) else function.id, node, args, named, frame
        )
        return None

    def _unnamed(self, node: ast.expr, made: Value, frame: Frame) -> Value:
        """An object that is used where it is made, `Trainer(net).fit()`, is called by its class."""
        if not isinstance(node, ast.Call):
            return made
        path = f"{made.cls.rpartition('.')[2]}()"
        frame.name_fresh(node, path)
        made = made.at(path)
        self._walk.values[id(node)] = made
        return made

    def _is_method(self, receiver: Value | None, name: str) -> bool:
        if receiver is None or not receiver.cls or receiver.kind not in {"module", "object"}:
            return False
        return self._walk.method(receiver.cls, name) is not None

    def _filtered(self, node: ast.Call, name: str, frame: Frame) -> Value | None:
        """``filter`` and ``map``: what is kept of an iterable, lazily."""
        over = self._expressions.value(node.args[1], frame) if len(node.args) == 2 else None
        if node.args and isinstance(node.args[0], ast.Lambda) and over is not None:
            self._of_lambda[id(node.args[0])] = self._expressions.item(over)
        for each in node.args[:1]:
            self._expressions.value(each, frame)
        if name == "builtins.filter" and over is not None and over.kind in PARAMETERS | MODULES:
            test = node.args[0]
            tests = spelled_tests([test.body], self._walk.values) if isinstance(test, ast.Lambda) else ("?",)
            return replace(over, filtered=True, tests=(*over.tests, *tests), lazy=True)
        return None

    def unknown(
        self,
        name: str,
        node: ast.Call,
        args: Sequence[Value | None],
        named: dict[str, Value | None],
        frame: Frame,
    ) -> None:
        """Something nobody here knows is given a model or an optimizer, and may do anything to it."""
        paths = [v.path for v in (*args, *named.values()) if v is not None and v.kind in _THINGS and v.path]
        last = name.rpartition(".")[2]
        if paths or hinted(last) or OPTIMIZERS.match(last) or SCHEDULERS.search(last) or is_module_class(name):
            frame.emit_new("unknown", node, name=name, paths=paths)
