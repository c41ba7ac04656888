"""T701: statistics move while a learner is tested."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import FunctionalCall
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, moved_by, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Functional calls without gradients, in train mode, that left the module its own statistics to write to."""
    for model in seen.models:
        calls = _tests(model, seen)
        moved = moved_by(calls, model)
        if not moved:
            continue
        layers = tuple(dict.fromkeys(model.tensors[path].module for path in moved))
        yield Found(
            message=f"{counted(len(layers), 'normalization layer')} of {model.name} took in the data of "
            f"{counted(len(calls), 'test pass', 'test passes')} of an adapted learner",
            model=model.name,
            paths=moved,
            evidence=(
                f"functional_call in train mode with gradients off, {counted(calls[0].replaced, 'tensor')} given",
                f"not given, and written to: {some(moved)}",
                "each prediction depends on the rest of its batch, and the next task begins with these statistics",
            ),
            remedy=f"give the calls copies of the buffers too: {{**adapted, **{{n: b.clone() for n, b in "
            f"{model.name}.named_buffers()}}}}, or call {model.name}.eval() before testing",
            severity=Severity.WARNING,
            safety=Safety.MANUAL,
            place=calls[0].place,
            inferred=True,
        )


def _tests(model: ModelSeen, seen: Seen) -> list[FunctionalCall]:
    return seen.of(FunctionalCall, lambda e: e.model == model.name and not e.grad and e.training and not e.own)


def sound(seen: Seen) -> str | None:
    """How many test passes left the statistics alone."""
    calls = seen.of(FunctionalCall, lambda e: not e.grad and not e.own)
    if not calls or any(call.buffers_left and call.training for call in calls):
        return None
    return f"{counted(len(calls), 'test pass', 'test passes')} of adapted learners moved no statistics"


RULE = Rule(
    code="T701",
    what="Looks at the passes of `torch.func.functional_call` with gradients off, which is how an adapted learner is "
    "tested, that run in train mode and were not given the buffers.",
    why="The running statistics of the real module take in the test tasks: predictions depend on which examples share "
    "a batch, the order of the tasks matters, and a figure that was measured so cannot be compared with one in which "
    "each example was seen alone.",
    evidence="The calls, the buffers that they did not get, and that these moved; from the first such call on.",
    example="model.train()\nwith torch.no_grad():\n    logits = functional_call(model, adapted, (query,))",
    instead="buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}\n"
    "with torch.no_grad():\n    logits = functional_call(model, {**adapted, **buffers}, (query,))",
    remedy="Say what the normalization layers do at test time: statistics of the batch on copies of the buffers, "
    "running ones in eval mode, or one of the policies of `frostline.meta`.",
    safety=Safety.MANUAL,
    how_safe="manual: with which statistics a learner is tested is part of the method",
    false_alarms="A transductive method that never reads its running statistics, neither in training nor afterwards: "
    "its figures are what they are said to be, and only the module is changed. Deep copies that an optimizer of their "
    "own adapts look like any other training here; M201 tells them where they are tested in train mode.",
    source="higher#107, learn2learn#207, metadrop#3",
    look=look,
    sound=sound,
    explains=("M201", "N307", "M208"),
)
