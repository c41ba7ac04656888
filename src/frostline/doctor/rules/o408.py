"""O408: gradient accumulation steps at the wrong micro-batch."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.audit.places import Place
from frostline.audit.seen import Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.source_lines import Statement, called, loops_around, reached
from frostline.doctor.telling import at, counted
from frostline.doctor.windows import Window, accumulates, usual, windows
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Accumulation whose first step comes too early, and micro-batches whose gradients are thrown away or left over."""
    found = windows(seen)
    closed = [window for window in found if window.steps]
    if len(closed) < 2 or not accumulates(found):
        return
    size = usual(closed)
    rest = found[-1].size if not found[-1].steps else 0
    counts = [window.size for window in closed]
    first = counts[0]
    place = closed[0].steps[-1].place
    test = _test_around(place, seen)
    if first < size == counts[1] and _is_early(closed, place, test, seen):
        yield _too_early(closed, size, rest, place, test)
    else:
        yield from _thrown_away(closed, size)


def _is_early(closed: list[Window], place: Place, test: ast.expr | None, seen: Seen) -> bool:
    """Whether the first window is short because the condition is wrong, not because the watch began in its middle."""
    if _counts_from_zero(place, test, seen):
        return True
    steppers = [seen.optimizer(step.optimizer) for step in closed[0].steps]
    # An optimizer that was made inside of the watch has no earlier micro-batches; one full window may be chance.
    full = sum(window.size == closed[1].size for window in closed)
    return full > 1 and all(o is not None and o.made_at is not None for o in steppers)


def _counts_from_zero(place: Place, test: ast.expr | None, seen: Seen) -> bool:
    """Whether a condition is ``i % k == 0`` of a loop's counter that begins with 0."""
    counters = {
        node.left.left.id
        for node in ast.walk(test or ast.Constant(None))
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.BinOp)
        and isinstance(node.left.op, ast.Mod)
        and isinstance(node.left.left, ast.Name)
        and isinstance(node.ops[0], ast.Eq)
        and isinstance(node.comparators[0], ast.Constant)
        and node.comparators[0].value == 0
    }
    statement = _statement(place, seen)
    for loop in loops_around(statement) if statement is not None else ():
        if counters & {node.id for node in ast.walk(loop.target) if isinstance(node, ast.Name)}:
            return _begins_with_zero(loop.iter)
    return False


def _begins_with_zero(walked: ast.expr) -> bool:
    """Whether a loop's counter begins with 0: ``enumerate`` or ``range`` without a start, progress bars taken off."""
    while isinstance(walked, ast.Call) and called(walked) in {"tqdm", "trange", "track", "list"} and walked.args:
        walked = walked.args[0]
    if not isinstance(walked, ast.Call) or called(walked) not in {"enumerate", "range"} or not walked.args:
        return False
    named = [keyword.value for keyword in walked.keywords if keyword.arg == "start"]
    start = walked.args[1:2] if called(walked) == "enumerate" else walked.args[:1] if len(walked.args) > 1 else []
    return all(isinstance(value, ast.Constant) and value.value == 0 for value in (*start, *named))


def _statement(place: Place, seen: Seen) -> Statement | None:
    """The innermost statement at a line."""
    return max((s for s in reached(seen) if s.covers(place)), key=lambda s: s.node.lineno, default=None)


def _test_around(place: Place, seen: Seen) -> ast.expr | None:
    """The condition of the ``if`` that a step stands in."""
    inside = _statement(place, seen)
    ifs = [node for node in (*inside.around, inside.node) if isinstance(node, ast.If)] if inside is not None else []
    return ifs[-1].test if ifs else None


