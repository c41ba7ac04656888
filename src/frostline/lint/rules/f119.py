"""F119: frozen values were written by hand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.iterations import loops_of, within
from frostline.lint.ownership import Ownership
from frostline.lint.phases import TRAINS
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import is_below

# Networks that follow another one: they are frozen, and written on purpose.
_FOLLOWS = re.compile(
    r"teacher|target|momentum|shadow|averag|(^|[._])(ema|swa|key|slow|old|prev|avg|global|server|best)([._\d]|$)|_(k|ema|old)$"
    r"|codebook|prototype|queue|embed_avg|cluster",
    re.I,
)
_WRITES = ("copy", "fill", "zero", "normal", "uniform", "add", "sub", "mul", "div", "clamp", "lerp", "addcmul", "set")
_CHOICE = re.compile(r"requires_grad|name|\.grad|\.dim|ndim|isinstance|shape")


def check(view: FileView) -> Iterator[Violation]:
    """Writes into parameters in a training loop, where the same flow froze some of what the line goes over."""
    for flow in view.flows:
        if not flow.of("flag", "hold"):
            continue
        ownership = Ownership(flow)
        for index, event in enumerate(flow.events):
            if event.what == "write" and event.path:
                yield from _violation(view, flow, ownership, index)


def _violation(view: FileView, flow: Flow, ownership: Ownership, index: int) -> Iterator[Violation]:
    write = flow.events[index]
    path = ownership.path(write.path)
    if _FOLLOWS.search(path) or not _in_training(flow, write) or _follows_another(view, write):
        return
    frozen = _frozen(ownership, path, index, write.path.endswith(".*"))
    if frozen is None:
        return
    part, flag = frozen
    if _FOLLOWS.search(part) or not write.whole or any(_picks(condition.node) for condition in write.conditions):
        return
    node = write.node
    text = view.text(node).splitlines()[0] if node is not None and not write.origin else f"a write at {write.origin}"
    covers = part != path and is_below(part, path)
    # A line that says which part it writes is certain; a loop may leave out what nobody here sees.
    sure = not covers or write.path.endswith(".*")
    yield Violation(
        node or view.tree,
        f"{part} is frozen, and this line writes into it" + (f": it goes over all of {path}" if covers else ""),
        evidence=(
            f"line {flag.line} freezes {part}",
            f"{text} runs in the training loop: neither the flag nor the optimizer stops it",
        ),
        remedy="leave frozen parameters out: if p.requires_grad:" if write.path.endswith(".*") else "",
        severity=Severity.ERROR if sure else Severity.WARNING,
    )


def _in_training(flow: Flow, write: Event) -> bool:
    """Whether a write is done again and again while something trains: not a value that is set once before."""
    loops = loops_of(write)
    return any(e.what in TRAINS and any(within(e, loop) for loop in loops) for e in flow.events)


def _follows_another(view: FileView, write: Event) -> bool:
    """Whether what is written comes from other parameters, or a checkpoint: an average, a copy, a restored state."""
    for loop in write.loops:
        if loop.over is not None and loop.over.kind in {"zip", "enumerate", "state_dict", "checkpoint", "dict"}:
            return True
    node = write.node
    if write.origin or node is None:
        return bool(write.origin) and write.get("how") in {"copy_", "data", "set_", "lerp_"}
    given: list[ast.expr] = []
    if isinstance(node, ast.Call):
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
    elif isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) and node.value is not None:
        given = [node.value]
    # What the writing line itself calls the parameter: in a function, its caller calls it otherwise.
    own = _written(view, node) or write.path
    for each in given:
        for inner in ast.walk(each):
            if isinstance(inner, ast.Subscript):
                return True  # saved[name], from somewhere
            value = view.value(inner) if isinstance(inner, ast.expr) else None
            if value is None or value.kind not in {"parameter", "data", "module", "state_dict", "checkpoint"}:
                continue
            if value.path and not own.startswith(value.path) and not value.path.startswith(own):
                return True
    return False


def _written(view: FileView, node: ast.AST) -> str:
    """The path of what a statement or call writes into; "" where it has none."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        into: ast.expr | None = node.func.value
    elif isinstance(node, ast.Assign):
        into = node.targets[0]
    else:
        into = getattr(node, "target", None)
    while into is not None:
        value = view.value(into)
        if value is not None and value.path:
            return value.path
        into = into.value if isinstance(into, (ast.Attribute, ast.Subscript)) else None
    return ""


