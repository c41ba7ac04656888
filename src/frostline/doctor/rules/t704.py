"""T704: the inner loop wrote into the meta-parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.audit.events import FunctionalCall
from frostline.audit.places import Place
from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.source_lines import called, expressions, reached
from frostline.doctor.telling import counted, some, writer
from frostline.findings import Safety, Severity

_IN_PLACE = frozenset({"sub_", "add_", "copy_", "mul_", "lerp_", "addcdiv_", "addcmul_"})


def look(seen: Seen) -> Iterator[Found]:
    """Parameters of a model that is called functionally, and that changed outside of every optimizer's step."""
    for model in seen.models:
        calls = seen.of(FunctionalCall, lambda e, m=model: e.model == m.name)
        written = _written(model) if calls else []
        if not written:
            continue
        times = max(t.moved_between for t in written)
        place = _line(calls, seen)
        evidence = [
            f"changed between optimizer steps, up to {counted(times, 'time')}: {some([t.path for t in written])}",
            f"the model is called functionally at {calls[0].place}, so its parameters are where every task begins",
            *writer(written[0]),
        ]
        yield Found(
            message=f"{counted(len(written), 'meta-parameter')} of {model.name} changed in the inner loop, "
            "before the outer step",
            model=model.name,
            paths=tuple(t.path for t in written),
            evidence=tuple(evidence),
            remedy="adapted = {n: p - rate * g for (n, p), g in zip(adapted.items(), gradients)}, a new tensor "
            "instead of a write into the old",
            severity=Severity.ERROR,
            safety=Safety.UNSAFE,
            place=written[0].writes[0].place if written[0].writes else place or calls[0].place,
            inferred=True,
        )


def _written(model: ModelSeen) -> list[TensorSeen]:
    return [t for t in model.parameters if t.trainable and t.moved_between and not t.replaced]


def _line(calls: list[FunctionalCall], seen: Seen) -> Place | None:
    """The only statement that writes in place, in the functions that make the functional calls."""
    functions = {(call.place.file, call.place.function) for call in calls}
    found: list[Place] = []
    for statement in reached(seen):
        if (statement.file, statement.function) not in functions:
            continue
        if isinstance(statement.node, ast.AugAssign) or any(
            called(node) in _IN_PLACE for node in expressions(statement)
        ):
            found.append(statement.place)
    return found[0] if len(found) == 1 else None


def sound(seen: Seen) -> str | None:
    """How many meta-parameters changed in outer steps only."""
    called_models = {call.model for call in seen.of(FunctionalCall)}
    models = [m for m in seen.models if m.name in called_models and m.trained]
    if not models or any(_written(model) for model in models):
        return None
    count = sum(1 for model in models for t in model.parameters if t.trainable)
    return f"{counted(count, 'meta-parameter')} changed in outer steps only"


RULE = Rule(
    code="T704",
    what="Looks, in models that `torch.func.functional_call` is used on, for parameters that changed between the "
    "steps of the optimizers.",
    why="`dict(model.named_parameters())` holds the parameters themselves. An inner step that writes in place, or "
    "under `no_grad`, moves the meta-parameters: each task begins where the last one ended, the outer gradient "
    "belongs to a point that is gone, and no second-order term is left.",
    evidence="The parameters and how often they changed between steps, the functional calls, and the line that writes "
    "in place where the function has only one; from the first inner step on.",
    example="adapted = dict(model.named_parameters())\nwith torch.no_grad():\n"
    "    for name, grad in zip(adapted, grads):\n        adapted[name] -= rate * grad",
    instead="adapted = {name: p - rate * grad for (name, p), grad in zip(adapted.items(), grads)}",
    remedy="Make new tensors in the inner step; write into parameters in the outer step only.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the training becomes another one",
    false_alarms="A projection of the parameters after each outer step (weights clipped, norms fixed) in a model that "
    "is also called functionally. Writes through `.data` leave no mark between steps and are not seen.",
    source="none found",
    look=look,
    sound=sound,
)
