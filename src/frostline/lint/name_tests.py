"""Tests on the names of parameters, tried on a name: which parameters pass a filter such as ``"head" in name``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import lru_cache


def passes(tests: Iterable[str], name: str) -> bool | None:
    """Whether a parameter of a name passes all of some tests; ``None`` where that depends on more than its name.

    Tests are text in which the parameter is ``p`` and its name ``name``. What is asked of ``requires_grad`` is taken
    to be true.

    Example:
        >>> passes(("'head' in name",), "head.weight"), passes(("not name.startswith('head')",), "head.weight")
        (True, False)
        >>> passes(("p.ndim > 1",), "head.weight") is None
        True
    """
    answers = [_answer(_parsed(test), name) for test in tests]
    return False if False in answers else None if None in answers else True


def texts_in(tests: Iterable[str]) -> tuple[str, ...]:
    """The texts that tests look for in a name.

    Example:
        >>> texts_in(("'head' in name or name.startswith('fc.')",))
        ('head', 'fc.')
    """
    found = [
        node.value
        for test in tests
        for node in ast.walk(_parsed(test))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return tuple(dict.fromkeys(found))


@lru_cache(maxsize=512)
def _parsed(test: str) -> ast.expr:
    try:
        return ast.parse(test, mode="eval").body
    except SyntaxError:  # "?"
        return ast.Constant(None)


def _answer(test: ast.expr, name: str) -> bool | None:
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _answer(test.operand, name)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp):
        answers = [_answer(each, name) for each in test.values]
        decisive = isinstance(test.op, ast.Or)
        return decisive if decisive in answers else None if None in answers else not decisive
    if isinstance(test, ast.Attribute) and test.attr == "requires_grad":
        return True
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return _compared(test, name)
    if isinstance(test, ast.Call):
        return _called(test, name)
    return None


def _compared(test: ast.Compare, name: str) -> bool | None:
    left, right = _text(test.left, name), _text(test.comparators[0], name)
    if not isinstance(left, str) or right is None:
        return None
    op = test.ops[0]
    if isinstance(op, (ast.In, ast.NotIn)):
        return (left in right) is isinstance(op, ast.In)
    if isinstance(op, (ast.Eq, ast.NotEq)):
        return (left == right) is isinstance(op, ast.Eq)
    return None


def _text(node: ast.expr, name: str) -> str | tuple[str, ...] | None:
    """The name, a part of it, or literal text."""
    if isinstance(node, ast.Name):
        return name if node.id == "name" else None
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        texts = [each.value for each in node.elts if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        return tuple(texts) if len(texts) == len(node.elts) else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "lower":
        return _text(node.func.value, name.lower())
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int):
        split = node.value
        if (
            isinstance(split, ast.Call)
            and isinstance(split.func, ast.Attribute)
            and split.func.attr == "split"
            and isinstance(split.func.value, ast.Name)
            and split.func.value.id == "name"
            and len(split.args) == 1
            and isinstance(split.args[0], ast.Constant)
            and isinstance(split.args[0].value, str)
            and split.args[0].value
        ):
            parts = name.split(split.args[0].value)
            return parts[node.slice.value] if node.slice.value < len(parts) else None
    return None


def _called(test: ast.Call, name: str) -> bool | None:
    function = test.func
    if isinstance(function, ast.Attribute) and function.attr in {"startswith", "endswith"} and len(test.args) == 1:
        owner, given = _text(function.value, name), _text(test.args[0], name)
        if isinstance(owner, str) and given is not None:
            return owner.startswith(given) if function.attr == "startswith" else owner.endswith(given)
    if (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "re"
        and function.attr in {"match", "search", "fullmatch"}
        and len(test.args) == 2
    ):
        pattern, text = _text(test.args[0], name), _text(test.args[1], name)
        if isinstance(pattern, str) and isinstance(text, str):
            try:
                return getattr(re, function.attr)(pattern, text) is not None
            except re.error:
                return None
    if isinstance(function, ast.Name) and function.id in {"any", "all"} and len(test.args) == 1:
        return _any_or_all(function.id == "any", test.args[0], name)
    return None


def _any_or_all(is_any: bool, given: ast.expr, name: str) -> bool | None:
    """``any(key in name for key in ("head", "fc"))``."""
    if not isinstance(given, (ast.GeneratorExp, ast.ListComp)) or len(given.generators) != 1:
        return None
    part = given.generators[0]
    over = _text(part.iter, name)
    if not isinstance(over, tuple) or not isinstance(part.target, ast.Name) or part.ifs:
        return None
    answers = [
        _answer(_Put(part.target.id, each).visit(ast.parse(ast.unparse(given.elt), mode="eval").body), name)
        for each in over
    ]
    if is_any:
        return True if True in answers else None if None in answers else False
    return False if False in answers else None if None in answers else True


class _Put(ast.NodeTransformer):
    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self._text) if node.id == self._name else node
