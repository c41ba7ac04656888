"""O405: an optimizer was given an iterator that was used up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation
from frostline.lint.torch_names import CLIPS
from frostline.lint.values import PARAMETERS

_Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef
# What goes through all that it is given. `len` does not: it fails.
_WALKS = frozenset({"list", "tuple", "set", "sorted", "sum", "max", "min", "dict", "any", "all", "frozenset"})
_LAZY = frozenset({"filter", "map", "zip", "iter", "enumerate", "reversed"})
_GROWS = frozenset({"extend", "update", "join"})


@dataclass(frozen=True)
class _Use:
    node: ast.expr
    call: ast.AST
    kind: str  # "walk", "optimizer", "clip", "other", or "unknown", behind which nothing is told


def check(view: FileView) -> Iterator[Violation]:
    """Names of iterators over parameters that are gone through twice, once of it by an optimizer or a clip."""
    for node in view.nodes(ast.Assign, ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is None or len(targets) != 1 or not _is_lazy(view, node.value):
            continue
        target = targets[0]
        if isinstance(target, ast.Name):
            yield from _used_twice(view, node, node.value, target.id)
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            yield from _used_twice_by_self(view, node, node.value, target.attr)


def _is_lazy(view: FileView, node: ast.expr) -> bool:
    """Whether an expression is an iterator over parameters, and surely so."""
    value = view.value(node)
    if value is None or value.kind not in PARAMETERS or not value.lazy:
        return False
    return isinstance(node, (ast.Call, ast.GeneratorExp))


def _used_twice(view: FileView, made: ast.stmt, given: ast.expr, name: str) -> Iterator[Violation]:
    scope = next((each for each in view.parents(made) if isinstance(each, _Scope)), None)
    if scope is None:
        return
    names = [
        node
        for node in view.nodes(ast.Name)
        if node.id == name and next((p for p in view.parents(node) if isinstance(p, _Scope)), None) is scope
    ]
    position = (made.end_lineno or made.lineno, made.end_col_offset or 0)
    anew = min(
        (
            (n.lineno, n.col_offset)
            for n in names
            if isinstance(n.ctx, ast.Store) and (n.lineno, n.col_offset) > position
        ),
        default=(1 << 40, 0),
    )
    # A store before it in a loop around both is this one; a store in the other arm of a branch ends what is known.
    uses = [_use(view, n) for n in names if isinstance(n.ctx, ast.Load) and position < (n.lineno, n.col_offset) < anew]
    yield from _twice(view, made, given, name, uses)


def _used_twice_by_self(view: FileView, made: ast.stmt, given: ast.expr, name: str) -> Iterator[Violation]:
    """An attribute that `__init__` gives to the optimizer, and that another method goes through once more."""
    method = next((each for each in view.parents(made) if isinstance(each, _Scope)), None)
    owner = next((each for each in view.parents(made) if isinstance(each, ast.ClassDef)), None)
    if method is None or owner is None or not isinstance(method, ast.FunctionDef) or method.name != "__init__":
        return
    found = [
        node
        for node in view.nodes(ast.Attribute)
        if node.attr == name
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and owner in view.parents(node)
    ]
    if sum(isinstance(node.ctx, ast.Store) for node in found) != 1:
        return
    loads = [node for node in found if isinstance(node.ctx, ast.Load)]
    first = [node for node in loads if method in view.parents(node)]
    uses = [_use(view, node) for node in [*first, *(node for node in loads if node not in first)]]
    yield from _twice(view, made, given, f"self.{name}", uses)


def _twice(view: FileView, made: ast.stmt, given: ast.expr, name: str, uses: list[_Use]) -> Iterator[Violation]:
    before: _Use | None = None
    for use in uses:
        if use.kind == "unknown":
            return
        if use.kind == "other":
            continue
        again = before is None and use.kind in {"optimizer", "clip"} and _is_repeated(view, made, use.node)
        if again:
            yield _violation(view, given, name, use, use, "", made)
            return
        meant = {"optimizer", "clip"} & {use.kind, before.kind} if before is not None else set[str]()
        if before is not None and meant and not _are_apart(view, before.node, use.node):
            yield _violation(view, given, name, before, use, "before" if use.kind == "optimizer" else "behind", made)
            return
        before = before or use


def _violation(
    view: FileView, given: ast.expr, name: str, first: _Use, second: _Use, order: str, made: ast.stmt
) -> Violation:
    what = {"optimizer": "the optimizer", "clip": "clipping", "walk": "it"}
    if order == "before":
        node: ast.AST = first.call
        message = f"{name} is an iterator and used up here: nothing is left of it for the optimizer"
    elif order == "behind":
        node = second.call
        message = f"{name} is an iterator that {what[first.kind]} has used up: there is nothing in it here"
    else:
        node = second.call
        message = f"{name} is an iterator: behind the first round of the loop there is nothing in it"
    lines = [f"line {made.lineno} makes it: {view.text(given)[:80]}"]
    if first is not second:
        other = second if order == "before" else first
        lines.append(f"line {other.node.lineno} {'gets' if order == 'before' else 'goes through'} it as well")
    text = view.text(given)
    wrapped = f"list{text}" if isinstance(given, ast.GeneratorExp) and text.startswith("(") else f"list({text})"
    return Violation(
        node,
        message,
        evidence=tuple(lines),
        remedy=f"{name} = {wrapped}",
        severity=Severity.ERROR,
        edits=(Edit(view.source.start(given), view.source.end(given), wrapped),),
        safety=Safety.SAFE,
        title="Make a list of it",
    )


def _is_repeated(view: FileView, made: ast.stmt, node: ast.expr) -> bool:
    """Whether a loop that does not make the iterator anew goes through it."""
    around = {id(each) for each in view.parents(made)}
    for each in view.parents(node):
        if isinstance(each, _Scope):
            return False
        if isinstance(each, (ast.For, ast.AsyncFor, ast.While)) and id(each) not in around:
            # The iterable of a loop is looked at once.
            return not (isinstance(each, (ast.For, ast.AsyncFor)) and _is_in(view, node, each.iter)) and not _leaves(
                each
            )
    return False


def _leaves(loop: ast.For | ast.AsyncFor | ast.While) -> bool:
    return any(isinstance(each, (ast.Break, ast.Return)) for each in loop.body)


def _is_in(view: FileView, node: ast.AST, other: ast.AST) -> bool:
    return node is other or any(each is other for each in view.parents(node))


def _are_apart(view: FileView, one: ast.AST, other: ast.AST) -> bool:
    """Whether two nodes stand in arms of a branch of which only one runs, or one of them leaves the function."""
    above = [one, *view.parents(one)]
    for each in view.parents(other):
        if isinstance(each, ast.If) and any(a is each for a in above):
            return _arm(view, each, one) != _arm(view, each, other)
    for each in above:
        if isinstance(each, ast.Return):
            return True
        if isinstance(each, ast.If) and not _is_in(view, other, each):
            arm = each.body if _arm(view, each, one) == "body" else each.orelse
            if arm and isinstance(arm[-1], (ast.Return, ast.Raise, ast.Continue, ast.Break)):
                return True
    return False


def _arm(view: FileView, branch: ast.If, node: ast.AST) -> str:
    chain = [node, *view.parents(node)]
    for each in chain:
        if any(each is inner for inner in branch.body):
            return "body"
        if any(each is inner for inner in branch.orelse):
            return "orelse"
    return "test"


def _use(view: FileView, node: ast.expr) -> _Use:
    """What is done to an iterator where its name stands."""
    parent = view.parent(node)
    above: ast.AST = node
    while isinstance(parent, (ast.Starred, ast.keyword)):
        above, parent = parent, view.parent(parent)
    if isinstance(parent, (ast.For, ast.AsyncFor)):
        return _Use(node, node, "walk")
    if isinstance(parent, ast.comprehension):
        return _in_comprehension(view, node, parent)
    if isinstance(parent, ast.Dict):
        return _in_group(view, node, parent, above)
    if isinstance(above, ast.Starred) and isinstance(parent, (ast.List, ast.Tuple, ast.Set)):
        # [*params] is a list of them; where it goes is another matter.
        return _Use(node, parent, "walk")
    if isinstance(parent, ast.Call) and parent.func is not node:
        return _Use(node, parent, _of_call(view, parent, above))
    if isinstance(parent, (ast.Attribute, ast.Compare, ast.BoolOp, ast.If, ast.FormattedValue, ast.Expr)):
        return _Use(node, parent, "other")
    return _Use(node, node, "unknown")


def _of_call(view: FileView, call: ast.Call, given: ast.AST) -> str:
    value = view.value(call)
    name = view.name(call.func)
    if name in CLIPS:
        return "clip"
    if value is not None and value.kind == "optimizer":
        return "optimizer" if not isinstance(given, ast.keyword) or given.arg == "params" else "unknown"
    last = name.rpartition(".")[2]
    if name == f"builtins.{last}" and last in _WALKS:
        return "walk"
    if name == "builtins.next" or (name == f"builtins.{last}" and last in _LAZY):
        return "unknown"
    if name in {"builtins.print", "builtins.isinstance", "builtins.type", "builtins.len"}:
        return "other"
    if isinstance(call.func, ast.Attribute) and call.func.attr in _GROWS:
        return "walk"
    return "unknown"


def _in_comprehension(view: FileView, node: ast.expr, part: ast.comprehension) -> _Use:
    whole = view.parent(part)
    if isinstance(whole, ast.GeneratorExp):
        above = view.parent(whole)
        if not isinstance(above, ast.Call):
            return _Use(node, whole, "unknown")
        kind = _of_call(view, above, whole)
        return _Use(node, above, kind if kind in {"optimizer", "clip", "walk"} else "unknown")
    return _Use(node, whole or node, "walk")


def _in_group(view: FileView, node: ast.expr, group: ast.Dict, above: ast.AST) -> _Use:
    keys = [
        k.value for k, v in zip(group.keys, group.values, strict=True) if v is above and isinstance(k, ast.Constant)
    ]
    if keys != ["params"]:
        return _Use(node, group, "unknown")
    for each in view.parents(group):
        if isinstance(each, ast.Call):
            value = view.value(each)
            is_added = isinstance(each.func, ast.Attribute) and each.func.attr == "add_param_group"
            if is_added or (value is not None and value.kind == "optimizer"):
                return _Use(node, each, "optimizer")
            break
        if isinstance(each, ast.stmt):
            break
    return _Use(node, group, "optimizer")


RULE = LintRule(
    code="O405",
    what="Looks for names that stand for an iterator over parameters (`model.parameters()`, `filter(...)`, a "
    "generator) and are gone through twice, where an optimizer or `clip_grad_norm_` is one of the two, or once "
    "in every round of a loop.",
    why="An iterator is used up by whoever goes through it first. An optimizer that comes second raises "
    "`ValueError: optimizer got an empty parameter list`; in a group nothing is said, and the group trains "
    "nothing. Clipping that comes second clips nothing.",
    example="params = filter(lambda p: p.requires_grad, model.parameters())\nprint(sum(p.numel() for p in params))\n"
    "optimizer = torch.optim.SGD(params, lr=0.1)",
    instead="params = [p for p in model.parameters() if p.requires_grad]\nprint(sum(p.numel() for p in params))\n"
    "optimizer = torch.optim.SGD(params, lr=0.1)",
    remedy="Make a list of it.",
    safety=Safety.SAFE,
    how_safe="safe: a list has the same parameters in the same order, and can be gone through as often as one likes",
    false_alarms="None known. What is handed to functions that nobody here knows, or to another iterator, is not "
    "followed.",
    source="none found",
    triggers=("optim", "Optim", "SGD", "Adam", "clip_grad_"),
    check=check,
)
