"""F101: an attribute that looks like requires_grad but means nothing was set: nothing is frozen."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher

from frostline.audit.seen import OddAttribute, Seen
from frostline.doctor.odd_attributes import is_false, meant, told
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, without_comment
from frostline.findings import Safety

_RIGHT = "requires_grad"
# `require_grad`, `requires_grads`, `required_grad` and `requires_gradient` are closer than this, `needs_grad` is not.
_ALIKE = 0.85


def look(seen: Seen) -> Iterator[Found]:
    """Attributes that are spelt nearly like ``requires_grad``, where the flag is not what they were set to."""
    for one in meant(seen, _meaning):
        count = counted(len(one.missed), "parameter")
        outcome = f"{count} meant to be frozen still train" if one.to_freeze else f"{count} meant to train stay frozen"
        if len(one.missed) == 1:
            outcome = outcome.replace("still train", "still trains").replace("stay frozen", "stays frozen")
        yield told(
            one,
            seen,
            message=f"{one.name} is not {_RIGHT}: {outcome}",
            why="torch never reads it",
            right=without_comment(one.place.text.replace(one.name, _RIGHT)),
        )


def _meaning(odd: OddAttribute) -> bool | None:
    if odd.name in {_RIGHT, f"{_RIGHT}_"} or SequenceMatcher(None, odd.name.lower(), _RIGHT).ratio() < _ALIKE:
        return None
    return is_false(odd.value)


def sound(seen: Seen) -> str | None:
    """How many parameters have no attribute that torch does not know."""
    count = sum(len(model.parameters) for model in seen.trained)
    return f"no misspelt requires_grad on {counted(count, 'parameter')}" if count else None


RULE = Rule(
    code="F101",
    what="Looks for attributes on parameters and modules whose names are nearly `requires_grad` (`require_grad`, "
    "`requires_grads`, ...), however they were set, where the real flag is not what they were set to.",
    why="Python lets any attribute be set on a tensor. The line runs, nothing is frozen, and the part trains on.",
    evidence="The attribute in the object's `__dict__`, the real flag, and how many of the parameters optimizer "
    "steps changed; from the first training step on.",
    example="for p in model.backbone.parameters():\n    p.require_grad = False",
    instead="for p in model.backbone.parameters():\n    p.requires_grad = False",
    remedy="Spell it `requires_grad`, or freeze the part with `frostline.freeze`.",
    safety=Safety.SAFE,
    how_safe="safe: it makes happen what the line says",
    false_alarms="An attribute of your own with such a name. Call it something else.",
    source="codertimo/BERT-pytorch#104, Time-Series-Library#743, TorchFix TOR002",
    look=look,
    sound=sound,
    explains=("F106",),
)