def _too_early(closed: list[Window], size: int, rest: int, place: Place, test: ast.expr | None) -> Found:
    counts = [window.size for window in closed]
    shown = ", ".join(map(str, counts[:6])) + (", ..." if len(counts) > 6 else "")
    evidence = [f"backward passes for each step: {shown}" + (f"; {rest} left over" if rest else "")]
    if test is not None:
        evidence.append(f"the step stands under: if {ast.unparse(test)}")
    evidence.append(f"the first step had the gradient of {counts[0]} of {size} micro-batches")
    counter = next((node for node in ast.walk(test) if isinstance(node, ast.BinOp)), None) if test is not None else None
    remedy = "step when a window is full, and once more for what is left at the end"
    if counter is not None:
        name, every = ast.unparse(counter.left), ast.unparse(counter.right)
        remedy = f"if ({name} + 1) % {every} == 0 or {name} + 1 == len(loader):"
    return Found(
        message=f"accumulation steps after {counts[0]} micro-batch{'' if counts[0] == 1 else 'es'}, then after every "
        f"{size}: "
        "the first step comes too early" + (f", and {rest} is left over at the end" if rest else ""),
        evidence=tuple(evidence),
        remedy=remedy,
        severity=Severity.ERROR,
        safety=Safety.UNSAFE,
        place=place,
    )


def _thrown_away(closed: list[Window], size: int) -> Iterator[Found]:
    """Micro-batches at the end of an epoch whose gradients were cleared before any step used them."""
    lost: list[tuple[int, Place]] = []
    for window in closed:
        # A whole window that is cleared was skipped on purpose (a NaN, a scaler); cleared each time is O407's.
        if 0 < window.lost < size == window.size:
            behind = [c for c in window.clears if c.at > window.backwards[window.lost - 1].at]
            lost.append((window.lost, behind[0].place))
    if not lost:
        return
    total = sum(done for done, _ in lost)
    place = lost[0][1]
    yield Found(
        message=f"accumulation throws away {counted(total, 'micro-batch', 'micro-batches')}: "
        "gradients of an unfinished window are cleared before any step",
        evidence=(
            f"a step comes after every {size}; left over and cleared: {', '.join(str(done) for done, _ in lost[:6])}",
            f"cleared at {at(place)}",
        ),
        remedy="step once more at the end of the epoch, with the loss divided by what is left",
        severity=Severity.WARNING,
        safety=Safety.UNSAFE,
        place=place,
    )


def sound(seen: Seen) -> str | None:
    """After how many micro-batches accumulation stepped."""
    found = windows(seen)
    closed = [window for window in found if window.steps]
    if len(closed) < 2 or not accumulates(found) or any(True for _ in look(seen)):
        return None
    return f"gradient accumulation steps after every {usual(closed)} backward passes, in {len(closed)} steps"


RULE = Rule(
    code="O408",
    what="Counts the backward passes that went into each step, where a loop accumulates gradients, and reads the "
    "condition that the step stands under.",
    why="With `if i % k == 0` the step comes after the first micro-batch, then after every k-th, and what is left "
    "at the end is never stepped on: with 10 micro-batches and k = 4 the steps have 1, 4 and 4, and 1 is lost. The "
    "first step has a k-th of the gradient; cleared leftovers are data that is never trained on.",
    evidence="The backward passes of each step, what is left over, and the condition; from the second step on.",
    example="for i, (x, y) in enumerate(loader):\n"
    "    (loss(model(x), y) / k).backward()\n"
    "    if i % k == 0:\n"
    "        optimizer.step()\n"
    "        optimizer.zero_grad()",
    instead="for i, (x, y) in enumerate(loader):\n"
    "    (loss(model(x), y) / k).backward()\n"
    "    if (i + 1) % k == 0 or i + 1 == len(loader):\n"
    "        optimizer.step()\n"
    "        optimizer.zero_grad()",
    remedy="Count from 1, and step once more at the end.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the steps come at other micro-batches",
    false_alarms="A window that grows on purpose (1, then k) under a condition that is no plain `i % k == 0` can be "
    "taken for this mistake where the optimizer was made inside of the watch. A watch that began in the middle of a "
    "window, two nets in turn, two losses with a backward pass each, and a smaller last window are not reported.",
    source="LLMs-from-scratch#299, pet#36, torchseq#8, transformers PR29561",
    look=look,
    sound=sound,
)
