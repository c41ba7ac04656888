"""H601: layers are kept in a plain list or dict: torch does not see them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.file_view import FileView
from frostline.lint.kept_layers import REGISTERED, Kept, is_empty, is_own, kept_in
from frostline.lint.model_parts import has_parameters
from frostline.lint.rule import LintRule, Violation
from frostline.lint.scopes import AnyFunction, Class
from frostline.lint.torch_names import DROPOUTS

_CONTAINERS = {"list": "ModuleList", "tuple": "ModuleList", "dict": "ModuleDict"}
_REGISTERS = frozenset({"add_module", "register_module", "register_parameter", "setattr", "__setattr__"})
# What lists and dicts can do and the containers of torch.nn cannot, and keys that nn.ModuleDict refuses (torch 2.13).
_ONLY_PLAIN = frozenset({"remove", "sort", "index", "count", "copy", "reverse", "get", "setdefault", "popitem"})
_DISPLAYS = (ast.List, ast.Tuple, ast.Dict, ast.ListComp, ast.DictComp)
_REFUSED = frozenset(dir(dict)) | {
    "training",
    "train",
    "eval",
    "forward",
    "type",
    "to",
    "half",
    "float",
    "double",
    "add_module",
}


def check(view: FileView) -> Iterator[Violation]:
    """Attributes of modules that are lists, tuples or dicts of layers which nothing registers."""
    candidates = {id(node) for node in view.nodes(ast.Assign, ast.AnnAssign) if _may_keep(view, node)}
    if not candidates:
        return
    for cls in list(view.walk.classes.values()):
        told = view.walk.is_module(view.walk.qualified(cls.name))
        if told is False or (told is None and f"{cls.name}.forward" not in view.walk.functions):
            continue
        methods = [each for each in cls.node.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))]
        nodes = [node for method in methods for node in ast.walk(method)]
        if not any(id(node) in candidates for node in nodes):
            continue
        if any(isinstance(node, ast.Call) and _called(node.func) in _REGISTERS for node in nodes):
            continue
        for method in methods:
            for node in ast.walk(method):
                target, given = _assignment(node) if id(node) in candidates else (None, None)
                if target is None or given is None or _is_registered(view, target.attr, nodes):
                    continue
                kept = kept_in(view, given, target.attr, method, nodes)
                if kept is not None:
                    yield from _violation(view, cls, target, kept, method, nodes, told is True)


def _called(function: ast.expr) -> str:
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def _assignment(node: ast.AST) -> tuple[ast.Attribute | None, ast.expr | None]:
    """``self.attribute = value``."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target, given = node.targets[0], node.value
    elif isinstance(node, ast.AnnAssign):
        target, given = node.target, node.value
    else:
        return None, None
    return (target, given) if is_own(target) else (None, None)  # type: ignore[return-value]


def _may_keep(view: FileView, node: ast.AST) -> bool:
    """Whether a statement sets an attribute of ``self`` to what may be a list, a tuple or a dict."""
    target, given = _assignment(node)
    if target is None or given is None:
        return False
    if isinstance(given, ast.Call):
        return view.name(given.func) in {"builtins.list", "builtins.dict", "builtins.tuple"}
    if isinstance(given, ast.Name):
        known = view.value(given)
        return known is not None and known.kind in {"list", "tuple", "dict", "modules", "parameters"}
    return isinstance(given, (*_DISPLAYS, ast.BinOp))


def _is_registered(view: FileView, name: str, nodes: list[ast.AST]) -> bool:
    """Whether a container of torch is made of an attribute somewhere in the class."""
    return any(
        isinstance(node, ast.Call)
        and view.name(node.func) in REGISTERED
        and any(is_own(inner, name) for given in (*node.args, *node.keywords) for inner in ast.walk(given))
        for node in nodes
    )


def _violation(
    view: FileView,
    cls: Class,
    target: ast.Attribute,
    kept: Kept,
    method: AnyFunction,
    nodes: list[ast.AST],
    sure: bool,
) -> Iterator[Violation]:
    if all(has_parameters(part, view.walk) is False and part.cls not in DROPOUTS for part in kept.parts):
        return  # losses and activations: there is nothing to see
    container = _CONTAINERS[kept.kind]
    if any(part.kind == "parameter" for part in kept.parts):
        container = container.replace("Module", "Parameter")
    name = f"self.{target.attr}"
    what = "parameters" if "Parameter" in container else "layers"
    spelled = _spelled(view, f"torch.nn.{container}")
    edits = _edits(view, target.attr, kept, method, nodes, spelled) if spelled and not _is_mixed(kept) else ()
    yield Violation(
        target,
        f"{name} is a plain {kept.kind} of {what}: torch does not see them",
        evidence=(
            f"{cls.name}.parameters() and state_dict() do not list them; train(), eval() and to() do not reach them",
            *(f"line {node.lineno} adds one" for node in kept.fills[:1] if isinstance(node, (ast.expr, ast.stmt))),
        ),
        remedy=f"{name} = nn.{container}(...)",
        severity=Severity.ERROR if sure else Severity.WARNING,
        edits=edits,
        safety=(Safety.SAFE if sure else Safety.UNSAFE) if edits else Safety.MANUAL,
        title=f"Use nn.{container}",
        inferred=not sure,
    )


