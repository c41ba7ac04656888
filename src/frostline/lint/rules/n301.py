"""N301: normalization layers of one kind were put into eval mode, those of another kind were missed."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation
from frostline.lint.thrown_away import scope_of

_KINDS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")
_COMMON = "_BatchNorm"
_TEXTS = frozenset(_KINDS)
_SEARCHES = frozenset({"find", "startswith", "endswith"})


@dataclass(frozen=True)
class _Question:
    """A test that asks whether a layer is of certain kinds.

    Attributes:
        test: the whole test.
        node: the part that names the kinds.
        kinds: their names.
        subject: the name of the layer, where the test names it.
        how: ``isinstance``, ``type`` or ``text``.
    """

    test: ast.expr
    node: ast.expr
    kinds: frozenset[str]
    subject: str
    how: str


def check(view: FileView) -> Iterator[Violation]:
    """Tests for some kinds of batch norm that decide what is put into eval mode or frozen."""
    asked = [found for found in _questions(view) if _freezes(view, found)]
    for found in asked:
        scope = scope_of(view, found.test)
        kinds = {kind for each in asked if scope_of(view, each.test) is scope for kind in each.kinds}
        missing = [kind for kind in _KINDS if kind not in kinds]
        if missing and _COMMON not in kinds:
            yield _violation(view, found, missing)


def _questions(view: FileView) -> Iterator[_Question]:
    for call in view.nodes(ast.Call):
        if view.name(call.func) == "builtins.isinstance" and len(call.args) == 2:
            kinds = _classes(view, call.args[1])
            if kinds:
                yield _Question(call, call.args[1], kinds, view.text(call.args[0]), "isinstance")
        elif isinstance(call.func, ast.Attribute) and call.func.attr in _SEARCHES and call.args:
            yield from _by_text(call, call.args[0])
    for compare in view.nodes(ast.Compare):
        if len(compare.ops) != 1 or not isinstance(compare.ops[0], (ast.Eq, ast.Is, ast.In)):
            continue
        left, right = compare.left, compare.comparators[0]
        subject = _type_of(left)
        kinds = _classes(view, right) if subject else frozenset[str]()
        if kinds:
            yield _Question(compare, right, kinds, subject, "type")
        elif isinstance(compare.ops[0], ast.In):
            yield from _by_text(compare, left)
        else:
            yield from _by_text(compare, right)


def _by_text(test: ast.expr, text: ast.expr) -> Iterator[_Question]:
    if isinstance(text, ast.Constant) and text.value in _TEXTS:
        yield _Question(test, text, frozenset({str(text.value)}), "", "text")


def _classes(view: FileView, node: ast.expr) -> frozenset[str]:
    """The kinds of batch norm that are named: one, a tuple, or a union."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return frozenset(kind for each in node.elts for kind in _classes(view, each))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _classes(view, node.left) | _classes(view, node.right)
    name = view.name(node)
    last = name.rpartition(".")[2].removeprefix("Lazy")
    return frozenset({last}) if name.startswith("torch.nn.") and (last in _TEXTS or last == _COMMON) else frozenset()


def _type_of(node: ast.expr) -> str:
    """``m`` of ``type(m)`` and of ``m.__class__``."""
    if isinstance(node, ast.Call):
        asked = isinstance(node.func, ast.Name) and node.func.id == "type" and len(node.args) == 1
        return ast.unparse(node.args[0]) if asked else ""
    return ast.unparse(node.value) if isinstance(node, ast.Attribute) and node.attr == "__class__" else ""


# What the answer decides.


def _freezes(view: FileView, found: _Question) -> bool:
    """Whether what is frozen or put into eval mode is decided by it."""
    below: ast.AST = found.test
    for above in view.parents(found.test):
        if isinstance(above, ast.UnaryOp) and isinstance(above.op, ast.Not):
            return _skips(view, above, found)
        if isinstance(above, ast.If):
            return above.test is below and _freezes_in(above.body, found.subject)
        if isinstance(above, ast.comprehension):
            return _of_comprehension(view, above, found)
        if isinstance(above, ast.BoolOp):
            below = above
        elif isinstance(above, ast.Compare):  # classname.find("BatchNorm2d") != -1
            below = above
            if found.how == "text" and isinstance(above.ops[0], ast.Eq):
                return False
        elif isinstance(above, (ast.stmt, ast.Lambda)):
            return False
    return False


def _skips(view: FileView, denied: ast.UnaryOp, found: _Question) -> bool:
    """Whether ``if not isinstance(...): continue`` stands before what freezes."""
    branch = view.parent(denied)
    if not isinstance(branch, ast.If) or branch.test is not denied:
        return False
    if not isinstance(branch.body[-1], (ast.Continue, ast.Return)):
        return False
    around = view.parent(branch)
    block: list[ast.stmt] = getattr(around, "body", [])
    after = [each for each in block if each.lineno > branch.lineno]
    return _freezes_in(after, found.subject)


def _of_comprehension(view: FileView, generator: ast.comprehension, found: _Question) -> bool:
    """Whether the layers that are chosen are frozen: in the element, or in a loop over the list."""
    whole = view.parent(generator)
    if isinstance(whole, (ast.ListComp, ast.SetComp, ast.GeneratorExp)) and _freezes_in([whole.elt], found.subject):
        return True
    statement = view.statement(generator)
    if isinstance(statement, ast.For) and statement.iter is whole:
        return _freezes_in(statement.body, ast.unparse(statement.target))
    if not isinstance(statement, ast.Assign) or statement.value is not whole:
        return False
    name = ast.unparse(statement.targets[0])
    loops = (each for each in ast.walk(scope_of(view, statement)) if isinstance(each, ast.For))
    return any(
        ast.unparse(each.iter) == name and _freezes_in(each.body, ast.unparse(each.target))
        for each in loops
        if each.lineno > statement.lineno
    )


