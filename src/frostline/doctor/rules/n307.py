"""N307: statistics adapt to the data that is tested on."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import ModeCall
from frostline.audit.seen import ModelSeen, Phase, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, call_at, counted, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Statistics that moved in a pass without gradients of a model in eval mode."""
    for model in seen.models:
        phases = [phase for phase in model.phases if _adapting(seen, model, phase)]
        if not phases:
            continue
        layers = tuple(dict.fromkeys(layer for phase in phases for layer in _adapting(seen, model, phase)))
        first = phases[0]
        call = _switch(seen, model, first, layers)
        assert call is not None
        passes = counted(sum(p.forwards for p in phases), "pass", "passes")
        yield Found(
            message=f"{counted(len(layers), 'normalization layer')} of {model.name} adapted to the data under test",
            model=model.name,
            paths=layers,
            evidence=(
                f"{passes} without gradients in eval mode of the model, the first at {at(first.place)}",
                f"statistics that moved meanwhile: {some(dict.fromkeys(p for phase in phases for p in phase.moved))}",
                f"put into train mode by {call_at(call.place)}",
            ),
            remedy=f"call {model.name}.eval() after that line; or, if it is meant, declare it: "
            'contract=Contract(moving=("*running_*", "*num_batches_tracked"))',
            severity=Severity.WARNING,
            safety=Safety.MANUAL,
            place=call.place,
            inferred=True,
        )


def _adapting(seen: Seen, model: ModelSeen, phase: Phase) -> tuple[str, ...]:
    """The layers that moved in it although the model is in eval mode, where a call has put them into train mode."""
    if phase.training or phase.grad:
        return ()
    moved = [model.tensors[path] for path in phase.moved if path in model.tensors]
    train = set(phase.train_modules)
    layers = tuple(dict.fromkeys(t.module for t in moved if t.module in train and not t.may_move))
    return layers if layers and _switch(seen, model, phase, layers) is not None else ()


def _switch(seen: Seen, model: ModelSeen, phase: Phase, layers: tuple[str, ...]) -> ModeCall | None:
    """The call on a part that put one of the layers into train mode; none where a flag was written."""
    return next(
        (
            e
            for e in reversed(seen.of(ModeCall))
            if e.model == model.name
            and e.mode
            and e.at < phase.first
            and not set(layers).isdisjoint({*e.flipped, e.path})
            and e.path
            and not e.direct
        ),
        None,
    )


def sound(seen: Seen) -> str | None:
    """In how many passes in eval mode the statistics stayed."""
    right = sum(
        phase.forwards
        for model in seen.models
        if any(tensor.role == "norm.count" for tensor in model.buffers)
        for phase in model.phases
        if not phase.training and not phase.grad and not phase.moved
    )
    return f"no statistics moved in {counted(right, 'pass', 'passes')} in eval mode" if right else None


RULE = Rule(
    code="N307",
    what="Looks for running statistics that move in passes without gradients while the model is in eval mode, "
    "because a call of `train()` on its normalization layers, or on a part with them, came after `eval()`.",
    why="The result is no longer that of the trained model: it depends on the order and the mix of the test data, "
    "and on how often it was tested. In few-shot tests the figure rises by what the other queries give away.",
    evidence="The layers, the passes, and the line that put the layers into train mode; from the first such pass on.",
    example="model.eval()\nfor m in model.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.train()\nwith "
    "torch.no_grad():\n    test(model)",
    instead="model.eval()\nwith torch.no_grad():\n    test(model)",
    remedy="Leave the layers in eval mode while testing. Adaptation at test time that is meant is declared in the "
    "contract, and its figure reported as transductive.",
    safety=Safety.MANUAL,
    how_safe="manual: adaptation at test time may be meant",
    false_alarms="Adaptation at test time that is meant and not declared. What tells the rules apart: a whole model "
    "that is left in train mode is M201, a flag that was written on the parent alone is M204, and the inner loop of "
    "meta-learning is T701; only layers that were put back into train mode by a call on a part are N307.",
    source="LearningToCompare_FSL#48",
    look=look,
    sound=sound,
)
