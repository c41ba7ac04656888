"""C508: a checkpoint of a sharded model lacks frozen parameters."""

from __future__ import annotations

import linecache
from collections.abc import Iterator

from frostline.audit.seen import ModelSeen, Seen, TensorSeen, total
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import SHARDING, counted, saved_of, some, whole_part, wrapped_by
from frostline.findings import Safety, Severity

# Switches that leave frozen parameters out on purpose.
_ON_PURPOSE = ("ignore_frozen_params=True", "exclude_frozen_parameters=True")


def look(seen: Seen) -> Iterator[Found]:
    """Frozen parameters of sharded models that no file has, where the trained ones were saved."""
    for model in seen.models:
        wrapped = wrapped_by(seen, model.name, *SHARDING)
        saves, saved = saved_of(model, seen)
        lost = _lost(model, saved)
        held = [t for t in model.parameters if t.path in saved]
        if wrapped is None or not held or not lost or whole_part(saved, model):
            continue
        meant = _is_meant(model, seen)
        evidence = [
            f"saved: {counted(len(held), 'parameter')} with {total(held):,} values",
            f"frozen, and in no file: {some([t.path for t in lost])}, with {total(lost):,} values",
            f"sharded by {wrapped.wrapper} at {wrapped.place}",
        ]
        evidence.append(
            "they were left out by name, or the model has adapters: then the base has to come from elsewhere"
            if meant
            else "the file can only be read into a model that has these parameters from elsewhere"
        )
        yield Found(
            message=f"the checkpoint of the sharded {model.name} lacks {counted(len(lost), 'frozen parameter')}",
            model=model.name,
            paths=tuple(t.path for t in lost),
            evidence=tuple(evidence),
            remedy=f"get_model_state_dict({model.name}, options=StateDictOptions(full_state_dict=True)), "
            "which gathers frozen parameters too",
            severity=Severity.INFO if meant else Severity.WARNING,
            safety=Safety.UNSAFE,
            place=saves[-1].place,
            inferred=True,
        )


def _lost(model: ModelSeen, saved: set[str]) -> list[TensorSeen]:
    return [
        t
        for t in model.parameters
        if not t.trainable and not t.trainable_now and t.path not in saved and not saved.intersection(t.aliases)
    ]


def _is_meant(model: ModelSeen, seen: Seen) -> bool:
    if any("adapter" in module.kinds for module in model.modules.values()):
        return True
    lines = (line.replace(" ", "") for file in seen.sources for line in linecache.getlines(file))
    return any(switch in line for line in lines for switch in _ON_PURPOSE)


def sound(seen: Seen) -> str | None:
    """How many frozen parameters of sharded models are in a file."""
    kept = 0
    for model in seen.models:
        saves, saved = saved_of(model, seen)
        if saves and wrapped_by(seen, model.name, *SHARDING) is not None:
            kept += sum(1 for t in model.parameters if not t.trainable and t.path in saved)
    return f"{counted(kept, 'frozen parameter')} of a sharded model went into a file" if kept else None


RULE = Rule(
    code="C508",
    what="Compares what went into files with the frozen parameters of models that are sharded (`fully_shard`, FSDP).",
    why="Sharded parameters have to be gathered before they can be saved. Code that gathers what has a gradient, or "
    "an engine that leaves out what is frozen, writes a file that looks whole: it loads into the same run, and "
    "nowhere else.",
    evidence="The frozen parameters of the model that no file of the run has; at the end of the watch.",
    example="state = {n: p.full_tensor() for n, p in model.named_parameters() if p.requires_grad}\n"
    'torch.save(state, "checkpoint.pt")',
    instead="options = StateDictOptions(full_state_dict=True)\n"
    'torch.save(get_model_state_dict(model, options=options), "checkpoint.pt")',
    remedy="Gather every parameter, or name the file for what it is: the trained part.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the file gets other contents, and grows",
    false_alarms="A file of the trained part alone, on purpose. Where the model has adapters, where one whole module "
    "was saved, or where a switch says so (`ignore_frozen_params=True`), it is information, or not told. That a file "
    "lacks the optimizer's state of frozen parameters is not seen here.",
    source="DeepSpeed#6771, DeepSpeed#5489, DeepSpeed PR3205, pytorch#192202, pytorch PR192307",
    look=look,
    sound=sound,
)
