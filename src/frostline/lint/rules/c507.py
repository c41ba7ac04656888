"""C507: what list.append gives back, which is None, is handed over in the place of the list."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation
from frostline.lint.torch_names import OPTIMIZERS

# Options that name the parts which train and are saved.
_NAMES = frozenset(
    {"modules_to_save", "target_modules", "target_parameters", "trainable_token_indices", "layers_to_transform"}
)
_METHODS = frozenset({"append", "extend", "insert"})
# Of these, `append` is a function that gives back what it made.
_LIBRARIES = ("numpy", "pandas", "tensorflow", "jax")


def check(view: FileView) -> Iterator[Violation]:
    """Calls of `append`, `extend` and `insert` whose result is taken for the list."""
    for call in view.nodes(ast.Call):
        if not isinstance(call.func, ast.Attribute) or call.func.attr not in _METHODS or not call.args:
            continue
        taken = _taken_as(view, call)
        if taken and not _gives_a_value(view, call.func.value):
            yield _violation(view, call, taken)


def _taken_as(view: FileView, call: ast.Call) -> str:
    """What the result is handed over as; "" where nobody uses it, or for something of no concern here."""
    parent = view.parent(call)
    if isinstance(parent, ast.keyword):
        if parent.arg in _NAMES:
            return parent.arg or ""
        above = view.parent(parent)
        if parent.arg == "params" and isinstance(above, ast.Call) and _makes_optimizer(view, above):
            return "params"
    if isinstance(parent, ast.Call) and parent.args[:1] == [call] and _makes_optimizer(view, parent):
        return "params"
    if isinstance(parent, ast.Dict):
        keys = [key for key, value in zip(parent.keys, parent.values, strict=True) if value is call]
        key = keys[0].value if keys and isinstance(keys[0], ast.Constant) else None
        return key if isinstance(key, str) and key in _NAMES | {"params"} else ""
    if isinstance(parent, (ast.Assign, ast.AnnAssign)) and parent.value is call:
        targets = parent.targets if isinstance(parent, ast.Assign) else [parent.target]
        return next((told for target in targets if (told := _target(view, target, call))), "")
    return ""


def _target(view: FileView, target: ast.expr, call: ast.Call) -> str:
    """What a name stands for to which the result is assigned: one of the options, or handed over as one later."""
    name = target.id if isinstance(target, ast.Name) else target.attr if isinstance(target, ast.Attribute) else ""
    if name in _NAMES:
        return name
    shown = view.text(target)
    for each in view.nodes(ast.Call):
        if each.lineno < call.lineno or view.function(each) != view.function(call):
            continue
        for keyword in each.keywords:
            if keyword.arg in _NAMES and view.text(keyword.value) == shown:
                return keyword.arg or ""
        first = next((k.value for k in each.keywords if k.arg == "params"), each.args[0] if each.args else None)
        if first is not None and _makes_optimizer(view, each) and view.text(first) == shown:
            return "params"
    return ""


def _makes_optimizer(view: FileView, call: ast.Call) -> bool:
    last = view.name(call.func).rpartition(".")[2] or getattr(call.func, "attr", getattr(call.func, "id", ""))
    return bool(OPTIMIZERS.match(last))


def _gives_a_value(view: FileView, receiver: ast.expr) -> bool:
    """Whether the method is one of something that gives back what it made."""
    return view.name(receiver).startswith(_LIBRARIES) or (
        isinstance(receiver, ast.Name) and receiver.id in {"np", "pd", "df", "tf", "jnp"}
    )


def _violation(view: FileView, call: ast.Call, taken: str) -> Violation:
    assert isinstance(call.func, ast.Attribute)
    method = call.func.attr
    parent = view.parent(call)
    value = view.value(call.func.value)
    sure = (value is not None and value.kind == "list") or isinstance(parent, ast.keyword)
    edits = _edits(view, call)
    lost = "nothing but the adapter is saved" if taken == "modules_to_save" else "the list is not handed over"
    return Violation(
        call,
        f"{taken} gets None: list.{method}() gives nothing back",
        evidence=(f"{view.text(call)} changes the list in place, and is None", f"{taken} is None, and {lost}"),
        remedy=edits[0].text if edits else f"call {method} in a line of its own, and hand over the list",
        severity=Severity.ERROR if sure else Severity.WARNING,
        edits=edits,
        safety=Safety.UNSAFE if edits else Safety.MANUAL,
        title="Hand over a list",
        inferred=not sure,
    )


def _edits(view: FileView, call: ast.Call) -> tuple[Edit, ...]:
    """``xs.append(x)`` becomes ``[*xs, x]``."""
    assert isinstance(call.func, ast.Attribute)
    receiver = call.func.value
    if len(call.args) != 1 or call.keywords or isinstance(call.args[0], ast.Starred):
        return ()
    before, added = view.text(receiver), view.text(call.args[0])
    if "\n" in before + added or not isinstance(receiver, (ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.List)):
        return ()
    if call.func.attr == "insert":
        return ()
    if call.func.attr == "extend":
        if not isinstance(call.args[0], (ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.List, ast.Tuple)):
            return ()
        added = f"*{added}"
    return (view.replaced(call, f"[*{before}, {added}]"),)


RULE = LintRule(
    code="C507",
    what="Looks for `modules_to_save=names.append(...)`: the result of `append`, `extend` or `insert` that is "
    "handed over, or assigned and then handed over, as the parts that train and are saved "
    "(`modules_to_save`, `target_modules`) or as an optimizer's parameters.",
    why="These methods change the list and give back `None`. The option is then not set, and nothing fails: "
    "the new head trains, its name is not among those that are saved, and after loading it is random.",
    example="config = LoraConfig(r=8, modules_to_save=names.append('classifier'))",
    instead="config = LoraConfig(r=8, modules_to_save=[*names, 'classifier'])",
    remedy="Hand over a list: `[*names, 'classifier']`; or append in a line of its own before.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: more is trained and saved than before, and the list itself is no longer changed",
    false_alarms="An object by another type than a list whose `append` gives something back. Those of numpy and pandas "
    "are let be.",
    source="peft#310, peft#577, peft#1070, peft#3306",
    triggers=(
        "modules_to_save",
        "target_modules",
        "target_parameters",
        "trainable_token_indices",
        "layers_to_transform",
        "optim",
    ),
    check=check,
)
