"""N305: a moving average of a model leaves out or spoils its buffers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.file_view import FileView
from frostline.lint.layers import LayerBook
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import owner_of

_PARAMETERS = frozenset({"parameters", "named_parameters"})
# What an average that is used by itself is called. Targets and momentum encoders run in train mode like their models,
# and have statistics of their own passes.
_AVERAGE = re.compile(r"(^|[_.])(ema|avg|average[sd]?|averaged|swa|shadow|moving|polyak)([_.\d]|$)|ema_|_ema|Ema|EMA")
_TEACHER = re.compile(r"teacher", re.I)
_BLENDS = re.compile(r"(^|_)(lerp|mul|mul_|lerp_|ema|average|moving|blend)", re.I)
_BUFFERS = re.compile(r"buffer|running_mean|update_bn|bn_update|(copy|sync)_bn|state_dict$", re.I)


@dataclass(frozen=True)
class _Average:
    """A loop that blends the parameters of one model into those of another."""

    loop: ast.For
    copy: ast.expr
    model: ast.expr


def check(view: FileView) -> Iterator[Violation]:
    """Loops over the parameters of two models that blend, where nothing takes care of buffers."""
    found = [average for loop in view.nodes(ast.For) if (average := _average(view, loop)) is not None]
    if not found:
        return
    book = LayerBook(view)
    for average in found:
        name = view.text(average.copy)
        called = bool(_AVERAGE.search(name))
        evaluated = _calls(view, name, "eval") or _starts_in_eval_mode(view, name)
        if _sees_buffers(view, average) or _calls(view, name, "train"):
            continue
        norms = _norms(view, book, average)
        if norms is False or not (called or (evaluated and (norms or _TEACHER.search(name)))):
            continue
        yield _violation(view, average, name, evaluated, norms)


def _violation(view: FileView, average: _Average, name: str, evaluated: bool, norms: bool | None) -> Violation:
    model = view.text(average.model)
    evidence = (
        [] if norms else [f"whether {model} has buffers is not known; {name} is taken for an average by its name"]
    )
    if evaluated:
        evidence.append(f"{name} is put into eval mode: it normalizes with statistics that never moved")
    edits = _edits(view, average, name, model)
    return Violation(
        average.loop.iter,
        f"{name} follows the parameters of {model}, and not its buffers",
        evidence=tuple(evidence),
        remedy=f"for a, b in zip({name}.buffers(), {model}.buffers()): a.copy_(b)",
        severity=Severity.ERROR if norms and evaluated else Severity.WARNING,
        edits=edits,
        safety=Safety.UNSAFE if edits else Safety.MANUAL,
        title="Copy the buffers too",
        inferred=not norms,
    )


def _average(view: FileView, loop: ast.For) -> _Average | None:
    call, target = loop.iter, loop.target
    if isinstance(call, ast.Call) and view.name(call.func) == "builtins.enumerate" and call.args:
        call = call.args[0]
        target = target.elts[1] if isinstance(target, ast.Tuple) and len(target.elts) == 2 else target
    if not isinstance(call, ast.Call) or view.name(call.func) != "builtins.zip" or len(call.args) != 2:
        return None
    owners = [_owner(each) for each in call.args]
    if not isinstance(target, ast.Tuple) or len(target.elts) != 2:
        return None
    names = [_variable(each) for each in target.elts]
    if owners[0] is None or owners[1] is None or "" in names or view.text(owners[0]) == view.text(owners[1]):
        return None
    for place in (0, 1):
        if any(_blends(statement, names[place], names[1 - place]) for statement in ast.walk(loop)):
            return _Average(loop, owners[place], owners[1 - place])  # type: ignore[arg-type]
    return None


def _owner(node: ast.expr) -> ast.expr | None:
    """Whose parameters these are."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _PARAMETERS:
        return node.func.value if not node.args and not node.keywords else None
    return None


def _variable(target: ast.expr) -> str:
    if isinstance(target, ast.Tuple) and len(target.elts) == 2:
        target = target.elts[1]
    return target.id if isinstance(target, ast.Name) else ""


