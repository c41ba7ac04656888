"""Calls of methods: of modules, optimizers, schedulers, scalers, parameters and lists of them."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import TYPE_CHECKING

from frostline.lint.call import Call, truth
from frostline.lint.frame import Frame
from frostline.lint.parameter_lists import UNKNOWN, appended, is_list, is_over_parts, joined, of_parts, spelled_tests
from frostline.lint.scopes import Function, is_property
from frostline.lint.torch_names import ITERATORS, METRICS, MOVES, ONLY_MODULES, SAME_MODULE, WRITES, hinted
from frostline.lint.values import EACH, PARAMETERS, Value

if TYPE_CHECKING:
    from frostline.lint.effects import Effects
    from frostline.lint.expressions import Expressions
    from frostline.lint.module_walk import ModuleWalk


class MethodCalls:
    """Takes down what methods do, and tells what they give.

    Args:
        walk: the file that calls.
        expressions: evaluates its expressions.
        effects: takes down what these calls have in common with others.
    """

    def __init__(self, walk: ModuleWalk, expressions: Expressions, effects: Effects) -> None:
        self._walk = walk
        self._expressions = expressions
        self._effects = effects

    def call(self, call: Call) -> Value | None:
        """Take down what a call of a method does, and tell what it gives."""
        function, receiver, path, node, args = call.function, call.receiver, call.path, call.node, call.args
        frame = call.frame
        name = function.attr
        kind = receiver.kind if receiver is not None else ""
        if receiver is not None and receiver.cls and kind in {"module", "object", "super"}:
            found = self._walk.method(receiver.cls, name) if kind != "super" else None
            if found is not None and not is_property(found[1]):
                result = self._effects.own.run(*found, node, receiver, args, call.named, frame)
                if name not in SAME_MODULE and name != "forward":
                    return result
        if kind == "module" and name.startswith("__") and name != "__call__":
            return None
        special = _METHODS.get(name)
        if special is not None:
            done = special(self, call)
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
            return self._add_group(call)
        if METRICS.search(name):
            frame.emit("metric", name, node)
        if kind in {"state_dict", "checkpoint"} and name in {"copy", "get", "pop"}:
            return Value("checkpoint", path="")
        self._effects.unknown(f"{path}.{name}" if path else name, node, args, call.named, frame)
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
            mode = truth(given)
            if mode is None and call.node.args and isinstance(call.node.args[0], ast.Name):
                mode = Value("argument", path=call.node.args[0].id)
        self._effects.mode(call.receiver, call.path, mode, call.node, call.frame)
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
            flag = truth(value)
            if flag is None and isinstance(given, ast.Name) and call.frame.names.has(given.id):
                flag = Value("argument", path=given.id)
        kind = call.receiver.kind if call.receiver is not None else ""
        if kind == "gradient":  # `p.grad.requires_grad_(False)` says nothing of the parameter
            return call.receiver
        how = "module_method" if kind in {"module", "averaged"} else "method"
        self._effects.flag(call.function.value, call.receiver, flag, how, call.node, call.frame)
        return call.receiver

    def _zero_grad(self, call: Call) -> Value | None:
        given = call.args[0] if call.args else call.named.get("set_to_none")
        call.frame.emit(
            "zero_grad", call.path, call.node, set_to_none=truth(given), of=call.receiver.kind if call.receiver else ""
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
                "scaler_step",
                self._effects.path(call.node.args[0], call.args[0], call.frame),
                call.node,
                scaler=call.path,
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
            "unscale",
            self._effects.path(call.node.args[0], call.args[0], call.frame) if call.node.args else "",
            call.node,
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
            strict=truth(strict if strict is not None else call.args[1] if len(call.args) > 1 else None),
            assign=truth(assign),
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
                self._effects.path(each, value, call.frame),
                call.node,
                how="prepare",
                of=self._effects.path(each, value, call.frame),
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
                    "call", call.node, file=found[0].source.path, callee=found[1].name, receiver=None, args=[part],
                    named={}, paths=[part.path], keyed={}, is_init=False,
                )  # fmt: skip
                return call.receiver
        if not isinstance(call.node.args[0], ast.Lambda):
            call.frame.emit("unknown", "", call.node, name=ast.unparse(call.node.args[0])[:60], paths=[call.path])
        return call.receiver


_NOT_MINE = Value("not mine")
_METHODS = {
    "train": MethodCalls._train_or_eval,
    "eval": MethodCalls._train_or_eval,
    "requires_grad_": MethodCalls._requires_grad_,
    "zero_grad": MethodCalls._zero_grad,
    "step": MethodCalls._step,
    "unscale_": MethodCalls._unscale,
    "resize_token_embeddings": MethodCalls._renewed,
    "register_parameter": MethodCalls._renewed,
    "update": MethodCalls._update,
    "scale": MethodCalls._scale,
    "backward": MethodCalls._backward,
    "manual_backward": MethodCalls._backward,
    "add_param_group": MethodCalls._add_group,
    "load_state_dict": MethodCalls._load,
    "state_dict": MethodCalls._state_dict,
    "forward": MethodCalls._forward,
    "prepare": MethodCalls._prepare,
    "apply": MethodCalls._apply,
}
