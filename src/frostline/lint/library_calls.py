"""Calls of what was imported from torch and its kin, and of Python's own functions."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import TYPE_CHECKING

from frostline.lint.call import truth
from frostline.lint.frame import Frame
from frostline.lint.parameter_lists import UNKNOWN, is_list, joined
from frostline.lint.scopes import Function
from frostline.lint.torch_names import CLIPS, HOLDS, METRICS, SAVERS, WRAPPERS
from frostline.lint.values import MODULES, PARAMETERS, Value

if TYPE_CHECKING:
    from frostline.lint.effects import Effects
    from frostline.lint.expressions import Expressions
    from frostline.lint.module_walk import ModuleWalk


class LibraryCalls:
    """Takes down what functions and classes of libraries do, and tells what they give.

    Args:
        walk: the file that calls.
        expressions: evaluates its expressions.
        effects: takes down what these calls have in common with others.
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
            frame.emit("save", self._effects.path(node.args[0], first, frame) if node.args else "", node, value=first)
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
        if cls in HOLDS:
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
            frame.emit("functional", self._effects.path(node.args[0], first, frame) if node.args else "", node)
            return Value("tensor")
        found = self._walk.find(cls) if not cls.startswith("torch.") else None
        if found is not None:
            walk, each = found
            given = self._effects.own.call(walk.qualified(each.name), node, args, named, None, frame)
            return given or (self._expressions.made(cls) if isinstance(each, Function) else None)
        made = self._expressions.made(cls)
        if made is None:
            last = cls.rpartition(".")[2]
            if METRICS.search(last):
                frame.emit("metric", last, node)
            self._effects.unknown(cls, node, args, named, frame)
            return None
        return self.made(made, node, args, named, frame)

    def made(
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
            of = (
                self._effects.path(node.args[0], given, frame) if node.args else given.path if given is not None else ""
            )
            frame.emit_new("scheduler", node, of=of, cls=made.cls)
        elif made.kind == "module" and self._walk.find(made.cls) is not None:
            return self._effects.own.call(made.cls, node, args, named, None, frame) or made
        if made.kind == "module" and made.cls.endswith(("Sequential", "ModuleList", "ModuleDict")):
            return replace(made, items=tuple(args))
        given = first or named.get("model_name")
        if made.maker and given is not None and isinstance(given.const, str):
            return replace(made, maker=f"{made.maker}:{given.const}")
        return made

    def _wrapped(self, how: str, cls: str, node: ast.Call, first: Value | None, frame: Frame) -> Value | None:
        """A module is wrapped into another one, or compiled."""
        given = node.args[0] if node.args else next((k.value for k in node.keywords if k.arg == "module"), None)
        of = self._effects.path(given, first, frame) if given is not None else ""
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
        """A call of something of Python's own."""
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
            if isinstance(attribute, str) and first.kind == "module":
                path = f"{self._effects.path(node.args[0], first, frame)}.{attribute}"
                return Value("module", path=path, sure=False)
        return None

    def _set(self, node: ast.Call, args: list[Value | None], frame: Frame) -> Value | None:
        """``setattr`` with a literal name is an assignment."""
        name, value = args[1], args[2]
        if name is None or not isinstance(name.const, str):
            return None
        path = self._effects.path(node.args[0], args[0], frame)
        if name.const == "requires_grad" and (args[0] is None or args[0].kind != "module"):
            flag = truth(value)
            self._effects.flag(node.args[0], args[0], flag, "attribute", node, frame)
        elif value is not None and value.kind == "module":
            frame.emit("new", f"{path}.{name.const}", node, value=value.at(f"{path}.{name.const}"))
        return None


def _ordered(args: list[Value | None], named: dict[str, Value | None]) -> Value:
    """A dictionary of modules, as ``Sequential`` is given one: its ``const`` holds the keys."""
    pairs = args[0].items if args and args[0] is not None and args[0].kind in {"list", "tuple"} else ()
    keys, values = list(named), list(named.values())
    for pair in pairs:
        parts = pair.items if pair is not None and pair.kind == "tuple" and len(pair.items) == 2 else (None, None)
        keys.append(parts[0].const if parts[0] is not None and isinstance(parts[0].const, str) else "")
        values.append(parts[1])
    return Value("dict", items=tuple(values), const=tuple(keys))
