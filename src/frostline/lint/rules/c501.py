"""C501: a checkpoint is loaded loosely, and nobody looks what arrived."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation

# Who speaks of these has looked at what did not match.
_REPORTS = re.compile(
    r"missing|unexpected|mismatch|not_?loaded|un_?loaded|unmatched|skipped|ignored_keys|incompatible|not_?found|error_msgs",
    re.I,
)
# A comment that says why the load is loose.
_MEANT = re.compile(r"strict|partial|on purpose|only the|subset", re.I)
_PASSED_ON = frozenset({"load_state_dict", "_load_from_state_dict", "on_load_checkpoint"})


def check(view: FileView) -> Iterator[Violation]:
    """Loads with `strict=False` whose result nobody uses, and loads of the model's own dictionary with what fits."""
    for call in view.nodes(ast.Call):
        if (
            not isinstance(call.func, ast.Attribute)
            or call.func.attr != "load_state_dict"
            or not call.args + call.keywords
        ):
            continue
        if not _is_model(view, call):
            continue
        around = _around(view, call)
        if isinstance(around, (ast.FunctionDef, ast.AsyncFunctionDef)) and around.name in _PASSED_ON:
            continue
        if _is_loose(call):
            explained = _MEANT.search(view.comments_above(call))
            if not explained and _is_ignored(view, call, around) and not _reports(around, call):
                yield _loose(view, call)
        else:
            yield from _filtered(view, call, around)


def _is_model(view: FileView, call: ast.Call) -> bool:
    assert isinstance(call.func, ast.Attribute)
    value = view.value(call.func.value)
    return value is None or value.kind in {"module", "averaged", "unknown"}


def _is_loose(call: ast.Call) -> bool:
    given = next((k.value for k in call.keywords if k.arg == "strict"), call.args[1] if len(call.args) > 1 else None)
    return isinstance(given, ast.Constant) and given.value is False


def _around(view: FileView, node: ast.AST) -> ast.AST:
    """The function that a node stands in, or the file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    return next((each for each in view.parents(node) if isinstance(each, kinds)), view.tree)


def _is_ignored(view: FileView, call: ast.Call, around: ast.AST) -> bool:
    """Whether the result is dropped, or kept under names that nobody reads."""
    parent = view.parent(call)
    if isinstance(parent, ast.Expr):
        # What stands last in a cell is shown.
        return not _ends_cell(view, parent)
    if not isinstance(parent, ast.Assign):
        return False
    names: set[str] = set()
    for target in parent.targets:
        parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
        if not all(isinstance(each, ast.Name) for each in parts):
            return False
        names |= {each.id for each in parts if isinstance(each, ast.Name)}
    read = (n.id for n in ast.walk(around) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
    return not names & set(read)


def _ends_cell(view: FileView, statement: ast.Expr) -> bool:
    cell, _ = view.source.cell_of(statement.lineno)
    if not cell or not isinstance(view.parent(statement), ast.Module):
        return False
    last = [each for each in view.tree.body if view.source.cell_of(each.lineno)[0] == cell]
    return last[-1] is statement


def _reports(around: ast.AST, call: ast.Call) -> bool:
    """Whether the function compares the names on both sides by itself, and says so."""
    body = around.body if isinstance(around, (ast.FunctionDef, ast.AsyncFunctionDef)) else []
    for statement in body:
        for node in ast.walk(statement):
            if node is call:
                continue
            name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
            if name and _REPORTS.search(name):
                return True
    return False


def _loose(view: FileView, call: ast.Call) -> Violation:
    assert isinstance(call.func, ast.Attribute)
    value = view.value(call.func.value)
    sure = value is not None and value.sure and value.kind == "module"
    receiver = view.text(call.func.value)
    bare = isinstance(view.parent(call), ast.Expr)
    source = call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "state_dict"), None)
    return Violation(
        call,
        f"{receiver}.load_state_dict(..., strict=False) passes over keys that do not match, and nobody looks at them",
        evidence=(f"{receiver} is a module" if sure else f"{receiver} is taken for a module",),
        remedy=f"frostline.plan_load({receiver}, {_shown(view, source)}).apply(), which refuses to load little; "
        "or print the result",
        severity=Severity.ERROR if sure else Severity.WARNING,
        edits=(view.replaced(call, f"print({view.text(call)})"),) if bare else (),
        safety=Safety.UNSAFE if bare else Safety.MANUAL,
        title="Print what did not match",
        inferred=not sure,
    )


def _shown(view: FileView, node: ast.expr | None) -> str:
    text = view.text(node) if node is not None else "checkpoint"
    return text if len(text) <= 40 and "\n" not in text else "checkpoint"


# A checkpoint that is filtered by the model's own keys.


def _filtered(view: FileView, call: ast.Call, around: ast.AST) -> Iterator[Violation]:
    """`own.update({k: v for ... if k in own})`, or the same in a loop, and `model.load_state_dict(own)`."""
    given = call.args[0] if call.args else call.keywords[0].value
    if not isinstance(given, ast.Name):
        return
    assert isinstance(call.func, ast.Attribute)
    receiver = view.text(call.func.value)
    own = given.id
    if not any(_takes_state(each, own) for each in ast.walk(around)) or _reports(around, call):
        return
    for node in ast.walk(around):
        found = _update_of(node, own, around) or _copy_loop(node, own)
        if found is None or found.lineno > call.lineno or _around(view, found) is not around:
            continue
        yield Violation(
            call,
            f"{own} holds every key of {receiver}, so that this load matches whatever the checkpoint was",
            evidence=(
                f"line {found.lineno} takes from the checkpoint what {receiver} has keys for",
                "nothing says how much that is",
            ),
            remedy=f"frostline.plan_load({receiver}, checkpoint).apply(), which accounts for each tensor on both sides",
            severity=Severity.WARNING,
        )
        return


def _takes_state(node: ast.AST, own: str) -> bool:
    """Whether it is ``own = model.state_dict()``."""
    return (
        isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == own for target in node.targets)
        and any(
            isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr == "state_dict"
            for each in ast.walk(node.value)
        )
    )


def _update_of(node: ast.AST, own: str, around: ast.AST) -> ast.expr | ast.Assign | None:
    """The filter behind ``own.update(filtered)``, where nobody else looks at what passed it."""
    if not (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "update"
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == own
        and len(node.args) == 1
    ):
        return None
    given = node.args[0]
    if not isinstance(given, ast.Name):
        return given if _is_filter(given, own) else None
    name = given.id
    made: list[ast.Assign] = []
    for each in ast.walk(around):
        if isinstance(each, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in each.targets):
            made.append(each)
    filters = [each for each in made if _is_filter(each.value, own)]
    if not filters:
        return None
    # It is read by the update, by the filter itself where it keeps its name, and by nobody who counts.
    inside = {id(n) for each in made for n in ast.walk(each)}
    others = [
        n
        for n in ast.walk(around)
        if isinstance(n, ast.Name)
        and n.id == name
        and n is not given
        and id(n) not in inside
        and n.lineno > filters[0].lineno
    ]
    return None if others else filters[0]


def _is_filter(node: ast.expr, own: str) -> bool:
    """``{k: v for k, v in ... if k in own}``, or with `own.keys()`, `model.state_dict()`, shapes."""
    if not isinstance(node, ast.DictComp):
        return False
    return any(_asks(test, own) for generator in node.generators for test in generator.ifs)


def _asks(test: ast.expr, own: str) -> bool:
    for each in ast.walk(test):
        if not isinstance(each, ast.Compare) or not any(isinstance(op, ast.In) for op in each.ops):
            continue
        if any(_are_keys(other, own) for other in each.comparators):
            return True
    return False


def _are_keys(node: ast.expr, own: str) -> bool:
    """Whether it is the model's own dictionary, its keys, or one just taken."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr == "state_dict":
            return True
        return node.func.attr == "keys" and _are_keys(node.func.value, own)
    return isinstance(node, ast.Name) and node.id == own