def _is_mixed(kept: Kept) -> bool:
    return len({part.kind for part in kept.parts}) > 1 or any(
        isinstance(each, (ast.List, ast.Tuple)) for each in getattr(kept.where, "elts", ())
    )


def _edits(
    view: FileView, name: str, kept: Kept, method: AnyFunction, nodes: list[ast.AST], spelled: str
) -> tuple[Edit, ...]:
    """What wraps the expression where it stands; nothing where that could break what is done with it."""
    if not kept.is_plain or _is_before_super(method, kept.where):
        return ()
    for node in nodes:
        if isinstance(node, ast.Attribute) and is_own(node.value, name) and node.attr in _ONLY_PLAIN:
            return ()
        if isinstance(node, (ast.BinOp, ast.Compare, ast.Delete)) and any(
            is_own(each, name) for each in ast.iter_child_nodes(node)
        ):
            return ()
        if isinstance(node, ast.Assign) and kept.kind == "dict" and node in kept.fills:
            key = node.targets[0].slice if isinstance(node.targets[0], ast.Subscript) else None
            if not _is_key(key):
                return ()
    where = kept.where
    if isinstance(where, ast.Dict) and not all(_is_key(key) for key in where.keys):
        return ()
    if isinstance(where, ast.DictComp) and not isinstance(where.key, ast.JoinedStr):
        return ()
    start, end = view.source.start(where), view.source.end(where)
    if isinstance(where, ast.Tuple) and not view.text(where).startswith("("):
        return (Edit(start, start, f"{spelled}(["), Edit(end, end, "])"))
    if is_empty(where):
        return (view.replaced(where, f"{spelled}()"),)
    return (Edit(start, start, f"{spelled}("), Edit(end, end, ")"))


def _is_key(key: ast.expr | None) -> bool:
    """Whether `nn.ModuleDict` takes a key: a name, not one of its own attributes, without a dot."""
    return (
        isinstance(key, ast.Constant)
        and isinstance(key.value, str)
        and key.value not in _REFUSED
        and "." not in key.value
    )


def _is_before_super(method: AnyFunction, node: ast.expr) -> bool:
    return any(
        isinstance(each, ast.Call)
        and isinstance(each.func, ast.Attribute)
        and each.func.attr == "__init__"
        and each.lineno > node.lineno
        for each in ast.walk(method)
    )


def _spelled(view: FileView, name: str) -> str:
    """How something of torch.nn is written in this file; "" where it is not imported."""
    last = name.rpartition(".")[2]
    own = view.walk.names.own
    for written, value in own.items():
        if value is not None and value.kind == "ref" and value.cls == name:
            return written
    for written, value in own.items():
        if value is not None and value.kind == "ref" and value.cls == "torch.nn":
            return f"{written}.{last}"
    torch = next((written for written, value in own.items() if value is not None and value.cls == "torch"), "")
    return f"{torch}.nn.{last}" if torch else "" if "nn" in own else f"nn.{last}"


RULE = LintRule(
    code="H601",
    what="Looks in modules for `self.attribute = [...]`, tuples and dicts of layers that are made there or put in "
    "later, and that no `add_module`, `setattr`, `nn.ModuleList`, `nn.ModuleDict` or `nn.Sequential` of the class "
    "registers.",
    why="torch registers a module only as an attribute, in `nn.ModuleList`, `nn.ModuleDict` or `nn.Sequential`. "
    "What a plain list keeps runs, but `parameters()`, `state_dict()`, `train()`, `eval()` and `to()` pass it by: it "
    "is not trained, not saved, and stays on the CPU.",
    example="class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    "        self.layers = [nn.Linear(8, 8) for _ in range(4)]",
    instead="class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    "        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])",
    remedy="Use `nn.ModuleList` or `nn.ModuleDict`, and make the optimizer after it.",
    safety=Safety.SAFE,
    how_safe="safe where the class surely is a module and uses its list only as `nn.ModuleList` can be used; more "
    "parameters train then, as was meant, and the state dict gets entries that older checkpoints lack",
    false_alarms="Modules that are kept in a list to hide them from the state dict on purpose. One thing alone in "
    "a list is taken for that, and what is put into eval mode or frozen where it is made; losses and activations "
    "without parameters are let be.",
    source="pytorch#59925, pytorch#38639, torchfix#31",
    triggers=("nn.", "torch.nn", "Module"),
    check=check,
)
