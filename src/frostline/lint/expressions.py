"""What an expression is: names, attributes, literals, comprehensions and calls to values."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from frostline.lint.effects import Effects
from frostline.lint.events import Condition, Loop
from frostline.lint.frame import Frame
from frostline.lint.parameter_lists import either, is_list, joined, spelled_tests
from frostline.lint.scopes import Class, Names
from frostline.lint.torch_names import OPTIMIZERS, SCHEDULERS, USUAL, hinted, is_module_class, makes_module, shortest
from frostline.lint.values import EACH, MODULES, PARAMETERS, Value

if TYPE_CHECKING:
    from frostline.lint.module_walk import ModuleWalk

_BUILTINS = frozenset(
    {
        "all", "any", "bool", "dict", "enumerate", "filter", "float", "getattr", "hasattr", "int", "isinstance",
        "iter", "len", "list", "map", "max", "min", "next", "print", "range", "reversed", "set", "setattr",
        "sorted", "str", "sum", "super", "tuple", "type", "vars", "zip",
    }
)  # fmt: skip

# What has more parts than this is not looked into: what doubles in every line would come to no end.
_LARGEST = 2_000


class Expressions:
    """Evaluates the expressions of one file; each result is kept in ``walk.values`` by the id of its node.

    Args:
        walk: the file.
    """

    def __init__(self, walk: ModuleWalk) -> None:
        self._walk = walk
        self.effects = Effects(walk, self)
        self.inner_names: dict[str, Names] = {}

    def value(self, node: ast.expr, frame: Frame) -> Value | None:
        """What an expression is; ``None`` if nothing is known of it."""
        handler = _HANDLERS.get(type(node))
        result = handler(self, node, frame) if handler is not None else self._children(node, frame)
        if result is not None and result.items and result.size > _LARGEST:
            result = None
        if result is not None:
            self._walk.values[id(node)] = result
        return result

    def path(self, node: ast.expr, frame: Frame) -> str:
        """The dotted path by which an expression is known: ``model.fc``, ``layers[0]``; "" where it has none."""
        if isinstance(node, ast.Name):
            known = frame.names.get(node.id)
            # Another name for something that has a path already; a loop's variable is called by what it goes over.
            return known.path if known is not None and known.path else node.id
        if isinstance(node, ast.Attribute):
            base = self.path(node.value, frame)
            return f"{base}.{node.attr}" if base else ""
        if isinstance(node, ast.Subscript):
            base = self.path(node.value, frame)
            index = node.slice.value if isinstance(node.slice, ast.Constant) else "*"
            return f"{base}[{index!r}]" if base and index != "*" else f"{base}[*]" if base else ""
        known = self._walk.values.get(id(node))
        return known.path if known is not None else ""

    def guess(self, path: str, frame: Frame) -> Value | None:
        """What something nobody defined here probably is: by how it is used, then by what it is called."""
        kind = hinted(path.rpartition(".")[2])
        # An optimizer, a scheduler and a scaler are loaded into too.
        if path in frame.used_as_module and kind not in {"optimizer", "scheduler", "scaler"}:
            return Value("module", path=path)
        return Value(kind, path=path, sure=False) if kind else None

    def instance(self, cls: str, path: str = "") -> Value | None:
        """An instance of a class, by the qualified name of the class."""
        last = cls.rpartition(".")[2]
        if cls in {"torch.Tensor", "torch.FloatTensor", "torch.LongTensor"}:
            return Value("tensor", cls, path)
        if cls == "torch.nn.Parameter":
            return Value("parameter", cls, path)
        if cls.startswith("torch.optim.lr_scheduler.") or (SCHEDULERS.search(last) and not cls.startswith("torch.nn.")):
            return Value("scheduler", cls, path)
        if cls.startswith("torch.optim.swa_utils."):
            return Value("averaged" if last == "AveragedModel" else "scheduler", cls, path)
        if cls.startswith("torch.optim.") and last[:1].isupper():
            return Value("optimizer", cls, path)
        if last == "GradScaler":
            return Value("scaler", cls, path)
        if last in {"Accelerator", "Fabric"}:
            return Value("accelerator", cls, path)
        if last.endswith("DataLoader"):
            return Value("loader", cls, path)
        if self._walk.is_module(cls):
            return Value("module", cls, path)
        found = self._walk.find(cls)
        return Value("object", cls, path) if found is not None and isinstance(found[1], Class) else None

    def item(self, over: Value) -> Value | None:
        """One of what a value goes over."""
        each = f"{over.path}{EACH}"
        if over.kind == "parameters":
            return Value("parameter", path=each, items=tuple(over.sources()) if over.items else ())
        if over.kind == "named_parameters":
            return Value("tuple", items=(Value("name", path=over.path), Value("parameter", path=each)))
        if over.kind == "modules":
            return Value("module", path=each, sure=over.sure)
        if over.kind == "named_modules":
            return Value("tuple", items=(Value("name", path=over.path), Value("module", path=each, sure=over.sure)))
        if over.kind == "tensors":
            return Value("tensor", path=each)
        if over.kind == "enumerate":
            inner = over.items[0]
            return Value("tuple", items=(None, self.item(inner) if inner is not None else None))
        if over.kind == "zip":
            return Value("tuple", items=tuple(self.item(i) if i is not None else None for i in over.items))
        if over.kind in {"list", "tuple"} and over.items:
            known = [item for item in over.items if item is not None]
            kinds = {item.kind for item in known}
            if len(kinds) == 1 and len(known) == len(over.items) and kinds & {"module", "parameter", "parameters"}:
                return Value(kinds.pop(), path=EACH, items=over.items)
            is_named = len(known) == len(over.items) and all(item.path for item in known)
            if kinds in ({"unknown"}, {"module", "unknown"}) and is_named:
                # Attributes that nobody here has set: it is told which, if not what they are.
                kind = "module" if "module" in kinds else "unknown"
                return Value(kind, path=EACH, items=over.items, sure=False)
            if kinds == {"tuple"}:
                return known[0]
        if over.kind == "module" and (not over.cls or over.cls.endswith(("ModuleList", "Sequential", "ModuleDict"))):
            return Value("module", path=each, sure=over.sure)
        if over.path and over.kind in {"object", "unknown"}:
            return Value("unknown", path=each)
        return None

    def assigned_path(self, node: ast.expr, frame: Frame) -> str:
        """The path that an assignment gives a value to: the name itself, whatever that has stood for."""
        return node.id if isinstance(node, ast.Name) else self.path(node, frame)

    def _children(self, node: ast.AST, frame: Frame) -> Value | None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child, frame)
        return None

    def _name(self, node: ast.Name, frame: Frame) -> Value | None:
        if frame.names.has(node.id):
            return frame.names.get(node.id)
        if node.id in _BUILTINS:
            return Value("ref", f"builtins.{node.id}")
        guessed = self.guess(node.id, frame)
        if guessed is not None and node.id not in USUAL:
            return guessed
        if node.id in USUAL:
            return Value("ref", USUAL[node.id])
        starred = self._walk.starred(node)
        return Value("ref", starred) if starred else None

    def _attribute(self, node: ast.Attribute, frame: Frame) -> Value | None:
        return self.attribute(node, self.value(node.value, frame), frame)

    def attribute(self, node: ast.Attribute, base: Value | None, frame: Frame) -> Value | None:
        """What an attribute is, of an object that has been evaluated."""
        path = self.path(node, frame)
        if path and frame.names.has(path):
            return frame.names.get(path)
        if base is None:
            return self.guess(path, frame) if path else None
        return self._attribute_of(base, node.attr, path, frame)

    def _attribute_of(self, base: Value, name: str, path: str, frame: Frame) -> Value | None:
        if base.kind == "ref":
            return Value("ref", shortest(f"{base.cls}.{name}"))
        if base.kind == "class":
            return Value("ref", f"{base.cls}.{name}")
        if base.path:
            path = f"{base.path}.{name}"
            known = frame.names.get(path)
            if known is not None:
                return known
        if base.kind in {"module", "object", "super"} and base.cls:
            found = self._walk.attribute(base.cls, name) if "." in base.cls else None
            if found is not None:
                return found.at(path) if path else found
        if base.kind == "parameter" and name in {"data", "grad"}:
            return Value("data" if name == "data" else "gradient", path=base.path)
        if base.kind == "module":
            return self._part(base, name, path, frame)
        if base.kind == "optimizer":
            return Value("groups", path=base.path) if name == "param_groups" else None
        return self.guess(path, frame) if path else None

    def _part(self, base: Value, name: str, path: str, frame: Frame) -> Value | None:
        """An attribute of a module that nobody here has set."""
        if name in {"weight", "bias"}:
            return Value("parameter", path=path, sure=is_module_class(base.cls))
        if name in {"training", "shape", "device", "dtype", "config"}:
            return None
        guessed = self.guess(path, frame)
        if guessed is not None:
            return guessed
        if name in _PARTS or name == "module":
            return Value("module", path=path, sure=False)
        return Value("unknown", path=path, sure=False) if path else None

    def _constant(self, node: ast.Constant, _: Frame) -> Value | None:
        return Value("const", const=node.value)

    def _tuple(self, node: ast.Tuple | ast.List | ast.Set, frame: Frame) -> Value | None:
        items: list[Value | None] = []
        for each in node.elts:
            value = self.value(each.value if isinstance(each, ast.Starred) else each, frame)
            if isinstance(each, ast.Starred) and value is not None and value.kind in {"list", "tuple"}:
                items += value.items
            elif isinstance(each, ast.Starred) and (value is None or not is_list(value)):
                items.append(Value("unknown", path=value.path if value is not None else ""))
            else:
                items.append(value)
        return Value("tuple" if isinstance(node, ast.Tuple) else "list", items=tuple(items))

    def _dict(self, node: ast.Dict, frame: Frame) -> Value | None:
        params: Value | None = None
        values: list[Value | None] = []
        for key, each in zip(node.keys, node.values, strict=True):
            if key is not None:
                self.value(key, frame)
            value = self.value(each, frame)
            values.append(value)
            if isinstance(key, ast.Constant) and key.value == "params":
                params = value or Value("unknown", path=self.path(each, frame))
        if params is not None:
            return Value("group", items=(params,))
        keys = tuple(key.value if isinstance(key, ast.Constant) else "" for key in node.keys)
        return Value("dict", items=tuple(values), const=keys)

    def _subscript(self, node: ast.Subscript, frame: Frame) -> Value | None:
        base = self.value(node.value, frame)
        self.value(node.slice, frame)
        path = self.path(node, frame)
        if path and frame.names.has(path):
            return frame.names.get(path)
        if base is None:
            return None
        if isinstance(node.slice, ast.Slice):
            if base.kind in PARAMETERS | MODULES:
                return replace(base, filtered=True, lazy=False)
            return Value("module", path=path) if base.kind == "module" else None
        if base.kind in {"parameters", "modules"}:
            return Value("parameter" if base.kind == "parameters" else "module", path=path)
        if base.kind in {"list", "tuple"}:
            index = node.slice.value if isinstance(node.slice, ast.Constant) else None
            if isinstance(index, int) and -len(base.items) <= index < len(base.items):
                return base.items[index]
            return None
        if base.kind == "module":
            return Value("module", path=path, sure=base.sure)
        if base.kind in {"checkpoint", "state_dict"}:
            return Value("checkpoint", path=path)
        if base.kind in {"parameter", "data"}:
            return Value(base.kind, path=base.path)
        if base.kind == "ref":  # Optional[...], List[...]
            return base
        return None

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, frame: Frame
    ) -> Value | None:
        before, names = frame.loops, frame.names
        frame.names = Names(names)
        # A generator that nobody goes through does nothing.
        is_lazy = isinstance(node, ast.GeneratorExp)
        quiet = is_lazy and id(node) not in self.effects.consumed
        frame.quiet += quiet
        filtered = False
        tests: tuple[str, ...] = ()
        over: Value | None = None
        for generator in node.generators:
            over = self.value(generator.iter, frame)
            item = self.item(over) if over is not None else None
            loop = Loop((id(generator),), "comprehension", over, (), node.lineno, len(frame.conditions), node)
            frame.loops = (*frame.loops, loop)
            self._walk.bind(generator.target, item, None, node, frame)
            for test in generator.ifs:
                self.value(test, frame)
            filtered = filtered or bool(generator.ifs) or (over is not None and over.filtered)
            if over is not None and over.kind in PARAMETERS | MODULES:
                tests = (*tests, *over.tests, *spelled_tests(generator.ifs, self._walk.values))
        if isinstance(node, ast.DictComp):
            self.value(node.key, frame)
            element = self.value(node.value, frame)
        else:
            element = self.value(node.elt, frame)
        frame.loops, frame.names = before, names
        frame.quiet -= quiet
        if element is None or over is None:
            return None
        if element.kind == "group":
            return Value("list", items=(replace(element, filtered=filtered, tests=tests),))
        if element.kind in {"list", "tuple"} and not isinstance(node, ast.DictComp) and _are_lists(element.items):
            return Value("list", items=(replace(element, filtered=filtered, tests=tests),), lazy=is_lazy)
        if element.kind in PARAMETERS:  # [m.parameters() for m in ...]
            return Value("list", items=(replace(element, filtered=element.filtered or filtered),), lazy=is_lazy)
        kind = {"parameter": "parameters", "module": "modules"}.get(element.kind)
        if element.kind == "tuple" and len(element.items) == 2 and element.items[1] is not None:
            kind = {"parameter": "named_parameters", "module": "named_modules"}.get(element.items[1].kind)
            element = element.items[1]
        if kind is None:
            return None
        path = element.path.removesuffix(EACH)
        items = element.items if element.kind == "parameter" else ()
        made = Value(kind, path=path, items=items, filtered=filtered, tests=tests, lazy=is_lazy)
        return Value("dict", items=(made,)) if isinstance(node, ast.DictComp) else made

    def _binary(self, node: ast.BinOp, frame: Frame) -> Value | None:
        left, right = self.value(node.left, frame), self.value(node.right, frame)
        if isinstance(node.op, ast.Add) and left is not None and left.kind in PARAMETERS | {"list"}:
            return joined(left, right)
        if isinstance(node.op, ast.Add) and right is not None and right.kind in PARAMETERS and left is None:
            return joined(Value("unknown"), right)
        if left is not None and left.kind == "tensor":
            return Value("tensor")
        return None

    def _unary(self, node: ast.UnaryOp, frame: Frame) -> Value | None:
        value = self.value(node.operand, frame)
        if isinstance(node.op, ast.Not) and value is not None and value.kind == "const":
            return Value("const", const=not value.const)
        if isinstance(node.op, ast.USub) and value is not None and isinstance(value.const, (int, float)):
            return Value("const", const=-value.const)
        return None

    def _either(self, node: ast.IfExp, frame: Frame) -> Value | None:
        self.value(node.test, frame)
        before = frame.conditions
        frame.conditions = (*before, Condition((id(node),), True, node.test))
        one = self.value(node.body, frame)
        frame.conditions = (*before, Condition((id(node),), False, node.test))
        other = self.value(node.orelse, frame)
        frame.conditions = before
        if one is None or other is None:
            return one if other is None else other
        if is_list(one) and is_list(other):
            return either(one, other)
        return one if one.kind == other.kind else None

    def _boolean(self, node: ast.BoolOp, frame: Frame) -> Value | None:
        known = [value for each in node.values if (value := self.value(each, frame)) is not None]
        return known[-1] if known and len({value.kind for value in known}) == 1 and known[0].kind != "const" else None

    def _named(self, node: ast.NamedExpr, frame: Frame) -> Value | None:
        value = self.value(node.value, frame)
        self._walk.bind(node.target, value, node.value, node, frame)
        return value

    def _lambda(self, node: ast.Lambda, frame: Frame) -> Value | None:
        names = frame.names
        frame.names = Names(names)
        for argument in node.args.args:
            frame.names.own[argument.arg] = self.effects.lambda_argument(node) or self.guess(argument.arg, frame)
        frame.quiet += 1
        self.value(node.body, frame)
        frame.quiet -= 1
        frame.names = names
        return None

    def _inner(self, node: ast.Await | ast.Starred, frame: Frame) -> Value | None:
        return self.value(node.value, frame)

    def _call(self, node: ast.Call, frame: Frame) -> Value | None:
        return self.effects.call(node, frame)

    def made(self, cls: str) -> Value | None:
        """What calling something of a library gives."""
        last = cls.rpartition(".")[2]
        made = self.instance(cls)
        if made is not None:
            return made
        if makes_module(cls):
            return Value("module", cls if is_module_class(cls) else "", maker=cls)
        if SCHEDULERS.search(last):
            return Value("scheduler", cls)
        if OPTIMIZERS.match(last):
            return Value("optimizer", cls)
        if cls.startswith("torch.") and last in _TENSOR_MAKERS:
            return Value("tensor")
        return None


def _are_lists(items: tuple[Value | None, ...]) -> bool:
    return bool(items) and all(item is not None and is_list(item) for item in items)


_PARTS = frozenset(
    {
        "fc", "head", "heads", "features", "avgpool", "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "stem",
        "blocks", "embeddings", "lm_head", "bert", "roberta", "vit", "base_model", "body", "roi_heads", "rpn", "visual",
    }
)  # fmt: skip
"""Attributes of modules that are modules in the nets of torchvision, timm and transformers."""

_TENSOR_MAKERS = frozenset(
    {
        "tensor", "randn", "rand", "zeros", "ones", "empty", "full", "arange", "linspace", "zeros_like", "ones_like",
        "randn_like", "rand_like", "cat", "stack", "from_numpy", "as_tensor", "randint", "eye", "matmul", "mean", "sum",
    }
)  # fmt: skip

_HANDLERS: dict[type[ast.expr], Callable[..., Value | None]] = {
    ast.Name: Expressions._name,
    ast.Attribute: Expressions._attribute,
    ast.Constant: Expressions._constant,
    ast.Tuple: Expressions._tuple,
    ast.List: Expressions._tuple,
    ast.Set: Expressions._tuple,
    ast.Dict: Expressions._dict,
    ast.Subscript: Expressions._subscript,
    ast.ListComp: Expressions._comprehension,
    ast.SetComp: Expressions._comprehension,
    ast.GeneratorExp: Expressions._comprehension,
    ast.DictComp: Expressions._comprehension,
    ast.BinOp: Expressions._binary,
    ast.UnaryOp: Expressions._unary,
    ast.IfExp: Expressions._either,
    ast.BoolOp: Expressions._boolean,
    ast.NamedExpr: Expressions._named,
    ast.Lambda: Expressions._lambda,
    ast.Await: Expressions._inner,
    ast.Starred: Expressions._inner,
    ast.Call: Expressions._call,
}
