"""F103: the method requires_grad_ was overwritten, or the flag was compared instead of set."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace

from frostline.audit.seen import ModelSeen, OddAttribute, Seen
from frostline.doctor.odd_attributes import is_false, meant, told
from frostline.doctor.rule import Found, Rule
from frostline.doctor.silent_lines import silent_line
from frostline.doctor.source_lines import (
    Statement,
    everything,
    is_conditional,
    loops_around,
    part_named,
    walked_at,
    was_there,
)
from frostline.doctor.telling import counted, without_comment
from frostline.findings import Safety


def look(seen: Seen) -> Iterator[Found]:
    """``p.requires_grad_ = False``, and ``p.requires_grad == False`` as a statement."""
    for one in meant(seen, _meaning):
        verb = "is" if len(one.missed) == 1 else "are"
        found = told(
            one,
            seen,
            message=f"the method requires_grad_ was overwritten on {one.on}, not called: "
            f"{counted(len(one.missed), 'parameter')} {verb} still {'trainable' if one.to_freeze else 'frozen'}",
            why="it replaces the method and sets no flag",
            right=without_comment(one.place.text).replace("requires_grad_", "requires_grad"),
        )
        yield replace(found, repair=_uncovering(one.model, found.repair)) if found.repair else found
    for statement in everything(seen):
        node = statement.node
        compared = _compared(node.value) if isinstance(node, ast.Expr) else None
        if compared is None:
            continue
        on, value = compared
        yield from silent_line(
            seen,
            statement.place,
            _parts(statement, on, seen),
            value=value,
            conditional=is_conditional(statement),
            mistake="requires_grad was compared, not set",
            why=f"{ast.unparse(node).strip()} is a comparison whose result is thrown away",
            right=f"{ast.unparse(on)}.requires_grad = {value}",
        )


def _uncovering(model: ModelSeen, freeze: Callable[[], str]) -> Callable[[], str]:
    """The repair, after the method has been laid open again."""

    def repair() -> str:
        assert model.live is not None
        for owner in (*model.live.modules(), *model.live.parameters()):
            if isinstance(vars(owner).get("requires_grad_"), bool):
                del vars(owner)["requires_grad_"]
        return freeze()

    return repair


def _parts(statement: Statement, on: ast.expr, seen: Seen) -> list[tuple[ModelSeen, str]]:
    """What it was about: what the loop around it walked over, or the tensor that it names."""
    loops = loops_around(statement)
    if loops:
        return walked_at(loops[0].iter, statement.file, seen)
    named = part_named(on, seen) if was_there(statement, seen) else None
    return [named] if named is not None else []


def _meaning(odd: OddAttribute) -> bool | None:
    return is_false(odd.value) if odd.name == "requires_grad_" and odd.value in {"True", "False"} else None


def _compared(node: ast.AST) -> tuple[ast.expr, bool] | None:
    """What of ``x.requires_grad == False``: ``x``, and the value."""
    if not isinstance(node, ast.Compare) or len(node.ops) != 1 or not isinstance(node.ops[0], (ast.Eq, ast.Is)):
        return None
    left, right = node.left, node.comparators[0]
    if not isinstance(left, ast.Attribute) or left.attr != "requires_grad" or not isinstance(right, ast.Constant):
        return None
    return (left.value, right.value) if isinstance(right.value, bool) else None


def sound(_seen: Seen) -> str | None:
    """Nothing is said of what nobody tries."""
    return None


RULE = Rule(
    code="F103",
    what="Looks for objects whose method `requires_grad_` was replaced by a value, and, in the source of the files "
    "that ran, for statements that compare `requires_grad` and throw the result away.",
    why="Both lines run and set no flag: nothing is frozen, and the part trains on.",
    evidence="The attribute in the object's `__dict__`, or the statement; the real flags, and how many of the "
    "parameters optimizer steps changed; from the first training step on.",
    example="for p in model.backbone.parameters():\n    p.requires_grad_ = False",
    instead="for p in model.backbone.parameters():\n    p.requires_grad_(False)",
    remedy="Call the method, or set the flag with one `=`, or freeze the part with `frostline.freeze`.",
    safety=Safety.SAFE,
    how_safe="safe where it is known which parameters were meant: it makes happen what the line says; advice otherwise",
    false_alarms="A bare comparison in a notebook cell, to look at its value. Delete it, or print it.",
    source="none found",
    look=look,
    sound=sound,
    explains=("F106",),
)
