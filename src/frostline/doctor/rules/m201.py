"""M201: validation runs in train mode."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from frostline.audit.events import Backward, Forward, ModeCall
from frostline.audit.seen import ModelSeen, Phase, Seen
from frostline.doctor.passes import Passes, dropping, layers, mode_matters
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, call_at, counted, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Passes without gradients of a model that is in train mode, between or after its training steps."""
    for model in seen.models:
        phases = [phase for phase in _validation(seen, model) if phase.training]
        active = _active(model, phases)
        if not active:
            continue
        moved = tuple(dict.fromkeys(path for phase in phases for path in phase.moved))
        place = phases[0].place
        passes = counted(sum(p.forwards for p in phases), "pass", "passes")
        evidence = [f"{passes} without gradients in train mode, the first at {at(place)}"]
        if moved:
            evidence.append(f"statistics that moved on this data: {some(moved)}")
        evidence.append(f"training=True in {layers(model, active)}: {some(active)}")
        call = _set_by(seen, phases[0])
        if call is not None:
            evidence.append(f"the last to set it was {call_at(call.place)}")
        else:
            evidence.append("nothing had set it: a module that is made is in train mode")
        samples = _is_generator(seen, model)
        yield Found(
            message=f"{layers(model, active)} of {model.name} ran in train mode "
            + ("while samples were drawn" if samples else "in validation"),
            model=model.name,
            paths=active,
            evidence=tuple(evidence),
            remedy=f"call {model.name}.eval() before these passes and {model.name}.train() after them",
            severity=Severity.INFO if samples else Severity.ERROR if model.trained else Severity.WARNING,
            safety=Safety.UNSAFE,
            place=place,
        )


def _set_by(seen: Seen, phase: Phase) -> ModeCall | None:
    calls = seen.of(ModeCall, lambda e: e.model == phase.model and e.mode and not e.path and e.at < phase.first)
    return calls[-1] if calls else None


def _active(model: ModelSeen, phases: list[Phase]) -> tuple[str, ...]:
    """The layers for which it matters, without those whose statistics are declared to move."""
    declared = {t.module for t in model.buffers if t.may_move}
    found = dict.fromkeys(path for phase in phases for path in dropping(model, phase))
    return tuple(path for path in found if path not in declared or "dropout" in model.modules[path].kinds)


def _validation(seen: Seen, model: ModelSeen) -> list[Phase]:
    found = Passes(seen, model).validation
    if found or seen.steps or seen.of(Backward) or any(p.grad for p in model.phases):
        return found
    # A script that only evaluates: nothing trains in it, and nobody has asked for train mode.
    asked = seen.of(ModeCall, lambda e: e.model == model.name and e.mode)
    return [] if asked else [phase for phase in model.phases if phase.forwards > 1]


def _is_generator(seen: Seen, model: ModelSeen) -> bool:
    """Whether what it makes goes into another trained model that sees more than that: the generator of a GAN."""
    grads = seen.of(Forward, lambda e: e.grad)
    mine = sum(e.model == model.name for e in grads)
    followers = {b.model for a, b in pairwise(grads) if a.model == model.name != b.model}
    return any(
        other.trained and mine and sum(e.model == other.name for e in grads) > 1.5 * mine
        for other in seen.models
        if other.name in followers
    )


def sound(seen: Seen) -> str | None:
    """How many validation passes ran in eval mode."""
    right = sum(
        phase.forwards
        for model in seen.models
        if any(mode_matters(module) for module in model.modules.values())
        for phase in _validation(seen, model)
        if not phase.training and not dropping(model, phase)
    )
    return f"{counted(right, 'validation pass', 'validation passes')} ran in eval mode" if right else None


RULE = Rule(
    code="M201",
    what="Looks at every forward pass without gradients of a model that is trained in the same loop, and at its mode.",
    why="In train mode dropout drops, so that the metric is too low and different each time; and batch normalization "
    "normalizes with the batch that is validated and moves its running statistics towards it: the result depends on "
    "how the validation data is batched, and that data gets into the model.",
    evidence="The passes with `torch.no_grad()` and `model.training=True`, the layers that were active in them, and "
    "the statistics that moved; from the first validation on.",
    example="for x, y in train_loader:\n    step(model, x, y)\nwith torch.no_grad():\n    for x, y in val_loader:\n"
    "        correct += (model(x).argmax(1) == y).sum()",
    instead="model.eval()\nwith torch.no_grad():\n    for x, y in val_loader:\n        correct += "
    "(model(x).argmax(1) == y).sum()\nmodel.train()",
    remedy="Call `model.eval()` before validation, and `model.train()` after it.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: it is an edit of the loop, and the figures of validation change",
    false_alarms="Passes in train mode on purpose, to estimate statistics anew or to draw from dropout; "
    "`torch.optim.swa_utils.update_bn` and passes that feed the next training step are known. Validation that also "
    "forgets `torch.no_grad()` looks like training and is not seen. A model that is in eval mode while its "
    "normalization layers were put back into train mode is N307, not M201. Statistics that are meant to move are "
    "declared with `contract=Contract(moving=...)`.",
    source="pytorch-3dunet#53, stacked_hourglass#44, SynDiff#46, MultiBench#26, LearningToCompare_FSL#48",
    look=look,
    sound=sound,
)
