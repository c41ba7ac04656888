"""T702: a functional call is given parameters and no buffers: those of the real module move."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.events import Flow
from frostline.lint.file_view import FileView
from frostline.lint.layers import LayerBook
from frostline.lint.rule import LintRule, Violation

_DICTS = frozenset({"builtins.dict", "collections.OrderedDict"})


def check(view: FileView) -> Iterator[Violation]:
    """Functional calls whose dictionary comes from `named_parameters()` alone."""
    book = LayerBook(view)
    for flow in view.flows:
        for index, event in enumerate(flow.events):
            call = event.node
            if event.what != "functional" or not isinstance(call, ast.Call) or event.origin or len(call.args) < 1:
                continue
            given = _given(call)
            if given is None or _held(view, given, call, frozenset()) != "parameters":
                continue
            norms = book.of_path(flow, event.path, index).norms
            if norms is not False and not _is_in_eval(flow, index):
                yield _violation(view, call, given, norms)


def _given(call: ast.Call) -> ast.expr | None:
    if len(call.args) > 1:
        return call.args[1]
    names = {"parameter_and_buffer_dicts", "parameters_and_buffers"}
    return next((k.value for k in call.keywords if k.arg in names), None)


def _held(view: FileView, node: ast.expr, call: ast.AST, seen: frozenset[str]) -> str:
    """What a dictionary holds: ``parameters`` alone; "" for more, or where source does not tell."""
    if isinstance(node, ast.Call):
        return _of_call(view, node, call, seen)
    if isinstance(node, ast.Dict):
        parts = [_held(view, v, call, seen) if k is None else "" for k, v in zip(node.keys, node.values, strict=True)]
        return "parameters" if parts and set(parts) == {"parameters"} else ""
    if isinstance(node, ast.DictComp):
        return _gone_through(view, node.generators[0].iter, call, seen)
    if isinstance(node, (ast.Tuple, ast.List)):
        return _held(view, node.elts[0], call, seen) if len(node.elts) == 1 else ""
    if isinstance(node, ast.Name):
        return _of_name(view, node.id, call, seen)
    return ""


def _of_call(view: FileView, node: ast.Call, call: ast.AST, seen: frozenset[str]) -> str:
    if view.name(node.func) in _DICTS and len(node.args) == 1 and not node.keywords:
        return _gone_through(view, node.args[0], call, seen) or _held(view, node.args[0], call, seen)
    # `adapted = update(adapted, gradients)` gives back what it was given, with other values.
    own = [each for each in node.args if isinstance(each, ast.Name) and each.id in seen]
    return "same" if own else ""


def _gone_through(view: FileView, node: ast.expr, call: ast.AST, seen: frozenset[str]) -> str:
    """What a loop over something has the names of: ``m.named_parameters()``, ``adapted.items()``, a zip of such."""
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Attribute):
        if node.func.attr == "named_parameters":
            return "parameters"
        if node.func.attr == "items":
            return _held(view, node.func.value, call, seen)
    if view.name(node.func) in {"builtins.zip", "builtins.list"} and node.args:
        return _gone_through(view, node.args[0], call, seen)
    return ""


def _of_name(view: FileView, name: str, call: ast.AST, seen: frozenset[str]) -> str:
    """What a name stands for, by all that is assigned to it in the function, or in those around."""
    if name in seen:
        return "same"
    for scope in [*(each for each in view.parents(call) if isinstance(each, (ast.FunctionDef, ast.Lambda))), view.tree]:
        if isinstance(scope, (ast.FunctionDef, ast.Lambda)) and name in _parameters(scope):
            return ""
        given: list[ast.expr] = []
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name) and target.id == name:
                        given.append(node.value)
                    elif any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(target)):
                        return ""  # a part of it is set, or it is one of several
            elif _changes(node, name):
                return ""
        if given:
            held = {_held(view, each, call, seen | {name}) for each in given}
            return "parameters" if "parameters" in held and held <= {"parameters", "same"} else ""
    return ""


def _changes(node: ast.AST, name: str) -> bool:
    """Whether something else is put in: ``name.update(...)``, a loop's variable, ``with ... as name``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        base = node.func.value
        return node.func.attr in {"update", "setdefault"} and isinstance(base, ast.Name) and base.id == name
    bound = node.target if isinstance(node, (ast.For, ast.NamedExpr)) else getattr(node, "optional_vars", None)
    return bound is not None and any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(bound))


def _parameters(scope: ast.FunctionDef | ast.Lambda) -> set[str]:
    arguments = scope.args
    return {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}


def _is_in_eval(flow: Flow, index: int) -> bool:
    path = flow.events[index].path
    modes = [e for e in flow.events[:index] if e.what == "mode" and e.path == path]
    return bool(modes) and modes[-1].get("value") is False


def _violation(view: FileView, call: ast.Call, given: ast.expr, norms: bool | None) -> Violation:
    model, text = view.text(call.args[0]), view.text(given)
    edits: tuple[Edit, ...] = ()
    if isinstance(given, (ast.Name, ast.Call)) and "\n" not in text + model:
        buffers = f"{{n: b.clone() for n, b in {model}.named_buffers()}}"
        edits = (view.replaced(given, f"{{**{text}, **{buffers}}}"),)
    return Violation(
        call,
        f"functional_call gets parameters of {model} and no buffers: in train mode it moves those of {model} itself",
        evidence=(
            f"{text.splitlines()[0]} holds what named_parameters() gives",
            f"{model} has batch normalization" if norms else f"{model} may have batch normalization",
        ),
        remedy=f"buffers = {{n: b.clone() for n, b in {model}.named_buffers()}} for each task, and "
        f"functional_call({model}, {{**{text.splitlines()[0]}, **buffers}}, ...)",
        severity=Severity.WARNING if norms else Severity.INFO,
        edits=edits,
        safety=Safety.UNSAFE if edits else Safety.MANUAL,
        title="Pass copies of the buffers",
        inferred=norms is None,
    )


RULE = LintRule(
    code="T702",
    what="Looks for `torch.func.functional_call(module, params, ...)`, also of `torch.nn.utils.stateless`, "
    "whose dictionary comes from `named_parameters()` and nothing else. A module whose layers cannot be "
    "seen gives information only; one without batch norm, or in eval mode, nothing.",
    why="`functional_call` swaps what it is given and leaves the rest. Without the buffers, each call in train "
    "mode writes its batch into the running statistics of the real module: they describe no network, they "
    "carry one task into the next, and eval mode uses them.",
    example="net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))\nadapted = dict(net.named_parameters())\n"
    "logits = torch.func.functional_call(net, adapted, (x,))",
    instead="net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))\nadapted = dict(net.named_parameters())\n"
    "buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}\n"
    "logits = torch.func.functional_call(net, {**adapted, **buffers}, (x,))",
    remedy="Give the call a copy of the buffers, one for each task; or let `frostline.meta.MAML` adapt, with a policy.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the running statistics then stay what they were, and eval mode gives other outputs",
    false_alarms="A network whose parameters another one generates, and whose statistics should gather over all of "
    "them. A model that is put into eval mode in another file.",
    source="higher#55",
    triggers=("functional_call",),
    check=check,
)
