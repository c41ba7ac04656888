"""F112: a flag in a parameter group was taken for freezing; the optimizer ignores it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.audit.places import Place
from frostline.audit.seen import GroupSeen, OptimizerSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.source_lines import Statement, reached
from frostline.doctor.telling import counted, parts_of, quoted, some
from frostline.findings import Safety, Severity

# Settings that are meant to freeze, and whether they do so by being true.
_SWITCHES = {
    "freeze": True, "frozen": True, "is_frozen": True, "fixed": True, "no_grad": True, "stop_gradient": True,
    "trainable": False, "requires_grad": False, "require_grad": False, "train": False, "update": False,
}  # fmt: skip
# Factors that others multiply the rate with; 0 freezes where somebody does.
_FACTORS = frozenset({"lr_mult", "lr_scale", "lr_multiplier", "lr_factor"})


def look(seen: Seen) -> Iterator[Found]:
    """Groups with such a flag whose parameters the optimizer moved all the same."""
    for optimizer in seen.optimizers:
        for number, group in enumerate(optimizer.groups):
            name = _switch(group)
            if not name:
                continue
            moved: dict[str, list[str]] = {}
            for model, path in group.paths:
                tensor = seen.tensor((model, path))
                if tensor is not None and tensor.moved_in_step:
                    moved.setdefault(model, []).append(path)
            for model, paths in moved.items():
                yield _found(seen, optimizer, number, name, model, paths)


def _switch(group: GroupSeen) -> str:
    for name in group.ignored:
        value = group.settings.get(name)
        if value is None:
            continue
        if (name in _SWITCHES and bool(value) is _SWITCHES[name]) or (name in _FACTORS and value == 0.0):
            return name
    return ""


def _found(seen: Seen, optimizer: OptimizerSeen, number: int, name: str, model_name: str, paths: list[str]) -> Found:
    model = seen.model(model_name)
    assert model is not None
    parts = parts_of(paths, model)
    value = optimizer.groups[number].settings[name]
    shown = f"{value:g}" if name in _FACTORS else str(bool(value))
    return Found(
        message=f"{optimizer.type} ignores {name}={shown} in group {number}: {counted(len(paths), 'parameter')} "
        f"{'trains' if len(paths) == 1 else 'train'}",
        model=model_name,
        paths=tuple(paths),
        evidence=(
            f"group {number} of {optimizer.name} has {name}={shown}, a setting that {optimizer.type} never reads",
            f"{some(parts)} changed in {counted(optimizer.steps, 'step')}",
        ),
        remedy=f"frostline.freeze({model_name}, {quoted(parts)}, optimizer={optimizer.name})",
        severity=Severity.ERROR,
        safety=Safety.MANUAL,
        place=_place(seen, name) or (optimizer.made if optimizer.made.is_known else None),
        inferred=True,
    )


def _place(seen: Seen, name: str) -> Place | None:
    """The only line that writes such a key into a group."""
    lines = [place for statement in reached(seen) for place in _keys(statement, name)]
    return lines[0] if len(set(lines)) == 1 else None


def _keys(statement: Statement, name: str) -> Iterator[Place]:
    for node in ast.walk(statement.node) if not _has_body(statement.node) else ():
        written = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and _is(node.slice, name)
        if written or (isinstance(node, ast.Dict) and any(key is not None and _is(key, name) for key in node.keys)):
            yield statement.place_of(node)


def _has_body(node: ast.stmt) -> bool:
    return bool(getattr(node, "body", None))


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == name


def sound(seen: Seen) -> str | None:
    """How many groups have such a flag, and kept their parameters."""
    kept = [
        group
        for optimizer in seen.optimizers
        for group in optimizer.groups
        if optimizer.steps
        and _switch(group)
        and not any((t := seen.tensor(key)) and t.moved_in_step for key in group.paths)
    ]
    return f"{counted(len(kept), 'parameter group')} with a flag for freezing kept its parameters" if kept else None


RULE = Rule(
    code="F112",
    what="Looks for settings in parameter groups that the optimizer's class has no default for and that are named "
    "like a switch for freezing (`freeze`, `trainable`, `lr_mult=0` ...), and whether steps moved the parameters of "
    "the group.",
    why="An optimizer keeps any key of a group and reads only its own. The flag works with the one optimizer that "
    "was written for it; with the next one the part trains.",
    evidence="The setting, the optimizer's class, and the parameters that its steps changed; from the first step on.",
    example='optimizer = torch.optim.SGD([{"params": trunk, "freeze": True}, {"params": head}], lr=0.1)',
    instead='frostline.freeze(model, "trunk")\noptimizer = torch.optim.SGD(head, lr=0.1)',
    remedy="Freeze the part with `frostline.freeze`, or leave it out of the optimizer.",
    safety=Safety.MANUAL,
    how_safe="manual: what the flag was to mean is only known from its name",
    false_alarms="A loop that reads the flag itself, and at times lets the group train. Nothing is said where the "
    "parameters did not move.",
    source="JDAI-CV/fast-reid#178",
    look=look,
    sound=sound,
    explains=("F106",),
)
