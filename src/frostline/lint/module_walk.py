"""What is in one file: its functions, its classes, what every expression is, and what each function does."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

from frostline.lint.events import Condition, Event, Loop
from frostline.lint.expressions import Expressions
from frostline.lint.frame import Frame
from frostline.lint.parameter_lists import either, is_list, is_over_parts, joined, spelled_tests
from frostline.lint.scopes import MISSING, AnyFunction, Class, Function, Missing, Names, bodies, collect
from frostline.lint.top_level import TopLevel, absolute
from frostline.lint.torch_names import LIGHTNING, NO_GRAD, ONLY_MODULES, is_module_class, shortest
from frostline.lint.values import EACH, RETURNED, Value

if TYPE_CHECKING:
    from frostline.lint.project import Project
    from frostline.lint.source import Source

MODULE = "<module>"
# Functions inside of functions inside of ... are walked when they are called; this deep, not further.
_DEEPEST = 12


class ModuleWalk:
    """One file; functions are walked through when somebody asks for them.

    Args:
        source: the file.
        tree: its tree.
        name: its dotted name, as other files import it.
        project: the files that it is linted with.
    """

    def __init__(self, source: Source, tree: ast.Module, name: str, project: Project) -> None:
        self.source = source
        self.tree = tree
        self.name = name
        self.project = project
        self.lines = source.text.count("\n") + 1
        self.functions, self.classes = collect(tree.body)
        self.values: dict[int, Value] = {}
        self.names = Names()
        self.events: list[Event] = []
        self.expressions = Expressions(self)
        self._asked_for_parts: list[tuple[int, str]] | None = None
        self._is_module: dict[str, bool | None] = {}
        self._methods: dict[str, dict[str, Function]] | None = None
        self._deep = 0
        self._top_is_walked = False
        self._is_package = source.path.endswith("__init__.py")
        self.top = TopLevel(tree.body, name, self._is_package, [*self.functions, *self.classes])

    def forget(self) -> None:
        """Let go of everything, so that it is freed at once and not by a walk of the collector over all trees."""
        for function in self.functions.values():
            function.events.clear()
        for part in (self.functions, self.classes, self.values, self.names.own, self.expressions.inner_names):
            part.clear()
        self.events.clear()
        self.tree.body.clear()

    # What others ask for.

    def walk_all(self) -> None:
        """Walk through everything: what stands outside of functions, then every function."""
        self.walk_top()
        for name in list(self.functions):
            self.function(name)

    def walk_top(self) -> None:
        """Walk through what stands outside of functions."""
        if self._top_is_walked:
            return
        self._top_is_walked = True
        frame = Frame(MODULE, "", self.names, self._used_as_module(None))
        self._block(self.tree.body, frame)
        self.events = frame.events

    def function(self, name: str) -> Function:
        """A function, walked through."""
        function = self.functions[name]
        if function.is_walked or self._deep > _DEEPEST:
            return function
        self.walk_top()
        if function.is_walked:
            return function
        function.is_walked = True
        self._deep += 1
        try:
            self._walk_function(function)
        finally:
            self._deep -= 1
        return function

    def imported(self, name: str) -> str:
        """The qualified name of what this file imported under a name, or calls so besides; "" if it did not."""
        found = self.top.names.get(name, "")
        return "" if found == self.qualified(name) else found

    def qualified(self, name: str) -> str:
        """The name of something of this file as other files know it."""
        return f"{self.name}.{name}"

    def find(self, qualified: str) -> tuple[ModuleWalk, Function | Class] | None:
        """The function or class of a qualified name, in this file or one that it is linted with."""
        prefix = f"{self.name}."
        if qualified.startswith(prefix):
            rest = qualified[len(prefix) :]
            found = self.functions.get(rest) or self.classes.get(rest)
            if found is not None:
                return self, found
        return self.project.find(qualified, self.source.path)

    def attribute(self, cls: str, name: str) -> Value | None:
        """What an attribute of the instances of a class is, by what its methods set."""
        for walk, owner in self.ancestry(cls):
            walk.walk_top()
            for method in ("__init__", "setup", "build", "reset"):
                if f"{owner.name}.{method}" in walk.functions:
                    walk.function(f"{owner.name}.{method}")
            if name in owner.attributes:
                return owner.attributes[name]
        return None

    def method(self, cls: str, name: str) -> tuple[ModuleWalk, Function] | None:
        """A method of a class, its own or one that it inherits."""
        for walk, owner in self.ancestry(cls):
            function = walk.functions.get(f"{owner.name}.{name}")
            if function is not None:
                return walk, function
        return None

    def methods_of(self, owner: str) -> dict[str, Function]:
        """The methods of a class of this file, by their qualified names; none if there is no such class."""
        if self._methods is None:
            self._methods = {}
            for name, function in self.functions.items():
                if function.owner:
                    self._methods.setdefault(function.owner, {})[name] = function
        return self._methods.get(owner, {})

    def ancestry(self, cls: str) -> list[tuple[ModuleWalk, Class]]:
        """A class and its bases, as far as they are in the files."""
        key = (cls, self.source.path)
        known = self.project.ancestries
        if key not in known:
            known[key] = self._ancestry(cls, 0)
        return known[key]

    def _ancestry(self, cls: str, depth: int) -> list[tuple[ModuleWalk, Class]]:
        found = self.find(cls) if depth < 8 else None
        if found is None or not isinstance(found[1], Class):
            return []
        walk, owner = found[0], found[1]
        result = [(walk, owner)]
        for base in walk.bases(owner):
            if base != cls:
                result += walk._ancestry(base, depth + 1)
        return result

    def bases(self, owner: Class) -> list[str]:
        """The qualified names of the bases of a class; "?" for what cannot be told."""
        bases = (base.value if isinstance(base, ast.Subscript) else base for base in owner.node.bases)
        return [self.top.qualified(base) or self.starred(base) or _builtin(base) or "?" for base in bases]

    def starred(self, node: ast.expr) -> str:
        """The qualified name of a name that was imported by a star; "" if it was not."""
        if not isinstance(node, ast.Name):
            return ""
        for module in reversed(self.top.stars):
            if module == "torch.nn" and node.id[:1].isupper():
                return f"torch.nn.{node.id}"
            found = self.project.find(f"{module}.{node.id}", self.source.path)
            if found is not None:
                return found[0].qualified(found[1].name)
        return ""

    def is_module(self, cls: str) -> bool | None:
        """Whether a class is an ``nn.Module``; ``None`` where a base is unknown."""
        cls = shortest(cls)
        if is_module_class(cls):
            return True
        if cls in self._is_module:
            return self._is_module[cls]
        self._is_module[cls] = None
        found = self.find(cls)
        if found is None or not isinstance(found[1], Class):
            told = (
                None if found is None and "." in cls and not cls.startswith(("builtins.", "abc.", "typing.")) else False
            )
        else:
            walk, owner = found[0], found[1]
            answers = [walk.is_module(base) if base != "?" else None for base in walk.bases(owner)]
            told = True if True in answers else None if None in answers else False
        self._is_module[cls] = told
        return told

    def is_optimizer(self, cls: str) -> bool:
        """Whether a class inherits from an optimizer of torch, be it through others."""
        bases = (base.rpartition(".") for walk, owner in self.ancestry(cls) for base in walk.bases(owner))
        return any(module == "torch.optim" and name[:1].isupper() for module, _, name in bases)

    def is_lightning(self, cls: str) -> bool:
        """Whether a class is a ``LightningModule``."""
        return any(base in LIGHTNING for walk, owner in self.ancestry(cls) for base in walk.bases(owner))

    # Statements.

    def _walk_function(self, function: Function) -> None:
        node = function.node
        frame = Frame(function.name, function.owner, Names(self._around(function)), self._used_as_module(node))
        self._bind_parameters(function, frame)
        if any(self._is_no_grad(each, frame) for each in node.decorator_list):
            frame.no_grad += 1
        self._block(node.body, frame)
        function.events = frame.events
        # `net.fc = ...` binds no name, and what is declared global is none of the function's own.
        function.local_names = frozenset(path for path in frame.names.own if path.isidentifier()) - frame.shared
        known = [value for value in frame.returned if value.kind != "const"]
        function.returned = known[-1] if known else None
        if len(known) > 1 and all(is_list(value) for value in known):
            function.returned = reduce(lambda one, other: either(one, other) or other, known)

    def _used_as_module(self, node: AnyFunction | None) -> frozenset[str]:
        """The names and paths that are asked, in a function or outside of any, for what only a module has."""
        if self._asked_for_parts is None:
            # Counted line by line, because a walk over the tree would cost more than all the rest.
            self._asked_for_parts = []
            line, at = 1, 0
            text = self.source.text
            for found in _ASKED.finditer(text):
                line += text.count("\n", at, found.start())
                at = found.start()
                path = _PATH_BEFORE.search(text, max(at - 100, 0), at)
                if path:
                    self._asked_for_parts.append((line, path[0]))
        first, last = (node.lineno, node.end_lineno or node.lineno) if node is not None else (1, self.lines)
        if not self._asked_for_parts:
            return frozenset()
        return frozenset(path for line, path in self._asked_for_parts if first <= line <= last)

    def _around(self, function: Function) -> Names:
        """The names of the function that a function stands in, else those of the file."""
        outer = function.around.removesuffix(".<locals>")
        if outer in self.functions and outer != function.name:
            walked = self.functions[outer]
            names = self._inner_names.get(walked.name)
            if names is not None:
                return names
        return self.names

    @property
    def _inner_names(self) -> dict[str, Names]:
        return self.expressions.inner_names

    def _bind_parameters(self, function: Function, frame: Frame) -> None:
        node = function.node
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            value = self._annotated(argument.annotation, argument.arg, frame) if argument.annotation else None
            frame.names.own[argument.arg] = value or self.expressions.guess(argument.arg, frame)
        for argument in (arguments.vararg, arguments.kwarg):
            if argument is not None:
                frame.names.own[argument.arg] = None
        first = next((a.arg for a in (*arguments.posonlyargs, *arguments.args)), "")
        if function.is_bound and first:
            cls = self.qualified(function.owner)
            told = self.is_module(cls)
            has_forward = f"{function.owner}.forward" in self.functions
            kind = "module" if told or (told is None and has_forward) else "object"
            frame.names.own[first] = Value(kind, cls, path="self", sure=told is not None)
        for name, default in function.defaults():
            self.expressions.value(default, frame)
            if frame.names.own.get(name) is None:
                # What stands in for a default is not what a caller gives, but a flag has its name from here on.
                frame.names.own[name] = None
        self.expressions.inner_names[function.name] = frame.names

    def _annotated(self, annotation: ast.expr, name: str, frame: Frame) -> Value | None:
        if isinstance(annotation, ast.BinOp):
            return self._annotated(annotation.left, name, frame) or self._annotated(annotation.right, name, frame)
        if isinstance(annotation, ast.Subscript):
            head = self.expressions.value(annotation.value, frame)
            if head is not None and head.cls.endswith("Optional"):
                return self._annotated(annotation.slice, name, frame)
            inner = self._annotated(annotation.slice, name, frame)
            if inner is not None and head is not None and head.cls.rpartition(".")[2] in _ITERABLES:
                kind = {"parameter": "parameters", "module": "modules"}.get(inner.kind)
                return Value(kind, path=name) if kind else None
            return None
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            try:
                return self._annotated(ast.parse(annotation.value, mode="eval").body, name, frame)
            except (SyntaxError, ValueError):
                return None
        value = self.expressions.value(annotation, frame)
        if value is None or value.kind not in {"ref", "class"}:
            return None
        return self.expressions.instance(value.cls, name)

    def _block(self, body: list[ast.stmt], frame: Frame) -> None:
        for node in body:
            handler = _HANDLERS.get(type(node))
            if handler is not None:
                handler(self, node, frame)

    def _import(self, node: ast.Import, frame: Frame) -> None:
        for alias in node.names:
            if alias.asname:
                frame.names.bind(alias.asname, Value("ref", shortest(alias.name)))
            else:
                top = alias.name.partition(".")[0]
                frame.names.bind(top, Value("ref", top))

    def _import_from(self, node: ast.ImportFrom, frame: Frame) -> None:
        module = absolute(node, self.name, self._is_package)
        for alias in node.names:
            if alias.name != "*":
                name = f"{module}.{alias.name}" if module else alias.name
                frame.names.bind(alias.asname or alias.name, Value("ref", shortest(name)))

    def _function_def(self, node: AnyFunction, frame: Frame) -> None:
        for decorator in node.decorator_list:
            self.expressions.value(decorator, frame)
        name = self._qualified_in(frame, node.name)
        if name in self.functions:
            frame.names.bind(node.name, Value("function", self.qualified(name)))

    def _class_def(self, node: ast.ClassDef, frame: Frame) -> None:
        for each in (*node.decorator_list, *node.bases):
            self.expressions.value(each, frame)
        name = self._qualified_in(frame, node.name)
        frame.names.bind(node.name, Value("class", self.qualified(name)))
        owner = self.classes.get(name)
        if owner is None:
            return
        inner = Frame(frame.function, name, Names(frame.names), frozenset())
        inner.quiet = 1
        for each in node.body:
            if not isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                self._block([each], inner)
            elif isinstance(each, ast.ClassDef):
                self._class_def(each, inner)
            else:
                for decorator in each.decorator_list:
                    self.expressions.value(decorator, inner)
        for key, value in inner.names.own.items():
            if value is not None:
                owner.attributes.setdefault(key, value)

    def _qualified_in(self, frame: Frame, name: str) -> str:
        if frame.owner and frame.quiet:
            return f"{frame.owner}.{name}"
        return name if frame.function == MODULE else f"{frame.function}.<locals>.{name}"

    def _assign(self, node: ast.Assign, frame: Frame) -> None:
        value = self.expressions.value(node.value, frame)
        for target in node.targets:
            self.bind(target, value, node.value, node, frame)

    def _annotated_assign(self, node: ast.AnnAssign, frame: Frame) -> None:
        value = self.expressions.value(node.value, frame) if node.value is not None else None
        if value is None:
            path = self.expressions.path(node.target, frame)
            value = self._annotated(node.annotation, path, frame)
        if node.value is not None or value is not None:
            self.bind(node.target, value, node.value, node, frame)

    def _augmented_assign(self, node: ast.AugAssign, frame: Frame) -> None:
        added = self.expressions.value(node.value, frame)
        before = self.expressions.value(node.target, frame)
        if before is not None and before.kind in {"parameters", "list"} and isinstance(node.op, ast.Add):
            path = self.expressions.assigned_path(node.target, frame)
            tests = spelled_tests(frame.conditions, self.values)
            if added is not None and tests:
                added = replace(added, filtered=True, tests=(*added.tests, *tests))
            grown = joined(before, added if added is not None and is_list(added) else None)
            frame.names.bind(path, grown if grown.path else grown.at(path))
        elif before is not None and before.kind in {"parameter", "data"}:
            frame.emit("write", before.path, node, how="assign")

    def bind(self, target: ast.expr, value: Value | None, given: ast.expr | None, node: ast.AST, frame: Frame) -> None:
        """A target of an assignment or loop stands for a value from here on."""
        if isinstance(target, (ast.Tuple, ast.List)):
            self._bind_parts(target, value, given, node, frame)
            return
        if isinstance(target, ast.Starred):
            self.bind(target.value, None, None, node, frame)
            return
        if isinstance(target, ast.Subscript):
            self.expressions.value(target.value, frame)
            self.expressions.value(target.slice, frame)
            self._stored(target, value, node, frame)
            return
        path = self._target_path(target, frame)
        if isinstance(target, ast.Attribute):
            owner = self.expressions.value(target.value, frame)
            if self.expressions.effects.attribute_set(target, owner, value, node, frame):
                return
        if value is None and (isinstance(target, ast.Attribute) or isinstance(given, ast.Call)):
            # What somebody else's function gives is told by how it is used, and by what it is called.
            value = self.expressions.guess(path, frame)
        is_new = value is not None and not value.path
        if value is not None and is_new:
            value = value.at(path)
        if given is not None:
            frame.name_fresh(given, path)
        self.values[id(target)] = value or Value("unknown", path=path)
        frame.names.bind(path, value)
        if isinstance(target, ast.Attribute) and value is not None and value.path and value.path != path:
            frame.emit("alias", path, node, of=value.path)
        if value is not None and value.kind == "module" and isinstance(given, ast.Call) and is_new:
            frame.emit("new", path, node, value=value)
        elif value is not None and value.cls == "torch.nn.Parameter" and isinstance(given, ast.Call):
            frame.emit("new_parameter", path, node)
        is_call = isinstance(given, ast.Call) and isinstance(target, ast.Attribute)
        if is_call and value is not None and value.kind == "parameter" and value.path == path:
            frame.emit("renew", path, node, how="parameter")
        if isinstance(target, ast.Attribute) and frame.owner and value is not None:
            base = self.values.get(id(target.value))
            if base is not None and base.path == "self" and frame.owner in self.classes:
                self.classes[frame.owner].attributes.setdefault(target.attr, value.at(f"self.{target.attr}"))

    def _target_path(self, target: ast.expr, frame: Frame) -> str:
        """The path of what is assigned to: a name is itself, whatever it was another name for until now."""
        return target.id if isinstance(target, ast.Name) else self.expressions.path(target, frame)

    def _bind_parts(
        self, target: ast.Tuple | ast.List, value: Value | None, given: ast.expr | None, node: ast.AST, frame: Frame
    ) -> None:
        parts: tuple[Value | None, ...] = value.items if value is not None and value.kind in {"tuple", "list"} else ()
        literal = given.elts if isinstance(given, (ast.Tuple, ast.List)) else []
        if len(parts) != len(target.elts):
            parts = (None,) * len(target.elts)
        if given is not None and given is not node:
            paths = ",".join(self._target_path(each, frame) for each in target.elts)
            frame.name_fresh(given, paths)
        for i, each in enumerate(target.elts):
            own = literal[i] if len(literal) == len(target.elts) else None
            part = parts[i]
            if part is None and own is None:
                part = self.expressions.guess(self.expressions.path(each, frame), frame)
            self.bind(each, part, own, node, frame)

    def _stored(self, target: ast.Subscript, value: Value | None, node: ast.AST, frame: Frame) -> None:
        base = self.values.get(id(target.value))
        if base is not None and base.kind == "module":
            path = self.expressions.path(target, frame)
            if value is not None and value.kind == "module":
                frame.emit("new", path, node, value=value.at(path))
        elif base is not None and base.kind in {"parameter", "data"}:
            frame.emit("write", base.path, node, how="assign")

    def _expression(self, node: ast.Expr, frame: Frame) -> None:
        frame.unused = node.value
        self.expressions.value(node.value, frame)
        frame.unused = None

    def _return(self, node: ast.Return, frame: Frame) -> None:
        if node.value is None:
            return
        value = self.expressions.value(node.value, frame)
        frame.name_fresh(node.value, RETURNED)
        if value is not None:
            frame.returned.append(value if value.path else value.at(RETURNED))

    def _for(self, node: ast.For | ast.AsyncFor, frame: Frame) -> None:
        over = self.expressions.value(node.iter, frame)
        if over is None:
            over_path = self.expressions.path(node.iter, frame)
            item: Value | None = Value("unknown", path=f"{over_path}{EACH}") if over_path else None
        else:
            item = self.expressions.item(over)
        self._loop(node, "for", over, node.target, item, frame)

    def _loop(
        self,
        node: ast.For | ast.AsyncFor | ast.While,
        kind: str,
        over: Value | None,
        target: ast.expr | None,
        item: Value | None,
        frame: Frame,
    ) -> None:
        before = frame.loops
        targets = (
            tuple(each.id for each in ast.walk(target) if isinstance(each, ast.Name)) if target is not None else ()
        )
        loop = Loop((id(node),), kind, over, targets, node.lineno, len(frame.conditions), node)
        frame.loops = (*before, loop)
        if target is not None:
            self.bind(target, item, None, node, frame)
        self._block(node.body, frame)
        frame.loops, frame.conditions = before, frame.conditions[: loop.conditions]
        self._block(node.orelse, frame)

    def _while(self, node: ast.While, frame: Frame) -> None:
        self.expressions.value(node.test, frame)
        self._loop(node, "while", None, None, None, frame)

    def _if(self, node: ast.If, frame: Frame) -> None:
        test = self.expressions.value(node.test, frame)
        always = bool(test.const) if test is not None and test.kind == "const" else None
        if _is_main(node.test):
            always = True
        before = frame.conditions
        names = frame.names
        mark = names.mark()
        for arm, body in ((True, node.body), (False, node.orelse)):
            if not body or always is (not arm):
                continue
            if always is None:
                frame.conditions = (*before, Condition((id(node),), arm, node.test))
            if not arm:
                one = {path: names.own.get(path, MISSING) for path in names.changed(mark)}
                names.undo(mark)
                self._block(body, frame)
                _merge(names, one, mark)
            else:
                self._block(body, frame)
        if not node.orelse and always is None:
            for path, value in names.changed(mark).items():
                after = names.own.get(path)
                if isinstance(value, Value) and after is not None and after is not value and is_list(value):
                    merged = either(value, after)
                    names.put(path, merged.at(path) if merged is not None and not merged.path else merged)
        names.release()
        frame.conditions = before
        is_sent_on = not node.orelse and isinstance(node.body[-1], ast.Continue)
        if is_sent_on and frame.loops and is_over_parts(frame.loops[-1].over):
            # What comes behind it in the loop is done to what the test has not sent on.
            frame.conditions = (*before, Condition((id(node),), False, node.test))

    def _with(self, node: ast.With | ast.AsyncWith, frame: Frame) -> None:
        switched = 0
        for item in node.items:
            value = self.expressions.value(item.context_expr, frame)
            switched += self._is_no_grad(item.context_expr, frame)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, value, item.context_expr, node, frame)
        frame.no_grad += switched
        self._block(node.body, frame)
        frame.no_grad -= switched

    def _is_no_grad(self, node: ast.expr, frame: Frame) -> bool:
        """Whether a context or decorator switches gradients off."""
        called = node.func if isinstance(node, ast.Call) else node
        value = self.values.get(id(called)) or self.expressions.value(called, frame)
        if value is None or value.kind != "ref":
            return False
        given = [*node.args, *(each.value for each in node.keywords)] if isinstance(node, ast.Call) else []
        is_false = bool(given) and isinstance(given[0], ast.Constant) and given[0].value is False
        return not is_false if value.cls in NO_GRAD else is_false and value.cls == "torch.set_grad_enabled"

    def _try(self, node: ast.Try, frame: Frame) -> None:
        for body in (node.body, node.orelse, node.finalbody):
            self._block(body, frame)
        # What went well is meant: `try: from a import f`, `except ImportError: f = None`.
        names = frame.names
        mark = names.mark()
        for handler in node.handlers:
            self._block(handler.body, frame)
        for path, value in names.changed(mark).items():
            if isinstance(value, Value):
                names.put(path, value)
        names.release()

    def _match(self, node: ast.Match, frame: Frame) -> None:
        self.expressions.value(node.subject, frame)
        for body in bodies(node):
            self._block(body, frame)

    def _shared(self, node: ast.Global | ast.Nonlocal, frame: Frame) -> None:
        frame.shared.update(node.names)

    def _others(self, node: ast.stmt, frame: Frame) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.expressions.value(child, frame)


_ASKED = re.compile(rf"\.(?:{'|'.join(sorted(ONLY_MODULES))})\b")
_PATH_BEFORE = re.compile(r"[A-Za-z_][\w.]*$")
_ITERABLES = frozenset({"Iterable", "Iterator", "List", "list", "Sequence", "Tuple", "tuple", "Generator", "Set"})


def _builtin(base: ast.expr) -> str:
    """The qualified name of a class of Python's own; "" for others."""
    name = base.id if isinstance(base, ast.Name) else ""
    return f"builtins.{name}" if isinstance(getattr(builtins, name, None), type) else ""


