"""O408: gradient accumulation steps at the wrong micro-batch."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation


def check(view: FileView) -> Iterator[Violation]:
    """Optimizer steps under `if index % k == 0`, where index counts from 0 and the backward pass came before."""
    for flow in view.flows:
        for step in flow.of("step", "scaler_step"):
            yield from _early(view, flow, step)


def _early(view: FileView, flow: Flow, step: Event) -> Iterator[Violation]:
    for condition in step.conditions:
        if condition.node is None or not condition.arm:
            continue
        test = _modulo(condition.node)
        if test is None or not test.left_name or not _counts_from_zero(view, test.left_name, step):
            continue
        # A step behind the next window's start, before this micro-batch's backward, is the right idiom.
        loop = step.loops[-1] if step.loops else None
        before = [
            e
            for e in flow.of("backward")
            if loop is not None
            and e.loops
            and e.loops[-1].key == loop.key
            and (e.line, e.column) < (step.line, step.column)
        ]
        if not before or condition in before[-1].conditions:
            continue  # nothing is accumulated, or the branch has a backward pass of its own
        right = f"({test.left_name} + 1) % {view.text(test.right)} == 0"
        yield Violation(
            condition.node,
            f"the optimizer steps after the first micro-batch: {test.left_name} counts from 0",
            evidence=(
                f"line {step.line} steps where {view.text(condition.node)}",
                f"line {before[-1].line} is the backward pass before it",
            ),
            remedy=f"if {right}:, and once more behind the loop for the micro-batches that are left over",
            severity=Severity.ERROR,
            edits=(view.replaced(test.left, f"({test.left_name} + 1)"),),
            safety=Safety.UNSAFE,
            title=f"Step when ({test.left_name} + 1) is a multiple",
        )


class _Modulo:
    def __init__(self, left: ast.Name, right: ast.expr) -> None:
        self.left = left
        self.left_name = left.id
        self.right = right


def _modulo(test: ast.expr) -> _Modulo | None:
    """``index % k == 0`` or ``not index % k``, alone or as a part of ``or``."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        product = test.operand
    elif (
        isinstance(test, ast.Compare)
        and len(test.ops) == 1
        and isinstance(test.ops[0], ast.Eq)
        and isinstance(test.comparators[0], ast.Constant)
        and test.comparators[0].value == 0
    ):
        product = test.left
    elif isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return next((found for each in test.values if (found := _modulo(each)) is not None), None)
    else:
        return None
    if isinstance(product, ast.BinOp) and isinstance(product.op, ast.Mod) and isinstance(product.left, ast.Name):
        return _Modulo(product.left, product.right)
    return None


def _counts_from_zero(view: FileView, name: str, step: Event) -> bool:
    """Whether a loop around the step counts it from 0: `enumerate` without a start, or `range` of one number."""
    for loop in step.loops:
        node = loop.node
        if name not in loop.targets or not isinstance(node, (ast.For, ast.AsyncFor)):
            continue
        call = node.iter
        while isinstance(call, ast.Call) and view.name(call.func) not in {"builtins.enumerate", "builtins.range"}:
            if not call.args:
                return False
            call = call.args[0]  # tqdm(enumerate(...))
        if not isinstance(call, ast.Call):
            return False
        if view.name(call.func) == "builtins.enumerate":
            start = (
                call.args[1] if len(call.args) > 1 else next((k.value for k in call.keywords if k.arg == "start"), None)
            )
            return start is None or (isinstance(start, ast.Constant) and start.value == 0)
        return len(call.args) == 1
    return False


RULE = LintRule(
    code="O408",
    what="Looks for an optimizer step under `if index % k == 0` in a loop that counts `index` from 0, behind the backward pass of the "
    "same micro-batch.",
    why="The first step uses one micro-batch instead of k, every later one is a micro-batch late, and what is left at the end of the "
    "loop is never stepped, or leaks into the next epoch.",
    example="for i, (x, y) in enumerate(loader):\n    loss = criterion(model(x), y) / k\n    loss.backward()\n    if i % k == 0:\n"
    "        optimizer.step()\n        optimizer.zero_grad()",
    instead="for i, (x, y) in enumerate(loader):\n    loss = criterion(model(x), y) / k\n    loss.backward()\n"
    "    if (i + 1) % k == 0 or i + 1 == len(loader):\n        optimizer.step()\n        optimizer.zero_grad()",
    remedy="Step where `(i + 1) % k == 0`, and at the end of the loop for the micro-batches that are left over.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: steps move by one micro-batch, and what else stands in the block moves with them",
    false_alarms="A loop whose first micro-batch is meant to step alone. Blocks that only log or clear gradients are let be, and a step "
    "that stands before the backward pass of its own micro-batch.",
    source="LLMs-from-scratch#299, pet#36, torchseq#8, transformers PR29561",
    triggers=("%",),
    check=check,
)
