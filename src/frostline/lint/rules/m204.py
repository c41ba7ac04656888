"""M204: the mode was set on a module alone, or not at all: parent and children differ."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation
from frostline.lint.thrown_away import thrown_away
from frostline.lint.torch_names import hinted
from frostline.lint.values import EACH, Value

_MODES = frozenset({"train", "eval"})
_SWITCHED = frozenset({"module", "averaged"})
# A module by one of these names has no children whose mode could differ.
_LEAF = re.compile(r"(^|_)(bn|batch_?norm|norm|drop(out)?|drop_path)\d*$", re.I)
_CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict", "Module", "DataParallel"})


def check(view: FileView) -> Iterator[Violation]:
    """Statements that name `eval` or `train` without calling it, and `training` flags of modules that have children."""
    for statement in thrown_away(view):
        if isinstance(statement.value, ast.Attribute) and statement.value.attr in _MODES:
            yield from _not_called(view, statement.value)
    for statement in view.nodes(ast.Assign):
        target = statement.targets[0]
        if len(statement.targets) != 1 or not isinstance(target, ast.Attribute):
            continue
        flag = statement.value.value if isinstance(statement.value, ast.Constant) else None
        if not isinstance(flag, bool):
            continue
        if target.attr in _MODES:
            yield from _overwritten(view, statement, target, flag)
        elif target.attr == "training":
            yield from _alone(view, statement, target, flag)


def _not_called(view: FileView, node: ast.Attribute) -> Iterator[Violation]:
    owner = view.value(node.value)
    if owner is not None and owner.kind not in {*_SWITCHED, "optimizer", "unknown"}:
        return
    is_known = owner is not None and owner.kind != "unknown"
    receiver = view.text(node.value)
    if not is_known and not (node.attr == "eval" and isinstance(node.value, (ast.Name, ast.Attribute))):
        return  # somebody's trainer.train
    sure = is_known and owner is not None and (owner.sure or owner.kind != "module")
    yield Violation(
        node,
        f"{receiver}.{node.attr} is not called: the mode stays what it was",
        remedy=f"{receiver}.{node.attr}()",
        severity=Severity.ERROR if is_known else Severity.WARNING,
        edits=(view.behind(node, "()"),),
        safety=Safety.SAFE if is_known else Safety.UNSAFE,
        title="Call it",
        inferred=not sure,
    )


def _overwritten(view: FileView, statement: ast.Assign, target: ast.Attribute, flag: bool) -> Iterator[Violation]:
    """`model.eval = True`: the method is gone, and the mode stays."""
    owner = view.value(target.value)
    if owner is None or owner.kind not in _SWITCHED or owner.path == "self":
        return
    receiver = view.text(target.value)
    mode = flag if target.attr == "train" else not flag
    right = f"{receiver}.{'train' if mode else 'eval'}()"
    yield Violation(
        target,
        f"{receiver}.{target.attr} = {flag} overwrites the method: the mode stays what it was",
        remedy=right,
        severity=Severity.ERROR if owner.sure else Severity.WARNING,
        edits=(view.replaced(statement, right),),
        safety=Safety.UNSAFE,
        title=f"Call {'train' if mode else 'eval'}()",
        inferred=not owner.sure,
    )


def _alone(view: FileView, statement: ast.Assign, target: ast.Attribute, flag: bool) -> Iterator[Violation]:
    owner = view.value(target.value)
    if owner is None or owner.kind != "module" or owner.path == "self" or _is_leaf(owner):
        return
    if EACH in owner.path or _is_each(view, target.value):
        return  # a loop sets the flags of all modules
    receiver = view.text(target.value)
    around = _modes_around(view, statement, target.value)
    word, other = ("train", "eval") if flag else ("eval", "train")
    if word in around or (flag and "eval" in around):
        # The children were switched by a call. One flag on top of eval() is how the other branch of forward is taken.
        return
    yield Violation(
        target,
        f"{receiver}.training = {flag} reaches {receiver} alone: what was in {other} mode below it still is",
        evidence=("dropout and batch normalization look at their own flags",),
        remedy=f"{receiver}.{word}()",
        severity=Severity.WARNING,
        edits=(view.replaced(statement, f"{receiver}.{word}()"),),
        safety=Safety.UNSAFE,
        title=f"Call {word}()",
        inferred=not owner.sure,
    )


def _is_leaf(owner: Value) -> bool:
    last = owner.cls.rpartition(".")[2]
    if owner.cls.startswith("torch.nn.") and last not in _CONTAINERS and not last.startswith("Transformer"):
        return True
    return bool(_LEAF.search(owner.path.rpartition(".")[2]))


def _is_each(view: FileView, node: ast.expr) -> bool:
    """Whether a name is what a loop goes over: its children may be gone over too."""
    name = node.id if isinstance(node, ast.Name) else ""
    return any(
        isinstance(each, (ast.For, ast.comprehension))
        and any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(each.target))
        for each in view.parents(node)
    ) and not hinted(name)


def _modes_around(view: FileView, statement: ast.stmt, receiver: ast.expr) -> set[str]:
    """Which of `train()` and `eval()` the same function calls on the same thing."""
    text = view.text(receiver)
    around = next(
        (
            each
            for each in view.parents(statement)
            if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module))
        ),
        view.tree,
    )
    return {
        node.func.attr
        for node in ast.walk(around)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _MODES
        and view.text(node.func.value) == text
    }


RULE = LintRule(
    code="M204",
    what="Looks for `model.eval` or `model.train` as a statement without parentheses, for `model.eval = True`, "
    "and for `model.training = False` on a module that has others in it.",
    why="A method that is named but not called does nothing. The flag `training` is that of one module: dropout "
    "and batch normalization look at their own flags, which stay as they were. The model says that it is in eval "
    "mode, and drops and moves its statistics all the same.",
    example="model.eval\nwith torch.no_grad():\n    predictions = model(x)",
    instead="model.eval()\nwith torch.no_grad():\n    predictions = model(x)",
    remedy="Call `model.eval()` or `model.train()`, with parentheses.",
    safety=Safety.SAFE,
    how_safe="safe for the missing parentheses, which can mean nothing else; unsafe for flags, because the "
    "children change their mode",
    false_alarms="Code that writes the flag of a container on purpose, to take another branch of its `forward`, "
    "while the layers below stay as they are. `model.training = True` after `model.eval()` in one function is taken "
    "for that, and `self.training` and loops over modules are let be.",
    source="none found",
    triggers=(".eval", ".train"),
    check=check,
)
