"""O408: gradient accumulation steps at the wrong micro-batch."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.iterations import after, before, loop_of, loops_of, may_clear, within
from frostline.lint.rule import LintRule, Violation


def check(view: FileView) -> Iterator[Violation]:
    """Optimizer steps under `if index % k == 0`, where index counts from 0 and the backward pass came before.

    Also, as information, accumulation whose last micro-batches are cleared when the next epoch begins.
    """
    for flow in view.flows:
        for step in flow.of("step", "scaler_step"):
            yield from _early(view, flow, step)
            yield from _thrown_away(view, flow, step)


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


def _thrown_away(view: FileView, flow: Flow, step: Event) -> Iterator[Violation]:
    """Micro-batches behind the last full window: an outer loop clears them before any step."""
    loop = loop_of(step)
    outer = loops_of(step)[:-1]
    test = next((c.node for c in step.conditions if c.arm and c.node is not None and _is_window(c.node)), None)
    if loop is None or not outer or not isinstance(test, ast.Compare) or not isinstance(test.left, ast.BinOp):
        return
    if not isinstance(loop.node, ast.For) or "enumerate" not in view.text(loop.node.iter):
        return  # a number of steps may be chosen to divide
    clears = [e for e in before(flow, step, "zero_grad") if loops_of(e) == outer and may_clear(flow, e, step)]
    passes = [e for e in before(flow, step, "backward") if loop_of(e) == loop]
    others = [e for e in flow.of("step", "scaler_step") if e is not step and within(e, outer[-1])]
    if not clears or not passes or others or clears[0].node is None or clears[0].conditions != passes[0].conditions:
        return
    if any(step.path in e.get("paths", ()) for e in after(flow, step, "unknown")):
        return
    size = view.text(test.left.right)
    yield Violation(
        clears[0].node,
        f"micro-batches that are left over, fewer than {size}, are cleared here before any step uses them",
        evidence=(f"line {step.line} steps only where {view.text(test)}, and nothing steps behind that loop",),
        remedy="step once more behind the loop over batches, where their number is no multiple",
        severity=Severity.INFO,
        inferred=True,
    )


def _is_window(test: ast.expr) -> bool:
    """``(i + 1) % k == 0``, alone."""
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.ops[0], ast.Eq)
        and isinstance(test.left, ast.BinOp)
        and isinstance(test.left.op, ast.Mod)
        and isinstance(test.left.left, ast.BinOp)
        and isinstance(test.left.left.op, ast.Add)
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
    what="Looks for an optimizer step under `if index % k == 0` in a loop that counts `index` from 0, behind the "
    "backward pass of the same micro-batch; and, as information, for `(index + 1) % k == 0` with no step behind the "
    "loop where each epoch begins with `zero_grad()`.",
    why="The first step uses one micro-batch instead of k, every later one is a micro-batch late, and what is left "
    "at the end of the loop is never stepped, or leaks into the next epoch.",
    example="for i, (x, y) in enumerate(loader):\n    loss = criterion(model(x), y) / k\n    loss.backward()\n"
    "    if i % k == 0:\n"
    "        optimizer.step()\n        optimizer.zero_grad()",
    instead="for i, (x, y) in enumerate(loader):\n    loss = criterion(model(x), y) / k\n    loss.backward()\n"
    "    if (i + 1) % k == 0 or i + 1 == len(loader):\n        optimizer.step()\n        optimizer.zero_grad()",
    remedy="Step where `(i + 1) % k == 0`, and at the end of the loop for the micro-batches that are left over.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: steps move by one micro-batch, and what else stands in the block moves with them",
    false_alarms="A loop whose first micro-batch is meant to step alone, and a loader whose length is a multiple of "
    "k. Blocks that only log or clear gradients are let be, and a step that stands before the backward pass of its "
    "own micro-batch.",
    source="LLMs-from-scratch#299, pet#36, torchseq#8, transformers PR29561",
    triggers=("%",),
    check=check,
)
