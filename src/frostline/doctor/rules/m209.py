"""M209: loading changed the mode of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator

from frostline.audit.events import Forward, ModeCall
from frostline.audit.seen import ModelSeen, Phase, Seen
from frostline.doctor.passes import Passes, layers, mode_matters
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted, some
from frostline.findings import Safety, Severity

_LOADS = r"(?:from_pretrained|(?:\w+_)?(?:load|resume|restore)(?:_\w+)?)"
_FUNCTION = re.compile(_LOADS)
_CALL = re.compile(rf"\b{_LOADS}\(")


def look(seen: Seen) -> Iterator[Found]:
    """A mode that a loading function set, and that the next passes did not want."""
    for model in seen.models:
        for call in seen.of(ModeCall):
            if call.model != model.name or call.direct or not call.flipped or not _loads(call):
                continue
            phase = _next(seen, model, call)
            if phase is None:
                continue
            wrong = _wrong(seen, model, call, phase)
            if not wrong:
                continue
            mode = "train" if call.mode else "eval"
            use = "used without gradients" if call.mode else "trained"
            yield Found(
                message=f"loading left {model.name} in {mode} mode, and it was {use} so",
                model=model.name,
                paths=wrong,
                evidence=(
                    f"{mode}() was called inside of {_what(call)}, at {at(call.place)}",
                    f"nothing set the mode between that and the pass at {at(phase.place)}",
                    f"{mode} mode in {layers(model, wrong)}: {some(wrong)}",
                ),
                remedy=f"call {model.name}.{'eval' if call.mode else 'train'}() after loading",
                severity=Severity.WARNING,
                safety=Safety.MANUAL,
                place=call.place,
                inferred=True,
            )
            break


def _loads(call: ModeCall) -> bool:
    return bool(_FUNCTION.fullmatch(call.place.function) or _CALL.search(call.place.text))


def _what(call: ModeCall) -> str:
    if _FUNCTION.fullmatch(call.place.function):
        return f"{call.place.function}()"
    found = _CALL.search(call.place.text)
    return f"{found.group()})" if found else "a loading function"


def _next(seen: Seen, model: ModelSeen, call: ModeCall) -> Phase | None:
    """The first passes after the call, if nobody set the mode of the model in between."""
    pass_ = next((e for e in seen.of(Forward) if e.model == model.name and e.at > call.at), None)
    later = next((e for e in seen.of(ModeCall) if e.model == model.name and e.at > call.at), None)
    if pass_ is None or (later is not None and later.at < pass_.at):
        return None
    phases = [p for p in model.phases if p.first <= pass_.at]
    return phases[-1] if phases else None


def _wrong(seen: Seen, model: ModelSeen, call: ModeCall, phase: Phase) -> tuple[str, ...]:
    active = set(phase.train_modules)
    matter = [path for path in call.flipped if path in model.modules and mode_matters(model.modules[path])]
    wrong = tuple(path for path in matter if (path in active) == call.mode)
    if not wrong:
        return ()
    passes = Passes(seen, model)
    if call.mode:
        return wrong if phase in passes.validation or not (passes.steps or phase.grad) else ()
    # In eval mode it is fit for use; only training in it is worth a word.
    return wrong if phase in passes.training else ()


def sound(seen: Seen) -> str | None:
    """How many models had the mode that they were used in set after loading."""
    loaded = {e.model for e in seen.of(ModeCall) if e.model and e.flipped and _loads(e)}
    return f"the mode that loading left fits what {counted(len(loaded), 'model')} did next" if loaded else None


RULE = Rule(
    code="M209",
    what="Looks for calls of `train()` and `eval()` inside of a loading function, and at the mode of the passes that "
    "follow.",
    why="Loading functions differ: `from_pretrained` of transformers returns a model in eval mode, constructors of "
    "torchvision one in train mode, and some that load an adapter switch the whole model. Fine-tuning then runs "
    "without dropout, or inference with it, and no line of the script says so.",
    evidence="The line that called the loading function, the mode it set, and the first pass after it; from that "
    "pass on.",
    example="model = AutoModel.from_pretrained(name)\nfor batch in loader:\n    model(**batch).loss.backward()",
    instead="model = AutoModel.from_pretrained(name)\nmodel.train()\nfor batch in loader:\n    "
    "model(**batch).loss.backward()",
    remedy="Set the mode after loading, with `model.train()` or `model.eval()`.",
    safety=Safety.MANUAL,
    how_safe="manual: which mode was wanted is not known",
    false_alarms="Fine-tuning in eval mode on purpose, with the loader's mode. Call `model.eval()` after loading to "
    "say so.",
    source="transformers#34469, diffusers PR1012, vision#386",
    look=look,
    sound=sound,
    explains=("M201", "M202"),
)
