"""F115: a filter by name matches everything or nothing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation

_NAMED = frozenset({"named_parameters", "named_modules", "named_children", "named_buffers"})
_Loops = (ast.For, ast.AsyncFor, ast.comprehension)


def check(view: FileView) -> Iterator[Violation]:
    """Conditions on the name in loops over named parameters or modules, whose outcome is always the same."""
    for test in _tests(view):
        names = _bound_names(view, test)
        if not names and not _mentions_name(view, test, names):
            continue
        yield from _constant(view, test, names)


def _tests(view: FileView) -> Iterator[ast.expr]:
    """Whatever something is decided by: ``if``, conditional expressions, filters."""
    for node in view.nodes(ast.If, ast.IfExp):
        yield node.test
    for node in view.nodes(ast.comprehension):
        yield from node.ifs
    for node in view.nodes(ast.Call):
        if view.name(node.func) == "builtins.filter" and node.args and isinstance(node.args[0], ast.Lambda):
            yield node.args[0].body


def _bound_names(view: FileView, test: ast.expr) -> set[str]:
    """What the loops around call the names that they go over."""
    names: set[str] = set()
    for above in view.parents(test):
        if isinstance(above, _Loops):
            names |= _names_of(above.target, above.iter)
        elif isinstance(above, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            for one in above.generators:
                names |= _names_of(one.target, one.iter)
        elif isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            break
    return names


def _names_of(target: ast.expr, over: ast.expr) -> set[str]:
    asked = {each.attr for each in ast.walk(over) if isinstance(each, ast.Attribute)}
    asked |= {each.id for each in ast.walk(over) if isinstance(each, ast.Name)}
    if not any(each in _NAMED or each.endswith("state_dict") for each in asked) or "values" in asked:
        return set()
    # Of (name, parameter), however deep in enumerate or zip, the names come first.
    return {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}


def _is_name(view: FileView, node: ast.expr, names: set[str]) -> bool:
    if isinstance(node, ast.Name) and node.id in names:
        return True
    value = view.value(node)
    return value is not None and value.kind == "name"


def _mentions_name(view: FileView, node: ast.expr, names: set[str]) -> bool:
    return any(_is_name(view, each, names) for each in ast.walk(node) if isinstance(each, ast.expr))


def _constant(view: FileView, test: ast.expr, names: set[str]) -> Iterator[Violation]:
    """What in a condition is always true or always false, from the outside in."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        if not _is_find(test.operand):  # `not name.find("fc")` asks whether it begins so
            yield from _constant(view, test.operand, names)
    elif isinstance(test, ast.BoolOp):
        found = _bool(view, test, names)
        if found is not None:
            yield found
            return
        for each in test.values:
            yield from _constant(view, each, names)
    elif isinstance(test, ast.Call):
        yield from _call(view, test, names)
    elif isinstance(test, ast.Compare) and len(test.ops) == 1:
        yield from _compare(view, test, names)


def _bool(view: FileView, test: ast.BoolOp, names: set[str]) -> Violation | None:
    """``"bn" or "norm" in name``, ``name != "a" or name != "b"``, ``name == "a" and name == "b"``."""
    if isinstance(test.op, ast.Or):
        always = [each for each in test.values if _is_true(each)]
        if always and any(_mentions_name(view, each, names) for each in test.values):
            edits = _spread(view, test, always)
            return Violation(
                test,
                f"{view.text(test)} is always true: every name matches",
                evidence=(f"{view.text(always[0])} alone is true: `or` binds weaker than `in` and `==`",),
                remedy=_after(view, test, edits) or f"any(part in name for part in ({view.text(always[0])}, ...))",
                severity=Severity.ERROR,
                edits=edits,
                safety=Safety.SAFE if edits else Safety.MANUAL,
                title="Ask for each part",
            )
    exclusive = _exclusive(view, test, names)
    if not exclusive:
        return None
    is_or = isinstance(test.op, ast.Or)
    words = _other_word(view, test, "and" if is_or else "or")
    complete = len(words) == len(test.values) - 1 and all(_fact(view, each, names) for each in test.values)
    edits = (*words, *_without_is(view, test.values))
    return Violation(
        test,
        f"{view.text(test)} is always {'true: every name matches' if is_or else 'false: no name matches'}",
        evidence=(f"{exclusive[0]} and {exclusive[1]} cannot both be so at once",),
        remedy=_after(view, test, edits) if complete else f"join them with `{'and' if is_or else 'or'}`",
        severity=Severity.ERROR,
        edits=edits if complete else (),
        safety=Safety.SAFE if complete else Safety.MANUAL,
        title=f"Join with {'and' if is_or else 'or'}",
    )


