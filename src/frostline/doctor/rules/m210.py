"""M210: switching to eval mode and back changes the model."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import ModeCall
from frostline.audit.seen import ModelSeen, Phase, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, call_at, counted, some
from frostline.findings import Safety, Severity
from frostline.state import names

_RATES = {"p", "drop_prob", "dropout", "dropout_p"}


def look(seen: Seen) -> Iterator[Found]:
    """Settings that were others after an eval phase than before it, and values that the switch itself wrote."""
    for model in seen.models:
        yield from _settings(model)
        yield from _written(seen, model)


def _settings(model: ModelSeen) -> Iterator[Found]:
    looked = next((p for p in model.phases if not p.training), None)
    lost = [(path, before, after) for path, before, after in model.settings if _is_lost(path, after)]
    if looked is None or not lost or not _trained_after(model, looked):
        return
    path, before, after = lost[0]
    evidence = [
        f"{path}: {before} in the training pass before, {after} in the one after",
        f"eval mode in between, in the pass at {at(looked.place)}",
    ]
    if len(lost) > 1:
        evidence.append(f"all of them: {some([path for path, _, _ in lost])}")
    yield Found(
        message=f"{counted(len(lost), 'dropout rate')} of {model.name} went to 0 in eval mode and stayed there",
        model=model.name,
        paths=tuple(dict.fromkeys(names.parent(path) for path, _, _ in lost)),
        evidence=tuple(evidence),
        remedy="leave the rate alone and use it only where self.training is true",
        severity=Severity.ERROR,
        safety=Safety.MANUAL,
        place=looked.place,
    )


def _is_lost(path: str, after: str) -> bool:
    return path.rpartition(".")[2] in _RATES and after in {"0", "0.0"}


def _trained_after(model: ModelSeen, looked: Phase) -> bool:
    return any(p.training and p.first > looked.first for p in model.phases) and any(
        p.training and p.first < looked.first for p in model.phases
    )


def _written(seen: Seen, model: ModelSeen) -> Iterator[Found]:
    calls = seen.of(ModeCall, lambda e: e.model == model.name and bool(e.changed))
    evals = [call for call in calls if not call.mode]
    if not evals:
        return
    first = evals[0]
    back = next((e for e in seen.of(ModeCall) if e.model == model.name and e.mode and e.at > first.at), None)
    kept = back is not None and not set(first.changed) & set(back.changed)
    paths = tuple(dict.fromkeys(first.changed))
    evidence = [f"{call_at(first.place)} wrote {some(paths)}"]
    if back is None:
        evidence.append("it was not switched back in the time that was watched")
    elif kept:
        evidence.append(f"{call_at(back.place)} did not write {'it' if len(paths) == 1 else 'them'} back")
    else:
        evidence.append(f"{call_at(back.place)} wrote again; what is added and taken off again is rounded twice")
    yield Found(
        message=f"eval() itself changed {counted(len(paths), 'tensor')} of {model.name}"
        + (", and train() did not change it back" if kept and len(paths) == 1 else "")
        + (", and train() did not change them back" if kept and len(paths) > 1 else ""),
        model=model.name,
        paths=paths,
        evidence=tuple(evidence),
        remedy="keep the sum apart from the weight, or undo it exactly in train(); save only in train mode",
        severity=Severity.ERROR if kept else Severity.INFO,
        safety=Safety.MANUAL,
        place=first.place,
    )


def sound(seen: Seen) -> str | None:
    """How many models came back from eval mode as they were."""
    right = [
        model
        for model in seen.models
        if not model.settings
        and (looked := next((p for p in model.phases if not p.training), None)) is not None
        and _trained_after(model, looked)
    ]
    return f"{counted(len(right), 'model')} came back from eval mode as it was" if right else None


RULE = Rule(
    code="M210",
    what="Compares the settings of all modules, and the values of their tensors around `eval()` and `train()`, "
    "before and after a phase in eval mode.",
    why="A look at the model must not change it. A `forward` that sets its dropout rate to 0 when it is not training "
    "never sets it back: from the first validation on there is no dropout. An adapter that is merged into the weight "
    "by `eval()` is in every file that is saved in eval mode, and is rounded each time.",
    evidence="The setting before and after, the tensors that the switch wrote, and the lines; from the second "
    "training phase on.",
    example="def forward(self, x):\n    if not self.training:\n        self.dropout_p = 0.0\n    return F.dropout(x, "
    "self.dropout_p)",
    instead="def forward(self, x):\n    return F.dropout(x, self.dropout_p, training=self.training)",
    remedy="Use the mode where the setting is used, and write nothing in `eval()` or `forward()`.",
    safety=Safety.MANUAL,
    how_safe="manual: the module's code has to be edited; which value was meant is not known",
    false_alarms="A schedule that takes a dropout rate down to 0 between two epochs. Adapters that merge in `eval()` "
    "and unmerge in `train()` are only an info.",
    source="Megatron-LM PR411, litgpt PR296, microsoft/LoRA#61",
    look=look,
    sound=sound,
)
