"""H604: a statement has no effect: no_grad() without with, or a misspelt method."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.file_view import FileView
from frostline.lint.frameworks import uses_another
from frostline.lint.method_names import BEGINNINGS, DISTINCTIVE, METHODS, meant
from frostline.lint.rule import LintRule, Violation
from frostline.lint.scopes import is_property
from frostline.lint.statements import begins_its_line, block_of, ends_its_line
from frostline.lint.thrown_away import thrown_away
from frostline.lint.torch_names import hinted
from frostline.lint.values import Value

# One of these, or the beginning of a method's name, stands in every file that is looked at.
_WORDS = (
    *("no_grad", "enable_grad", "inference_mode", "autocast", "detect_anomaly", "no_sync"),
    *(".backward", ".step", ".cuda", ".cpu", ".half"),
)
# Contexts that do something between their beginning and their end only. set_grad_enabled() acts when it is called.
_CONTEXTS = {
    "torch.no_grad": "gradients are recorded as before",
    "torch.inference_mode": "gradients are recorded as before",
    "torch.enable_grad": "nothing changes",
    "torch.autograd.enable_grad": "nothing changes",
    "torch.autograd.detect_anomaly": "nothing is looked for",
    "torch.autocast": "the precision is what it was",
    "torch.amp.autocast": "the precision is what it was",
    "torch.cuda.amp.autocast": "the precision is what it was",
}
# Methods that do something only when they are called, by the kind of thing that has them.
_CALLED = {
    # Of eval and train, M204 speaks.
    "module": frozenset({"zero_grad", "cuda", "cpu", "half", "requires_grad_"}),
    "optimizer": frozenset({"step", "zero_grad"}),
    "scheduler": frozenset({"step"}),
}
_WITH_ARGUMENTS = frozenset({"requires_grad_"})


def check(view: FileView) -> Iterator[Violation]:
    """Contexts that are made and not entered, methods that are named and not called, and misspelt methods."""
    for statement in thrown_away(view):
        if isinstance(statement.value, ast.Attribute):
            yield from _uncalled(view, statement.value)
        called = statement.value.func if isinstance(statement.value, ast.Call) else statement.value
        without = _CONTEXTS.get(view.name(called))
        if without is not None:
            yield _not_entered(view, statement, view.name(called), without)
        elif isinstance(called, ast.Attribute) and called.attr == "no_sync" and called is not statement.value:
            yield _not_entered(view, statement, view.text(called), "gradients are exchanged as before")
    if not uses_another(view):
        for call in view.nodes(ast.Call):
            if isinstance(call.func, ast.Attribute):
                yield from _misspelt(view, call.func)


# Contexts.


def _not_entered(view: FileView, statement: ast.Expr, name: str, without: str) -> Violation:
    edits = _entered(view, statement)
    called = view.text(statement.value)
    with_call = called if isinstance(statement.value, ast.Call) else f"{called}()"
    return Violation(
        statement.value,
        f"{name} without with has no effect: {without}",
        remedy=f"with {with_call}:",
        severity=Severity.ERROR,
        edits=edits,
        safety=Safety.UNSAFE if edits else Safety.MANUAL,
        title="Put what follows into a with block",
    )


def _entered(view: FileView, statement: ast.Expr) -> tuple[Edit, ...]:
    """Edits that put the rest of the block under ``with``; none where that is more than indenting lines."""
    block = block_of(view, statement)
    rest = [each for each in block if each.lineno > statement.lineno]
    plain = begins_its_line(view, statement) and ends_its_line(view, statement)
    if not rest or not plain or len(rest) != len(block) - next(i for i, e in enumerate(block) if e is statement) - 1:
        return ()
    for each in rest:
        if not begins_its_line(view, each):
            return ()
        for node in ast.walk(each):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)):
                return ()
            # The lines of a text are a part of what it says.
            if isinstance(node, (ast.Constant, ast.JoinedStr)) and node.lineno != (node.end_lineno or node.lineno):
                return ()
    call = "" if isinstance(statement.value, ast.Call) else "()"
    start, end = view.source.start(statement), view.source.end(statement)
    edits = [Edit(start, start, "with "), Edit(end, end, f"{call}:")]
    step = "\t" if view.source.indent_of(statement.lineno).startswith("\t") else "    "
    last = rest[-1].end_lineno or rest[-1].lineno
    for line in range(statement.lineno + 1, last + 1):
        if view.source.line_text(line).strip():
            at = view.source.offset(line, 0)
            edits.append(Edit(at, at, step))
    return tuple(edits)


# Methods.


def _uncalled(view: FileView, node: ast.Attribute) -> Iterator[Violation]:
    value = view.value(node.value)
    kind = _kind(value)
    told = node.attr in _CALLED.get(kind, ())
    if node.attr == "backward" and kind not in _CALLED:
        told, value = True, None  # whatever it is called, a loss
    if not told or (value is not None and _is_computed(view, value, node.attr)):
        return
    sure = value is not None and value.sure
    edits = () if node.attr in _WITH_ARGUMENTS else (view.behind(node, "()"),)
    yield Violation(
        node,
        f"{view.text(node)} is named, not called: nothing happens",
        remedy=f"{view.text(node)}({'False' if node.attr in _WITH_ARGUMENTS else ''})",
        severity=Severity.ERROR if sure or node.attr == "backward" else Severity.WARNING,
        edits=edits,
        safety=Safety.MANUAL if not edits else Safety.SAFE if sure else Safety.UNSAFE,
        title="Call it",
        inferred=not sure,
    )


def _misspelt(view: FileView, function: ast.Attribute) -> Iterator[Violation]:
    value = view.value(function.value)
    kind = _kind(value)
    guessed = not kind
    if guessed:
        if value is not None and value.kind not in {"unknown", "tensor"}:
            return
        kind = hinted(view.text(function.value).rpartition(".")[2]) or "module"
    if kind not in METHODS:
        return
    near = meant(function.attr, kind)
    if guessed and not set(near) & DISTINCTIVE:
        near = meant(function.attr, "optimizer") if "grad" in function.attr else []
        if not set(near) & DISTINCTIVE:
            return
    if not near or _is_defined(view, function.attr) or (value is not None and _has(view, value, function.attr)):
        return
    sure = not guessed and value is not None and value.sure and _is_whole(view, value)
    owner = view.text(function.value)
    one = near[0] if len(near) == 1 else ""
    edits = (view.attribute_name(function, one),) if one else ()
    yield Violation(
        function,
        f"{owner} has no method {function.attr!r}",
        evidence=() if guessed else (f"{owner} is taken for {'an' if kind == 'optimizer' else 'a'} {kind}",),
        remedy=f"{owner}.{' or '.join(near)}",
        severity=Severity.ERROR if sure else Severity.WARNING,
        edits=edits,
        safety=Safety.MANUAL if not edits else Safety.SAFE if sure else Safety.UNSAFE,
        title=f"Rename to {one or near[0]}",
        inferred=not sure,
    )


def _kind(value: Value | None) -> str:
    if value is None:
        return ""
    return {"averaged": "module", "super": ""}.get(value.kind, value.kind if value.kind in _CALLED else "")


def _is_defined(view: FileView, name: str) -> bool:
    """Whether the file itself has a function of this name, or gives an attribute it."""
    functions = view.nodes(ast.FunctionDef, ast.AsyncFunctionDef)
    if any(function.name == name for function in functions):
        return True
    return any(each.attr == name and isinstance(each.ctx, ast.Store) for each in view.nodes(ast.Attribute))


def _is_computed(view: FileView, value: Value, name: str) -> bool:
    """Whether a class of the files runs something where the attribute is read."""
    method = view.walk.method(value.cls, name) if value.cls else None
    return method is not None and is_property(method[1])


def _has(view: FileView, value: Value, name: str) -> bool:
    """Whether a class of the files has something of one's own under a name."""
    if not value.cls:
        return False
    return view.walk.method(value.cls, name) is not None or view.walk.attribute(value.cls, name) is not None