def _is_true(node: ast.expr) -> bool:
    """Whether it is a text or a list of texts, which is true wherever it is not empty."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and bool(node.value)
    return isinstance(node, (ast.List, ast.Tuple, ast.Set)) and bool(node.elts) and all(map(_is_true, node.elts))


def _spread(view: FileView, test: ast.BoolOp, always: Sequence[ast.expr]) -> tuple[Edit, ...]:
    """Edits that give each text the question that the others have; none where it is not clear which one."""
    asked = [each for each in test.values if not _is_true(each)]
    question = asked[-1] if asked else None
    if len(asked) != 1 and len({ast.dump(_without_text(each)) for each in asked}) != 1:
        return ()
    if not all(isinstance(each, ast.Constant) for each in always) or "\n" in view.text(test):
        return ()
    if isinstance(question, ast.Compare) and len(question.ops) == 1:
        right = question.comparators[0]
        if isinstance(question.ops[0], ast.In) and isinstance(question.left, ast.Constant):
            return tuple(view.behind(each, f" in {view.text(right)}") for each in always)
        if isinstance(question.ops[0], ast.Eq) and isinstance(right, ast.Constant):
            left = view.text(question.left)
            return tuple(view.replaced(each, f"{left} == {view.text(each)}") for each in always)
    if isinstance(question, ast.Call) and _asks_for_text(question):
        function = view.text(question.func)
        return tuple(view.replaced(each, f"{function}({view.text(each)})") for each in always)
    return ()


def _without_text(node: ast.expr) -> ast.expr:
    """The same question, about no text in particular."""

    class Emptied(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.Constant:
            return ast.Constant("") if isinstance(node.value, str) else node

    return Emptied().visit(ast.parse(ast.unparse(node), mode="eval").body)


def _asks_for_text(node: ast.expr) -> bool:
    """``name.startswith("fc")``, and ``endswith``."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"startswith", "endswith"}
        and len(node.args) == 1
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    )


def _exclusive(view: FileView, test: ast.BoolOp, names: set[str]) -> tuple[str, str] | None:
    """Two parts of it of which one is always so: that a name is another one than each of two, or begins otherwise."""
    wanted_not = isinstance(test.op, ast.Or)
    facts = [fact for each in test.values if (fact := _fact(view, each, names)) is not None]
    for i, (subject, how, text, negated) in enumerate(facts):
        for other_subject, other_how, other, other_negated in facts[i + 1 :]:
            if subject != other_subject or negated is not wanted_not or other_negated is not wanted_not:
                continue
            if _cannot_be(how, text, other_how, other):
                return _said(how, text), _said(other_how, other)
    return None


def _said(how: str, text: str) -> str:
    return {"is": f"being {text!r}", "startswith": f"beginning with {text!r}"}.get(how, f"ending with {text!r}")


def _fact(view: FileView, node: ast.expr, names: set[str]) -> tuple[str, str, str, bool] | None:
    """What is asked of a name: of which, how it is compared, with what, and whether that is denied."""
    negated = False
    while isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        node, negated = node.operand, not negated
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        right = node.comparators[0]
        if not isinstance(right, ast.Constant) or not isinstance(right.value, str):
            return None
        if not _mentions_name(view, node.left, names):
            return None
        if isinstance(node.ops[0], (ast.NotEq, ast.IsNot)):
            return view.text(node.left), "is", right.value, not negated
        if isinstance(node.ops[0], (ast.Eq, ast.Is)):
            return view.text(node.left), "is", right.value, negated
        return None
    if isinstance(node, ast.Call) and _asks_for_text(node) and _mentions_name(view, node.func, names):
        assert isinstance(node.func, ast.Attribute)
        assert isinstance(node.args[0], ast.Constant)
        return view.text(node.func.value), node.func.attr, str(node.args[0].value), negated
    return None


def _cannot_be(how: str, text: str, other_how: str, other: str) -> bool:
    if how == other_how == "is":
        return text != other
    if how == other_how == "startswith":
        return not text.startswith(other) and not other.startswith(text)
    if how == other_how == "endswith":
        return not text.endswith(other) and not other.endswith(text)
    return False


def _other_word(view: FileView, test: ast.BoolOp, word: str) -> list[Edit]:
    """Edits that join the parts of a condition by the other word."""
    edits: list[Edit] = []
    for one, other in zip(test.values, test.values[1:], strict=False):
        start, end = view.source.end(one), view.source.start(other)
        between = view.source.text[start:end]
        found = list(re.finditer(r"\b(and|or)\b", between))
        if len(found) == 1 and "#" not in between:
            edits.append(Edit(start + found[0].start(), start + found[0].end(), word))
    return edits


