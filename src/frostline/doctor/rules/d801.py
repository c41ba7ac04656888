"""D801: requires_grad changed after the model was wrapped for distributed training."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from frostline.audit.events import Backward, GradFlag, Wrapped
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, some, wrapped_by
from frostline.findings import Safety, Severity

_DDP = "DistributedDataParallel"


def look(seen: Seen) -> Iterator[Found]:
    """Parameters whose flag, once a model was wrapped, is not what the wrapper took it for; each way one finding."""
    for model in seen.models:
        wraps = seen.of(Wrapped, lambda e, m=model: e.model == m.name and e.wrapper == _DDP)
        for wrapped, following in zip_longest(wraps, wraps[1:]):
            passes = [b.at for b in seen.of(Backward) if following is None or b.at < following.at]
            last = max(passes, default=-1)
            thawed = [flag for flag in _flips(model, wrapped, seen, value=True) if flag.at < last]
            frozen = [flag for flag in _flips(model, wrapped, seen, value=False) if flag.at < last]
            if thawed:
                yield _thawed(thawed, wrapped, model)
            # With this switch, DDP asks in each pass which parameters take part.
            if frozen and not wrapped.settings.get("find_unused_parameters"):
                yield _frozen(frozen, wrapped, model, seen)


def _thawed(flags: list[GradFlag], wrapped: Wrapped, model: ModelSeen) -> Found:
    paths = tuple(flag.path for flag in flags)
    return Found(
        message=f"{counted(len(flags), 'parameter')} became trainable after {_DDP} was made: "
        f"{'its gradient is' if len(flags) == 1 else 'their gradients are'} not averaged",
        model=model.name,
        paths=paths,
        evidence=(
            f"wrapped at {wrapped.place}, when {counted(len(wrapped.trainable), 'parameter')} required gradients",
            f"requires_grad=True later, at {flags[0].place}: {some(paths)}",
            "a wrapper averages the parameters that required gradients when it was made, and no others",
        ),
        remedy=f"{model.name}.requires_grad_(...) first, then {_DDP}({model.name}); wrap anew when that changes",
        severity=Severity.ERROR,
        safety=Safety.UNSAFE,
        place=flags[0].place,
    )


def _frozen(flags: list[GradFlag], wrapped: Wrapped, model: ModelSeen, seen: Seen) -> Found:
    paths = tuple(flag.path for flag in flags)
    evidence = [
        f"wrapped at {wrapped.place}, when {counted(len(wrapped.trainable), 'parameter')} required gradients",
        f"requires_grad=False later, at {flags[0].place}: {some(paths)}",
        "the wrapper goes on waiting for their gradients",
    ]
    if seen.crash is not None and "reduction" in seen.crash.text:
        evidence.append(f"so at {seen.crash.place}: {seen.crash.text.strip().splitlines()[0].partition('. ')[0]}")
    return Found(
        message=f"{counted(len(flags), 'parameter')} became frozen after {_DDP} was made",
        model=model.name,
        paths=paths,
        evidence=tuple(evidence),
        remedy=f"freeze first, then {_DDP}({model.name}); or find_unused_parameters=True",
        severity=Severity.ERROR if seen.crash is not None else Severity.WARNING,
        safety=Safety.UNSAFE,
        place=flags[0].place,
    )


def _flips(model: ModelSeen, wrapped: Wrapped, seen: Seen, *, value: bool) -> list[GradFlag]:
    """The first flag of each parameter that made it other than it was when wrapped, and that no later one took back."""
    flags: dict[str, list[GradFlag]] = {}
    for flag in seen.of(GradFlag, lambda e: e.model == model.name and e.at > wrapped.at):
        flags.setdefault(flag.path, []).append(flag)
    # A part that is switched off for another optimizer's pass, and on again, is what it was.
    return [
        of_path[0]
        for path, of_path in flags.items()
        if (path in wrapped.trainable) is not value and all(flag.value is value for flag in of_path)
    ]


def sound(seen: Seen) -> str | None:
    """How many parameters of wrapped models are trainable as they were when wrapped."""
    kept = 0
    for model in seen.models:
        wrapped = wrapped_by(seen, model.name, _DDP)
        if wrapped is not None:
            kept += sum(1 for t in model.parameters if t.trainable_now is (t.path in wrapped.trainable))
    return f"{counted(kept, 'parameter')} kept requires_grad since the model was wrapped" if kept else None


RULE = Rule(
    code="D801",
    what="Compares what required gradients when `DistributedDataParallel` was made with every write of "
    "`requires_grad` after that.",
    why="The wrapper decides once, when it is made, which gradients it averages. A parameter that becomes trainable "
    "later gets a gradient in each process and never an average: the copies drift apart without an error, and what is "
    "saved is one of them. One that is frozen later is waited for, and the next pass fails.",
    evidence="The parameters, the line that wrapped and the line that changed the flag; from the first backward pass "
    "after it.",
    example="model = DistributedDataParallel(net)\nif epoch == 5:\n    net.backbone.requires_grad_(True)",
    instead="if epoch == 5:\n    net.backbone.requires_grad_(True)\n    model = DistributedDataParallel(net)",
    remedy="Set the flags first and wrap then; wrap anew when they change.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: a new wrapper broadcasts the parameters of the first process to all",
    false_alarms="A part that is trained in each process on its own, on purpose. Parameters that are switched off and "
    "on again, as for a discriminator, are not told; nor are frozen ones with `find_unused_parameters=True`.",
    source="pytorch#22049, transformers#416, ClassyVision PR398, Lightning#20340",
    look=look,
    sound=sound,
    explains=("D807",),
)
