"""M202: train mode was not restored after validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from frostline.audit.events import Backward, Forward, ModeCall
from frostline.audit.seen import ModelSeen, Phase, Seen
from frostline.doctor.passes import Passes, dropping, layers, mode_matters
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, call_at, counted, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Training steps in eval mode, after steps in train mode and a validation between them."""
    for model in seen.models:
        passes = Passes(seen, model)
        before: dict[str, None] = {}
        for after in passes.training:
            still = set(after.train_modules)
            call, lost = _unrestored(seen, model, passes, after, [path for path in before if path not in still])
            if call is None:
                before |= dict.fromkeys(path for path in after.train_modules if mode_matters(model.modules[path]))
                continue
            yield Found(
                message=f"{layers(model, lost)} of {model.name} stayed in eval mode after validation",
                model=model.name,
                paths=lost,
                evidence=(
                    f"{call_at(call.place)} switched them; no train() came before the next training step",
                    f"{counted(len(passes.steps_in(after)), 'step')} in eval mode, the first from {at(after.place)}",
                    f"eval mode in {some(lost)}",
                ),
                remedy=f"call {model.name}.train() after validation, or at the start of each epoch",
                severity=Severity.ERROR,
                safety=Safety.UNSAFE,
                place=call.place,
            )
            break


def _unrestored(
    seen: Seen, model: ModelSeen, passes: Passes, after: Phase, lost: Sequence[str]
) -> tuple[ModeCall | None, tuple[str, ...]]:
    """The ``eval()`` of the whole model that began a validation, and the layers that it left in eval mode."""
    if not lost:
        return None, ()
    step = passes.steps_in(after)[0].at
    last = {path: e for e in seen.of(ModeCall) if e.model == model.name and e.at < step for path in e.flipped}
    # Layers that were switched one by one, after train() came back, are meant to be in eval mode.
    left = tuple(path for path in lost if _of_all(last.get(path)))
    if not left:
        return None, ()
    call = last[left[0]]
    backward = min((e.at for e in seen.of(Backward) if e.at > call.at), default=step)
    seen_in_eval = seen.of(Forward, lambda e: e.model == model.name and call.at < e.at < backward)
    # eval() and then training at once is meant: statistics are fixed for the last epochs.
    usual = max((s.forwards for s in passes.steps if s.at < call.at), default=1)
    validated = any(not e.grad for e in seen_in_eval) or len(seen_in_eval) > usual
    return (call, left) if validated else (None, ())


def _of_all(call: ModeCall | None) -> bool:
    return call is not None and not call.mode and not call.path and not call.direct


def sound(seen: Seen) -> str | None:
    """In how many models train mode was restored."""
    right = 0
    for model in seen.models:
        training = Passes(seen, model).training
        looked = [phase.first for phase in model.phases if not phase.training]
        right += any(
            dropping(model, after) and any(before.first < first < after.first for first in looked)
            for before, after in pairwise(training)
        )
    return f"train mode was restored after validation in {counted(right, 'model')}" if right else None


RULE = Rule(
    code="M202",
    what="Compares the layers that were in train mode in the first training steps with those of the steps that come "
    "after an `eval()` of the whole model and a validation.",
    why="From the second epoch on, dropout no longer regularizes and batch normalization keeps the statistics that "
    "it had by then, while its inputs go on changing. The loss looks better for it, so that nobody looks.",
    evidence="The `eval()` call, the steps that were done in eval mode, and the layers; from the first step after "
    "the first validation on.",
    example="model.train()\nfor epoch in range(10):\n    train_one_epoch(model)\n    model.eval()\n    validate(model)",
    instead="for epoch in range(10):\n    model.train()\n    train_one_epoch(model)\n    model.eval()\n    "
    "validate(model)",
    remedy="Call `model.train()` at the start of each epoch.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: it is an edit of the loop, and training changes",
    false_alarms="A model that is put into eval mode for its last epochs on purpose, with a validation just before "
    "its first step. Adversarial examples that are made in eval mode are known: no step is done there. Layers that "
    "are put into eval mode one by one are taken to be meant.",
    source="joeynmt#184, hendrycks/ethics#5, ncsn#2, simpletransformers#941, small-text#40",
    look=look,
    sound=sound,
)
