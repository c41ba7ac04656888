"""D808: a compiled step kept an old state of freezing."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import GradFlag, Step
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Parameters of compiled models that were unfrozen in training, are in an optimizer that steps, and do not move."""
    for model in seen.models:
        flags = _stale(model, seen) if model.compiled else []
        if not flags:
            continue
        paths = tuple(flag.path for flag in flags)
        owner = model.tensors[paths[0]].owner
        steps = _steps_after(flags[0], owner[0] if owner else "", seen)
        yield Found(
            message=f"{counted(len(paths), 'parameter')} of the compiled {model.name} "
            f"{'was' if len(paths) == 1 else 'were'} unfrozen and did not move in {counted(steps, 'step')} since",
            model=model.name,
            paths=paths,
            evidence=(
                f"requires_grad=True at {flags[0].place}, after {counted(flags[0].step, 'step')}: {some(paths)}",
                f"in {owner[0] if owner else 'an optimizer'}, which stepped; they had no gradient and kept their bytes",
                "the compiled graph was made while they were frozen, and computes no gradient for them",
            ),
            remedy=f"torch.compiler.reset() after unfreezing, or compile {model.name} anew",
            severity=Severity.ERROR,
            safety=Safety.UNSAFE,
            place=flags[0].place,
            inferred=True,
        )


def _stale(model: ModelSeen, seen: Seen) -> list[GradFlag]:
    found: dict[str, GradFlag] = {}
    for flag in seen.of(GradFlag, lambda e: e.model == model.name and e.value and not e.before and e.step > 0):
        tensor = model.tensors.get(flag.path)
        if tensor is None or tensor.owner is None or not tensor.trainable_now or tensor.trainable:
            continue
        if not (tensor.moved or tensor.moved_in_step or tensor.gradients) and _steps_after(flag, tensor.owner[0], seen):
            found.setdefault(flag.path, flag)
    return list(found.values())


def _steps_after(flag: GradFlag, optimizer: str, seen: Seen) -> int:
    return sum(1 for step in seen.of(Step) if step.at > flag.at and step.optimizer == optimizer and step.backwards)


def sound(seen: Seen) -> str | None:
    """How many parameters that were unfrozen in a compiled model train since."""
    kept = 0
    for model in seen.models:
        thawed = {e.path for e in seen.of(GradFlag, lambda e, m=model: e.model == m.name and e.value and e.step > 0)}
        kept += sum(
            1 for t in model.parameters if model.compiled and t.path in thawed and not t.trainable and t.moved_in_step
        )
    return (
        f"{counted(kept, 'parameter')} that {'was' if kept == 1 else 'were'} unfrozen in a compiled model train"
        if kept
        else None
    )


RULE = Rule(
    code="D808",
    what="Looks, in compiled models, for parameters that were frozen when training began, were unfrozen later, belong "
    "to an optimizer that steps, and neither move nor get a gradient.",
    why="A compiled graph is made for the flags of its time. Where the guards that would notice a new flag are "
    "switched off, or fail, the old graph goes on: the part that was unfrozen never trains, although every flag and "
    "every group of the optimizer says that it does.",
    evidence="The parameters, the line that unfroze them, and the steps since; from the first step after it.",
    example='step = torch.compile(model, options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe})\n'
    "...\nmodel.backbone.requires_grad_(True)",
    instead="model.backbone.requires_grad_(True)\ntorch.compiler.reset()",
    remedy="Compile anew after unfreezing: `torch.compiler.reset()`, and keep the guards.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the part begins to train, as it was meant to",
    false_alarms="A part that was unfrozen and does not run yet, or whose gradient is cut off elsewhere (`detach`, a "
    "frozen mask): it is compiled, but that is not the reason.",
    source="pytorch#115607, pytorch#139476",
    look=look,
    sound=sound,
    explains=("H602", "F117"),
)
