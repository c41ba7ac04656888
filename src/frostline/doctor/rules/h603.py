"""H603: forward() was called directly, past every hook."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.audit.places import Place, kind_of
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.ownership import in_code
from frostline.doctor.rule import Found, Rule
from frostline.doctor.source_lines import calls, part_named, reached
from frostline.doctor.telling import at, counted, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Modules whose ``forward`` the user calls by name, one finding for each line."""
    for model in seen.models:
        sites: dict[Place, list[str]] = {}
        for path, place in model.bypassed:
            if kind_of(place.file) == "user" and not place.via:  # what a library does inside is its own affair
                sites.setdefault(place, []).append(path)
        for path, place in _inner(model, seen):
            if all(path not in paths for paths in sites.values()):
                sites.setdefault(place, []).append(path)
        for place, paths in sites.items():
            yield _found(model, paths, place)


def _inner(model: ModelSeen, seen: Seen) -> Iterator[tuple[str, Place]]:
    """Calls of ``forward`` in the source, on modules that never ran as modules although their parameters had gradients.

    A layer that runs nothing inside of it leaves no other trace.
    """
    called = {(forward.model, forward.path) for forward in seen.forwards}
    for statement in reached(seen):
        for call in calls(statement, "forward"):
            on = call.func.value if isinstance(call.func, ast.Attribute) else None
            part = None if on is None or isinstance(on, ast.Call) else part_named(on, seen)
            if part is None or part[0] is not model or part[1] not in model.modules or not part[1]:
                continue
            path = part[1]
            learns = any(tensor.gradients for tensor in model.below(path))
            if learns and not model.modules[path].runs and (model.name, path) not in called:
                yield path, statement.place_of(call)


def _found(model: ModelSeen, paths: list[str], place: Place) -> Found:
    hooks = sum(_hooks(model, path) for path in paths)
    shown = model.name if paths == [""] else some(paths)
    evidence = [f"called at {at(place)}"]
    if hooks:
        evidence.append(f"{counted(hooks, 'hook')} on it did not run")
    if model.wrapper:
        evidence.append(f"{model.wrapper} around the model did not run either")
    return Found(
        message=f"forward() of {shown} is called directly: "
        + (f"its {counted(hooks, 'hook')} did not run" if hooks else "hooks would not run"),
        model=model.name,
        paths=tuple(paths),
        evidence=tuple(evidence),
        remedy=f"{in_code(model.name, paths[0])}(...) instead of {in_code(model.name, paths[0])}.forward(...)",
        severity=Severity.WARNING if hooks or model.wrapper else Severity.INFO,
        safety=Safety.UNSAFE,
        place=place,
    )


def _hooks(model: ModelSeen, path: str) -> int:
    """How many hooks are on a module that only a call runs."""
    module = None if model.live is None else model.live.get_submodule(path)
    if module is None:
        return 0
    return sum(
        len(table)
        for table in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )


def sound(seen: Seen) -> str | None:
    """That models were called, not their forward methods."""
    called = [model for model in seen.models if model.forwards]
    if not called or any(model.bypassed for model in called):
        return None
    return f"{counted(len(called), 'model')} ran through their hooks, not by forward()"


RULE = Rule(
    code="H603",
    what="Looks, in the first passes, whether a module runs inside of a `forward` that was called by name instead of "
    "through the module itself.",
    why="`model(x)` runs hooks and then `forward`; `model.forward(x)` runs no hook. Features that a hook collects are "
    "missing, old-style weight or spectral normalization does not renew its weight, wrappers do not average gradients, "
    "and Frostline's holds that work by hooks do not hold.",
    evidence="The line, and the hooks that did not run; from the first pass on.",
    example="logits = model.forward(x)",
    instead="logits = model(x)",
    remedy="Call the module.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: hooks begin to run",
    false_alarms="Without any hook on the module it makes no difference, and is told for information only. "
    "`super().forward(x)` is not reported, nor what a library does in its own code.",
    source="dslinter W5516",
    look=look,
    sound=sound,
)