def _blends(node: ast.AST, name: str, other: str) -> bool:
    """Whether a statement writes a mixture of both into one of them."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        receiver, words = _chain(node.value)
        if receiver != name:
            return False
        given = [each for each in ast.walk(node.value) if isinstance(each, ast.BinOp) and isinstance(each.op, ast.Mult)]
        return bool(words & {"mul_", "lerp_"}) or (bool(words & {"copy_", "set_"}) and (bool(given) or _is_mixed(node)))
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Attribute):
        target = node.targets[0]
        if target.attr != "data" or not isinstance(target.value, ast.Name) or target.value.id != name:
            return False
        mixes = any(isinstance(each, ast.BinOp) and isinstance(each.op, ast.Mult) for each in ast.walk(node.value))
        return (mixes and other in _names(node.value)) or _is_mixed(node)
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Mult):
        target = node.target.value if isinstance(node.target, ast.Attribute) else node.target
        return isinstance(target, ast.Name) and target.id == name
    return False


def _chain(call: ast.Call) -> tuple[str, set[str]]:
    """What a chain of calls begins with, and the methods in it."""
    words: set[str] = set()
    node: ast.expr = call
    while isinstance(node, (ast.Call, ast.Attribute)):
        if isinstance(node, ast.Attribute):
            words.add(node.attr)
            node = node.value
        else:
            node = node.func
    return (node.id if isinstance(node, ast.Name) else ""), words


def _names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _is_mixed(statement: ast.AST) -> bool:
    """Whether something by the name of an average is called."""
    return any(
        isinstance(each, ast.Call)
        and bool(
            _BLENDS.search(each.func.attr if isinstance(each.func, ast.Attribute) else getattr(each.func, "id", ""))
        )
        for each in ast.walk(statement)
    )


def _sees_buffers(view: FileView, average: _Average) -> bool:
    """Whether the class or function around the loop does something about buffers, or loads whole states."""
    around: ast.AST = view.tree
    function: ast.AST | None = None
    for each in view.parents(average.loop):
        if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)) and function is None:
            function = around = each
        elif isinstance(each, ast.ClassDef):
            around = each
            break
    outer = [each for each in view.parents(average.loop) if isinstance(each, (ast.For, ast.While))]
    for node in ast.walk(around):
        word = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if not _BUFFERS.search(word):
            continue
        if not word.endswith("state_dict"):
            return True
        if word != "load_state_dict" or not isinstance(node, ast.Attribute):
            continue
        # A state that is loaded once, before the training loop, starts the average and does no more.
        inside = _function_of(view, node)
        starts = getattr(inside, "name", "") == "__init__" or (
            inside is function and node.lineno < average.loop.lineno and not any(o in view.parents(node) for o in outer)
        )
        if view.text(node.value) == view.text(average.copy) and not starts:
            return True
    return False


def _function_of(view: FileView, node: ast.AST) -> ast.AST | None:
    return next((e for e in view.parents(node) if isinstance(e, (ast.FunctionDef, ast.AsyncFunctionDef))), None)


def _calls(view: FileView, name: str, method: str) -> bool:
    """Whether the file calls a method on something of this name."""
    return any(
        isinstance(call.func, ast.Attribute) and call.func.attr == method and _root(view.text(call.func)) == name
        for call in view.nodes(ast.Call)
    )


def _starts_in_eval_mode(view: FileView, name: str) -> bool:
    """Whether it was put into eval mode where it was made: ``ema = copy.deepcopy(model).eval()``."""
    return any(
        isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "eval"
        and any(view.text(target) == name for target in node.targets)
        for node in view.nodes(ast.Assign)
    )


def _root(text: str) -> str:
    return text.rpartition(".")[0]


def _norms(view: FileView, book: LayerBook, average: _Average) -> bool | None:
    """Whether the models have running statistics: as each flow that comes by knows them."""
    answers: list[bool | None] = []
    for flow in view.flows:
        for index, event in enumerate(flow.events):
            loop = event.loops[-1].node if event.loops else None
            if event.what == "write" and loop is average.loop:
                paths = [owner_of(event.path)]
                value = flow.events[index].loops[-1].over
                if value is not None:
                    paths += [item.path for item in value.items if item is not None]
                answers += [book.of_path(flow, path, index).norms for path in paths]
    if not answers:
        value = view.value(average.model)
        answers = [book.of(value).norms] if value is not None and value.kind == "module" else [None]
    # Both models are made alike: what is known of one is known of the other.
    return True if True in answers else False if False in answers else None


def _edits(view: FileView, average: _Average, name: str, model: str) -> tuple[Edit, ...]:
    indent = view.source.indent_of(average.loop.lineno)
    step = view.source.indent_of(average.loop.body[0].lineno)
    if not step.startswith(indent) or step == indent:
        return ()
    line = f"for ema_buffer, buffer in zip({name}.buffers(), {model}.buffers()):"
    return (view.line_below(average.loop, f"{line}{view.source.newline}{step}ema_buffer.copy_(buffer)"),)


RULE = LintRule(
    code="N305",
    what="Looks for a loop over `zip(ema.parameters(), model.parameters())` that blends the one into the other, "
    "in a class or function that does nothing about buffers.",
    why="A moving average over `parameters()` leaves out buffers: the copy normalizes with the statistics of its "
    "first day, mean 0 and variance 1, and its accuracy is near chance.",
    example="for a, p in zip(ema.parameters(), model.parameters()):\n    a.data.lerp_(p.data, 0.01)",
    instead="for a, p in zip(ema.parameters(), model.parameters()):\n    a.data.lerp_(p.data, 0.01)\nfor a, b in "
    "zip(ema.buffers(), model.buffers()):\n    a.copy_(b)",
    remedy="Copy the buffers after each update, or use `torch.optim.swa_utils.AveragedModel(model, use_buffers=True)`.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the outputs of the copy change",
    false_alarms="A model without buffers: one whose layers are known to have no statistics is let be, one of "
    "which that is not known gives a warning. Targets and momentum encoders that run in train mode get statistics of "
    "their own and are let be, as are plain copies, and averages that go back into the model itself.",
    source="ignite#2590, mean-teacher#9, sesemi#36, pytorch#84053, miles-credit PR394",
    triggers=("zip(",),
    check=check,
)
