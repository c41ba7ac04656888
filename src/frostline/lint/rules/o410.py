"""O410: gradients are clipped while they are still scaled."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.events import Condition, Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.iterations import after, loops_of, meet, whenever
from frostline.lint.rule import LintRule, Violation
from frostline.lint.statements import begins_its_line, moved_above

_ENDS = {"scaler_step", "scaler_update", "step", "zero_grad"}


@dataclass(frozen=True)
class _Clip:
    """Clipping of gradients that a scaler has scaled in the same pass."""

    flow: Flow
    passed: Event
    clip: Event


def check(view: FileView) -> Iterator[Violation]:
    """Clipping behind a scaled backward pass, with no `unscale_` in between."""
    if "get_scale" in view.source.text or "inv_scale" in view.source.text:
        return  # takes the scale out by hand, or multiplies the limit by it
    for flow in view.flows:
        for passed in flow.of("backward"):
            if not passed.get("scaled"):
                continue
            clips = [_Clip(flow, passed, clip) for clip in _scaled(flow, passed)]
            told: list[Event] = []
            for each in clips:
                # Where one was unscaled for, those that come after it are right.
                if any(whenever(earlier, each.clip) for earlier in told):
                    continue
                told.append(each.clip)
                others = [other for other in clips if other is not each and meet(other.clip, each.clip)]
                mixed = any(not whenever(each.clip, o.clip) and not whenever(o.clip, each.clip) for o in others)
                yield _violation(view, each, mixed)


def _scaled(flow: Flow, passed: Event) -> Iterator[Event]:
    """The calls that clip what a backward pass has scaled."""
    for event in after(flow, passed, "clip", "unscale", "backward", *_ENDS):
        if loops_of(event)[: len(loops_of(passed))] != loops_of(passed) and loops_of(event) != loops_of(passed)[:-1]:
            return
        if not meet(event, passed):
            continue
        if event.what == "clip":
            if event.node is not None and _goes_together(event, passed):
                yield event
        elif event.what == "backward" and event.get("scaled"):
            return  # its own clipping is looked at for itself
        elif event.what != "zero_grad" or whenever(event, passed):
            return


def _goes_together(clip: Event, passed: Event) -> bool:
    """Whether the conditions of a clip say nothing of those of the backward pass: `if scaler is None`, `if not amp`."""
    theirs = {(c.key, c.arm) for c in passed.conditions}
    extra = [c for c in clip.conditions if (c.key, c.arm) not in theirs]
    named: set[str] = set()
    for condition in passed.conditions:
        named |= _names(condition)
    return not any(
        _names(condition) & (named | {"scaler", "grad_scaler", "amp", "use_amp", "fp16"}) for condition in extra
    )


def _names(condition: Condition) -> set[str]:
    """The names in a test, the last of dotted ones."""
    if condition.node is None:
        return set()
    found: set[str] = set()
    for node in ast.walk(condition.node):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return found - {"self", "args", "config", "cfg"}


def _violation(view: FileView, found: _Clip, mixed: bool) -> Violation:
    clip, passed = found.clip, found.passed
    assert clip.node is not None
    scaler = _scaler(view, passed) or "scaler"
    unscales = [e for e in after(found.flow, clip, "unscale", "scaler_step") if meet(e, clip)]
    step = next((e for e in unscales if e.what == "scaler_step"), None)
    optimizer = _argument(view, step) if step is not None else ""
    late = unscales[0] if unscales and unscales[0].what == "unscale" else None
    evidence = [f"line {passed.line} computes scaled gradients"]
    if late is not None:
        evidence.append(f"line {late.line} unscales them, which is too late")
    if step is not None:
        evidence.append(f"line {step.line} unscales them when it steps")
    remedy = f"{scaler}.unscale_({optimizer or 'optimizer'}) before this line"
    edits = () if mixed else _edits(view, found, step, late, f"{scaler}.unscale_({optimizer})")
    return Violation(
        clip.node,
        "gradients are clipped while they are still scaled by the gradient scaler",
        evidence=tuple(evidence),
        remedy=remedy,
        severity=Severity.ERROR,
        edits=edits,
        safety=Safety.SAFE if edits else Safety.MANUAL,
        title="Unscale before clipping",
    )


def _edits(view: FileView, found: _Clip, step: Event | None, late: Event | None, text: str) -> tuple[Edit, ...]:
    """The line that unscales, above the clip: where one step follows in the same pass whenever that clips."""
    clip, passed = found.clip, found.passed
    if step is None or clip.node is None or any(event.origin for event in (clip, passed, step)):
        return ()
    statement = view.statement(clip.node)
    if not isinstance(statement, (ast.Expr, ast.Assign)) or not begins_its_line(view, statement):
        return ()
    if late is not None:
        line = view.statement(late.node) if late.node is not None and not late.origin else None
        return moved_above(view, line, statement) if isinstance(line, ast.Expr) else ()
    same_pass = whenever(step, clip) and loops_of(step) == loops_of(clip) and clip.function == step.function
    steps = {e.path for e in found.flow.of("scaler_step") if loops_of(e) == loops_of(clip)}
    if not same_pass or len(steps) != 1 or not _scaler(view, passed) or passed.function != clip.function:
        return ()
    return (view.line_above(statement, text),)


def _scaler(view: FileView, passed: Event) -> str:
    """The scaler, as the backward pass names it; "" where its name stands in another place."""
    node = passed.node
    if passed.origin or not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return ""
    scaled = node.func.value
    if isinstance(scaled, ast.Call) and isinstance(scaled.func, ast.Attribute):
        return view.text(scaled.func.value)
    return passed.path


def _argument(view: FileView, step: Event) -> str:
    node = step.node
    return view.text(node.args[0]) if isinstance(node, ast.Call) and node.args and not step.origin else step.path


RULE = LintRule(
    code="O410",
    what="Looks for `clip_grad_norm_` and `clip_grad_value_` behind `scaler.scale(loss).backward()`, with no "
    "`scaler.unscale_(optimizer)` in between.",
    why="`scaler.scale(loss).backward()` leaves gradients that are too large by the scale, 65536 at the start. "
    "Clipped to 1.0 and unscaled afterwards they have a norm of 0.00002: the model hardly trains, and by a factor "
    "that changes whenever the scale does.",
    example="scaler = torch.amp.GradScaler()\nfor x, y in loader:\n    optimizer.zero_grad()\n"
    "    scaler.scale(criterion(model(x), y)).backward()\n    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"
    "    scaler.step(optimizer)\n    scaler.update()",
    instead="scaler = torch.amp.GradScaler()\nfor x, y in loader:\n    optimizer.zero_grad()\n"
    "    scaler.scale(criterion(model(x), y)).backward()\n    scaler.unscale_(optimizer)\n"
    "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n    scaler.step(optimizer)\n    scaler.update()",
    remedy="Call `scaler.unscale_(optimizer)` first; `scaler.step` knows that it was done.",
    safety=Safety.SAFE,
    how_safe="safe: the limit is meant for the gradients, not for the factor that the scaler multiplied them by",
    false_alarms="A scaler that is always switched off, or a limit that was multiplied by the scale: files that ask "
    "for the scale (`get_scale`) are let be, and so are clips under a condition on the scaler. Lightning and "
    "accelerate unscale by themselves; their methods are not looked at.",
    source="Lightning#9330, Lightning#9599, Pytorch-UNet#468, pytorch/examples#1196",
    triggers=("clip_grad",),
    check=check,
)
