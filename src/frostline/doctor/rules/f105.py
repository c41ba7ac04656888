"""F105: another framework's way of freezing was used, which means nothing to PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import OddAttribute, Seen
from frostline.doctor.odd_attributes import is_false, meant, told
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted
from frostline.findings import Safety

# The attribute, where it comes from, and the value with which it freezes.
_IDIOMS = {
    "trainable": ("Keras", False),
    "is_trainable": ("Keras", False),
    "stop_gradient": ("Paddle", True),
    "grad_req": ("MXNet", True),
}
_OFF = frozenset({"null", "'null'"})


def look(seen: Seen) -> Iterator[Found]:
    """Modules and parameters that were switched off so, where gradients arrive as if nothing had been said."""
    for one in meant(seen, _meaning):
        if not any(t.gradients or t.moved_in_step for t in one.missed):
            continue  # whoever reads it, it works: no gradient arrives
        if _keeps_for_itself(one.place.text, one.name):
            continue
        origin = _IDIOMS[one.name][0]
        count = counted(len(one.missed), "parameter")
        yield told(
            one,
            seen,
            message=f"{one.name} is an idiom of {origin}, PyTorch does not know it: {count} still "
            f"{'trains' if len(one.missed) == 1 else 'train'}",
            why="torch never reads it",
        )


def _meaning(odd: OddAttribute) -> bool | None:
    if odd.name not in _IDIOMS:
        return None
    if odd.name == "grad_req":
        return True if odd.value in _OFF else None
    freezing = _IDIOMS[odd.name][1]
    return True if odd.value in {"True", "False"} and (not is_false(odd.value)) is freezing else None


def _keeps_for_itself(text: str, name: str) -> bool:
    """Whether the line is one of a class that keeps an option of its own: it may well act on it."""
    return text.replace(" ", "").startswith(f"self.{name}=")


def sound(_seen: Seen) -> str | None:
    """Nothing is said of what nobody tries."""
    return None


RULE = Rule(
    code="F105",
    what="Looks for the switches of other frameworks on modules and parameters (`trainable` of Keras, "
    "`stop_gradient` of Paddle, `grad_req` of MXNet), where gradients still arrive.",
    why="Python lets any attribute be set on a module. The line runs, nothing is frozen, and the part trains on.",
    evidence="The attribute in the object's `__dict__`, the real flags, and how many of the parameters optimizer "
    "steps changed; from the first training step on.",
    example="for layer in model.backbone.children():\n    layer.trainable = False",
    instead="for layer in model.backbone.children():\n    layer.requires_grad_(False)",
    remedy="Call `requires_grad_(False)`, or freeze the part with `frostline.freeze`.",
    safety=Safety.SAFE,
    how_safe="safe: it makes happen what the line says",
    false_alarms="A module that has an option of this name and acts on it: nothing is said where no gradient "
    "arrives, or where its own class sets it (`self.trainable = ...`). Otherwise give the option another name.",
    source="none found",
    look=look,
    sound=sound,
    explains=("F106",),
)
