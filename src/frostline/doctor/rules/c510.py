"""C510: a tensor is not initialized: it holds NaN or absurd values."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import Load
from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Parameters and statistics that were NaN, infinite or absurdly large before the first step, or after a load."""
    for model in seen.models:
        odd = _odd(model, seen)
        if not odd:
            continue
        loads = seen.of(Load, lambda e, m=model: e.model == m.name and not e.error and _before_training(e, m))
        never = {path for path in odd if any(path in _missing(load) for load in loads)}
        broken = {path: how for path, how in odd.items() if how != "huge"}
        # A large value that came with a checkpoint is what somebody trained.
        harmless = not broken and not never
        modules = tuple(dict.fromkeys(model.tensors[path].module for path in odd))
        load = next((load for load in reversed(loads) if never.intersection(_missing(load))), None) or (
            loads[-1] if loads else None
        )
        evidence = [
            f"{path}: {_HOW[how]}, shape {tuple(model.tensors[path].shape)}"
            for path, how in sorted(odd.items(), key=lambda item: item[1] == "huge")[:3]
        ]
        if never and load is not None:
            evidence.append(
                f"{some([path for path in odd if path in never])}: did not come with the load at {load.place}"
            )
        elif load is not None:
            evidence.append(f"they came like this with the load at {load.place}, or were there before it")
        worst = "not finite" if broken else f"larger than {_LIMIT}"
        yield Found(
            message=f"{counted(len(odd), 'tensor')} of {counted(len(modules), 'module')} "
            f"{'was' if len(odd) == 1 else 'were'} {worst} before the first step",
            model=model.name,
            paths=tuple(odd),
            evidence=tuple(evidence),
            remedy="; ".join(f'{model.name}.get_submodule("{m}").reset_parameters()' for m in modules[:2])
            + " before training, or give them values by hand",
            severity=Severity.INFO if harmless else Severity.ERROR if broken else Severity.WARNING,
            safety=Safety.UNSAFE,
            place=load.place if load is not None else model.phases[0].place if model.phases else None,
        )


_LIMIT = "10000"
_HOW = {"nan": "holds NaN", "inf": "holds an infinity", "huge": f"holds a value larger than {_LIMIT}"}


def _odd(model: ModelSeen, seen: Seen) -> dict[str, str]:
    """Path to what is odd: as the model began to train, or, where it did not, after its last load."""
    if model.contract_at is not None:
        return {t.path: t.odd_at_start for t in model.tensors.values() if t.odd_at_start and _counts(t, t.odd_at_start)}
    last = seen.of(Load, lambda e: e.model == model.name and not e.error)[-1:]
    found = {path: how for load in last for how in ("nan", "huge") for path in _paths(load, how)}
    return {path: how for path, how in found.items() if path in model.tensors and _counts(model.tensors[path], how)}


def _counts(tensor: TensorSeen, how: str) -> bool:
    """A mask may hold infinities, and a variance may be large: neither is a sign of anything."""
    return tensor.kind == "parameter" or (how != "huge" and tensor.role in {"norm.mean", "norm.var"})


def _paths(load: Load, how: str) -> tuple[str, ...]:
    paths = load.huge if how == "huge" else load.not_finite
    return tuple(_full(load, path) for path in paths)


def _missing(load: Load) -> set[str]:
    return {_full(load, path) for path in load.missing}


def _full(load: Load, path: str) -> str:
    return f"{load.path}.{path}" if load.path and not path.startswith(f"{load.path}.") else path


def _before_training(load: Load, model: ModelSeen) -> bool:
    return model.contract_at is None or load.at < model.contract_at


def sound(seen: Seen) -> str | None:
    """How many tensors were finite before training."""
    looked = [t for model in seen.models if model.contract_at is not None for t in model.parameters]
    if not looked or any(t.odd_at_start for t in looked):
        return None
    return f"{counted(len(looked), 'parameter')} had finite, ordinary values before the first step"


RULE = Rule(
    code="C510",
    what="Looks at the values of every parameter, and of running statistics, before the first training step, or after "
    "the last load where nothing trains: NaN, infinities, magnitudes above 10,000.",
    why="Memory that was allocated and never written holds whatever was there: zeros on one machine, NaN on another. "
    "It happens to the head whose size did not match (`ignore_mismatched_sizes=True`), to layers that are made on the "
    "meta device or with `torch.empty`, and it passes every check of keys and shapes.",
    evidence="The tensors and what they hold, and whether a load before left them out; before the first step.",
    example='with torch.device("meta"):\n    model = build()\nmodel.to_empty(device="cpu")\n'
    "model.load_state_dict(backbone, strict=False)  # the head keeps what was in memory",
    instead='with torch.device("meta"):\n    model = build()\nmodel.to_empty(device="cpu")\n'
    "model.head.reset_parameters()\nmodel.load_state_dict(backbone, strict=False)",
    remedy="Initialize what the checkpoint does not bring: `reset_parameters()` of the module, or `torch.nn.init`.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: other values are in the model afterwards, drawn at random",
    false_alarms="Parameters that are meant to be above 10,000: where they came with a checkpoint, they are "
    "information only. Buffers other than running statistics (masks with infinities) are not looked at. Uninitialized "
    "memory that happens to hold small numbers cannot be told.",
    source="transformers PR28122",
    look=look,
    sound=sound,
)