def _without_is(view: FileView, values: Sequence[ast.expr]) -> list[Edit]:
    edits: list[Edit] = []
    for each in values:
        asked = each
        while isinstance(asked, ast.UnaryOp):
            asked = asked.operand
        if isinstance(asked, ast.Compare) and isinstance(asked.ops[0], (ast.Is, ast.IsNot)):
            edits.append(_equality(view, asked))
    return edits


def _equality(view: FileView, node: ast.Compare) -> Edit:
    """An edit that compares texts by what they say, and not by which object they are."""
    right = node.comparators[0]
    sign = "==" if isinstance(node.ops[0], ast.Is) else "!="
    return view.replaced(node, f"{view.text(node.left)} {sign} {view.text(right)}")


def _after(view: FileView, node: ast.expr, edits: Sequence[Edit]) -> str:
    """The text of an expression with edits made."""
    start, text = view.source.start(node), view.text(node)
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        text = text[: edit.start - start] + edit.text + text[edit.end - start :]
    return text if edits else ""


def _is_find(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"find", "rfind"}
        and len(node.args) == 1
    )


def _call(view: FileView, test: ast.Call, names: set[str]) -> Iterator[Violation]:
    """``name.find("fc")`` as a truth, and ``name.startswith("")``."""
    if not isinstance(test.func, ast.Attribute) or not _mentions_name(view, test.func.value, names):
        return
    if _is_find(test):
        right = f"{view.text(test.args[0])} in {view.text(test.func.value)}"
        yield Violation(
            test,
            f"{view.text(test)} is true wherever the name does not begin so: find gives -1 for what is not there",
            remedy=right,
            severity=Severity.ERROR,
            edits=(view.replaced(test, right),),
            safety=Safety.UNSAFE,
            title="Ask with in",
        )
    elif _asks_for_text(test) and isinstance(test.args[0], ast.Constant) and test.args[0].value == "":
        yield _empty(view, test)


def _compare(view: FileView, test: ast.Compare, names: set[str]) -> Iterator[Violation]:
    """``"" in name``, and ``name is "fc.weight"``."""
    left, right = test.left, test.comparators[0]
    if isinstance(test.ops[0], (ast.In, ast.NotIn)):
        if isinstance(left, ast.Constant) and left.value == "" and _is_name(view, right, names):
            yield _empty(view, test)
    elif (
        isinstance(test.ops[0], (ast.Is, ast.IsNot))
        and isinstance(right, ast.Constant)
        and isinstance(right.value, str)
        and _mentions_name(view, left, names)
    ):
        edit = _equality(view, test)
        outcome = "false: no name matches" if isinstance(test.ops[0], ast.Is) else "true: every name matches"
        # The name of what hangs right below the model may be the same object as the text.
        sure = "." in right.value
        yield Violation(
            test,
            f"{view.text(test)} is {'always' if sure else 'nearly always'} {outcome}",
            evidence=("`is` asks whether it is the same object; names are put together anew",),
            remedy=edit.text,
            severity=Severity.ERROR if sure else Severity.WARNING,
            edits=(edit,),
            safety=Safety.SAFE,
            title="Compare texts",
        )


def _empty(view: FileView, test: ast.expr) -> Violation:
    return Violation(
        test,
        f"{view.text(test)} says the same of every name: the empty text is in all of them",
        remedy="name what is to be matched",
        severity=Severity.ERROR,
    )


RULE = LintRule(
    code="F115",
    what="Looks at conditions on the name in loops, comprehensions and filters over `named_parameters()`, "
    '`named_modules()` and state dicts that always come out the same: `"bn" or "norm" in name`, '
    '`name != "a" or name != "b"`, `name.startswith("a") and name.startswith("b")`, `name is "fc.weight"`, '
    '`if name.find("fc")`, `"" in name`.',
    why="A filter that is always true freezes everything, and one that is never true nothing. Either way the loop runs "
    "and looks right.",
    example='for name, p in model.named_parameters():\n    if "bn" or "norm" in name:\n        p.requires_grad = False',
    instead='for name, p in model.named_parameters():\n    if "bn" in name or "norm" in name:\n        '
    "p.requires_grad = False",
    remedy="Ask for each part by itself; `frostline.freeze` refuses a pattern that matches nothing.",
    safety=Safety.SAFE,
    how_safe="safe: the condition asks what it was meant to ask; unsafe for `find`; none where it is not clear what "
    "was meant",
    false_alarms="None known for conditions that are constant. Whether a prefix fits the names that a model has cannot "
    "be told from source: the doctor does that.",
    source="TrainCheck 84911",
    triggers=("named_", "state_dict"),
    check=check,
)
