"""F117: a trainable part runs without gradients and never learns."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.audit.places import NOWHERE, Place
from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.source_lines import Statement, called, expressions, part_named, reached
from frostline.doctor.telling import counted, quoted, share_below, some
from frostline.findings import Safety, Severity
from frostline.state import names

_OFF = frozenset({"no_grad", "inference_mode"})


@dataclass(frozen=True)
class _Cut:
    """A part that no gradient reaches, and how it is cut off."""

    path: str
    tensors: list[TensorSeen]
    how: str
    place: Place


def look(seen: Seen) -> Iterator[Found]:
    """Parts that an optimizer has, that run in every pass, and that never had a gradient."""
    for model in seen.trained:
        by_line: dict[tuple[str, Place], list[_Cut]] = {}
        for cut in _cuts(seen, model):
            by_line.setdefault((cut.how, cut.place), []).append(cut)
        for (how, place), cuts in by_line.items():
            tensors = [t for cut in cuts for t in cut.tensors]
            tops = [cut.path for cut in cuts]
            steps = max(t.steps for t in tensors)
            owner = next((t.owner[0] for t in tensors if t.owner), "an optimizer")
            count = counted(len(tensors), "parameter")
            given = f"{owner} has {count} of it, with requires_grad=True"
            evidence = [f"{given}; .grad was None in each of {counted(steps, 'step')}"]
            if how == "detach":
                evidence.append("what it computes is detached before it is used")
            else:
                runs = max(model.modules[path].runs_no_grad for path in tops)
                evidence.append(
                    "it runs with gradients switched off"
                    + (f" (seen in {counted(runs, 'pass', 'passes')})" if runs else "")
                    + ", while the rest of the model has them on"
                )
            yield Found(
                message=f"{some(tops)} looks as if it trained, and cannot: {count} never "
                f"{'gets' if len(tensors) == 1 else 'get'} a gradient",
                model=model.name,
                paths=tuple(t.path for t in tensors),
                evidence=tuple(evidence),
                remedy=f"to train it, remove {'.detach()' if how == 'detach' else 'no_grad()'}; to keep it, say so:\n"
                f"frostline.freeze({model.name}, {quoted(tops)})",
                severity=Severity.WARNING,
                safety=Safety.UNSAFE,
                place=place if place.is_known else None,
                inferred=True,
            )


def _cuts(seen: Seen, model: ModelSeen) -> Iterator[_Cut]:
    """The outermost parts that no gradient reached."""
    done: list[str] = []
    dead = {
        t.path for t in model.parameters if t.trainable and t.owner and t.steps and not (t.gradients or t.moved_in_step)
    }
    below = share_below(model, dead) if dead else {}
    for path, module in model.modules.items():  # the outer ones come first
        part, whole = below.get(path, (0, 1))
        if not path or part < whole or any(names.is_under(path, top) for top in done):
            continue
        tensors = [t for t in model.below(path) if t.kind == "parameter"]
        if any(m.runs_checkpoint for m in (module, *model.inside(path))):
            continue  # the first pass of reentrant checkpointing runs without gradients
        if _runs_without(seen, model, path):
            done.append(path)
            yield _Cut(path, tensors, "no_grad", _switched_off(seen, model, path))
        elif module.runs_grad and (place := _detached(seen, model, path)).is_known:
            done.append(path)
            yield _Cut(path, tensors, "detach", place)


def _runs_without(seen: Seen, model: ModelSeen, path: str) -> bool:
    module = model.modules[path]
    if module.runs_grad:
        return False
    if module.runs_no_grad:
        return True
    # Called from outside of the model, as `model.backbone(x)`.
    passes = [e for e in seen.forwards if e.model == model.name and names.is_under(path, e.path)]
    return bool(passes) and not any(e.grad for e in passes) and any(e.path and e.training for e in passes)


def _switched_off(seen: Seen, model: ModelSeen, path: str) -> Place:
    """The only ``with torch.no_grad()`` that calls the part."""
    statements = reached(seen)
    found: dict[Place, None] = {}
    for statement in statements:
        for block in statement.around:
            off = isinstance(block, ast.With) and any(called(item.context_expr) in _OFF for item in block.items)
            if off and _calls(statement, seen, model, path):
                found.setdefault(statement.place_of(block))
    return next(iter(found)) if len(found) == 1 else NOWHERE


def _detached(seen: Seen, model: ModelSeen, path: str) -> Place:
    """The line that detaches what the part gave, at once or by the name that it was given."""
    kept: dict[tuple[str, str, str], None] = {}
    statements = reached(seen)
    for statement in statements:
        if isinstance(statement.node, ast.Assign) and _calls(statement, seen, model, path):
            for target in statement.node.targets:
                if isinstance(target, ast.Name):
                    kept.setdefault((statement.file, statement.function, target.id))
    found: dict[Place, None] = {}
    for statement in statements:
        for node in expressions(statement):
            of = _detaches(node)
            if of is None:
                continue
            named = isinstance(of, ast.Name) and (statement.file, statement.function, of.id) in kept
            if named or (isinstance(of, ast.Call) and _is_call_of(of, seen, model, path)):
                found.setdefault(statement.place_of(node))
    return next(iter(found)) if len(found) == 1 else NOWHERE


def _detaches(node: ast.AST) -> ast.expr | None:
    """What ``x.detach()`` and ``x.data`` are taken of."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in {"detach", "detach_"}:
        return node.func.value
    return node.value if isinstance(node, ast.Attribute) and node.attr == "data" else None


def _calls(statement: Statement, seen: Seen, model: ModelSeen, path: str) -> bool:
    return any(isinstance(node, ast.Call) and _is_call_of(node, seen, model, path) for node in expressions(statement))


def _is_call_of(node: ast.Call, seen: Seen, model: ModelSeen, path: str) -> bool:
    part = part_named(node.func, seen)
    return part is not None and part[0] is model and part[1] == path


def sound(seen: Seen) -> str | None:
    """How many trainable parts got gradients."""
    count = sum(
        1
        for model in seen.trained
        for t in model.parameters
        if t.trainable and t.owner and (t.gradients or t.moved_in_step)
    )
    return f"{counted(count, 'trainable parameter')} got gradients" if count else None


RULE = Rule(
    code="F117",
    what="Looks for parts that are trainable and in an optimizer, that run without gradients (or whose output is "
    "detached) while the rest of the model has them, and that had no gradient in any step.",
    why="Under `no_grad()` nothing is recorded: the part stays as it is. The optimizer skips it without a word, the "
    "counts of trainable parameters say otherwise, and the learning curve is that of the head alone.",
    evidence="In which passes the part ran without gradients, that `.grad` was `None` in every step, and the line "
    "that switches gradients off; from the first step on.",
    example="def forward(self, x):\n    with torch.no_grad():\n        features = self.backbone(x)\n    return "
    "self.head(features)\n\noptimizer = SGD(model.parameters(), lr=0.1)",
    instead="def forward(self, x):\n    return self.head(self.backbone(x))\n\nhold = frostline.freeze(model, "
    '"backbone")  # or train it',
    remedy="Remove `no_grad()` to train the part, or freeze it and leave it out of the optimizer.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: whether the part was to train is not known",
    false_alarms="A part that runs without gradients for the first updates only, watched in that time; a part that "
    "is meant to be fixed, and was given to the optimizer for brevity. Freeze it: then the flags say what happens.",
    source="similar: state-spaces/s4#26",
    look=look,
    sound=sound,
    explains=("H602",),
)
