"""M207: dropout is active in a frozen part."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import ModelSeen, ModuleSeen, Seen
from frostline.doctor.passes import Passes
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import call_at, counted, last_mode_call, selectors_of, some
from frostline.findings import Safety, Severity
from frostline.state import names


def look(seen: Seen) -> Iterator[Found]:
    """Dropout layers of a frozen part that were in train mode in a training step."""
    for model in seen.models:
        active = tuple(path for path, module in _frozen_drops(model) if module.training and module.runs)
        training = Passes(seen, model).training if active else []
        if not training:
            continue
        call = last_mode_call(seen, model.name, mode=True)
        part = _part(model, active)
        whole = part >= 0.5
        yield Found(
            message=f"{counted(len(active), 'dropout layer')} of a frozen part "
            f"{'is' if len(active) == 1 else 'are'} active",
            model=model.name,
            paths=active,
            evidence=(
                f"training=True in {some(active)}" + (f" (set by {call_at(call.place)})" if call is not None else ""),
                f"none of the parameters around them is trained; they are {part:.0%} of all frozen parameters",
            ),
            remedy=f"frostline.freeze({model.name}, {selectors_of(active, model)})",
            severity=Severity.WARNING if whole else Severity.INFO,
            safety=Safety.UNSAFE,
            place=call.place if call is not None else training[0].place,
            inferred=True,
        )


def _frozen_drops(model: ModelSeen) -> Iterator[tuple[str, ModuleSeen]]:
    for path, module in model.modules.items():
        if "dropout" in module.kinds and module.frozen_above and not model.modules[""].frozen:
            yield path, module


def _part(model: ModelSeen, active: tuple[str, ...]) -> float:
    """Which share of the frozen parameters lies in the frozen parts that drop.

    Adapters between frozen layers leave small frozen parts that drop, as is usual; a frozen encoder with a head on top
    is nearly all of what is frozen.
    """
    tops: set[str] = set()
    for path in active:
        top = path
        while (above := names.parent(top)) and (model.modules[above].frozen or not model.modules[above].parameters):
            top = above
        tops.add(top)
    frozen = [t for t in model.parameters if not t.trainable]
    inside = sum(t.numel for t in frozen if any(names.is_under(t.path, top) for top in tops))
    return inside / max(sum(t.numel for t in frozen), 1)


def sound(seen: Seen) -> str | None:
    """How many dropout layers of frozen parts are in eval mode."""
    quiet = [
        path
        for model in seen.models
        if Passes(seen, model).training
        for path, module in _frozen_drops(model)
        if not module.training
    ]
    return f"{counted(len(quiet), 'dropout layer')} of frozen parts did not drop" if quiet else None


RULE = Rule(
    code="M207",
    what="Looks for dropout layers with a rate above 0 in train mode, around which no parameter is trained.",
    why="A frozen encoder is meant to give the same features for the same input. With dropout they are noisy: the "
    "head learns from worse features than it is tested on, and features that were computed once cannot be kept.",
    evidence="The layers, their mode and the line that set it, and how much of what is frozen lies around them; from "
    "the first training step on.",
    example="for p in model.encoder.parameters():\n    p.requires_grad = False\nmodel.train()",
    instead='frostline.freeze(model, "encoder", optimizer=optimizer)\nmodel.train()',
    remedy="Freeze the part with `frostline.freeze`, which keeps it in eval mode, or call its `eval()` after every "
    "`model.train()`.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: dropout in a frozen part may be wanted as noise on the features, and training changes",
    false_alarms="Dropout that is wanted as augmentation of the features. Where the part is only a small share of "
    "what is frozen, as between adapters, it is an info.",
    source="EDA#9, allennlp#4895",
    look=look,
    sound=sound,
)
