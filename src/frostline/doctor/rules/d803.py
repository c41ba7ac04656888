"""D803: the distributed wrapper was bypassed: gradients are not averaged."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import Backward, Forward
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted, wrapped_by
from frostline.findings import Safety, Severity

_DDP = "DistributedDataParallel"


def look(seen: Seen) -> Iterator[Found]:
    """Training passes of the module inside of a wrapper, in steps for which the wrapper itself did not run."""
    for model in seen.models:
        past = _past(model, seen)
        if not past:
            continue
        through = sum(1 for forward in _training(model, seen) if not forward.past_wrapper)
        wrapped = wrapped_by(seen, model.name, _DDP)
        evidence = [f"passes with gradients: {len(past)} past the wrapper, {through} through it"]
        if wrapped is not None:
            evidence.append(f"wrapped at {at(wrapped.place)}")
        evidence.append("the wrapper averages gradients only of passes that went through its own forward")
        yield Found(
            message=f"{counted(len(past), 'training pass', 'training passes')} of {model.name} went past its wrapper: "
            "gradients were not averaged",
            model=model.name,
            evidence=tuple(evidence),
            remedy="call the wrapper itself: ddp(x), not ddp.module(x)",
            severity=Severity.ERROR,
            safety=Safety.UNSAFE,
            place=past[0].place,
        )


def _training(model: ModelSeen, seen: Seen) -> list[Forward]:
    return seen.of(Forward, lambda e: e.model == model.name and e.grad and not e.path)


def _past(model: ModelSeen, seen: Seen) -> list[Forward]:
    """Passes past the wrapper that a backward followed, and that no pass through it accompanied in the same step."""
    passes = _training(model, seen)
    through = {forward.step for forward in passes if not forward.past_wrapper}
    last = max((backward.at for backward in seen.of(Backward)), default=-1)
    return [f for f in passes if f.past_wrapper and f.step not in through and f.at < last]


def sound(seen: Seen) -> str | None:
    """How many training passes went through the wrapper."""
    models = [model for model in seen.models if wrapped_by(seen, model.name, _DDP) is not None]
    if any(_past(model, seen) for model in models):
        return None
    count = sum(1 for model in models for forward in _training(model, seen) if not forward.past_wrapper)
    return f"{counted(count, 'training pass', 'training passes')} went through {_DDP}" if count else None


RULE = Rule(
    code="D803",
    what="Counts, for each model that `DistributedDataParallel` wraps, the passes with gradients that went through "
    "the wrapper and those that called the module inside of it.",
    why="The wrapper prepares the averaging of gradients in its own `forward`. `ddp.module(x)` skips that: each "
    "process trains by itself on its part of the data, nothing fails, and the model that is saved has seen a fraction "
    "of it.",
    evidence="The passes past the wrapper and their line; from the first backward pass after one.",
    example="ddp = DistributedDataParallel(model)\nloss = criterion(ddp.module(x), y)\nloss.backward()",
    instead="ddp = DistributedDataParallel(model)\nloss = criterion(ddp(x), y)\nloss.backward()",
    remedy="Call the wrapper in training; where a method other than `forward` is wanted, let `forward` call it.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: gradients become averages over the processes, as they were meant to be",
    false_alarms="Passes whose gradients are averaged by hand. Validation without gradients, and passes beside one "
    "through the wrapper in the same step, are not told.",
    source="TrainCheck x-jxmnop",
    look=look,
    sound=sound,
    explains=("D807",),
)
