"""What calls and assignments do to models and optimizers, and what calls give back."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from frostline.lint.frame import Frame
from frostline.lint.parameter_lists import UNKNOWN, appended, is_list, is_over_parts, joined, of_parts, spelled_tests
from frostline.lint.scopes import Class, Function, is_property
from frostline.lint.torch_names import (
    CLIPS,
    ITERATORS,
    MOVES,
    ONLY_MODULES,
    OPTIMIZERS,
    SAME_MODULE,
    SAVERS,
    SCHEDULERS,
    WRAPPERS,
    WRITES,
    hinted,
    is_module_class,
)
from frostline.lint.values import EACH, MODULES, PARAMETERS, Value

if TYPE_CHECKING:
    from frostline.lint.expressions import Expressions
    from frostline.lint.module_walk import ModuleWalk

_METRICS = re.compile(r"(^|_)(acc|accuracy|correct|auc|f1|iou|dice|topk|argmax|confusion|metric|psnr|ssim|top1)", re.I)
_THINGS = frozenset({"module", "optimizer", "parameters", "named_parameters", "scheduler", "averaged"})


@dataclass(frozen=True)
class Call:
    """A call of a method.

    Attributes:
        function: what is called.
        receiver: whose method it is, as far as that is known.
        path: the path of the receiver.
        node: the call.
        args: its arguments.
        named: those with a name.
        unused: nobody uses its result.
        frame: where it stands.
    """

    function: ast.Attribute
    receiver: Value | None
    path: str
    node: ast.Call
    args: list[Value | None]
    named: dict[str, Value | None]
    unused: bool
    frame: Frame


class Effects:
    """Looks at calls and at what is assigned to attributes.

    Args:
        walk: the file.
        expressions: evaluates its expressions.

    Attributes:
        consumed: the ids of generator expressions that are gone through at once.
    """

    def __init__(self, walk: ModuleWalk, expressions: Expressions) -> None:
        self._walk = walk
        self._expressions = expressions
        self.consumed: set[int] = set()
        self._of_lambda: dict[int, Value | None] = {}

    def lambda_argument(self, node: ast.Lambda) -> Value | None:
        """What a lambda is called with, where the call that it is given to tells."""
        return self._of_lambda.get(id(node))

    # Assignments.

    def attribute_set(
        self, target: ast.Attribute, owner: Value | None, value: Value | None, node: ast.AST, frame: Frame
    ) -> bool:
        """Whether an assignment to an attribute is one that means something to torch; then it is taken down."""
        path = self._path(target.value, owner, frame)
        if target.attr == "requires_grad":
            # On a module it does nothing: that is a mistake of its own, and no freezing.
            if owner is None or owner.kind != "module":
                self._flag(target.value, owner, value, self._flag_value(value, node, frame), "attribute", node, frame)
            return True
        if target.attr == "training":
            self._mode(owner, path, _truth(value), node, frame, how="attribute")
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

    def _flag(
        self,
        node: ast.expr,
        owner: Value | None,
        value: Value | None,
        flag: bool | Value | None,
        how: str,
        at: ast.AST,
        frame: Frame,
    ) -> None:
        path = self._path(node, owner, frame)
        for subject, item in frame.subjects(owner, path):
            filtered = item is not None and item.kind in PARAMETERS and item.filtered
            frame.emit("flag", subject, at, value=flag, how=how, filtered=filtered)

    def _mode(
        self, owner: Value | None, path: str, mode: bool | Value | None, at: ast.AST, frame: Frame, how: str = "method"
    ) -> None:
        for subject, item in frame.subjects(owner, path):
            frame.emit("mode", subject, at, value=mode, how=how, cls=item.cls if item is not None else "")

    def _path(self, node: ast.expr, value: Value | None, frame: Frame) -> str:
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
            return self._ours(callee.cls, node, args, named, receiver, unused, frame)
        if callee is not None and callee.kind == "ref":
            return self._library(callee.cls, node, args, named, unused, frame)
        if callee is not None and callee.kind in {"module", "averaged"}:
            frame.emit("forward", self._path(function, callee, frame), node, args=args)
            return Value("tensor")
        if isinstance(function, ast.Attribute):
            before = len(frame.events)
            result = self._method(function, receiver, node, args, named, unused, frame)
            if (
                function.attr in SAME_MODULE
                and receiver is not None
                and receiver.kind == "module"
                and not receiver.path
            ):
                frame.pass_on(function.value, node, before)
            return result
        self._unknown(
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

    def _ours(
        self,
        cls: str,
        node: ast.Call,
        args: list[Value | None],
        named: dict[str, Value | None],
        receiver: Value | None,
        unused: bool,
        frame: Frame,
    ) -> Value | None:
        """A call of a function or class of the files that are linted."""
        found = self._walk.find(cls)
        if found is None:
            self._unknown(cls, node, args, named, frame)
            return None
        walk, each = found
        if isinstance(each, Class):
            made = self._expressions.made(cls) or Value("object", cls)
            if made.kind in {"optimizer", "scheduler"}:
                return self._made(made, node, args, named, frame)
            init = walk.method(cls, "__init__")
            if init is not None:
                owner, method = init
                self._emit_call(owner, method, node, Value(made.kind, cls, path=""), args, named, frame, is_init=True)
            if made.kind == "object":
                frame.fresh.setdefault(id(node), [])
            return made
        return self._run(walk, each, node, None if not each.is_bound else receiver, args, named, unused, frame)

    def _run(
        self,
        walk: ModuleWalk,
        function: Function,
        node: ast.Call,
        receiver: Value | None,
        args: list[Value | None],
        named: dict[str, Value | None],
        unused: bool,
        frame: Frame,
    ) -> Value | None:
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
        paths = [self._path(n, v, frame) for n, v in zip(node.args, args, strict=True)]
        keyed = {k.arg: self._path(k.value, named.get(k.arg), frame) for k in node.keywords if k.arg}
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

    def _library(
        self,
        cls: str,
        node: ast.Call,
        args: list[Value | None],
        named: dict[str, Value | None],
        unused: bool,
        frame: Frame,
    ) -> Value | None:
        """A call of something that was imported."""
        first = args[0] if args else None
        if cls.startswith("builtins."):
            return self._builtin(cls[9:], node, args, frame)
        if cls in WRAPPERS:
            return self._wrapped(WRAPPERS[cls], cls, node, first or named.get("module"), frame)
        if cls in CLIPS:
            given = first or named.get("parameters")
            path = self._expressions.path(node.args[0], frame) if node.args else ""
            frame.emit(
                "clip", given.owner if given is not None else path, node, sources=given.sources() if given else []
            )
            return Value("tensor")
        if cls in SAVERS or (cls.endswith((".save", ".save_file")) and cls.startswith(("torch", "safetensors"))):
            frame.emit("save", self._path(node.args[0], first, frame) if node.args else "", node, value=first)
            return None
        if cls in {"torch.load", "safetensors.torch.load_file", "torch.utils.model_zoo.load_url"} or cls.endswith(
            ("load_state_dict_from_url", "load_url")
        ):
            return Value("checkpoint")
        if cls == "torch.optim.swa_utils.update_bn":
            model = args[1] if len(args) > 1 else named.get("model")
            frame.emit("update_bn", model.path if model is not None else "", node)
            return None
        if cls == "copy.deepcopy" or cls == "copy.copy":
            if first is None:
                return None
            return replace(first, path="", copy_of=first.path or self._expressions.path(node.args[0], frame))
        if cls in {"frostline.freeze", "frostline.frozen", "frostline.freezing.freeze", "frostline.freezing.frozen"}:
            frame.emit("hold", first.path if first is not None else "", node)
            return None
        if cls == "collections.OrderedDict":
            return _ordered(args, named)
        if cls == "itertools.chain":
            spread = [each for each in args if each is not None and (each.kind in PARAMETERS or is_list(each))]
            return Value("parameters", items=tuple(args), lazy=True) if spread else None
        if cls == "itertools.chain.from_iterable":
            return Value("parameters", items=(first,), lazy=True) if first is not None and is_list(first) else None
        if cls.startswith("torch.nn.init.") and first is not None:
            frame.emit("init", first.path, node)
            return first
        if cls.startswith("torch.func.") or cls.endswith("stateless.functional_call"):
            if not cls.endswith("functional_call"):
                return None
            frame.emit("functional", self._path(node.args[0], first, frame) if node.args else "", node)
            return Value("tensor")
        found = self._walk.find(cls) if not cls.startswith("torch.") else None
        if found is not None:
            walk, each = found
            given = self._ours(walk.qualified(each.name), node, args, named, None, unused, frame)
            return given or (self._expressions.made(cls) if isinstance(each, Function) else None)
        made = self._expressions.made(cls)
        if made is None:
            last = cls.rpartition(".")[2]
            if _METRICS.search(last):
                frame.emit("metric", last, node)
            self._unknown(cls, node, args, named, frame)
            return None
        return self._made(made, node, args, named, frame)

    def _made(
        self, made: Value, node: ast.Call, args: list[Value | None], named: dict[str, Value | None], frame: Frame
    ) -> Value:
        """Something of torch's kind was made; optimizers, schedulers and modules of the files take it down."""
        first = args[0] if args else None
        if made.kind == "optimizer":
            given = first or named.get("params")
            if given is None and node.args:
                given = Value("unknown", path=self._expressions.path(node.args[0], frame))
            options = {k: v.const for k, v in named.items() if v is not None and v.kind == "const"}
            sources = given.sources() if given is not None else []
            frame.emit_new("optimizer", node, sources=sources, cls=made.cls, options=options, given=given)
        elif made.kind == "scheduler":
            given = first or named.get("optimizer")
            of = self._path(node.args[0], given, frame) if node.args else given.path if given is not None else ""
            frame.emit_new("scheduler", node, of=of, cls=made.cls)
        elif made.kind == "module" and self._walk.find(made.cls) is not None:
            return self._ours(made.cls, node, args, named, None, False, frame) or made
        if made.kind == "module" and made.cls.endswith(("Sequential", "ModuleList", "ModuleDict")):
            return replace(made, items=tuple(args))
        given = first or named.get("model_name")
        if made.maker and given is not None and isinstance(given.const, str):
            return replace(made, maker=f"{made.maker}:{given.const}")
        return made

    def _wrapped(self, how: str, cls: str, node: ast.Call, first: Value | None, frame: Frame) -> Value | None:
        given = node.args[0] if node.args else next((k.value for k in node.keywords if k.arg == "module"), None)
        of = self._path(given, first, frame) if given is not None else ""
        if how == "compile" and (first is None or first.kind != "module"):
            return first
        options = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
        frame.emit_new("wrap", node, how=how, of=of, value=first, options=options)
        if cls.endswith("fully_shard"):  # shards in place
            frame.name_fresh(node, of)
            return first
        if how == "averaged":
            return Value("averaged", cls)
        return Value("module", cls, copy_of=of)

    def _builtin(self, name: str, node: ast.Call, args: list[Value | None], frame: Frame) -> Value | None:
        first = args[0] if args else None
        if name in {"list", "tuple", "sorted", "reversed", "set"} and first is not None:
            if first.kind in PARAMETERS | MODULES:
                return replace(first, lazy=False)
            if first.kind == "module":  # list(sequential)
                return Value("modules", path=first.path)
            return first if first.kind in {"list", "tuple"} else None
        if name == "iter":
            return replace(first, lazy=True) if first is not None else None
        if name == "enumerate":
            return Value("enumerate", items=(first,))
        if name == "zip":
            return Value("zip", items=tuple(args))
        if name == "super":
            return Value("super", self._walk.qualified(frame.owner) if frame.owner else "", path="self")
        if name == "range":
            return Value("range")
        if name == "sum" and first is not None and first.kind == "list" and is_list(first):
            return joined(Value("list"), first) if all(each is not None for each in first.items) else None
        if name == "dict" and not node.args:
            params = next(
                (self._walk.values.get(id(k.value), UNKNOWN) for k in node.keywords if k.arg == "params"), None
            )
            return Value("group", items=(params,)) if params is not None else None
        if name == "dict" and first is not None and first.kind == "named_parameters":
            return Value("dict", items=(replace(first, lazy=False),))
        if name == "setattr" and len(node.args) == 3:
            return self._set(node, args, frame)
        if name == "getattr" and len(args) >= 2 and first is not None and first.cls == "torch.optim":
            attribute = args[1].const if args[1] is not None else None
            return Value("ref", f"torch.optim.{attribute if isinstance(attribute, str) else 'Optimizer'}")
        if name == "getattr" and len(args) >= 2 and first is not None and args[1] is not None:
            attribute = args[1].const
            if isinstance(attribute, str):
                path = f"{self._path(node.args[0], first, frame)}.{attribute}"
                if first.kind == "module":
                    return Value("module", path=path, sure=False)
        if name == "isinstance" or name == "len":
            return None
        return None

    def _set(self, node: ast.Call, args: list[Value | None], frame: Frame) -> Value | None:
        """``setattr`` with a literal name is an assignment."""
        name, value = args[1], args[2]
        if name is None or not isinstance(name.const, str):
            return None
        path = self._path(node.args[0], args[0], frame)
        if name.const == "requires_grad" and (args[0] is None or args[0].kind != "module"):
            flag = _truth(value)
            self._flag(node.args[0], args[0], value, flag, "attribute", node, frame)
        elif value is not None and value.kind == "module":
            frame.emit("new", f"{path}.{name.const}", node, value=value.at(f"{path}.{name.const}"))
        return None

    def _method(
        self,
        function: ast.Attribute,
        receiver: Value | None,
        node: ast.Call,
        args: list[Value | None],
        named: dict[str, Value | None],
        unused: bool,
        frame: Frame,
    ) -> Value | None:
        """A call of a method."""
        name = function.attr
        path = self._path(function.value, receiver, frame)
        kind = receiver.kind if receiver is not None else ""
        if receiver is not None and receiver.cls and kind in {"module", "object", "super"}:
            found = self._walk.method(receiver.cls, name) if kind != "super" else None
            if found is not None and not is_property(found[1]):
                result = self._run(*found, node, receiver, args, named, unused, frame)
                if name not in SAME_MODULE and name != "forward":
                    return result
        if kind == "module" and name.startswith("__") and name != "__call__":
            return None
        special = _METHODS.get(name)
        if special is not None:
            done = special(self, Call(function, receiver, path, node, args, named, unused, frame))
            if done is not _NOT_MINE:
                return done
        if name in ITERATORS and (kind in {"module", "averaged", "super"} or name in ONLY_MODULES):
            several = of_parts(ITERATORS[name], receiver) if receiver is not None else None
            return several or Value(ITERATORS[name], path=path, lazy=True)
        if name in ITERATORS and name in {"modules", "children", "named_children"} and kind in {"", "unknown"}:
            return Value(ITERATORS[name], path=path, lazy=True, sure=False)
        if kind == "module":
            if name in SAME_MODULE:
                if name in MOVES:
                    frame.emit("move", path, node, how=name)
                return receiver
            if self._walk.attribute(receiver.cls, name) if receiver is not None and receiver.cls else None:
                frame.emit("forward", f"{path}.{name}", node, args=args)
                return Value("tensor")
        if kind in {"parameter", "data"} and WRITES.match(name):
            frame.emit("write", path, node, how=name)
            return receiver
        if kind in {"tensor", "gradient"}:
            return Value("tensor") if name not in {"item", "tolist", "numpy", "size"} else None
        if name in {"detach", "clone"} and kind in {"parameter", "data"}:
            return Value("tensor", copy_of=path if name == "clone" else "")
        if kind == "averaged" and name == "update_parameters":
            frame.emit("average", path, node)
            return None
        if name == "items" and kind in {"state_dict", "checkpoint"}:
            return None
        if receiver is not None and kind in {"list", *PARAMETERS} and name in {"append", "extend", "insert"} and args:
            self._grow(function, receiver, name, args[-1], frame)
            return None
        if receiver is not None and kind == "dict" and name in {"values", "items"} and len(receiver.items) == 1:
            held = receiver.items[0]
            if held is not None and held.kind in PARAMETERS:
                return replace(held, kind="parameters" if name == "values" else "named_parameters")
        if kind == "groups" and name == "append":
            return self._add_group(Call(function, receiver, path, node, args, named, unused, frame))
        if _METRICS.search(name):
            frame.emit("metric", name, node)
        if kind in {"state_dict", "checkpoint"} and name in {"copy", "get", "pop"}:
            return Value("checkpoint", path="")
        self._unknown(f"{path}.{name}" if path else name, node, args, named, frame)
        return None

    def _grow(self, function: ast.Attribute, receiver: Value, name: str, added: Value | None, frame: Frame) -> None:
        """A list of parameters, groups or modules that is filled one by one."""
        path = self._expressions.assigned_path(function.value, frame)
        over = next((loop for loop in frame.loops if is_over_parts(loop.over) or loop.kind == "comprehension"), None)
        conditions = frame.conditions[over.conditions :] if over is not None else frame.conditions
        tests = spelled_tests(conditions, self._walk.values)
        if name == "extend" and added is not None and is_list(added):
            added = replace(added, filtered=added.filtered or bool(tests), tests=(*added.tests, *tests))
            grown = joined(receiver, added)
        elif name == "extend":
            grown = joined(receiver, UNKNOWN)
        else:
            grown = appended(receiver, added, tests, bool(frame.loops) and over is None)
        frame.names.bind(path, grown if grown.path else grown.at(path))

    # Methods that mean something.

    def _train_or_eval(self, call: Call) -> Value | None:
        name = call.function.attr
        kind = call.receiver.kind if call.receiver is not None else ""
        given = call.args[0] if call.args else call.named.get("mode")
        if kind in {"optimizer"}:
            call.frame.emit("optimizer_mode", call.path, call.node, value=name == "train")
            return None
        if kind == "super":
            return call.receiver
        if kind not in {"module", "averaged", "unknown", "parameter", ""} or call.node.args[1:]:
            return _NOT_MINE
        if kind == "" and (call.node.args or call.node.keywords) and not hinted(call.path.rpartition(".")[2]):
            return _NOT_MINE  # trainer.train(data)
        mode: bool | Value | None = name == "train"
        if name == "train" and (call.node.args or call.node.keywords):
            mode = _truth(given)
            if mode is None and call.node.args and isinstance(call.node.args[0], ast.Name):
                mode = Value("argument", path=call.node.args[0].id)
        self._mode(call.receiver, call.path, mode, call.node, call.frame)
        return call.receiver

    def _requires_grad_(self, call: Call) -> Value | None:
        given = (
            call.node.args[0]
            if call.node.args
            else next((k.value for k in call.node.keywords if k.arg == "requires_grad"), None)
        )
        flag: bool | Value | None = True
        if given is not None:
            value = call.args[0] if call.args else call.named.get("requires_grad")
            flag = _truth(value)
            if flag is None and isinstance(given, ast.Name) and call.frame.names.has(given.id):
                flag = Value("argument", path=given.id)
        kind = call.receiver.kind if call.receiver is not None else ""
        if kind == "gradient":  # `p.grad.requires_grad_(False)` says nothing of the parameter
            return call.receiver
        how = "module_method" if kind in {"module", "averaged"} else "method"
        self._flag(call.function.value, call.receiver, None, flag, how, call.node, call.frame)
        return call.receiver

    def _zero_grad(self, call: Call) -> Value | None:
        given = call.args[0] if call.args else call.named.get("set_to_none")
        call.frame.emit(
            "zero_grad", call.path, call.node, set_to_none=_truth(given), of=call.receiver.kind if call.receiver else ""
        )
        return None

    def _step(self, call: Call) -> Value | None:
        kind = call.receiver.kind if call.receiver is not None else hinted(call.path.rpartition(".")[2])
        if kind == "optimizer":
            call.frame.emit("step", call.path, call.node)
        elif kind == "scheduler":
            call.frame.emit("scheduler_step", call.path, call.node)
        elif kind == "scaler" and call.node.args:
            call.frame.emit(
                "scaler_step", self._path(call.node.args[0], call.args[0], call.frame), call.node, scaler=call.path
            )
        else:
            return _NOT_MINE
        return None

    def _renewed(self, call: Call) -> Value | None:
        if call.receiver is None or call.receiver.kind not in {"module", "unknown"}:
            return _NOT_MINE
        if call.function.attr == "register_parameter":
            name = call.args[0].const if call.args and call.args[0] is not None else None
            given = call.args[1] if len(call.args) > 1 else call.named.get("param")
            if isinstance(name, str) and (given is None or given.kind != "const"):
                call.frame.emit("renew", f"{call.path}.{name}", call.node, how="register")
            return None
        call.frame.emit("renew", call.path, call.node, how="resize")
        return None

    def _unscale(self, call: Call) -> Value | None:
        call.frame.emit(
            "unscale", self._path(call.node.args[0], call.args[0], call.frame) if call.node.args else "", call.node
        )
        return None

    def _update(self, call: Call) -> Value | None:
        if call.receiver is not None and call.receiver.kind == "scaler":
            call.frame.emit("scaler_update", call.path, call.node)
            return None
        return _NOT_MINE

    def _scale(self, call: Call) -> Value | None:
        if call.receiver is not None and call.receiver.kind == "scaler":
            return Value("scaled", path=call.path)
        return _NOT_MINE

    def _backward(self, call: Call) -> Value | None:
        kind = call.receiver.kind if call.receiver is not None else ""
        if kind in {"accelerator", "module", "object"} and not call.node.args:
            return _NOT_MINE
        call.frame.emit("backward", call.path, call.node, scaled=kind == "scaled", by=kind)
        return None

    def _add_group(self, call: Call) -> Value | None:
        given = call.args[0] if call.args else None
        call.frame.emit("add_group", call.path, call.node, sources=given.sources() if given is not None else [])
        return None

    def _load(self, call: Call) -> Value | None:
        strict, assign = call.named.get("strict"), call.named.get("assign")
        call.frame.emit(
            "load",
            call.path,
            call.node,
            strict=_truth(strict if strict is not None else call.args[1] if len(call.args) > 1 else None),
            assign=_truth(assign),
            used=not call.unused,
            of=call.receiver.kind if call.receiver is not None else hinted(call.path.rpartition(".")[2]),
            source=call.args[0] if call.args else call.named.get("state_dict"),
        )
        return Value("load_result")

    def _state_dict(self, call: Call) -> Value | None:
        call.frame.emit("state_dict", call.path, call.node, of=call.receiver.kind if call.receiver is not None else "")
        return Value("state_dict", path=call.path, cls=call.receiver.kind if call.receiver is not None else "")

    def _forward(self, call: Call) -> Value | None:
        if call.receiver is not None and call.receiver.kind == "super":
            return Value("tensor")
        if call.receiver is None or call.receiver.kind != "module":
            return _NOT_MINE
        call.frame.emit("forward", call.path, call.node, direct=True, args=call.args)
        return Value("tensor")

    def _prepare(self, call: Call) -> Value | None:
        if call.receiver is None or call.receiver.kind != "accelerator":
            return _NOT_MINE
        for each, value in zip(call.node.args, call.args, strict=True):
            call.frame.emit(
                "wrap",
                self._path(each, value, call.frame),
                call.node,
                how="prepare",
                of=self._path(each, value, call.frame),
            )
        return call.args[0] if len(call.args) == 1 else Value("tuple", items=tuple(call.args))

    def _apply(self, call: Call) -> Value | None:
        if call.receiver is None or call.receiver.kind != "module" or not call.args:
            return _NOT_MINE
        given = call.args[0]
        if given is not None and given.kind in {"function", "ref"}:
            found = self._walk.find(given.cls)
            if found is not None and isinstance(found[1], Function):
                part = Value("module", path=f"{call.path}{EACH}")
                call.frame.emit_new(
                    "call", call.node, file=found[0].source.path, callee=found[1].name, receiver=None, args=[part], named={},
                    paths=[part.path], keyed={}, is_init=False,
                )  # fmt: skip
                return call.receiver
        if not isinstance(call.node.args[0], ast.Lambda):
            call.frame.emit("unknown", "", call.node, name=ast.unparse(call.node.args[0])[:60], paths=[call.path])
        return call.receiver

    def _unknown(
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


_NOT_MINE = Value("not mine")
_METHODS = {
    "train": Effects._train_or_eval,
    "eval": Effects._train_or_eval,
    "requires_grad_": Effects._requires_grad_,
    "zero_grad": Effects._zero_grad,
    "step": Effects._step,
    "unscale_": Effects._unscale,
    "resize_token_embeddings": Effects._renewed,
    "register_parameter": Effects._renewed,
    "update": Effects._update,
    "scale": Effects._scale,
    "backward": Effects._backward,
    "manual_backward": Effects._backward,
    "add_param_group": Effects._add_group,
    "load_state_dict": Effects._load,
    "state_dict": Effects._state_dict,
    "forward": Effects._forward,
    "prepare": Effects._prepare,
    "apply": Effects._apply,
}


def _ordered(args: list[Value | None], named: dict[str, Value | None]) -> Value:
    """A dictionary of modules, as ``Sequential`` is given one: its ``const`` holds the keys."""
    pairs = args[0].items if args and args[0] is not None and args[0].kind in {"list", "tuple"} else ()
    keys, values = list(named), list(named.values())
    for pair in pairs:
        parts = pair.items if pair is not None and pair.kind == "tuple" and len(pair.items) == 2 else (None, None)
        keys.append(parts[0].const if parts[0] is not None and isinstance(parts[0].const, str) else "")
        values.append(parts[1])
    return Value("dict", items=tuple(values), const=tuple(keys))


def _truth(value: Value | None) -> bool | None:
    """A literal as a truth value; ``None`` if it is none."""
    if value is None or value.kind != "const":
        return None
    return bool(value.const)