def _frozen(ownership: Ownership, path: str, index: int, goes_over: bool) -> tuple[str, Event] | None:
    """The frozen part that a write reaches: what it names, or, of a loop over a model, a part of that."""
    flow = ownership.flow
    for flag in reversed(flow.events[:index]):
        if flag.what == "hold":
            parts = _held(flag, ownership.path(flag.path))
        elif flag.what == "flag" and flag.get("value") is False and flag.whole:
            parts = [ownership.path(flag.path)]
        else:
            continue
        for part in parts:
            inside = is_below(path, part) or (goes_over and is_below(part, path))
            if part and inside and not _is_thawed(ownership, part, flag, index):
                return (part if is_below(part, path) else path), flag
    return None


def _held(event: Event, path: str) -> list[str]:
    """The parts that ``frostline.freeze(model, "trunk")`` names, or the whole model."""
    node = event.node
    if not isinstance(node, ast.Call) or event.origin:
        return []
    names = [each.value for each in node.args[1:] if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    if len(names) != len(node.args) - 1:
        return []
    plain = [name for name in names if re.fullmatch(r"[\w.]+", name)]
    return [f"{path}.{name}" for name in plain] if names else [path]


def _is_thawed(ownership: Ownership, part: str, flag: Event, index: int) -> bool:
    flow = ownership.flow
    start = next(i for i, each in enumerate(flow.events) if each is flag)
    return any(
        each.what == "flag" and each.get("value") is not False and _meets(ownership.path(each.path), part)
        for each in flow.events[start + 1 : index]
    )


def _meets(one: str, other: str) -> bool:
    return is_below(one, other) or is_below(other, one)


def _picks(test: ast.expr | None) -> bool:
    """Whether a condition chooses which parameters are written."""
    return test is not None and bool(_CHOICE.search(ast.unparse(test)))


RULE = LintRule(
    code="F119",
    what="Looks in training loops for in-place writes into parameters (`p.data.clamp_()`, `p.mul_()` and the like, "
    "`p.data = ...`) that reach a part which the same flow froze.",
    why="A flag and an optimizer's groups do not stop a write: weight clipping over all parameters, decay by hand, "
    "noise or a normalization change the frozen part, and nothing complains.",
    example="model.trunk.requires_grad_(False)\nfor x, y in loader:\n    optimizer.zero_grad()\n"
    "    criterion(model(x), y).backward()\n    optimizer.step()\n    for p in model.parameters():\n"
    "        p.data.clamp_(-0.01, 0.01)",
    instead="model.trunk.requires_grad_(False)\nfor x, y in loader:\n    optimizer.zero_grad()\n"
    "    criterion(model(x), y).backward()\n    optimizer.step()\n    for p in model.parameters():\n"
    "        if p.requires_grad:\n            p.data.clamp_(-0.01, 0.01)",
    remedy="Leave the frozen part out of the line that writes.",
    safety=Safety.MANUAL,
    how_safe="manual: the write may be what is wanted, and the freezing not",
    false_alarms="A frozen part that the code keeps up by itself. Networks that follow another one (teachers, "
    "targets, averages), codebooks and prototypes by name, writes of other parameters or of a loaded state, and "
    "writes before training are let be. Silence others with `# noqa: F119`.",
    source="facebookresearch/moco#70 (writes through .data)",
    triggers=(".data", "no_grad", *(f"{name}_(" for name in _WRITES)),
    check=check,
)
