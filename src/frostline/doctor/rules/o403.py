"""O403: frozen parameters are kept in the optimizer."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import OptimizerSeen, Seen, TensorSeen, total
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, parts_of, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Parameters of an optimizer that were frozen all the time and never had a gradient."""
    for optimizer in seen.optimizers:
        if not optimizer.steps:
            continue
        frozen = _frozen(optimizer, seen)
        if not frozen or _holds_nothing_else(optimizer, seen):
            continue
        by_model: dict[str, list[TensorSeen]] = {}
        for model, tensor in frozen:
            by_model.setdefault(model, []).append(tensor)
        keys = [key for group in optimizer.groups for key in group.paths]
        held = sum((t := seen.tensor(key)) is not None and t.must_stay == "hold" for key in keys)
        among = f"{len(keys):,}, beside {held:,} that a hold keeps" if held else f"{len(keys):,}"
        for name, tensors in by_model.items():
            model = seen.model(name)
            assert model is not None
            yield Found(
                message=f"{optimizer.name} keeps {counted(len(tensors), 'frozen parameter')} among its {among}",
                model=name,
                paths=tuple(t.path for t in tensors),
                evidence=(
                    (
                        f"requires_grad=False in {some(parts_of([t.path for t in tensors], model))}: "
                        f"{counted(total(tensors), 'element')}"
                    ),
                    "no gradient at any step: they were passed over, and no state was kept for them",
                ),
                remedy=f"nothing has to be done; torch.optim.{optimizer.type}((p for p in {name}.parameters() if "
                "p.requires_grad), ...) leaves them out",
                severity=Severity.INFO,
                safety=Safety.UNSAFE,
                place=optimizer.made,
            )


def _frozen(optimizer: OptimizerSeen, seen: Seen) -> list[tuple[str, TensorSeen]]:
    found: list[tuple[str, TensorSeen]] = []
    for group in optimizer.groups:
        for key in group.paths:
            tensor = seen.tensor(key)
            if tensor is None or tensor.trainable or tensor.trainable_now or tensor.gradients:
                continue
            # A hold guards the optimizer's step as well: there keeping them is the wanted state.
            if tensor.steps and tensor.must_stay != "hold":
                found.append((key[0], tensor))
    return found


def _holds_nothing_else(optimizer: OptimizerSeen, seen: Seen) -> bool:
    """Then O413 says it."""
    tensors = [seen.tensor(key) for group in optimizer.groups for key in group.paths]
    return all(t is not None and not t.trainable_now for t in tensors)


def sound(seen: Seen) -> str | None:
    """That every parameter of the optimizers is trainable."""
    keys = [key for o in seen.optimizers if o.steps for group in o.groups for key in group.paths if key[0]]
    tensors = [tensor for key in keys if (tensor := seen.tensor(key)) is not None]
    frozen = any(t.must_stay == "requires_grad" for model in seen.models for t in model.parameters)
    if not tensors or not frozen or not all(t.trainable_now for t in tensors):
        return None
    return f"all {counted(len(tensors), 'parameter')} of the optimizers are trainable; frozen ones were left out"


RULE = Rule(
    code="O403",
    what="Lists parameters of an optimizer that were frozen from the first step on and never had a gradient.",
    why="It is harmless as long as their gradients are `None`: the step passes them over, and no state is kept. "
    "They are walked over at every step, though, and one stray gradient (see F109, F110) is enough for weight decay "
    "and momentum to move them.",
    evidence="Which parts they are and how many elements; from the first step on.",
    example="model.backbone.requires_grad_(False)\noptimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)",
    instead="model.backbone.requires_grad_(False)\n"
    "optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)",
    remedy="None is needed. Leave them out to be safe from stray gradients; keep them in if they are to be unfrozen "
    "later, since then groups, schedulers and checkpoints keep their layout.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: without them the optimizer's state has another layout, and what is unfrozen later has no "
    "optimizer",
    false_alarms="Keeping them in on purpose, to unfreeze them later. It is for your information only. Parameters "
    "under a hold of `frostline.freeze` are not listed.",
    source="transformers#21182",
    look=look,
    sound=sound,
)