def _freezes_in(body: Iterable[ast.AST], subject: str) -> bool:
    """Whether a block puts something into eval mode, or freezes it."""
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if not _is_about(node.func.value, subject):
                    continue
                if node.func.attr == "eval" and not node.args:
                    return True
                given = [*node.args, *(keyword.value for keyword in node.keywords)]
                if node.func.attr in {"train", "requires_grad_"} and any(map(_is_false, given)):
                    return True
            elif isinstance(node, ast.Assign) and _is_false(node.value):
                for target in node.targets:
                    if isinstance(target, ast.Attribute) and target.attr in {"requires_grad", "training"}:
                        return True
    return False


def _is_about(node: ast.expr, subject: str) -> bool:
    """Whether it is the layer, a part of it, or what a loop over its parameters goes over."""
    text = ast.unparse(node)
    return not subject or text == subject or text.startswith(f"{subject}.") or "." not in text


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


# What is said.


def _violation(view: FileView, found: _Question, missing: list[str]) -> Violation:
    there = [kind for kind in missing if _is_used(view, kind)]
    asked = " and ".join(kind for kind in _KINDS if kind in found.kinds)
    edits = _edits(view, found)
    evidence = tuple(f"the file uses {kind}" for kind in there)
    named = there or missing
    return Violation(
        found.test,
        f"only {asked} is frozen here: {', '.join(named)} {'is' if len(named) == 1 else 'are'} missed",
        evidence=evidence,
        remedy=edits[0].text if edits else "isinstance(module, torch.nn.modules.batchnorm._BatchNorm)",
        severity=Severity.ERROR if there else Severity.INFO if missing == ["SyncBatchNorm"] else Severity.WARNING,
        edits=edits,
        safety=Safety.MANUAL if not edits else Safety.UNSAFE if found.how == "text" else Safety.SAFE,
        title="Ask for all batch norms",
        inferred=not there,
    )


def _is_used(view: FileView, kind: str) -> bool:
    """Whether layers of a kind are made in the file."""
    makers = {f"torch.nn.{kind}", f"torch.nn.Lazy{kind}"}
    if kind == "SyncBatchNorm":
        makers.add("torch.nn.SyncBatchNorm.convert_sync_batchnorm")
    return any(view.name(call.func) in makers for call in view.nodes(ast.Call))


def _edits(view: FileView, found: _Question) -> tuple[Edit, ...]:
    if found.how == "text":
        above = view.parent(found.test)
        exact = isinstance(found.test, ast.Compare) and not isinstance(found.test.ops[0], ast.In)
        if exact or (isinstance(found.test, ast.Call) and not isinstance(above, ast.Compare)):
            return ()
        quote = view.text(found.node)[-1]
        return (view.replaced(found.node, f"{quote}BatchNorm{quote}"),)
    common = _spelled(view, found.node)
    if not common:
        return ()
    if found.how == "type":
        whole = not isinstance(found.node, (ast.Tuple, ast.List, ast.Set)) or _is_all(view, found.node)
        return (view.replaced(found.test, f"isinstance({found.subject}, {common})"),) if whole else ()
    if isinstance(found.node, ast.Tuple) and not _is_all(view, found.node):
        first = next(each for each in found.node.elts if _classes(view, each))
        return (view.replaced(first, common),)
    return (view.replaced(found.node, common),)


def _is_all(view: FileView, node: ast.expr) -> bool:
    """Whether only batch norms are named."""
    return all(_classes(view, each) for each in getattr(node, "elts", ()))


def _spelled(view: FileView, node: ast.expr) -> str:
    """The common class, through the import that the file has; "" if it has none that reaches it."""
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and _classes(view, each):
            base = view.name(each.value)
            if base == "torch.nn":
                return f"{view.text(each.value)}.modules.batchnorm.{_COMMON}"
            if base == "torch.nn.modules.batchnorm":
                return f"{view.text(each.value)}.{_COMMON}"
    for name, whole in (("nn", "torch.nn"), ("torch", "torch")):
        if view.walk.imported(name) == whole:
            return f"{name}.{'nn.' if name == 'torch' else ''}modules.batchnorm.{_COMMON}"
    return ""


RULE = LintRule(
    code="N301",
    what="Looks at tests for one class of batch norm (`isinstance`, `type(m) ==`, the name of the class as text) that "
    "decide what is put into eval mode or frozen, where other classes of batch norm are not asked for beside it.",
    why="`isinstance(m, nn.BatchNorm2d)` is false for `BatchNorm1d`, `BatchNorm3d` and `SyncBatchNorm`. Their "
    "statistics go on moving in the part that was meant to be frozen; and converting the model to `SyncBatchNorm` "
    "makes the test miss every layer.",
    example="for m in model.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.eval()",
    instead="for m in model.modules():\n    if isinstance(m, nn.modules.batchnorm._BatchNorm):\n        m.eval()",
    remedy="Ask for the common class `torch.nn.modules.batchnorm._BatchNorm`, or freeze the part with "
    "`frostline.freeze`.",
    safety=Safety.SAFE,
    how_safe="safe: layers of the other classes are treated alike; unsafe where names of classes are compared as text",
    false_alarms="A model that certainly has one kind only, and will not be converted for training on several GPUs: it "
    "is a warning then, an error where the file makes layers of a kind that is missed. Layers of one kind that are "
    "meant to adapt: `# noqa: N301`. Initialization of weights is let be.",
    source="mmdetection PR577",
    triggers=("BatchNorm",),
    check=check,
)
