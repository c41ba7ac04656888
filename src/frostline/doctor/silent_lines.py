"""Lines that were meant to set `requires_grad`, ran, and do nothing: the finding about one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from frostline.audit.places import Place
from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.doctor.odd_attributes import starts_trainable
from frostline.doctor.rule import Found
from frostline.doctor.telling import counted, freezer, parts_of, quoted, share
from frostline.findings import Safety, Severity


def silent_line(
    seen: Seen,
    place: Place,
    parts: Sequence[tuple[ModelSeen, str]],
    *,
    value: bool,
    conditional: bool,
    mistake: str,
    why: str,
    right: str,
) -> Iterator[Found]:
    """The findings about a line that sets no flag, one a model; none where the flags are as it would have had them.

    Args:
        seen: what was seen.
        place: the line.
        parts: the parts of models that it was about.
        value: what the flag was to be.
        conditional: only some of what is walked was meant.
        mistake: the mistake, the beginning of the message.
        why: why nothing happens.
        right: the line as it should be.
    """
    for model in {id(model): model for model, _ in parts}.values():
        paths = [path for of, path in parts if of is model]
        tensors = {t.path: t for path in paths for t in _parameters(model, path)}
        missed = [t for t in tensors.values() if starts_trainable(t, model) is not value]
        # Where only some were meant, those that are as the line would have had them may be just these.
        if missed and not (conditional and len(missed) < len(tensors)):
            yield _found(seen, model, missed, place, value=value, exact=not conditional, texts=(mistake, why, right))


def _parameters(model: ModelSeen, path: str) -> list[TensorSeen]:
    itself = [model.tensors[path]] if path in model.tensors else []
    return [t for t in (*model.below(path), *itself) if t.kind == "parameter"]


def _found(
    seen: Seen,
    model: ModelSeen,
    missed: list[TensorSeen],
    place: Place,
    *,
    value: bool,
    exact: bool,
    texts: tuple[str, str, str],
) -> Found:
    mistake, why, right = texts
    state = "trainable" if not value else "frozen"
    paths = tuple(t.path for t in missed)
    parts = parts_of(paths, model)
    which = counted(len(missed), "parameter") if exact else f"all {counted(len(missed), 'parameter')}"
    where = f" of {parts[0]}" if len(parts) == 1 and parts[0] and parts[0] not in model.tensors else ""
    changed = sum(bool(t.moved_in_step) for t in missed)
    still = f"requires_grad is still {not value} in {which}"
    if changed and not value:
        still += f"; {share(changed, len(missed))} changed in {counted(len(seen.steps), 'step')}"
    safe = exact and not value
    remedy = right
    if safe:
        remedy += f"\nor, so that statistics stay too: frostline.freeze({model.name}, {quoted(parts)})"
    return Found(
        message=f"{mistake}: {which}{where} {'is' if len(missed) == 1 else 'are'} still {state}",
        model=model.name,
        paths=paths if exact else (),
        evidence=(why, still),
        remedy=remedy,
        severity=Severity.ERROR if value or changed else Severity.WARNING,
        safety=Safety.SAFE if safe else Safety.MANUAL,
        place=place,
        repair=freezer(seen, model, parts) if safe else None,
    )
