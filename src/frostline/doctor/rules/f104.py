"""F104: a generator of requires_grad_ calls was never consumed: nothing is frozen."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.audit.events import GradFlag
from frostline.audit.seen import Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.silent_lines import silent_line
from frostline.doctor.source_lines import Statement, called, everything, sets_flag, walked_at
from frostline.findings import Safety


def look(seen: Seen) -> Iterator[Found]:
    """Generator expressions and ``map`` objects that would set flags, in statements that ran and wrote none."""
    statements = everything(seen)
    for statement in statements:
        lazy = _thrown_away(statement, statements)
        told = _sets(lazy) if lazy is not None else None
        if lazy is None or told is None or seen.of(GradFlag, lambda e, s=statement: s.covers(e.place)):
            continue
        value, over, conditional = told
        kind = "a map object" if isinstance(lazy, ast.Call) else "a generator"
        yield from silent_line(
            seen,
            statement.place,
            walked_at(lazy, statement.file, seen),
            value=value,
            conditional=conditional,
            mistake=f"{kind} of requires_grad_ calls was never consumed",
            why=f"{kind} does nothing until something walks over it",
            right=f"for p in {ast.unparse(over)}:\n    p.requires_grad_({value})",
        )


def _thrown_away(statement: Statement, statements: list[Statement]) -> ast.expr | None:
    """A lazy expression that is a statement of its own, or is given a name that nothing reads."""
    node = statement.node
    if isinstance(node, ast.Expr):
        value = node.value
    elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        value, name = node.value, node.targets[0].id
        same = [s for s in statements if s.file == statement.file]
        if any(
            isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load)
            for s in same
            for n in ast.walk(s.node)
        ):
            return None
    else:
        return None
    lazy = isinstance(value, ast.GeneratorExp) or (
        called(value) == "map" and isinstance(getattr(value, "func", 0), ast.Name)
    )
    return value if lazy else None


def _sets(lazy: ast.expr) -> tuple[bool, ast.expr, bool] | None:
    """The value that it would set, what it walks over, and whether it would leave some of that out."""
    if isinstance(lazy, ast.GeneratorExp):
        value = sets_flag(lazy.elt)
        tests = [test for generator in lazy.generators for test in generator.ifs]
        return None if value is None else (value, lazy.generators[-1].iter, bool(tests))
    if isinstance(lazy, ast.Call) and len(lazy.args) == 2 and isinstance(lazy.args[0], ast.Lambda):
        value = sets_flag(lazy.args[0].body)
        return None if value is None else (value, lazy.args[1], called(lazy.args[1]) == "filter")
    return None


def sound(_seen: Seen) -> str | None:
    """Nothing is said of what nobody tries."""
    return None


RULE = Rule(
    code="F104",
    what="Looks, in the source of the files that ran, for generator expressions and `map` objects that would call "
    "`requires_grad_` and that nothing walks over, where no flag was written on that line.",
    why="A generator does nothing until it is consumed. The line runs, nothing is frozen, and the part trains on.",
    evidence="The statement, that no flag was written on it, the real flags, and how many of the parameters "
    "optimizer steps changed; from the first training step on.",
    example="(p.requires_grad_(False) for p in model.backbone.parameters())",
    instead="for p in model.backbone.parameters():\n    p.requires_grad_(False)",
    remedy="Write a loop, or freeze the part with `frostline.freeze`.",
    safety=Safety.SAFE,
    how_safe="safe where it is known which parameters were meant: it makes happen what the line says; advice otherwise",
    false_alarms="None known: such a statement has no effect wherever it stands, and only one that ran is reported. "
    "Where it was about some of what it walks over, nothing is said as soon as one of these is as it should be.",
    source="none found",
    look=look,
    sound=sound,
    explains=("F106",),
)
