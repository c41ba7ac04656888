"""F120: freezing sits in a train() that was not called before the first step."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.audit.events import ModeCall
from frostline.audit.seen import ModelSeen, ModuleSeen, Seen, TensorSeen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.source_lines import Statement, called, dotted, method, sets_flag, walks_around
from frostline.doctor.telling import biggest, counted, drift_of, parts_of, quoted
from frostline.findings import Safety, Severity
from frostline.state import names


def look(seen: Seen) -> Iterator[Found]:
    """Classes whose own ``train()`` freezes, where it was not called before training began."""
    for model in seen.trained:
        late: dict[str, list[ModuleSeen]] = {}
        for module in model.modules.values():
            if module.overrides_train and _first_call(seen, model, module.path) is not _BEFORE:
                late.setdefault(module.type, []).append(module)
        for type_, modules in late.items():
            statements = [s for s in method(seen, type_, "train") if _freezes(s)]
            if not statements:
                continue
            missed = {t.path: t for m in modules for s in statements for t in _missed(model, m, s)}
            if missed:
                yield _found(seen, model, type_, modules, statements[0], list(missed.values()))


_BEFORE = object()


def _first_call(seen: Seen, model: ModelSeen, path: str) -> object:
    """The first call of ``train()`` that reached a module, ``_BEFORE`` where that was before training began."""
    calls = seen.of(
        ModeCall, lambda e: e.model == model.name and e.mode and not e.direct and names.is_under(path, e.path)
    )
    begun = model.contract_at
    if calls and begun is not None and calls[0].at < begun:
        return _BEFORE
    return calls[0] if calls else None


def _freezes(statement: Statement) -> bool:
    node = statement.node
    return sets_flag(node) is False or (isinstance(node, ast.Expr) and called(node.value) == "eval")


def _missed(model: ModelSeen, module: ModuleSeen, statement: Statement) -> list[TensorSeen]:
    """What the statement would have frozen: parameters that trained, statistics that moved."""
    node = statement.node
    on = _on(node)
    for target, over in walks_around(statement):
        if on is not None and dotted(on).partition(".")[0] in {
            n.id for n in ast.walk(target) if isinstance(n, ast.Name)
        }:
            on = over
    part = "" if on is None else dotted(on)
    if part.partition(".")[0] != "self":
        return []
    path = names.join(module.path, part[5:])
    if path not in model.modules and path not in model.tensors:
        return []
    below = [*model.below(path), *([model.tensors[path]] if path in model.tensors else [])]
    if sets_flag(node) is False:
        return [t for t in below if t.kind == "parameter" and t.trainable and t.moved_in_step]
    return [t for t in below if t.role.startswith("norm.") and t.kind == "buffer" and t.moved]


def _on(node: ast.stmt) -> ast.expr | None:
    """On what a flag is set, or ``eval()`` is called."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
        return node.targets[0].value
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        return node.value.func.value
    return None


def _found(
    seen: Seen, model: ModelSeen, type_: str, modules: list[ModuleSeen], statement: Statement, missed: list[TensorSeen]
) -> Found:
    paths = tuple(t.path for t in missed)
    parameters = [t for t in missed if t.kind == "parameter"]
    first = _first_call(seen, model, modules[0].path)
    if isinstance(first, ModeCall):
        when = f"train() was first called after {counted(first.step, 'step')}"
    else:
        when = "train() was never called; a new module is in train mode without it"
    what = [counted(len(parameters), "parameter")] if parameters else []
    layers = {t.module for t in missed if t.kind == "buffer"}
    what += [f"the statistics of {counted(len(layers), 'layer')}"] if layers else []
    far = biggest(parameters or missed)
    in_steps = f"changed in {counted(far.moved_in_step, 'step')}" if far.moved_in_step else drift_of(far, seen)
    parts = parts_of([t.path for t in parameters], model) or tuple(layers)
    above = parts if parameters else tuple(dict.fromkeys(names.parent(p) for p in parts))
    return Found(
        message=f"{type_}.train() freezes, and was not called before the first step: {' and '.join(what)} moved",
        model=model.name,
        paths=paths,
        evidence=(when, f"{far.path}: {in_steps}"),
        remedy=f"call {model.name}.train() before the first step, or freeze in the constructor, or from outside:\n"
        f"frostline.freeze({model.name}, {quoted(above)})",
        severity=Severity.ERROR,
        safety=Safety.MANUAL,
        place=statement.place,
        inferred=True,
    )


def sound(seen: Seen) -> str | None:
    """How many classes with a ``train()`` of their own had it called in time."""
    reached = {
        m.type
        for model in seen.trained
        for m in model.modules.values()
        if m.overrides_train and _first_call(seen, model, m.path) is _BEFORE
    }
    if not reached:
        return None
    return f"train() was called in time on {counted(len(reached), 'class', 'classes')} that override it"


RULE = Rule(
    code="F120",
    what="Looks for classes whose own `train()` sets `requires_grad` or calls `eval()`, where no `train()` reached "
    "them before the first training step, and for what moved meanwhile.",
    why="A new module is in train mode without a call. Where freezing is hidden in `train()`, a loop that never "
    "calls it, or calls it after the first epoch, trains what was to be frozen.",
    evidence="The line in `train()`, the first call of it if there was one, and what moved before; from the first "
    "step on.",
    example="class Net(nn.Module):\n    def train(self, mode=True):\n        super().train(mode)\n        "
    "self.backbone.requires_grad_(False)\n        return self\n\nmodel = Net()\nfor x, y in loader: ...",
    instead="model = Net()\nmodel.train()\nfor x, y in loader: ...",
    remedy="Call `train()` before the first step, or freeze in the constructor or with `frostline.freeze`.",
    safety=Safety.MANUAL,
    how_safe="manual: to call `train()` changes the modes of other layers too",
    false_alarms="A `train()` that freezes under a condition that does not hold: only what moved is reported, and "
    "the condition is not evaluated.",
    source="mmpretrain#702",
    look=look,
    sound=sound,
    explains=("F107", "F106"),
)
