"""F102: requires_grad was set on a module, which does nothing."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import OddAttribute, Seen
from frostline.doctor.odd_attributes import is_false, meant, told
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, without_comment
from frostline.findings import Safety


def look(seen: Seen) -> Iterator[Found]:
    """Modules with a plain attribute ``requires_grad``, where their parameters have another flag."""
    for one in meant(seen, _meaning):
        count = counted(len(one.missed), "parameter")
        outcome = "still trainable" if one.to_freeze else "still frozen"
        yield told(
            one,
            seen,
            message=f"requires_grad was set on {one.on}, not on parameters: {count} below "
            f"{'is' if len(one.missed) == 1 else 'are'} {outcome}",
            why="a module has no such flag",
            right=_call(without_comment(one.place.text), one.value),
        )


def _meaning(odd: OddAttribute) -> bool | None:
    return is_false(odd.value) if odd.on == "module" and odd.name == "requires_grad" else None


def _call(text: str, value: str) -> str:
    """The line as a call of the method, where it is a plain assignment."""
    target, equals, _ = text.partition("=")
    target = target.strip()
    if not equals or not target.endswith(".requires_grad"):
        return ""
    return f"{target}_({value})"


def sound(seen: Seen) -> str | None:
    """How many modules were looked at."""
    count = sum(len(model.modules) for model in seen.trained)
    return f"requires_grad was set on none of {counted(count, 'module')}" if count else None


RULE = Rule(
    code="F102",
    what="Looks for modules that have a plain attribute `requires_grad`, and compares it with the flags of the "
    "parameters below.",
    why="`requires_grad` is a flag of tensors. On a module the assignment makes an attribute that nothing reads: the "
    "part trains on. The method for modules is `requires_grad_()`.",
    evidence="The attribute in the module's `__dict__`, the flags of its parameters, and how many of them optimizer "
    "steps changed; from the first training step on.",
    example="model.backbone.requires_grad = False",
    instead="model.backbone.requires_grad_(False)",
    remedy="Call `requires_grad_(False)`, or freeze the part with `frostline.freeze`.",
    safety=Safety.SAFE,
    how_safe="safe: it makes happen what the line says",
    false_alarms="A module of yours that keeps an option under this name and acts on it by itself: nothing is said "
    "where its parameters have the flags that it asks for. Otherwise give the option another name.",
    source="MICCAI23-ProtoContra-SFDA#18; 4 of 10 public hits that were read",
    look=look,
    sound=sound,
    explains=("F106",),
)
