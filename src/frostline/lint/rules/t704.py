"""T704: the inner loop writes into the meta-parameters themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.meta_learning import HINTS, meta_learning_in
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import related

# A step down a gradient: a rate times what is called a gradient.
_RATE = re.compile(r"\b\w*(lr|rate|alpha|step_size|eta)\b|\b0?\.\d+\b", re.I)
_GRADIENT = re.compile(r"\bg\b|grad", re.I)


def check(view: FileView) -> Iterator[Violation]:
    """Inner steps in place, and inner optimizers over the model itself, where an outer optimizer steps the same."""
    hint = meta_learning_in(view)
    if not hint:
        return
    for flow in view.flows:
        for step in flow.of("step", "scaler_step"):
            sources = _sources(flow, step.path)
            if sources and step.loops:
                yield from _written(flow, step, sources, hint)
                yield from _optimized(flow, step, sources, hint)
    yield from _in_dictionaries(view, hint)


def _sources(flow: Flow, optimizer: str) -> list[str]:
    """The modules whose parameters an optimizer has."""
    found = [source for event in flow.of("optimizer") if event.path == optimizer for source in event.get("sources")]
    return [source.owner for source in found if source.owner and not source.copy_of]


def _inside(event: Event, step: Event) -> bool:
    """Whether an event stands in the loops of the outer step, or deeper, and comes before it."""
    loops = [loop.key for loop in step.loops]
    own = [loop.key for loop in event.loops]
    before = (event.line, event.column) < (step.line, step.column) or bool(event.via)
    return before and own[: len(loops)] == loops


def _is_restored(flow: Flow, step: Event, path: str) -> bool:
    """Whether each task begins with the old values: they are loaded, or copied back."""
    loops = [loop.key for loop in step.loops]
    return any(
        related(other.path, path)
        and [loop.key for loop in other.loops][: len(loops)] == loops
        and (
            other.what == "load"
            or (other.what == "write" and other.get("how") in {"copy_", "data"} and not _descends(other))
        )
        for other in flow.events
    )


def _descends(event: Event) -> bool:
    """Whether a write is a step down a gradient."""
    node = event.node
    if node is None or event.origin:
        return False
    text = ast.unparse(node)
    is_step = isinstance(node, (ast.AugAssign, ast.Assign)) or (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in {"sub_", "add_"}
    )
    if isinstance(node, ast.AugAssign) and not isinstance(node.op, (ast.Sub, ast.Add)):
        return False
    return is_step and bool(_GRADIENT.search(text)) and bool(_RATE.search(text))


def _written(flow: Flow, step: Event, sources: list[str], hint: str) -> Iterator[Violation]:
    for event in flow.of("write"):
        source = next((path for path in sources if related(event.path, path)), "")
        loops = [loop.key for loop in step.loops]
        shared = [loop.key for loop in event.loops][: len(loops)] == loops
        if source and shared and event.line < step.line and _descends(event) and not _is_restored(flow, step, source):
            yield _violation(event, step, source, hint, "this inner step writes into its parameters themselves")


def _optimized(flow: Flow, step: Event, sources: list[str], hint: str) -> Iterator[Violation]:
    """Inner optimizers over the model that the outer one steps, made anew for a task."""
    for inner in flow.of("step"):
        if inner.path == step.path or not _inside(inner, step):
            continue
        made = [event for event in flow.of("optimizer") if event.path == inner.path]
        if not made or len(made[-1].loops) < len(step.loops) or not made[-1].loops:
            continue
        source = next((path for path in sources if path in _sources(flow, inner.path)), "")
        if source and not _is_restored(flow, step, source):
            told = f"the inner optimizer of line {made[-1].line} has its parameters themselves"
            yield _violation(inner, step, source, hint, told)


def _in_dictionaries(view: FileView, hint: str) -> Iterator[Violation]:
    """``adapted = dict(model.named_parameters())`` and ``adapted[name] -= rate * gradient``."""
    for function in [*view.nodes(ast.FunctionDef), view.tree]:
        held = dict(_dictionaries(view, function))
        if not held:
            continue
        for node in ast.walk(function):
            found = _write_into(node, held)
            if found is not None and _inner_of(view, node) is function:
                name, text = found
                if _GRADIENT.search(text) and _RATE.search(text):
                    yield Violation(
                        node,
                        f"the inner step writes into {name}, which holds the parameters of {held[name]} themselves",
                        evidence=(f"the file does meta-learning: {hint}",),
                        remedy=f"{name} = {{n: p - rate * g for (n, p), g in zip({name}.items(), gradients)}}",
                        severity=Severity.WARNING,
                        inferred=True,
                    )


def _dictionaries(view: FileView, function: ast.AST) -> Iterator[tuple[str, str]]:
    """The names that stand for nothing but the parameters themselves, and whose these are."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            given = node.value
            if isinstance(given, ast.Call) and view.name(given.func) in {"builtins.dict", "collections.OrderedDict"}:
                given = given.args[0] if len(given.args) == 1 else given
            elif isinstance(given, ast.DictComp) and isinstance(given.value, ast.Name):
                given = given.generators[0].iter
            else:
                continue
            if (
                isinstance(given, ast.Call)
                and isinstance(given.func, ast.Attribute)
                and given.func.attr == "named_parameters"
            ):
                owner, name = view.value(given.func.value), node.targets[0].id
                is_copy = owner is not None and bool(owner.copy_of)
                if not is_copy and _times_assigned(function, name) == 1:
                    yield name, view.text(given.func.value)


