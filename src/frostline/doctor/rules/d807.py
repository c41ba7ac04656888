"""D807: parameters differ between processes."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import SHARDING, counted, differing, some, wrapped_by
from frostline.findings import Safety, Severity

_DDP = "DistributedDataParallel"


def look(seen: Seen) -> Iterator[Found]:
    """Parameters that every process has whole, and that are not the same in all of them at the end."""
    for model in seen.models:
        apart = _apart(model, seen)
        if not apart:
            continue
        first = apart[0]
        wrapped = wrapped_by(seen, model.name, _DDP)
        ranks = [rank for rank in seen.ranks if model.name in rank.tensors]
        steps = sorted({rank.steps for rank in ranks})
        trainable = {rank.trainable.get(model.name, ()) for rank in ranks}
        evidence = [
            f"{first}, digests: {', '.join(f'rank {r.rank} {r.tensors[model.name][first][:8]}' for r in ranks[:4])}",
            f"in all: {some(apart)}",
            f"wrapped by {_DDP} at {wrapped.place}"
            if wrapped is not None
            else "the model is not wrapped: nothing made the processes begin with the same values, or kept them equal",
        ]
        if len(steps) > 1:
            evidence.append(f"optimizer steps: {', '.join(f'rank {r.rank} {r.steps}' for r in ranks[:4])}")
        if len(trainable) > 1:
            evidence.append("the processes do not have the same parameters frozen")
        yield Found(
            message=f"{counted(len(apart), 'parameter')} of {model.name} {'differs' if len(apart) == 1 else 'differ'} "
            f"between {len(ranks)} processes",
            model=model.name,
            paths=apart,
            evidence=tuple(evidence),
            remedy=f"{_DDP}({model.name}), made after everything is loaded, replaced and frozen, "
            "and called in every training pass",
            severity=Severity.ERROR if wrapped is not None else Severity.WARNING,
            safety=Safety.UNSAFE,
            place=wrapped.place if wrapped is not None else model.phases[0].place if model.phases else None,
            inferred=wrapped is None,
        )


def _apart(model: ModelSeen, seen: Seen) -> tuple[str, ...]:
    if not model.trained or wrapped_by(seen, model.name, *SHARDING) is not None:
        return ()
    return differing(seen, model, [t.path for t in model.parameters])


def sound(seen: Seen) -> str | None:
    """How many parameters are the same in all processes."""
    if len(seen.ranks) < 2 or any(_apart(model, seen) for model in seen.models):
        return None
    count = sum(
        len(model.parameters)
        for model in seen.models
        if model.trained and wrapped_by(seen, model.name, *SHARDING) is None
    )
    return f"{counted(count, 'parameter')} are equal in {len(seen.ranks)} processes" if count else None


RULE = Rule(
    code="D807",
    what="Compares digests of the parameters of all processes, which each writes into the run's store at the end of "
    "the watch.",
    why="Data-parallel training is right as long as every process has the same parameters. Once they differ, the "
    "gradients that are averaged belong to different points, the learning curve of rank 0 says nothing about the "
    "others, and what is saved is one of several models.",
    evidence="The digests in each process, their numbers of steps, and how the model was wrapped; at the end of the "
    "watch.",
    example="for p in model.parameters():\n    dist.all_reduce(p.grad)  # but each process drew its own weights",
    instead="model = DistributedDataParallel(model)  # broadcasts the weights of rank 0 first",
    remedy="Wrap the model once it is complete, and call the wrapper; with averaging by hand, broadcast the "
    "parameters at the start and average every gradient.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the processes then train one model, not several",
    false_alarms="Processes that train different models under one name on purpose: a search over settings, local "
    "steps between averages. Sharded models are not compared, nor models that do not train.",
    source="DeepSpeed PR1801",
    look=look,
    sound=sound,
    explains=("D804",),
)