def _is_whole(view: FileView, value: Value) -> bool:
    """Whether all that a thing can do is known: its class is torch's, or derived from torch's in the files."""
    if value.cls.startswith("torch."):
        return True
    if not value.cls:
        return True  # made by a library that makes modules of torch
    known = view.walk.ancestry(value.cls)
    names = {view.walk.find(value.cls) and walk.qualified(owner.name) for walk, owner in known}
    return bool(known) and all(
        base in names or base.startswith("torch.") or base == "builtins.object"
        for walk, owner in known
        for base in walk.bases(owner)
    )


RULE = LintRule(
    code="H604",
    what="Looks for contexts that are made and not entered (`torch.no_grad()`, `inference_mode()`, `autocast()`, "
    "`model.no_sync()` as statements), for methods that are named and not called (`optimizer.zero_grad`, "
    "`loss.backward`), and for methods of modules and optimizers whose names are a letter or so wrong "
    "(`model.name_parameters()`, `optimizer.zero_grads()`).",
    why="The first two do nothing and say nothing: gradients are recorded all the same, the old ones are not "
    "cleared. A misspelt method fails, often only after an epoch, when the line is reached.",
    example="model.eval()\ntorch.no_grad()\nfor x in loader:\n    print(model(x))",
    instead="model.eval()\nwith torch.no_grad():\n    for x in loader:\n        print(model(x))",
    remedy="Write `with torch.no_grad():`, call the method, or spell it as torch does.",
    safety=Safety.SAFE,
    how_safe="safe where a method of what is certainly a module or optimizer is called or renamed; unsafe where only "
    "its name tells what it is, and for `with`, which takes in all that follows in the block",
    false_alarms="A class of yours, in a file that is not linted along, with a method of such a name; a line that only "
    "looks whether a method is there. The last line of a notebook's cell is let be, and so is "
    "`torch.set_grad_enabled(False)`, which acts when it is called.",
    source="none found",
    triggers=(*_WORDS, *BEGINNINGS),
    check=check,
)
