"""N304: averaged weights were used with statistics that do not belong to them."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import UpdateBN
from frostline.audit.seen import ModelSeen, Phase, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """An averaged model that ran in eval mode before any pass in train mode made statistics for it."""
    for model in seen.models:
        phase = _used(seen, model)
        if phase is None:
            continue
        layers = _layers(model)
        weighted = _has(model, "averaged_weighted")
        yield Found(
            message=f"{model.name} has averaged weights, and {counted(len(layers), 'normalization layer')} with "
            "statistics of the last weights",
            model=model.name,
            paths=tuple(layers),
            evidence=(
                f"used in eval mode at {at(phase.place)}",
                "no update_bn and no pass in train mode came before it; statistics are copied, not averaged",
                f"statistics in {some(layers)}",
            ),
            remedy=f"torch.optim.swa_utils.update_bn(train_loader, {model.name}) before it is used",
            severity=Severity.INFO if weighted else Severity.ERROR,
            safety=Safety.UNSAFE,
            place=phase.place,
        )


def _layers(model: ModelSeen) -> list[str]:
    return [path for path, module in model.modules.items() if "stats" in module.kinds]


def _has(model: ModelSeen, kind: str) -> bool:
    return any(kind in module.kinds for module in model.modules.values())


def _made(seen: Seen, model: ModelSeen, before: int) -> bool:
    """Whether statistics were estimated for the averaged weights before an event."""
    by_torch = any(event.model == model.name and event.at < before for event in seen.of(UpdateBN))
    return by_torch or any(p.training and p.moved and p.first < before for p in model.phases)


def _used(seen: Seen, model: ModelSeen) -> Phase | None:
    if not _has(model, "averaged") or _has(model, "averaged_buffers") or not _layers(model) or not seen.steps:
        return None
    phase = next((p for p in model.phases if not p.training and p.step > 0), None)
    return None if phase is None or _made(seen, model, phase.first) else phase


def sound(seen: Seen) -> str | None:
    """Which averaged models got statistics of their own."""
    right = [m.name for m in seen.models if _has(m, "averaged") and _layers(m) and _made(seen, m, 2**63)]
    return f"statistics were estimated for the averaged weights of {' and '.join(right)}" if right else None


RULE = Rule(
    code="N304",
    what="Looks for a `torch.optim.swa_utils.AveragedModel` with running statistics that is used in eval mode, and "
    "for an `update_bn` or a pass in train mode before that.",
    why="The average of many weights gives activations that none of them gave. Running statistics that were gathered "
    "by the last weights do not fit: accuracy can fall to chance although the averaged weights are better.",
    evidence="The averaged model, the pass in eval mode, its layers, and that nothing estimated their statistics; at "
    "the first pass in eval mode.",
    example="swa_model.update_parameters(model)\nswa_model.eval()\nvalidate(swa_model)",
    instead="swa_model.update_parameters(model)\ntorch.optim.swa_utils.update_bn(train_loader, swa_model)\n"
    "swa_model.eval()\nvalidate(swa_model)",
    remedy="Call `torch.optim.swa_utils.update_bn(train_loader, swa_model)`, or `frostline.recalibrate`, before use.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: it needs training data, and the outputs change",
    false_alarms="An exponential moving average stays close to the last weights, so that their statistics nearly "
    "fit: an info. Weights that are averaged by hand into a plain model are not seen.",
    source="Izmailov et al. 2018 (arXiv:1803.05407) section 3; composer#624, timgaripov/swa#7",
    look=look,
    sound=sound,
)
