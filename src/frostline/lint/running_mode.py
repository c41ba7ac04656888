"""Whether a piece of code runs in the forward pass of a module, and how the mode of that module is written there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.lint.file_view import FileView
from frostline.lint.scopes import AnyFunction

# Words by which code tells training from the rest: a branch on one of them decides by the mode.
_MODE = re.compile(r"train|eval|infer|determin|(^|_)test|(^|_)val(id|_|$)|_mode$", re.I)
# Random numbers at test time that are wanted, by what people call them.
_MEANT = re.compile(
    r"(^|[_.\W])mc([_.\W]|$)|(?-i:MC[A-Z_])|monte|bayes|uncertain|stochastic|always|at_test|test_time", re.I
)
_NOT_FORWARD = frozenset({"__init__", "__post_init__", "__setattr__", "extra_repr", "reset_parameters"})
_FLAGS = ("training", "is_training", "train", "is_train")


@dataclass(frozen=True)
class Pass:
    """The forward pass that a node runs in.

    Attributes:
        mode: how the mode is written there: ``self.training``, ``training``; "" where nothing in reach tells it.
        sure: it certainly is the pass of a module.
        function: the innermost function around the node.
        method: the method of the module, or the function that a module calls.
        owner: the class whose method it is, as the file calls it; "" of a plain function.
    """

    mode: str
    sure: bool
    function: AnyFunction
    method: AnyFunction
    owner: str = ""


class Passes:
    """The forward passes of one file.

    Args:
        view: the file.
    """

    def __init__(self, view: FileView) -> None:
        self._view = view
        self._classes = {id(each.node): each for each in view.walk.classes.values()}
        self._called: frozenset[str] | None = None

    def of(self, node: ast.AST) -> Pass | None:
        """The pass that a node runs in; ``None`` where no module's method or function called by one is around it.

        Methods that only training calls, by their names, are left out.
        """
        around = _functions(self._view, node)
        if not around:
            return None
        inner, method = around[0], around[-1]
        if any(_MODE.search(each.name) for each in around) or method.name in _NOT_FORWARD:
            return None
        above = self._view.parent(method)
        flag = next((name for each in around for name in _FLAGS if name in _arguments(each)), "")
        while above is not None and not isinstance(above, (ast.ClassDef, ast.Module)):
            above = self._view.parent(above)
        if isinstance(above, ast.ClassDef):
            return self._method(above, inner, method, flag)
        module = _module_argument(self._view, method)
        if flag or module:
            return Pass(flag or f"{module}.training", bool(flag), inner, method)
        return Pass("", False, inner, method) if method.name in self._called_by_modules() else None

    def _method(self, cls: ast.ClassDef, inner: AnyFunction, method: AnyFunction, flag: str) -> Pass | None:
        owner = self._classes.get(id(cls))
        if owner is None:
            return None
        told = self._view.walk.is_module(self._view.walk.qualified(owner.name))
        if told is False or (told is None and f"{owner.name}.forward" not in self._view.walk.functions):
            return None
        decorators = {each.id for each in method.decorator_list if isinstance(each, ast.Name)}
        own = "" if decorators & {"staticmethod", "classmethod"} else next(iter(_arguments(method)), "")
        mode = flag or (f"{own}.training" if own else "")
        return Pass(mode, told is True, inner, method, owner.name)

    def _called_by_modules(self) -> frozenset[str]:
        """The plain functions of the file that methods of modules call, directly or through others."""
        if self._called is None:
            walk = self._view.walk
            calls: dict[str, set[str]] = {}
            for call in self._view.nodes(ast.Call):
                value = self._view.value(call.func)
                if value is not None and value.kind == "function":
                    caller = self._view.function(call).partition(".<locals>")[0]
                    calls.setdefault(caller, set()).add(value.cls.removeprefix(f"{walk.name}."))
            ready = [
                name
                for name, each in walk.functions.items()
                if each.owner and each.node.name not in _NOT_FORWARD and walk.is_module(walk.qualified(each.owner))
            ]
            found: set[str] = set()
            while ready:
                for name in calls.get(ready.pop(), ()):
                    called = walk.functions.get(name)
                    if called is not None and not called.owner and name not in found:
                        found.add(name)
                        ready.append(name)
            self._called = frozenset(found)
        return self._called


def asks_for_mode(expression: ast.AST) -> bool:
    """Whether an expression speaks of the mode.

    Example:
        >>> asks_for_mode(ast.parse("p if self.training else 0", mode="eval")), asks_for_mode(ast.parse("self.p"))
        (True, False)
    """
    return any(
        _MODE.search(each.id if isinstance(each, ast.Name) else each.attr)
        for each in ast.walk(expression)
        if isinstance(each, (ast.Name, ast.Attribute))
    )


def decided_by_mode(view: FileView, node: ast.AST, function: AnyFunction) -> bool:
    """Whether a node runs in one mode only: a branch around it, or a return before it, asks for the mode."""
    below: ast.AST = node
    for above in view.parents(node):
        if isinstance(above, (ast.If, ast.IfExp, ast.While)) and below is not above.test and asks_for_mode(above.test):
            return True
        if isinstance(above, ast.BoolOp) and any(each is not below and asks_for_mode(each) for each in above.values):
            return True
        if any(_leaves_by_mode(each) for each in _before(above, below)):
            return True
        if above is function:
            return False
        below = above
    return False


def assigned(function: AnyFunction, name: str) -> list[ast.expr | None]:
    r"""All that a name is given in a function; ``None`` for what is no plain assignment.

    Example:
        >>> function = ast.parse("def f():\n    p = 1\n    for p in ps: pass").body[0]
        >>> [each and ast.unparse(each) for each in assigned(function, "p")]
        ['1', None]
    """
    found: list[ast.expr | None] = []
    plain: set[int] = set()
    for node in ast.walk(function):
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and target.id == name and node.value is not None:
                    found.append(node.value)
                    plain.add(id(target))
        elif (
            isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name and id(node) not in plain
        ):
            found.append(None)
    return found


def is_meant(view: FileView, node: ast.AST) -> bool:
    """Whether names around a node, or a comment above it, say that randomness at test time is wanted (Monte Carlo)."""
    if _MEANT.search(view.function(node)) or _MEANT.search(view.text(node)):
        return True
    return bool(re.search(r"\beval|always|test time|on purpose", view.comments_above(node)))


def _functions(view: FileView, node: ast.AST) -> list[AnyFunction]:
    """The functions around a node, the innermost first, up to a class."""
    found: list[AnyFunction] = []
    for each in view.parents(node):
        if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(each)
        elif isinstance(each, ast.ClassDef):
            break
    return found


def _arguments(function: AnyFunction) -> tuple[str, ...]:
    arguments = function.args
    return tuple(each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))


def _module_argument(view: FileView, function: AnyFunction) -> str:
    """The first argument of a function, where it is annotated as a module."""
    first = next(iter((*function.args.posonlyargs, *function.args.args)), None)
    if first is None or first.annotation is None:
        return ""
    cls = view.name(first.annotation)
    return first.arg if cls == "torch.nn.Module" else ""


def _before(above: ast.AST, below: ast.AST) -> Iterator[ast.stmt]:
    """The statements that stand before a statement in its block."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(above, name, None)
        if isinstance(block, list) and below in block:
            yield from block[: block.index(below)]


def _leaves_by_mode(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assert):
        return asks_for_mode(statement.test)
    return (
        isinstance(statement, ast.If)
        and asks_for_mode(statement.test)
        and isinstance(statement.body[-1], (ast.Return, ast.Raise, ast.Continue))
    )
