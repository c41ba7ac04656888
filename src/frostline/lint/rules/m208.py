"""M208: a network that only gives targets runs in train mode."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.carried_along import is_set_outside, train_of_owner
from frostline.lint.diagnostic import Edit
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.held_parts import is_held
from frostline.lint.layers import LayerBook
from frostline.lint.phases import Phases
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import is_below, related

# What people call networks that give targets; the second kind often follows another one, in train mode by design.
_GIVES = re.compile(r"teacher|(^|_)(ref|reference|perceptual|lpips|vgg)(_|$|\d)|(^|_)expert_model", re.I)
_FOLLOWS = re.compile(r"(^|_)(target|momentum|ema|key|moco)(_|$)|encoder_k$|_k$", re.I)
# Nets that their makers put into eval mode.
_IN_EVAL = re.compile(r"\.from_pretrained|(^|\.)lpips\.|LPIPS|torch\.jit\.load|SentenceTransformer|clip\.load$")
_SWITCH_NAMES = {"train", "eval", "freeze"}


def check(view: FileView) -> Iterator[Violation]:
    """Networks called by such names that only run without gradients, made here, and never put into eval mode."""
    book = LayerBook(view)
    for flow in view.flows:
        if not flow.is_complete:
            continue
        phases = Phases(flow)
        seen: set[str] = set()
        for index, event in enumerate(flow.events):
            path = phases.canonical(event.path) if event.what == "forward" else ""
            if not path or path in seen or not _kind(path):
                continue
            seen.add(path)
            if is_held(view, flow, path) or is_set_outside(view, flow, path):
                continue
            if _only_gives(view, flow, phases, path):
                yield from _violation(view, flow, phases, book, index)


def _kind(path: str) -> str:
    """``gives`` or ``follows`` by the last name of a path; "" if it is called otherwise."""
    name = re.split(r"[.:]", path)[-1]
    return "gives" if _GIVES.search(name) else "follows" if _FOLLOWS.search(name) else ""


def _only_gives(view: FileView, flow: Flow, phases: Phases, path: str) -> bool:
    """Whether nothing trains it, while something else is trained."""
    if any(phases.canonical(flow.events[i].path) == path for i in phases.training if not _is_cut(view, flow.events[i])):
        return False
    own = [e for e in flow.of("forward") if related(phases.canonical(e.path), path)]
    if not all(e.no_grad or _is_cut(view, e) for e in own):
        return False
    for optimizer in flow.of("optimizer", "add_group"):
        if any(source.path and related(phases.canonical(source.path), path) for source in optimizer.get("sources", ())):
            return False
    others = [flow.events[i] for i in phases.training if not related(phases.canonical(flow.events[i].path), path)]
    return bool(others) or _is_part_of_a_pass(view, flow, phases, path)


def _is_cut(view: FileView, event: Event) -> bool:
    """Whether what a pass gives is detached at once: ``teacher(x).detach()``."""
    if event.origin or event.node is None:
        return False
    above = view.parent(event.node)
    while isinstance(above, (ast.Attribute, ast.Subscript)) or (
        isinstance(above, ast.Call) and isinstance(above.func, ast.Attribute)
    ):
        if isinstance(above, ast.Attribute) and above.attr == "detach":
            return True
        if isinstance(above, ast.Call) and above.func is not event.node and event.node in above.args:
            return False
        above = view.parent(above)
    return False


def _is_part_of_a_pass(view: FileView, flow: Flow, phases: Phases, path: str) -> bool:
    """Whether it is a part of a module whose pass runs another part with gradients, and whose mode nobody handles."""
    if not flow.owner or not path.startswith("self."):
        return False
    name = flow.name.rpartition(".")[2]
    cls = view.walk.qualified(flow.owner)
    if name not in {"forward", "training_step"} or not view.walk.is_module(cls):
        return False
    if any(view.walk.method(cls, each) for each in _SWITCH_NAMES):
        return False
    # Only methods of its own tell; what a base does is not known where the base is not.
    if any(base == "?" for walk, owner in view.walk.ancestry(cls) for base in walk.bases(owner)):
        return False
    carried = train_of_owner(view, flow, path) is not None
    for function in view.walk.functions.values():
        if carried and function.name.endswith(".__init__"):
            continue  # what it does to the mode is undone
        if function.owner == flow.owner and any(
            e.what in {"mode", "unknown"} and phases.is_about(e, path) for e in function.events if e.path
        ):
            return False
    return any(
        e.what == "forward" and not e.no_grad and not related(phases.canonical(e.path), path) for e in flow.events
    )


def _violation(view: FileView, flow: Flow, phases: Phases, book: LayerBook, index: int) -> Iterator[Violation]:
    event = flow.events[index]
    path = phases.canonical(event.path)
    modes = phases.modes_at(index, path)
    before = reversed(flow.events[:index])
    made = next((e for e in before if e.what == "new" and phases.canonical(e.path) == path), None)
    if made is None:
        return
    carried = train_of_owner(view, flow, path)
    evals = [mode for mode in modes if mode.what == "mode" and mode.get("value") is not True]
    if evals:
        # An eval() where it is made lasts until train() is called on what it is a part of.
        if carried is None or any(mode.function.rpartition(".")[2] != "__init__" for mode in evals):
            return
        modes = [mode for mode in modes if mode.what != "mode"]
    is_set = any(mode.what == "mode" for mode in modes)
    origin = made
    of = str(made.get("value").copy_of)
    start = next(i for i, e in enumerate(flow.events) if e is made)
    if of and related(phases.canonical(of), path):
        return
    if of:
        # A copy is in the mode that the original was in.
        earlier = phases.modes_at(start, of)
        if not is_set and any(mode.what == "mode" and mode.get("value") is not True for mode in earlier):
            return
        origin = next((mode for mode in earlier if mode.what == "new"), made)
    if not is_set and (_is_made_in_eval(view, origin) or phases.unknown(path, start, index)):
        return
    layers = book.of_path(flow, path, index)
    if layers.norms is False and layers.drops is False:
        return
    follows = _kind(path) == "follows" or any(
        e.what == "write" and related(phases.canonical(e.path), path) for e in flow.events
    )
    known = layers.norms is True or layers.drops is True
    if follows and not known:
        return
    called = event.node.func if isinstance(event.node, ast.Call) and not event.origin else None
    name = view.text(called) if called is not None else event.path
    last = next((mode for mode in modes if mode.what == "mode"), None)
    line = last.line if last is not None else 0
    evidence = [
        f"line {line} puts it into train mode"
        if line
        else f"line {made.line} makes it: a module that is made is in train mode; eval() is never called on it"
    ]
    if evals:
        evidence = [f"line {evals[0].line} puts it into eval mode"]
    if carried is not None:
        undoes = "undoes that" if evals else "reaches it too, whatever its mode was"
        evidence.append(f"line {carried.line} calls train() on the module that it is a part of, which {undoes}")
    if layers.norms:
        evidence.append("it has layers with running statistics, which move with every pass")
    elif layers.drops:
        evidence.append("it has dropout, which makes its targets noisy")
    if follows:
        evidence.append("it follows another network: train mode may be meant")
    edit = _edit(view, made) if not is_set and not (flow.owner and path.startswith("self.")) else None
    yield Violation(
        event.node or view.tree,
        f"{name} only gives targets, and runs in train mode",
        evidence=tuple(evidence),
        remedy=_remedy(view, flow, phases, path, name, carried or last),
        severity=Severity.INFO if follows else Severity.WARNING,
        edits=(edit,) if edit is not None else (),
        safety=Safety.UNSAFE,
        title="Call eval() where it is made",
        inferred=True,
    )


def _remedy(view: FileView, flow: Flow, phases: Phases, path: str, name: str, train: Event | None) -> str:
    """What keeps it in eval mode: of a part of a module, train() of the whole undoes an eval()."""
    trained = phases.canonical(train.path) if train is not None else ""
    is_own = bool(flow.owner) and path.startswith("self.") and view.walk.is_module(view.walk.qualified(flow.owner))
    if is_own:
        override = f"a train() of the class that calls {path}.eval() after super().train(mode)"
        return f"frostline.freeze({path}) where it is made: it stays in eval mode, whoever calls train(); or {override}"
    if trained and trained != path and is_below(path, trained):
        return f"{name}.eval() after every train() of {shown(trained)}, or frostline.freeze({name})"
    if train is not None and trained == path:
        return f"{name}.eval() in place of the train() of line {train.line}"
    return f"{name}.eval(), right where it is made"


def _is_made_in_eval(view: FileView, made: Event) -> bool:
    """Whether its maker has put it into eval mode, or may have."""
    value = made.get("value")
    maker = str(value.maker or value.cls)
    if _IN_EVAL.search(maker):
        return True
    given = getattr(made.node, "value", None)
    if made.origin or not isinstance(given, ast.expr):
        return bool(made.origin) and not maker
    return bool(_IN_EVAL.search(view.text(given)))


def _edit(view: FileView, made: Event) -> Edit | None:
    """A line with eval() below the one that makes it."""
    node = made.node
    if made.origin or not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return None
    target = node.targets[0]
    block = view.parent(node)
    if not isinstance(target, (ast.Name, ast.Attribute)) or block is None or _shares_its_line(block, node):
        return None
    return view.line_below(node, f"{view.text(target)}.eval()")


def _shares_its_line(block: ast.AST, node: ast.stmt) -> bool:
    """Whether another statement stands on the last line of a statement."""
    return any(
        isinstance(each, ast.stmt) and each is not node and each.lineno == node.end_lineno
        for each in ast.iter_child_nodes(block)
    )


RULE = LintRule(
    code="M208",
    what="Looks at networks that are called teacher, reference, perceptual, target or the like, that run without "
    "gradients only while another one trains, and that are made in the same flow and never put into eval mode; also at "
    "parts of a module that are, where they are made, and whose module is put into train mode afterwards.",
    why="A teacher, a reference policy or a network for a perceptual loss is meant to be a fixed function. In train "
    "mode its dropout makes the targets noisy, its batch normalization makes them depend on the other samples of the "
    "batch, and its statistics move towards the student's data although nothing trains it.",
    example="teacher = torchvision.models.resnet50()\nfor x, y in loader:\n    with torch.no_grad():\n"
    "        target = teacher(x)\n    loss = F.mse_loss(model(x), target)\n    loss.backward()\n"
    "    optimizer.step()\n    optimizer.zero_grad()",
    instead="teacher = torchvision.models.resnet50()\nteacher.eval()\nfor x, y in loader:\n"
    "    with torch.no_grad():\n        target = teacher(x)\n    loss = F.mse_loss(model(x), target)\n"
    "    loss.backward()\n    optimizer.step()\n    optimizer.zero_grad()",
    remedy="Call `teacher.eval()` where it is made. Where it is a part of a module whose `train()` is called, that "
    "undoes it: hold it with `frostline.freeze(self.teacher)`, or override `train()` in the module.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the targets change, and with them the training",
    false_alarms="A network that is called so and has neither dropout nor running statistics, where source does not "
    "tell; one that follows the trained one by design, as in MoCo or BYOL, is only an info, and only where it surely "
    "has such layers. Parts that `frostline.freeze` holds, nets from `from_pretrained`, which come in eval mode, and "
    "nets that are given to a function nobody here knows are let be. Silence others with `# noqa: M208`.",
    source="unbiased-teacher#47, TaCL#11, sparseml#2191, Lightning#2824",
    triggers=("eacher", "ref", "perceptual", "lpips", "vgg", "target", "moment", "ema", "expert", "moco", "_k(", "key"),
    check=check,
)
