"""F118: reentrant checkpointing behind a frozen part cuts off the gradients."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.audit.places import NOWHERE, Place
from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.doctor.odd_attributes import starts_trainable
from frostline.doctor.rule import Found, Rule
from frostline.doctor.source_lines import calls, reached
from frostline.doctor.telling import counted, parts_of, some
from frostline.findings import Safety, Severity
from frostline.state import names


def look(seen: Seen) -> Iterator[Found]:
    """Trainable parts inside of reentrant checkpointing that never had a gradient."""
    for model in seen.models:
        cut = _cut(seen, model)
        if not cut:
            continue
        paths = tuple(t.path for t in cut)
        parts = parts_of(paths, model)
        evidence = [f"{some(parts)}: requires_grad is True, and .grad was None in {_when(cut)}"]
        before = [m.path for m in model.modules.values() if m.frozen and m.path and not m.runs_checkpoint and m.runs]
        tops = [p for p in before if not any(names.is_under(p, other) for other in before if other != p)]
        evidence.append("checkpoint(use_reentrant=True) records a gradient only where an input requires one")
        if tops:
            evidence.append(f"the part before it is frozen: {some(tops)}")
        if seen.crash is not None and "does not require grad" in seen.crash.text:
            evidence.append(f"{seen.crash.place}: {seen.crash.type}: {seen.crash.text}")
        elif any("None of the inputs have requires_grad" in text for text in seen.warnings):
            evidence.append("torch warned: None of the inputs have requires_grad=True. Gradients will be None")
        place = _place(seen)
        yield Found(
            message=f"reentrant checkpointing cuts off {counted(len(paths), 'trainable parameter')}: "
            f"{'it gets' if len(paths) == 1 else 'they get'} no gradient",
            model=model.name,
            paths=paths,
            evidence=tuple(evidence),
            remedy="checkpoint(..., use_reentrant=False)",
            severity=Severity.ERROR,
            safety=Safety.UNSAFE,
            place=place if place.is_known else None,
        )


def _cut(seen: Seen, model: ModelSeen) -> list[TensorSeen]:
    crashed = seen.crash is not None and "does not require grad" in seen.crash.text
    inside = [m.path for m in model.modules.values() if m.runs_checkpoint and m.path]
    found: dict[str, TensorSeen] = {}
    for path in inside:
        for t in model.below(path):
            trains = t.kind == "parameter" and starts_trainable(t, model)
            if trains and not t.gradients and not t.moved_in_step and (t.steps or crashed):
                found[t.path] = t
    trainable = [t for p in inside for t in model.below(p) if t.kind == "parameter" and starts_trainable(t, model)]
    # One layer without a gradient among others that have one is not cut off here.
    return list(found.values()) if len(found) == len({t.path for t in trainable}) else []


def _when(cut: list[TensorSeen]) -> str:
    steps = max(t.steps for t in cut)
    return f"each of {counted(steps, 'step')}" if steps else "the first backward pass"


def _place(seen: Seen) -> Place:
    """The only call of ``checkpoint`` that is not asked to do without reentry."""
    found: dict[Place, None] = {}
    for statement in reached(seen):
        for call in calls(statement, "checkpoint", "checkpoint_sequential"):
            given = [k.value for k in call.keywords if k.arg == "use_reentrant"]
            if not given or not (isinstance(given[0], ast.Constant) and given[0].value is False):
                found.setdefault(statement.place_of(call))
    return next(iter(found)) if len(found) == 1 else NOWHERE


def sound(seen: Seen) -> str | None:
    """How many checkpointed parameters got gradients."""
    got = {
        (model.name, t.path)
        for model in seen.trained
        for m in model.modules.values()
        if m.runs_checkpoint and m.path
        for t in model.below(m.path)
        if t.gradients
    }
    return f"{counted(len(got), 'parameter')} inside of checkpointing got gradients" if got else None


RULE = Rule(
    code="F118",
    what="Looks for trainable parameters that run inside of reentrant activation checkpointing and that had no "
    "gradient in any step.",
    why="`checkpoint(use_reentrant=True)` runs its function without gradients and hangs a node on the inputs. Where "
    "no input requires a gradient, because all that comes before is frozen, there is no node: everything inside, "
    "adapters too, gets `None`, with one warning that is easily missed, or `backward()` fails.",
    evidence="That the part ran inside of a checkpoint, that `.grad` was `None` in every step, and the line; from "
    "the first backward pass on.",
    example="x = self.embed(ids)  # frozen\nx = checkpoint(self.block, x, use_reentrant=True)",
    instead="x = self.embed(ids)  # frozen\nx = checkpoint(self.block, x, use_reentrant=False)",
    remedy="Pass `use_reentrant=False` (in transformers: `gradient_checkpointing_kwargs`), or let the input require "
    "a gradient (`enable_input_require_grads()`).",
    safety=Safety.UNSAFE,
    how_safe="unsafe: memory and the order of random numbers differ a little",
    false_alarms="A checkpointed part that is not used for the loss at all.",
    source="transformers#23170, transformers#26221, transformers PR42494",
    look=look,
    sound=sound,
    explains=("F117", "H602", "O413"),
)
