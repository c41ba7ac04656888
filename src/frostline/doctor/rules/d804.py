"""D804: buffers differ between processes."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import Save
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import SHARDING, counted, differing, some, wrapped_by
from frostline.findings import Safety, Severity

_DDP = "DistributedDataParallel"


def look(seen: Seen) -> Iterator[Found]:
    """Running statistics that are not the same in all processes, and that nothing makes the same again."""
    for model in seen.models:
        apart = _apart(model, seen)
        if not apart or _is_broadcast(model, seen):
            continue
        wrapped = wrapped_by(seen, model.name, _DDP)
        layers = tuple(dict.fromkeys(model.tensors[path].module for path in apart))
        first = apart[0]
        digests = [f"rank {r.rank} {r.tensors[model.name][first][:8]}" for r in seen.ranks if model.name in r.tensors]
        evidence = [
            f"{first}, digests: {', '.join(digests[:4])}",
            f"layers: {some(layers)}",
            f"broadcast_buffers=False at {wrapped.place}: each process keeps the statistics of its own data"
            if wrapped is not None
            else "the model is not wrapped: nothing carries statistics from one process to another",
        ]
        saves = seen.of(Save, lambda e, name=model.name: bool(e.saved.get(name)))
        if saves:
            evidence.append(f"saved at {saves[-1].place}: those of rank {seen.rank} only")
        yield Found(
            message=f"the statistics of {counted(len(layers), 'normalization layer')} of {model.name} differ between "
            f"{len(seen.ranks)} processes",
            model=model.name,
            paths=apart,
            evidence=tuple(evidence),
            remedy=f"nn.SyncBatchNorm.convert_sync_batchnorm({model.name}) before wrapping, or average the buffers "
            "before evaluating and saving",
            severity=Severity.WARNING,
            safety=Safety.UNSAFE,
            place=wrapped.place if wrapped is not None else None,
        )


def _apart(model: ModelSeen, seen: Seen) -> tuple[str, ...]:
    if wrapped_by(seen, model.name, *SHARDING) is not None:
        return ()
    return differing(seen, model, [t.path for t in model.buffers if t.role.startswith("norm.")])


def _is_broadcast(model: ModelSeen, seen: Seen) -> bool:
    """Whether the wrapper hands the first process's buffers to all before each pass, as it does by default.

    They differ after the last pass all the same; those of the first process are the ones that count.
    """
    wrapped = wrapped_by(seen, model.name, _DDP)
    return wrapped is not None and wrapped.settings.get("broadcast_buffers", True)


def sound(seen: Seen) -> str | None:
    """How many statistics agree between the processes, or are handed to all in each pass."""
    if len(seen.ranks) < 2:
        return None
    count = sum(
        1
        for model in seen.models
        for t in model.buffers
        if t.role.startswith("norm.") and (_is_broadcast(model, seen) or not _apart(model, seen))
    )
    return (
        f"{counted(count, 'statistic')} of {len(seen.ranks)} processes agree, or are broadcast in each pass"
        if count
        else None
    )


RULE = Rule(
    code="D804",
    what="Compares digests of the running statistics of all processes, which each writes into the run's store at the "
    "end of the watch.",
    why="With `broadcast_buffers=False` (newer: `forward_sync_buffers=False`) every process has statistics of its own "
    "data. Each evaluates another network, the scores of the processes differ, and the file that rank 0 writes holds "
    "the statistics of its share of the data.",
    evidence="The digests of the statistics in each process, and how the model was wrapped; at the end of the watch.",
    example="model = DistributedDataParallel(net, broadcast_buffers=False)  # net has batch norm",
    instead="net = nn.SyncBatchNorm.convert_sync_batchnorm(net)\nmodel = DistributedDataParallel(net)",
    remedy="Synchronize the layers, leave `broadcast_buffers` on, or average the buffers before evaluating and saving.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the layers then normalize otherwise in training, or have other statistics",
    false_alarms="Statistics that are averaged later, before they are used. With `broadcast_buffers=True` (the "
    "default) the buffers differ too after the last pass, and those of rank 0 are handed to all in the next: not "
    "told.",
    source="pytorch#13711, pytorch#30718, mmdetection#2539, mmdetection PR4582, timm#110, fvcore#152",
    look=look,
    sound=sound,
)