def _times_assigned(function: ast.AST, name: str) -> int:
    return sum(
        isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store)
        for node in ast.walk(function)
    )


def _write_into(node: ast.AST, held: dict[str, str]) -> tuple[str, str] | None:
    """The dictionary whose element is written into, and the text of the step."""
    target: ast.expr | None = None
    if isinstance(node, ast.AugAssign) and isinstance(node.op, (ast.Sub, ast.Add)):
        target = node.target
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in {"sub_", "add_"}:
        target = node.func.value
    if isinstance(target, ast.Attribute) and target.attr == "data":
        target = target.value
    if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name) and target.value.id in held:
        return target.value.id, ast.unparse(node)
    return None


def _inner_of(view: FileView, node: ast.AST) -> ast.AST:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return next((each for each in view.parents(node) if isinstance(each, kinds)), view.tree)


def _violation(event: Event, step: Event, source: str, hint: str, told: str) -> Violation:
    name = shown(source)
    return Violation(
        event.node,  # type: ignore[arg-type]
        f"the inner loop moves {name}, which the optimizer of line {step.line} meta-learns: tasks begin elsewhere",
        evidence=(
            told,
            f"line {step.line} steps the parameters of {name} for all tasks",
            f"the file does meta-learning: {hint}",
        ),
        remedy=f"adapt a copy for each task: copy.deepcopy({name}), or new tensors with torch.func.functional_call",
        severity=Severity.WARNING,
        inferred=True,
    )


RULE = LintRule(
    code="T704",
    what="Looks, in files that do meta-learning, for inner steps that write into the parameters which an outer "
    "optimizer steps: `p.data -= lr * g`, `p.sub_(lr * g)`, `adapted[name] -= lr * g` where `adapted` is "
    "`dict(model.named_parameters())`, and an inner optimizer over `model.parameters()`.",
    why="Each task then begins where the last one ended, the outer gradient belongs to a point that is gone, "
    "and no second-order term is left: what is called MAML is joint training with two rates.",
    example="def meta_step(model, tasks, inner_lr):\n    for x, y in tasks:\n"
    "        fast_weights = dict(model.named_parameters())\n"
    "        grads = torch.autograd.grad(criterion(model(x), y), list(fast_weights.values()))\n"
    "        with torch.no_grad():\n            for name, g in zip(fast_weights, grads):\n"
    "                fast_weights[name] -= inner_lr * g",
    instead="def meta_step(model, tasks, inner_lr):\n    for x, y in tasks:\n"
    "        fast_weights = dict(model.named_parameters())\n        grads = "
    "torch.autograd.grad(criterion(model(x), y), list(fast_weights.values()), create_graph=True)\n"
    "        fast_weights = {name: p - inner_lr * g for (name, p), g in zip(fast_weights.items(), grads)}",
    remedy="Make new tensors in the inner step, or adapt a deep copy; write into parameters in the outer step only.",
    safety=Safety.MANUAL,
    how_safe="manual: the training becomes another one",
    false_alarms="Methods that move the parameters on purpose and put them back (Reptile, sharpness-aware steps): let "
    "be where a load or a copy puts them back in the same loop. Clipping and other writes without a "
    "gradient are not looked at.",
    source="none found",
    triggers=HINTS,
    check=check,
)