def _copy_loop(node: ast.AST, own: str) -> ast.For | None:
    """``for k, v in ...: if k in own: own[k] = v``, and nothing for those that are not."""
    if not isinstance(node, ast.For) or len(node.body) != 1 or node.orelse:
        return None
    test = node.body[0]
    if not isinstance(test, ast.If) or test.orelse or not _asks(test.test, own):
        return None
    stores = [
        target
        for each in test.body
        if isinstance(each, ast.Assign)
        for target in each.targets
        if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name) and target.value.id == own
    ]
    return node if stores and len(stores) == len(test.body) else None


RULE = LintRule(
    code="C501",
    what="Looks for `load_state_dict(..., strict=False)` whose result, the keys that found no partner, nobody "
    "uses; and for a checkpoint that is filtered by the model's own keys, put into the model's own "
    "dictionary and loaded back, where nothing is counted.",
    why="A name that does not match is passed over in silence. A prefix (`module.`, `backbone.`) or a nested "
    "dictionary is enough for nothing to arrive: the model trains from random weights, and the result is a "
    "pretrained model that is a little worse than it should be. Filtering by the model's keys hides it "
    "even from a strict load.",
    example="state = torch.load('pretrained.pth')\nmodel.load_state_dict(state, strict=False)",
    instead="state = torch.load('pretrained.pth')\nresult = model.load_state_dict(state, strict=False)\nprint(result)",
    remedy="Load strictly, or look at `missing_keys` and `unexpected_keys`. `frostline.plan_load(model, "
    "checkpoint)` finds renamings, prints what goes where, and refuses to load little.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the fix only prints the result, in every process and at every load; what should be loaded is "
    "for a person to say",
    false_alarms="A checkpoint that is a part on purpose (an adapter, an encoder) and whose names are known to match. "
    "Functions that compare the names themselves (they speak of missing or unexpected keys) are let be, so "
    "is `load_state_dict` that passes on its arguments, a load whose comment says why it is not strict, a result "
    "that is returned, and the last line of a notebook's cell, which is shown. Optimizers and objects that are no "
    "modules are not looked at.",
    source="pytorch/examples#1029, simple-HRNet#79",
    triggers=("load_state_dict",),
    check=check,
)
