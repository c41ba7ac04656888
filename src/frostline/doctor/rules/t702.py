"""T702: a functional call moves the buffers of the real module."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import FunctionalCall
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, moved_by, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Functional calls with other parameters than the module's, in train mode, that were not given its statistics."""
    for model in seen.models:
        calls = _adapting(model, seen)
        moved = moved_by(calls, model)
        if not moved:
            continue
        layers = tuple(dict.fromkeys(model.tensors[path].module for path in moved))
        yield Found(
            message=f"{counted(len(calls), 'functional call')} with adapted parameters moved the statistics of "
            f"{counted(len(layers), 'layer')} of {model.name} itself",
            model=model.name,
            paths=moved,
            evidence=(
                f"functional_call in train mode at {calls[0].place}, {counted(calls[0].replaced, 'tensor')} given",
                f"not given, so the module's own were written to: {some(moved)}",
                "what a call is not given it takes from the module, statistics included, and writes there",
            ),
            remedy=f"buffers = {{n: b.clone() for n, b in {model.name}.named_buffers()}} for each task, and "
            f"functional_call({model.name}, {{**adapted, **buffers}}, ...)",
            severity=Severity.WARNING,
            safety=Safety.UNSAFE,
            place=calls[0].place,
            inferred=True,
        )


def _adapting(model: ModelSeen, seen: Seen) -> list[FunctionalCall]:
    """The calls of a model of which some have parameters that are not its own: it is adapted."""
    calls = seen.of(FunctionalCall, lambda e: e.model == model.name and e.training and e.grad)
    return calls if any(not call.own for call in calls) else []


def sound(seen: Seen) -> str | None:
    """How many calls were given the statistics that they write to."""
    calls = seen.of(FunctionalCall, lambda e: e.grad and not e.own)
    with_statistics = {m.name for m in seen.models if any(t.role.startswith("norm.") for t in m.buffers)}
    calls = [call for call in calls if call.model in with_statistics]
    if not calls or any(call.buffers_left for call in calls):
        return None
    return f"{counted(len(calls), 'functional call')} left the module's own statistics alone"


RULE = Rule(
    code="T702",
    what="Looks at every `torch.func.functional_call` with parameters that are not the module's own: which buffers "
    "that a pass in train mode writes to were not among what it was given?",
    why="`functional_call` swaps what it is given and leaves the rest. Without the buffers, each step of each inner "
    "loop writes its batch into the running statistics of the real module: they describe no network, they carry one "
    "task into the next, and evaluating the module in eval mode uses them.",
    evidence="The calls, the buffers that they were not given, and that these moved; from the first inner step on.",
    example="adapted = dict(model.named_parameters())\nfor _ in range(inner_steps):\n"
    "    loss = criterion(functional_call(model, adapted, (x,)), y)\n    adapted = update(adapted, loss)",
    instead="adapted = dict(model.named_parameters())\n"
    "buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}\nfor _ in range(inner_steps):\n"
    "    loss = criterion(functional_call(model, {**adapted, **buffers}, (x,)), y)\n"
    "    adapted = update(adapted, loss)",
    remedy="Give the call a copy of the buffers, one for each task; or let a learner of `frostline.meta` do it, with a "
    "policy.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the running statistics then stay what they were, and eval mode gives other outputs",
    false_alarms="A network whose parameters another one generates, and whose statistics should gather over all of "
    "them. An ordinary loop that calls a module functionally with its own parameters is not told.",
    source="higher#55",
    look=look,
    sound=sound,
    explains=("T701", "T703"),
)