def _is_main(test: ast.expr) -> bool:
    """Whether it is ``__name__ == "__main__"``."""
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.left, ast.Name)
        and test.left.id == "__name__"
        and isinstance(test.ops[0], ast.Eq)
    )


def _merge(names: Names, one: dict[str, Value | Missing | None], mark: int) -> None:
    """What is known behind an ``if``: what both arms agree in, or what one of them knows.

    Args:
        names: as they are behind the second arm.
        one: what the first arm has changed.
        mark: where the ``if`` begins.
    """
    for path, before in {**names.changed(mark), **one}.items():
        value = one.get(path, before)
        there = names.own.get(path)
        if isinstance(value, Missing):
            continue
        if there is None or value is None:
            names.put(path, value or there)
        elif there != value:
            merged = either(value, there)
            if merged is not None and not merged.path:
                merged = merged.at(path)
            names.put(path, merged or (value if value.kind == there.kind else None))


def plain_path(node: ast.expr) -> str:
    """Names and attributes as a dotted path; "" for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    parts.append(node.id)
    return ".".join(reversed(parts))


_HANDLERS: dict[type[ast.stmt], Callable[..., None]] = {
    ast.Import: ModuleWalk._import,
    ast.ImportFrom: ModuleWalk._import_from,
    ast.FunctionDef: ModuleWalk._function_def,
    ast.AsyncFunctionDef: ModuleWalk._function_def,
    ast.ClassDef: ModuleWalk._class_def,
    ast.Assign: ModuleWalk._assign,
    ast.AnnAssign: ModuleWalk._annotated_assign,
    ast.AugAssign: ModuleWalk._augmented_assign,
    ast.Expr: ModuleWalk._expression,
    ast.Return: ModuleWalk._return,
    ast.For: ModuleWalk._for,
    ast.AsyncFor: ModuleWalk._for,
    ast.While: ModuleWalk._while,
    ast.If: ModuleWalk._if,
    ast.With: ModuleWalk._with,
    ast.AsyncWith: ModuleWalk._with,
    ast.Try: ModuleWalk._try,
    ast.Match: ModuleWalk._match,
    ast.Assert: ModuleWalk._others,
    ast.Raise: ModuleWalk._others,
    ast.Delete: ModuleWalk._others,
    ast.Global: ModuleWalk._shared,
    ast.Nonlocal: ModuleWalk._shared,
}
if hasattr(ast, "TryStar"):  # from Python 3.11 on
    _HANDLERS[ast.TryStar] = ModuleWalk._try  # pyright: ignore[reportAttributeAccessIssue]
